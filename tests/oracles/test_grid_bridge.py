"""Sinkhorn on grids, held to the closed forms of Gaussians, to POT and to simulation."""

import math

import numpy as np
import ot
import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.oracles import GaussianBridge, GridBridge, Normal
from latentsb.process.references import OU, VP, Brownian
from latentsb.randomness import Draws

DOUBLE = torch.float64
LINE = torch.linspace(-8, 8, 201, dtype=DOUBLE)
ONE, OTHER = Normal.isotropic(1, 0.0, 1.0), Normal.isotropic(1, 1.0, 0.5)


def solved(epsilon, x0=ONE, x1=OTHER, **options):
    return GridBridge.between(x0.log_prob, x1.log_prob, Brownian(sigma=math.sqrt(epsilon)), [LINE], **options)


@pytest.mark.parametrize(("epsilon", "iterations"), [(10.0, 6), (1.0, 22), (0.1, 196)])
def test_the_plan_on_the_line_is_that_of_the_closed_form(epsilon, iterations):
    found = solved(epsilon)
    plan = GaussianBridge.between(ONE, OTHER, found.reference).ends
    assert float(found.ends.cross) == pytest.approx(float(plan.cross), abs=3e-12)
    assert float(found.ends.x1.cov) == pytest.approx(0.5, abs=3e-12)
    assert found.iterations == iterations
    # A round shrinks the error by the squared correlation of the plan: the slowest mode is that of the means.
    rate = float(plan.cross.square()) / 0.5
    if found.iterations > 10:
        assert found.errors[-3] / found.errors[-4] == pytest.approx(rate, rel=1e-3)
    assert math.log(1e-12) / math.log(rate) == pytest.approx(iterations, rel=0.3)


@pytest.mark.slow
def test_little_noise_takes_two_thousand_iterations():
    found = solved(0.01)
    plan = GaussianBridge.between(ONE, OTHER, found.reference).ends
    assert float(found.ends.cross) == pytest.approx(float(plan.cross), abs=3e-12)
    assert 1800 < found.iterations < 2100


def test_with_equal_means_the_slowest_mode_is_that_of_the_variances():
    found = solved(1.0, x1=Normal.isotropic(1, 0.0, 0.5))
    correlation = float(found.ends.cross) / math.sqrt(0.5)
    assert found.errors[-3] / found.errors[-4] == pytest.approx(correlation**4, rel=1e-2)


@pytest.mark.parametrize(
    "reference", [Brownian(sigma=0.9), OU(theta=1.3, sigma=1.1), VP()], ids=["brownian", "ou", "vp"]
)
def test_the_dynamic_bridge_is_that_of_the_closed_form(reference):
    found = GridBridge.between(ONE.log_prob, OTHER.log_prob, reference, [LINE])
    exact = GaussianBridge.between(ONE, OTHER, reference)
    x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
    for t in (0.1, 0.3, 0.7, 0.98):  # earlier, the noise of VP is finer than the grid
        torch.testing.assert_close(found.log_prob(x, t), exact.marginal(t).log_prob(x), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.drift(x, t, "x1"), exact.b_f(t)(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.drift(x, t, "x0"), exact.b_b(t)(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.score(x, t), exact.score(t)(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.predict(x, t, "x1"), exact.x1_given(t)(x), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def crossing():
    """Two clusters become three: no closed form."""

    def three(x):
        places = torch.tensor([-2.0, 0.5, 3.0], dtype=DOUBLE)
        return (-(x - places).square() / (2 * 0.09)).logsumexp(1)

    def two(x):
        places = torch.tensor([-1.5, 1.5], dtype=DOUBLE)
        return (-(x - places).square() / (2 * 0.16)).logsumexp(1)

    return GridBridge.between(two, three, Brownian(sigma=0.8), [torch.linspace(-7, 8, 301, dtype=DOUBLE)])


def test_the_drifts_are_gradients_of_the_potentials(crossing):
    x = torch.linspace(-3, 3, 7, dtype=DOUBLE)[:, None]
    h = 1e-5
    for t in (0.2, 0.6, 0.9):
        for towards in ("x0", "x1"):
            rise = crossing.potential(x + h, t, towards) - crossing.potential(x - h, t, towards)
            torch.testing.assert_close(crossing.drift(x, t, towards)[:, 0], 0.64 * rise / (2 * h), rtol=1e-6, atol=1e-6)


def test_the_density_obeys_the_equation_of_fokker_and_planck(crossing):
    """`∂p/∂t = −(b_f p)' + ½ g² p''`, by differences; with `−b_b` in its place it fails."""
    x, t, h = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None], 0.6, 1e-4

    def p(at, time):
        return crossing.log_prob(at, time).exp()

    def flux(at):
        return crossing.drift(at, t, "x1")[:, 0] * p(at, t)

    rate = (p(x, t + h) - p(x, t - h)) / (2 * h)
    bend = (p(x + h, t) - 2 * p(x, t) + p(x - h, t)) / h**2
    right = -(flux(x + h) - flux(x - h)) / (2 * h) + 0.32 * bend
    torch.testing.assert_close(rate, right, rtol=1e-4, atol=1e-5)
    assert float((rate + right).abs().max()) > 0.1


def test_the_plan_is_pots(crossing):
    kernel = -((LINE[::4, None] - LINE[::4]) ** 2) / 2
    axis = LINE[::4].contiguous()
    found = GridBridge.between(ONE.log_prob, OTHER.log_prob, Brownian(), [axis])
    theirs = ot.sinkhorn(
        found.p0.numpy(), found.p1.numpy(), -kernel.numpy(), 1.0, method="sinkhorn_log", stopThr=1e-13, numItermax=1000
    )
    means = theirs @ axis.numpy() / found.p0.numpy()
    inner = slice(10, -10)  # beyond, both divide masses below 1e-10
    ours = found.predict(axis[:, None], 0.0, "x1")[:, 0].numpy()
    np.testing.assert_allclose(ours[inner], means[inner], rtol=1e-8, atol=1e-8)


def test_simulating_the_drift_leads_from_one_law_to_the_other(crossing):
    n, steps = 3000, 100
    rng = torch.Generator().manual_seed(0)
    x, _ = crossing.sample(n, Draws.block(0, "start", 0, n))
    for k in range(steps):
        noise = torch.randn(n, 1, dtype=DOUBLE, generator=rng)
        x = x + crossing.drift(x, k / steps) / steps + 0.8 * steps**-0.5 * noise
    masses = crossing.p1.flatten()
    for low, high in ((-7, -1), (-1, 1.75), (1.75, 8)):
        inside = (crossing.nodes[:, 0] > low) & (crossing.nodes[:, 0] <= high)
        share = float(masses[inside].sum())
        found = float(((x > low) & (x <= high)).double().mean())
        assert found == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / n) + 5e-3)


def test_in_the_plane_axes_separate_and_moments_are_those_of_the_closed_form(monkeypatch):
    """Correlated Gaussians: the kernel factorises over the axes, the laws do not."""
    axis = torch.linspace(-6, 6, 49, dtype=DOUBLE)
    one = Normal(torch.tensor([0.2, 0.0], dtype=DOUBLE), torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=DOUBLE))
    other = Normal(torch.tensor([-0.4, 0.5], dtype=DOUBLE), torch.tensor([[0.5, -0.2], [-0.2, 0.9]], dtype=DOUBLE))
    found = GridBridge.between(one.log_prob, other.log_prob, Brownian(), [axis, axis])
    exact = GaussianBridge.between(one, other, Brownian())
    ends = found.ends
    torch.testing.assert_close(ends.cross, exact.ends.cross, rtol=1e-7, atol=1e-7)  # the grid ends there at 5.8 sd
    assert abs(float(ends.cross[0, 1] - ends.cross[1, 0])) > 1e-3
    x = torch.tensor([[0.5, -1.0], [-1.0, 0.2]], dtype=DOUBLE)
    monkeypatch.setattr("latentsb.oracles.grid.CHUNK", 2500)  # one point at a time
    for t in (0.2, 0.7):
        torch.testing.assert_close(found.drift(x, t, "x1"), exact.b_f(t)(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.drift(x, t, "x0"), exact.b_b(t)(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.log_prob(x, t), exact.marginal(t).log_prob(x), rtol=1e-6, atol=1e-6)


def test_pairs_and_paths_are_draws_of_the_bridge():
    found = solved(1.0)
    n = 20_000
    paths = found.sample_paths(n, (0.0, 0.4, 1.0), Draws.block(0, "paths", 0, n))[..., 0]
    exact = GaussianBridge.between(ONE, OTHER, Brownian())
    for k, t in enumerate((0.0, 0.4, 1.0)):
        law = exact.marginal(t)
        assert float(paths[k].mean()) == pytest.approx(float(law.mean), abs=4.5 * float((law.cov / n).sqrt()))
        assert float(paths[k].var()) == pytest.approx(float(law.cov), abs=4.5 * float(law.cov) * math.sqrt(2 / n))
    cross = float(((paths[0] - paths[0].mean()) * (paths[2] - paths[2].mean())).mean())
    c = float(exact.ends.cross)
    assert cross == pytest.approx(c, abs=4.5 * math.sqrt((0.5 + c**2) / n))


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(ArgumentError, match="noise"):
        solved(0.0)
    with pytest.raises(ArgumentError, match="3 iterations"):
        solved(0.1, limit=3)
    with pytest.raises(ArgumentError, match="evenly"):
        GridBridge.between(ONE.log_prob, OTHER.log_prob, Brownian(), [LINE.float()])
