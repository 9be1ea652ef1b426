"""Couplings: which x0 belongs to which x1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from latentsb.errors import DataError
from latentsb.laws import Sampled
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Batch, Condition

if TYPE_CHECKING:
    from latentsb.laws import Ends, Law

__all__ = ["COUPLINGS", "Coupling", "Pair"]


@dataclass(frozen=True)
class Pair:
    """One joint draw of both ends.

    Args:
        x0: data end, shape (B, …).
        x1: other end, same shape.
        cond: conditions of the pair.
        extra: what a coupling wants to hand to its own bridge, by name (OT weights, for example).
    """

    x0: Tensor
    x1: Tensor
    cond: Condition = field(default_factory=Condition)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Coupling(ABC):
    """A joint law of the two ends.

    `aligned` says which x1 the data stream must deliver where the data has one: the partner of x0 (True) or an
    independent draw (False).
    """

    aligned: ClassVar[bool] = False

    @abstractmethod
    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """Couple the rows of a batch; where the batch has no x1, it is drawn from `ends.x1`."""


COUPLINGS: Registry[Coupling] = Registry("coupling", Coupling, homes=("latentsb.process.coupling",))


@COUPLINGS.register("independent")
@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """The two ends have nothing to do with each other; an end that the data does not bring is drawn from its law."""

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """Couple each row of x0 with an unrelated x1.

        Raises:
            DataError: if the data lacks an end and the bridge has no law for it that can be sampled.
        """
        x0 = _drawn("x0", ends.x0, batch, draws) if batch.x0 is None else batch.x0
        x1 = _drawn("x1", ends.x1, batch, draws) if batch.x1 is None else batch.x1
        return Pair(x0, x1.to(x0), batch.cond)


@COUPLINGS.register("paired")
@dataclass(frozen=True, kw_only=True)
class Paired(Coupling):
    """The data brings partners: image and degraded image, start and goal."""

    aligned: ClassVar[bool] = True

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """The pairs of the data; that its x1 are partners is checked by the stream that delivers them.

        Raises:
            DataError: if the data does not bring both ends.
        """
        if batch.x0 is None or batch.x1 is None:
            missing = "x0" if batch.x0 is None else "x1"
            raise DataError(
                f"coupling 'paired' needs data that brings both ends; this data has no {missing}. "
                "Use coupling 'independent', or data with pairs"
            )
        return Pair(batch.x0, batch.x1, batch.cond)


def _drawn(name: str, law: Law | None, batch: Batch, draws: Draws) -> Tensor:
    """An end drawn from its law.

    Raises:
        DataError: if there is no law, or it cannot be sampled.
    """
    if not isinstance(law, Sampled):
        found = "has no law" if law is None else f"has a law that cannot be sampled ({type(law).__name__})"
        raise DataError(f"the data brings no {name}, and the end {name} {found}; give {name} a law, such as 'gaussian'")
    return law.sample(len(batch), draws.fork(name), batch.cond)
