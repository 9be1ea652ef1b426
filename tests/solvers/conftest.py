"""Bridges whose denoiser is known exactly, with a counted network, for the tests of solvers and guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

ONE = torch.ones((), dtype=torch.float64)
Denoiser = Callable[[Tensor, Tensor, Condition], Tensor]


class Oracle(Network):
    """A network whose answer is a formula in (y, sigma_eff, conditions)."""

    def __init__(self, spec: Spec, formula: Denoiser) -> None:
        super().__init__(spec)
        self.formula = formula

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.formula(x, t, cond)


class Exact(DenoisingBridge):
    """`E[x0 | y]` by formula, around the pinned or the one-sided marginal of a reference."""

    def __init__(self, reference: ScalarReference, spec: Spec, formula: Denoiser, pinned: bool) -> None:
        super().__init__()
        self.ends, self.reference, self.has_x1, self.t_min = Ends(spec), reference, pinned, 1e-9
        self.network = Oracle(spec, formula)

    def marginal(self, t: Tensor) -> Marginal:
        return self.reference.pinned(t) if self.has_x1 else self.reference.noised(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        there = self.marginal(t)
        if bool(there.b == 0):  # nothing is known of x0
            return self.network(torch.zeros_like(x), 1e100 * ONE, cond)
        return self.network(there.to_y(x, cond.get("x1")), there.sigma_eff, cond)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            return State(batch.data, 0 * ONE, batch.cond)
        if self.has_x1:
            return State(batch.cond["x1"], ONE, batch.cond)
        zero = torch.zeros(len(batch), *self.ends.spec.shape, dtype=self.ends.spec.dtype)
        return State(self.marginal(ONE).sample(zero, None, draws.normal("x1", zero)), ONE, batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError


class Straight(Bridge):
    """Flow matching between N(mean, cov) at t = 0 and a standard normal at t = 1, exactly; a plain bridge."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        self.mean, self.cov = mean, cov
        self.ends = Ends(Spec(mean.shape, mean.dtype))
        self.network = Oracle(self.ends.spec, self._velocity)

    def _velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        eye = torch.eye(len(self.mean), dtype=x.dtype)
        total = (1 - t) ** 2 * self.cov + t**2 * eye
        gain = (t * eye - (1 - t) * self.cov) @ torch.linalg.inv(total)
        return -self.mean + (x - (1 - t) * self.mean) @ gain.T

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        v = self.network(x, t, cond)
        return v if towards == "x1" else -v

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.network(x, t, cond)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        return State(draws.normal("x1", self.ends.spec.zeros(len(batch))), ONE, batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        raise NotImplementedError


def gaussian(reference: ScalarReference, mean: Tensor, cov: Tensor, *, pinned: bool) -> Exact:
    """The exact bridge of x0 ~ N(mean, cov), mean of shape (D,)."""

    def formula(y: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        gain = cov @ torch.linalg.inv(cov + sigma.square() * torch.eye(len(cov), dtype=cov.dtype))
        return mean + (y - mean) @ gain.T

    return Exact(reference, Spec(mean.shape, torch.float64), formula, pinned)


class Recorded:
    """Draws that return the next column of a given noise, so that a solver becomes an affine map of its noises."""

    def __init__(self, size: int) -> None:
        self.size, self.used, self.basis = size, 0, None

    def fork(self, name: str) -> Recorded:
        return self

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Row 0 gets no noise; row 1 + k D + j gets the unit vector j in the k-th draw."""
        out = torch.zeros_like(like)
        width = like[0].numel()
        first = 1 + self.used * width
        out.reshape(len(like), -1)[first : first + width] = torch.eye(width, dtype=like.dtype)
        self.used += 1
        return out


@dataclass(frozen=True)
class Law:
    """Exact mean and covariance of a solver's result."""

    mean: Tensor
    cov: Tensor
    calls: int


def propagate(
    solver: Solver,
    bridge: Bridge,
    *,
    x: Tensor,
    x1: Tensor | None = None,
    root: Tensor | None = None,
    towards: End = "x0",
    draws: int = 1,
) -> Law:
    """Mean and covariance of `solver.run` for an affine bridge, without Monte Carlo.

    The result is affine in the starting state and in every noise, so the columns of the map are read off from one
    batch: the trajectory without noise, one per unit of each noise, and one per unit of the start.

    Args:
        x: mean of the starting state, shape (D,).
        root: root of its covariance; none at a point.
        draws: how many times the solver draws noise.
    """
    width = len(x)
    rows = 1 + draws * width + (width if root is not None else 0)
    batch = x.expand(rows, width).clone()
    if root is not None:
        batch[1 + draws * width :] += root.T
    cond = Condition({} if x1 is None else {"x1": x1.expand(rows, width)})
    noise = Recorded(rows)
    t = ONE if towards == "x0" else 0 * ONE
    solution = solver.run(bridge, State(batch, t, cond), noise, towards)
    assert noise.used <= draws, f"{noise.used} draws of noise, {draws} expected"
    mean, columns = solution.x[0], solution.x[1:] - solution.x[0]
    return Law(mean, columns.T @ columns, solution.calls)


@dataclass(frozen=True)
class Oracles:
    """What the tests use of this file."""

    gaussian: Callable[..., Exact] = staticmethod(gaussian)
    propagate: Callable[..., Law] = staticmethod(propagate)
    Exact: type[Exact] = Exact
    Straight: type[Straight] = Straight
    Brownian: type[Brownian] = Brownian


@pytest.fixture(scope="session")
def oracles() -> Oracles:
    """Exact bridges and the exact law of a solver's result."""
    return Oracles()
