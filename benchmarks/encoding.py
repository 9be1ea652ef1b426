"""Encoding a folder of JPEGs: what reading ahead gains, and what each store costs, loses and gives back.

The encoder stands for an accelerator: it waits, without using the processor, as long as the threads of the data need to
decode one block. Whoever reads a block only when the last one is encoded takes twice as long as the decoding alone;
who reads ahead, hardly longer.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _harness import Report, alternate, estimate, main, per_second, ratio
from PIL import Image

from latentsb.autoencoders.identity import Identity
from latentsb.cache import LatentCache
from latentsb.data.arrays import ArraySource
from latentsb.data.folder import Folder
from latentsb.data.source import Source
from latentsb.encoding import ahead, blocks_of
from latentsb.normalisers import Channel
from latentsb.stores import STORES
from latentsb.tensors import Spec

SHAPE = (4, 32, 32)
BLOCK = 16


class Kept(Identity):
    """The identity, whose latents are kept."""

    is_identity = False
    cached = True


def photographs(folder: Path, n: int, size: int) -> Folder:
    """JPEGs of smooth colours and some grain."""
    rng = np.random.default_rng(0)
    for k in range(n):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = smooth + rng.integers(-12, 12, smooth.shape, dtype=np.int16)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.jpg", quality=92)
    return Folder(path=folder, size=size)


def measure(quick: bool = False) -> Report:
    """Time a pass over the photographs in each way, then the stores."""
    report = Report("encoding", "a folder of JPEGs of 256×256; latents of 4×32×32")
    with tempfile.TemporaryDirectory() as folder:
        photos, latents = Path(folder) / "photos", Path(folder) / "latents"
        photos.mkdir()
        latents.mkdir()
        _overlap(report, photographs(photos, 32 if quick else 256, 32 if quick else 256), 2 if quick else 7)
        _stores(report, latents, quick)
    return report


def _overlap(report: Report, source: Source, repeats: int) -> None:
    blocks = blocks_of(source, BLOCK)

    def decode() -> None:
        for block in blocks:
            source.read(block.index)

    decode()
    began = time.monotonic()
    decode()
    pause = (time.monotonic() - began) / len(blocks)

    def one_by_one() -> None:
        for block in blocks:
            source.read(block.index)
            time.sleep(pause)

    def read_ahead(readers: int) -> None:
        for _ in ahead(source, blocks, readers):
            time.sleep(pause)

    rivals = {"decoding alone": decode, "one block after another": one_by_one}
    rivals |= {f"read ahead by {n}": partial(read_ahead, n) for n in (1, 4)}
    seconds = alternate(rivals, repeats=repeats, clock=time.monotonic)
    for name, found in seconds.items():
        report.add(name, estimate([len(source) / value for value in found]), "images/s of wall time")
    slow = seconds["one block after another"]
    report.add("one after another / read ahead by 1", ratio(slow, seconds["read ahead by 1"]))
    report.add("one after another / read ahead by 4", ratio(slow, seconds["read ahead by 4"]), at_least=1.5)


def _stores(report: Report, folder: Path, quick: bool) -> None:
    n = 64 if quick else 4096
    samples = torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(0))
    order = np.random.default_rng(0).permutation(n)[: min(n, 2048)].reshape(-1, 64)
    caches: dict[str, LatentCache] = {}
    for word in ("float32", "float16", "bfloat16", "uint8"):
        source = ArraySource(samples, identity={"data": "noise"})
        made = LatentCache.open_or_build(
            folder / word, source, Kept(Spec(SHAPE), normaliser=Channel()), store=STORES[word]()
        )
        assert isinstance(made, LatentCache)
        caches[word] = made

    def gather(cache: LatentCache) -> None:
        for rows in order:
            cache.read(rows)

    seconds = alternate({word: partial(gather, cache) for word, cache in caches.items()}, repeats=2 if quick else 11)
    for word, cache in caches.items():
        size = sum(path.stat().st_size for path in cache.path.glob("*.npy"))
        report.add(f"{word}: bytes per latent", size / n)
        report.add(f"{word}: largest error", max(cache.lost()["largest"]), "std of a normal latent")
        report.add(f"{word}: rms error", max(cache.lost()["rms"]), "std of a normal latent")
        report.add(f"{word}: gathered", per_second(order.size / 1e3, seconds[word]), "thousand latents/CPU-s")


if __name__ == "__main__":
    main(measure, __doc__)
