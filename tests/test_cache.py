"""The latent cache: equal to encoding on the fly, bound to what made it, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.autoencoders.identity import Identity
from latentsb.cache import LatentCache
from latentsb.data.arrays import ArraySource
from latentsb.data.source import Items, Source
from latentsb.data.stream import Stream
from latentsb.disk import Disk
from latentsb.errors import CacheError, DataError, DiskError
from latentsb.normalisers import Channel
from latentsb.randomness import Draws
from latentsb.shards import Shards, ShardWriter
from latentsb.stores import Auto
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

N = 37


class Halving(Autoencoder):
    """Means over 2×2 pixels, weighted differently per latent channel, and a posterior that depends on them."""

    def __init__(self, images: Spec, weights: tuple[float, ...] = (1.0, -3.0, 0.01)) -> None:
        _, h, w = images.shape
        super().__init__(images, Spec((len(weights), h // 2, w // 2)))
        self.weights = torch.nn.Parameter(torch.tensor(weights))
        self.calls: list[bool] = []

    def moments(self, images: Tensor) -> Moments:
        self.calls.append(self.training)
        means = torch.nn.functional.avg_pool2d(images, 2).mean(1, keepdim=True)
        raw = self.weights[:, None, None] * means + torch.arange(float(len(self.weights)))[:, None, None]
        return Moments(raw, 0.1 + raw.abs())

    def raw_decode(self, raw: Tensor) -> Tensor:
        mean = (raw[:, :1]) / self.weights[0]
        return torch.nn.functional.interpolate(mean, scale_factor=2.0).expand(-1, *self.images.shape)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return Loss(torch.zeros(len(batch)))


def source(n: int = N, x1: int = 0, flip: bool = True, seed: int = 0) -> ArraySource:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 4, 6, generator=rng) * 2 - 1
    other = torch.rand(x1, 3, 4, 6, generator=rng) if x1 else None
    cond = {"label": torch.arange(n) % 5, "attributes": torch.rand(n, 2, generator=rng)}
    identity = {"data": "test", "seed": seed}
    return ArraySource(images, other, cond, classes=5, flip=flip, identity=identity)


def codec(data: Source, **kwargs: Any) -> Halving:
    return Halving(data.spec, **kwargs)


def built(path: Path, data: Source, encoder: Autoencoder, **kwargs: Any) -> LatentCache:
    cache = LatentCache.open_or_build(path, data, encoder, batch=8, **kwargs)
    assert isinstance(cache, LatentCache)
    return cache


def half_tolerance(encoder: Autoencoder, raw: Tensor) -> Tensor:
    """Rounding to 11 bits moves a number by 2⁻¹² of its magnitude's power of two at most, hence 2⁻¹¹ of itself."""
    return (2.0**-11 * raw.abs() + 2.0**-25) / encoder.scale + 1e-6


def test_cache_equals_encoding_on_the_fly(tmp_path: Path) -> None:
    data = source()
    encoder = codec(data).train()
    cache = built(tmp_path / "c", data, encoder)
    assert encoder.training
    assert not any(encoder.calls)
    index, variant = np.array([36, 0, 5, 5, 17]), np.array([0, 1, 0, 1, 1])
    for sides in (None, variant):
        images, found = data.read(index, sides), cache.read(index, sides)
        raw = encoder.moments(images.x0).mean
        assert found.x0.dtype == torch.float32
        assert ((found.x0 - encoder.encode(images.x0)).abs() <= half_tolerance(encoder, raw)).all()
        assert found.cond.keys() == images.cond.keys()
        for name, value in images.cond.items():
            assert torch.equal(found.cond[name], value)
    assert (len(cache), cache.spec, cache.variants, dict(cache.cond)) == (N, encoder.latent, 2, dict(data.cond))


def test_normaliser_is_fitted_on_the_way_in_float64(tmp_path: Path) -> None:
    data = source(x1=11)
    encoder = codec(data)
    cache = built(tmp_path / "c", data, encoder)
    assert data.others is not None
    everything = torch.cat([data.samples, data.samples.flip(-1), data.others, data.others.flip(-1)])
    raw = encoder.moments(everything).mean.detach().double().numpy()
    np.testing.assert_allclose(cache.statistics.mean.numpy(), raw.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(cache.statistics.std.numpy(), raw.std((0, 2, 3)), rtol=1e-6)
    assert cache.statistics.count == 2 * (N + 11) * 6
    torch.testing.assert_close(encoder.scale.flatten().double(), cache.statistics.std, rtol=1e-7, atol=0)
    again = codec(data)
    assert isinstance(LatentCache.open_or_build(tmp_path / "c", data, again), LatentCache)
    assert torch.equal(again.shift, encoder.shift)
    assert again.fitted


def test_a_fitted_normaliser_is_kept(tmp_path: Path) -> None:
    data = source()
    built(tmp_path / "c", data, codec(data))
    encoder = codec(data)
    encoder.fit_normaliser([torch.randn(9, 3, 2, 3, generator=torch.Generator().manual_seed(0))])
    known = encoder.scale.clone()
    cache = built(tmp_path / "c", data, encoder)
    assert torch.equal(encoder.scale, known)
    raw = encoder.moments(data.samples).mean
    wrong = (cache.read(np.arange(N)).x0 - encoder.encode(data.samples)).abs() > half_tolerance(encoder, raw)
    assert not wrong.any()


def test_other_ends_are_cached_and_read_alone(tmp_path: Path) -> None:
    data = source(x1=11)
    encoder = codec(data)
    cache = built(tmp_path / "c", data, encoder)
    assert cache.partners == 11
    found = cache.draw_x1(np.array([10, 3]), np.array([0, 1]), Draws.seeds([0, 1]))
    assert data.others is not None
    images = torch.stack([data.others[10], data.others[3].flip(-1)])
    raw = encoder.moments(images).mean
    assert ((found - encoder.encode(images)).abs() <= half_tolerance(encoder, raw)).all()
    assert Stream(cache, 0, 4).batch(0).x1 is not None


def test_posterior_samples_belong_to_seed_and_position(tmp_path: Path) -> None:
    data = source(400, flip=False)
    encoder = codec(data)
    cache = built(tmp_path / "c", data, encoder, store=Auto(posterior=True))

    def noise(seed: int, rows: list[int], seen: int = 0) -> Tensor:
        batch = Stream(cache, seed, 400, rows).batch(seen)
        index = Stream(data, seed, 400, rows)._places("", seen, 400)[0]
        found = encoder.moments(data.read(index).x0)
        assert found.std is not None
        assert batch.x0 is not None
        return ((encoder.denormalise(batch.x0) - found.mean) / found.std).detach()

    whole = noise(0, list(range(400)))
    drawn = Draws.step(0, "read", 0, range(400)).normal("posterior of x0", whole)
    torch.testing.assert_close(whole, drawn, atol=0.02, rtol=0)  # half precision moves mean and std by 2⁻¹¹ each
    # 7,200 standard normal numbers; what rounding to half precision adds is below 1 %.
    assert abs(whole.mean().item()) < 4 / 7200**0.5
    assert abs(whole.std().item() - 1) < 4 / 14_400**0.5
    torch.testing.assert_close(noise(0, [200, 201]), whole[200:202], atol=1e-5, rtol=0)
    assert not torch.allclose(noise(0, list(range(400)), 400), whole, atol=0.1)
    assert torch.equal(cache.read(np.arange(5)).x0, cache.read(np.arange(5)).x0)
    # The normaliser makes the samples, not the means, standard.
    sampled = Stream(cache, 0, 400).batch(0).data
    assert (sampled.std((0, 2, 3)) - 1).abs().max() < 0.08


def test_means_of_a_sampled_cache_may_be_read_alone_but_not_the_reverse(tmp_path: Path) -> None:
    data = source(flip=False)
    built(tmp_path / "a", data, codec(data), store=Auto(posterior=True))
    assert len(built(tmp_path / "a", data, codec(data))) == N
    built(tmp_path / "b", data, codec(data))
    with pytest.raises(CacheError, match="written with std = False, this recipe has True"):
        built(tmp_path / "b", data, codec(data), store=Auto(posterior=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder": {"weights": (1.0, -3.0, 0.02)}}, "weights = "),
        ({"encoder": {"weights": (1.0, -3.0)}}, "weights = "),
        ({"data": {"seed": 1}}, "data.seed = 0, this recipe has 1"),
        ({"data": {"n": N + 1}}, f"data.samples = {N}, this recipe has {N + 1}"),
        ({"data": {"flip": False}}, "variants = 2, this recipe has 1"),
    ],
)
def test_a_stale_cache_names_its_field(tmp_path: Path, change: Mapping[str, Any], told: str) -> None:
    built(tmp_path / "c", source(), codec(source()))
    data = source(**change.get("data", {}))
    with pytest.raises(CacheError) as caught:
        built(tmp_path / "c", data, codec(data, **change.get("encoder", {})))
    assert told in str(caught.value)
    assert "remove that folder to encode again" in str(caught.value)
    key = LatentCache.key(source(), codec(source()))
    assert LatentCache.key(data, codec(data, **change.get("encoder", {}))) != key
    assert LatentCache.key(source(), codec(source())) == key


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    path = tmp_path / "c"
    cache = built(path, source(), codec(source()))
    cache.verify()
    for file in sorted(path.glob("*.npy")):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
        with pytest.raises(CacheError, match=file.name):
            cache.verify()
        with pytest.raises(CacheError, match=f"{file.name} is absent or was changed; remove the folder"):
            built(path, source(), codec(source()))
        data[-3] ^= 1
        file.write_bytes(data)
    cache.verify()


def test_damaged_caches_do_not_open(tmp_path: Path) -> None:
    path, data = tmp_path / "c", source()
    built(path, data, codec(data))
    latents, manifest = path / "x0-mean-1-00000.npy", path / "cache.json"
    whole, text = latents.read_bytes(), manifest.read_text()
    np.save(path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    wrong = {
        "short": whole[:-8],
        "empty": b"",
        "objects": (path / "objects.npy").read_bytes(),
        "another type": whole.replace(b"<f2", b"<i2"),
    }
    for content in wrong.values():
        latents.write_bytes(content)
        with pytest.raises(CacheError, match=r"x0-mean-1-00000\.npy"):
            built(path, data, codec(data))
    latents.unlink()
    with pytest.raises(CacheError, match=r"x0-mean-1-00000\.npy"):
        built(path, data, codec(data))
    latents.write_bytes(whole)
    for content in ("", "[]", text.replace('"x0": 37', '"x0": 36'), text[: len(text) // 2]):
        manifest.write_text(content)
        with pytest.raises(CacheError, match=r"cache\.json"):
            built(path, data, codec(data))


class Killed(ArraySource):
    """Kills its process at the third read."""

    reads = 0

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        self.reads += 1
        if self.reads == 3:
            time.sleep(0.2)  # the first batches are being written meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, variant)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_killed_build_leaves_nothing_that_looks_valid(tmp_path: Path) -> None:
    data = source()
    child = subprocess.run([sys.executable, __file__, str(tmp_path / "c")], check=False)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    assert (tmp_path / ".c.building").exists()
    built(tmp_path / "c", data, codec(data))
    built(tmp_path / "unbroken", data, codec(data))
    assert files(tmp_path / "c") == files(tmp_path / "unbroken")
    assert not (tmp_path / ".c.building").exists()


def test_a_failed_build_says_why_and_keeps_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source()

    def stop(done: int, total: int) -> None:
        assert total == 2 * N
        if done > 20:
            raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="No space left"):
        built(tmp_path / "c", data, codec(data), progress=stop)
    assert {p.name for p in tmp_path.iterdir()} == {".c.lock", ".c.building"}
    told: list[int] = []
    built(tmp_path / "c", data, codec(data), progress=lambda done, total: told.append(done))
    assert told[:2] == [24, 32]
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(DataError, match="not finite as float16"):
        built(tmp_path / "c", data, codec(data, weights=(1e6, 1.0)))
    assert [p.name for p in tmp_path.iterdir()] == [".c.lock"]
    monkeypatch.setattr(Disk, "free", lambda self, path: 100)
    with pytest.raises(DiskError, match="takes 2,664 bytes, 100 are free"):
        built(tmp_path / "c", data, codec(data))


def test_progress_counts_all_images(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    built(tmp_path / "c", source(x1=5), codec(source()), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (2 * (N + 5), 2 * (N + 5))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_one_process_builds_and_the_others_wait(tmp_path: Path) -> None:
    encoders = [codec(source()) for _ in range(3)]
    threads = [threading.Thread(target=built, args=(tmp_path / "c", source(), encoder)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bool(encoder.calls) for encoder in encoders) == [False, False, True]
    assert all(torch.equal(encoder.scale, encoders[0].scale) for encoder in encoders)


def test_identity_needs_no_cache(tmp_path: Path) -> None:
    data = source(x1=7)
    assert LatentCache.open_or_build(tmp_path / "c", data, Identity(data.spec)) is data
    encoder = Identity(data.spec, normaliser=Channel())
    found = LatentCache.open_or_build(tmp_path / "c", data, encoder, batch=8)
    assert not (tmp_path / "c").exists()
    assert data.others is not None
    whole = torch.cat([data.samples, data.others]).double()
    torch.testing.assert_close(encoder.shift.flatten().double(), whole.mean((0, 2, 3)), atol=1e-6, rtol=0)
    index, variant = np.array([4, 30]), np.array([1, 0])
    items, raw = found.read(index, variant), data.read(index, variant)
    assert items.x1 is not None
    assert raw.x1 is not None
    torch.testing.assert_close(items.x0, encoder.encode(raw.x0), rtol=0, atol=0)
    torch.testing.assert_close(items.x1, encoder.encode(raw.x1), rtol=0, atol=0)
    assert found.fingerprint() != data.fingerprint()
    assert json.dumps(found.fingerprint())


@pytest.mark.parametrize("count", [1, 4, 5, 13])
def test_shards_are_cut_and_read_by_rows(tmp_path: Path, count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((count, 2, 3)).astype(np.float16)
    kind = np.dtype(np.float16)
    writer = ShardWriter(tmp_path, "a", count, (2, 3), kind, shard_bytes=4 * 12 + 5)
    for part in np.array_split(rows, 3):
        writer.write(part)
    assert len(writer.digests) == -(-count // 4) == len(list(tmp_path.iterdir()))
    index = np.random.default_rng(1).integers(count, size=20)
    found = Shards(tmp_path, "a", count, (2, 3), kind, 4).take(index)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, rows[index])
    np.testing.assert_array_equal(np.load(tmp_path / "a-00000.npy"), rows[:4])


if __name__ == "__main__":  # the process that a test above kills
    victim = source()
    victim.__class__ = Killed
    LatentCache.open_or_build(Path(sys.argv[1]), victim, codec(victim), batch=8)
