"""Identities of the bridge of x0 ~ N(m0, s0²) that hold for any x1, and what they say of solvers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from latentsb.bridge import State
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.solvers.coordinates import NoiseCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.grid import LogUniform, Uniform
from latentsb.solvers.ode import Heun
from latentsb.solvers.sde import EulerMaruyama
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Condition, Spec

M0, S0, X1 = 0.25, 0.3, -0.4
ONE = torch.ones((), dtype=torch.float64)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture
def bridge(oracles):
    return oracles.gaussian(VP(), f64([M0]), f64([[S0**2]]), pinned=True)


@pytest.fixture
def pin():
    return Condition({"x1": f64([[X1]])})


def moments(t):
    """`mu_t = a x1 + b m0` and `V_t = b² s0² + c`, written from alpha = exp(−B/2), rho² = expm1(B), B = 0.1 t + t²."""
    integral, end = 0.1 * t + t * t, 1.1
    alpha, ratio = np.exp(-integral / 2), np.expm1(integral) / np.expm1(end)
    a, b = alpha * np.exp(end / 2) * ratio, alpha * (1 - ratio)
    return a * X1 + b * M0, b**2 * S0**2 + alpha**2 * np.expm1(integral) * (1 - ratio)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.8, 0.999])
def test_denoiser_and_score(bridge, pin, t):
    x = f64([[0.7]])
    mu, variance = moments(t)
    b = float(bridge.marginal(f64(t)).b)
    assert float(bridge.denoise(x, f64(t), pin)) == pytest.approx(M0 + b * S0**2 / variance * (0.7 - mu), abs=1e-11)
    assert float(bridge.score(x, f64(t), pin)) == pytest.approx(-(0.7 - mu) / variance, rel=1e-9)


def test_ode_transports_quantiles(bridge):
    """The flow of the velocity, by an adaptive solver of another library, takes mu + k sd to m0 + k s0."""
    k = np.array([-2.0, 0.0, 1.5])
    pins = Condition({"x1": f64([[X1]] * 3)})

    def velocity(t, x):
        return bridge.velocity(torch.from_numpy(x)[:, None], f64(t), pins)[:, 0].numpy()

    mu, variance = moments(1 - 1e-4)
    path = solve_ivp(velocity, (1 - 1e-4, 1e-6), mu + k * variance**0.5, rtol=1e-8, atol=1e-10, method="LSODA")
    there, spread = moments(1e-6)
    assert path.y[:, -1] == pytest.approx(there + k * spread**0.5, abs=1e-6)
    assert path.y[:, -1] == pytest.approx(M0 + k * S0, abs=3e-6)


def test_reverse_sde_has_the_law_of_the_ode(bridge, pin):
    """The moment equations of the executed backward drift `b_b = A x + C` end at (m0, s0²)."""

    def rates(t, law):
        zero, one = bridge.drift(f64([[0.0]]), f64(t), pin), bridge.drift(f64([[1.0]]), f64(t), pin)
        slope, offset = float(one - zero), float(zero)
        return [-(slope * law[0] + offset), -(2 * slope * law[1] + float(bridge.diffusion(f64(t))) ** 2)]

    mu, variance = moments(0.999)
    ends = solve_ivp(rates, (0.999, 1e-6), [mu, variance], rtol=1e-9, atol=1e-12, method="LSODA").y[:, -1]
    assert ends == pytest.approx(moments(1e-6), abs=1e-6)
    assert ends == pytest.approx([M0, S0**2], abs=3e-6)


def test_exact_endpoint_start_of_the_sde(bridge, pin):
    """From x1 at 1 − 1e-4 the SDE ends in the posterior of x0 given one state of noise sigma_eff = 79.8.

    Its variance is `s0² sigma²/(s0² + sigma²)`: .09 less a deficit of 1.3e-6.
    """

    def rates(t, law):
        zero, one = bridge.drift(f64([[0.0]]), f64(t), pin), bridge.drift(f64([[1.0]]), f64(t), pin)
        return -(2 * float(one - zero) * law + float(bridge.diffusion(f64(t))) ** 2)

    ends = solve_ivp(rates, (1 - 1e-4, 1e-9), [0.0], rtol=1e-10, atol=1e-13, method="LSODA").y[0, -1]
    sigma2 = float(bridge.marginal(f64(1 - 1e-4)).sigma_eff) ** 2
    assert ends == pytest.approx(S0**2 * sigma2 / (S0**2 + sigma2), abs=1e-9)
    assert ends == pytest.approx(0.09 - 1.27e-6, abs=1e-8)


def test_exact_endpoint_start_of_the_ode(oracles, bridge, pin):
    """The offset of x1 in standard units, −.0089 at 1 − 1e-4, is transported unchanged."""
    mu, variance = moments(1 - 1e-4)
    units = (X1 - mu) / variance**0.5
    assert units == pytest.approx(-0.0089, abs=5e-5)
    solver = Heun(
        steps=600,
        grid=LogUniform(sigma_max=float(bridge.marginal(f64(1 - 1e-4)).sigma_eff), sigma_min=1e-4),
        start=Endpoint(),
        coordinates=NoiseCoordinate(),
    )
    law = oracles.propagate(solver, bridge, x=f64([X1]), x1=f64([X1]))
    assert float(law.mean[0]) == pytest.approx(M0 + S0 * units, abs=6e-6)


def test_deterministic_solvers_do_not_see_the_endpoint(oracles):
    """With a denoiser of (y, t) the result is the median of x0 for any x1 as the start approaches t = 1."""
    weights, centres, spread = f64([0.3, 0.7]), f64([-0.6, 0.5]), f64([0.1, 0.2])

    def formula(y, sigma, cond):
        variance = spread**2 + sigma**2
        share = torch.softmax(weights.log() - variance.log() / 2 - (y - centres) ** 2 / (2 * variance), dim=1)
        return (share * (centres + spread**2 / variance * (y - centres))).sum(1, keepdim=True)

    mixture = oracles.Exact(VP(), Spec((1,), torch.float64), formula, pinned=True)
    x1 = f64([[-2.0], [0.0], [0.3], [3.0]])
    first = float(mixture.marginal(f64(1 - 1e-6)).sigma_eff)
    for solver in (
        Heun(steps=400, grid=LogUniform(sigma_max=first), start=Endpoint(), coordinates=NoiseCoordinate()),
        DPMpp(steps=800, grid=LogUniform(sigma_max=first), start=Endpoint()),
    ):
        ends = solver.run(mixture, State(x1, ONE, Condition({"x1": x1})), Draws.seeds(range(4))).x
        assert 0.38565 < float(ends.min()) < 0.3862
        assert 0.3877 < float(ends.max()) < 0.38825


def test_markov_posterior_forgets_the_endpoint(oracles):
    """With eta 1 the coefficients are those of q(x_t | x_s, x0), in which x1 does not occur."""

    reference = VP()
    known = oracles.Exact(reference, Spec((1,), torch.float64), lambda y, sigma, cond: torch.full_like(y, 0.3), True)

    def middle(x1, eta):
        solver = Posterior(steps=2, grid=Uniform(margin=0.3), start=Endpoint(), eta=eta)
        states = []
        solver.run(
            known,
            State(f64([[0.9]]), ONE, Condition({"x1": f64([[x1]])})),
            _Silent(),
            record=lambda state: states.append(float(state.x)),
        )
        return states[1]

    s, t = f64(0.7), f64(0.35)
    ratio = float(reference.rho2(t) / reference.rho2(s))
    alpha_s, alpha_t = float(reference.alpha(s)), float(reference.alpha(t))
    expected = alpha_t / alpha_s * ratio * 0.9 + alpha_t * (1 - ratio) * 0.3
    seen = [middle(x1, 1.0) for x1 in (-2.0, 0.0, 3.0)]
    assert seen == pytest.approx([expected] * 3, abs=1e-12)
    assert middle(3.0, 0.0) != pytest.approx(expected, abs=1e-2)


class _Silent:
    """Draws without noise."""

    def fork(self, name):
        return self

    def normal(self, name, like):
        return torch.zeros_like(like)


def test_euler_maruyama_approaches_the_law(oracles, bridge):
    """Started in the law at 0.999, the errors of mean and variance halve with the step."""
    mu, variance = moments(0.999)
    errors = []
    for steps in (50, 100, 200):
        solver = EulerMaruyama(steps=steps, grid=Uniform(margin=1e-3), start=Endpoint(), noiseless_last=False)
        law = oracles.propagate(solver, bridge, x=f64([mu]), root=f64([[variance**0.5]]), x1=f64([X1]), draws=steps)
        errors.append((abs(float(law.mean) - M0), abs(float(law.cov) - S0**2)))
    for coarse, fine in pairwise(errors):
        assert coarse[1] / fine[1] == pytest.approx(2, abs=0.25)
        assert fine[0] < coarse[0]
    assert errors[-1][1] < 5e-3
