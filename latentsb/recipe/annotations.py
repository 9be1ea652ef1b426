"""What an annotation of a constructor means in a recipe: a part, a factory of parts, or a plain value.

Plain values are checked strictly by pydantic (`"3"` is no integer, `1` is no boolean); the one leniency is that a
whole number in exponent form (`64e6`) is an integer where one is asked for.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from latentsb.errors import nearest
from latentsb.recipe.nodes import Scalar
from latentsb.registry import Build, registry_of

__all__ = [
    "Form",
    "Wrong",
    "adapter",
    "check",
    "expected",
    "found",
    "holds_part",
    "members",
    "plain",
    "slot_of",
    "whole",
]

NOUNS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
    Path: "a path",
    Any: "a value",
}
PLURALS = {int: "integers", float: "numbers", bool: "true or false", str: "texts", Path: "paths"}


@dataclass(frozen=True)
class Form:
    """Another form in which a value may be written, beside its annotation.

    Args:
        form: in words, after "or".
    """

    form: str


class Wrong(Exception):
    """A plain value that its annotation does not allow.

    Args:
        path: keys and indices from the value down to the mistake.
        message: what was expected and what was found.
    """

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        self.path, self.message = tuple(path), message
        super().__init__(message)


def whole(value: Any) -> Any:
    """The integer that a whole float such as 64e6 stands for; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def bare(annotation: Any) -> Any:
    """The annotation without `Annotated`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    annotation = bare(annotation)
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def slot_of(annotation: Any) -> tuple[type[Any], bool] | None:
    """Base class of a part, and whether a factory of it is asked for (`Build[X]`); None for anything else."""
    annotation = bare(annotation)
    if get_origin(annotation) is Build:
        return get_args(annotation)[0], True
    if isinstance(annotation, type) and get_origin(annotation) is None and registry_of(annotation) is not None:
        return annotation, False
    return None


def holds_part(annotation: Any) -> bool:
    """Whether a part may stand anywhere inside a value of this annotation."""
    if slot_of(annotation) is not None or _is_section(annotation):
        return True
    return any(holds_part(a) for a in get_args(annotation) if a is not Ellipsis and not _is_data(a))


def _is_data(argument: Any) -> bool:
    return isinstance(argument, (str, int, float, bool)) or argument is None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(bare(annotation), BaseModel)


def lenient(annotation: Any) -> Any:
    """The annotation with whole floats allowed for integers, wherever integers stand in it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if bare(annotation) is int:  # after the ranges, so that pydantic writes these into the JSON Schema
        return Annotated[(int, *get_args(annotation)[1:], BeforeValidator(whole))]
    if origin is Literal or not args:
        return annotation
    if origin is Annotated:
        return Annotated[(lenient(args[0]), *args[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(lenient(a) for a in args)]  # noqa: UP007
    if origin in (tuple, list, dict, set, frozenset):
        return origin[tuple(a if a is Ellipsis else lenient(a) for a in args)]
    return annotation


@lru_cache(maxsize=512)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(lenient(annotation), config=ConfigDict(strict=True, allow_inf_nan=False))


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Pydantic's strict validator of a plain value.

    Raises:
        Wrong: if a recipe cannot hold values of this annotation.
    """
    try:
        return _adapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        name = getattr(annotation, "__qualname__", annotation)
        message = f"declared as {name}, which a recipe cannot hold; make it positional, or another type"
        raise Wrong((), message) from None


def check(annotation: Any, value: Any) -> Any:
    """The value in the annotation's type (a list as a tuple, a text as a path).

    Raises:
        Wrong: with what was expected and what was found.
    """
    checker = adapter(annotation)
    try:
        return checker.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = _loc(annotation, first["loc"][:-1] if first["type"] == "missing" else first["loc"])
        inner = _inside(annotation, path)
        raise Wrong(path, f"expected {expected(inner)}, found {found(_at(value, path))}{_hint(inner, value)}") from None


def _loc(annotation: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    # Pydantic puts the branch of a union into the path, which is no key of the file.
    simple = [m for m in members(annotation) if m is not type(None)]
    if len(simple) > 1 or get_origin(bare(simple[0])) not in (tuple, list, dict) or not loc:
        return ()
    inner = _inside(simple[0], loc[:1])
    return (loc[0], *_loc(inner, loc[1:]))


def _inside(annotation: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        annotation = next(bare(m) for m in members(annotation) if m is not type(None))
        args = get_args(annotation)
        fixed = get_origin(annotation) is tuple and Ellipsis not in args and isinstance(step, int)
        annotation = args[int(step)] if fixed else args[1] if get_origin(annotation) is dict else args[0]
    return annotation


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def _hint(annotation: Any, value: Any) -> str:
    if isinstance(value, str):
        words = [w for m in members(annotation) if get_origin(m) is Literal for w in get_args(m) if isinstance(w, str)]
        return f".{hint}" if (hint := nearest(value, words)) else ""
    return ""


def expected(annotation: Any) -> str:
    """The annotation in words: `a number > 0`, `one of 'auto', 'fp32'`, `a list of integers`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = f"{expected(args[0])} {' and '.join(_ranges(args[1:]))}".rstrip()
        forms = [m.form for m in args[1:] if isinstance(m, Form)]
        return " or ".join([text, *forms])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(a) for a in sorted(args, key=lambda a: a is type(None)))
    if origin is Literal:
        return "one of " + ", ".join(found(a) for a in args)
    if slot_of(annotation) is not None:
        registry = registry_of(slot_of(annotation)[0])  # type: ignore[index]
        return f"a {registry.kind} (its name, or a mapping with 'name')" if registry else "a part"
    if origin in (list, set, frozenset) or (origin is tuple and args[1:] == (Ellipsis,)):
        return f"a list of {PLURALS.get(bare(args[0]), 'values')}" + "".join(
            f", each {r}" for r in (_ranges(get_args(args[0])[1:]) if get_origin(args[0]) is Annotated else ())
        )
    if origin is tuple:
        return f"a list of {len(args)}: " + ", ".join(expected(a) for a in args)
    if origin is dict or _is_section(annotation):
        return "a mapping"
    return NOUNS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _ranges(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        match item:
            case Gt(bound):
                yield f"> {bound}"
            case Ge(bound):
                yield f">= {bound}"
            case Lt(bound):
                yield f"< {bound}"
            case Le(bound):
                yield f"<= {bound}"
            case MinLen(bound):
                yield f"with at least {bound} items"
            case MaxLen(bound):
                yield f"with at most {bound} items"
            case Len(low, high):
                yield f"with {low} to {high} items"


def found(value: Any) -> str:
    """A value as it stands in a recipe, short enough for a message."""
    if isinstance(value, Mapping):
        return "a mapping" if value else "{}"
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(found, value)) + "]"
        return text if len(text) <= 60 else f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)


def plain(value: Any) -> Scalar | list[Any] | dict[str, Any]:
    """A bound value as JSON: paths as texts, tuples as lists, sections by their fields.

    Raises:
        TypeError: if the value has no such form.
    """
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, bool)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if hasattr(value, "plain"):
        return value.plain()  # type: ignore[no-any-return]
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    raise TypeError(f"{value!r} cannot stand in a recipe")
