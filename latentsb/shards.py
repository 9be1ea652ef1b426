"""Arrays on disk, cut into `.npy` files: written in one go or place by place, read by rows."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from latentsb.disk import Disk

__all__ = ["ShardPlaces", "ShardWriter", "Shards"]

SHARD_BYTES = 1 << 30


class ShardWriter:
    """Writes rows of one array to files of at most about a gigabyte, and their checksums as they go.

    Plain writes are used, not a memory map: a full disk is then an error and not a signal.

    Args:
        folder: that exists.
        name: of the array; the files are `name-00000.npy` and so on.
        count: rows in all.
        shape: of one row.
        dtype: of the numbers.
        shard_bytes: size that no file exceeds, unless one row does.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        count: int,
        shape: Sequence[int],
        dtype: np.dtype,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.name, self.count, self.shape, self.dtype = folder, name, count, tuple(shape), dtype
        self.rows = rows_per_shard(shape, dtype, shard_bytes)
        self.digests: dict[str, str] = {}
        self._done = 0
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()

    def write(self, rows: np.ndarray) -> None:
        """Append rows."""
        while len(rows):
            if self._file is None:
                self._begin()
            part = rows[: self.rows - self._done % self.rows]
            self._put(np.ascontiguousarray(part, dtype=self.dtype).tobytes())
            self._done += len(part)
            rows = rows[len(part) :]
            if self._done % self.rows == 0 or self._done == self.count:
                self._end()

    def close(self) -> None:
        """Close the file that is open, whether or not it is complete."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._hash = hashlib.sha256()
        self._file = open(self._path, "wb")
        self._put(_header((min(self.rows, self.count - self._done), *self.shape), self.dtype))

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}-{self._done // self.rows:05d}.npy"

    def _put(self, data: bytes) -> None:
        assert self._file is not None
        self._hash.update(data)
        self._file.write(data)

    def _end(self) -> None:
        assert self._file is not None
        path = Path(self._file.name)
        self.close()
        Disk().sync(path)
        self.digests[path.name] = self._hash.hexdigest()


class ShardPlaces:
    """Files of an array in which every row has its place; rows are written in any order, by any process.

    Once all rows are written, the files are those of a `ShardWriter`, to the byte.

    Args:
        folder: that exists.
        name: of the array; the files are `name-00000.npy` and so on.
        count: rows in all.
        shape: of one row.
        dtype: of the numbers.
        shard_bytes: size that no file exceeds, unless one row does.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        count: int,
        shape: Sequence[int],
        dtype: np.dtype,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.count, self.shape, self.dtype = count, tuple(shape), dtype
        self.rows = rows_per_shard(shape, dtype, shard_bytes)
        self.row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.paths = [folder / f"{name}-{k:05d}.npy" for k in range(-(-count // self.rows))]

    def create(self) -> None:
        """Make the files, of zeros, at their full size; what they hold stays where they are there."""
        for k, path in enumerate(self.paths):
            head = self._header(k)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _write(handle, head, 0)
                os.ftruncate(handle, len(head) + self._within(k) * self.row_bytes)
            finally:
                os.close(handle)

    def write(self, first: int, rows: np.ndarray) -> bytes:
        """Write rows from a position on; returns their bytes."""
        data = np.ascontiguousarray(rows, dtype=self.dtype).tobytes()
        for k, offset, part in self._parts(first, len(rows)):
            handle = os.open(self.paths[k], os.O_WRONLY)
            try:
                _write(handle, data[part], offset)
            finally:
                os.close(handle)
        return data

    def read(self, first: int, last: int) -> bytes:
        """Bytes of the rows from one position up to another; fewer where a file is short or gone."""
        found = b""
        for k, offset, part in self._parts(first, last - first):
            with contextlib.suppress(FileNotFoundError), self.paths[k].open("rb") as file:
                file.seek(offset)
                found += file.read(part.stop - part.start)
        return found

    def files(self, first: int, last: int) -> set[Path]:
        """Those in which these rows lie."""
        return {self.paths[k] for k, _, _ in self._parts(first, last - first)}

    def _within(self, k: int) -> int:
        return min(self.rows, self.count - k * self.rows)

    def _header(self, k: int) -> bytes:
        return _header((self._within(k), *self.shape), self.dtype)

    def _parts(self, first: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """File, offset in it and part of the bytes for rows that follow each other."""
        done = 0
        while done < count:
            k, row = divmod(first + done, self.rows)
            n = min(self.rows - row, count - done)
            part = slice(done * self.row_bytes, (done + n) * self.row_bytes)
            yield k, len(self._header(k)) + row * self.row_bytes, part
            done += n


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The head of an `.npy` file."""
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype))
    header["shape"] = shape
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    return head.getvalue()


def _write(handle: int, data: bytes, offset: int) -> None:
    """Write all bytes at a place; a write near a limit may be short, the next one then says why."""
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def rows_per_shard(shape: Sequence[int], dtype: np.dtype, shard_bytes: int = SHARD_BYTES) -> int:
    """Rows in every file of an array but the last."""
    return max(1, shard_bytes // (int(np.prod(shape, dtype=np.int64)) * dtype.itemsize))


class Shards:
    """Rows of an array that lies in `.npy` files, memory-mapped.

    Args:
        folder: of the files.
        name: of the array.
        count: rows in all.
        shape: of one row.
        dtype: of the numbers.
        rows: in every file but the last.

    Raises:
        ValueError: if a file is absent, short, or of another type or shape; says which.
    """

    def __init__(self, folder: Path, name: str, count: int, shape: Sequence[int], dtype: np.dtype, rows: int) -> None:
        self.shape, self.dtype, self.rows = tuple(shape), dtype, rows
        self.files = [
            self._open(folder / f"{name}-{k:05d}.npy", (min(rows, count - first), *self.shape), dtype)
            for k, first in enumerate(range(0, count, rows))
        ]

    @staticmethod
    def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        try:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(f"{path} holds {found.dtype} of shape {found.shape}, expected {dtype} of shape {shape}")
        return found

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows at these positions, shape (B, …), in memory."""
        if len(self.files) == 1:
            return np.asarray(self.files[0][index])
        out = np.empty((len(index), *self.shape), dtype=self.dtype)
        shard = index // self.rows
        for k in np.unique(shard).tolist():
            at = shard == k
            out[at] = self.files[k][index[at] % self.rows]
        return out


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of the files that are absent or have another checksum."""

    def wrong(name: str) -> bool:
        path = folder / name
        return not path.is_file() or sha256(path) != digests[name]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        return [name for name, bad in zip(digests, pool.map(wrong, digests), strict=True) if bad]
