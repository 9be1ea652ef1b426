"""Solvers of higher order: their order, their two derivations, and their law under noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from latentsb.bridge import State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.references import VE, VP
from latentsb.randomness import Draws
from latentsb.solvers.exponential import DPMpp, Posterior, Posterior2
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.start import FromNoise
from latentsb.solvers.unipc import UniPC, follow
from latentsb.tensors import Condition, Spec

ONE = torch.ones((), dtype=torch.float64)


def curved(oracles):
    """A mixture of two Gaussians, whose denoiser bends."""

    def formula(y, sigma, cond):
        v = 0.09 + sigma.square()
        return (0.09 * y + sigma.square() * 0.5 * torch.tanh(0.5 * y / v)) / v

    bridge = oracles.Exact(VE(sigma_max=20.0), Spec((1,), torch.float64), formula, pinned=False)
    bridge.t_min = 1e-9
    return bridge


def ends(oracles, solver, grid):
    bridge = curved(oracles)
    x = 20 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] + 0.3
    kept = []
    chosen = type(solver)(**{**vars(solver), "grid": grid})
    chosen.run(bridge, State(x, ONE, Condition()), Draws.seeds(range(9)), record=kept.append)
    return kept[-2].x


@pytest.mark.parametrize(
    ("make", "order"),
    [(Posterior, 1), (DPMpp, 2), (Posterior2, 2), (lambda steps: UniPC(steps=steps, order=2), 3), (UniPC, 4)],
)
def test_order(oracles, make, order):
    """Errors at the last positive noise level, with twice the steps; one start of lower order may cost one order."""
    truth = ends(oracles, UniPC(steps=1600), LogUniform(sigma_max=20.0, sigma_min=0.05))
    errors = [
        float((ends(oracles, make(steps=n), LogUniform(sigma_max=20.0, sigma_min=0.05)) - truth).abs().max())
        for n in (81, 161, 321)
    ]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates[-1] > min(order, 3) - 0.35
    assert errors[-1] < 10 ** -(order + 1.0)


def test_one_step_of_posterior2_is_the_integral_of_a_line(oracles):
    """For a prediction that is a line in lambda the multistep solution is exact, and for eta 0 equals UniPC's."""
    h, u = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    y, d, old = (torch.tensor([[v]], dtype=torch.float64) for v in (1.3, 0.2, -0.5))
    found = follow(y, 0 * h, h, ((0 * h, d), (-u, old)))
    slope = (d - old) / u
    closed = torch.exp(-h) * y + (1 - torch.exp(-h)) * d + (torch.exp(-h) + h - 1) * slope
    torch.testing.assert_close(found, closed, rtol=1e-13, atol=0)
    torch.testing.assert_close(Posterior2().gain(h, h), torch.exp(-h) + h - 1, rtol=1e-13, atol=0)
    # With the Markov noise y decays twice as fast: ∫ 2 e^{−2(h−r)} r dr.
    r = torch.linspace(0, 0.7, 20001, dtype=torch.float64)
    integral = torch.trapezoid(2 * torch.exp(-2 * (h - r)) * r, r)
    torch.testing.assert_close(Posterior2().gain(h, 2 * h), integral, rtol=1e-8, atol=0)
    torch.testing.assert_close(DPMpp().gain(h, h), (1 - torch.exp(-h)) * h / 2, rtol=1e-13, atol=0)


def test_unipc_of_order_two_predicts_as_posterior2(oracles):
    """Until the first correction they are one method: two steps, then the last call."""
    grid = LogUniform(sigma_max=5.0, sigma_min=0.1)

    def two(solver):
        return ends(oracles, solver, grid)

    first = two(UniPC(steps=2, order=2))
    torch.testing.assert_close(first, two(Posterior2(steps=2)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_stochastic_step_is_the_published_one(oracles, eta):
    """`w = eta α_t ρ_t √(1 − ρ_t²/ρ_s²)` (Zheng et al. 2024, DBIM), which keeps the marginals whatever it is."""
    vp, mean = VP(), torch.tensor([0.25], dtype=torch.float64)
    bridge = oracles.gaussian(vp, mean, torch.tensor([[0.01]], dtype=torch.float64), pinned=True)
    s, t = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.4))
    x1 = torch.full((3, 1), -0.1, dtype=torch.float64)
    state, draws = State(torch.tensor([[0.5], [0.1], [-1.0]]).double(), s, Condition({"x1": x1})), Draws.seeds(range(3))
    found = Posterior(eta=eta).step(bridge, state, t, draws, "x0", None)[0].x
    here, there, x0 = vp.pinned(s), vp.pinned(t), bridge.denoise(state.x, s, state.cond)
    w = eta * vp.alpha(t) * (vp.rho2(t) * (1 - vp.rho2(t) / vp.rho2(s))).sqrt()
    left = (state.x - here.a * x1 - here.b * x0) * ((there.c - w**2) / here.c).sqrt()
    expected = there.a * x1 + there.b * x0 + left + w * draws.normal("noise", x0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make", [DPMpp, Posterior2])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_second_order_keeps_the_law(oracles, make, eta):
    """Exact propagation: with noise the spread's error is far below first order's, and falls by four with the steps."""
    mean = torch.tensor([0.25], dtype=torch.float64)
    bridge = oracles.gaussian(VP(), mean, torch.tensor([[0.01]], dtype=torch.float64), pinned=True)

    def error(solver):
        law = oracles.propagate(solver, bridge, x=mean, x1=mean, draws=solver.steps)
        assert float(law.mean[0]) == pytest.approx(0.25, abs=6e-4)
        return abs(float(law.cov[0, 0].sqrt()) / 0.1 - 1)

    coarse, fine = error(make(steps=40, eta=eta)), error(make(steps=80, eta=eta))
    assert coarse < error(Posterior(steps=40, eta=eta)) / 3
    assert coarse / fine > 3


def test_refusals(oracles):
    bridge = curved(oracles)
    state = State(torch.ones(1, 1, dtype=torch.float64), 0 * ONE, Condition())
    for solver in (UniPC(), Posterior2(), Hybrid()):
        with pytest.raises(CapabilityError, match="towards x0 only"):
            solver.run(bridge, state, Draws.seeds([0]), "x1")
    with pytest.raises(ArgumentError, match="churn"):
        Hybrid(churn=1.0)
    with pytest.raises(ArgumentError, match="order"):
        UniPC(order=5)
    plain = oracles.Straight(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    with pytest.raises(CapabilityError, match="needs a DenoisingBridge"):
        Hybrid().run(plain, State(torch.ones(1, 2, dtype=torch.float64), ONE, Condition()), Draws.seeds([0]))


@pytest.mark.parametrize(
    ("solver", "calls"),
    [
        (Hybrid(steps=5, churn=0.0, corrector=False), 5),
        (Hybrid(steps=5, churn=0.0), 9),
        (Hybrid(steps=5, corrector=False), 10),
        (Hybrid(steps=5), 14),
        (UniPC(steps=5), 5),
        (Posterior2(steps=5), 5),
        (DPMpp(steps=5, start=FromNoise(), eta=0.5), 5),
    ],
)
def test_calls(oracles, solver, calls):
    mean = torch.tensor([0.25], dtype=torch.float64)
    bridge = oracles.gaussian(VP(), mean, torch.tensor([[0.01]], dtype=torch.float64), pinned=True)
    bridge.t_min = 1e-4
    state = State(mean[None], ONE, Condition({"x1": mean[None]}))
    assert solver.run(bridge, state, Draws.seeds([0])).calls == calls
