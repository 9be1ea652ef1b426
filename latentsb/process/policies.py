"""Linear policies: the matrix and the shift that a forward process is steered with, as parameters.

`A_t = Σ_k w_k(t) A_k` and `a_t = Σ_k w_k(t) a_k`: a profile says how many leaves there are and how they are weighed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.process.matrix import F64
from latentsb.ranges import Count, enforce
from latentsb.registry import Registry

__all__ = [
    "POLICIES", "PROFILES", "Constant", "Diagonal", "Free", "Full", "LowRank", "Policy", "Profile", "Scaled",
    "Symmetric",
]  # fmt: skip


class Profile(ABC):
    """How a policy depends on time; a frozen dataclass.

    Attributes:
        leaves: matrices.
        heights: numbers that are learned beside them, 0 at first.
    """

    leaves: int = 1
    heights: int = 0

    @abstractmethod
    def weigh(self, t: Tensor, heights: Tensor) -> Tensor:
        """Weights of the leaves at t of shape (N,), shape (N, leaves); heights of shape (heights,)."""


PROFILES: Registry[Profile] = Registry("profile", Profile, homes=("latentsb.process.policies",))


def hats(t: Tensor, knots: int) -> Tensor:
    """Piecewise linear functions of t in [0, 1], 1 at their own of the even knots and 0 at the others, (N, knots)."""
    if knots == 1:
        return torch.ones(len(t), 1, dtype=t.dtype)
    place = torch.arange(knots, dtype=t.dtype)
    return (1 - (t[:, None] * (knots - 1) - place).abs()).clamp(min=0)


@PROFILES.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Profile):
    """One matrix at all times: reaches a law at t = 1 but rarely the Schrödinger bridge."""

    def weigh(self, t: Tensor, heights: Tensor) -> Tensor:
        """One."""
        return torch.ones(len(t), 1, dtype=t.dtype)


@PROFILES.register("scaled")
@dataclass(frozen=True, kw_only=True)
class Scaled(Profile):
    """One matrix times `exp(h(t))`, h piecewise linear.

    Source: Deng et al. 2024, Variational Schrödinger diffusion models, official code (there h is a network).

    Args:
        knots: of h.
    """

    knots: Count = 5

    def __post_init__(self) -> None:
        enforce(self)

    @property
    def heights(self) -> int:  # type: ignore[override]
        """As many as knots."""
        return self.knots

    def weigh(self, t: Tensor, heights: Tensor) -> Tensor:
        """`exp(h(t))`."""
        return (hats(t, self.knots) @ heights).exp()[:, None]


@PROFILES.register("free")
@dataclass(frozen=True, kw_only=True)
class Free(Profile):
    """A matrix at each knot and a straight line between them; with zeta < 1 the ends run away unless knots are few.

    Args:
        knots: even ones over [0, 1].
    """

    knots: Count = 4

    def __post_init__(self) -> None:
        enforce(self)

    @property
    def leaves(self) -> int:  # type: ignore[override]
        """As many as knots."""
        return self.knots

    def weigh(self, t: Tensor, heights: Tensor) -> Tensor:
        """Hat functions."""
        return hats(t, self.knots)


class Policy(nn.Module, ABC):
    """A_t and a_t, both zero at first, in float64.

    Args:
        dim: D.
        profile: how they depend on time.
    """

    def __init__(self, dim: int, *, profile: Profile = Constant()) -> None:
        super().__init__()
        self.dim, self.profile = dim, profile
        self.shift = nn.Parameter(torch.zeros(profile.leaves, dim, dtype=F64))
        self.heights = nn.Parameter(torch.zeros(profile.heights, dtype=F64)) if profile.heights else None

    @abstractmethod
    def matrices(self) -> Tensor:
        """The leaves, shape (leaves, D, D), or diagonals (leaves, D)."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """A, shape (N, D, D) or (N, D), and a, shape (N, D), at t of shape (N,)."""
        heights = self.shift.new_zeros(0) if self.heights is None else self.heights
        weights = self.profile.weigh(t.to("cpu", F64), heights.cpu()).to(self.shift)
        return torch.tensordot(weights, self.matrices(), 1), weights @ self.shift


POLICIES: Registry[Policy] = Registry("policy", Policy, homes=("latentsb.process.policies",))


@POLICIES.register("full")
class Full(Policy):
    """Any matrix."""

    def __init__(self, dim: int, *, profile: Profile = Constant()) -> None:
        super().__init__(dim, profile=profile)
        self.weight = nn.Parameter(torch.zeros(profile.leaves, dim, dim, dtype=F64))

    def matrices(self) -> Tensor:
        """The weight."""
        return self.weight


@POLICIES.register("symmetric")
class Symmetric(Full):
    """A symmetric matrix; one that changes only in size is never exponentiated."""

    def matrices(self) -> Tensor:
        """`(W + Wᵀ)/2`."""
        return (self.weight + self.weight.mT) / 2


@POLICIES.register("diagonal")
class Diagonal(Policy):
    """A diagonal matrix, for latents of any size."""

    def __init__(self, dim: int, *, profile: Profile = Constant()) -> None:
        super().__init__(dim, profile=profile)
        self.weight = nn.Parameter(torch.zeros(profile.leaves, dim, dtype=F64))

    def matrices(self) -> Tensor:
        """The weight, shape (leaves, D)."""
        return self.weight


@POLICIES.register("low_rank")
class LowRank(Policy):
    """A matrix of low rank, `U Vᵀ`; U is 0 and V orthonormal at first.

    Args:
        dim: D.
        profile: how it depends on time.
        rank: columns of U and V, at most D.

    Raises:
        ArgumentError: if the rank is larger than D.
    """

    def __init__(self, dim: int, *, profile: Profile = Constant(), rank: Count = 4) -> None:
        super().__init__(dim, profile=profile)
        if rank > dim:
            raise ArgumentError("rank", f"must be at most {dim}, the size of a sample, found {rank}")
        self.U = nn.Parameter(torch.zeros(profile.leaves, dim, rank, dtype=F64))
        start = nn.init.orthogonal_(torch.empty(dim, rank)).to(F64)
        self.V = nn.Parameter(start.repeat(profile.leaves, 1, 1))

    def matrices(self) -> Tensor:
        """`U Vᵀ`."""
        return self.U @ self.V.mT
