"""Flow matching with coupled noise: what it may call itself, and the straight paths that it learns."""

import numpy as np
import pytest
import torch

from latentsb.bridge import State
from latentsb.bridges.flow import Flow, GaussianFlow
from latentsb.data.toys import EightGaussians
from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.networks.mlp import MLP
from latentsb.process.coupling import Independent, MinibatchOT
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.ode import Euler, Heun
from latentsb.tensors import Batch, Spec

DOUBLE = torch.float64
LINE = Ends(Spec((1,), DOUBLE))
MEAN, STD = 2.0, 0.5
"""Of the data on the line."""


class Transport(Network):
    """The velocity of x_t = (1 − t) x0 + t x1 where x0 = MEAN + STD x1, the optimal map."""

    def forward(self, x, t, cond):
        t = t[..., None]
        x1 = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return x1 - (MEAN + STD * x1)


def line(n, seed=0):
    noise = torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return Batch(torch.arange(n), MEAN + STD * noise)


def test_coupled_noise_makes_a_velocity_and_no_score():
    assert isinstance(Flow(LINE, network=Transport), GaussianFlow)
    assert isinstance(Flow(LINE, network=Transport, coupling=Independent()), GaussianFlow)
    for reference in (Brownian(sigma=0.0), Brownian(sigma=1.0)):
        bridge = Flow(LINE, network=Transport, coupling=MinibatchOT(reference=reference))
        assert type(bridge) is Flow
        draws = Draws.seeds(range(4))
        with pytest.raises(CapabilityError, match="needs a DenoisingBridge"):
            DPMpp().run(bridge, bridge.start(Batch(torch.arange(4)), draws), draws)


def test_it_starts_from_standard_noise(gauss):
    bridge = Flow(LINE, network=Transport, coupling=MinibatchOT())
    state = bridge.start(Batch(torch.arange(4000)), Draws.step(0, "start", 0, range(4000)))
    assert gauss.within(state.x, 0.0)
    assert gauss.within(state.x.square(), 1.0)
    made = Euler(steps=1).run(bridge, state, Draws.step(0, "solve", 0, range(4000)))
    torch.testing.assert_close(made.x, MEAN + STD * state.x)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_optimal_map_is_the_optimum_of_the_loss(gauss, t):
    """Nothing is left of the loss but what a batch of n misses of the two laws."""
    batch, draws = line(512), Draws.step(0, "loss", 0, range(512))
    losses = {}
    for coupling in (MinibatchOT(), Independent()):
        bridge = Flow(LINE, network=Transport, coupling=coupling, times=gauss.At(t=t))
        prepared = bridge.prepare(batch, draws.fork("batch"))
        losses[type(coupling)] = float(bridge.loss(prepared, draws).total.mean())
    assert losses[MinibatchOT] < 0.03
    assert losses[Independent] > 0.5


def trained(coupling, seed, steps=1500, batch=256):
    """A flow from noise to eight Gaussians."""
    torch.manual_seed(seed)
    spec = Spec((2,))
    bridge = Flow(Ends(spec), network=lambda x, cond: MLP(x, cond, width=64, depth=2), coupling=coupling)
    source, rng = EightGaussians(n=20_000), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(bridge.parameters(), lr=3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        given = Batch(torch.arange(batch), source.read(rng.integers(20_000, size=batch)).x0, seen=step * batch)
        draws = Draws.step(seed, "train", given.seen, given.index)
        loss = bridge.loss(bridge.prepare(given, draws.fork("batch")), draws).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return bridge


@torch.no_grad()
def bends(bridge, n=2000, steps=50):
    """∫ |v(x_t, t) − (x1 − x0)|² dt along each path, zero where it is straight, and how far one Euler step misses."""
    draws = Draws.step(9, "paths", 0, range(n))
    state = bridge.start(Batch(torch.arange(n)), draws)
    path: list[State] = []
    whole = Heun(steps=steps).run(bridge, state, draws, record=path.append)
    once = Euler(steps=1).run(bridge, state, draws).x
    chord = state.x - whole.x
    bend = [(bridge.velocity(point.x, point.t, point.cond) - chord).square().sum(1) for point in path]
    return torch.stack(bend).mean(0), (once - whole.x).square().sum(1)


@pytest.mark.slow
def test_paths_of_coupled_noise_are_straighter():
    """Bend of the paths and error of a single step, each below half of those of independent noise by four errors."""
    (bend, miss), (bend_alone, miss_alone) = (bends(trained(c, seed=0)) for c in (MinibatchOT(), Independent()))
    for ours, theirs in ((bend, bend_alone), (miss, miss_alone)):
        margin = theirs / 2 - ours
        assert float(margin.mean()) > 4 * float(margin.std()) / len(margin) ** 0.5, (ours.mean(), theirs.mean())
