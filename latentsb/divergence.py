"""Divergence of a vector field by derivatives: exact, or estimated with random probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.registry import Registry

__all__ = ["DIVERGENCES", "Divergence", "Exact", "Normal", "Rademacher", "divergence", "signs", "units"]


class Divergence(ABC):
    """How the divergence of a field is found; a frozen dataclass."""

    @abstractmethod
    def probes(self, like: Tensor, draws: Draws) -> list[Tensor]:
        """Vectors `e` of which the mean or the sum of `e · (Jᵀ e)` is the divergence, each of the shape of `like`.

        Args:
            like: shape (B, M, …): M states for each of B rows.
            draws: of the rows.
        """


DIVERGENCES: Registry[Divergence] = Registry("divergence", Divergence, homes=("latentsb.divergence",))


@DIVERGENCES.register("rademacher")
@dataclass(frozen=True, kw_only=True)
class Rademacher(Divergence):
    """Hutchinson's estimate with random signs: unbiased, and exact where the Jacobian is diagonal.

    Source: Hutchinson 1990; Grathwohl et al. 2019, FFJORD, Eq. 7.

    Args:
        n: probes per state, whose mean is taken.
    """

    n: Count = 1

    def __post_init__(self) -> None:
        enforce(self)

    def probes(self, like: Tensor, draws: Draws) -> list[Tensor]:
        """Signs, scaled by `n^(-1/2)`."""
        return [signs(like, draws.fork(f"probe {i}")) * self.n**-0.5 for i in range(self.n)]


@DIVERGENCES.register("normal")
@dataclass(frozen=True, kw_only=True)
class Normal(Divergence):
    """Hutchinson's estimate with normal numbers: unbiased, with more variance than signs have.

    Source: Hutchinson 1990; Chen et al. 2022, SB-FBSDE, official code.

    Args:
        n: probes per state, whose mean is taken.
    """

    n: Count = 1

    def __post_init__(self) -> None:
        enforce(self)

    def probes(self, like: Tensor, draws: Draws) -> list[Tensor]:
        """Normal numbers, scaled by `n^(-1/2)`."""
        return [draws.fork(f"probe {i}").normal("normal", like) * self.n**-0.5 for i in range(self.n)]


@DIVERGENCES.register("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(Divergence):
    """The trace of the Jacobian: one derivative per dimension, for few of them."""

    def probes(self, like: Tensor, draws: Draws) -> list[Tensor]:
        """Unit vectors."""
        return [unit.reshape(like.shape) for unit in units(like.flatten(0, 1))]


def divergence(field: Callable[[Tensor], Tensor], x: Tensor, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A field at x, and `Σ_k e_k · (Jᵀ e_k)` over the probes.

    Both carry gradients where gradients are on, through x too.

    Args:
        field: of the states to vectors of the same shape; row i of its value depends on row i alone.
        x: states, shape (R, …).
        probes: each of the shape of x.

    Returns:
        The field, shape (R, …), and the sum, shape (R,).
    """
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        found = field(x)
        total = found.new_zeros(len(found))
        for i, probe in enumerate(probes):
            last = i + 1 == len(probes)
            (pulled,) = torch.autograd.grad(found, x, probe, retain_graph=wanted or not last, create_graph=wanted)
            total = total + (pulled * probe).flatten(1).sum(1)
    return (found, total) if wanted else (found.detach(), total.detach())


def signs(like: Tensor, draws: Draws) -> Tensor:
    """Signs, each with probability one half, of the shape of `like`, shape (B, …)."""
    return torch.where(draws.normal("sign", like) < 0, -1.0, 1.0).to(like)


def units(like: Tensor) -> list[Tensor]:
    """One unit vector per dimension of a row, each in all rows, of the shape of `like`."""
    eye = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
    return [unit.reshape(1, *like.shape[1:]).expand_as(like) for unit in eye]
