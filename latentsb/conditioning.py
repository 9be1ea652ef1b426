"""Classifier-free dropout: the one place where training forgets conditions on purpose."""

from __future__ import annotations

from collections.abc import Iterable

from latentsb.randomness import Draws
from latentsb.tensors import Condition

__all__ = ["GUIDED", "drop_conditions"]

GUIDED = ("label", "attributes")
"""Conditions that dropout and guidance act on; a code z or an endpoint x1 is never dropped."""


def drop_conditions(cond: Condition, rate: float, draws: Draws, names: Iterable[str] = GUIDED) -> Condition:
    """Mark conditions absent in a random share of the rows, all of them at once.

    A network trained in this way knows the conditional and the unconditional process, which guidance combines
    (Ho & Salimans 2022, Classifier-free diffusion guidance, Alg. 1). The names fall together, since the
    unconditional process is the one without any of them.

    Args:
        cond: conditions of B rows.
        rate: probability in [0, 1] that a row loses them.
        draws: of the same B rows, so that the choice does not depend on how a batch is split.
        names: which conditions; those that `cond` does not hold are passed over.

    Returns:
        The condition with `present` false in the chosen rows; values keep their shape.
    """
    held = [name for name in names if name in cond]
    if rate == 0 or not held:
        return cond
    rows = draws.uniform("condition dropout") < rate
    for name in held:
        cond = cond.drop(name, rows)
    return cond
