"""What a run keeps of its data: enough to be used without them, and to say what has changed.

Beside its recipe a run folder holds `data.json` (the form of the samples, the place and identity of the data),
`files.csv` (sha256 of each file, where the data are files) and `unreadable.csv` (files that were left out).
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.data.patterns import matches
from latentsb.data.pixels import PixelRule
from latentsb.data.source import Items, Source
from latentsb.data.subset import whole
from latentsb.disk import write_text
from latentsb.errors import CheckpointError, DataError
from latentsb.randomness import Draws
from latentsb.recipe import Part, Recipe
from latentsb.tensors import Spec

__all__ = ["Recorded", "keep", "left_out", "same_data", "same_files", "source_of"]

RECORD, FILES, UNREADABLE = "data.json", "files.csv", "unreadable.csv"
HELD = "held_out"
CHECKSUM = re.compile("[0-9a-f]{64}")
TOLD = 3
"""Files that a message names."""
log = logging.getLogger(__name__)


def keep(folder: Path, recipe: Recipe, source: Source, held: Source | None = None) -> None:
    """Write what a run keeps of its data, and warn of files that are left out.

    Args:
        folder: of the run.
        recipe: which says where the data come from.
        source: what is trained on.
        held: what is held out.

    Raises:
        DiskError: if it cannot be written.
    """
    other = _other(source, held)
    content = _record(whole(source), recipe.data)
    if other is not None and isinstance(recipe.held_out, Part):
        content[HELD] = _record(other, recipe.held_out)
    write_text(folder / RECORD, json.dumps(content, indent=1) + "\n")
    for name, head, rows in (
        (FILES, ("path", "sha256"), _both(source.contents(), {} if other is None else other.contents())),
        (UNREADABLE, ("path", "reason"), _both(source.problems(), {} if other is None else other.problems())),
    ):
        if rows:
            write_text(folder / name, _table(head, rows))
        else:
            (folder / name).unlink(missing_ok=True)
    for told in filter(None, (left_out(data) for data in (source, other) if data is not None)):
        log.warning("%s; list: %s", told, folder / UNREADABLE)


def _other(source: Source, held: Source | None) -> Source | None:
    """Held-out data that are no part of the data of which others are trained on."""
    return None if held is None or whole(held) is whole(source) else held


def _record(source: Source, data: Part) -> dict[str, Any]:
    paths = {path.as_posix(): str(path.resolve()) for path in _paths(data)}
    return {**_form(source), "identity": source.fingerprint(), "paths": paths}


def _both(ours: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Files of the data, and of held-out data that are no part of them below `held_out/`."""
    return {**ours, **{f"{HELD}/{name}": value for name, value in other.items()}}


def left_out(source: Source) -> str:
    """How many files are left out, and the first with its reason; empty where none is."""
    problems = source.problems()
    if not problems:
        return ""
    everything = whole(source)
    total = len(problems) + len(everything) + everything.partners
    path, why = next(iter(problems.items()))
    return f"{len(problems):,} of {total:,} images cannot be read and are left out; first: {path} ({why})"


def same_files(folder: Path, source: Source, held: Source | None = None) -> None:
    """Compare the files of the data with those that a run has kept, if it has.

    Args:
        folder: of the run.
        source: what is trained on.
        held: what is held out.

    Raises:
        CheckpointError: if they differ; tells how many were added, removed and changed, and the first of each.
    """
    if not (folder / FILES).is_file():
        return
    other = _other(source, held)
    told = _changes(_listed(folder), _both(source.contents(), {} if other is None else other.contents()))
    if told:
        raise CheckpointError(
            f"{folder} was trained on other data: {told}; put them back, or give another run folder: -o"
        )


def _listed(folder: Path) -> dict[str, str]:
    """sha256 of each file that the run was trained on."""
    with (folder / FILES).open(newline="", encoding="utf-8") as stream:
        return {row["path"]: row["sha256"] for row in csv.DictReader(stream)}


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How many files were added, removed and changed, and the first of each; empty where none was."""
    changes = {
        "added": [name for name in now if name not in then],
        "removed": [name for name in then if name not in now],
        "changed": [name for name in now if then.get(name, now[name]) != now[name]],
    }
    told = "; ".join(f"{len(names):,} {word} ({_few(names)})" for word, names in changes.items() if names)
    return told and f"{len(then):,} files then, {len(now):,} now; {told}"


def same_data(checkpoint: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the identities of the data that a checkpoint was trained on and of those that are there.

    Raises:
        CheckpointError: naming what differs.
    """
    if told := _differences(then, now):
        raise CheckpointError(f"{checkpoint} was trained on other data ({told})")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities; empty where nothing does."""
    differing = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
    return "; ".join(_change(k, then.get(k), now.get(k)) for k in differing)


def source_of(folder: Path, data: Part, *, held: bool = False) -> Source:
    """The data of a run: from where the recipe says, else from where they lay when training began.

    Args:
        folder: of the run.
        data: as its recipe says it.
        held: they are held-out data that are no part of what is trained on.

    Returns:
        The data, whose samples are given only if they are those of the training.

    Raises:
        DataError: if the data are gone and the run has kept nothing of them.
    """
    try:
        whole_record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        record = whole_record[HELD] if held else whole_record
        recorded = Recorded(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none: training has not begun
        built: Source = data.build()
        built.require()
        return built
    try:
        found: Source = _moved(data, record["paths"]).build()
        found.require()
        if _form(found, counts=False) == _form(recorded, counts=False):
            return Recorded(record, found, partial(_own_files, folder, HELD in whole_record, held))
        recorded.why = "the data have another form than when the run was trained"
    except DataError as error:
        recorded.why = str(error)
    return recorded


def _own_files(folder: Path, both: bool, held: bool) -> dict[str, str]:
    """sha256 of the files of the data alone, or of the held-out data alone, where a run has kept both."""
    listed = _listed(folder) if (folder / FILES).is_file() else {}
    if not both:
        return listed
    head = f"{HELD}/"
    return {k.removeprefix(head) if held else k: v for k, v in listed.items() if k.startswith(head) == held}


class Recorded(Source):
    """The data of a run by what it has kept of them: form, number and identity; samples only if they are the same.

    Args:
        record: content of `data.json`.
        found: data of the same form that lie where they should; None if there are none.
        files: sha256 of each file of the data then, where they were files.

    Attributes:
        why: the data cannot be used.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        found: Source | None = None,
        files: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.spec = _spec(record["spec"])
        self.cond = {name: _spec(value) for name, value in record["cond"].items()}
        self.variants, self.two_sided, self.paired = record["variants"], record["two_sided"], record["paired"]
        self.samples, self.others = int(record["samples"]), int(record["partners"])
        self.rule = None if record["image_rule"] is None else PixelRule(**record["image_rule"])
        self.identity = dict(record["identity"])
        self.found, self.files, self.why = found, files, "the data are gone"
        if found is not None:
            self.x0, self.x1, self.factors = found.x0, found.x1, found.factors
            self.pretraining = found.pretraining

    def __len__(self) -> int:
        return self.samples

    @property
    def partners(self) -> int:
        """How many x1 there were."""
        return self.others

    @cached_property
    def same(self) -> Source:
        """The data, which are compared with those of the training when they are first used.

        Raises:
            DataError: if they are gone, or others; names what is missing or differs.
        """
        if self.found is None:
            raise DataError(f"this needs the data that the run was trained on: {self.why}")
        now = json.loads(json.dumps(self.found.fingerprint()))
        if differing := _differences(self.identity, now):
            told = _changes(self.files(), self.found.contents()) if self.files() else ""
            raise DataError(
                f"this needs the data that the run was trained on, and they have changed: {told or differing}; "
                "put them back, or train another run on what is there now"
            )
        return self.found

    def names(self) -> list[str] | None:
        """Those of the data."""
        return self.same.names()

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the data, if they are the same."""
        return self.same.words(name)

    def contents(self) -> Mapping[str, str]:
        """sha256 of each file then."""
        return self.files()

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read samples of the data, if they are the same."""
        return self.same.read(index, variant)

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """Draw samples of the data, if they are the same."""
        return self.same.draw(index, variant, draws)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Draw other ends of the data, if they are the same."""
        return self.same.draw_x1(index, variant, draws)

    def image_rule(self) -> PixelRule:
        """That of the data."""
        return super().image_rule() if self.rule is None else self.rule

    def fingerprint(self) -> dict[str, Any]:
        """That of the data then, by which latents that were encoded from them are known."""
        return self.identity


def _form(source: Source, *, counts: bool = True) -> dict[str, Any]:
    """What is known of data without their samples, JSON values."""
    try:
        rule = asdict(source.image_rule())
    except DataError:  # no images
        rule = None
    numbers = {"samples": len(source), "partners": source.partners} if counts else {}
    return {
        "spec": _plain(source.spec),
        "cond": {name: _plain(spec) for name, spec in source.cond.items()},
        "variants": source.variants,
        "two_sided": source.two_sided,
        "paired": source.paired,
        "image_rule": rule,
        **numbers,
    }


def _plain(spec: Spec) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch."), "classes": spec.classes}


def _spec(value: Mapping[str, Any]) -> Spec:
    return Spec(tuple(value["shape"]), getattr(torch, value["dtype"]), value["classes"])


def _paths(data: Part) -> Iterator[Path]:
    values = (value for part in data.walk() for value in part.arguments.values())
    listed = (item for value in values for item in (value if isinstance(value, tuple) else (value,)))
    return (item for item in listed if isinstance(item, Path))


def _moved(data: Part, paths: Mapping[str, str]) -> Part:
    """The part with each path that is absent here replaced by where it lay when training began."""

    def moved(value: Any) -> Any:
        if isinstance(value, Part):
            return _moved(value, paths)
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        if isinstance(value, Path) and not _there(value) and _there(then := Path(paths.get(value.as_posix(), value))):
            return then
        return value

    return replace(data, arguments={name: moved(value) for name, value in data.arguments.items()})


def _there(path: Path) -> bool:
    """Whether a path, or a pattern of paths, names anything."""
    return path.exists() or bool(matches(path))


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows.items()])
    return text.getvalue()


def _change(key: str, then: Any, now: Any) -> str:
    """What has changed; checksums themselves say nothing to a reader."""
    if all(isinstance(value, str) and CHECKSUM.fullmatch(value) for value in (then, now)):
        return f"{key}: their content has changed"
    return f"{key}: {then!r} then, {now!r} now"


def _few(names: list[str]) -> str:
    return ", ".join(names[:TOLD]) + (", …" if len(names) > TOLD else "")
