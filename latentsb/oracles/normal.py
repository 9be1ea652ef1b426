"""Normal laws, joint normal laws of two ends, and affine maps: what every exact answer for Gaussians is made of.

All in float64 on the CPU, for vectors of any length D. Covariances may be singular (a point mass is a normal law).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.randomness import Draws

__all__ = ["Affine", "Joint", "Normal", "square_root"]


def square_root(cov: Tensor) -> Tensor:
    """The symmetric positive semi-definite root of a covariance, shape (..., D, D)."""
    values, vectors = torch.linalg.eigh((cov + cov.mT) / 2)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    return root


def gain(cross: Tensor, cov: Tensor) -> Tensor:
    """`cross cov⁺`, the slope of a conditional mean; directions without spread have none."""
    slope: Tensor = cross @ torch.linalg.pinv(cov, hermitian=True)
    return slope


@dataclass(frozen=True)
class Affine:
    """The map `x ↦ A x + v`.

    Args:
        A: shape (D, D).
        v: shape (D,).
    """

    A: Tensor
    v: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to rows x, shape (..., D), in float64; the result has the type and device of x."""
        return (x.to("cpu", torch.float64) @ self.A.T + self.v).to(x)

    def __add__(self, other: Affine) -> Affine:
        return Affine(self.A + other.A, self.v + other.v)

    def __sub__(self, other: Affine) -> Affine:
        return Affine(self.A - other.A, self.v - other.v)

    def __rmul__(self, scale: float) -> Affine:
        return Affine(scale * self.A, scale * self.v)

    def left(self, matrix: Tensor) -> Affine:
        """The map followed by a matrix of shape (D, D)."""
        return Affine(matrix @ self.A, matrix @ self.v)

    def after(self, first: Affine) -> Affine:
        """The map that applies `first` and then this one."""
        return Affine(self.A @ first.A, self.A @ first.v + self.v)

    @classmethod
    def identity(cls, dim: int) -> Affine:
        """`x ↦ x`."""
        return cls(torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64))


@dataclass(frozen=True)
class Normal:
    """The normal law `N(mean, cov)`.

    Args:
        mean: shape (D,), float64.
        cov: symmetric positive semi-definite, shape (D, D), float64.
    """

    mean: Tensor
    cov: Tensor

    @classmethod
    def isotropic(cls, dim: int, mean: float = 0.0, variance: float = 1.0) -> Normal:
        """`N(mean 1, variance I)` in `dim` dimensions."""
        return cls(torch.full((dim,), mean, dtype=torch.float64), variance * torch.eye(dim, dtype=torch.float64))

    @classmethod
    def fitted(cls, samples: Tensor) -> Normal:
        """The law with the mean and the unbiased covariance of samples, shape (n, D), n > 1."""
        x = samples.double()
        centred = x - x.mean(0)
        return cls(x.mean(0), centred.T @ centred / (len(x) - 1))

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def entropy(self) -> float:
        """Differential entropy `½ ln det(2πe cov)` in nats; −∞ where the covariance is singular."""
        return float(torch.logdet(self.cov) + self.dim * (1 + math.log(2 * math.pi))) / 2

    def sample(self, n: int, draws: Draws, name: str = "normal") -> Tensor:
        """Draw n vectors, float64, shape (n, D)."""
        noise = draws.normal(name, torch.empty(n, self.dim, dtype=torch.float64))
        return self.mean + noise @ square_root(self.cov)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of rows x, shape (B, D), as (B,); the covariance must be positive definite."""
        root: Tensor = torch.linalg.cholesky(self.cov)
        white: Tensor = torch.linalg.solve_triangular(root, (x.double() - self.mean).T, upper=False)
        volume = root.diagonal().log().sum() + self.dim / 2 * math.log(2 * math.pi)
        return -white.square().sum(0) / 2 - volume

    def kl(self, other: Normal) -> float:
        """`KL(self ‖ other)` in nats; the other law must have full rank."""
        gap = other.mean - self.mean
        ratio = torch.linalg.solve(other.cov, self.cov)
        pull = gap @ torch.linalg.solve(other.cov, gap)
        return float(ratio.trace() + pull - self.dim - torch.logdet(ratio)) / 2

    def push(self, kernel: Affine, noise: Tensor | None = None) -> Normal:
        """Law of `A X + v + ε` with independent `ε ~ N(0, noise)`."""
        cov = kernel.A @ self.cov @ kernel.A.T
        return Normal(kernel.A @ self.mean + kernel.v, cov if noise is None else cov + noise)


@dataclass(frozen=True)
class Joint:
    """A joint normal law of the two ends: a coupling.

    Args:
        x0: law of the data end.
        x1: law of the other end.
        cross: `Cov(X0, X1)`, shape (D, D); not symmetric in general.
    """

    x0: Normal
    x1: Normal
    cross: Tensor

    @classmethod
    def independent(cls, x0: Normal, x1: Normal) -> Joint:
        """The product of the ends."""
        return cls(x0, x1, torch.zeros_like(x0.cov))

    @property
    def dim(self) -> int:
        """D, of each end."""
        return self.x0.dim

    @property
    def law(self) -> Normal:
        """The normal law of `(X0, X1)` in 2 D dimensions."""
        top, bottom = torch.cat([self.x0.cov, self.cross], 1), torch.cat([self.cross.T, self.x1.cov], 1)
        return Normal(torch.cat([self.x0.mean, self.x1.mean]), torch.cat([top, bottom]))

    @property
    def pull(self) -> Tensor:
        """Minus the block (X0, X1) of the precision, shape (D, D): the density is `exp(x0ᵀ pull x1)` times ends."""
        precision: Tensor = torch.linalg.inv(self.law.cov)
        return -precision[: self.dim, self.dim :]

    @property
    def information(self) -> float:
        """Mutual information of the ends in nats."""
        return self.x0.entropy + self.x1.entropy - self.law.entropy

    def x1_given_x0(self) -> tuple[Affine, Tensor]:
        """`E[X1 | x0]` as a map of x0, and the covariance around it."""
        slope = gain(self.cross.T, self.x0.cov)
        return Affine(slope, self.x1.mean - slope @ self.x0.mean), self.x1.cov - slope @ self.cross

    def x0_given_x1(self) -> tuple[Affine, Tensor]:
        """`E[X0 | x1]` as a map of x1, and the covariance around it."""
        return self.reversed().x1_given_x0()

    def reversed(self) -> Joint:
        """The same law with the names of the ends exchanged."""
        return Joint(self.x1, self.x0, self.cross.T)

    def sample(self, n: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw n pairs `(x0, x1)`, float64, shape (n, D) each."""
        x = self.law.sample(n, draws, "pair")
        return x[:, : self.dim], x[:, self.dim :]
