"""A latent cache in the making: files in which every block has its place, and a journal of the blocks that are there.

Blocks are made in any order by any process. One that was lost to a kill, or that a disk has damaged, is made again;
the others are kept. What the finished cache holds is the same to the byte however often its making was broken off.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.disk import Disk
from latentsb.normalisers import Statistics
from latentsb.shards import ShardPlaces, sha256
from latentsb.stores import Packed, Store
from latentsb.tensors import Spec

__all__ = ["FORMAT", "MANIFEST", "Block", "Building", "Journal", "Plan", "digest", "numpy_type"]

FORMAT = 2
MANIFEST = "cache.json"
PLAN = "plan.json"
COMMIT_SECONDS = 5.0
"""Between two moments at which what was made is made durable: what a power failure costs at most."""


def numpy_type(dtype: torch.dtype) -> np.dtype:
    """Numpy's name for a type of torch."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's JSON values."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Block:
    """Samples that are encoded at once.

    Args:
        number: of the block, from 0.
        end: `x0` or `x1`.
        variant: 1 where the samples are mirrored.
        first: position of the first one.
        last: that behind the last one.
        place: of the block among those of its end and variant.
    """

    number: int
    end: str
    variant: int
    first: int
    last: int
    place: int

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def index(self) -> np.ndarray:
        """Positions of the samples."""
        return np.arange(self.first, self.last)


@dataclass(frozen=True)
class Plan:
    """What a cache will hold.

    Args:
        made_of: all that its content depends on, JSON values.
        counts: samples of each end.
        variants: 2 where they are encoded mirrored too.
        batch: samples of a block, but of the last one of an end.
        latent: shape of one latent.
        store: in which they are kept, resolved.
        cond: shapes of the conditions.
    """

    made_of: Mapping[str, Any]
    counts: Mapping[str, int]
    variants: int
    batch: int
    latent: Spec
    store: Store
    cond: Mapping[str, Spec] = field(default_factory=dict)

    @property
    def moments(self) -> tuple[str, ...]:
        """What is kept of a posterior."""
        return ("mean", "std") if self.store.posterior else ("mean",)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in their order."""
        found: list[Block] = []
        for variant in range(self.variants):
            for end, count in self.counts.items():
                for place, first in enumerate(range(0, count, self.batch)):
                    last = min(first + self.batch, count)
                    found.append(Block(len(found), end, variant, first, last, place))
        return tuple(found)

    @property
    def total(self) -> int:
        """Samples of all blocks."""
        return sum(self.counts.values()) * self.variants

    @property
    def needed(self) -> int:
        """Bytes of the latents."""
        return self.total * len(self.moments) * self.latent.numel * self.store.dtype.itemsize

    def json(self) -> dict[str, Any]:
        """What must be equal for a making to go on."""
        return {"format": FORMAT, "made_of": dict(self.made_of), "counts": dict(self.counts), "batch": self.batch}


class Journal:
    """Blocks that are there, each with its checksum, its statistics and what storing it lost; one file per process.

    Args:
        folder: of the cache in the making.
        plan: of it.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        c, moments = plan.latent.channels, len(plan.moments)
        names = [(name, "<f8", (c,)) for name in ("mean", "square", "low", "high")]
        losses = [(name, "<f8", (moments, c)) for name in ("largest", "lost")]
        self.kind = np.dtype(
            [("block", "<i8"), ("count", "<i8"), *names, *losses, ("sha256", "u1", 32), ("crc", "<u4")]
        )

    def line(self, block: Block, data: bytes, found: Statistics, losses: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
        """A line of the journal."""
        line = np.zeros((), self.kind)
        line["block"], line["count"] = block.number, found.count
        for name in ("mean", "square", "low", "high"):
            line[name] = getattr(found, name).numpy()
        for k, (largest, square) in enumerate(losses):
            line["largest"][k], line["lost"][k] = largest.numpy(), square.numpy()
        line["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        line["crc"] = zlib.crc32(line.tobytes()[:-4])
        return line

    def append(self, lines: list[np.ndarray], number: int) -> None:
        """Write lines behind those of a process, durably; what a kill cut short there is cut off."""
        path = self.folder / f"journal-{number:05d}"
        with open(path, "ab") as file:
            file.truncate(file.tell() // self.kind.itemsize * self.kind.itemsize)
            file.write(b"".join(line.tobytes() for line in lines))
        Disk().sync(path)

    def read(self) -> dict[int, np.ndarray]:
        """The lines of all processes by number of the block; those that a kill cut short are left out."""
        found: dict[int, np.ndarray] = {}
        for path in sorted(self.folder.glob("journal-*")):
            data = path.read_bytes()
            whole = len(data) // self.kind.itemsize
            for line in np.frombuffer(data, self.kind, whole):
                if line["crc"] == zlib.crc32(line.tobytes()[:-4]):
                    found[int(line["block"])] = line
        return found

    def clear(self) -> None:
        """Remove it."""
        for path in self.folder.glob("journal-*"):
            path.unlink()


class Building:
    """The folder of a cache in the making.

    Args:
        folder: beside the cache's place.
        plan: of the cache.
        number: of this process.
    """

    def __init__(self, folder: Path, plan: Plan, number: int = 0) -> None:
        self.folder, self.plan, self.number = folder, plan, number
        self.journal = Journal(folder, plan)
        self._lines: list[np.ndarray] = []
        self._touched: set[Path] = set()
        self._committed = time.monotonic()

    @cached_property
    def arrays(self) -> dict[str, ShardPlaces]:
        """The files by the array's name."""
        plan, found = self.plan, {}
        for end, count in plan.counts.items():
            for moment in plan.moments:
                for variant in range(plan.variants):
                    name = f"{end}-{moment}-{variant}"
                    found[name] = ShardPlaces(self.folder, name, count, plan.latent.shape, plan.store.dtype)
                    if plan.store.ranged:
                        blocks, shape = -(-count // plan.batch), (2, plan.latent.channels)
                        found[f"{name}-affine"] = ShardPlaces(
                            self.folder, f"{name}-affine", blocks, shape, np.dtype(np.float32)
                        )
        n = plan.counts["x0"]
        for key, spec in plan.cond.items():
            dtype = numpy_type(spec.dtype)
            whole = n * max(1, spec.numel) * dtype.itemsize
            found[f"cond-{key}"] = ShardPlaces(self.folder, f"cond-{key}", n, spec.shape, dtype, whole)
        return found

    @property
    def finished(self) -> bool:
        """Nothing is missing but the name."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            whole = bool(manifest.pop("sha256") == digest(manifest))
            return whole and self.plan.json().items() <= manifest.items()
        except (OSError, ValueError, KeyError, AttributeError):
            return False

    def begin(self) -> list[int]:
        """Make the files, or go on with those of the same plan.

        Returns:
            Numbers of the blocks that are missing or damaged.
        """
        if self.finished:
            return []
        disk, plan = Disk(), self.folder / PLAN
        wanted = json.dumps(self.plan.json(), indent=1, sort_keys=True).encode()
        if self.folder.exists() and not (plan.is_file() and plan.read_bytes() == wanted):
            shutil.rmtree(self.folder)  # of another plan: the lock is held by whoever builds
        if not self.folder.exists():
            disk.mkdir(self.folder)
            disk.write(plan, wanted)
            disk.sync(plan)
        for array in self.arrays.values():
            array.create()
        disk.sync_dir(self.folder)
        known = self.journal.read()
        return [block.number for block in self.plan.blocks if not self._whole(block, known.get(block.number))]

    def _whole(self, block: Block, line: np.ndarray | None) -> bool:
        if line is None:
            return False
        found = hashlib.sha256()
        for name, first, last in self._places(block):
            found.update(self.arrays[name].read(first, last))
        return found.digest() == line["sha256"].tobytes()

    def _places(self, block: Block) -> list[tuple[str, int, int]]:
        """Arrays and rows of a block."""
        names = [f"{block.end}-{moment}-{block.variant}" for moment in self.plan.moments]
        found = [(name, block.first, block.last) for name in names]
        if self.plan.store.ranged:
            found += [(f"{name}-affine", block.place, block.place + 1) for name in names]
        if block.end == "x0" and block.variant == 0:
            found += [(f"cond-{key}", block.first, block.last) for key in self.plan.cond]
        return found

    def put(
        self,
        block: Block,
        moments: list[Packed],
        cond: Mapping[str, Tensor],
        found: Statistics,
        losses: list[tuple[Tensor, Tensor]],
    ) -> None:
        """Write a block; it is kept from the next `commit` on.

        Args:
            block: which one.
            moments: what is kept of mean and, where it is, standard deviation.
            cond: conditions of the samples.
            found: statistics of the raw latents.
            losses: of storing each moment, as `stores.error` tells them.
        """
        values: list[np.ndarray] = [packed.rows for packed in moments]
        values += [packed.affine[None] for packed in moments if packed.affine is not None]
        places = self._places(block)
        if len(places) > len(values):
            values += [cond[key].numpy() for key in self.plan.cond]
        data = b""
        for (name, first, last), value in zip(places, values, strict=True):
            data += self.arrays[name].write(first, value)
            self._touched |= self.arrays[name].files(first, last)
        self._lines.append(self.journal.line(block, data, found, losses))
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make what was written durable, then say in the journal that it is there."""
        if self._lines:
            for path in self._touched:
                Disk().sync(path)
            self.journal.append(self._lines, self.number)
        self._lines, self._touched, self._committed = [], set(), time.monotonic()

    def discard(self) -> None:
        """Remove the folder if no block is kept in it."""
        if not self.finished and not self.journal.read():
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def rows(self) -> int:
        """Latents in every file but the last of an array."""
        return self.arrays["x0-mean-0"].rows

    def read(self, index: np.ndarray, variant: np.ndarray) -> Tensor:
        """Raw means of x0 as they are kept."""
        found = []
        for k, side in zip(index.tolist(), variant.tolist(), strict=True):
            array, affine = self.arrays[f"x0-mean-{side}"], None
            rows = np.frombuffer(array.read(k, k + 1), array.dtype).reshape(1, *array.shape).copy()
            if self.plan.store.ranged:
                ranges, block = self.arrays[f"x0-mean-{side}-affine"], k // self.plan.batch
                values = np.frombuffer(ranges.read(block, block + 1), ranges.dtype)
                affine = torch.from_numpy(values.reshape(1, *ranges.shape).copy())
            found.append(self.plan.store.unpack(rows, affine))
        return torch.cat(found)

    def contents(self) -> dict[str, Any]:
        """What the manifest tells of the files: their checksums, statistics and errors, from all blocks in order.

        Raises:
            KeyError: if a block is missing.
        """
        known, whole = self.journal.read(), None
        for block in self.plan.blocks:
            line = known[block.number]
            parts = (torch.from_numpy(line[name].copy()) for name in ("mean", "square", "low", "high"))
            part = Statistics(int(line["count"]), *parts)
            whole = part if whole is None else whole + part
        assert whole is not None
        paths = [path for array in self.arrays.values() for path in array.paths]
        with ThreadPoolExecutor(8) as pool:
            files = dict(zip((path.name for path in paths), pool.map(sha256, paths), strict=True))
        lines = [known[block.number] for block in self.plan.blocks]
        return {
            "statistics": whole.to_json(),
            "lost": {name: _lost(lines, k, whole) for k, name in enumerate(self.plan.moments)},
            "files": dict(sorted(files.items())),
        }

    def finish(self, manifest: Mapping[str, Any], path: Path) -> None:
        """Write the manifest and give the cache its name."""
        disk = Disk()
        if not self.finished:
            whole = {**manifest, "sha256": digest(manifest)}
            disk.write(self.folder / MANIFEST, json.dumps(whole, indent=1, sort_keys=True).encode())
            disk.sync(self.folder / MANIFEST)
            disk.sync_dir(self.folder)
        self.journal.clear()
        (self.folder / PLAN).unlink(missing_ok=True)
        disk.sync_dir(self.folder)
        disk.rename(self.folder, path)
        disk.sync_dir(path.parent)


def _lost(lines: list[np.ndarray], moment: int, whole: Statistics) -> dict[str, list[float]]:
    """Largest and root mean square error of each channel, relative to the latents' standard deviation."""
    std = whole.std
    unit = torch.where(std > 0, std, torch.ones_like(std)).numpy()
    largest = np.max([line["largest"][moment] for line in lines], axis=0) / unit
    square = np.sum([line["lost"][moment] for line in lines], axis=0)
    return {"largest": largest.tolist(), "rms": (np.sqrt(square / whole.count) / unit).tolist()}
