"""Laws: what stands at the two ends of a bridge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Condition, Spec

__all__ = ["LAWS", "Density", "Ends", "Law", "Sampled"]


class Law(ABC):
    """A probability law of samples of one shape; a `Sampled` one can be drawn from, a `Density` evaluated."""

    spec: Spec


class Sampled(Law):
    """A law that can be drawn from."""

    @abstractmethod
    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw n samples, shape (n, *spec.shape), float32 on the CPU."""


class Density(Law):
    """A law whose log-density is known, perhaps up to a constant."""

    @abstractmethod
    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density of x, shape (B,); differentiable."""


LAWS: Registry[Law] = Registry("law", Law, homes=("latentsb.laws",))


@dataclass(frozen=True)
class Ends:
    """The two laws that a bridge joins, and the shapes that its networks must have.

    Args:
        spec: of both ends.
        x0: data end; None where the samples arrive in batches only.
        x1: other end; None where the bridge makes it itself (DBAE) or batches bring it.
        cond: shapes of the conditions that batches carry.
        images: shape of the pixels that batches carry, where they do.
        two_sided: batches bring x1.
    """

    spec: Spec
    x0: Law | None = None
    x1: Law | None = None
    cond: Mapping[str, Spec] = field(default_factory=dict)
    images: Spec | None = None
    two_sided: bool = False
