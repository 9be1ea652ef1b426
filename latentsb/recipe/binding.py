"""Nodes to sections and parts: a constructor's own keyword-only signature is the schema.

Every mistake is collected with its place; binding goes on with the other keys.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from latentsb.errors import ArgumentError, Problem, RecipeError, nearest
from latentsb.recipe.annotations import Wrong, bare, check, expected, found, holds_part, members, plain, slot_of
from latentsb.recipe.nodes import Node
from latentsb.recipe.part import FromRun, Part
from latentsb.registry import Registry, UnknownPartError, registry_of

__all__ = ["MISSING", "Binder", "Key", "keys_of", "own_part", "part_of"]

S = TypeVar("S", bound=BaseModel)
MISSING: Any = inspect.Parameter.empty
RUN_KEYS = ("run", "part", "weights")
ORIGIN = "from"  # holds these keys where a part's own keys stand beside them; a word that no argument can have


@dataclass(frozen=True)
class Key:
    """One key that a section or a part understands.

    Args:
        annotation: with its range.
        default: or `MISSING`.
        about: one line of documentation.
    """

    annotation: Any
    default: Any = MISSING
    about: str = ""


def keys_of(cls: type[Any]) -> dict[str, Key]:
    """The recipe's keys of a class: the fields of a section, the keyword-only parameters of a part."""
    if issubclass(cls, BaseModel):
        return {
            name: Key(
                Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation,
                MISSING if info.is_required() else info.get_default(),
                info.description or "",
            )
            for name, info in cls.model_fields.items()
        }
    hints = get_type_hints(cls if is_dataclass(cls) else cls.__init__, include_extras=True)
    return {
        name: Key(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def part_of(value: Any, base: type[Any], deferred: bool = False, path: str = "") -> Any:
    """The part that a default stands for: an instance of a frozen dataclass, or `partial(cls, key=value)`."""
    registry = registry_of(base)
    assert registry is not None
    if isinstance(value, partial):
        cls, given = value.func, dict(value.keywords)
    elif isinstance(value, type):
        cls, given = value, {}
    elif is_dataclass(value):
        cls, given = type(value), {name: getattr(value, name) for name in keys_of(type(value))}
    else:
        return value
    assert isinstance(cls, type)
    arguments = {
        name: _default(given.get(name, key.default), key, _join(path, name)) for name, key in keys_of(cls).items()
    }
    return Part(registry.kind, registry.word_of(cls), cls, arguments, deferred=deferred, key=path)


def own_part(kind: str) -> str:
    """How to bring a part that latentsb does not know: `(a bridge of your own: --import FILE)`."""
    return f"({'an' if kind[0] in 'aeiou' else 'a'} {kind} of your own: --import FILE)"


def _default(value: Any, key: Key, path: str) -> Any:
    if isinstance(value, Part):
        return replace(value, key=path)
    slots = [slot for member in members(key.annotation) if (slot := slot_of(member)) is not None]
    return part_of(value, *slots[0], path) if slots and value is not None else value


class Binder:
    """Binds sections and parts, and keeps every problem that it meets.

    Args:
        lookup: the recipe node of a part in a run, by run folder and dotted path.
    """

    def __init__(self, lookup: Callable[[str, str], tuple[str, Node]] | None = None) -> None:
        self.problems: list[Problem] = []
        self.lookup = lookup

    def tell(self, where: str, key: str, message: str) -> None:
        """Keep a problem."""
        self.problems.append(Problem(where, key, message))

    def section(self, model: type[S], node: Node | None, key: str, base: S | None = None) -> S | None:
        """Bind a fixed section.

        Args:
            model: the section's pydantic model.
            node: its mapping; None where the recipe does not have it.
            key: dotted path.
            base: values that stand where the node has none (a stage over the shared settings).

        Returns:
            The section, or None if it has problems.
        """
        if node is None:
            node = Node({}, "")
        if not isinstance(node.value, dict):
            self.tell(node.place, key, f"expected a mapping, found {found(node.plain())}")
            return None
        keys = keys_of(model)
        if base is not None:
            keys = {name: Key(k.annotation, getattr(base, name), k.about) for name, k in keys.items()}
        before = len(self.problems)
        values = self._keys(keys, node.value, node.place, key, f"'{key}'")
        if len(self.problems) > before:
            return None
        try:
            return model(**values)
        except ValidationError as error:
            # Each value is right by itself, so this is the section's own condition, which pydantic wraps.
            reason = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if not isinstance(reason, ArgumentError):
                raise
            given = node.value.get(reason.name)
            self.tell(given.place if given else node.place, f"{key}.{reason.name}", reason.message)
            return None

    def part(self, base: type[Any], node: Node, key: str, *, deferred: bool = False, default: Any = None) -> Any:
        """Bind a part: its name, then every key of its class.

        Args:
            base: the class that the part must derive from.
            node: a name, or a mapping with `name`, or with `run` and `part` (beside `name`, these may stand in `from`).
            key: dotted path.
            deferred: a factory is asked for.
            default: the part whose name and keys stand where the node gives none.

        Returns:
            The part, or None if it has problems.
        """
        registry = registry_of(base)
        assert registry is not None
        if isinstance(node.value, str):
            node = Node({"name": Node(node.value, node.where, node.place)}, node.where, node.key)
        if not isinstance(node.value, dict):
            self.tell(node.place, key, f"expected {expected(base)}, found {found(node.plain())}")
            return None
        before = len(self.problems)
        given, from_run = self._from_run(dict(node.value), node, key)
        name = given.pop("name", None)
        if name is None and isinstance(default, Part) and len(self.problems) == before:
            cls, word, over = default.cls, default.name, dict(default.arguments)
        else:
            known = self._class(registry, base, name, node, key) if len(self.problems) == before else None
            if known is None:
                return None
            (word, cls), over = known, {}
        try:
            own = keys_of(cls)
        except NameError as error:  # an annotation that exists for type checkers alone
            message = f"the annotations of {cls.__qualname__} cannot be read: {error}; import that name at run time"
            self.tell(node.place, key, message)
            return None
        keys = {n: Key(k.annotation, over.get(n, k.default), k.about) for n, k in own.items()}
        values = self._keys(keys, given, node.place, key, f"{registry.kind} '{word}'", ("name",))
        places = {"": node.place} | {n: child.place for n, child in given.items()}
        part = Part(registry.kind, word, cls, values, from_run, deferred, key, places)
        if len(self.problems) == before:
            part = self._complete(part)
            self._try(part)
        return part if len(self.problems) == before else None

    def _complete(self, part: Part) -> Part:
        """The part with the keys that follow from others, where its class says which these are."""
        follow = getattr(part.cls, "completed", None)
        if follow is None:
            return part
        try:
            return replace(part, arguments={**part.arguments, **follow(part.arguments)})
        except ArgumentError as error:
            self.problems.append(part.problem(error))
            return part

    def _try(self, part: Part) -> None:
        # Frozen dataclasses need nothing but their keys, so their cross-argument conditions are told already here.
        if is_dataclass(part.cls) and not part.deferred:
            try:
                part.build()
            except RecipeError as error:
                self.problems += [p for p in error.problems if p not in self.problems]

    def _class(
        self, registry: Registry[Any], base: type[Any], name: Node | None, node: Node, key: str
    ) -> tuple[str, type[Any]] | None:
        if name is None and isinstance(node.value, dict) and (word := registry.implied_by(node.value)) is not None:
            name = Node(word, node.where, node.place)
        if name is None or not isinstance(name.value, str):
            self._no_name(registry, name, node, key)
            return None
        try:
            cls = registry[name.value]
        except UnknownPartError as error:
            self.tell(name.place, key, f"{error} {own_part(registry.kind)}")
            return None
        except ImportError as error:
            self.tell(name.place, key, f"{registry.kind} '{name.value}' cannot be imported: {error}")
            return None
        if not issubclass(cls, base):
            fits = ", ".join(word for word in registry.names() if issubclass(registry[word], base))
            self.tell(name.place, key, f"'{name.value}' is no {base.__name__}, which is needed here; these are: {fits}")
            return None
        return name.value, cls

    def _no_name(self, registry: Registry[Any], name: Node | None, node: Node, key: str) -> None:
        if name is not None:
            self.tell(name.place, f"{key}.name", f"expected the name of a {registry.kind}, found {found(name.plain())}")
            return
        keys = node.value if isinstance(node.value, dict) else {}
        close = difflib.get_close_matches("name", keys, n=1)
        if close:
            self.tell(keys[close[0]].place, _join(key, close[0]), "unknown key. Did you mean 'name'?")
        else:
            self.tell(node.place, _join(key, "name"), f"missing; known: {', '.join(registry.names())}")

    def _from_run(self, given: dict[str, Node], node: Node, key: str) -> tuple[dict[str, Node], FromRun | None]:
        origin = given
        if ORIGIN in given:
            nested = given.pop(ORIGIN)
            if nested.value is None:
                return given, None
            if not isinstance(nested.value, dict):
                message = f"expected a mapping with 'run' and 'part', found {found(nested.plain())}"
                self.tell(nested.place, f"{key}.{ORIGIN}", message)
                return given, None
            origin, node, key = dict(nested.value), nested, f"{key}.{ORIGIN}"
            if "run" not in origin:
                self.tell(nested.place, f"{key}.run", "missing; the folder of a run")
            for name in origin:
                if name not in RUN_KEYS:
                    self.tell(origin[name].place, f"{key}.{name}", f"unknown key.{nearest(name, RUN_KEYS)}")
        if "run" not in origin:
            return given, None
        texts: dict[str, str] = {}
        for name in RUN_KEYS:
            child = origin.pop(name, None)
            if child is not None and (not isinstance(child.value, str) or not child.value):
                self.tell(child.place, f"{key}.{name}", f"expected a text, found {found(child.plain())}")
            elif child is not None:
                texts[name] = str(child.value)
            elif name == "part":
                self.tell(
                    node.place, f"{key}.part", "missing; which part of the run: 'autoencoder', 'bridge.network', …"
                )
        if texts.get("weights", "ema") not in ("ema", "model"):
            self.tell(node.place, f"{key}.weights", f"expected one of 'ema', 'model', found {found(texts['weights'])}")
        if "run" not in texts or "part" not in texts:
            return given, None
        from_run = FromRun(**texts)
        if "name" not in given and self.lookup is not None:
            try:
                place, there = self.lookup(from_run.run, from_run.part)
            except RecipeError as error:
                for problem in error.problems:
                    self.tell(node.place, key, str(problem))
                return given, from_run
            from_run = replace(from_run, part=place)
            given = {**_without_origin(there), **given}
        return given, from_run

    def _keys(
        self,
        keys: Mapping[str, Key],
        given: Mapping[str, Node],
        where: str,
        path: str,
        owner: str,
        more: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        guessed: set[str] = set()
        for name, node in given.items():
            if name not in keys:
                hint = nearest(name, [*keys, *more])
                guessed.update(k for k in keys if f"'{k}'" in hint)
                listing = "" if hint and len(keys) > 12 else f" Its keys: {', '.join(keys) or 'none'}"
                self.tell(node.place, _join(path, name), f"unknown key of {owner}.{hint}{listing}")
        for name, key in keys.items():
            if name in given:
                values[name] = self._value(key.annotation, given[name], _join(path, name), key.default)
            elif key.default is MISSING:
                if name not in guessed:
                    about = f" ({key.about})" if key.about else ""
                    message = f"missing key of {owner}; expected {expected(key.annotation)}{about}"
                    self.tell(where, _join(path, name), message)
            else:
                values[name] = _default(key.default, key, _join(path, name))
                try:
                    plain(values[name])
                except TypeError as error:
                    self.tell(where, _join(path, name), f"the default {error}; make it positional, or another type")
        return values

    def _value(self, annotation: Any, node: Node, path: str, default: Any = MISSING) -> Any:
        if not holds_part(annotation):
            try:
                return check(annotation, node.plain())
            except Wrong as wrong:
                self.tell(_place(node, wrong.path), _join(path, *map(str, wrong.path)), wrong.message)
                return None
        options = members(annotation)
        if node.value is None and type(None) in options:
            return None
        inner = next(bare(option) for option in options if holds_part(option))
        if (slot := slot_of(inner)) is not None:
            base, deferred = slot
            default = _default(default, Key(inner), path) if default is not MISSING else None
            return self.part(base, node, path, deferred=deferred, default=default)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return self.section(inner, node, path)
        return self._several(inner, node, path)

    def _several(self, annotation: Any, node: Node, path: str) -> Any:
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is dict and isinstance(node.value, dict):
            return {name: self._value(args[1], child, _join(path, name)) for name, child in node.value.items()}
        if origin in (tuple, list) and isinstance(node.value, list):
            fixed = origin is tuple and Ellipsis not in args
            if not fixed or len(args) == len(node.value):
                each = args if fixed else [args[0]] * len(node.value)
                items = enumerate(zip(each, node.value, strict=True))
                return origin(self._value(a, child, _join(path, str(i))) for i, (a, child) in items)
        self.tell(node.place, path, f"expected {expected(annotation)}, found {found(node.plain())}")
        return None


def _without_origin(node: Node) -> dict[str, Node]:
    """The keys of a part in a run, without where its own weights, or those of parts inside it, once came from."""

    def strip(node: Node) -> Node:
        if isinstance(node.value, list):
            return replace(node, value=[strip(item) for item in node.value])
        if not isinstance(node.value, dict):
            return node
        dropped = {ORIGIN, *(RUN_KEYS if "run" in node.value else ())}
        return replace(node, value={name: strip(child) for name, child in node.value.items() if name not in dropped})

    stripped = strip(node).value
    return stripped if isinstance(stripped, dict) else {"name": node}


def _join(path: str, *names: str) -> str:
    return ".".join(filter(None, [path, *names]))


def _place(node: Node, path: tuple[str | int, ...]) -> str:
    for step in path:
        if isinstance(node.value, dict) and step in node.value:
            node = node.value[str(step)]
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
    return node.place
