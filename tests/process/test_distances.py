"""Distances: what they weigh, and what their best predictions are."""

from functools import partial

import pytest
import torch
from torch import nn

from latentsb.bridges.score import Score
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.distances import DISTANCES, Absolute, Squared
from latentsb.process.preconditioning import Noise, Shifted
from latentsb.process.references import VP
from latentsb.process.times import Uniform
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64


class Constant(Network):
    """Predicts the same number everywhere."""

    def __init__(self, *args, value=0.0):
        super().__init__(*args)
        self.value = nn.Parameter(torch.tensor(value, dtype=DOUBLE))

    def forward(self, x, t, cond):
        return self.value.expand(x.shape)


def test_words():
    assert DISTANCES.names() == ["absolute", "squared"]


@pytest.mark.parametrize("rule", [Noise(), Shifted()])
@pytest.mark.parametrize(("distance", "power"), [(Absolute(), 1), (Squared(), 2)])
def test_with_unit_weight_it_is_the_distance_of_the_networks_own_target(rule, distance, power):
    bridge = Score(
        Ends(Spec((3,), DOUBLE)),
        network=partial(Constant, value=0.3),
        reference=VP(beta_min=8.0, beta_d=0.0),
        preconditioning=rule,
        times=Uniform(),
        distance=distance,
    )
    x0 = torch.randn(50, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    draws = Draws.seeds(range(50))
    found = bridge.loss(Batch(torch.arange(50), x0, cond=Condition()), draws).total
    t, noise = bridge.times.sample(bridge, draws), draws.normal("noise", x0)
    m = bridge.marginal(t)
    x = m.sample(x0, None, noise)
    target = noise if isinstance(rule, Noise) else rule.coefficients(m, t).target(x, None, x0)
    torch.testing.assert_close(found, (target - 0.3).abs().pow(power).mean(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("distance", "best"), [(Squared(), 0.75), (Absolute(), 0.0)])
def test_the_best_constant_is_the_mean_or_the_median(distance, best):
    """Errors 0, 0, 0 and 3 about a constant: least squares asks for their mean, least absolutes for their median."""
    values = torch.tensor([0.0, 0.0, 0.0, 3.0], dtype=DOUBLE)
    grid = torch.linspace(-1, 2, 301, dtype=DOUBLE)
    out, weight = torch.tensor(-0.5, dtype=DOUBLE), torch.tensor(4.0, dtype=DOUBLE)
    losses = torch.stack([distance.of(values - at, weight, out).mean() for at in grid])
    assert float(grid[losses.argmin()]) == pytest.approx(best, abs=1e-9)
