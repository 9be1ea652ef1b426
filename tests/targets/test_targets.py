"""Targets: constants by another way, scores by differences, modes by counting; a user's own in one class."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from latentsb.errors import ArgumentError
from latentsb.targets.base import TARGETS, Target
from latentsb.targets.toys import DoubleWell, Funnel, ManyWell, ManyWell50, MixtureTarget, Rings

DOUBLE = torch.float64
WORDS = ["dw_shift", "funnel", "gauss_shift", "gmm", "mw", "mw_50d", "rings"]


def well(delta: float) -> tuple[float, float]:
    mass = quad(lambda x: math.exp(-((x**2 - delta) ** 2)), -8, 8, points=[-(delta**0.5), delta**0.5])[0]
    second = quad(lambda x: x**2 * math.exp(-((x**2 - delta) ** 2)), -8, 8, points=[-(delta**0.5), delta**0.5])[0]
    return mass, math.sqrt(second / mass)


def test_every_word():
    own = [word for word in TARGETS.names() if TARGETS[word].__module__.startswith("latentsb.")]
    assert own == WORDS


def test_wells_by_adaptive_quadrature():
    (deep, wide), (shallow, narrow) = well(4.0), well(2.0)
    assert ManyWell().log_z == pytest.approx(5 * math.log(deep), abs=1e-8)
    assert ManyWell().std == pytest.approx([wide] * 5, abs=1e-8)
    assert ManyWell50().log_z == pytest.approx(5 * math.log(shallow) + 22.5 * math.log(2 * math.pi), abs=1e-8)
    assert ManyWell50().std == pytest.approx([narrow] * 5 + [1.0] * 45, abs=1e-8)
    assert DoubleWell().log_z == pytest.approx(math.log(shallow), abs=1e-8)
    # The constants that others have measured, to their digits.
    assert (ManyWell().log_z, ManyWell50().log_z) == (
        pytest.approx(-0.541056, abs=1e-6),
        pytest.approx(42.817243, abs=1e-6),
    )


def test_rings_by_erf():
    """Where rings do not overlap, each is `2π r √(π/sharpness)` to the mass of the Gaussian below the next middle."""
    rings = Rings()
    masses = [2 * math.pi * r * math.sqrt(math.pi / 100) for r in rings.radii]
    assert rings.log_z == pytest.approx(math.log(sum(masses)), abs=1e-9)
    assert rings.mode_mass == pytest.approx([m / sum(masses) for m in masses], abs=1e-9)
    second = sum(m * (r**2 + 3 / 200) for m, r in zip(masses, rings.radii, strict=True)) / sum(masses)
    assert rings.std == pytest.approx([math.sqrt(second / 2)] * 2, abs=1e-9)


def test_normalised_densities_integrate_to_one():
    line = torch.linspace(-9, 9, 361, dtype=DOUBLE)
    plane = torch.cartesian_prod(line, line)
    assert float(MixtureTarget().log_prob(plane).exp().sum() * 0.05**2) == pytest.approx(1, abs=1e-9)
    line, wide = torch.linspace(-6, 6, 241, dtype=DOUBLE), torch.linspace(-60, 60, 6001, dtype=DOUBLE)
    slices = Funnel(dim=2, spread=1.5).log_prob(torch.cartesian_prod(line, wide)).exp().reshape(241, 6001)
    assert float(slices[:, ::].sum() * 0.05 * 0.02) == pytest.approx(1, abs=2e-3)  # six spreads are 4 on this line


@pytest.mark.parametrize("word", WORDS)
def test_scores_by_differences(word):
    target = TARGETS[word]()
    x = torch.randn(4, *target.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    slope, h = target.score(x), 1e-5
    for i in range(min(3, target.spec.numel)):
        e = torch.zeros_like(x)
        e[:, i] = h
        difference = (target.log_prob(x + e) - target.log_prob(x - e)) / (2 * h)
        assert torch.allclose(slope[:, i], difference, rtol=1e-5, atol=1e-5)


def test_scores_are_differentiable_where_the_state_is():
    x = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    (curvature,) = torch.autograd.grad(MixtureTarget(distance=1.0, variance=1.0).score(x).sum(), x)
    assert bool((curvature != 0).all())
    with torch.no_grad():
        assert not MixtureTarget().score(x).requires_grad


def test_modes():
    gmm = MixtureTarget()
    assert gmm.mode_of(gmm.centres + 0.5).tolist() == list(range(9))
    mw = ManyWell()
    signs = torch.cartesian_prod(*[torch.tensor([-2.0, 2.0])] * 5)
    assert sorted(mw.mode_of(signs).tolist()) == list(range(32))
    angle = torch.linspace(0, 6, 7)[:, None]
    circle = torch.cat([angle.cos(), angle.sin()], 1)
    assert [Rings().mode_of(r * circle).unique().tolist() for r in (1.2, 2.7, 5.1)] == [[0], [1], [2]]


def test_wrong_shapes_are_told():
    with pytest.raises(ArgumentError, match="at least 2"):
        Funnel(dim=1)
    with pytest.raises(ArgumentError, match="at most dim"):
        ManyWell(dim=3)
    with pytest.raises(ArgumentError, match="ascending"):
        Rings(radii=(2.0, 1.0))


def test_a_target_of_ones_own_is_one_class():
    @dataclass(frozen=True, kw_only=True)
    class Own(Target):
        shape = (2,)

        def log_prob(self, x, cond=None):
            return -x.square().sum(1)

    assert Own().spec.shape == (2,)
    assert Own().log_z is None
    assert np.allclose(Own().score(torch.ones(1, 2)), -2)
