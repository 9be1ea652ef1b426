"""What codes are asked for: labels, attributes and factors of samples, and columns of a table that lies beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from latentsb.data.source import Factor
from latentsb.data.table import Table
from latentsb.errors import CapabilityError, DataError
from latentsb.metrics.base import Data

__all__ = ["CLASSES", "Target", "split_rows", "targets_of"]

CLASSES = 100
"""More classes than this are no target: they name individuals."""


@dataclass(frozen=True)
class Target:
    """What is known of some samples under one name.

    Args:
        name: as it is shown.
        values: numbers, or class numbers, float64 of shape (N,); NaN where nothing is known.
        classes: how many classes; 0 for a number.
        words: of the classes, where they have any.
    """

    name: str
    values: np.ndarray
    classes: int = 0
    words: tuple[str, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """Samples of which it is known, bool of shape (N,)."""
        found: np.ndarray = ~np.isnan(self.values)
        return found

    def part(self, rows: slice) -> Target:
        """The same of some samples."""
        return replace(self, values=self.values[rows])


def split_rows(train: Data, held: Data | None, fitted_on: int, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit to, of the training data, and rows to test on, which are others in any case.

    The latter are of the held-out data, or, where nothing is held out, of what the encoder was trained on.

    Raises:
        CapabilityError: if there are fewer than ten of either.
    """
    if held is not None:
        fitted = train.rows(fitted_on, seed, "fitted probes")
        tested = held.rows(images, seed, "tested codes")
    else:
        rows = np.random.default_rng(seed).permutation(train.rows(fitted_on + images, seed, "fitted probes"))
        cut = round(len(rows) * images / (fitted_on + images))
        tested, fitted = np.sort(rows[:cut]), np.sort(rows[cut:])
    if min(len(fitted), len(tested)) < 10:
        raise CapabilityError(
            f"codes are fitted to {len(fitted)} samples and tested on {len(tested)}; ten are the least"
        )
    return fitted, tested


def targets_of(
    parts: Sequence[tuple[Data, np.ndarray]], table: Path | None = None, columns: Sequence[str] = (), batch: int = 256
) -> list[Target]:
    """All targets of rows of several data, put behind each other.

    A number of two values is a class, and so are names without an order. A label of more than `CLASSES` classes is left
    out.

    Args:
        parts: data of one form, and rows of each.
        table: CSV file with a column `key`, the names of the samples; empty cells are unknown.
        columns: of the table.
        batch: rows that are read at a time.

    Raises:
        CapabilityError: if there is no target, or the samples have no names to be found by in the table.
        DataError: if the table lacks a column or a sample.
    """
    known: dict[str, list[torch.Tensor]] = {}
    for data, rows in parts:
        wanted = {"label", "attributes"} & data.source.cond.keys()
        for first in range(0, len(rows), batch) if wanted else ():
            cond = data.source.read(rows[first : first + batch]).cond
            for name in wanted:
                known.setdefault(name, []).append(cond[name])
    source, found = parts[0][0].source, []
    if "label" in known:
        label = torch.cat(known["label"]).numpy()
        classes = source.cond["label"].classes or int(label.max()) + 1
        if 2 <= classes <= CLASSES:
            found.append(Target("label", label.astype(np.float64), classes, source.words("label")))
    if "attributes" in known:
        values = torch.cat(known["attributes"]).double()
        names = source.words("attributes") or tuple(f"attribute {k}" for k in range(values.shape[1]))
        factors = {factor.name: factor for factor in source.factors}
        found += [_target(name, values[:, k], factors.get(name)) for k, name in enumerate(names)]
    if table is not None:
        found += [_column(Table(table), name, parts) for name in columns]
    found = [target for target in found if target.classes != 1]
    if not found:
        raise CapabilityError(
            f"these data have no attributes, and no label of at most {CLASSES} classes; name a table and its columns"
        )
    return found


def _target(name: str, column: torch.Tensor, factor: Factor | None) -> Target:
    if factor is not None and factor.categorical:
        return Target(name, factor.classes(column).double().numpy(), len(factor.values))
    return _number(name, column.numpy())


def _number(name: str, values: np.ndarray) -> Target:
    """A number, or a class where it takes two values; one that never changes has one class."""
    distinct = np.unique(values[~np.isnan(values)])
    if len(distinct) > 2:
        return Target(name, values)
    classes = np.where(np.isnan(values), np.nan, values == distinct[-1]) if len(distinct) else values
    return Target(name, classes.astype(np.float64), max(len(distinct), 1), tuple(f"{v:g}" for v in distinct))


def _column(table: Table, name: str, parts: Sequence[tuple[Data, np.ndarray]]) -> Target:
    words = table.column(name)  # of all rows: names the column if there is none
    cells: list[str] = []
    for data, rows in parts:
        keys = data.source.names()
        if keys is None:
            raise CapabilityError(f"samples of the {data.name} have no names, by which a table tells of them")
        absent = next((keys[row] for row in rows if keys[row] not in table.rows), None)
        if absent is not None:
            raise DataError(f"{table.path}: has no row for '{absent}'")
        cells += [table.rows[keys[row]][name].strip() for row in rows]
    try:
        if all(math.isfinite(float(cell)) for cell in words if cell):
            return _number(name, np.array([float(cell) if cell else np.nan for cell in cells]))
    except ValueError:  # they are words
        pass
    known = sorted({cell for cell in words if cell})
    place: dict[str, float] = {word: float(k) for k, word in enumerate(known)}
    return Target(name, np.array([place.get(cell, np.nan) for cell in cells]), len(known), tuple(known))
