"""The ODE to a tolerance: its error, its two directions, its calls, and what batches share."""

from __future__ import annotations

import pytest
import torch

from latentsb.bridge import State
from latentsb.errors import ArgumentError, Error
from latentsb.process.references import VE, VP
from latentsb.randomness import Draws
from latentsb.solvers.adaptive import Adaptive, integrate
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.solvers.grid import LogUniform, Uniform
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Condition

ONE = torch.ones((), dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=torch.float64)
X = torch.tensor([[1.0, -1.0], [0.2, 0.7], [-1.5, 0.3]], dtype=torch.float64)


def run(solver, bridge, x, t, towards="x0"):
    return solver.run(bridge, State(x, t, Condition()), Draws.seeds(range(len(x))), towards)


def transported(x, first, last):
    """The ODE's closed form between two noise levels: along each eigenvector the deviation keeps its rank."""
    values, vectors = torch.linalg.eigh(COV)
    ratio = ((values + last**2) / (values + first**2)).sqrt()
    return MEAN + ((x - MEAN) @ vectors) * ratio @ vectors.T


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_noise_coordinates_reach_the_closed_form(oracles, tolerance):
    bridge = oracles.gaussian(VE(sigma_max=20.0), MEAN, COV, pinned=False)
    bridge.t_min = 1e-6
    grid = LogUniform(sigma_max=20.0, sigma_min=0.003)
    solver = Adaptive(grid=grid, coordinates=NoiseCoordinate(), rtol=tolerance, atol=tolerance)
    solution = run(solver, bridge, 20 * X, ONE)
    at_least = transported(20 * X, 20.0, 0.003)
    gain = COV @ torch.linalg.inv(COV + 0.003**2 * torch.eye(2, dtype=torch.float64))
    expected = MEAN + (at_least - MEAN) @ gain.T
    # Errors of single steps shrink by the contraction from sigma 20 to 0.6 or add up: not above ten steps' worth.
    assert float((solution.x - expected).abs().max()) < 10 * tolerance
    assert solution.state.t == 0


def test_a_tighter_tolerance_costs_more(oracles):
    plain = oracles.Straight(MEAN, COV)
    calls = [run(Adaptive(rtol=r, atol=r), plain, X, ONE).calls for r in (1e-3, 1e-6, 1e-9)]
    assert calls[0] < calls[1] < calls[2]
    plain.network.calls = 5
    assert run(Adaptive(rtol=1e-3, atol=1e-3), plain, X, ONE).calls == calls[0] == plain.network.calls - 5


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_there_and_back_on_a_plain_bridge(oracles, tolerance):
    plain = oracles.Straight(MEAN, COV)
    solver = Adaptive(rtol=tolerance, atol=tolerance)
    there = run(solver, plain, X, 0 * ONE, "x1")
    # The flow whitens along the covariance's own axes.
    values, vectors = torch.linalg.eigh(COV)
    expected = ((X - MEAN) @ vectors / values.sqrt()) @ vectors.T
    assert float((there.x - expected).abs().max()) < 10 * tolerance
    back = run(solver, plain, there.x, ONE)
    assert float((back.x - X).abs().max()) < 20 * tolerance


def test_there_and_back_on_a_denoising_bridge(oracles):
    bridge = oracles.gaussian(VP(beta_d=19.9), MEAN, COV, pinned=False)
    bridge.t_min = 1e-6
    grid = LogUniform(sigma_max=80.0, sigma_min=0.002)
    solver = Adaptive(grid=grid, rtol=1e-8, atol=1e-8)
    there = run(solver, bridge, X, 0 * ONE, "x1")
    y = there.x / bridge.marginal(there.state.t).b.double()
    last = float(bridge.marginal(there.state.t).sigma_eff)
    assert float((y - transported(X, 0.002, last)).abs().max()) < 1e-5
    back = run(solver, bridge, there.x, there.state.t)
    # The state at sigma_min is taken for x0 on the way there, and denoised on the way back.
    assert float((back.x - X).abs().max()) < 0.002**2 / float(torch.linalg.eigvalsh(COV).min()) * 2 + 1e-6


def test_a_batch_shares_its_steps_to_the_tolerance(oracles):
    plain = oracles.Straight(MEAN, COV)
    solver = Adaptive(rtol=1e-6, atol=1e-6)
    rows = torch.cat([X, 50 * X])
    whole = run(solver, plain, rows, ONE).x
    for i, row in enumerate(rows):
        alone = run(solver, plain, row[None], ONE).x[0]
        assert float(((whole[i] - alone).abs() / (1 + alone.abs())).max()) < 1e-5


def test_every_row_has_the_tolerance_to_itself():
    """One hard row among many easy ones: an average over the batch would hide its error."""
    rate = torch.ones(1000, 1, dtype=torch.float64)
    rate[0] = 30.0

    def slope(clock, position):
        return rate * torch.cos(rate * clock)

    span = 0 * ONE, 2 * ONE
    end = integrate(slope, torch.zeros(1000, 1, dtype=torch.float64), span, rtol=1e-6, atol=1e-6)
    assert abs(float(end[0]) - torch.sin(60 * ONE)) < 1e-5


@pytest.mark.parametrize("plane", [NoiseCoordinate(), TimeCoordinate()])
def test_planes_agree_on_a_pinned_bridge(oracles, plane):
    """One trajectory from the same state, stepped by two clocks."""
    bridge = oracles.gaussian(VP(), MEAN, COV, pinned=True)
    bridge.t_min, x1 = 1e-4, torch.tensor([[0.4, 0.1]], dtype=torch.float64)
    solver = Adaptive(
        grid=Uniform(margin=1e-2, last=1e-3), start=Endpoint(), coordinates=plane, steps=3, rtol=1e-9, atol=1e-9
    )
    kept = []
    state = State(x1, ONE, Condition({"x1": x1}))
    solver.run(bridge, state, Draws.seeds([0]), record=kept.append)
    first, last = kept[0], kept[-2]
    here, there = bridge.marginal(first.t), bridge.marginal(last.t)
    y = transported(here.to_y(first.x, x1), float(here.sigma_eff), float(there.sigma_eff))
    torch.testing.assert_close(there.to_y(last.x, x1), y, rtol=0, atol=1e-6)


def test_beyond_the_last_time_of_the_denoiser_one_step_is_taken(oracles):
    """Up to t_max the closed form; beyond it the slope at hand, and no call where the denoiser may not be asked."""
    bridge = oracles.gaussian(VE(sigma_max=20.0), MEAN, COV, pinned=False)
    bridge.t_max = 0.9
    solver = Adaptive(coordinates=NoiseCoordinate(), rtol=1e-9, atol=1e-9)
    here, last = (bridge.marginal(t * ONE).sigma_eff for t in (0.8, 0.9))
    state = State(float(here) * X, 0.8 * ONE, Condition())
    there, _ = solver.step(bridge, state, 0.9 * ONE, Draws.seeds(range(3)), "x1", None)
    torch.testing.assert_close(there.x, transported(state.x, float(here), float(last)), rtol=0, atol=1e-6)
    calls = bridge.network.calls
    beyond, _ = solver.step(bridge, there, ONE, Draws.seeds(range(3)), "x1", None)
    assert bridge.network.calls == calls + 1
    slope = (there.x - bridge.denoise(there.x, there.t, there.cond)) / last
    torch.testing.assert_close(beyond.x, there.x + (20 - last) * slope, rtol=1e-12, atol=0)


def test_gradients_pass_through(oracles):
    shift = (0.3 * ONE).requires_grad_()

    def end(by):
        span = 0 * ONE, ONE
        return integrate(lambda t, x: -by * x, torch.ones(1, 1, dtype=torch.float64), span, rtol=1e-9, atol=1e-9).sum()

    (slope,) = torch.autograd.grad(end(shift), shift)
    assert float(slope) == pytest.approx(-float(torch.exp(-shift.detach())), rel=1e-6)


def test_what_cannot_be_solved_is_said():
    span = 0 * ONE, ONE
    with pytest.raises(Error, match="no step is short enough for rtol = 1e-06"):
        integrate(lambda t, x: x / 0, torch.ones(1, 1, dtype=torch.float64), span, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArgumentError, match="rtol"):
        Adaptive(rtol=0.0)
