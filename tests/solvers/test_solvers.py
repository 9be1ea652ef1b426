"""What every solver promises: calls, seeds, records, projections, gradients and clear refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from latentsb.bridge import State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.solvers.base import COORDINATES, SOLVERS, Grid
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.solvers.direct import Denoise
from latentsb.solvers.exponential import DPMpp, Posterior, Posterior2
from latentsb.solvers.grid import KarrasTime, LogUniform, Uniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.sde import EulerMaruyama
from latentsb.solvers.start import Boot
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition, Spec

ONE = torch.ones((), dtype=torch.float64)
ALL = [
    Euler(steps=6, grid=Uniform(), coordinates=TimeCoordinate()),
    Euler(steps=6, grid=LogUniform(), coordinates=NoiseCoordinate()),
    Heun(steps=6, grid=KarrasTime(), coordinates=TimeCoordinate()),
    Heun(steps=6, grid=LogUniform(), coordinates=NoiseCoordinate()),
    EulerMaruyama(steps=6, grid=Uniform()),
    EulerMaruyama(steps=6, grid=LogUniform(), noiseless_last=False),
    Posterior(steps=6),
    Posterior(steps=6, eta=0.6),
    Posterior(steps=6, eta=1.0, start=Boot()),
    DPMpp(steps=6),
    DPMpp(steps=6, eta=1.0),
    Posterior2(steps=6),
    Posterior2(steps=6, eta=0.6),
    UniPC(steps=6),
    Hybrid(steps=6),
    Denoise(),
]


@pytest.fixture
def bridge(oracles):
    """A curved denoiser in float32, images of 3 channels."""

    def formula(y, sigma, cond):
        scale = (1 / (1 + sigma.square())).to(y.dtype)
        return torch.tanh(2 * scale * y + 0.3 * scale * y.roll(1, -1)) / 2

    made = oracles.Exact(VP(), Spec((3, 2, 4)), formula, pinned=True)
    made.t_min = 1e-4
    return made


def begin(seeds):
    x1 = torch.stack([torch.full((3, 2, 4), 0.01 * s).cumsum(0) for s in seeds])
    return State(x1, ONE, Condition({"x1": x1})), Draws.seeds(seeds)


def test_words():
    known = "euler heun adaptive euler_maruyama posterior posterior2 dpmpp unipc hybrid denoise"
    assert set(known.split()) <= set(SOLVERS.names())
    assert set(COORDINATES.names()) == {"time", "noise", "natural"}


@pytest.mark.parametrize("solver", ALL)
def test_calls(bridge, solver):
    state, draws = begin([1])
    expected = {Heun: 11, Denoise: 1, Hybrid: 17}.get(type(solver), 6) + (getattr(solver, "start", None) == Boot())
    bridge.network.calls = 100
    solution = solver.run(bridge, state, draws)
    assert solution.calls == expected
    assert bridge.network.calls == 100 + expected


def test_calls_of_a_plain_bridge(oracles):
    """A network that answers at t = 0 too is asked twice in every step of Heun."""
    plain = oracles.Straight(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    state = State(torch.ones(1, 2, dtype=torch.float64), ONE, Condition())
    assert Euler(steps=5).run(plain, state, Draws.seeds([0])).calls == 5
    assert Heun(steps=5).run(plain, state, Draws.seeds([0])).calls == 10


@pytest.mark.parametrize("solver", ALL)
def test_a_sample_depends_on_its_seed_alone(bridge, solver):
    """Equal to rounding in any batch, bit-equal in the same one, and different for another seed."""
    whole = solver.run(bridge, *begin([3, 4, 5, 6])).x
    assert torch.equal(whole, solver.run(bridge, *begin([3, 4, 5, 6])).x)
    for i, seed in enumerate([3, 4, 5, 6]):
        alone = solver.run(bridge, *begin([seed])).x[0]
        assert torch.allclose(whole[i], alone, rtol=1e-6, atol=1e-6)
    reordered = solver.run(bridge, *begin([6, 3])).x
    assert torch.allclose(reordered, whole[[3, 0]], rtol=1e-6, atol=1e-6)
    if solver != Denoise():
        assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_every_step_has_its_own_noise(bridge):
    """With one noise for all steps the increments of the chain would be parallel."""
    states = []
    solver = EulerMaruyama(steps=4, noiseless_last=False)
    state, draws = begin([0])
    solver.run(bridge, state, draws, record=states.append)
    noises = []
    for here, there in pairwise(states):
        h = here.t - there.t
        step = there.x - here.x - h.float() * bridge.drift(here.x, here.t, here.cond, "x0")
        noises.append((step / (bridge.diffusion(here.t) * h.sqrt()).float()).flatten())
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(4)
    # 24 numbers: 4 standard errors of a correlation are .82.
    assert correlation.abs().max() < 0.82
    assert torch.stack(noises).std() == pytest.approx(1, abs=4 / (2 * 96) ** 0.5)


@pytest.mark.parametrize("solver", ALL)
def test_record(bridge, solver):
    states = []
    state, draws = begin([1, 2])
    solution = solver.run(bridge, state, draws, record=states.append)
    steps = getattr(solver, "steps", 1)
    assert len(states) == steps + 1
    assert all(a.t > b.t for a, b in pairwise(states))
    assert states[-1] is solution.state
    assert states[-1].t == 0
    assert torch.equal(states[-1].x, solution.x)
    assert solution.x.dtype == torch.float32
    assert "x1" in solution.state.cond


@pytest.mark.parametrize("solver", ALL)
def test_projection_after_every_step(bridge, solver, monkeypatch):
    """Known numbers hold at the start and after every step, hence also at the end."""

    def project(x, t, cond):
        return torch.cat([torch.full_like(x[:, :1], 0.25), x[:, 1:]], dim=1)

    monkeypatch.setattr(bridge, "project", project)
    states = []
    solver.run(bridge, *begin([1]), record=states.append)
    assert all(bool((s.x[:, 0] == 0.25).all()) for s in states)


@pytest.mark.parametrize("solver", ALL)
def test_gradients_pass_through(oracles, solver):
    """The derivative of the result by a parameter of the network equals its difference quotient."""
    state, draws = begin([1])
    x1 = state.x.double()

    def end(shift):
        def formula(y, sigma, cond):
            return torch.tanh(y / (1 + sigma.square()) + shift) / 2

        bridge = oracles.Exact(VP(), Spec((3, 2, 4), torch.float64), formula, pinned=True)
        bridge.t_min = 1e-4
        return solver.run(bridge, State(x1, ONE, Condition({"x1": x1})), draws).x.sum()

    shift = (0.3 * ONE).requires_grad_()
    (slope,) = torch.autograd.grad(end(shift), shift)
    quotient = (end(shift.detach() + 1e-5) - end(shift.detach() - 1e-5)) / 2e-5
    assert abs(slope) > 0.1
    assert float(slope) == pytest.approx(float(quotient), rel=1e-6)


@pytest.mark.parametrize("solver", [Posterior(), DPMpp(), Denoise()])
def test_one_way_solvers_say_so(bridge, solver):
    state, draws = begin([1])
    with pytest.raises(CapabilityError, match="towards x0 only"):
        solver.run(bridge, State(state.x, 0 * ONE, state.cond), draws, "x1")


@pytest.mark.parametrize(
    "solver",
    [Posterior(), DPMpp(), Denoise(), Euler(coordinates=NoiseCoordinate()), Heun(coordinates=NoiseCoordinate())],
)
def test_solvers_say_what_they_need(oracles, solver):
    plain = oracles.Straight(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    state = State(torch.ones(1, 2, dtype=torch.float64), ONE, Condition())
    with pytest.raises(CapabilityError, match=r"needs? a DenoisingBridge; 'Straight' is not one"):
        solver.run(plain, state, Draws.seeds([0]))


def test_a_pinned_bridge_needs_its_other_end(bridge):
    state, draws = begin([1])
    with pytest.raises(CapabilityError, match="hold the other end as 'x1'"):
        DPMpp().run(bridge, State(state.x, ONE, Condition()), draws)


def test_ranges():
    with pytest.raises(ArgumentError, match="eta"):
        Posterior(eta=1.5)
    with pytest.raises(ArgumentError, match="steps"):
        DPMpp(steps=0)


def test_there_and_back(oracles):
    """Heun's error towards x1 and back is of second order: a quarter with twice the steps."""
    mean, cov = torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.4]]).double()
    plain = oracles.Straight(mean, cov)
    x0 = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    errors = []
    for steps in (20, 40):
        heun = Heun(steps=steps)
        there = heun.run(plain, State(x0, 0 * ONE, Condition()), Draws.seeds([0]), "x1")
        assert there.state.t == 1
        back = heun.run(plain, there.state, Draws.seeds([0]))
        errors.append(float((back.x - x0).norm()))
    # The leading errors of the two ways cancel, so the return trip gains one more order.
    assert errors[0] / errors[1] > 4
    assert errors[1] < 1e-3


def test_denoisers_are_not_asked_beyond_their_last_time(oracles):
    """With t_max = 0.9, one call shows `a x1` at 0.9, and Heun ends a step to t = 1 with Euler's."""
    made = oracles.gaussian(VP(), torch.tensor([0.4, 1.0]).double(), torch.eye(2).double(), pinned=True)
    made.t_max, last = 0.9, 0.9 * ONE
    x1 = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    state, draws = State(x1, ONE, Condition({"x1": x1})), Draws.seeds([0])
    expected = made.denoise(made.marginal(last).a * x1, last, state.cond)
    assert (expected - made.denoise(x1, ONE, state.cond)).abs().max() > 1e-2
    torch.testing.assert_close(Denoise().run(made, state, draws).x, expected, rtol=1e-12, atol=0)

    class Given(Grid):
        def times(self, bridge, steps, towards="x0"):
            return torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)

    inner = State(x1, 0.2 * ONE, state.cond)
    heun = Heun(steps=2, grid=Given(), coordinates=TimeCoordinate())
    assert heun.run(made, inner, draws, "x1").calls == 3
