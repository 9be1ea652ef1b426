"""Exact iterates of IMF and IPF: tables to all digits, fixed points, and second derivations."""

from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import torch

from latentsb.oracles import GaussianBridge, Joint, Normal, entropic_plan, imf, ipf
from latentsb.oracles.recursions import flow, markov_coupling
from latentsb.process.references import OU, VE, Brownian

TABLE = [
    (1.0, 1.0, 1.0, (0.54629, 0.61114, 0.61739), 0.618034, 0.094),
    (1.0, 1.0, 0.1, (0.92669, 0.95086, 0.95124), 0.951249, 0.016),
    (1.0, 1.0, 10.0, (0.09636, 0.09895), 0.09902, 0.027),
    (1.0, 4.0, 1.0, (1.42306, 1.55254, 1.56098), 1.561553, None),
]


@pytest.mark.parametrize(("A", "B", "variance", "values", "limit", "ratio"), TABLE)
def test_imf_from_the_independent_coupling(A, B, variance, values, limit, ratio):
    x0, x1, reference = Normal.isotropic(1, 0.3, A), Normal.isotropic(1, -1.0, B), Brownian(sigma=variance**0.5)
    found = [float(j.cross) for j in islice(imf(Joint.independent(x0, x1), reference, panels=20), 3)]
    assert found[: len(values)] == pytest.approx(values, abs=6e-6)
    plan = float(entropic_plan(x0, x1, reference).cross)
    assert plan == pytest.approx(limit, abs=2e-6)
    if ratio is not None:
        assert (plan - found[2]) / (plan - found[1]) == pytest.approx(ratio, abs=6e-4)


def test_imf_by_numerical_integration_of_the_slope():
    """`c_1 = A exp ∫ k_t dt` with the slope of the independent coupling written out."""
    A, B, s2 = 1.0, 4.0, 1.0
    t, weight = np.polynomial.legendre.leggauss(60)
    t = (t + 1) / 2
    var = (1 - t) ** 2 * A + t**2 * B + s2 * t * (1 - t)
    c = A * np.exp((weight / 2 * (t * B / var - 1) / (1 - t)).sum())
    x0, x1 = Normal.isotropic(1, 0.0, A), Normal.isotropic(1, 0.0, B)
    assert float(next(imf(Joint.independent(x0, x1), Brownian())).cross) == pytest.approx(c, rel=1e-9)


def test_the_plan_is_a_fixed_point_and_the_flow_of_its_drift_gives_its_coupling(reference, x0, x1):
    """The Schrödinger bridge is Markov, so the mean at t = 1 given x0 follows its own drift: `Ψ = Cᵀ A⁻¹`."""
    bridge = GaussianBridge.between(x0, x1, reference)
    tolerance = 1e-4 if isinstance(reference, VE) else 1e-5
    torch.testing.assert_close(markov_coupling(bridge, 12).cross, bridge.ends.cross, rtol=tolerance, atol=tolerance)
    for end in (0, 1):  # and IPF does not move it either
        joint = bridge.ends if end == 0 else bridge.ends.reversed()
        mean, cov = joint.x1_given_x0()
        torch.testing.assert_close(joint.x0.push(mean, cov).cov, joint.x1.cov, rtol=1e-9, atol=1e-9)


def test_the_expansion_is_of_sixth_order_at_least(x0, x1):
    bridge = GaussianBridge(Joint.independent(x0, x1), OU(theta=1.7, sigma=0.9))
    truth = flow(bridge, 32)
    errors = [float((flow(bridge, n) - truth).norm()) for n in (4, 8)]
    assert errors[0] / errors[1] > 2**5.5


def test_imf_approaches_the_plan_of_any_reference(reference, x0, x1):
    """KL to the plan falls in every round (Shi et al. 2023, Prop. 7), and the gap with it."""
    plan = entropic_plan(x0, x1, reference)
    joints = [Joint.independent(x0, x1), *islice(imf(Joint.independent(x0, x1), reference, 8), 2)]
    kls = [joint.law.kl(plan.law) for joint in joints]
    assert kls[2] < 0.5 * kls[1] < 0.25 * kls[0]
    gaps = [float((joint.cross - plan.cross).norm()) for joint in joints]
    assert gaps[2] < 0.65 * gaps[1] < 0.65**2 * gaps[0]


def test_imf_by_simulation_of_matched_drifts():
    """Fit an affine drift by least squares at each time and simulate it: no formula of the oracle enters."""
    n, steps = 40_000, 80
    rng = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(n, dtype=torch.float64, generator=rng)

    x0, x1 = normal(), normal()
    x, h = x0, 1 / steps
    for k in range(steps):
        t = k * h
        there = (1 - t) * x0 + t * x1 + (t * (1 - t)) ** 0.5 * normal()
        slope = float((there * (x1 - there) / (1 - t)).mean() / there.square().mean())
        x = x + h * slope * x + h**0.5 * normal()
    ends = Joint.independent(Normal.isotropic(1), Normal.isotropic(1))
    found, exact = float((x0 * x).mean()), float(next(imf(ends, Brownian(), panels=10)).cross)
    # Standard error of the covariance √((1 + c²)/n) = .006; Euler's bias and that of the slopes are below .004.
    assert found == pytest.approx(exact, abs=4 * 0.006 + 0.004)


def test_ipf_of_two_standard_normals_are_fibonaccis_ratios():
    normal = Normal.isotropic(1)
    joints = list(islice(ipf(normal, normal, Brownian()), 6))
    ratios = [Fraction(1, 2), Fraction(2, 3), Fraction(3, 5), Fraction(5, 8), Fraction(8, 13), Fraction(13, 21)]
    assert [float(j.cross) for j in joints] == pytest.approx([float(r) for r in ratios], rel=1e-12)
    loose = [float((j.x0 if k % 2 == 0 else j.x1).cov) for k, j in enumerate(joints)]
    pinned = [float((j.x1 if k % 2 == 0 else j.x0).cov) for k, j in enumerate(joints)]
    assert loose[:5] == pytest.approx([0.75, 1.1111, 0.96, 1.01562, 0.99408], abs=6e-6 + 5e-5)
    assert pinned == pytest.approx([1.0] * 6, rel=1e-12)


def test_ipf_with_little_noise_is_slow_and_oscillates():
    normal = Normal.isotropic(1)
    joints = list(islice(ipf(normal, normal, Brownian(sigma=0.1**0.5)), 5))
    found = [float(j.cross) for j in joints]
    assert found == pytest.approx([0.90909, 0.99099, 0.9166, 0.98367, 0.92279], abs=6e-6)
    matched = float(next(imf(Joint.independent(normal, normal), Brownian(sigma=0.1**0.5), panels=16)).cross)
    assert abs(found[4] - 0.951249) > abs(matched - 0.951249)  # five half steps are behind one round of IMF


def test_ipf_approaches_the_plan_of_any_reference(reference, x0, x1):
    plan = entropic_plan(x0, x1, reference)
    joint = next(islice(ipf(x0, x1, reference), 400, None))
    torch.testing.assert_close(joint.cross, plan.cross, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(joint.x0.mean, x0.mean, rtol=1e-6, atol=1e-6)
    first = next(ipf(x0, x1, reference))
    torch.testing.assert_close(first.x1.cov, x1.cov, rtol=1e-12, atol=1e-12)
    # Each iterate keeps the reference's tilt: its precision block is that of the plan all along.
    torch.testing.assert_close(first.pull, plan.pull, rtol=1e-8, atol=1e-8)
