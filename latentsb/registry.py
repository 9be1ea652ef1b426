"""Registries: one word in a recipe names one class, found without importing any other.

A kind of part (bridge, autoencoder, reference, …) has one `Registry`. Its words come from three places:

* **rooms**: packages whose *file names* are the words. `bridges/dbae.py` is `bridge: {name: dbae}`. Rooms are
  announced by entry points of the group `latentsb.plugins`, whose name is the kind and whose value is the
  package; ours are announced in the same way as a third party's.
* **homes**: modules of the core in which several small parts share a file.
* **imports**: any module that the user imports (`--import my_bridge.py`, `imports:` in a recipe) and in which
  the decorator stands.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar, cast

from latentsb.errors import Error, nearest

__all__ = ["REGISTRIES", "Build", "Registry", "UnknownPartError", "describe", "registry_of"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
C = TypeVar("C", bound=type[Any])

GROUP = "latentsb.plugins"
# A clone that is not installed announces nothing; these are the same lines as in pyproject.toml.
OWN_ROOMS = {"autoencoder": ("latentsb.autoencoders",), "bridge": ("latentsb.bridges",)}

REGISTRIES: dict[str, Registry[Any]] = {}


class Build(Protocol[T_co]):
    """A part whose recipe arguments are bound and whose shapes are still to come.

    A bridge that declares `*, network: Build[Network]` receives a callable: `network(x, cond)` builds a new
    network each time it is called, so that a method with two directions calls it twice.
    """

    def __call__(self, *args: Any) -> T_co:
        """Build the part from the positional arguments that its class declares."""
        ...


class UnknownPartError(Error):
    """A word that no registered part of this kind has."""

    exit_code = 2


@cache
def rooms(kind: str) -> tuple[str, ...]:
    """Packages whose files are words of this kind, ours first."""
    announced = [p.value for p in entry_points(group=GROUP) if p.name == kind]
    return tuple(dict.fromkeys([*OWN_ROOMS.get(kind, ()), *announced]))


def files_of(package: str) -> tuple[str, ...]:
    """Names of the public modules in a package, without importing them."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return ()
    found = (m.name for m in pkgutil.iter_modules(list(spec.submodule_search_locations)))
    return tuple(sorted(name for name in found if not name.startswith("_")))


class Registry(Generic[T]):
    """The words of one kind of part and the classes behind them.

    Args:
        kind: the singular word used in recipes, messages and `latentsb list`.
        base: the class that every part of this kind derives from.
        homes: modules of the core in which parts of this kind are defined.

    Raises:
        ValueError: if the kind is taken; at decoration, if the word is taken, is not a lower-case word, or the class
            has another base.
    """

    def __init__(self, kind: str, base: type[T], homes: tuple[str, ...] = ()) -> None:
        there: Registry[Any] | None = REGISTRIES.get(kind)
        if there is not None and _name(there.base) != _name(base):
            raise ValueError(f"there is a registry of kind '{kind}' already, that of {_name(there.base)}")
        self.kind, self.homes = kind, homes
        self.base: type[T] = base
        self._classes: dict[str, type[T]] = {}
        REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[C], C]:
        """Return the decorator that gives a class its word."""

        def decorate(cls: C) -> C:
            if not name.isidentifier() or name != name.lower():
                raise ValueError(f"{self.kind} '{name}': a name is a lower-case word")
            if not issubclass(cls, cast("type[Any]", self.base)):
                raise ValueError(f"{self.kind} '{name}': {cls.__name__} does not derive from {self.base.__name__}")
            taken: type | None = self._classes.get(name)
            if taken is not None and taken is not cls:
                same = taken.__qualname__ == cls.__qualname__ and taken.__module__ != cls.__module__
                hint = " (the same class under two module names: import it in one way only)" if same else ""
                raise ValueError(f"{self.kind} '{name}' is already {taken.__module__}.{taken.__qualname__}{hint}")
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """All words of this kind, without importing the rooms' files."""
        for home in self.homes:
            importlib.import_module(home)
        return sorted({*self._classes, *(f for room in rooms(self.kind) for f in files_of(room))})

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._classes:
            self._load(name)
        if name not in self._classes:
            known = self.names()
            raise UnknownPartError(
                f"no {self.kind} is called '{name}'.{nearest(name, known)} Known: {', '.join(known)}"
            )
        return self._classes[name]

    def _load(self, name: str) -> None:
        for home in self.homes:
            importlib.import_module(home)
        for room in rooms(self.kind):
            if name in self._classes:
                return
            if name in files_of(room):
                importlib.import_module(f"{room}.{name}")

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def implied_by(self, keys: Iterable[str]) -> str | None:
        """The word of the class of the core that a mapping without a name means, by keys that it alone has.

        Such a class has an attribute `implied_by`, the set of these keys.
        """
        given = set(keys)
        for home in self.homes:
            importlib.import_module(home)
        means = (name for name, cls in self._classes.items() if given >= getattr(cls, "implied_by", given | {""}))
        return next(means, None)

    def word_of(self, part: type[Any] | Any) -> str:
        """The word of a registered class, of a class derived from one, or of an instance of either."""
        cls = part if isinstance(part, type) else type(part)
        words = {known: name for name, known in self._classes.items()}
        for base in cls.__mro__:
            if base in words:
                return words[base]
        raise UnknownPartError(f"{cls.__qualname__} is not a registered {self.kind}")


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def describe(part: Any) -> Any:
    """A small part (a frozen dataclass) as the mapping that a recipe would hold; other values as they are."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    registry = registry_of(type(part))
    fields = {f.name: describe(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return fields if registry is None else {"name": registry.word_of(part), **fields}


def registry_of(base: type[Any]) -> Registry[Any] | None:
    """The registry whose parts derive from `base`, or None if `base` is not a kind of part."""
    for registry in REGISTRIES.values():
        if registry.base is base:
            return registry
    # Of kinds of which one is a special case of the other (a target is a law), the special one.
    found = [registry for registry in REGISTRIES.values() if issubclass(base, registry.base)]
    return max(found, key=lambda registry: len(registry.base.__mro__), default=None)
