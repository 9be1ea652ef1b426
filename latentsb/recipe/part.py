"""A part of a recipe after binding: which class, with which arguments, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentsb.errors import ArgumentError, Problem, RecipeError
from latentsb.recipe.annotations import plain

__all__ = ["Factory", "FromRun", "Part"]


@dataclass(frozen=True)
class FromRun:
    """Where the trained weights of a part come from.

    Args:
        run: folder of the run.
        part: dotted path of the part in that run's recipe: `autoencoder`, `bridge.network`.
        weights: the averaged weights or the raw ones.
    """

    run: str
    part: str
    weights: str = "ema"


@dataclass(frozen=True)
class Part:
    """One word of a recipe with every argument bound, defaults included.

    Args:
        kind: of the registry: `bridge`, `network`, `reference`, …
        name: the registered word.
        cls: the class behind the word.
        arguments: keyword-only arguments; nested parts are parts.
        from_run: the trained weights that it starts with; the engine loads them.
        deferred: the owner asked for a factory (`Build[X]`), not for the object.
        key: dotted path in the recipe.
        places: where each key stands, `""` for the part itself.
    """

    kind: str
    name: str
    cls: type[Any] = field(repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    from_run: FromRun | None = None
    deferred: bool = False
    key: str = field(default="", compare=False)
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def build(self, *positional: Any) -> Any:
        """Construct the object, its nested parts first.

        Args:
            positional: what the class declares as positional: shapes, ends.

        Raises:
            RecipeError: if a constructor refuses a value; names the key and its place.
        """
        arguments = {name: _built(value) for name, value in self.arguments.items()}
        try:
            made = self.cls(*positional, **arguments)
        except ArgumentError as error:
            raise RecipeError([self.problem(error)]) from error
        if hasattr(self.cls, "recipe_key"):  # it has more to say of its keys, when it is first used
            object.__setattr__(made, "recipe_key", self.key)  # also of a frozen one
        return made

    def problem(self, error: ArgumentError) -> Problem:
        """The constructor's complaint with the key and the place that it is about."""
        known = error.name in self.arguments or error.name in self.places
        key = ".".join(filter(None, [self.key, error.name if known else ""]))
        message = error.message if known else f"{error.name}: {error.message}"
        return Problem(self.places.get(error.name, self.places.get("", "")), key, message)

    def plain(self) -> dict[str, Any]:
        """The part as JSON, as it may stand in a recipe."""
        # Under a key that no argument can have, so that they stay apart from the part's own `weights`.
        origin = {} if self.from_run is None else {"from": plain(self.from_run)}
        return {"name": self.name, **origin, **{name: plain(value) for name, value in self.arguments.items()}}

    def walk(self) -> list[Part]:
        """This part and every part inside it."""
        return [self, *(inner for value in self.arguments.values() for part in _parts(value) for inner in part.walk())]


@dataclass(frozen=True)
class Factory:
    """What stands for `Build[X]`: each call builds a new object from the same arguments.

    Args:
        part: what is built.
    """

    part: Part

    def __call__(self, *positional: Any) -> Any:
        """Build the part from the positional arguments that its class declares."""
        return self.part.build(*positional)


def _built(value: Any) -> Any:
    if isinstance(value, Part):
        return Factory(value) if value.deferred else value.build()
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item) for item in value)
    if isinstance(value, dict):
        return {name: _built(item) for name, item in value.items()}
    return value


def _parts(value: Any) -> list[Part]:
    if isinstance(value, Part):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [part for item in value for part in _parts(item)] if isinstance(value, (list, tuple)) else []
