"""Space to depth: by hand, against torch, exact both ways, read without a cache."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsb.autoencoders.patch import Patch
from latentsb.cache import LatentCache
from latentsb.data.arrays import Digits
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError
from latentsb.normalisers import Channel
from latentsb.tensors import Spec


def test_by_hand():
    """Two channels of 4×2, cut by 2: four channels for each, in the order of a patch's rows."""
    image = torch.arange(16.0).reshape(1, 2, 4, 2)
    codec = Patch(Spec((2, 4, 2)))
    expected = [[[0], [4]], [[1], [5]], [[2], [6]], [[3], [7]], [[8], [12]], [[9], [13]], [[10], [14]], [[11], [15]]]
    assert codec.latent.shape == (8, 2, 1)
    assert codec.encode(image)[0].tolist() == expected


@pytest.mark.parametrize(("shape", "factor"), [((1, 8, 8), 8), ((3, 12, 20), 4), ((5, 6, 9), 3), ((4, 5, 7), 1)])
def test_exact_to_the_bit_and_torchs_own(shape, factor):
    codec = Patch(Spec(shape), factor=factor)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) * 100
    latents = codec.encode(x)
    assert latents.shape[1:] == codec.latent.shape == (shape[0] * factor**2, shape[1] // factor, shape[2] // factor)
    assert torch.equal(latents, F.pixel_unshuffle(x, factor))
    assert torch.equal(codec.decode(latents), x)
    assert codec.decode(latents + 1).equal(x + 1)  # nothing is clamped


def test_refusals():
    with pytest.raises(ArgumentError, match=r"factor: 4 does not divide 8×6; nearest that fit: 8×4 and 8×8"):
        Patch(Spec((1, 8, 6)), factor=4)
    with pytest.raises(ArgumentError, match=r"found samples of shape \(2,\)"):
        Patch(Spec((2,)))


@pytest.mark.parametrize("normaliser", [None, Channel()])
def test_latents_are_cut_as_images_are_read(tmp_path, normaliser):
    source = Digits()
    codec = Patch(source.spec, factor=4, **({} if normaliser is None else {"normaliser": normaliser}))
    latents = LatentCache.open_or_build(tmp_path / "latents", source, codec)
    assert not (tmp_path / "latents").exists()
    raw = F.pixel_unshuffle(source.samples, 4)
    wanted, tolerance = raw, 0.0
    if normaliser is not None:  # a pixel that is never lit has no spread, and is moved alone
        mean, std = raw.double().mean((0, 2, 3), keepdim=True), raw.double().std((0, 2, 3), correction=0, keepdim=True)
        wanted, tolerance = ((raw - mean) / torch.where(std > 0, std, 1)).float(), 1e-5
    index = np.array([5, 0, 1700])
    torch.testing.assert_close(latents.read(index).x0, wanted[index], atol=tolerance, rtol=0)
    batch = Stream(latents, 0, 8).batch(0)
    assert batch.data.shape == (8, *codec.latent.shape)
    torch.testing.assert_close(codec.decode(latents.read(index).x0), source.samples[index], atol=tolerance, rtol=0)
