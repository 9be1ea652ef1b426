"""The references that a recipe can name.

Each writes `alpha`, `clock` and `total`, and inverts its clock in closed form; `ScalarReference` derives the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.process.reference import REFERENCES, ScalarReference
from latentsb.ranges import NonNegative, Positive, enforce

__all__ = ["OU", "VE", "VP", "Brownian", "Varying"]


@REFERENCES.register("brownian")
@dataclass(frozen=True, kw_only=True)
class Brownian(ScalarReference):
    """Brownian motion `dX = σ dW`; epsilon = σ², and σ = 0 is the straight line of flow matching.

    Args:
        sigma: diffusion coefficient.
    """

    sigma: NonNegative = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """`t`."""
        return t

    @property
    def total(self) -> float:
        """`σ²`."""
        return self.sigma**2

    def time_of_clock(self, r: Tensor) -> Tensor:
        """`r`."""
        return r.to(torch.float64)


@REFERENCES.register("varying")
@dataclass(frozen=True, kw_only=True)
class Varying(ScalarReference):
    """Brownian motion with a symmetric diffusion that is largest at t = 1/2; `g` is piecewise linear.

    The defaults are the continuous form of I2SB's schedule with `beta_max = 0.3`, whose epsilon is 0.141.

    Source: Liu et al. 2023, I2SB.

    Args:
        beta_ends: g² at t = 0 and t = 1.
        beta_middle: g² at t = 1/2.
    """

    beta_ends: Positive = 0.1
    beta_middle: Positive = 0.1866

    def __post_init__(self) -> None:
        enforce(self)

    def _half(self, t: Tensor) -> Tensor:
        """`∫_0^t g²` for t <= 1/2, where `g = √β_ends + 2 t (√β_middle − √β_ends)`."""
        g0 = math.sqrt(self.beta_ends)
        slope = 2 * (math.sqrt(self.beta_middle) - g0)
        return t * (g0**2 + t * (g0 * slope + t * slope**2 / 3))

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """`∫_0^t g² / ∫_0^1 g²`."""
        return torch.where(t <= 0.5, self._half(t) / self.total, 1 - self._half(1 - t) / self.total)

    @property
    def total(self) -> float:
        """`(β_ends + √(β_ends β_middle) + β_middle) / 3`."""
        return (self.beta_ends + math.sqrt(self.beta_ends * self.beta_middle) + self.beta_middle) / 3


@REFERENCES.register("vp")
@dataclass(frozen=True, kw_only=True)
class VP(ScalarReference):
    """Variance-preserving diffusion `dX = −β/2 X dt + √β dW` with `β = beta_min + beta_d t`.

    The defaults are those of diffusion bridges (0.1, 2); the standard schedule of score-based models is (0.1, 19.9).

    Source: Song et al. 2021, Sec. 3.4; Zhou et al. 2024, DDBM, Table 1; Kim et al. 2025, DBAE.

    Args:
        beta_min: β at t = 0.
        beta_d: growth of β over [0, 1].
    """

    beta_min: Positive = 0.1
    beta_d: NonNegative = 2.0

    def __post_init__(self) -> None:
        enforce(self)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_d / 2))

    def alpha(self, t: Tensor) -> Tensor:
        """`exp(−B/2)` with `B = ∫ β`."""
        return torch.exp(-self._integral(t) / 2)

    def clock(self, t: Tensor) -> Tensor:
        """`expm1(B_t) / expm1(B_1)`."""
        return torch.expm1(self._integral(t)) / self.total

    @property
    def total(self) -> float:
        """`expm1(B_1)`."""
        return math.expm1(self.beta_min + self.beta_d / 2)

    def time_of_clock(self, r: Tensor) -> Tensor:
        """Root of the quadratic `B_t = log(1 + ρ²)`, in the form that does not cancel."""
        integral = torch.log1p(r.to(torch.float64) * self.total)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * integral))


@REFERENCES.register("ve")
@dataclass(frozen=True, kw_only=True)
class VE(ScalarReference):
    """Variance-exploding diffusion with noise level `ρ_t = sigma_max t`.

    Source: Karras et al. 2022, EDM, with time scaled to [0, 1]; Zhou et al. 2024, DDBM, Table 1.

    Args:
        sigma_max: noise level at t = 1.
    """

    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        enforce(self)

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def clock(self, t: Tensor) -> Tensor:
        """`t²`."""
        return t.square()

    @property
    def total(self) -> float:
        """`sigma_max²`."""
        return self.sigma_max**2

    def time_of_clock(self, r: Tensor) -> Tensor:
        """`√r`."""
        return r.to(torch.float64).sqrt()


@REFERENCES.register("ou")
@dataclass(frozen=True, kw_only=True)
class OU(ScalarReference):
    """Ornstein-Uhlenbeck process `dX = −θ X dt + σ dW`; epsilon = σ² sinh(θ)/θ.

    Args:
        theta: rate of return to zero.
        sigma: diffusion coefficient.
    """

    theta: Positive = 1.0
    sigma: NonNegative = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def alpha(self, t: Tensor) -> Tensor:
        """`exp(−θ t)`."""
        return torch.exp(-self.theta * t)

    def clock(self, t: Tensor) -> Tensor:
        """`expm1(2 θ t) / expm1(2 θ)`."""
        return torch.expm1(2 * self.theta * t) / math.expm1(2 * self.theta)

    @property
    def total(self) -> float:
        """`σ² expm1(2 θ) / (2 θ)`."""
        return self.sigma**2 * math.expm1(2 * self.theta) / (2 * self.theta)

    def time_of_clock(self, r: Tensor) -> Tensor:
        """`log(1 + r expm1(2 θ)) / (2 θ)`."""
        return torch.log1p(r.to(torch.float64) * math.expm1(2 * self.theta)) / (2 * self.theta)
