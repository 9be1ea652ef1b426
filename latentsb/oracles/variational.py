"""Variational Schrödinger diffusion between centred Gaussians without any network: exact stages in closed form.

A stage knows the score of the forward process, `−Σ_f⁻¹ x`, and the covariance Σ_b of its exact reversal started from
N(0, I) instead of the law that the forward process arrives at. The minimum of the policy's objective is then

    A = A° + Σ_f⁻¹ − zeta Σ_b⁻¹          at each time, and over one constant matrix
    A = A° + ∫ β (Σ_f⁻¹ Σ_b − zeta I) dt (∫ β Σ_b dt)⁻¹.

Started at A = 0 and with zeta = 1, stages with a matrix for each time are those of iterative proportional fitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.process.matrix import F64, MatrixOU, Rate

__all__ = ["Stage", "bridge_variance", "first", "renewed"]


@dataclass(frozen=True)
class Stage:
    """Where a forward process and its reversal from N(0, I) are at the middles of N intervals.

    Args:
        process: of the stage.
        forward: Σ_f, shape (N, D, D).
        backward: Σ_b, shape (N, D, D).
        end: Σ_f at t = 1, shape (D, D).
        generated: Σ_b at t = 0, shape (D, D).
    """

    process: MatrixOU
    forward: Tensor
    backward: Tensor
    end: Tensor
    generated: Tensor

    @property
    def weights(self) -> Tensor:
        """∫β over each interval, shape (N, 1, 1)."""
        edges = torch.linspace(0, 1, len(self.forward) + 1, dtype=F64)
        return self.process.rate.integral(edges).diff()[:, None, None]

    @property
    def energy(self) -> float:
        """`½ E ∫ |√β A x|² dt` of the forward process: its Kullback–Leibler divergence from the one without A."""
        A = self.process.A
        return float((self.weights * A @ self.forward @ A.mT).diagonal(dim1=1, dim2=2).sum() / 2)


def first(rate: Rate, cov0: Tensor, intervals: int) -> Stage:
    """The stage with A = 0."""
    dim = len(cov0)
    return _stage(rate, cov0, torch.zeros(intervals, dim, dim, dtype=F64))


def renewed(stage: Stage, cov0: Tensor, *, zeta: float = 1.0, constant: bool = False) -> Stage:
    """The next stage.

    Args:
        stage: the present one.
        cov0: of the data, shape (D, D), float64.
        zeta: weight of the divergence.
        constant: one matrix for all times.
    """
    beta, inverse = stage.weights, torch.linalg.inv(stage.forward)
    if constant:
        one = torch.eye(len(cov0), dtype=F64)
        pull = (beta * (inverse @ stage.backward - zeta * one)).sum(0)
        push = pull @ torch.linalg.inv((beta * stage.backward).sum(0))
    else:
        push = inverse - zeta * torch.linalg.inv(stage.backward)
    return _stage(stage.process.rate, cov0, stage.process.A + push)


def _stage(rate: Rate, cov0: Tensor, A: Tensor) -> Stage:
    n, dim = len(A), len(cov0)
    process = MatrixOU(rate, A, torch.zeros(n, dim, dtype=F64))
    times = torch.linspace(0, 1, 2 * n + 1, dtype=F64)
    law = process.along(times)
    forward = law.Phi @ cov0 @ law.Phi.mT + law.Q
    moves = process.transition(times[:-1], times[1:])
    here, backward = torch.eye(dim, dtype=F64), []
    for k in reversed(range(2 * n)):
        # X_s given X_t of a Gaussian process: gain S Phiᵀ T⁻¹ and what is left of S.
        gain = forward[k] @ moves.Phi[k].mT @ torch.linalg.inv(forward[k + 1])
        here = gain @ here @ gain.mT + forward[k] - gain @ moves.Phi[k] @ forward[k]
        backward.append(here)
    backward.reverse()
    return Stage(process, forward[1::2], torch.stack(backward)[1::2], forward[-1], here)


def bridge_variance(rate: Rate, variance0: float, t: Tensor) -> Tensor:
    """Variance of the Schrödinger bridge from N(0, variance0) to N(0, 1) over `dX = −β/2 X dt + √β dW`, on the line.

    With `α = exp(−∫β/2)` the ends have the covariance c, `α c² + (1 − α²) c − α variance0 = 0`; between them the
    process is the pinned reference.
    """
    a1 = torch.exp(-rate.integral(torch.ones((), dtype=F64)) / 2)
    at = torch.exp(-rate.integral(t) / 2)
    c = (-(1 - a1**2) + ((1 - a1**2) ** 2 + 4 * a1**2 * variance0).sqrt()) / (2 * a1)
    rest, passed, whole = 1 - (a1 / at) ** 2, 1 - at**2, 1 - a1**2
    w0, w1 = at * rest / whole, a1 / at * passed / whole
    return w0**2 * variance0 + 2 * w0 * w1 * c + w1**2 + passed * rest / whole
