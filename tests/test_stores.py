"""Stores: what is read back, how wrong it can be, and that the error that is told is the error that was made."""

import numpy as np
import pytest
import torch

from latentsb.errors import DataError
from latentsb.stores import STORES, Auto, BFloat16, Float16, Float32, Store, UInt8, error

KINDS = (Float32(), Float16(), BFloat16(), UInt8())


def latents(n: int = 16) -> torch.Tensor:
    """Channels of very different mean and width."""
    x = torch.randn(n, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 30.0, 1e-3, 0.0]).view(4, 1, 1) + torch.tensor([0.0, -7.0, 2.0, 0.3]).view(4, 1, 1)


def bound(store: Store, raw: torch.Tensor) -> torch.Tensor:
    """The largest error that rounding to the nearest number can make, and of float32's own operations beside it."""
    relative = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    word = STORES.word_of(store)
    if word in relative:
        return relative[word] * raw.abs() + 2.0**-25 * (word == "float16")
    high, low = raw.amax((0, 2, 3), keepdim=True), raw.amin((0, 2, 3), keepdim=True)
    return ((high - low) / 255 / 2 + 2.0**-22 * raw.abs()).expand_as(raw)


@pytest.mark.parametrize("store", KINDS, ids=STORES.word_of)
def test_what_is_read_is_as_near_as_the_numbers_allow(store: Store) -> None:
    raw = latents()
    packed, read = store.kept(raw)
    assert packed.rows.dtype == store.dtype
    assert read.dtype == torch.float32
    assert ((read - raw).abs() <= bound(store, raw)).all()
    if store.ranged:
        assert read[:, 3].eq(raw[:, 3]).all()  # a constant channel has no error, nor a division by nothing
        assert packed.rows.min() == 0
        assert packed.rows.max() == 255


@pytest.mark.parametrize("store", KINDS, ids=STORES.word_of)
def test_rows_are_read_one_by_one_as_together(store: Store) -> None:
    packed, read = store.kept(latents())
    order = np.array([5, 5, 0, 15])
    affine = None if packed.affine is None else torch.from_numpy(packed.affine).expand(4, -1, -1)
    assert torch.equal(store.unpack(packed.rows[order], affine), read[order])


def test_the_error_of_even_levels_is_theirs() -> None:
    """Uniform numbers over 256 levels: a step's width over √12, root mean square; half a step at most."""
    raw = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 6 - 2
    _, read = UInt8().kept(raw)
    largest, square = error(raw, read)
    step = 6 / 255
    assert largest.item() <= step / 2 * (1 + 1e-4)
    rms = (square.item() / raw.numel()) ** 0.5
    # The mean of n squares has a relative standard deviation of √(4/5n): 0.0018, half of it in the root.
    assert rms == pytest.approx(step / 12**0.5, rel=0.004)


def test_the_autoencoder_asks_for_its_numbers() -> None:
    for dtype, kind in ((torch.float16, Float16), (torch.float32, Float32), (torch.bfloat16, BFloat16)):
        assert Auto(posterior=True).resolved(dtype) == kind(posterior=True)
        assert UInt8().resolved(dtype) == UInt8()


@pytest.mark.parametrize("store", KINDS, ids=STORES.word_of)
def test_what_is_no_number_is_refused(store: Store) -> None:
    for bad in (float("nan"), float("inf")):
        raw = latents()
        raw[3, 1, 0, 0] = bad
        with pytest.raises(DataError, match="not finite"):
            store.kept(raw)
    with pytest.raises(DataError, match="up to 100000, which are not finite as float16"):
        Float16().kept(torch.full((1, 1, 1, 1), 1e5))
