"""Grids against their closed forms, inverses of sigma_eff, and what each start puts at the first time."""

from __future__ import annotations

import math

import pytest
import torch

from latentsb.bridge import State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.process.references import OU, VE, VP, Brownian, Varying
from latentsb.process.times import time_of_sigma
from latentsb.randomness import Draws
from latentsb.solvers.base import GRIDS, STARTS
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.grid import Asinh, Karras, KarrasTime, LogUniform, Natural, Uniform
from latentsb.solvers.start import Boot, Centre, Endpoint, FromNoise
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition

ONE = torch.ones((), dtype=torch.float64)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture
def build(oracles):
    def make(reference, pinned, t_min=1e-4):
        bridge = oracles.gaussian(reference, f64([0.1, -0.2]), f64([[0.5, 0.1], [0.1, 0.3]]), pinned=pinned)
        bridge.t_min = t_min
        return bridge

    return make


def test_words():
    assert set(GRIDS.names()) >= {"natural", "uniform", "karras_time", "loguniform", "karras", "asinh"}
    assert set(STARTS.names()) >= {"noise", "endpoint", "centre", "boot"}


@pytest.mark.parametrize("sigma", [0.004, 0.1, 1.0, 30.0])
def test_inverse_of_the_noise_level(build, sigma):
    """VP in closed form: `rho² = 1/(1/sigma² + 1/rho_1²)` and `0.1 t + t² = ln(1 + rho²)`."""
    rho2 = 1 / (1 / sigma**2 + 1 / math.expm1(1.1))
    t = (-0.1 + math.sqrt(0.01 + 4 * math.log1p(rho2))) / 2
    assert float(time_of_sigma(build(VP(), True), f64([sigma]))) == pytest.approx(t, rel=1e-12)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("reference", [VE(), VP(beta_d=19.9), OU(), Varying(), VP()])
def test_sigma_grids_have_their_levels(build, reference, pinned):
    """Levels are geometric; the largest is 80 or what the bridge has, the smallest .003 or what it has."""
    bridge = build(reference, pinned)
    times = LogUniform().times(bridge, 9)
    assert times.dtype == torch.float64
    assert len(times) == 10
    assert times[-1] == 0
    levels = bridge.marginal(times[:-1]).sigma_eff.log()
    assert bool(times[0] == 1) == (not pinned and float(bridge.marginal(ONE).sigma_eff) <= 80)
    gaps = levels[1:] - levels[:-1]
    assert torch.allclose(gaps, gaps.mean().expand(8), rtol=1e-7)
    ends = bridge.marginal(f64([1.0, 1e-4])).sigma_eff
    assert float(levels[0].exp()) == pytest.approx(min(80.0, float(ends[0])), rel=1e-9)
    assert float(levels[-1].exp()) == pytest.approx(max(0.003, float(ends[1])), rel=1e-9)
    assert torch.equal(LogUniform().times(bridge, 8, "x1"), times[:-1].flip(0))


@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_asinh_is_even_down_to_zero(build, towards):
    """`asinh(sigma_eff/scale)` falls evenly and 0 is one of its even places, until the bridge's own t_min stops it."""
    steps = 12 if towards == "x0" else 11
    bridge = build(VP(), True, t_min=1e-9)
    times = Asinh(scale=0.3).times(bridge, steps, towards)
    falling = times[:-1] if towards == "x0" else times.flip(0)
    clock = torch.asinh(bridge.marginal(falling).sigma_eff / 0.3)
    even = math.asinh(80 / 0.3) * (1 - torch.arange(12, dtype=torch.float64) / 12)
    assert torch.allclose(clock, even, rtol=1e-8)
    stopped = Asinh().times(build(VP(), True), 500)
    assert stopped[-2] == pytest.approx(1e-4, rel=1e-9)
    assert bool((stopped.diff() < 0).all())
    bounded = bridge.marginal(Asinh(sigma_min=0.1).times(bridge, 12)[-2]).sigma_eff
    assert float(bounded) == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize("calls", [16, 20, 32])
@pytest.mark.parametrize("solver", [UniPC, DPMpp])
@pytest.mark.parametrize("spread", [0.05, 0.1, 0.2, 0.5, 1.0])
def test_asinh_keeps_the_spread_of_fine_and_coarse_gaussians(oracles, solver, spread, calls):
    bridge = oracles.gaussian(VP(), f64([0.0]), f64([[spread**2]]), pinned=True)
    bridge.t_min = 1e-9
    law = oracles.propagate(solver(steps=calls, grid=Asinh()), bridge, x=f64([0.0]), x1=f64([0.0]))
    assert float(law.cov[0, 0].sqrt()) / spread == pytest.approx(1, abs=0.025)


def test_karras_levels(build):
    """Karras et al. 2022, Eq. 5, at VE where sigma_eff of the one-sided marginal is 80 t."""
    times = Karras().times(build(VE(), False, t_min=1e-9), 5)
    levels = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert (80 * times[:-1]).tolist() == pytest.approx(levels, rel=1e-9)


def test_official_grid_in_time(build):
    """The official grid has 13 of 100 points beyond t = .5, and its second time is .949."""
    times = KarrasTime().times(build(VP(), True), 100)
    assert times[0] == 1 - 1e-4
    assert float(times[1]) == pytest.approx(0.949, abs=5e-4)
    assert int((times > 0.5).sum()) == 13
    assert times[-2] == 1e-4
    assert times[-1] == 0
    assert KarrasTime(zero=False).times(build(VP(), True), 100)[-1] == 1e-4


def test_uniform(oracles, build):
    plain = oracles.Straight(f64([0.0]), f64([[1.0]]))
    assert Uniform().times(plain, 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert Uniform().times(plain, 4, "x1").tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert Uniform().times(build(VP(), False), 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert Uniform(margin=0.2).times(build(VP(), True), 4).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    assert Uniform(margin=0.2, last=0.2).times(build(VP(), True), 4).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    assert Uniform(margin=0.2).times(build(VP(), True), 1, "x1").tolist() == pytest.approx([1e-4, 0.8])


def test_margins_are_distances_from_one(build):
    """A bridge whose denoiser stops at t_max < 1 keeps both: the grid begins at the smaller of t_max and 1 − margin."""
    bridge = build(VP(), True)
    bridge.t_max = 0.95
    for grid in (Uniform, KarrasTime):
        assert grid(margin=0.2).times(bridge, 4)[0] == 0.8
        assert grid(margin=0.01).times(bridge, 4)[0] == 0.95


@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_natural_is_even_in_noise_levels_where_there_is_noise(oracles, build, towards):
    """Straight lines have no noise of their own: even times suit them, be they a denoising bridge or a plain one."""
    plain, noisy, straight = oracles.Straight(f64([0.0]), f64([[1.0]])), build(VP(), True), build(VP(), False)
    straight.reference = Brownian(sigma=0.0)
    assert torch.equal(Natural().times(plain, 5, towards), Uniform().times(plain, 5, towards))
    assert torch.equal(Natural().times(noisy, 5, towards), LogUniform().times(noisy, 5, towards))
    straight.marginal = lambda t: Marginal(0 * t, 1 - t, t**2)
    assert torch.equal(Natural().times(straight, 5, towards), Uniform().times(straight, 5, towards))


def test_noise_level_grids_need_a_denoising_bridge(oracles):
    plain = oracles.Straight(f64([0.0]), f64([[1.0]]))
    for grid in (LogUniform(), Karras(), Asinh(), KarrasTime()):
        with pytest.raises(CapabilityError, match="DenoisingBridge; 'Straight' is not one"):
            grid.times(plain, 4)


def test_levels_that_the_bridge_does_not_have(build):
    with pytest.raises(CapabilityError, match=r"this bridge has .* to 0.001: they do not overlap"):
        LogUniform().times(build(VE(sigma_max=0.001), False), 4)


def test_wrong_values_are_told():
    with pytest.raises(ArgumentError, match="sigma_min: must be below"):
        LogUniform(sigma_max=0.001)
    with pytest.raises(ArgumentError, match="scale"):
        Asinh(scale=0.0)
    with pytest.raises(ArgumentError, match="rho"):
        Karras(rho=-1.0)
    with pytest.raises(ArgumentError, match="margin"):
        Uniform(margin=0.0)


def test_starts_of_a_pinned_bridge(build):
    bridge = build(VP(), True)
    draws = Draws.seeds([5, 6])
    x1 = f64([[1.0, 2.0], [3.0, -4.0]])
    state, t = State(x1, ONE, Condition({"x1": x1})), f64(0.9)
    there = bridge.marginal(t)
    noise = draws.normal("noise", x1)
    x0 = bridge.denoise(x1, ONE, state.cond)
    assert torch.allclose(x0, f64([0.1, -0.2]).expand(2, 2))
    expected = {
        FromNoise(): there.a * x1 + there.std * noise,
        Endpoint(): x1,
        Centre(): there.a * x1,
        Boot(): there.a * x1 + there.b * x0 + there.std * noise,
    }
    for start, x in expected.items():
        entered = start.enter(bridge, state, t, draws)
        assert entered.t == t
        assert torch.allclose(entered.x, x, rtol=1e-12)


@pytest.mark.parametrize("start", [FromNoise(), Boot()])
def test_noise_of_an_unpinned_state_is_kept(build, start):
    """The state at t = 1 is `sqrt(c_1) eps`; entering at t the same eps stands there, scaled."""
    bridge = build(VP(beta_d=19.9), False)
    eps = f64([[1.0, 2.0], [3.0, -4.0]])
    state, t = State(bridge.marginal(ONE).std * eps, ONE, Condition()), f64(0.8)
    there = bridge.marginal(t)
    x = start.enter(bridge, state, t, Draws.seeds([0, 1])).x
    x0 = bridge.denoise(state.x, ONE, Condition()) if start == Boot() else torch.zeros_like(eps)
    assert torch.allclose(x, there.b * x0 + there.std * eps, rtol=1e-12)


def test_boot_asks_an_inner_state_where_it_is(build):
    """A trajectory that begins at t = 0.7 knows more of x0 than its other end does."""
    bridge = build(VP(), True)
    x1, x = f64([[1.0, 2.0]]), f64([[0.3, -0.8]])
    state, t, draws = State(x, f64(0.7), Condition({"x1": x1})), f64(0.5), Draws.seeds([4])
    there, x0 = bridge.marginal(t), bridge.denoise(x, f64(0.7), state.cond)
    expected = there.a * x1 + there.b * x0 + there.std * draws.normal("noise", x)
    assert torch.allclose(Boot().enter(bridge, state, t, draws).x, expected, rtol=1e-12)
