"""Images in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from latentsb.data.arrays import mirrored
from latentsb.data.pixels import Fit, PixelRule, UnreadableError
from latentsb.data.scan import Entry, Scan, content, scan
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import Count, Fraction
from latentsb.tensors import Spec

__all__ = ["Folder"]

TOLD = 20
"""Unreadable images that a message names."""


@SOURCES.register("folder")
class Folder(Source):
    """Images of a folder and its sub-folders, in the order of their paths.

    Before the first use every image is decoded once, which is remembered for as long as a file keeps its size and
    time. Conversions of odd
    modes are written in `latentsb.data.pixels`.

    Args:
        path: of the folder.
        size: side of the images, or (height, width).
        fit: images of another size are cut to the largest centred part of the right proportions (`crop`), laid
            whole on black (`pad`), stretched (`stretch`), or are unreadable (`exact`).
        channels: 1 grey, 3 colour, 4 colour and opacity.
        flip: images may be mirrored left-right.
        labels: the first sub-folder is the class; classes are numbered in the order of their names.
        bad: share of unreadable images that is tolerated; they are left out.
        max_pixels: images whose header promises more pixels are unreadable.

    Raises:
        ArgumentError: if the size or the channels are none that an image can have.
        DataError: if the folder does not exist or has no classes; at first use, if it has no images or more
            unreadable ones than is tolerated, which are named with their reasons.
    """

    def __init__(
        self,
        *,
        path: Path,
        size: Count | tuple[Count, Count],
        fit: Fit = "crop",
        channels: Literal[1, 3, 4] = 3,
        flip: bool = False,
        labels: bool = False,
        bad: Fraction = 0.0,
        max_pixels: Count = 64_000_000,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ArgumentError("size", f"found {height}×{width}, expected at least 1×1")
        if channels not in (1, 3, 4):
            raise ArgumentError("channels", f"found {channels}, expected 1, 3 or 4")
        self.root, self.bad = Path(path), bad
        if not self.root.is_dir():
            raise DataError(f"{self.root}: there is no such folder")
        self.rule = PixelRule(height, width, channels, fit, max_pixels)
        self.spec = Spec((channels, height, width))
        self.variants = 2 if flip else 1
        self.classes = self._classes() if labels else ()
        self.cond = {"label": Spec((), torch.int64, len(self.classes))} if labels else {}

    def _classes(self) -> tuple[str, ...]:
        found = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not found:
            raise DataError(f"{self.root}: `labels: true` needs one sub-folder for each class, there is none")
        return tuple(found)

    @cached_property
    def scanned(self) -> Scan:
        """What the folder holds; checked at first use."""
        found = self.check()
        total = len(found.good) + len(found.bad)
        if len(found.bad) > self.bad * total:
            raise DataError(
                f"{self.root}: {len(found.bad)} of {total} images are unreadable, `bad: {self.bad:g}` tolerates "
                f"{int(self.bad * total)}:\n{self._told(found)}"
            )
        if not found.good:
            raise DataError(f"{self.root}: there is no image in this folder")
        self._check_classes(found)
        return found

    def check(self) -> Scan:
        """Decode all images or recall that it was done; tolerates any number of unreadable ones."""
        if not sys.stderr.isatty():
            return scan(self.root, self.rule)
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"checking images of {self.root.name}")
            return scan(self.root, self.rule, lambda done, total: bar.update(task, completed=done, total=total))

    def contents(self) -> Mapping[str, str]:
        """sha256 of the images, by path."""
        return self.scanned.contents

    def problems(self) -> Mapping[str, str]:
        """Reasons of the unreadable images that are tolerated, by path."""
        return dict(self.scanned.bad)

    @staticmethod
    def _told(found: Scan) -> str:
        lines = [f"  {path}: {why}" for path, why in found.bad[:TOLD]]
        if len(found.bad) > TOLD:
            lines.append(f"  and {len(found.bad) - TOLD} more")
        return "\n".join(lines)

    def _check_classes(self, found: Scan) -> None:
        if not self.classes:
            return
        loose = next((entry.path for entry in found.good if "/" not in entry.path), None)
        if loose is not None:
            raise DataError(f"{self.root / loose}: lies in no class; with `labels: true` images lie in sub-folders")
        empty = set(self.classes) - {entry.path.split("/")[0] for entry in found.good}
        if empty:
            raise DataError(f"{self.root / min(empty)}: this class has no image; remove the folder or fill it")

    @cached_property
    def _labels(self) -> np.ndarray:
        numbers = {name: k for k, name in enumerate(self.classes)}
        return np.array([numbers[entry.path.split("/")[0]] for entry in self.scanned.good], dtype=np.int64)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self.scanned.good)

    def names(self) -> list[str]:
        """Paths without their endings."""
        return [str(PurePosixPath(entry.path).with_suffix("")) for entry in self.scanned.good]

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Decode images.

        Raises:
            DataError: if a file was changed or removed after the check; names it.
        """
        entries = [self.scanned.good[int(k)] for k in index]
        x0 = torch.from_numpy(np.stack(list(self._pool.map(self._image, entries))))
        cond = {"label": torch.from_numpy(self._labels[index])} if self.classes else {}
        return Items(mirrored(x0, variant), None, cond)

    def _image(self, entry: Entry) -> np.ndarray:
        path = self.root / entry.path
        try:
            if Entry.of(self.root, entry.path) != entry and content(path) != self.scanned.contents[entry.path]:
                raise DataError(f"{path}: was changed after it was checked; start again to check it anew")
            return self.rule.read(path)
        except OSError as error:
            raise DataError(f"{path}: can no longer be read ({error.strerror})") from error
        except UnreadableError as error:
            raise DataError(f"{path}: {error}") from error

    def image_rule(self) -> PixelRule:
        """That of the folder."""
        return self.rule

    def fingerprint(self) -> dict[str, Any]:
        """Files by path and content, and what they become."""
        return {
            "data": "folder",
            "files": self.scanned.digest(),
            "samples": len(self),
            "shape": list(self.spec.shape),
            "fit": self.rule.fit,
            "flip": self.variants == 2,
            "classes": list(self.classes),
            "kernel": "bicubic",
        }
