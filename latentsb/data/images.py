"""What sources of image files have in common: pixels, labels, attributes, and how many bad files are tolerated."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from latentsb.data.arrays import mirrored
from latentsb.data.pixels import Fit, PixelRule
from latentsb.data.source import Items, Source
from latentsb.data.table import Table, class_names
from latentsb.errors import ArgumentError, DataError
from latentsb.tensors import Spec

__all__ = ["Images", "Told", "checked_endings", "pixel_rule", "with_progress"]

T = TypeVar("T")
TOLD = 20
"""Unreadable images that a message names."""
TOGETHER = 8
"""Images that a thread decodes before it asks for more; small images take no longer than asking."""
Told = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


def pixel_rule(
    size: int | tuple[int, int],
    fit: Fit,
    channels: int,
    max_pixels: int,
    limits: tuple[float, float] | None = None,
) -> PixelRule:
    """The rule that a recipe's keys describe.

    Raises:
        ArgumentError: if the size, the channels or the range are none that an image can have.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ArgumentError("size", f"found {height}×{width}, expected at least 1×1")
    if channels < 1:
        raise ArgumentError("channels", f"found {channels}, expected at least 1")
    low, high = limits or (None, None)
    if low is not None and high is not None and not low < high:
        raise ArgumentError("range", f"found {low:g} and {high:g}, expected the lesser value first")
    return PixelRule(height, width, channels, fit, max_pixels, low, high)


def checked_endings(endings: Sequence[str]) -> tuple[str, ...]:
    """Endings of files, lower case; none for those of images.

    Raises:
        ArgumentError: if one does not begin with a dot.
    """
    wrong = next((ending for ending in endings if not ending.startswith(".") or ending == "."), None)
    if wrong is not None:
        raise ArgumentError("endings", f"found '{wrong}', expected an ending with its dot, such as '.npy' or '.x0.png'")
    return tuple(ending.lower() for ending in endings)


def with_progress(title: str, work: Callable[[Told | None], T]) -> T:
    """Do some work under a bar, on a terminal."""
    if not sys.stderr.isatty():
        return work(None)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        return work(lambda done, total: bar.update(task, completed=done, total=total))


class Images(Source):
    """Images that are decoded as they are read. Shapes are known from the recipe; files are looked for at first use.

    Args:
        where: what messages call the data.
        rule: what images become.
        flip: images may be mirrored left-right.
        labels: False; True for those that lie with the images; or a column of the table.
        classes: how many there are, or a file with a name on each line in the order of their numbers; None finds them.
        table: CSV file with a column `key`, the images' names.
        attributes: columns of the table that hold numbers.
        bad: share of unreadable images that is tolerated; they are left out.

    Raises:
        ArgumentError: if columns are asked for without a table.
        DataError: if the number of classes is to be found and the data or the table are not there.
    """

    def __init__(
        self,
        where: str,
        rule: PixelRule,
        *,
        flip: bool,
        labels: bool | str,
        classes: int | Path | None,
        table: Path | None,
        attributes: Sequence[str],
        bad: float,
    ) -> None:
        asked = "labels" if isinstance(labels, str) else "attributes" if attributes else ""
        if asked and table is None:
            raise ArgumentError(
                asked, "names a column; say of which file: `table: attributes.csv`, with a column `key`"
            )
        if table is not None and not asked:
            raise ArgumentError("table", "no column of it is used; name some in `labels` or `attributes`")
        if classes is not None and labels is False:
            raise ArgumentError("classes", "there are none without `labels`")
        self.where, self.rule, self.bad, self.labels, self.attributes = where, rule, bad, labels, tuple(attributes)
        self.table = None if table is None else Table(Path(table))
        self.spec = Spec((rule.channels, rule.height, rule.width))
        self.variants = 2 if flip else 1
        self._declared = class_names(classes) if isinstance(classes, Path) else classes
        self.cond = {}
        if labels is not False:
            declared = self._declared
            number = declared if isinstance(declared, int) else len(self.classes)
            self.cond["label"] = Spec((), torch.int64, number)
        if attributes:
            self.cond["attributes"] = Spec((len(attributes),))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty without labels."""
        if self.labels is False:
            return ()
        if isinstance(self._declared, tuple):
            return self._declared
        found = self.table.classes(self.labels) if self.table and isinstance(self.labels, str) else self._own_classes()
        if self._declared is not None and len(found) > self._declared:
            raise DataError(
                f"{self.where}: has {len(found)} classes, `classes: {self._declared}` promises fewer; "
                f"write classes: {len(found)}, or correct the labels"
            )
        return found

    @abstractmethod
    def _own_classes(self) -> tuple[str, ...]:
        """Names of the classes that lie with the images."""

    @abstractmethod
    def _own_labels(self) -> np.ndarray:
        """Class numbers that lie with the images, int64 of shape (N,)."""

    @abstractmethod
    def _image(self, k: int) -> np.ndarray:
        """Decode one image."""

    @abstractmethod
    def names(self) -> list[str]:
        """Paths without their endings."""

    @cached_property
    def _labels(self) -> np.ndarray:
        if self.table is None or not isinstance(self.labels, str):
            return self._own_labels()
        numbers = {name: k for k, name in enumerate(self.classes)}
        cells = self.table.column(self.labels, self.names())
        unknown = next((cell for cell in cells if _plain(cell) not in numbers), None)
        if unknown is not None:
            raise DataError(f"{self.table.path}: '{self.labels}' holds '{unknown}', which is none of the classes")
        return np.array([numbers[_plain(cell)] for cell in cells], dtype=np.int64)

    @cached_property
    def _attributes(self) -> np.ndarray:
        assert self.table is not None
        return self.table.attributes(self.attributes, self.names())

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")

    def _tolerated(self, good: int, bad: Sequence[tuple[str, str]]) -> None:
        """Refuse data without images, or with more unreadable ones than the recipe tolerates."""
        total = good + len(bad)
        if len(bad) > self.bad * total:
            lines = [f"  {path}: {why}" for path, why in bad[:TOLD]]
            lines += [f"  and {len(bad) - TOLD} more"] if len(bad) > TOLD else []
            told = "\n".join(lines)
            raise DataError(
                f"{self.where}: {len(bad)} of {total} images are unreadable, `bad: {self.bad:g}` tolerates "
                f"{int(self.bad * total)}:\n{told}"
            )
        if not good:
            raise DataError(f"{self.where}: there is no image in it")

    def words(self, name: str) -> tuple[str, ...]:
        """Names of classes and of columns."""
        return {"label": self.classes, "attributes": self.attributes}.get(name, ())

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Decode images.

        Raises:
            DataError: if a file was changed or removed after it was checked; names it.
        """
        rows = np.asarray(index, dtype=np.int64)
        len(self)  # checks the data, once
        x0 = torch.from_numpy(self._images(rows))
        values: Mapping[str, Callable[[], np.ndarray]] = {
            "label": lambda: self._labels,
            "attributes": lambda: self._attributes,
        }
        cond = {name: torch.from_numpy(values[name]()[rows]) for name in self.cond}
        return Items(mirrored(x0, variant), None, cond)

    def _images(self, rows: np.ndarray) -> np.ndarray:
        """Decode several images, float32 of shape (B, C, H, W)."""
        pixels = np.empty((len(rows), *self.spec.shape), dtype=np.float32)

        def decode(first: int) -> None:
            for k in range(first, min(first + TOGETHER, len(rows))):
                pixels[k] = self._image(int(rows[k]))

        for _ in self._pool.map(decode, range(0, len(rows), TOGETHER)):
            pass
        return pixels

    def image_rule(self) -> PixelRule:
        """That of the recipe."""
        return self.rule

    def _identity(self, word: str, files: str) -> dict[str, Any]:
        """What identifies the data: their files' content, and what they become."""
        numbered = all(name == str(k) for k, name in enumerate(self.classes))
        told: dict[str, Any] = {
            "data": word,
            "files": files,
            "samples": len(self),
            "shape": list(self.spec.shape),
            "fit": self.rule.fit,
            "flip": self.variants == 2,
            "classes": len(self.classes) if self.classes and numbered else list(self.classes),
            "kernel": "bicubic",
        }
        if self.rule.low is not None:
            told["range"] = [self.rule.low, self.rule.high]
        if self.table is not None:
            told |= {"table": self.table.digest(), "labels": self.labels, "attributes": list(self.attributes)}
        return told


def _plain(cell: str) -> str:
    """A whole number without leading zeros; other texts as they are."""
    return str(int(cell)) if cell.isascii() and cell.isdigit() else cell
