"""Planners, held to Gaussian trajectories, whose posteriors are known, and to a predictor that is right."""

import math
from functools import partial

import pytest
import torch

from latentsb.bridges.diffuser import Diffuser
from latentsb.bridges.planner import Planner
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.guesses import GaussianGuess, RegressedGuess
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.preconditioning import Shifted
from latentsb.process.references import VP, Brownian
from latentsb.process.times import Plain
from latentsb.randomness import Draws
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.grid import Uniform
from latentsb.tensors import Batch, Spec

DOUBLE = torch.float64
SPEC = Spec((4, 6), DOUBLE)
ENDS = Ends(SPEC, two_sided=True)
SIGMA, RHO, SPREAD = 0.7, 0.6, 0.8
"""Outside of start and goal x0 = RHO x1 + SPREAD ε, each entry for itself."""
UNIT = Shifted(sigma_data=1.0)


def batch_of(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x1 = torch.randn((n, *SPEC.shape), generator=rng, dtype=DOUBLE)
    x0 = RHO * x1 + SPREAD * torch.randn(x1.shape, generator=rng, dtype=DOUBLE)
    x0[:, :, 0], x0[:, :2, -1] = x1[:, :, 0], x1[:, :2, -1]
    return Batch(torch.arange(n), x0, x1)


class Fixed(Network):
    """F for which the denoiser has the values `best(y, sigma, cond)`, under the preconditioning UNIT."""

    def best(self, y, sigma, cond):
        raise NotImplementedError

    def forward(self, x, t, cond):
        sigma = (4 * t).exp().reshape(-1, 1, 1)
        y = x * (1 + sigma**2).sqrt()
        return (self.best(y, sigma, cond) - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma


class Optimum(Fixed):
    """`E[x0 | y, x1]` for y = x0 + sigma ε; `tilt` takes it away from there."""

    tilt = 0.0

    def best(self, y, sigma, cond):
        centre = RHO * cond["x1"] if "x1" in cond else 0.0
        variance = SPREAD**2 if "x1" in cond else RHO**2 + SPREAD**2
        gain = variance / (variance + sigma**2)
        return centre + (gain + self.tilt) * (y - centre)


class Right(Fixed):
    """x0 itself."""

    def best(self, y, sigma, cond):
        return self.x0.to(y)


def planner(network=Optimum, **keys):
    return Planner(ENDS, network=network, reference=Brownian(sigma=SIGMA), preconditioning=UNIT, **keys)


def diffuser(network=Optimum, **keys):
    return Diffuser(ENDS, network=network, preconditioning=UNIT, **keys)


MADE = {"planner": planner, "diffuser": diffuser}


@pytest.mark.parametrize("name", MADE)
def test_the_loss_of_the_optimum_is_the_posterior_variance_and_no_other_is_lower(name):
    bridge, batch = MADE[name](weight=Plain()), batch_of(4000)
    t = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000 * bridge.t_max
    sigma2 = bridge.marginal(t).sigma_eff.square()
    variance = SPREAD**2 if name == "planner" else RHO**2 + SPREAD**2
    expected = (variance * sigma2 / (variance + sigma2)).mean()
    draws = Draws.step(0, "loss", 0, tuple(range(len(batch))))
    found = bridge.loss(batch, draws).total
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))
    for tilt in (-0.05, 0.05):
        bridge.network.tilt = tilt
        worse = bridge.loss(batch, draws).total - found  # the same noise: a paired difference
        assert worse.mean() > 4 * worse.std() / math.sqrt(len(worse))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_right_predictor_is_returned_without_noise_and_start_and_goal_stay(name, steps):
    bridge, batch = MADE[name](Right), batch_of(8)
    bridge.network.x0 = batch.x0
    seen, draws = [], Draws.seeds(range(8))
    solver = Posterior(steps=steps, eta=1.0, grid=Uniform())
    asked = Batch(batch.index, x1=batch.x1)
    solved = solver.run(bridge, bridge.start(asked, draws.fork("start")), draws.fork("solve"), record=seen.append)
    assert solved.calls == steps
    assert torch.allclose(solved.x, batch.x0, atol=1e-12)
    for state in seen:
        assert torch.equal(state.x[..., 0], batch.x1[..., 0])
        assert torch.equal(state.x[:, :2, -1], batch.x1[:, :2, -1])
    if steps > 1:  # elsewhere, and in the velocity at the goal, there is noise on the way
        assert (seen[1].x - batch.x0)[:, :, 1:-1].abs().mean() > 0.01
        assert (seen[1].x - batch.x0)[:, 2:, -1].abs().mean() > 0.01


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_the_noise_in_all_does_not_depend_on_the_number_of_steps(steps):
    bridge, batch = planner(Right), batch_of(300)
    bridge.network.x0, seen, draws = batch.x0, [], Draws.seeds(range(300))
    solver = Posterior(steps=steps, eta=1.0, grid=Uniform())
    solver.run(bridge, bridge.start(batch, draws.fork("start")), draws.fork("solve"), record=seen.append)
    middle = seen[steps // 2]
    assert float(middle.t) == pytest.approx(0.5, abs=1e-3)
    noise = (middle.x - bridge.marginal(middle.t).mean(batch.x0, batch.x1))[:, :, 1:-1]
    # SIGMA²/4, with the relative error of a variance of that many numbers and a thousandth for the start below t = 1
    assert float(noise.square().mean()) == pytest.approx(SIGMA**2 / 4, rel=4 * math.sqrt(2 / noise.numel()) + 1e-3)


class Learned(Network):
    def __init__(self, *args):
        super().__init__(*args)
        self.free = torch.nn.Parameter(torch.zeros(SPEC.shape, dtype=DOUBLE))

    def forward(self, x, t, cond):
        return self.free + 0 * x


@pytest.mark.parametrize("name", MADE)
def test_known_entries_have_no_part_in_the_loss(name):
    bridge, batch = MADE[name](Learned), batch_of(16)
    total = bridge.loss(batch, Draws.step(0, "loss", 0, tuple(range(16)))).total
    total.sum().backward()
    assert torch.equal(bridge.network.free.grad != 0, ~bridge.mask)
    with torch.no_grad():
        bridge.network.free[:, 0] = 100.0
        bridge.network.free[:2, -1] = -100.0
    again = bridge.loss(batch, Draws.step(0, "loss", 0, tuple(range(16)))).total
    assert torch.equal(again, total)


def test_the_regressed_guess_learns_the_mean_of_plans_and_the_bridge_leaves_it_alone():
    torch.manual_seed(0)
    mix = torch.randn(6, 24, generator=torch.Generator().manual_seed(1)) / math.sqrt(6)
    spec = Spec(SPEC.shape)
    bridge = Planner(Ends(spec, two_sided=True), network=Still, prior=partial(RegressedGuess, width=64))
    known, rng = bridge.mask.flatten(), torch.Generator().manual_seed(2)

    def plans(n):
        told = torch.randn(n, 6, generator=rng)
        mean = (told @ mix).masked_scatter(known.expand(n, -1), told).reshape(n, *spec.shape)
        return mean, torch.where(bridge.mask, mean, mean + 0.3 * torch.randn(mean.shape, generator=rng))

    def batch_from(x0):
        return Batch(torch.arange(len(x0)), x0, torch.where(bridge.mask, x0, torch.zeros_like(x0)))

    mean, x0 = plans(500)
    first = bridge.prior.sample(bridge.lines(batch_from(x0)), Draws.seeds(range(500)))
    before = float((first - mean)[:, ~bridge.mask].square().mean())
    optimiser = torch.optim.Adam(bridge.parameters(), lr=5e-3)
    for step in range(250):
        batch = batch_from(plans(64)[1])
        loss = bridge.loss(batch, Draws.step(0, "loss", 64 * step, tuple(range(64))))
        assert set(loss.terms) == {"bridge", "prior"}
        optimiser.zero_grad()
        loss.total.mean().backward()
        optimiser.step()
    found = bridge.prior.sample(bridge.lines(batch_from(x0)), Draws.seeds(range(500)))
    assert not found.requires_grad
    after = float((found - mean)[:, ~bridge.mask].square().mean())
    assert before > 0.5
    assert after < 0.03  # a third of the noise's variance, 0.09: the mean is learned and not the noise
    alone = bridge.asked(bridge.lines(batch_from(x0)), Draws.seeds(range(500)))["x1"]
    assert not alone.requires_grad


class Still(Network):
    def forward(self, x, t, cond):
        return torch.zeros_like(x)


def test_a_gaussian_guess_agrees_with_what_is_known():
    bridge, batch = planner(prior=GaussianGuess), batch_of(400)
    state = bridge.start(Batch(batch.index, x1=batch.x1), Draws.seeds(range(400)))
    x1 = state.cond["x1"]
    assert torch.equal(x1[:, bridge.mask], batch.x1[:, bridge.mask])
    free = x1[:, ~bridge.mask]
    assert float(free.var()) == pytest.approx(1.0, rel=4 * math.sqrt(2 / free.numel()))
    assert abs(float((free * batch.x1[:, ~bridge.mask]).mean())) < 4 / math.sqrt(free.numel())
    assert torch.equal(state.x, x1)  # pinned: no noise at t = 1


def test_what_cannot_be_planned_is_told():
    with pytest.raises(ArgumentError, match="data: a planner needs trajectories"):
        Planner(Ends(Spec((4,)), two_sided=True), network=Still)
    with pytest.raises(ArgumentError, match="data: a planner needs trajectories"):
        Planner(Ends(SPEC), network=Still)
    with pytest.raises(ArgumentError, match="goal"):
        planner(goal=5)
    with pytest.raises(ArgumentError, match="reference"):
        Planner(ENDS, network=Still, reference=Brownian(sigma=0.0))
    with pytest.raises(ArgumentError, match="reference"):
        Diffuser(ENDS, network=Still, reference=VP())
    draws, batch = Draws.seeds(range(2)), batch_of(2)
    with pytest.raises(DataError, match="start and a goal"):
        planner().start(Batch(batch.index), draws)
    with pytest.raises(CapabilityError, match="towards x0"):
        planner().start(batch, draws, "x1")
