"""Images in tar shards."""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from latentsb.data.archive import LABEL
from latentsb.data.decoded import Decoded, decoded, numbers
from latentsb.data.images import Images, Told, checked_endings, pixel_rule, with_progress
from latentsb.data.patterns import expand
from latentsb.data.pixels import Fit, PixelRule, UnreadableError
from latentsb.data.source import SOURCES
from latentsb.data.store import Shard, open_shard
from latentsb.errors import DataError
from latentsb.ranges import Count, Fraction
from latentsb.shards import Shards

__all__ = ["Tar"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Checked:
    """Images that decode, as (shard, number in it), the others with the reason, and pixels that are kept."""

    good: np.ndarray
    bad: tuple[tuple[str, str], ...]
    pixels: tuple[Shards | None, ...]


@SOURCES.register("tar")
class Tar(Images):
    """Images in tar shards, `KEY.jpg` (or another image's ending) and perhaps `KEY.cls`, plain or packed by gzip.

    The form is that of WebDataset: KEY is a member's path up to the first dot of its name, and `KEY.cls` holds the
    number of its class. Before the first use every shard is read once and every image decoded once; what was found is
    kept in `$XDG_CACHE_HOME/latentsb/tar` (`~/.cache/latentsb/tar`) for as long as a shard keeps its content. Samples
    stand in the order of the shards and of their members.

    Args:
        paths: of shards, also patterns: `train-*.tar`, `train-{000000..000004}.tar.gz`.
        size: side of the images, or (height, width).
        fit: images of another size are cut to the largest centred part of the right proportions (`crop`), laid
            whole on black (`pad`), stretched (`stretch`), or are unreadable (`exact`).
        channels: 1 grey, 3 colour, 4 colour and opacity; any other number that TIFF files and arrays have.
        flip: images may be mirrored left-right.
        labels: true for the `.cls` members, or the name of a column of the table.
        classes: how many there are, or a text file with a name on each line; found in the data if left out.
        table: CSV file with a column `key` that holds the KEYs.
        attributes: columns of the table that hold numbers.
        samples: how many images there must be; any number if left out.
        bad: share of unreadable images that is tolerated; they are left out.
        max_pixels: images whose header promises more pixels are unreadable.
        endings: of the members that are read, such as `.npy`, or `.x0.png` of `KEY.x0.png`; those of images if left
            out.
        range: values of arrays, and of images of more than 8 bits, that become -1 and 1; else those of their type.

    Raises:
        ArgumentError: if the size, the range or the endings are none that can be, or columns have no table.
        DataError: at first use, if a shard is missing, damaged or refused, or the numbers are not those expected.
    """

    def __init__(
        self,
        *,
        paths: tuple[Path, ...] | Path,
        size: Count | tuple[Count, Count],
        fit: Fit = "crop",
        channels: Count = 3,
        flip: bool = False,
        labels: bool | str = False,
        classes: Count | Path | None = None,
        table: Path | None = None,
        attributes: tuple[str, ...] = (),
        samples: Count | None = None,
        bad: Fraction = 0.0,
        max_pixels: Count = 64_000_000,
        endings: tuple[str, ...] = (),
        range: tuple[float, float] | None = None,
    ) -> None:
        self.paths = (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))
        self.samples, self.endings = samples, checked_endings(endings)
        super().__init__(
            ", ".join(map(str, self.paths)),
            pixel_rule(size, fit, channels, max_pixels, range),
            flip=flip,
            labels=labels,
            classes=classes,
            table=table,
            attributes=attributes,
            bad=bad,
        )

    def require(self) -> None:
        """Raise if a shard is missing."""
        expand(self.paths, f"{self.recipe_key}.paths")

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The shards in their order, read and indexed at first use."""
        files = expand(self.paths, f"{self.recipe_key}.paths")
        shards = with_progress(f"reading {len(files)} shards", lambda told: _opened(files, told, self.endings))
        seen: dict[str, Path] = {}
        for shard in shards:
            for key in shard.keys:
                if key in seen:
                    raise DataError(f"{shard.path}: the key '{key}' is also in {seen[key]}")
                seen[key] = shard.path
        others = sum((Counter(shard.others) for shard in shards), Counter())
        if others:
            told = ", ".join(f"{count:,} of '{ending}'" for ending, count in others.most_common(5))
            log.warning("%s: members that are no images or labels are passed over: %s", self.where, told)
        return shards

    @cached_property
    def checked(self) -> _Checked:
        """Which images decode; checked at first use."""
        shards = self.shards
        found = with_progress("checking images", lambda told: _decoded(shards, self.rule, told))
        good = [
            (s, k)
            for s, (shard, held) in enumerate(zip(shards, found, strict=True))
            for k, name in enumerate(shard.names)
            if name not in held.bad
        ]
        bad = [
            (f"{name}/{member}", why)
            for name, held in zip(self.contents(), found, strict=True)
            for member, why in held.bad.items()
        ]
        self._tolerated(len(good), bad)
        if self.samples is not None and len(good) != self.samples:
            raise DataError(f"{self.where}: {len(good):,} images, `samples: {self.samples}` asks for {self.samples:,}")
        return _Checked(np.array(good, dtype=np.int64), tuple(bad), tuple(held.pixels for held in found))

    def __len__(self) -> int:
        return len(self.checked.good)

    def names(self) -> list[str]:
        """Keys."""
        return [self.shards[s].keys[k] for s, k in self.checked.good.tolist()]

    def contents(self) -> Mapping[str, str]:
        """sha256 of the shards, by path below the folder that all are in."""
        folder = os.path.commonpath([shard.path.absolute().parent for shard in self.shards])
        return {shard.path.absolute().relative_to(folder).as_posix(): shard.sha256 for shard in self.shards}

    def problems(self) -> Mapping[str, str]:
        """Reasons of the unreadable images that are tolerated, by shard and member."""
        return dict(self.checked.bad)

    def _own_classes(self) -> tuple[str, ...]:
        return tuple(map(str, range(1 + max(int(numbers.max()) for numbers in self._numbers))))

    def _own_labels(self) -> np.ndarray:
        found = self._numbers
        return np.array([found[s][k] for s, k in self.checked.good.tolist()], dtype=np.int64)

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, ...]:
        """Class numbers of each shard's images, none beyond what `classes` promises."""
        declared = len(self._declared) if isinstance(self._declared, tuple) else self._declared
        found = []
        for shard in self.shards:
            if shard.labels is None:
                raise DataError(f"{shard.path}: `labels: true` needs a member KEY.cls for each image, there is none")
            k = int(shard.labels.argmax())
            if declared is not None and shard.labels[k] >= declared:
                raise DataError(
                    f"{shard.path}/{shard.keys[k]}{LABEL} is {shard.labels[k]}, `classes` allows 0 to {declared - 1}; "
                    f"say that there are {shard.labels[k] + 1} classes, or correct the label"
                )
            found.append(shard.labels)
        return tuple(found)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        """Pixels that are kept are gathered, others decoded."""
        number, place = self.checked.good[rows].T
        pixels = np.empty((len(rows), *self.spec.shape), dtype=np.float32)
        for shard in np.unique(number).tolist():
            at, kept = np.flatnonzero(number == shard), self.checked.pixels[shard]
            pixels[at] = super()._images(rows[at]) if kept is None else numbers(kept.take(place[at]))
        return pixels

    def _image(self, k: int) -> np.ndarray:
        number, place = self.checked.good[k].tolist()
        shard = self.shards[number]
        try:
            return self.rule.read(io.BytesIO(shard.image(place)))
        except UnreadableError as error:
            raise DataError(f"{shard.path}: {shard.names[place]}: {error}") from error

    def fingerprint(self) -> dict[str, Any]:
        """Shards by content in their order, and what their images become."""
        files = sha256(json.dumps([shard.sha256 for shard in self.shards]).encode()).hexdigest()
        told = {**self._identity("tar", files), "labelled": self.labels is True}
        return {**told, "endings": list(self.endings)} if self.endings else told


def _opened(files: tuple[Path, ...], told: Told | None, endings: tuple[str, ...]) -> tuple[Shard, ...]:
    """All shards; several are read at once, since unpacking leaves the interpreter free."""
    total, done, lock = sum(path.stat().st_size for path in files), 0, Lock()

    def progress(more: int) -> None:
        nonlocal done
        with lock:
            done += more
        if told is not None:
            told(done, total)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda path: open_shard(path, progress, endings), files))


def _decoded(shards: tuple[Shard, ...], rule: PixelRule, told: Told | None) -> tuple[Decoded, ...]:
    total, done = sum(map(len, shards)), 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if told is not None:
            told(done, total)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return tuple(decoded(shard, rule, pool, progress) for shard in shards)
