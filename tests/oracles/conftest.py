"""Linear references of every form, and two normal laws in three dimensions that share no axis."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentsb.oracles.normal import Normal
from latentsb.process.reference import LinearGaussian, Reference
from latentsb.process.references import OU, VE, VP, Brownian, Varying

F = torch.tensor([[-0.6, 0.9, 0.0], [-0.4, -0.2, 0.3], [0.2, 0.0, 0.5]], dtype=torch.float64)
C = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
G = torch.tensor([[0.9, 0.0, 0.0], [0.3, 0.7, 0.0], [-0.2, 0.4, 1.1]], dtype=torch.float64)


class Matrix(Reference):
    """`dX = (F X + C) dt + G dW` with constant matrices, by Van Loan's block exponential."""

    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        h, d = (t - s)[:, None, None], len(F)
        zero = torch.zeros(d, d, dtype=torch.float64)
        blocks = torch.matrix_exp(h * torch.cat([torch.cat([-F, G @ G.T], 1), torch.cat([zero, F.T], 1)]))
        Phi = blocks[:, d:, d:].mT
        m = torch.linalg.solve(F, ((Phi - torch.eye(d, dtype=torch.float64)) @ C)[..., None])[..., 0]
        return LinearGaussian(Phi, m, Phi @ blocks[:, :d, d:])

    def g(self, t: Tensor) -> Tensor:
        raise NotImplementedError("the noise is a matrix")


class Diagonal(Reference):
    """`dX_i = −θ_i X_i dt + σ_i dW_i`, with diagonals of shape (B, D)."""

    theta = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    sigma = torch.tensor([1.0, 0.6, 1.4], dtype=torch.float64)

    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        h = (t - s)[:, None]
        Q = self.sigma.square() * -torch.expm1(-2 * self.theta * h) / (2 * self.theta)
        Phi = torch.exp(-self.theta * h)
        return LinearGaussian(Phi, torch.zeros_like(Phi), Q)

    def g(self, t: Tensor) -> Tensor:
        raise NotImplementedError("the noise is a vector")


SCALAR = [
    Brownian(sigma=1.2),
    Varying(beta_ends=0.1, beta_middle=1.3),
    OU(theta=1.7, sigma=0.6),
    VP(),
    VE(sigma_max=3.0),
]


def name(reference: Reference) -> str:
    return type(reference).__name__


@pytest.fixture(params=[*SCALAR, Diagonal(), Matrix()], ids=name)
def reference(request: pytest.FixtureRequest) -> Reference:
    return request.param


@pytest.fixture(params=SCALAR, ids=name)
def scalar(request: pytest.FixtureRequest) -> Reference:
    return request.param


@pytest.fixture
def matrix() -> tuple[Reference, Tensor, Tensor, Tensor]:
    """The matrix reference and what it is made of: F, C and G."""
    return Matrix(), F, C, G


def _covariance(values: tuple[float, ...], angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    first = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]], dtype=torch.float64)
    turn = first @ second
    return turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turn.T


@pytest.fixture
def x0() -> Normal:
    """Covariance with eigenvalues 0.4, 1 and 2.5."""
    return Normal(torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), _covariance((0.4, 1.0, 2.5), 0.7))


@pytest.fixture
def x1() -> Normal:
    """Covariance with eigenvalues 1.5, 0.3 and 0.8, turned otherwise."""
    return Normal(torch.tensor([-0.3, 0.8, 1.0], dtype=torch.float64), _covariance((1.5, 0.3, 0.8), -1.1))
