"""Entropic plans of normal laws: the conditions that define them, and their value by three roads."""

import math

import numpy as np
import ot
import pytest
import torch

from latentsb.oracles import GaussianBridge, Joint, Normal, entropic_cost, entropic_plan
from latentsb.oracles.linear import transition
from latentsb.process.references import OU, VP, Brownian
from latentsb.randomness import Draws


def test_the_plan_has_the_ends_and_the_precision_block_of_the_reference(reference, x0, x1):
    plan = entropic_plan(x0, x1, reference)
    law = transition(reference, 0.0, 1.0, 3)
    expected = law.Phi.T @ torch.linalg.inv(law.Q)
    torch.testing.assert_close(plan.pull, expected, rtol=1e-10, atol=1e-10)
    assert float(torch.linalg.eigvalsh(plan.law.cov).min()) > 0
    assert not torch.allclose(plan.cross, plan.cross.T, atol=1e-3)  # it is not symmetric, and transposing it is wrong
    flipped = Joint(x0, x1, plan.cross.T.contiguous())
    assert not torch.allclose(flipped.pull, expected, atol=1e-3)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
def test_two_standard_normals_have_the_correlation_of_the_closed_form(epsilon):
    normal = Normal.isotropic(2)
    plan = entropic_plan(normal, normal, Brownian(sigma=math.sqrt(epsilon)))
    rho = (math.sqrt(4 + epsilon**2) - epsilon) / 2
    torch.testing.assert_close(plan.cross, rho * torch.eye(2, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    published = {0.01: 0.995, 0.1: 0.951, 0.5: 0.781, 1.0: 0.618, 2.0: 0.414, 5.0: 0.193, 10.0: 0.099}
    assert rho == pytest.approx(published[epsilon], abs=5e-4)


@pytest.mark.parametrize(
    ("B", "epsilon", "rho"),
    [
        (0.5, 0.505, 0.779),
        (1.0, 1.04, 0.607),
        (2.0, 2.35, 0.368),
        (3.0, 4.26, 0.223),
        (4.0, 7.25, 0.135),
        (6.0, 20.0, 0.050),
        (10.05, 152.0, 0.0066),
    ],
)
def test_effective_epsilon_of_vp_and_what_it_leaves_of_the_coupling(B, epsilon, rho):
    reference = VP(beta_min=B, beta_d=0.0)
    assert reference.epsilon == pytest.approx(2 * math.sinh(B / 2), rel=1e-12)
    assert reference.epsilon == pytest.approx(epsilon, rel=4e-3)
    normal = Normal.isotropic(1)
    assert float(entropic_plan(normal, normal, reference).cross) == pytest.approx(rho, abs=6e-4)


def test_effective_epsilon_of_ou():
    assert OU(theta=1.7, sigma=0.6).epsilon == pytest.approx(0.36 * math.sinh(1.7) / 1.7, rel=1e-12)
    assert OU(theta=1e-6, sigma=0.6).epsilon == pytest.approx(0.36, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.5, 1.2, 3.0])
def test_the_optimal_value_comes_out_three_ways(x0, x1, sigma):
    """KL of endpoint laws, entropic cost in closed form, control energy over time."""
    bridge = GaussianBridge.between(x0, x1, Brownian(sigma=sigma))
    epsilon = sigma**2
    by_cost = entropic_cost(x0, x1, epsilon) / (2 * epsilon) + 1.5 * math.log(2 * math.pi * epsilon) - x1.entropy
    assert bridge.kl == pytest.approx(by_cost, rel=1e-10)
    assert bridge.energy() == pytest.approx(by_cost, rel=1e-9)


def test_the_values_of_one_instance(x0, x1):
    """For the record, to all digits: the laws of the fixtures, Brownian variance one."""
    plan = entropic_plan(x0, x1, Brownian())
    gap = (x0.mean - x1.mean).square().sum() + (x0.cov + x1.cov - plan.cross - plan.cross.T).trace()
    direct = float(gap) + 2 * plan.information  # E|x0 − x1|² + 2 ε KL(plan ‖ product)
    assert entropic_cost(x0, x1, 1.0) == pytest.approx(direct, rel=1e-12)
    assert direct == pytest.approx(COST, abs=1e-9)
    assert GaussianBridge(plan, Brownian()).kl == pytest.approx(VALUE, abs=1e-9)


COST, VALUE = 8.6971240035, 3.3593876255


def test_no_other_coupling_is_nearer_to_the_reference(reference, x0, x1):
    plan = entropic_plan(x0, x1, reference)
    best = GaussianBridge(plan, reference).kl
    rng = np.random.default_rng(0)
    for _ in range(5):
        turn = 1e-2 * torch.from_numpy(rng.standard_normal((3, 3)))
        # To first order nothing changes, to second order it grows.
        up, down = (GaussianBridge(Joint(x0, x1, plan.cross + s * turn), reference).kl for s in (1.0, -1.0))
        assert min(up, down) > best
        assert (up + down) / 2 - best > abs(up - down) / 10


def test_either_end_may_be_a_point(scalar, x0, x1):
    point = Normal(x0.mean, torch.zeros(3, 3, dtype=torch.float64))
    for one, other in ((point, x1), (x0, point)):
        assert float(entropic_plan(one, other, scalar).cross.abs().max()) == 0
    nearly = Normal(x0.mean, 1e-12 * torch.eye(3, dtype=torch.float64))
    slope = entropic_plan(nearly, x1, scalar).x1_given_x0()[0].A
    torch.testing.assert_close(slope, x1.cov / scalar.epsilon, rtol=1e-4, atol=1e-4)


def test_a_reference_without_noise_has_no_entropic_plan(x0, x1):
    with pytest.raises(ValueError, match="noise in every direction"):
        entropic_plan(x0, x1, Brownian(sigma=0.0))


def test_a_large_sample_agrees_with_pots_sinkhorn():
    """POT on quantiles of two normal laws on the line: another algorithm, another library."""
    n, epsilon = 400, 0.7
    u = (np.arange(n) + 0.5) / n
    quantiles = np.sqrt(2) * torch.erfinv(torch.from_numpy(2 * u - 1)).numpy()
    x, y = quantiles, 0.5 + 1.5 * quantiles
    cost = (x[:, None] - y) ** 2 / 2
    flat = np.full(n, 1 / n)
    plan = ot.sinkhorn(flat, flat, cost, epsilon, method="sinkhorn_log", numItermax=5000, stopThr=1e-11)
    one, other = (Normal.isotropic(1, float(v.mean()), float(v.var())) for v in (x, y))
    closed = float(entropic_plan(one, other, Brownian(sigma=math.sqrt(epsilon))).cross)
    # Quantiles are not quite normal in the tails: 400 of them are short of the variance by 1e-2.
    assert float(x @ plan @ y) == pytest.approx(closed, rel=5e-3)


def test_draws_of_a_coupling_have_its_moments(x0, x1):
    plan = entropic_plan(x0, x1, Brownian())
    n = 40_000
    a, b = plan.sample(n, Draws.block(0, "pairs", 0, n))
    found = (a - a.mean(0)).T @ (b - b.mean(0)) / (n - 1)
    error = ((x0.cov.diagonal()[:, None] * x1.cov.diagonal() + plan.cross.square()) / n).sqrt()
    assert bool(((found - plan.cross).abs() < 4.5 * error).all())
    assert float(plan.law.log_prob(torch.cat([a, b], 1)).mean()) == pytest.approx(
        -plan.law.entropy, abs=4.5 * math.sqrt(3 / n)
    )
