"""The test before the first step: latents that are right pass, every way of being wrong is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.building import digest
from latentsb.cache import LatentCache
from latentsb.data.arrays import ArraySource
from latentsb.errors import CacheError, DataError
from latentsb.roundtrip import RoundTrip, _moved, chosen, decibel, prove
from latentsb.stores import STORES, Auto, BFloat16, Float16, Store, UInt8
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

N = 40


class Coder(Autoencoder):
    """Means over 2×2 pixels, scaled; `factor` and `decoded` are changes of code, which no fingerprint sees."""

    def __init__(self, images: Spec, factor: float = 1.0, decoded: float = 1.0, trained: bool = True) -> None:
        c, h, w = images.shape
        super().__init__(images, Spec((c, h // 2, w // 2)))
        self.factor, self.decoded, self.trained = factor, decoded, trained

    def moments(self, images: torch.Tensor) -> Moments:
        return Moments(5 + 3 * self.factor * torch.nn.functional.avg_pool2d(images, 2))

    def raw_decode(self, raw: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(self.decoded * (raw - 5) / 3, scale_factor=2.0)

    def loss(self, batch: Batch, draws: object) -> Loss:
        return Loss(torch.zeros(len(batch)))


def source(seed: int = 0, x1: int = 0) -> ArraySource:
    """Smooth images: 2×2 blocks of one colour, and a little noise that the latents lose."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(N + x1, 3, 4, 4, generator=rng) * 1.8 - 0.9
    images = torch.nn.functional.interpolate(coarse, scale_factor=2.0)
    images = images + 0.05 * torch.randn(images.shape, generator=rng)
    return ArraySource(images[:N], images[N:] if x1 else None, {}, flip=True, identity={"data": "smooth"})


def cached(path: Path, data: ArraySource, store: Store = Auto(), **kwargs: float) -> tuple[LatentCache, Coder]:
    encoder = Coder(data.spec, **kwargs)
    cache = LatentCache.open_or_build(path, data, encoder, batch=8, store=store)
    assert isinstance(cache, LatentCache)
    return cache, encoder.eval()


@pytest.mark.parametrize("word", ["auto", "float32", "bfloat16", "uint8"])
def test_what_is_right_passes_and_its_figures_are_right(tmp_path: Path, word: str) -> None:
    data = source(x1=12)
    cache, encoder = cached(tmp_path / "c", data, STORES[word]())
    found = prove(cache, data, encoder)
    index = chosen(data)
    images = data.read(index, np.arange(len(index)) % 2).x0
    by_hand = (encoder.round_trip(images) - images).square().mean().item()
    assert found.own.error == pytest.approx(by_hand, rel=1e-5)
    assert found.own.floor == pytest.approx(images.var(0, correction=0).mean().item(), rel=1e-5)
    assert found.before is not None
    # Latents span about 6 standard deviations over 3.4; bfloat16 rounds numbers up to 8 to 2⁻⁶ at most.
    assert found.apart < {"uint8": 0.01, "bfloat16": 2.0**-6}.get(word, 2e-3)
    assert found.cached.error == pytest.approx(found.before.error, rel=1e-4)
    assert len(prove(cache, data, encoder, fewer=True).own.errors) == 2


@pytest.mark.parametrize("factor", [0.18215, 1.0 / 0.18215, 0.95, -1.0])
def test_a_scale_that_is_applied_twice_or_not_is_found(tmp_path: Path, factor: float) -> None:
    data = source()
    cache, _ = cached(tmp_path / "c", data)
    other = Coder(data.spec, factor=factor).eval()
    other.load_state_dict(Coder(data.spec).state_dict())
    other.use_statistics(cache.statistics)
    with pytest.raises(CacheError, match="holds other latents than this autoencoder's; remove that folder"):
        prove(cache, data, other)


@pytest.mark.parametrize("decoded", [0.5, -1.0, 2.0])
def test_another_decoder_is_found(tmp_path: Path, decoded: float) -> None:
    data = source()
    cache, encoder = cached(tmp_path / "c", data)
    encoder.decoded = decoded
    with pytest.raises(CacheError, match=r"had \d\d\.\d\d dB when it was made: the decoder is another one"):
        prove(cache, data, encoder)


def rewritten(path: Path, **changes: object) -> None:
    """Change a manifest as if it had been written so."""
    manifest = json.loads((path / "cache.json").read_text())
    del manifest["sha256"]
    for key, value in changes.items():
        holder = manifest["made_of"] if key in manifest["made_of"] else manifest
        holder[key] = value
    (path / "cache.json").write_text(json.dumps({**manifest, "sha256": digest(manifest)}))


def test_a_cache_of_other_images_is_found(tmp_path: Path) -> None:
    data, other = source(), source(seed=1)
    cached(tmp_path / "c", other)
    cache, encoder = cached(tmp_path / "c", data)  # by a fingerprint that does not tell them apart
    with pytest.raises(CacheError, match="holds other latents"):
        prove(cache, data, encoder)
    with pytest.raises(CacheError, match="holds other latents"):
        prove(cache, data, encoder, fewer=True)


def test_other_latents_of_the_other_end_are_found(tmp_path: Path) -> None:
    data = source(x1=12)
    cache, encoder = cached(tmp_path / "c", data)
    assert data.others is not None
    data.others = data.others.roll(1, 0)
    with pytest.raises(CacheError, match="latents of x1"):
        prove(cache, data, encoder)


def test_bits_that_are_read_as_other_numbers_are_found(tmp_path: Path) -> None:
    data = source()
    cached(tmp_path / "c", data, Float16())
    for file in (tmp_path / "c").glob("x0-*.npy"):
        np.save(file, np.load(file).view(np.int16))
    rewritten(tmp_path / "c", dtype="bfloat16")
    encoder = Coder(data.spec).eval()
    cache = LatentCache(tmp_path / "c", data, encoder, store=BFloat16(), verify=False)
    with pytest.raises(CacheError, match="holds other latents"):
        prove(cache, data, encoder)


def test_published_weights_that_make_no_images_are_refused_and_ones_own_are_not(tmp_path: Path) -> None:
    data = source()
    cache, encoder = cached(tmp_path / "c", data, decoded=-1.0)
    with pytest.raises(DataError, match=r"'Coder' leaves 8 training images a PSNR of .* less than their mean image"):
        prove(cache, data, encoder)
    encoder.trained = False
    found = prove(cache, data, encoder)
    assert found.own.error > found.own.floor


def test_an_old_cache_is_read_and_tested(tmp_path: Path) -> None:
    data = source()
    cached(tmp_path / "c", data)
    manifest = json.loads((tmp_path / "c" / "cache.json").read_text())
    old = {k: v for k, v in manifest.items() if k not in ("sha256", "lost", "round_trip", "batch")} | {"format": 1}
    (tmp_path / "c" / "cache.json").write_text(json.dumps({**old, "sha256": digest(old)}))
    cache, encoder = cached(tmp_path / "c", data)
    assert cache.manifest["format"] == 1
    assert prove(cache, data, encoder).before is None
    encoder.decoded = -1.0  # nothing to compare with, but worse than the mean image
    with pytest.raises(DataError, match="less than their mean image"):
        prove(cache, data, encoder)
    rewritten(tmp_path / "c", format=7)
    with pytest.raises(CacheError, match="has format 7, this version writes 2 and reads 1 and 2"):
        cached(tmp_path / "c", data)


def test_the_error_that_a_cache_tells_is_the_error_that_it_has(tmp_path: Path) -> None:
    data = source(x1=5)
    cache, encoder = cached(tmp_path / "c", data, UInt8())
    assert data.others is not None
    images = torch.cat([data.samples, data.samples.flip(-1), data.others, data.others.flip(-1)])
    index, x1 = np.arange(N), np.arange(5)
    held = [cache.read(index, np.full(N, v)).x0 for v in (0, 1)] + [
        cache._latents("x1", x1, x1 * 0 + v, None) for v in (0, 1)
    ]
    apart = (torch.cat(held) - encoder.encode(images)).abs()
    lost = cache.lost()
    assert apart.amax((0, 2, 3)).tolist() == pytest.approx(lost["largest"], rel=1e-3)
    assert apart.square().mean((0, 2, 3)).sqrt().tolist() == pytest.approx(lost["rms"], rel=1e-3)
    assert (tmp_path / "c" / "x0-mean-0-00000.npy").stat().st_size == 128 + N * 48


def test_what_a_store_loses_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is, twice the error that storing makes on average, in units of the deviation."""
    monkeypatch.setattr("latentsb.roundtrip.APART", 0.0)
    data = source()
    cache, encoder = cached(tmp_path / "c", data, UInt8())
    found = prove(cache, data, encoder)
    assert 0 < found.apart <= found.allowed == 2 * max(cache.lost()["rms"])


def test_figures_in_closed_form() -> None:
    assert decibel(0.04) == "20.00 dB"  # an error of a tenth of the range, root mean square
    assert decibel(0.0) == "∞ dB"
    two = torch.tensor([[1.0, -1.0], [0.0, 0.5]]).view(2, 1, 1, 2)
    found = RoundTrip.of(torch.zeros_like(two), two)
    assert found.errors == (1.0, 0.125)
    assert found.floor == pytest.approx((0.25 + 0.5625) / 2)  # the pixels' own means are 1/2 and −1/4


def test_another_decoder_is_measured_by_how_far_images_moved() -> None:
    """Of an error e it says at least |√now − √before|: an image that was nearly right may not become a bad one."""
    now = RoundTrip((0.04, 0.25), 0.0)
    assert _moved(now, RoundTrip((0.01, 0.36), 0.0)) == pytest.approx(0.1)
