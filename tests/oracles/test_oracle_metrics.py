"""Distances and floors: closed forms, expectations under many draws, and the order in which floors must lie."""

import math

import pytest
import torch

from latentsb.laws import Gaussian
from latentsb.likelihood import Likelihood
from latentsb.metrics.frechet import frechet_distance
from latentsb.oracles import ExactBridge, GaussianBridge, MixturePair, Normal
from latentsb.oracles.metrics import bw2, bw2_uvp, cbw2_uvp, estimator_floor, floors, gaussian_kl
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64


def test_bw2_is_half_the_frechet_distance_and_batched():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(2, 50, 3, dtype=DOUBLE, generator=rng) * torch.tensor([1.0, 0.3, 2.0], dtype=DOUBLE)
    b = torch.randn(2, 50, 3, dtype=DOUBLE, generator=rng) + 0.5
    one, other = ([Normal.fitted(x) for x in side] for side in (a, b))
    found = bw2(
        torch.stack([n.mean for n in one]),
        torch.stack([n.cov for n in one]),
        torch.stack([n.mean for n in other]),
        torch.stack([n.cov for n in other]),
    )
    for k in range(2):
        assert float(found[k]) == pytest.approx(frechet_distance(a[k], b[k]) / 2, rel=1e-9)


def test_to_predict_the_mean_scores_a_hundred():
    target = Normal(torch.tensor([1.0, -2.0], dtype=DOUBLE), torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=DOUBLE))
    assert bw2_uvp(target.mean.expand(10, -1), target) == pytest.approx(100, rel=1e-12)
    n = 20_000
    assert bw2_uvp(target.sample(n, Draws.block(0, "x", 0, n)), target) < 0.1


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("dim", [1, 5, 20])
def test_the_floor_is_the_expectation_of_the_estimate(dim, diagonal):
    n, rounds = 200, 400
    law = Normal.isotropic(dim, 0.3, 1.7)
    rng = torch.Generator().manual_seed(dim)
    found = torch.tensor(
        [
            gaussian_kl(0.3 + 1.7**0.5 * torch.randn(n, dim, dtype=DOUBLE, generator=rng), law, diagonal=diagonal)
            for _ in range(rounds)
        ]
    )
    error = float(found.std()) / math.sqrt(rounds)
    assert float(found.mean()) == pytest.approx(estimator_floor(dim, n, diagonal=diagonal), abs=4.5 * error)


@pytest.mark.parametrize(("dim", "full", "diagonal"), [(5, 0.00100, 0.0005), (20, 0.0115, 0.002), (50, 0.0663, 0.005)])
def test_floors_at_ten_thousand_samples(dim, full, diagonal):
    n = 10_000
    assert (dim + dim * (dim + 1) / 2) / (2 * n) == pytest.approx(full, rel=5e-3)
    assert estimator_floor(dim, n) == pytest.approx(full, rel=5e-3)
    assert estimator_floor(dim, n, diagonal=True) == pytest.approx(diagonal, rel=1e-3)
    # A published 8.75e-3 at d = 50 lies below the full floor, so a full covariance cannot have given it.
    assert diagonal < 8.75e-3 < full or dim != 50


def test_the_diagonal_estimate_is_blind_to_correlations():
    law = Normal.isotropic(2)
    n = 5000
    skew = Normal(law.mean, torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=DOUBLE)).sample(n, Draws.block(0, "s", 0, n))
    assert gaussian_kl(skew, law, diagonal=True) < 3e-3
    assert gaussian_kl(skew, law) == pytest.approx(-math.log(1 - 0.64) / 2, abs=0.05)


@pytest.mark.parametrize(("epsilon", "independent"), [(0.1, 155.0), (1.0, 100.0), (10.0, 16.0)])
def test_floors_lie_in_their_order(epsilon, independent):
    pair = MixturePair(dim=2, epsilon=epsilon)
    found = floors(pair, steps=3, inputs=30, samples=200)
    # BW² of n samples of a normal law is about D (D + 5)/4 · variance/2n in this convention, of a mixture more.
    x0 = pair.sample_x0(500, Draws.block(1, "s", 0, 500))
    spread = float(pair.conditional(x0).cov().diagonal(0, 1, 2).mean())
    expected = 100 * 3.5 * spread / 400 / (float(pair.x1_moments.cov.trace()) / 2)
    assert 0.4 * expected < found.sampling.value < 3 * expected
    slack = 0.0 if epsilon > 0.1 else 3 * (found.sampling.error + found.drift.error)  # there three steps do
    assert found.sampling.value - slack < found.drift.value < 0.6 * found.independent.value
    assert found.independent.value == pytest.approx(independent, rel=0.5)


def test_a_wrong_plan_of_right_ends_is_seen():
    """x1 drawn from the plan of −x0: the same law of x1, since x0 is symmetric, but the wrong plan."""
    pair = MixturePair(dim=2, epsilon=0.1)
    wrong = cbw2_uvp(lambda x0, draws: pair.conditional(-x0).sample(draws), pair, inputs=40, samples=100)
    right = cbw2_uvp(lambda x0, draws: pair.conditional(x0).sample(draws), pair, inputs=40, samples=100)
    assert right.value < 1
    assert wrong.value > 20
    n = 5000
    ends = pair.conditional(-pair.sample_x0(n, Draws.block(3, "a", 0, n))).sample(Draws.block(3, "b", 0, n))
    assert bw2_uvp(ends, pair.x1_moments) < 0.5


def test_the_likelihood_of_an_exact_bridge_is_the_density_of_its_end(x0, x1):
    """The house's ODE likelihood on the exact drifts, against `ln N(x; m0, A)`."""
    bridge = GaussianBridge.between(x0, x1, Brownian(sigma=0.8))
    far = Gaussian(Spec((3,)), mean=tuple(x1.mean.tolist()), cov=tuple(tuple(row) for row in x1.cov.tolist()))
    points = x0.sample(4, Draws.block(0, "x", 0, 4))
    exact = ExactBridge(bridge, x1=far)
    found = Likelihood(rtol=1e-6, atol=1e-6).log_prob(exact, points, Condition(), Draws.block(0, "l", 0, 4))
    torch.testing.assert_close(found.nats, x0.log_prob(points), rtol=0, atol=1e-3)
    assert found.exact
    mirrored = ExactBridge(GaussianBridge.between(x1, x0, Brownian(sigma=0.8)), x1=far)
    wrong = Likelihood().log_prob(mirrored, points, Condition(), Draws.block(0, "l", 0, 4))
    assert float((wrong.nats - x0.log_prob(points)).abs().max()) > 0.1


def test_an_exact_bridge_starts_where_the_batch_says():
    from latentsb.errors import CapabilityError

    exact = ExactBridge(MixturePair(dim=2))
    batch = Batch(torch.arange(1), torch.zeros(1, 2))
    assert float(exact.start(batch, Draws.block(0, "s", 0, 1), "x1").t) == 0
    with pytest.raises(CapabilityError, match="towards x0"):
        exact.start(batch, Draws.block(0, "s", 0, 1), "x0")
