"""Named arrays on disk, read by rows: a folder of `.npy` files, one `.npy`, an `.npz`, a `.safetensors`.

`.npy` and `.safetensors` are memory-mapped, so their size does not matter; an `.npz` is read into memory when it is
first used. Nothing is unpickled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.errors import DataError, nearest

__all__ = ["ALONE", "Container", "Rows", "container"]

ALONE = "x0"
"""What the array of a bare `.npy` is called."""
BLOCK = 1 << 26
"""Bytes that are looked at together."""


class Rows(ABC):
    """One array, read by rows.

    Attributes:
        shape: of the whole array, rows first.
        dtype: of its numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def take(self, index: np.ndarray) -> Tensor:
        """Rows at positions, int64 of shape (B,), as they are stored."""

    def fault(self, told: Callable[[int], None]) -> str:
        """Why the rows cannot be used (numbers that are not finite); empty where they can.

        Args:
            told: called with numbers of bytes as they are looked at.
        """
        if not self.dtype.is_floating_point:
            return ""
        row_bytes = max(1, int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize)
        rows, wrong, first = max(1, BLOCK // row_bytes), 0, 0
        for begin in range(0, self.shape[0], rows):
            values = self.take(np.arange(begin, min(begin + rows, self.shape[0]))).float()
            bad = ~torch.isfinite(values).flatten(1).all(1)
            if bool(bad.any()) and not wrong:
                first = begin + int(bad.int().argmax())
            wrong += int(bad.sum())
            told(len(values) * row_bytes)
        return f"is not finite in {wrong} of {self.shape[0]} samples, the first at {first}" if wrong else ""


class _Numpy(Rows):
    """An array of NumPy, in memory or mapped."""

    def __init__(self, values: np.ndarray) -> None:
        if values.dtype.kind not in "iuf":
            raise ValueError(f"has type {values.dtype}, expected numbers")
        self.values, self.shape = values, values.shape
        self.dtype = torch.from_numpy(np.zeros(0, values.dtype.newbyteorder("="))).dtype

    def take(self, index: np.ndarray) -> Tensor:
        native = self.values.dtype.newbyteorder("=")
        return torch.from_numpy(np.ascontiguousarray(self.values[index], dtype=native))


class _Safetensors(Rows):
    """A tensor of a safetensors file, mapped."""

    def __init__(self, file: Any, name: str) -> None:
        self.slice = file.get_slice(name)
        self.shape = tuple(self.slice.get_shape())
        self.dtype = self.slice[0:0].dtype if self.shape else torch.float32

    def take(self, index: np.ndarray) -> Tensor:
        # Neighbours are read at once: a copy of their bytes, where each slice costs some microseconds.
        cuts = np.flatnonzero(np.diff(index) != 1) + 1
        runs = np.split(index, cuts) if len(index) else []
        parts = [self.slice[int(run[0]) : int(run[-1]) + 1] for run in runs]
        return torch.cat(parts) if parts else self.slice[0:0]


class Container(ABC):
    """Arrays by name at one place.

    Args:
        path: of the file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """Arrays that are there."""

    @abstractmethod
    def _open(self, name: str) -> Rows:
        """One array that is there."""

    def file(self, name: str) -> Path:
        """The file that holds an array."""
        return self.path

    def rows(self, name: str, key: str) -> Rows:
        """One array.

        Args:
            name: of the array.
            key: of the recipe, that names it.

        Raises:
            DataError: if it is absent, damaged, or holds no numbers.
        """
        try:
            known = self.names()
        except Exception as error:  # a damaged header, of whatever library
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        if name not in known:
            has = f"It has: {', '.join(known)}; set data.{key}=…" if known else "It has none"
            raise DataError(f"{self.path}: has no array '{name}'.{nearest(name, known)} {has}")
        try:
            found = self._open(name)
        except Exception as error:
            raise DataError(f"{self.file(name)}: array '{name}' cannot be used ({error})") from error
        if len(found.shape) < 1 or found.shape[0] == 0:
            raise DataError(f"{self.file(name)}: '{name}' has shape {found.shape}, expected at least one row")
        return found


class _Folder(Container):
    def names(self) -> list[str]:
        return sorted(path.stem for path in self.path.glob("*.npy"))

    def file(self, name: str) -> Path:
        return self.path / f"{name}.npy"

    def _open(self, name: str) -> Rows:
        return _Numpy(np.load(self.file(name), mmap_mode="r", allow_pickle=False))


class _Bare(Container):
    def names(self) -> list[str]:
        return [ALONE]

    def _open(self, name: str) -> Rows:
        return _Numpy(np.load(self.path, mmap_mode="r", allow_pickle=False))


class _Npz(Container):
    @cached_property
    def loaded(self) -> Mapping[str, np.ndarray]:
        found = np.load(self.path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("is no .npz file")
        return found

    def names(self) -> list[str]:
        return list(self.loaded)

    def _open(self, name: str) -> Rows:
        return _Numpy(self.loaded[name])


class _Tensors(Container):
    @cached_property
    def opened(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")

    def names(self) -> list[str]:
        return list(self.opened.keys())

    def _open(self, name: str) -> Rows:
        return _Safetensors(self.opened, name)


KINDS: dict[str, type[Container]] = {".npy": _Bare, ".npz": _Npz, ".safetensors": _Tensors}


def container(path: Path) -> Container:
    """The arrays at a place.

    Raises:
        DataError: if its ending tells of no arrays.
    """
    if path.is_dir():
        return _Folder(path)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: expected a folder of .npy files, or a file {', '.join(KINDS)}")
    return kind(path)
