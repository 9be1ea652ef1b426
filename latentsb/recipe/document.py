"""A recipe: sections and parts, bound, with every default filled in.

Mistakes are told in this order. What is no YAML is told at once. Mistakes of sections (an unknown key of `train`, a
bridge that no room has) are told at once too, without importing torch, as long as nothing asks for the parts to be
looked at: no `imports` and no override inside a part. Otherwise everything is collected and told together.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentsb.errors import Problem, RecipeError, nearest
from latentsb.recipe.annotations import Wrong, check, found, plain, whole
from latentsb.recipe.binding import Binder, own_part, part_of
from latentsb.recipe.imports import Import, load_import
from latentsb.recipe.merge import override
from latentsb.recipe.nodes import Node, dump
from latentsb.recipe.part import Part
from latentsb.recipe.sections import Preview, Seed, Stage, TrainSettings
from latentsb.recipe.sources import Source, find, node_in_run, read, read_text
from latentsb.registry import REGISTRIES, files_of, rooms

__all__ = ["PARTS", "SECTIONS", "Recipe"]

# kind of part -> where its contract is. These modules import torch.
PARTS = {
    "data": ("latentsb.data.source", "Source"),
    "autoencoder": ("latentsb.autoencoder", "Autoencoder"),
    "bridge": ("latentsb.bridge", "Bridge"),
    "solver": ("latentsb.solvers.base", "Solver"),
}
STORE = ("latentsb.stores", "Store")
NO_DATA = "none"
DEFAULT_PARTS = {"autoencoder": "identity", "solver": "heun"}
SECTIONS = (
    "extends",
    "imports",
    "name",
    "about",
    "seed",
    "data",
    "held_out",
    "autoencoder",
    "latents",
    "bridge",
    "solver",
    "conditions",
    "train",
    "stages",
    "preview",
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TRAINED = re.compile(r"autoencoder|bridge(\.[a-z_][a-z0-9_]*)*")


@dataclass(frozen=True, eq=False)
class Recipe:
    """An experiment: what is trained on what, how, and how samples are made.

    Args:
        name: of the experiment; the file's name unless the recipe gives one.
        about: one line for `latentsb list recipes`.
        seed: of every random draw.
        data: where samples come from.
        autoencoder: between images and latents.
        bridge: the method.
        solver: how samples are made.
        train: settings that all stages share.
        conditions: which of the data's conditions (`label`, `attributes`) the bridge is given; none by default.
        stages: trainings in their order.
        preview: the picture that shows how training goes.
        latents: how the cache keeps them.
        held_out: samples of the data that are kept from training: how many (from 1 on), which share (below 1), or
            other data of the same form; None for none.
        imports: files and modules that were imported for it.
        hashes: sha256 of each import's source, by file or module name.
        text: the file as given.
        overrides: as given.
        places: where sections stand that are values of their own, for messages.
    """

    name: str
    about: str
    seed: int
    data: Part
    autoencoder: Part
    bridge: Part
    solver: Part
    conditions: tuple[str, ...]
    train: TrainSettings
    stages: tuple[Stage, ...]
    preview: Preview
    latents: Part
    held_out: float | Part | None = None
    imports: tuple[Path | str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    overrides: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, recipe: str | Path, overrides: Sequence[str] = (), imports: Iterable[str | Path] = ()) -> Recipe:
        """Read and bind a recipe.

        Args:
            recipe: a file, or the name of a shipped recipe.
            overrides: `key=value` and `~key`, in their order.
            imports: further files or modules, relative to the working directory.

        Raises:
            RecipeError: with every problem at once.
        """
        return _bind(read(find(recipe)), tuple(overrides), imports)

    @classmethod
    def parse(
        cls,
        text: str | bytes,
        overrides: Sequence[str] = (),
        imports: Iterable[str | Path] = (),
        *,
        label: str = "recipe",
        folder: Path | None = None,
    ) -> Recipe:
        """Bind a recipe that is given as text.

        Args:
            text: YAML.
            overrides: as for `load`.
            imports: as for `load`.
            label: the recipe's name, and the name of the text in messages.
            folder: what paths in the text are relative to; the working directory if None.

        Raises:
            RecipeError: with every problem at once.
        """
        return _bind(read_text(text, label, folder or Path(), label), tuple(overrides), imports)

    @property
    def parts(self) -> dict[str, Part]:
        """The four parts by section."""
        return {name: getattr(self, name) for name in PARTS}

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default, as JSON; `Recipe.load` of it gives an equal recipe."""
        return {
            "name": self.name,
            "about": self.about,
            "imports": [plain(target) for target in self.imports],
            "seed": self.seed,
            **({} if self.data.name == NO_DATA else {"data": self.data.plain()}),
            "held_out": plain(self.held_out.plain() if isinstance(self.held_out, Part) else self.held_out),
            **{name: part.plain() for name, part in self.parts.items() if name != "data"},
            "latents": self.latents.plain(),
            "conditions": list(self.conditions),
            "train": plain(self.train),
            "stages": [{"train": stage.train, **stage.changes} for stage in self.stages],
            "preview": plain(self.preview),
        }

    def resolved_text(self) -> str:
        """`resolved` as YAML."""
        return dump(self.resolved())

    @property
    def hash(self) -> str:
        """sha256 of everything that decides the result: not the name, nor where imported files lie."""
        return hashlib.sha256(json.dumps(self._essence(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Dotted keys in which two recipes differ, with both values; None stands for an absent key."""
        return dict(_differences("", self._essence(), other._essence()))

    def _essence(self) -> dict[str, Any]:
        keep = {name: value for name, value in self.resolved().items() if name not in ("name", "about")}
        return {**keep, "imports": dict(self.hashes)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.name == other.name and not self.differences(other)

    def __hash__(self) -> int:
        return hash((self.name, self.hash))


def _differences(key: str, ours: Any, theirs: Any) -> Iterable[tuple[str, tuple[Any, Any]]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.get("name") != theirs.get("name"):
            yield f"{key}.name", (ours.get("name"), theirs.get("name"))
            return
        for name in [*ours, *(n for n in theirs if n not in ours)]:
            inner = f"{key}.{name}" if key else name
            yield from _differences(inner, ours.get(name), theirs.get(name))
    elif ours != theirs or type(ours) is not type(theirs):
        yield key, (ours, theirs)


def _bind(source: Source, overrides: tuple[str, ...], more: Iterable[str | Path]) -> Recipe:
    binder = Binder(node_in_run)
    tree = source.tree
    assert isinstance(tree.value, dict)
    left_out = DEFAULT_PARTS.keys() - tree.value.keys()
    for text in overrides:
        try:
            tree = override(tree, [text])
        except RecipeError as error:
            binder.problems += error.problems
    imports = [*source.imports, *(Import.of(str(entry), Path(), f"--import {entry}") for entry in more)]
    assert isinstance(tree.value, dict)
    top = tree.value
    fixed = _sections(binder, top, tree.where, source.name)
    inside = (*PARTS, "held_out", "latents")
    inside_parts = any(text.removeprefix("~").partition("=")[0].split(".")[0] in inside for text in overrides)
    if not imports and not inside_parts:
        _unknown_words(binder, top)
        if binder.problems:
            early = _error(binder, overrides)
            early.add_note("The keys inside the parts are checked once these are right.")
            raise early
    hashes = _import_all(binder, imports)
    parts = _bind_parts(binder, top, left_out)
    if binder.problems:
        raise _error(binder, overrides)
    return Recipe(
        **(fixed | parts),
        imports=tuple(entry.target for entry in imports),
        hashes=hashes,
        text=source.text,
        overrides=overrides,
        places={"held_out": top["held_out"].place} if "held_out" in top else {},
    )


def _sections(binder: Binder, top: Mapping[str, Node], where: str, name: str) -> dict[str, Any]:
    for key, node in top.items():
        if key not in SECTIONS or key in ("extends", "imports"):
            hint = nearest(key, SECTIONS) or f" Sections: {', '.join(SECTIONS)}"
            fault = "cannot be given here" if key in SECTIONS else f"unknown section.{hint}"
            binder.tell(node.place, key, fault)
    for key in PARTS:
        if key == "data" and _target(top) is not None:
            continue
        close = any(f"'{key}'" in nearest(other, SECTIONS) for other in top if other not in SECTIONS)
        if key not in top and key not in DEFAULT_PARTS and not close:
            binder.tell(where, key, f"missing section; expected the name of a {key}, or a mapping with 'name'")
    train = binder.section(TrainSettings, top.get("train"), "train")
    return {
        "name": _value(binder, top, "name", str, name),
        "about": _value(binder, top, "about", str, ""),
        "seed": _value(binder, top, "seed", Seed, 0),
        "held_out": _share(binder, top.get("held_out")),
        "conditions": _value(binder, top, "conditions", tuple[str, ...], ()),
        "train": train,
        "stages": _stages(binder, top.get("stages"), train or TrainSettings()),
        "preview": binder.section(Preview, top.get("preview"), "preview"),
    }


def _value(binder: Binder, top: Mapping[str, Node], key: str, annotation: Any, default: Any) -> Any:
    if key not in top:
        return default
    try:
        value = check(annotation, top[key].plain())
    except Wrong as wrong:
        binder.tell(top[key].place, key, wrong.message)
        return default
    if key == "name" and not NAME.fullmatch(value):
        binder.tell(top[key].place, key, f"expected letters, digits, '.', '_' and '-' only, found {found(value)}")
    return value


def _stages(binder: Binder, node: Node | None, train: TrainSettings) -> tuple[Stage, ...]:
    if node is None:
        return (Stage("bridge", train),)
    if not isinstance(node.value, list) or not node.value:
        binder.tell(node.place, "stages", f"expected a list of stages, found {found(node.plain())}")
        return ()
    stages = (_stage(binder, item, f"stages.{i}", train) for i, item in enumerate(node.value))
    return tuple(stage for stage in stages if stage is not None)


def _stage(binder: Binder, node: Node, key: str, train: TrainSettings) -> Stage | None:
    if not isinstance(node.value, dict):
        binder.tell(node.place, key, f"expected a mapping such as {{train: bridge}}, found {found(node.plain())}")
        return None
    changes = dict(node.value)
    what = changes.pop("train", None)
    if what is None or not isinstance(what.value, str) or not TRAINED.fullmatch(what.value):
        shown = f", found {found(what.plain())}" if what is not None else ""
        message = f"expected 'autoencoder', 'bridge' or a part such as 'bridge.prior'{shown}"
        hint = nearest(str(what.value), ["autoencoder", "bridge"]) if what is not None else ""
        binder.tell((what or node).place, f"{key}.train", message + (f".{hint}" if hint else ""))
    settings = binder.section(TrainSettings, Node(changes, node.where, node.key), key, base=train)
    if settings is None or what is None:
        return None
    return Stage(str(what.value), settings, {name: plain(getattr(settings, name)) for name in changes})


def _unknown_words(binder: Binder, top: Mapping[str, Node]) -> None:
    """Names that no room has, found by listing files; kinds whose contract is imported already can know more."""
    for kind in ("autoencoder", "bridge"):
        if kind not in top or kind in REGISTRIES:
            continue
        node = top[kind]
        name = node.value.get("name") if isinstance(node.value, dict) else node
        known = sorted({word for room in rooms(kind) for word in files_of(room)})
        if name is not None and isinstance(name.value, str) and name.value not in known:
            hint = nearest(name.value, known)
            told = f"no {kind} is called '{name.value}'.{hint} Known: {', '.join(known)}"
            binder.tell(name.place, kind, f"{told} {own_part(kind)}")


def _import_all(binder: Binder, imports: Sequence[Import]) -> dict[str, str]:
    if imports:
        for module, _ in PARTS.values():  # a part that brings its base class along must find it whole
            importlib.import_module(module)
    hashes: dict[str, str] = {}
    for entry in imports:
        try:
            digest = load_import(entry)
            if hashes.setdefault(entry.label, digest) != digest:
                binder.tell(entry.where, "imports", f"another file is called {entry.label} too; rename one of them")
        except RecipeError as error:
            binder.problems += error.problems
    return hashes


def _bind_parts(binder: Binder, top: Mapping[str, Node], left_out: Set[str]) -> dict[str, Any]:
    """Bind the parts; an override inside one that the recipe leaves out is over its default."""
    parts: dict[str, Any] = {}
    for kind, (module, name) in PARTS.items():
        base = getattr(importlib.import_module(module), name)
        node = top.get(kind)
        if node is None:
            if kind not in DEFAULT_PARTS:
                continue
            node = Node(DEFAULT_PARTS[kind], f"default {kind}")
        default = part_of(REGISTRIES[kind][DEFAULT_PARTS[kind]], base, path=kind) if kind in left_out else None
        parts[kind] = binder.part(base, node, kind, default=default)
    store = getattr(importlib.import_module(STORE[0]), STORE[1])
    usual = part_of(REGISTRIES["store"]["auto"], store, path="latents")
    parts["latents"] = binder.part(store, top.get("latents", Node({}, "")), "latents", default=usual)
    if "data" not in top and parts.get("bridge") is not None:
        parts["data"] = _without_data(binder, parts["bridge"], _target(top))
    node = top.get("held_out")
    if node is not None and isinstance(node.value, (dict, str)):
        module, name = PARTS["data"]
        parts["held_out"] = binder.part(getattr(importlib.import_module(module), name), node, "held_out")
    return parts


def _target(top: Mapping[str, Node]) -> Node | None:
    """What stands under `bridge.target`: a density, beside which a recipe needs no data."""
    bridge = top.get("bridge")
    return bridge.value.get("target") if bridge is not None and isinstance(bridge.value, dict) else None


def _without_data(binder: Binder, bridge: Part, node: Node | None) -> Part | None:
    """The source without samples of the law that a bridge finds under `target`."""
    from latentsb.data.none import WithoutData
    from latentsb.laws import Law

    law = bridge.arguments.get("target")
    if isinstance(law, Part) and issubclass(law.cls, Law):
        return Part("data", NO_DATA, WithoutData, {"law": law}, key="data")
    where = node.place if node is not None else ""
    binder.tell(where, "data", "missing section; only a bridge whose target is a density needs no data")
    return None


def _share(binder: Binder, node: Node | None) -> float | None:
    """How many samples are held out, or which share of them; None where the recipe names data instead, or nothing."""
    if node is None or node.value is None or isinstance(node.value, (dict, str)):
        return None
    value = whole(node.value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and (0 < value < 1 or int(value) == value >= 1):
        return value
    kinds = "a number of samples >= 1, a share of them between 0 and 1, or data (its name, or a mapping with 'name')"
    none = "; to hold none out: ~held_out" if value == 0 else ""
    binder.tell(node.place, "held_out", f"expected {kinds}, found {found(node.plain())}{none}")
    return None


def _error(binder: Binder, overrides: Sequence[str]) -> RecipeError:
    """The problems in the order of the file, then of the overrides."""
    turns = {f"override '{text}'": i for i, text in enumerate(overrides)}

    def order(problem: Problem) -> tuple[int, str, int, int]:
        match = re.fullmatch(r"(.*):(\d+):(\d+)", problem.where)
        if match:
            return 0, match[1], int(match[2]), int(match[3])
        return 1, "", turns.get(problem.where, -1), 0

    return RecipeError(sorted(dict.fromkeys(binder.problems), key=order))
