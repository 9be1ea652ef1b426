"""Transport between points, held to POT, to sorting, and to the closed forms of Gaussians."""

import math

import numpy as np
import ot
import pytest
import torch

from latentsb.process.transport import Plan, assign, costs, draw, sinkhorn

DOUBLE = torch.float64


def points(n, d, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(offset + rng.standard_normal((n, d)))


def halves(x, y):
    """|x − y|²/2, the cost that the regularisation of a reference belongs to."""
    return torch.cdist(x, y).square() / 2


@pytest.mark.parametrize(("n", "d", "seed"), [(1, 3, 0), (7, 2, 1), (128, 16, 2), (200, 1, 3)])
def test_the_exact_plan_costs_what_pot_finds(n, d, seed):
    x, y = points(n, d, seed), 0.5 + points(n, d, seed + 100)
    chosen = assign(costs(x, y))
    assert sorted(chosen.tolist()) == list(range(n))
    ours = float((x - y[chosen]).square().sum()) / n
    theirs = ot.emd2(np.full(n, 1 / n), np.full(n, 1 / n), ot.dist(x.numpy(), y.numpy()))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_on_the_line_the_exact_plan_is_sorting():
    x, y = points(300, 1, 0), 3 - 2 * points(300, 1, 1)
    chosen = assign(costs(x, y))
    assert torch.equal(y[chosen].flatten()[x.flatten().argsort()], y.flatten().sort().values)


def test_far_from_the_origin_no_digits_are_lost():
    """|x|² + |y|² − 2xy in single precision would lose all of it: 1e8 against distances of one."""
    x, y = (points(64, 8, seed, offset=1e4).float() for seed in (0, 1))
    exact = assign(halves(x.double(), y.double()))
    assert torch.equal(assign(costs(x, y)), exact)
    naive = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    assert not torch.equal(assign(naive.double()), exact)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 20.0])
def test_the_entropic_plan_is_that_of_pot(epsilon):
    n = 60
    x, y = points(n, 3, 4), 1 + 2 * points(n, 3, 5)
    plan = sinkhorn(costs(x, y), epsilon, tolerance=1e-12, limit=20_000)
    uniform = np.full(n, 1 / n)
    theirs = ot.sinkhorn(
        uniform, uniform, halves(x, y).numpy(), epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-12
    )
    torch.testing.assert_close(plan.rows / n, torch.from_numpy(theirs), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(plan.rows.sum(1), torch.ones(n, dtype=DOUBLE))
    torch.testing.assert_close(plan.rows.sum(0), torch.ones(n, dtype=DOUBLE))


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_gaussians_are_correlated_as_their_schroedinger_bridge_is(epsilon):
    """Cov = (√(4 s0² s1² + ε²) − ε)/2 (Mallasto et al. 2022, Bunne et al. 2023) on an even grid of quantiles."""
    n = 600
    quantiles = torch.special.ndtri((torch.arange(n, dtype=DOUBLE) + 0.5) / n)[:, None]
    x, y = quantiles, 3 + 1.5 * quantiles
    plan = sinkhorn(costs(x, y), epsilon, tolerance=1e-9, limit=20_000)
    found = float((plan.rows * x * (y - y.mean()).T).sum() / n)
    product = 1.5 * float(x.square().mean())
    # The tails that the grid cuts off are a share 1/n of the mass.
    assert found == pytest.approx((math.sqrt(4 * product**2 + epsilon**2) - epsilon) / 2, abs=2 / n)


def test_the_entropic_plan_runs_from_the_exact_to_the_independent_one():
    x, y = points(12, 2, 6), points(12, 2, 7)
    between = costs(x, y)
    even = torch.full((12, 12), 1 / 12, dtype=DOUBLE)
    torch.testing.assert_close(sinkhorn(between, 1e6).rows, even, rtol=1e-4, atol=0)
    sharp = sinkhorn(between, 0.01, tolerance=1e-6, limit=20_000)
    assert torch.equal(sharp.rows.argmax(1), assign(between))


def test_what_did_not_converge_is_said_and_still_a_law_for_each_row(caplog):
    plan = sinkhorn(costs(points(50, 4, 8), points(50, 4, 9)), 1e-4, limit=20)
    assert plan.error > 1e-4
    torch.testing.assert_close(plan.rows.sum(1), torch.ones(50, dtype=DOUBLE))
    assert "epsilon is small" in caplog.text


def test_partners_are_drawn_with_the_weights_of_their_rows():
    rows = torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0], [0.2, 0.0, 0.8]], dtype=DOUBLE)
    counts, n = torch.zeros(3, 3, dtype=DOUBLE), 1000
    for k in range(n):
        u = torch.full((3,), (k + 0.5) / n, dtype=DOUBLE)
        counts[torch.arange(3), draw(Plan(rows, 0.0, 0), u)] += 1
    torch.testing.assert_close(counts / n, rows, rtol=0, atol=1 / n)
    edges = [draw(Plan(rows, 0.0, 0), torch.full((3,), u, dtype=DOUBLE)).tolist() for u in (0.0, 1 - 1e-16)]
    assert edges == [[1, 0, 0], [2, 1, 2]]
