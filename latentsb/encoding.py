"""Encoding a whole data set into the files of a latent cache: beside their place, durable, then renamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.data.source import Items, Source
from latentsb.disk import Disk, disk_error
from latentsb.errors import CacheError, DataError, DiskError
from latentsb.normalisers import Statistics
from latentsb.randomness import Draws
from latentsb.shards import ShardWriter, rows_per_shard

__all__ = ["FORMAT", "MANIFEST", "Progress", "digest", "encode", "made_of", "numpy_type", "reads"]

FORMAT = 1
MANIFEST = "cache.json"
Progress = Callable[[int, int], None]


def made_of(source: Source, autoencoder: Autoencoder, sample: bool) -> dict[str, Any]:
    """All that a cache's content depends on, JSON values."""
    values = {
        "autoencoder": type(autoencoder).__qualname__,
        "weights": autoencoder.fingerprint(),
        "latent": list(autoencoder.latent.shape),
        "dtype": numpy_type(autoencoder.latent_dtype).name,
        "std": sample,
        "variants": source.variants,
        "data": source.fingerprint(),
    }
    fixed: dict[str, Any] = json.loads(json.dumps(values))
    return fixed


def numpy_type(dtype: torch.dtype) -> np.dtype:
    """Numpy's name for a type of torch."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's JSON values."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def reads(source: Source, variant: int, batch: int) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
    """Images of both ends in their order, with their end and conditions; the next are read while these are used."""

    def read(end: str, first: int, last: int) -> Items:
        index = np.arange(first, last)
        mirrored = np.full(len(index), variant)
        if end == "x0":
            return source.read(index, mirrored)
        return Items(source.draw_x1(index, mirrored, Draws.seeds(index.tolist())))

    plan = [
        (end, first, min(first + batch, count))
        for end, count in (("x0", len(source)), ("x1", source.partners))
        for first in range(0, count, batch)
    ]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(read, *plan[0])
        for k, (end, _, _) in enumerate(plan):
            found = ahead.result()
            if k + 1 < len(plan):
                ahead = pool.submit(read, *plan[k + 1])
            yield end, found.x0, found.cond


def encode(
    path: Path, source: Source, autoencoder: Autoencoder, progress: Progress | None, sample: bool, batch: int
) -> None:
    """Encode everything beside `path`, then give it that name."""
    disk, beside = Disk(), path.with_name(f".{path.name}.building")
    if beside.exists():  # left by a process that was killed: whoever builds holds the lock
        shutil.rmtree(beside)
    counts = {"x0": len(source)} | ({"x1": source.partners} if source.two_sided else {})
    dtype, shape = numpy_type(autoencoder.latent_dtype), autoencoder.latent.shape
    moments = 2 if sample else 1
    needed = sum(counts.values()) * source.variants * moments * autoencoder.latent.numel * dtype.itemsize
    if disk.free(path.parent) < needed * 1.02:
        raise DiskError(f"the latent cache {path} takes {needed:,} bytes, {disk.free(path.parent):,} are free there")
    disk.mkdir(beside)
    try:
        files, statistics = _write_all(beside, source, autoencoder, counts, progress, sample, batch)
        manifest = {
            "format": FORMAT,
            "made_of": made_of(source, autoencoder, sample),
            "counts": counts,
            "rows": rows_per_shard(shape, dtype),
            "statistics": statistics.to_json(),
            "files": dict(sorted(files.items())),
        }
        whole = {**manifest, "sha256": digest(manifest)}
        disk.write(beside / MANIFEST, json.dumps(whole, indent=1, sort_keys=True).encode())
        disk.sync(beside / MANIFEST)
        disk.sync_dir(beside)
        disk.rename(beside, path)
        disk.sync_dir(path.parent)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_error(error, path, needed) from error
        raise


def _write_all(
    folder: Path,
    source: Source,
    autoencoder: Autoencoder,
    counts: Mapping[str, int],
    progress: Progress | None,
    sample: bool,
    batch: int,
) -> tuple[dict[str, str], Statistics]:
    """Write all arrays; return the files' checksums and the statistics of the raw latents."""
    files: dict[str, str] = {}
    conditions: list[Mapping[str, Tensor]] = []
    total, done, found = sum(counts.values()) * source.variants, 0, None
    if progress is not None:
        progress(done, total)
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        for variant in range(source.variants):
            writers = _writers(folder, autoencoder, counts, variant, sample)
            for end, images, cond in reads(source, variant, batch):
                mean, std = _moments(autoencoder, images, sample)
                part = Statistics.of(mean, std)
                found = part if found is None else found + part
                writers[end, "mean"].write(_narrow(mean, autoencoder.latent_dtype))
                if std is not None:
                    writers[end, "std"].write(_narrow(std, autoencoder.latent_dtype))
                if end == "x0" and variant == 0:
                    conditions.append(cond)
                done += len(images)
                if progress is not None:
                    progress(done, total)
            for writer in writers.values():
                files |= writer.digests
    finally:
        autoencoder.train(was_training)
    assert found is not None
    return files | _write_cond(folder, source, conditions), found


def _moments(autoencoder: Autoencoder, images: Tensor, sample: bool) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        found = autoencoder.moments(images.to(autoencoder.shift.device))
    if sample and found.std is None:
        raise CacheError(f"{type(autoencoder).__name__} has no posterior to sample from; leave `sample` out")
    return found.mean.float().cpu(), found.std.float().cpu() if sample and found.std is not None else None


def _writers(
    folder: Path, autoencoder: Autoencoder, counts: Mapping[str, int], variant: int, sample: bool
) -> dict[tuple[str, str], ShardWriter]:
    dtype, shape = numpy_type(autoencoder.latent_dtype), autoencoder.latent.shape
    return {
        (end, moment): ShardWriter(folder, f"{end}-{moment}-{variant}", count, shape, dtype)
        for end, count in counts.items()
        for moment in (("mean", "std") if sample else ("mean",))
    }


def _narrow(raw: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Raw latents in the type in which they are kept."""
    kept = raw.to(dtype)
    if not torch.isfinite(kept).all():
        worst = float(raw.abs().max())
        raise DataError(f"the autoencoder returned latents up to {worst:g}, which are not finite as {dtype}")
    found: np.ndarray = kept.numpy()
    return found


def _write_cond(folder: Path, source: Source, parts: list[Mapping[str, Tensor]]) -> dict[str, str]:
    """Conditions in one file each."""
    files: dict[str, str] = {}
    for name, spec in source.cond.items():
        dtype = numpy_type(spec.dtype)
        whole = len(source) * max(1, spec.numel) * dtype.itemsize
        writer = ShardWriter(folder, f"cond-{name}", len(source), spec.shape, dtype, whole)
        for part in parts:
            writer.write(part[name].numpy())
        files |= writer.digests
    return files
