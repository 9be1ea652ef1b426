"""Data held in memory: arrays from an `.npz` file, and scikit-learn's embedded digits."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.data.planes import NPY
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError, DataError, nearest
from latentsb.tensors import Spec

__all__ = ["ArraySource", "Digits", "Npz", "layout_of", "mirrored"]

IMAGE_CHANNELS = (1, 3, 4)
UNREADABLE = (
    *(ValueError, OSError, EOFError, MemoryError, RuntimeError),  # encrypted members are the last
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error),
)
"""What NumPy and zipfile raise over files that are damaged, hostile, or too large."""


def mirrored(x: Tensor, variant: np.ndarray | None) -> Tensor:
    """Mirror left-right, along the last dimension, the rows whose variant is 1."""
    if variant is None or not variant.any():
        return x
    rows = torch.from_numpy(variant == 1).reshape(-1, *(1,) * (x.ndim - 1))
    return torch.where(rows, x.flip(-1), x)


def layout_of(what: str, shape: tuple[int, ...], path: Path) -> str:
    """Where the channels of images stand: `NCHW` or `NHWC`, which is told by just one place that holds 1, 3 or 4.

    Raises:
        DataError: if both or neither do; names the array and the file.
    """
    first, last = shape[1] in IMAGE_CHANNELS, shape[3] in IMAGE_CHANNELS
    if first == last:
        raise DataError(
            f"{path}: cannot tell where the channels of {what} stand in shape {shape}; "
            "say `layout: NCHW` or `layout: NHWC`"
        )
    return "NCHW" if first else "NHWC"


class ArraySource(Source):
    """A source whose samples are tensors in memory.

    Args:
        x0: data end, float32, shape (N, …).
        x1: other end, float32, or None.
        cond: labels (N,) int64, attributes (N, A) float32.
        classes: how many values the labels may take.
        paired: the i-th x1 is the partner of the i-th x0.
        flip: samples may be mirrored.
        identity: what identifies the data, JSON values.
    """

    def __init__(
        self,
        x0: Tensor,
        x1: Tensor | None = None,
        cond: Mapping[str, Tensor] | None = None,
        *,
        classes: int | None = None,
        paired: bool = False,
        flip: bool = False,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.others, self.values = x0, x1, dict(cond or {})
        self.spec = Spec(tuple(x0.shape[1:]))
        self.cond = {
            name: Spec(tuple(value.shape[1:]), value.dtype, classes if name == "label" else None)
            for name, value in self.values.items()
        }
        self.variants = 2 if flip else 1
        self.two_sided, self.paired = x1 is not None, x1 is not None and paired
        self.identity = dict(identity or {})

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def partners(self) -> int:
        """How many x1 there are."""
        return 0 if self.others is None else len(self.others)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Gather samples; those of variant 1 mirrored at both ends."""
        at = torch.from_numpy(np.asarray(index, dtype=np.int64))
        x1 = None if self.others is None else self._x1(at, variant)
        return Items(mirrored(self.samples[at], variant), x1, {name: value[at] for name, value in self.values.items()})

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Any) -> Tensor:
        """Gather other ends, without reading the x0 beside them."""
        return self._x1(torch.from_numpy(np.asarray(index, dtype=np.int64)), variant)

    def _x1(self, at: Tensor, variant: np.ndarray | None) -> Tensor:
        if self.others is None:
            raise DataError("these data have no x1")
        return mirrored(self.others[at % len(self.others)], variant)

    def fingerprint(self) -> dict[str, Any]:
        """The identity given, the shape and the number of samples."""
        return {**self.identity, "samples": len(self), "shape": list(self.spec.shape)}


@SOURCES.register("digits")
class Digits(ArraySource):
    """1,797 handwritten digits of 8×8 pixels with labels 0-9, embedded in scikit-learn; no download.

    Source: Alpaydin and Kaynak 1998, Optical recognition of handwritten digits, UCI.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # takes a second: only where digits are read

        images, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(images / 8.0 - 1.0).float().reshape(-1, 1, 8, 8)  # 0 … 16 becomes -1 … 1
        super().__init__(
            pixels, cond={"label": torch.from_numpy(labels).long()}, classes=10, identity={"data": "digits"}
        )


@SOURCES.register("npz")
class Npz(ArraySource):
    """Arrays of a NumPy `.npz` file: images, latents or vectors, with the other end, labels and attributes.

    Bytes (uint8) become numbers in [-1, 1]; floats are taken as they are, so images must already lie in [-1, 1].
    Nothing is unpickled.

    Args:
        path: of the file.
        x0: name of the data array, shape (N, D), (N, C, H, W), (N, H, W, C) or, grey with `layout: NHW`, (N, H, W).
        x1: name of the other end's array, of the same sample shape; None if there is none.
        labels: name of an integer array of shape (N,), values ≥ 0; None if there is none.
        attributes: name of an array of shape (N, A); None if there is none.
        paired: the i-th x1 is the partner of the i-th x0.
        layout: of images; None finds it where just one of the two places holds 1, 3 or 4 channels, and takes arrays
            with three dimensions for matrices or trajectories.
        flip: images may be mirrored left-right.

    Raises:
        DataError: if the file, an array or its form is wrong; names the array.
    """

    def __init__(
        self,
        *,
        path: Path,
        x0: str = "x0",
        x1: str | None = None,
        labels: str | None = None,
        attributes: str | None = None,
        paired: bool = False,
        layout: Literal["NCHW", "NHWC", "NHW"] | None = None,
        flip: bool = False,
    ) -> None:
        file = _File(Path(path))
        data = file.samples(x0, "x0", layout)
        other = None if x1 is None else file.samples(x1, "x1", layout)
        if other is not None and other.shape[1:] != data.shape[1:]:
            raise DataError(
                f"{path}: '{x0}' holds samples of shape {tuple(data.shape[1:])}, '{x1}' of {tuple(other.shape[1:])}"
            )
        if other is not None and paired and len(other) != len(data):
            raise DataError(
                f"{path}: pairs need equal numbers, found {len(data)} of '{x0}' and {len(other)} of '{x1}'; "
                "set `paired: false` if they are unrelated"
            )
        if flip and data.ndim != 4:
            raise ArgumentError("flip", f"only images can be mirrored, '{x0}' has shape {tuple(data.shape)}")
        cond: dict[str, Tensor] = {}
        if labels is not None:
            cond["label"] = file.labels(labels, len(data))
        if attributes is not None:
            cond["attributes"] = file.attributes(attributes, len(data))
        classes = int(cond["label"].max()) + 1 if "label" in cond else None
        identity = {"data": "npz", "sha256": file.digest(), "arrays": [x0, x1, labels, attributes], "layout": layout}
        super().__init__(data, other, cond, classes=classes, paired=paired, flip=flip, identity=identity)


class _File:
    """Arrays of one `.npz` file, checked as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: there is no such file")
        try:
            with path.open("rb") as stream:  # looked at first: a bare array would be read at once, however large
                bare = stream.read(len(NPY)) == NPY
            if not bare:
                self.arrays: np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
        except UNREADABLE as error:
            raise DataError(f"{path}: not a readable .npz file ({error})") from error
        if bare:
            raise DataError(f"{path}: holds one bare array; save it by name with numpy.savez(path, x0=array)")
        twice = [name for name, count in Counter(self.arrays.files).items() if count > 1]
        if twice:
            raise DataError(f"{path}: holds the array '{twice[0]}' twice")

    def array(self, name: str, key: str) -> np.ndarray:
        """One array, refused if it is absent, damaged or of objects; `key` is the argument that names it."""
        if name not in self.arrays.files:
            has = self.arrays.files
            known = f" It has: {', '.join(has)}; set data.{key}={_likely(name, has)}" if has else " It is empty"
            raise DataError(f"{self.path}: has no array '{name}'.{nearest(name, has)}{known}")
        try:
            self._believe(name)
            return np.asarray(self.arrays[name])
        except UNREADABLE as error:
            told = error or type(error).__name__
            raise DataError(f"{self.path}: array '{name}' cannot be read ({told})") from error

    def _believe(self, name: str) -> None:
        """Hold what the header of an array promises to the bytes that are there, before memory is taken for it."""
        packed = self.arrays.zip
        assert packed is not None  # it is open
        member = next(info for info in packed.infolist() if info.filename in (name, f"{name}.npy"))
        with packed.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        promised = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and not 0 <= promised <= member.file_size:
            raise ValueError(f"its header promises {promised:,} bytes, it holds {member.file_size:,}")

    def samples(self, name: str, key: str, layout: str | None) -> Tensor:
        """Samples as finite float32 numbers, channels first."""
        found = self.array(name, key)
        if found.ndim < 2 or len(found) == 0 or found.size == 0:
            raise DataError(f"{self.path}: '{name}' has shape {found.shape}, expected (N, …) with at least one sample")
        if layout is not None and found.ndim != len(layout):
            raise DataError(f"{self.path}: '{name}' has shape {found.shape}, but the layout is said to be {layout}")
        if layout == "NHW":
            found = found[:, None]
        elif found.ndim == 4 and (layout or layout_of(f"'{name}'", found.shape, self.path)) == "NHWC":
            found = found.transpose(0, 3, 1, 2)
        if found.dtype == np.uint8:
            return torch.from_numpy(np.ascontiguousarray(found)).float() / 127.5 - 1.0
        if not np.issubdtype(found.dtype, np.floating):
            raise DataError(f"{self.path}: '{name}' has type {found.dtype}, expected uint8 or a float")
        return self._finite(name, found)

    def _finite(self, name: str, found: np.ndarray) -> Tensor:
        with np.errstate(over="ignore"):  # what overflows is told below
            narrow = np.ascontiguousarray(found, dtype=np.float32)
        bad = np.asarray(~np.isfinite(narrow).all(axis=tuple(range(1, narrow.ndim))))
        if bad.any():
            raise DataError(
                f"{self.path}: '{name}' is not finite in {int(bad.sum())} of {len(bad)} samples, "
                f"the first at {int(bad.argmax())}"
            )
        return torch.from_numpy(narrow)

    def labels(self, name: str, n: int) -> Tensor:
        """Class numbers ≥ 0, one for each sample."""
        found = self.array(name, "labels")
        if found.shape != (n,) or not np.issubdtype(found.dtype, np.integer):
            raise DataError(
                f"{self.path}: '{name}' has shape {found.shape} and type {found.dtype}, expected ({n},) integers"
            )
        if found.min() < 0:
            raise DataError(f"{self.path}: '{name}' holds the label {int(found.min())}; labels begin at 0")
        return torch.from_numpy(found.astype(np.int64))

    def attributes(self, name: str, n: int) -> Tensor:
        """Finite attributes, a row for each sample."""
        found = self.array(name, "attributes")
        if found.ndim != 2 or len(found) != n or found.dtype.kind not in "fiub":
            raise DataError(
                f"{self.path}: '{name}' has shape {found.shape} and type {found.dtype}, expected ({n}, A) numbers"
            )
        return self._finite(name, found)

    def digest(self) -> str:
        """sha256 of the file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _likely(name: str, names: list[str]) -> str:
    """The array that was probably meant: the nearest name, else the first."""
    return next(iter(get_close_matches(name, names, n=1)), names[0])
