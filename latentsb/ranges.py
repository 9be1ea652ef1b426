"""Ranges that stand in annotations, so that recipes, editors and messages agree on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Annotated, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from latentsb.errors import ArgumentError

__all__ = [
    "Count",
    "Fraction",
    "NonNegative",
    "NonNegativeInt",
    "OpenFraction",
    "Positive",
    "PositiveFraction",
    "enforce",
]

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]


def enforce(part: object) -> None:
    """Hold the fields of a dataclass to the ranges in their annotations, for objects built without a recipe.

    Call it from `__post_init__`. Numbers must also be finite.

    Raises:
        ArgumentError: names the field, its value and the range.
    """
    for name, hint in get_type_hints(type(part), include_extras=True).items():
        value = getattr(part, name, None)
        if get_origin(hint) is not Annotated or not isinstance(value, (int, float)):
            continue
        if not math.isfinite(value):
            raise ArgumentError(name, f"must be finite, found {value}")
        for bound in get_args(hint)[1:]:
            for kind, (sign, holds) in _BOUNDS.items():
                limit = getattr(bound, kind, None)
                if limit is not None and not holds(value, limit):
                    raise ArgumentError(name, f"must be {sign} {limit}, found {value}")


_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "gt": (">", operator.gt),
    "ge": (">=", operator.ge),
    "lt": ("<", operator.lt),
    "le": ("<=", operator.le),
}
