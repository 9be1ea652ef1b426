"""The contract of targets: a log-density up to a constant, and what is known exactly of it."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from latentsb.laws import Density
from latentsb.registry import Registry
from latentsb.tensors import Spec

__all__ = ["TARGETS", "Target", "log_integral"]


class Target(Density):
    """A density `ρ = Z p` of which only `log ρ` is known; a frozen dataclass that writes `shape` and `log_prob`.

    Everything else has a default. What is known exactly (`log_z`, `std`, `mode_mass` with `mode_of`) is what the metric
    `log_z` holds an estimate against.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @property
    def log_z(self) -> float | None:
        """`log ∫ ρ`, where it is known."""
        return None

    @property
    def std(self) -> tuple[float, ...] | None:
        """Marginal standard deviations, where they are known, one for each element of a sample."""
        return None

    @property
    def mode_mass(self) -> tuple[float, ...]:
        """Probability of each mode under p, where they are known; else none."""
        return ()

    @cached_property
    def spec(self) -> Spec:  # type: ignore[override]  # of a frozen dataclass: nobody writes it
        """Shape and type of one sample."""
        return Spec(self.shape)

    def score(self, x: Tensor) -> Tensor:
        """`∇ log ρ`, shape of x, by differentiation; differentiable again where x takes part in a graph."""
        again = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            point = x if again else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(point).sum(), point, create_graph=again)
        return slope

    def mode_of(self, x: Tensor) -> Tensor:
        """Position in `mode_mass` of the mode that each row belongs to, int64, shape (B,)."""
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)


TARGETS: Registry[Target] = Registry("target", Target, homes=("latentsb.targets.toys",))


def log_integral(log_values: Tensor, spacing: float) -> float:
    """`log ∫ exp(f)` of values on an even grid, by the trapezoidal rule.

    The rule converges faster than any power of the spacing where f falls to minus infinity smoothly at both ends.

    Args:
        log_values: f on the grid, shape (N,), float64.
        spacing: of the grid.
    """
    inner = log_values.clone()
    inner[[0, -1]] -= torch.log(torch.tensor(2.0, dtype=inner.dtype))
    return float(torch.logsumexp(inner, 0) + torch.log(torch.tensor(spacing, dtype=inner.dtype)))
