"""Figures of several runs side by side: those of equal protocol, and what keeps the others apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentsb.errors import ArgumentError, Error, nearest
from latentsb.run import Run

__all__ = ["SURE", "Compared", "Comparison", "Line", "Trained", "compare"]

SURE = 2.0
"""Standard errors of a difference beyond which one of two figures is called better."""
WAYS = ("step", "weights", "solver", "seed", "metric")
"""Facts of a figure that its stamp does not know: what is compared, or how it was come by."""


@dataclass(frozen=True)
class Trained:
    """What a run is, and what it cost.

    Args:
        name: of its folder; its path where two have the same name.
        bridge: its word.
        numbers: weights of the bridge, buffers among them; None where there is no checkpoint.
        images: seen in all stages.
        seconds: of training.
        step: of the newest checkpoint.
    """

    name: str
    bridge: str
    numbers: int | None
    images: int | None
    seconds: float | None
    step: int | None


@dataclass(frozen=True)
class Line:
    """One figure of several runs.

    Args:
        name: what it is the figure of.
        values: one for each column; None where it does not apply.
        errors: standard error of each, where it is known.
        better: `lower`, `higher`, or nothing.
        best: column of the best; None where no value is better than each other one by more than two standard errors
            of their difference, taken as independent.
    """

    name: str
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    better: str
    best: int | None


@dataclass(frozen=True)
class Compared:
    """Figures of one metric and one protocol.

    Args:
        metric: its word.
        stamp: that all of them bear.
        protocol: of all of them.
        columns: names of the runs; what tells two figures of the same run apart stands behind.
        lines: figures that differ.
        same: numbers that are equal in all columns: floors, counts.
    """

    metric: str
    stamp: str
    protocol: Mapping[str, Any]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    same: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Several runs.

    Args:
        runs: what they are.
        tables: what may be compared.
        apart: what may not, and why, a line each.
    """

    runs: tuple[Trained, ...]
    tables: tuple[Compared, ...]
    apart: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """All of it, JSON values."""
        return {"sure_beyond_standard_errors": SURE, **asdict(self)}


def compare(folders: Sequence[Path], metrics: Sequence[str] | None = None) -> Comparison:
    """Hold the figures of runs side by side.

    Figures are read from `evaluations/` of each run, of each protocol those of the newest step. Two figures stand in
    one table only if their stamps are equal.

    Args:
        folders: of the runs, at least two.
        metrics: words; all if None.

    Raises:
        ArgumentError: for fewer than two runs, the same run twice, or a metric that none of them has figures of.
        CheckpointError: if one is no run.
    """
    if len(folders) < 2:
        raise ArgumentError("run", f"found {len(folders)}, expected at least two to compare")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ArgumentError("run", "the same run is named twice")
    runs = [Run.open(folder) for folder in folders]
    short = [run.path.name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run.path) for run in runs]
    found = {name: _figures(run.path) for name, run in zip(names, runs, strict=True)}
    known = list(dict.fromkeys(word for figures in found.values() for word in figures))
    for word in metrics or ():
        if word not in known:
            message = f"no run has figures of '{word}'.{nearest(word, known)} Figures: {', '.join(known) or 'none'}"
            raise ArgumentError("metrics", message)
    tables: list[Compared] = []
    apart: list[str] = []
    for word in metrics or sorted(known):
        made, told = _of_metric(word, {name: figures.get(word, []) for name, figures in found.items()})
        tables += made
        apart += told
    trained = tuple(_trained(name, run) for name, run in zip(names, runs, strict=True))
    return Comparison(trained, tuple(tables), tuple(apart))


def _trained(name: str, run: Run) -> Trained:
    """What its checkpoint and its log say."""
    stages: dict[str, int] = {}
    seconds = None
    for record in run.records():
        if "images" in record:
            stages[str(record.get("stage", ""))] = int(record["images"])
        seconds = record.get("seconds", seconds)
    numbers = step = None
    try:
        checkpoint = run.checkpoint()
        step = checkpoint.step
        values = checkpoint.tensors("model")
        numbers = sum(v.numel() for key, v in values.items() if key.startswith("bridge.") and v.is_floating_point())
    except Error:  # figures may outlive the weights
        pass
    return Trained(name, run.recipe.bridge.name, numbers, sum(stages.values()) if stages else None, seconds, step)


def _figures(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Stored figures by metric; of those that differ in nothing but their step the newest."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "evaluations").glob("*.json")):
        try:
            facts = json.loads(path.read_text())
            key = json.dumps([facts["stamp"], *(facts.get(way) for way in WAYS[1:])], sort_keys=True)
            facts["metric"]["name"]
        except (ValueError, KeyError, TypeError):
            continue  # no figure
        if key not in newest or newest[key].get("step", 0) <= facts.get("step", 0):
            newest[key] = facts
    found: dict[str, list[dict[str, Any]]] = {}
    for facts in newest.values():
        found.setdefault(str(facts["metric"]["name"]), []).append(facts)
    return found


def _of_metric(word: str, found: Mapping[str, list[dict[str, Any]]]) -> tuple[list[Compared], list[str]]:
    """Tables of one metric, the one that most runs have first, and what keeps the other runs out of that."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, figures in found.items():
        for facts in figures:
            groups.setdefault(facts["stamp"], {}).setdefault(name, []).append(facts)
    order = sorted(groups, key=lambda known: -len(groups[known]))
    tables = [_table(word, known, groups[known]) for known in order if len(groups[known]) > 1]
    first = groups[order[0]]
    name, (reference, *_) = next(iter(first.items()))
    told = []
    for other, figures in found.items():
        if other in first:
            continue
        if not figures:
            told.append(f"{word}: {other} has no such figure; latentsb evaluate {other} --metrics {word}")
            continue
        differing = min((_differences(facts, reference) for facts in figures), key=len)
        told.append(f"{word}: {other} is of another protocol than {name}: {'; '.join(differing)}")
    return tables, told


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Each choice in which two protocols differ, with both values."""
    one, other = _flat(ours.get("protocol", {})), _flat(theirs.get("protocol", {}))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    told = [f"{key} is {_shown(one.get(key))}, not {_shown(other.get(key))}" for key in keys]
    if ours.get("data") != theirs.get("data"):
        told.append("the data are others")
    return told or ["it was measured by another version"]


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _flat(tree: Any, head: str = "") -> dict[str, Any]:
    """A tree of mappings as one, with dotted keys."""
    if not isinstance(tree, Mapping):
        return {head: tree}
    return {k: v for key, inner in tree.items() for k, v in _flat(inner, f"{head}.{key}" if head else key).items()}


def _table(word: str, known: str, group: Mapping[str, list[dict[str, Any]]]) -> Compared:
    """Columns of a table: each figure of each run."""
    columns: list[str] = []
    cells: list[dict[str, tuple[float | None, float | None, str]]] = []
    for name, figures in group.items():
        ways = [_flat({way: facts.get(way) for way in WAYS}) for facts in figures]
        keys = [
            key for key in dict.fromkeys(k for way in ways for k in way) if len({str(w.get(key)) for w in ways}) > 1
        ]
        for facts, way in zip(figures, ways, strict=True):
            told = ", ".join(f"{key.removeprefix('metric.')}: {_shown(way.get(key))}" for key in keys)
            columns.append(f"{name} ({told})" if told else name)
            cells.append(_cells(facts))
    lines: list[Line] = []
    same: dict[str, float] = {}
    first = next(iter(group.values()))[0]
    for row in [row for row in cells[0] if all(row in held for held in cells)]:
        values = tuple(held[row][0] for held in cells)
        errors = tuple(held[row][1] for held in cells)
        better = cells[0][row][2]
        if len(set(values)) == 1:
            same |= {} if values[0] is None else {row: values[0]}
        elif not any(line.values == values for line in lines):  # the figure itself stands in its table too
            lines.append(Line(row, values, errors, better, best(values, errors, better)))
    return Compared(word, known, first.get("protocol", {}), tuple(columns), tuple(lines), same)


def _cells(facts: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None, str]]:
    """Every number of a figure by name: value, standard error, and which is better."""
    found = {
        str(facts.get("of", "value")): (_number(facts["value"]), _number(facts.get("error")), facts.get("better", ""))
    }
    for table in facts.get("tables", ()):
        heads, better = table["columns"][1:], table.get("better", {})
        for row, values in table["rows"]:
            for k, (head, value) in enumerate(zip(heads, values, strict=False)):
                if head.startswith("±") or isinstance(value, str):
                    continue
                follows = k + 1 < len(values) and heads[k + 1].startswith("±")
                error = _number(values[k + 1]) if follows else None
                found.setdefault(f"{row}: {head}", (_number(value), error, better.get(head, "")))
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def best(values: Sequence[float | None], errors: Sequence[float | None], better: str) -> int | None:
    """Which value is better than each other one by more than `SURE` standard errors of their difference.

    Args:
        values: None where one does not apply.
        errors: of each; where one is not known nothing is called best.
        better: `lower`, `higher`, or nothing.
    """
    known = [k for k, value in enumerate(values) if value is not None]
    if better not in ("lower", "higher") or len(known) < 2 or any(errors[k] is None for k in known):
        return None
    sign = 1 if better == "higher" else -1
    top = max(known, key=lambda k: sign * (values[k] or 0.0))

    def beaten(k: int) -> bool:
        gap = abs((values[top] or 0.0) - (values[k] or 0.0))
        return gap > SURE * math.hypot(errors[top] or 0.0, errors[k] or 0.0)

    return top if all(beaten(k) for k in known if k != top) else None
