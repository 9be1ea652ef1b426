"""Labels and attributes of images, from a CSV or Parquet file with a row for each."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from latentsb.data.scan import content
from latentsb.errors import DataError, nearest

__all__ = ["Table", "class_names"]

KEY, FILE = "key", "file_name"
"""Columns that name samples: by their key, or (as image folders of the Hugging Face Hub have it) by their file."""
PARQUET = (".parquet", ".pq")
LARGEST = float(np.finfo(np.float32).max)


def class_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one on each line, in the order of their numbers.

    Raises:
        DataError: if the file cannot be read, is empty or names a class twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: names of classes cannot be read ({error})") from error
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        raise DataError(f"{path}: " + (f"names '{twice}' twice" if names else "names no class"))
    return names


class Table:
    """A table whose column `key` names samples (or `file_name`, with an ending); it is read when it is first used.

    Args:
        path: of a Parquet file (`.parquet`, which needs pyarrow), else of a CSV file (UTF-8, with a head).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """Rows by key.

        Raises:
            DataError: if the file cannot be read, has no column of keys, a key twice or a row of another length.
        """
        found = _parquet(self.path) if self.path.suffix.lower() in PARQUET else _csv(self.path)
        rows: dict[str, dict[str, str]] = {}
        for place, row in found:
            key = row[KEY] if KEY in row else str(PurePosixPath(row[FILE] or "-").with_suffix(""))
            if key in rows:
                raise DataError(f"{self.path}: {place} has the key '{key}' again")
            rows[key] = row
        return rows

    def digest(self) -> str:
        """sha256 of the file."""
        return content(self.path)

    def column(self, name: str, keys: Sequence[str] | None = None) -> list[str]:
        """Cells of a column, of all rows or of these keys.

        Raises:
            DataError: if there is no such column or key; names it.
        """
        rows = self.rows
        known = [column for column in next(iter(rows.values()), {}) if column not in (KEY, FILE)]
        if name not in known:
            raise DataError(f"{self.path}: has no column '{name}'.{nearest(name, known)} It has: {', '.join(known)}")
        if keys is None:
            return [row[name].strip() for row in rows.values()]
        absent = [key for key in keys if key not in rows]
        if absent:
            raise DataError(
                f"{self.path}: has no row for {len(absent):,} of {len(keys):,} samples, such as '{absent[0]}'"
            )
        found = [rows[key][name].strip() for key in keys]
        empty = [key for key, cell in zip(keys, found, strict=True) if not cell]
        if empty:
            raise DataError(
                f"{self.path}: '{name}' is empty for {len(empty):,} of {len(keys):,} samples, such as '{empty[0]}'; "
                "fill the cells in"
            )
        return found

    def classes(self, name: str) -> tuple[str, ...]:
        """Classes of a column: 0 to the largest where every cell is a whole number, else its words in their order.

        They are those of the whole table, so that data of which it tells more than one part are numbered alike.
        """
        cells = {cell for cell in self.column(name) if cell}
        if not cells:
            raise DataError(f"{self.path}: '{name}' is empty")
        if all(cell.isascii() and cell.isdigit() and len(cell) < 8 for cell in cells):
            return tuple(map(str, range(max(map(int, cells)) + 1)))
        return tuple(sorted(cells))

    def attributes(self, names: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Numbers of columns, float32 of shape (N, A).

        Raises:
            DataError: if a cell is no finite number; names it.
        """
        return np.stack([self._numbers(name, keys) for name in names], axis=1)

    def _numbers(self, name: str, keys: Sequence[str]) -> np.ndarray:
        values = np.empty(len(keys), dtype=np.float32)
        for k, (key, cell) in enumerate(zip(keys, self.column(name, keys), strict=True)):
            try:
                number = float(cell)
            except ValueError:
                number = math.nan
            if not abs(number) <= LARGEST:
                raise DataError(f"{self.path}: '{name}' of '{key}' is '{cell}', expected a number")
            values[k] = number
        return values


def _csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file, each with its place."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_key(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}: line {reader.line_num} has another length than the head")
                yield f"line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a Parquet file as text, without columns that are neither numbers nor text; absent values are empty."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow: pip install 'latentsb[data]'; CSV needs nothing more"
        ) from error
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    texts = {name: _texts(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    columns = {name: cells for name, cells in texts.items() if cells is not None}
    _check_key(path, list(columns))
    for place, row in enumerate(zip(*columns.values(), strict=True), 1):
        yield f"row {place}", dict(zip(columns, row, strict=True))


def _texts(column: Any) -> list[str] | None:
    """Cells of an Arrow column as text; None of one that is neither numbers nor text."""
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        return [cell or "" for cell in column.cast(pa.string()).to_pylist()]
    except pa.ArrowException:
        return None


def _check_key(path: Path, names: Sequence[str]) -> None:
    if KEY not in names and FILE not in names:
        raise DataError(f"{path}: has no column '{KEY}'; it has: {', '.join(names) or 'nothing'}")
