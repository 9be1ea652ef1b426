"""Arrays of any size: latents made elsewhere, images, vectors, read by rows from where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.data.arrays import layout_of, mirrored
from latentsb.data.containers import Container, Rows, container
from latentsb.data.digests import Known, known
from latentsb.data.patterns import expand
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import Count
from latentsb.tensors import Spec

__all__ = ["Arrays"]

WHOLE = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""The largest number of integer types; 0 becomes -1 and this becomes 1."""


class _Column:
    """One array, put together from all places; its rows are samples.

    Args:
        places: in their order.
        name: of the array in each.
        key: of the recipe, that names it.
    """

    def __init__(self, places: tuple[Container, ...], name: str, key: str) -> None:
        self.name, self.key, self.files = name, key, tuple(place.file(name) for place in places)
        self.parts: tuple[Rows, ...] = tuple(place.rows(name, key) for place in places)
        self.shape = self.parts[0].shape[1:]
        for file, part in zip(self.files, self.parts, strict=True):
            if part.shape[1:] != self.shape:
                found, first = part.shape[1:], self.files[0]
                raise DataError(f"{file}: '{name}' holds samples of shape {found}, that of {first} of {self.shape}")
        self.ends = np.cumsum([part.shape[0] for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, index: np.ndarray) -> Tensor:
        """Rows as they are stored, at positions among those of all places."""
        number = np.searchsorted(self.ends, index, side="right")
        if len(self.parts) == 1 or (number == number[:1]).all():
            k = int(number[0]) if len(number) else 0
            return self.parts[k].take(index - (self.ends[k] - self.parts[k].shape[0]))
        found, places = [], []
        for k in np.unique(number).tolist():
            places.append(np.flatnonzero(number == k))
            found.append(self.parts[k].take(index[places[-1]] - (self.ends[k] - self.parts[k].shape[0])))
        # Joined, types become the widest of them; an assignment would round, and torch has none of 16-bit integers.
        return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate(places)))]


@SOURCES.register("arrays")
class Arrays(Source):
    """Arrays on disk, read by rows and never as a whole: latents made elsewhere, images, vectors.

    A place is a folder of `NAME.npy` files, one `.npy`, a `.safetensors` or an `.npz` file (which alone is read into
    memory); samples of several places stand in their order. Bytes and 16-bit numbers become [-1, 1]; floats are taken
    as they are, so that images must already lie in [-1, 1]. Before the first use every number is looked at once, which
    is remembered for as long as a file keeps its size and time. Nothing is unpickled.

    Args:
        paths: of folders or files; of files also patterns, such as `latents/*.safetensors`.
        x0: name of the data array, samples first; the array of a bare `.npy` is called `x0`.
        x1: name of the other end's array; None if there is none.
        labels: name of an integer array of shape (N,), values ≥ 0; None if there is none.
        attributes: name of an array of shape (N, A); None if there is none.
        paired: the i-th x1 is the partner of the i-th x0.
        layout: of images; None finds it where just one of the two places holds 1, 3 or 4 channels.
        flip: true to mirror images left-right; or, of latents, the name of the array that holds the latents of the
            mirrored images, since a latent cannot be mirrored.
        shape: of a sample, channels first, by which `check` knows it without the data; found in them if left out.
        classes: how many values the labels may take; found in them if left out.

    Raises:
        ArgumentError: if keys contradict each other.
        DataError: if shapes are to be found and the data are not there; at first use, if an array is absent, damaged,
            of another form, or holds numbers that are not finite: named with its file.
    """

    def __init__(
        self,
        *,
        paths: tuple[Path, ...] | Path,
        x0: str = "x0",
        x1: str | None = None,
        labels: str | None = None,
        attributes: str | None = None,
        paired: bool = False,
        layout: Literal["NCHW", "NHWC", "NHW"] | None = None,
        flip: bool | str = False,
        shape: tuple[Count, ...] | None = None,
        classes: Count | None = None,
    ) -> None:
        self.paths = (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))
        if isinstance(flip, str) and x1 is not None:
            raise ArgumentError("flip", "names an array of x0 alone; data of two ends cannot be flipped by name")
        if classes is not None and labels is None:
            raise ArgumentError("classes", "there are none without `labels`")
        if paired and x1 is None:
            raise ArgumentError("paired", "there are no pairs without `x1`")
        self.asked = {"x0": x0, "x1": x1, "flip": flip if isinstance(flip, str) else None}
        self.asked |= {"labels": labels, "attributes": attributes}
        self.layout, self.flip, self.classes = layout, flip, classes
        self.two_sided, self.paired = x1 is not None, paired
        self.spec = Spec(self._sample_shape(self.columns["x0"]) if shape is None else tuple(shape))
        if flip is True and len(self.spec.shape) != 3:
            raise ArgumentError("flip", f"only images can be mirrored, samples have shape {self.spec.shape}")
        self.variants = 2 if flip else 1
        self.cond = {}
        if labels is not None:
            self.cond["label"] = Spec((), torch.int64, int(self._labels.max()) + 1 if classes is None else classes)
        if attributes is not None:
            self.cond["attributes"] = Spec(tuple(self.columns["attributes"].shape))

    def require(self) -> None:
        """Raise if a file is missing."""
        for path in self.paths:
            if not path.is_dir():
                expand((path,), f"{self.recipe_key}.paths")

    @cached_property
    def places(self) -> tuple[Container, ...]:
        """Folders and files in their order."""
        key = f"{self.recipe_key}.paths"
        found = [[path] if path.is_dir() else list(expand((path,), key)) for path in self.paths]
        return tuple(container(path) for paths in found for path in paths)

    @cached_property
    def columns(self) -> dict[str, _Column]:
        """Arrays that are asked for, by the key that asks; their headers are read, and their numbers agree."""
        named = {key: name for key, name in self.asked.items() if name is not None}
        found = {key: _Column(self.places, name, key) for key, name in named.items()}
        for key, column in found.items():
            for part, own in zip(column.parts, found["x0"].parts, strict=True):
                if part.shape[0] != own.shape[0] and (key != "x1" or self.paired):
                    counts = f"{own.shape[0]} of '{self.asked['x0']}' and {part.shape[0]} of '{column.name}'"
                    raise DataError(f"{column.files[0]}: equal numbers are needed, found {counts}")
        return found

    def _sample_shape(self, column: _Column) -> tuple[int, ...]:
        """Of a sample of an array, channels first."""
        shape, form = column.shape, self._form(column)
        return (1, *shape) if form == "NHW" else (shape[2], *shape[:2]) if form == "NHWC" else shape

    def _form(self, column: _Column) -> str:
        """How the dimensions of an array stand; empty where they are no image's."""
        shape, file, name = column.shape, column.files[0], column.name
        if not shape:
            raise DataError(f"{file}: '{name}' has one dimension, expected samples and their own")
        if self.layout is not None and len(shape) + 1 != len(self.layout):
            raise DataError(f"{file}: '{name}' has samples of shape {shape}, `layout` says {self.layout}")
        if self.layout is not None or len(shape) != 3:
            return self.layout or ""
        return layout_of(f"'{name}'", (len(column), *shape), file)

    @cached_property
    def known(self) -> Known:
        """The files; every array was looked at in full."""
        for key, column in self.columns.items():
            self._check_form(key, column)
        files = [file for column in self.columns.values() for file in column.files]
        return known(files, f"arrays {sorted(name for name in self.asked.values() if name)}", self._look)

    def _look(self, files: Sequence[Path], told: Callable[[int], None]) -> None:
        """Refuse arrays that hold numbers which are not finite."""
        for column in self.columns.values():
            for file, part in zip(column.files, column.parts, strict=True):
                why = part.fault(told) if file in files else ""
                if why:
                    raise DataError(f"{file}: '{column.name}' {why}")

    def _check_form(self, key: str, column: _Column) -> None:
        """Refuse an array of another shape or type."""
        file, floats = column.files[0], all(part.dtype.is_floating_point for part in column.parts)
        if key in ("x0", "x1", "flip"):
            shape = self._sample_shape(column)
            if shape != self.spec.shape:
                raise DataError(f"{file}: '{column.name}' has samples of shape {shape}, expected {self.spec.shape}")
            if len({part.dtype for part in column.parts}) > 1 and not floats:
                raise DataError(f"{file}: '{column.name}' has another type in other files")
            if not floats and column.parts[0].dtype not in WHOLE:
                found = str(column.parts[0].dtype).removeprefix("torch.")
                raise DataError(f"{file}: '{column.name}' has type {found}, expected uint8, uint16 or a float")
        elif key == "labels":
            self._check_labels(column)
        elif len(column.shape) != 1:
            raise DataError(f"{file}: '{column.name}' has samples of shape {column.shape}, expected (A,)")

    def _check_labels(self, column: _Column) -> None:
        values, file = self._labels, column.files[0]
        if values.min() < 0:
            raise DataError(f"{file}: '{column.name}' holds the label {int(values.min())}; labels begin at 0")
        if self.classes is not None and values.max() >= self.classes:
            raise DataError(
                f"{file}: '{column.name}' holds {int(values.max())}, `classes` allows 0 to {self.classes - 1}"
            )

    @cached_property
    def _labels(self) -> Tensor:
        column = self.columns["labels"]
        if column.shape or any(part.dtype.is_floating_point for part in column.parts):
            raise DataError(f"{column.files[0]}: '{column.name}' is expected to hold an integer for each sample")
        return column.take(np.arange(len(column))).long()

    def __len__(self) -> int:
        return len(self.columns["x0"])

    @property
    def partners(self) -> int:
        """How many x1 there are."""
        return len(self.columns["x1"]) if self.two_sided else 0

    def contents(self) -> Mapping[str, str]:
        """sha256 of the files, by path below the folder that all are in."""
        return self.known.contents()

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Gather samples of both ends.

        Raises:
            DataError: if a file was changed or removed after it was looked at.
        """
        rows = np.asarray(index, dtype=np.int64)
        x1 = self.draw_x1(rows % self.partners, variant, None) if self.two_sided else None
        cond: dict[str, Tensor] = {}
        if "label" in self.cond:
            cond["label"] = self._labels[torch.from_numpy(rows)]
        if "attributes" in self.cond:
            cond["attributes"] = self.columns["attributes"].take(rows).float()
        return Items(self._samples("x0", rows, variant), x1, cond)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Any) -> Tensor:
        """Gather other ends alone."""
        if not self.two_sided:
            raise DataError("these data have no x1")
        return self._samples("x1", np.asarray(index, dtype=np.int64), variant)

    def _samples(self, key: str, rows: np.ndarray, variant: np.ndarray | None) -> Tensor:
        self.known.require()
        found = self._numbers(self.columns[key], rows)
        if variant is None or not variant.any():
            return found
        if self.flip is True:
            return mirrored(found, variant)
        at = np.flatnonzero(variant == 1)
        found[torch.from_numpy(at)] = self._numbers(self.columns["flip"], rows[at])
        return found

    def _numbers(self, column: _Column, rows: np.ndarray) -> Tensor:
        """Rows of an array as float32, channels first."""
        stored, form = column.take(rows), self._form(column)
        if form == "NHW":
            stored = stored[:, None]
        elif form == "NHWC":
            stored = stored.movedim(-1, 1)
        values = stored.float().contiguous()
        top = WHOLE.get(stored.dtype)
        return values if top is None else values / (top / 2) - 1.0

    def fingerprint(self) -> dict[str, Any]:
        """Files by content in their order, and which arrays are taken from them."""
        told = {"data": "arrays", "files": self.known.digest(), "arrays": dict(self.asked), "layout": self.layout}
        return {
            **told,
            "flip": self.flip,
            "samples": len(self),
            "shape": list(self.spec.shape),
            "classes": self.classes,
        }
