"""A correlated Gaussian through every solver: the law of the result is predicted, step by step, to rounding.

The prediction is a second derivation. In the eigenbasis of the covariance every step is a scalar affine map, whose
coefficients are written here in numpy from the closed forms of the schedules (derivatives by complex step), of the
probability-flow velocity as the transport `mu' + V'/(2V) (x − mu)` of the Gaussian path, and of the published DDIM
and DPM-Solver++ steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from latentsb.process.references import VE, VP
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.grid import Karras, KarrasTime, LogUniform, Uniform
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.sde import EulerMaruyama

Q = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
LAMBDA = np.array([0.04, 0.3, 1.7])
COV = Q * LAMBDA @ Q.T
MEAN = np.array([0.4, -1.1, 0.2])
X1 = np.array([0.9, 0.1, -0.6])
TINY = 1e-30


@dataclass(frozen=True)
class World:
    """A kind of bridge, in closed form: alpha, rho² and g² of t, whether x1 is pinned, or the straight flow."""

    name: str
    alpha: object
    rho2: object
    g2: object
    pinned: bool = False
    straight: bool = False

    def coefficients(self, t):
        """a, b, c of X_t | x0, x1; for the straight flow x1 is the noise."""
        if self.straight:
            return 0 * t, 1 - t, t**2
        alpha, rho2 = self.alpha(t), self.rho2(t)
        if not self.pinned:
            return 0 * t, alpha, alpha**2 * rho2
        ratio = rho2 / self.rho2(1.0)
        return alpha / self.alpha(1.0) * ratio, alpha * (1 - ratio), alpha**2 * rho2 * (1 - ratio)

    def moments(self, t):
        """Mean and variance of X_t in the eigenbasis, each (3,)."""
        a, b, c = self.coefficients(t)
        return a * (Q.T @ X1) + b * (Q.T @ MEAN), b**2 * LAMBDA + c

    def velocity(self, t):
        """Slope and offset of the transport of the Gaussian path."""
        mu, variance = self.moments(t)
        mu_dot, variance_dot = (np.imag(m) / TINY for m in self.moments(t + 1j * TINY))
        slope = variance_dot / (2 * variance)
        return slope, mu_dot - slope * mu

    def executed_drift(self, t, towards):
        """Slope and offset of `±velocity + g²/2 score`."""
        slope, offset = self.velocity(t)
        mu, variance = self.moments(t)
        sign = 1 if towards == "x1" else -1
        pull = self.g2(t) / 2 / variance
        return sign * slope - pull, sign * offset + pull * mu

    def sigma(self, t):
        _, b, c = self.coefficients(t)
        return np.sqrt(c) / b


def vp(beta_d):
    return {
        "alpha": lambda t: np.exp(-(0.1 * t + beta_d / 2 * t * t) / 2),
        "rho2": lambda t: np.expm1(0.1 * t + beta_d / 2 * t * t),
        "g2": lambda t: 0.1 + beta_d * t,
    }


STRAIGHT = World("straight", None, None, lambda t: 0.0, straight=True)
SCORE_VE = World("score ve", lambda t: 1 + 0 * t, lambda t: (10 * t) ** 2, lambda t: 200 * t)
SCORE_VP = World("score vp", **vp(19.9))
PINNED = World("pinned vp", **vp(2.0), pinned=True)


def build(oracles, world):
    mean, cov = torch.from_numpy(MEAN), torch.from_numpy(COV)
    if world.straight:
        return oracles.Straight(mean, cov)
    reference = {"score ve": VE(sigma_max=10.0), "score vp": VP(beta_d=19.9), "pinned vp": VP()}[world.name]
    bridge = oracles.gaussian(reference, mean, cov, pinned=world.pinned)
    bridge.t_min = 1e-4
    return bridge


class Chain:
    """Mean (3,) and variance (3,) of an affine chain in the eigenbasis, with the covariance to a remembered value."""

    def __init__(self, mean, variance):
        self.mean, self.variance = mean, variance

    def apply(self, slope, offset, noise=0.0):
        self.mean, self.variance = slope * self.mean + offset, slope**2 * self.variance + noise


def predict_time(world, solver, times, chain, towards):
    """Euler, Heun and Euler–Maruyama in t."""
    for i, (t, s) in enumerate(pairwise(times)):
        h = s - t
        if isinstance(solver, EulerMaruyama):
            slope, offset = world.executed_drift(t, towards)
            last = i == len(times) - 2 and solver.noiseless_last
            chain.apply(1 + abs(h) * slope, abs(h) * offset, 0.0 if last else world.g2(t) * abs(h))
            continue
        slope, offset = world.velocity(t)
        if isinstance(solver, Heun) and (world.straight or s > 0):
            far, shift = world.velocity(s)
            ahead_slope, ahead_offset = 1 + h * slope, h * offset
            offset = (offset + far * ahead_offset + shift) / 2
            slope = (slope + far * ahead_slope) / 2
        chain.apply(1 + h * slope, h * offset)


def predict_noise(world, solver, times, chain):
    """Euler and Heun in sigma, DDIM steps and DPM-Solver++ 2M, as maps of y − m with gain λ/(λ + σ²)."""
    m, before = Q.T @ MEAN, None
    gain = lambda sigma: LAMBDA / (LAMBDA + sigma**2)  # noqa: E731
    # Multistep methods mix two predictions of the same trajectory: follow y and D as multiples of the start.
    y, added, start_mean, start_var = 1.0, 0.0, chain.mean - m, chain.variance
    for t, s in pairwise(times):
        sigma, target = world.sigma(t), world.sigma(s) if s > 0 else 0.0
        d = gain(sigma) * y
        ratio = target / sigma
        if isinstance(solver, Posterior):
            alpha_ratio = world.rho2(s) / world.rho2(t)
            b = world.coefficients(s)[1]
            w = solver.eta * world.alpha(s) * np.sqrt(world.rho2(s) * (1 - alpha_ratio)) / b
            k = np.sqrt(max(target**2 - w**2, 0)) / sigma
            step = gain(sigma) + k * (1 - gain(sigma))
            y, added = step * y, step**2 * added + w**2
        elif isinstance(solver, DPMpp):
            ahead = d
            if before is not None and target > 0:
                ahead = d + np.log(sigma / target) / (2 * before[1]) * (d - before[0])
            before = (d, np.log(sigma / target) if target > 0 else np.inf)
            y = ratio * y + (1 - ratio) * ahead
        else:
            slope = (1 - gain(sigma)) / sigma
            if isinstance(solver, Heun) and target > 0:
                slope = (slope + (1 - gain(target)) / target * (1 + (target - sigma) * slope)) / 2
            y = (1 + (target - sigma) * slope) * y
    chain.mean, chain.variance = m + y * start_mean, y**2 * start_var + added


def starts(world):
    """Mean of x and (std of x) at t = 1, and whether the solver's own start adds noise."""
    if world.straight:
        return np.zeros(3), 1.0
    c = world.coefficients(1.0)[2]
    return (X1, 0.0) if world.pinned else (np.zeros(3), np.sqrt(c))


TIME = [
    Euler(steps=12, grid=Uniform(), coordinates=TimeCoordinate()),
    Heun(steps=9, grid=Uniform(), coordinates=TimeCoordinate()),
    EulerMaruyama(steps=15, grid=Uniform()),
    EulerMaruyama(steps=15, grid=Uniform(), noiseless_last=False),
]
NOISE = [
    Euler(steps=12, grid=LogUniform(), coordinates=NoiseCoordinate()),
    Heun(steps=9, grid=Karras(), coordinates=NoiseCoordinate()),
    *[Posterior(steps=14, eta=eta) for eta in (0.0, 0.5, 1.0)],
    Posterior(steps=14, eta=1.0, grid=Uniform()),
    DPMpp(steps=13),
    DPMpp(steps=13, grid=KarrasTime()),
]
CASES = [(STRAIGHT, s) for s in TIME] + [(w, s) for w in (SCORE_VE, SCORE_VP, PINNED) for s in (*TIME, *NOISE)]


@pytest.mark.parametrize(("world", "solver"), CASES, ids=lambda v: getattr(v, "name", type(v).__name__))
def test_law_towards_data(oracles, world, solver):
    bridge = build(oracles, world)
    times = solver.grid.times(bridge, solver.steps).numpy()
    x, std = starts(world)
    law = oracles.propagate(
        solver,
        bridge,
        x=torch.from_numpy(x),
        root=std * torch.eye(3, dtype=torch.float64) if std else None,
        x1=torch.from_numpy(X1) if world.pinned else None,
        draws=solver.steps + 1,
    )
    a, _, c = world.coefficients(times[0])
    in_y = any(solver is s for s in NOISE)
    if in_y:  # y = (x − a x1)/b, and x = a x1 + sqrt(c) eps at the first time
        chain = Chain(np.zeros(3), np.full(3, world.sigma(times[0]) ** 2))
        predict_noise(world, solver, times, chain)
    else:
        chain = Chain(a * (Q.T @ X1), np.full(3, c))
        predict_time(world, solver, times, chain, "x0")
    np.testing.assert_allclose(law.mean, Q @ chain.mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(law.cov, Q * chain.variance @ Q.T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("world", [STRAIGHT, SCORE_VE, SCORE_VP, PINNED], ids=lambda w: w.name)
@pytest.mark.parametrize("solver", TIME, ids=lambda s: type(s).__name__)
def test_law_towards_the_other_end(oracles, world, solver):
    bridge = build(oracles, world)
    times = solver.grid.times(bridge, solver.steps, "x1").numpy()
    law = oracles.propagate(
        solver,
        bridge,
        x=torch.from_numpy(MEAN),
        root=torch.from_numpy(Q * np.sqrt(LAMBDA)),
        x1=torch.from_numpy(X1) if world.pinned else None,
        towards="x1",
        draws=solver.steps,
    )
    a, b, _ = world.coefficients(times[0])
    chain = Chain(b * (Q.T @ MEAN) + a * (Q.T @ X1), b**2 * LAMBDA)
    predict_time(world, solver, times, chain, "x1")
    np.testing.assert_allclose(law.mean, Q @ chain.mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(law.cov, Q * chain.variance @ Q.T, rtol=1e-7, atol=1e-9)


DEFAULTS = [(w, s) for w in (STRAIGHT, SCORE_VE, SCORE_VP, PINNED) for s in (Euler(), Heun(), EulerMaruyama())]
DEFAULTS += [(w, s) for w in (SCORE_VE, SCORE_VP, PINNED) for s in (Posterior(), DPMpp())]


@pytest.mark.parametrize(("world", "solver"), DEFAULTS, ids=lambda v: getattr(v, "name", type(v).__name__))
def test_defaults_suit_every_bridge(oracles, world, solver):
    """Solvers left at their defaults reach the variance to the size of one step, whatever the bridge.

    A first-order method's relative error is at most its step where that is `ln(80/0.003)/n` in the noise level; along
    straight lines `x = √V z`, Euler's is `∫ √V''/√V dt / n = ∫ λ/V² dt / n` to first order. A start from noise alone
    leaves out `λ/sigma²`.
    """
    bridge = build(oracles, world)
    x, std = starts(world)
    law = oracles.propagate(
        solver,
        bridge,
        x=torch.from_numpy(x),
        root=std * torch.eye(3, dtype=torch.float64) if std else None,
        x1=torch.from_numpy(X1) if world.pinned else None,
        draws=solver.steps + 1,
    )
    t = np.linspace(0, 1, 2001)[:, None]
    curvature = np.trapezoid(LAMBDA / ((1 - t) ** 2 * LAMBDA + t**2) ** 2, t, axis=0)
    step = (1.1 * curvature if world.straight else np.log(80 / 0.003)) / solver.steps
    first = float(solver.grid.times(bridge, solver.steps)[0])
    left_out = 0 if world.straight else LAMBDA / world.sigma(first) ** 2
    found = np.diag(Q.T @ law.cov.numpy() @ Q)
    assert (np.abs(found / LAMBDA - 1) < step + left_out).all(), found / LAMBDA


ORDERS = [
    (STRAIGHT, lambda n: Euler(steps=n), 1),
    (STRAIGHT, lambda n: Heun(steps=n), 2),
    (SCORE_VP, lambda n: EulerMaruyama(steps=2 * n, grid=Uniform(), noiseless_last=False), 1),
    (SCORE_VE, lambda n: Posterior(steps=n, grid=LogUniform(sigma_min=1e-3)), 1),
    (PINNED, lambda n: Posterior(steps=n, grid=LogUniform(sigma_min=1e-3), eta=1.0), 1),
    (PINNED, lambda n: Euler(steps=n, grid=LogUniform(sigma_min=1e-3), coordinates=NoiseCoordinate()), 1),
    (PINNED, lambda n: Heun(steps=n, grid=LogUniform(sigma_min=1e-3), coordinates=NoiseCoordinate()), 2),
    (PINNED, lambda n: DPMpp(steps=n, grid=LogUniform(sigma_min=1e-3)), 2),
    (SCORE_VP, lambda n: DPMpp(steps=n, grid=LogUniform(sigma_min=1e-3)), 2),
]


@pytest.mark.parametrize(("world", "make", "order"), ORDERS)
def test_order(oracles, world, make, order):
    """Twice the steps leave half of the error of the covariance, or a quarter.

    What a start at y ~ N(0, sigma_max²) leaves out, `λ²/sigma_max²` of the variance, does not depend on the steps.
    """
    errors = []
    bridge = build(oracles, world)
    bridge.t_min = 1e-9
    x, std = starts(world)
    for steps in (32, 64, 128):
        solver = make(steps)
        first = float(solver.grid.times(bridge, steps)[0])
        exact = LAMBDA.copy()
        if not world.straight:
            sigma2 = world.sigma(first) ** 2
            exact = LAMBDA * sigma2 / (LAMBDA + sigma2)
        law = oracles.propagate(
            solver,
            bridge,
            x=torch.from_numpy(x),
            root=std * torch.eye(3, dtype=torch.float64) if std else None,
            x1=torch.from_numpy(X1) if world.pinned else None,
            draws=solver.steps + 1,
        )
        errors.append(np.linalg.norm(law.cov.numpy() - Q * exact @ Q.T))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.2)
