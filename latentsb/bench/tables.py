"""What a bench prints and keeps: rows of figures over seeds, with standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Column", "Row", "contents", "over_seeds"]


@dataclass(frozen=True)
class Column:
    """A figure as it is shown.

    Args:
        head: of the column.
        key: of the figure.
        scale: that it is multiplied by.
    """

    head: str
    key: str
    scale: float = 1.0

    def cell(self, row: Row) -> str:
        """The mean with its standard error, such as `1.34±0.1`; a note or nothing where the row has no such figure."""
        if self.key not in row.figures:
            return row.notes.get(self.key, "")
        mean, error = row.mean(self.key) * self.scale, row.error(self.key)
        if abs(mean) >= 1000:
            return f"{mean:,.0f}" + ("" if not error else f"±{error * abs(self.scale):,.0f}")
        if error is None:
            return f"{mean:.3g}" if row.seeds else f"{mean:.5g}"  # what has no seeds is exact
        return f"{mean:.3g}±{error * abs(self.scale):.1g}" if error > 0 else f"{mean:.3g}"


@dataclass(frozen=True)
class Row:
    """The figures of a method, or of a floor, on one problem.

    Args:
        case: the problem.
        name: of the method or the floor.
        seeds: behind the figures; empty for what has none, an expectation for example.
        figures: one number for each seed, by name; one alone where there are no seeds.
        errors: standard errors of figures that know theirs from a single seed.
        notes: words that stand in place of figures.
    """

    case: str
    name: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Sequence[float]]
    errors: Mapping[str, float] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def mean(self, key: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.figures[key])

    def error(self, key: str) -> float | None:
        """Standard error of the mean over seeds; a single seed's own where it knows one."""
        values = self.figures[key]
        if len(values) > 1:
            return statistics.stdev(values) / math.sqrt(len(values))
        return (self.errors or {}).get(key)

    def json(self) -> dict[str, Any]:
        """Everything, for files."""
        told = {
            key: {"mean": self.mean(key), "standard_error": self.error(key), "values": list(values)}
            for key, values in self.figures.items()
        }
        found = {"case": self.case, "name": self.name, "seeds": list(self.seeds), "figures": told}
        return found | ({"notes": dict(self.notes)} if self.notes else {})


def over_seeds(case: str, name: str, found: Mapping[int, Mapping[str, float | None]]) -> Row:
    """One row from the figures of each seed; a figure that a seed lacks is left out."""
    seeds = tuple(found)
    keys = [key for key in found[seeds[0]] if all(found[seed].get(key) is not None for seed in seeds)]
    values = {key: [float(found[seed][key] or 0.0) for seed in seeds] for key in keys if not key.endswith(" ±")}
    own = {key.removesuffix(" ±"): float(found[seeds[0]][key] or 0.0) for key in keys if key.endswith(" ±")}
    return Row(case, name, seeds, values, own if len(seeds) == 1 else None)


def contents(about: str, protocol: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """The JSON of a bench."""
    from latentsb.environment import environment

    told = environment()
    return {"about": about, "protocol": dict(protocol), "environment": told, "rows": [row.json() for row in rows]}
