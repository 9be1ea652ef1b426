"""The latent cache: latents of 4×32×32 in half precision, gathered at random, and what training waits for them.

The least that a loader can do is to gather the rows of a batch from memory-mapped files; ours also normalises them to
float32 and puts them into the order that belongs to the seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _harness import Report, alternate, limits, main, per_second, ratio
from _training import DBAE, Loop
from torch import Tensor

from latentsb.autoencoders.identity import Identity
from latentsb.cache import LatentCache
from latentsb.data.arrays import ArraySource
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.normalisers import Channel
from latentsb.tensors import Spec

SHAPE = (4, 32, 32)


class Halves(Identity):
    """The identity, whose latents are worth caching in half precision."""

    latent_dtype = torch.float16
    cached, is_identity = True, False


def cached(folder: Path, n: int) -> Source:
    """A cache of n random latents."""
    samples = torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(0))
    autoencoder = Halves(Spec(SHAPE), normaliser=Channel())
    return LatentCache.open_or_build(folder / "latents", ArraySource(samples, identity={"data": "noise"}), autoencoder)


def measure(quick: bool = False) -> Report:
    """Count latents per second of processor time, then what a training loop waits."""
    report = Report("loader", "latents of 4×32×32 in fp16, random order")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    n = 64 if quick else 20_000
    with tempfile.TemporaryDirectory() as folder:
        cache = cached(Path(folder), n)
        for batch in (32, 256):
            _rates(report, cache, batch if not quick else 8, 2 if quick else 64 * 32 // batch, quick)
        _waits(report, cache, quick)
    return report


def _rates(report: Report, cache: Source, batch: int, count: int, quick: bool) -> None:
    order = np.random.default_rng(0).permutation(len(cache))[: batch * 8].reshape(8, -1)
    assert isinstance(cache, LatentCache)
    file = cache._moments["x0", "mean", 0].files[0]
    stream = Stream(cache, 0, batch)

    def repeat(read: Callable[[int], object]) -> Callable[[], None]:
        def many() -> None:
            for k in range(count):
                read(k)

        return many

    def item(k: int) -> Tensor:
        return torch.stack([torch.from_numpy(file[i].astype(np.float32)) for i in order[k % 8]])

    rivals = {
        "stream of batches": repeat(lambda k: stream.batch(k * batch)),
        "cache, normalised": repeat(lambda k: cache.read(order[k % 8])),
        "bare gather": repeat(lambda k: file[order[k % 8]]),
        "bare gather and conversion": repeat(lambda k: torch.from_numpy(file[order[k % 8]]).float()),
        "one by one and stacked": repeat(item),
    }
    seconds = alternate(rivals, repeats=2 if quick else 11, warmup=2)
    for name, found in seconds.items():
        target = 400.0 if name in ("stream of batches", "cache, normalised") else None
        rate = per_second(count * batch / 1e3, found)
        report.add(f"batch {batch}: {name}", rate, "thousand latents/CPU-s", at_least=target)


def _waits(report: Report, cache: Source, quick: bool) -> None:
    width, depth, batch, steps = (24, 1, 4, 1) if quick else (128, 4, 16, 6)
    sizes = {"z_dim": 16, "channel": "exact", "width": width, "depth": depth, "heads": 2, "batch": batch}
    text = DBAE.format(precision="fp32", **sizes)
    memory = ArraySource(cache.read(np.arange(len(cache))).x0, identity={"data": "noise"})
    loops = {"cache": Loop(text, cache), "memory": Loop(text, memory)}
    waited = [loops["cache"].run(steps) for _ in range(2 if quick else 4)][1:]
    report.add("training, batch 16: waiting for data", 100 * max(waited), "% of the time", at_most=2.0)
    seconds = alternate({k: partial(v.run, steps) for k, v in loops.items()}, repeats=2 if quick else 5)
    report.add("training: from the cache / from memory", ratio(seconds["cache"], seconds["memory"]), at_most=1.01)


if __name__ == "__main__":
    main(measure, __doc__)
