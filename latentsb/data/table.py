"""Labels and attributes of images, from a CSV file with a row for each."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from latentsb.data.scan import content
from latentsb.errors import DataError, nearest

__all__ = ["Table", "class_names"]

KEY = "key"
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
    """A CSV file (UTF-8, with a head) whose column `key` names samples; it is read when it is first used.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """Rows by key.

        Raises:
            DataError: if the file cannot be read, has no column `key`, a key twice or a row of another length.
        """
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream, strict=True)
                if KEY not in (reader.fieldnames or ()):
                    raise DataError(
                        f"{self.path}: has no column '{KEY}'; it has: {', '.join(reader.fieldnames or ()) or 'nothing'}"
                    )
                rows: dict[str, dict[str, str]] = {}
                for row in reader:
                    if None in row or None in row.values():
                        raise DataError(f"{self.path}: line {reader.line_num} has another length than the head")
                    if row[KEY] in rows:
                        raise DataError(f"{self.path}: line {reader.line_num} has the key '{row[KEY]}' again")
                    rows[row[KEY]] = row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}: cannot be read as a table ({error})") from error
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
        known = [column for column in next(iter(rows.values()), {}) if column != KEY]
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
