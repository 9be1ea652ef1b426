"""Gaussian splines: exact ends, derivatives, Nelson's relation, equations of the moments, energy as a divergence."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentsb.process.coupling import Pair
from latentsb.process.path import PinnedPath
from latentsb.process.references import Brownian
from latentsb.process.splines import Spline, SplinePath, hats, modes
from latentsb.randomness import Draws

DOUBLE = torch.float64
SIGMA, B, K, DIM = 0.7, 5, 4, 3
TIMES = torch.tensor([0.003, 0.17, 0.39, 0.5, 0.83], dtype=DOUBLE)  # none on a knot


def pair_of(seed=0, size=1.0, rows=B, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype)

    extra = {"bend": size * normal(rows, K, DIM), "swell": size * normal(rows, K)}
    return Pair(normal(rows, DIM), normal(rows, DIM), extra=extra)


def spline_of(pair):
    return Spline(SIGMA, pair.x0, pair.x1, pair.extra["bend"], pair.extra["swell"])


@dataclass(frozen=True)
class Constant:
    """Draws of one number."""

    value: float

    def normal(self, name, like):
        return torch.full_like(like, self.value)


def test_no_knots_moved_is_the_brownian_bridge():
    pair, draws = pair_of(size=0.0), Draws.seeds(range(B))
    found = SplinePath(sigma=SIGMA).at(TIMES, pair, draws)
    expected = PinnedPath(Brownian(sigma=SIGMA)).at(TIMES, pair, draws)
    for name in ("x", "b_f", "b_b", "score"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)


def test_the_ends_are_exact():
    pair = pair_of(dtype=torch.float32)
    mean, std = spline_of(pair).sweep(torch.tensor([0.0, 1.0], dtype=DOUBLE))
    assert torch.equal(mean[0], pair.x0)
    assert torch.equal(mean[1], pair.x1)
    assert bool((std == 0).all())


def test_the_deviation_leaves_the_ends_as_the_brownian_bridge_does():
    """The ratio of both is 1 there, whatever the knots; softplus(0) would make it 0.69."""
    for t in (1e-9, 1 - 1e-9):
        std = spline_of(pair_of()).at(torch.full((B,), t, dtype=DOUBLE)).std
        torch.testing.assert_close(
            std / (SIGMA * math.sqrt(t * (1 - t))), torch.ones(B, dtype=DOUBLE), rtol=1e-6, atol=0
        )


def test_sweep_and_at_agree():
    spline = spline_of(pair_of())
    mean, std = spline.sweep(TIMES)
    for row, t in enumerate(TIMES):
        now = spline.at(t.expand(B))
        torch.testing.assert_close(now.mean, mean[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(now.std, std[row], rtol=1e-12, atol=1e-12)


def test_derivatives_are_those_of_automatic_differentiation():
    spline = spline_of(pair_of())
    now = spline.at(TIMES)

    def moments(t):
        return spline.at(t).mean, spline.at(t).std

    slope, rate = torch.func.jvp(moments, (TIMES,), (torch.ones_like(TIMES),))[1]
    torch.testing.assert_close(now.slope, slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(now.rate, rate, rtol=1e-10, atol=1e-10)


def test_nelson():
    point = SplinePath(sigma=SIGMA).at(TIMES, pair_of(), Draws.seeds(range(B)))
    torch.testing.assert_close(point.b_f + point.b_b, SIGMA**2 * point.score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("towards", ["x1", "x0"])
def test_the_drifts_carry_the_moments(towards):
    """`m' = ± b(m)` and `(γ²)' = ± (2 k γ² + σ²)`, with k the slope of the drift in x and time as it runs."""
    pair, sign, h = pair_of(), 1 if towards == "x1" else -1, 1e-6
    up, down = (SplinePath(sigma=SIGMA).at(TIMES, pair, Constant(e)) for e in (1.0, -1.0))
    b_up, b_down = (p.b_f if towards == "x1" else p.b_b for p in (up, down))
    k = ((b_up - b_down) / (up.x - down.x))[:, 0]
    before, now, after = (spline_of(pair).at(t) for t in (TIMES - h, TIMES, TIMES + h))
    torch.testing.assert_close((after.mean - before.mean) / (2 * h), sign * (b_up + b_down) / 2, rtol=1e-6, atol=1e-6)
    growth = (after.std.square() - before.std.square()) / (2 * h)
    torch.testing.assert_close(growth, sign * (2 * k * now.std.square() + SIGMA**2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("towards", ["x1", "x0"])
def test_energy_is_the_divergence_from_the_brownian_bridge(towards):
    """`∫ E |b − b_Brownian|² / 2σ²` with the regression targets themselves, whichever way time runs.

    The difference is affine in the noise, so opposite signs give the expectation exactly. The splines have kinks at the
    knots: the midpoint rule with a multiple of K + 1 points is of second order between them, and the difference of the
    drifts grows like t^(-1/2) times t at the ends, which leaves an error of order h.
    """
    pair, n = pair_of(size=0.5), 400 * (K + 1)
    spline = spline_of(pair)
    t = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    total = torch.zeros(B, dtype=DOUBLE)
    many = Pair(*(v.repeat_interleave(n, 0) for v in (pair.x0, pair.x1)))
    many = Pair(many.x0, many.x1, extra={k: v.repeat_interleave(n, 0) for k, v in pair.extra.items()})
    when = t.repeat(B)
    for sign in (1.0, -1.0):
        point = SplinePath(sigma=SIGMA).at(when, many, Constant(sign))
        if towards == "x1":
            gap = point.b_f - (many.x1 - point.x) / (1 - when[:, None])
        else:
            gap = point.b_b - (many.x0 - point.x) / when[:, None]
        total += gap.square().sum(1).reshape(B, n).mean(1) / (4 * SIGMA**2)
    torch.testing.assert_close(spline.energy(t), total, rtol=3e-3, atol=0)


def test_modes_cost_one_unit_each_and_make_brownian_bridges():
    basis, at = modes(K), torch.arange(1, K + 1, dtype=DOUBLE) / (K + 1)
    covariance = torch.minimum(at[:, None], at) - at[:, None] * at
    torch.testing.assert_close(basis @ basis.T, covariance, rtol=1e-12, atol=1e-12)
    weights = torch.randn(B, K, DIM, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(B, DIM, dtype=DOUBLE)
    spline = Spline(SIGMA, zero, zero, SIGMA * torch.einsum("kj,bjd->bkd", basis, weights), zero.new_zeros(B, K))
    torch.testing.assert_close(spline.energy(TIMES), weights.square().sum((1, 2)) / 2, rtol=1e-10, atol=1e-10)


def test_hats_interpolate():
    t = torch.rand(50, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    at, value = torch.arange(K + 2, dtype=DOUBLE) / (K + 1), torch.randn(K + 2, dtype=DOUBLE)
    value[0] = value[-1] = 0
    left = (t * (K + 1)).long()
    expected = torch.lerp(value[left], value[left + 1], (t - at[left]) * (K + 1))
    torch.testing.assert_close(hats(t, K)[0] @ value[1:-1], expected, rtol=1e-12, atol=1e-12)


class Numbers(TorchDispatchMode):
    """Counts the numbers that operations return."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.count += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def test_each_pair_is_evaluated_at_its_own_time_only():
    """Twice the pairs take twice the work, not four times."""
    counts = []
    for rows in (512, 1024):
        pair, t = pair_of(rows=rows), torch.linspace(0.01, 0.99, rows, dtype=DOUBLE)
        with Numbers() as numbers:
            spline_of(pair).at(t)
        counts.append(numbers.count)
    assert counts[1] <= 2 * counts[0]
