"""The Schrödinger bridge of two normal laws over time: Nelson, moments, gradients, paths, likelihood."""

import math

import numpy as np
import pytest
import torch

from latentsb.oracles import GaussianBridge, Joint, Normal
from latentsb.oracles.linear import coefficients, pinned
from latentsb.process.references import OU, VE, VP, Brownian
from latentsb.randomness import Draws

TIMES = (0.05, 0.3, 0.49, 0.62, 0.9)


@pytest.fixture
def bridge(reference, x0, x1):
    return GaussianBridge.between(x0, x1, reference)


def slope(function, t, h=1e-5):
    """Derivative of a function of time, by differences of fourth order."""
    return (8 * (function(t + h) - function(t - h)) - function(t + 2 * h) + function(t - 2 * h)) / (12 * h)


def test_the_ends_are_met(bridge, x0, x1):
    for t, end in ((0.0, x0), (1.0, x1)):
        torch.testing.assert_close(bridge.marginal(t).mean, end.mean, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(bridge.marginal(t).cov, end.cov, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(bridge.cross(0.0, 1.0), bridge.ends.cross, rtol=1e-11, atol=1e-11)


def test_brownian_moments_are_the_textbook_ones(x0, x1):
    bridge = GaussianBridge.between(x0, x1, Brownian(sigma=1.2))
    C, eye = bridge.ends.cross, torch.eye(3, dtype=torch.float64)
    for t in TIMES:
        law = bridge.marginal(t)
        cov = (1 - t) ** 2 * x0.cov + t**2 * x1.cov + t * (1 - t) * (C + C.T + 1.44 * eye)
        torch.testing.assert_close(law.cov, cov, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.mean, (1 - t) * x0.mean + t * x1.mean, rtol=1e-12, atol=1e-12)
        x = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64)
        end = x1.mean + (x - law.mean) @ torch.linalg.solve(cov, (1 - t) * C + t * x1.cov)
        torch.testing.assert_close(bridge.b_f(t)(x), (end - x) / (1 - t), rtol=1e-10, atol=1e-10)
        end = x0.mean + (x - law.mean) @ torch.linalg.solve(cov, (1 - t) * x0.cov + t * C.T)
        torch.testing.assert_close(bridge.b_b(t)(x), (end - x) / t, rtol=1e-10, atol=1e-10)


def test_nelson_where_both_drifts_come_from_their_own_end(bridge):
    """The public drifts take one of the two from the other; here each is computed by itself."""
    for t in TIMES:
        both = bridge._to_x1(t) + bridge._to_x0(t)
        score = bridge.score(t).left(bridge.a(t))
        torch.testing.assert_close(both.A, score.A, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(both.v, score.v, rtol=1e-9, atol=1e-9)


def test_moments_obey_the_equation_of_the_forward_drift(bridge):
    """`m' = b_f(m)`, `S' = K S + S Kᵀ + a`, by differences in time; with `b_b` the signs of K and a turn."""
    for t in (0.2, 0.4, 0.75):
        law, a = bridge.marginal(t), bridge.a(t)
        mean, cov = (slope(lambda u, k=k: getattr(bridge.marginal(u), k), t) for k in ("mean", "cov"))
        K = bridge.b_f(t).A
        torch.testing.assert_close(mean, bridge.b_f(t)(law.mean), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(cov, K @ law.cov + law.cov @ K.T + a, rtol=1e-7, atol=1e-7)
        L = bridge.b_b(t).A
        torch.testing.assert_close(mean, -bridge.b_b(t)(law.mean), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(cov, -(L @ law.cov + law.cov @ L.T + a), rtol=1e-7, atol=1e-7)


def test_the_control_is_a_gradient(bridge):
    """`b_f − F x − c = a ∇ ln φ`: a symmetric matrix behind a, for the plan; not so for another coupling."""
    for t in TIMES:
        now = coefficients(bridge.reference, t, 3)
        control = torch.linalg.solve(now.a, (bridge.b_f(t) - now.drift).A)
        torch.testing.assert_close(control, control.T, rtol=1e-8, atol=1e-8)
    twisted = GaussianBridge(Joint(bridge.ends.x0, bridge.ends.x1, bridge.ends.cross.T.contiguous()), bridge.reference)
    control = torch.linalg.solve(now.a, (twisted.b_f(t) - now.drift).A)
    assert float((control - control.T).abs().max()) > 1e-3


def test_drifts_are_finite_and_continuous_up_to_both_ends(bridge):
    start = 1e-9 if isinstance(bridge.reference, VE) else 0.0  # its noise vanishes at t = 0, and P⁻¹ with it
    for side in ("b_f", "b_b"):
        for end, near in ((start, 1e-6), (1.0, 1 - 1e-6)):
            one, other = getattr(bridge, side)(end), getattr(bridge, side)(near)
            torch.testing.assert_close(one.A, other.A, rtol=1e-3, atol=1e-3)


def test_a_general_reference_gives_its_coefficients_by_differentiation(matrix):
    """Held to the matrices that it was made of."""
    reference, F, C, G = matrix
    for t in (0.0, 0.4, 1.0):
        found = coefficients(reference, t, 3)
        torch.testing.assert_close(found.drift.A, F, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.drift.v, C, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.a, G @ G.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_scalar_bridges_are_those_of_the_references(scalar, t):
    time = torch.tensor(t, dtype=torch.float64)
    law, closed = pinned(scalar, 0.0, t, 1.0, 2), scalar.pinned(time)
    eye = torch.eye(2, dtype=torch.float64)
    for matrix, value in ((law.later, closed.a), (law.earlier, closed.b), (law.cov, closed.c)):
        torch.testing.assert_close(matrix, value * eye, rtol=1e-10, atol=1e-12)


def test_paths_have_the_covariances_between_times(bridge):
    n, times = 20_000, (0.0, 0.25, 0.7, 1.0)
    paths = bridge.sample_paths(n, times, Draws.block(1, "paths", 0, n))
    for i, s in enumerate(times):
        for j in range(i, len(times)):
            a, b = paths[i], paths[j]
            truth = bridge.cross(s, times[j])
            found = (a - a.mean(0)).T @ (b - b.mean(0)) / (n - 1)
            one, other = bridge.marginal(s).cov.diagonal(), bridge.marginal(times[j]).cov.diagonal()
            error = ((one[:, None] * other + truth.square()) / n).sqrt()
            assert bool(((found - truth).abs() < 4.5 * error).all())
        gap = (paths[i].mean(0) - bridge.marginal(s).mean).abs()
        assert bool((gap < 4.5 * (bridge.marginal(s).cov.diagonal() / n).sqrt()).all())


def test_the_plans_process_is_markov_and_anothers_is_not(reference, x0, x1):
    """Markov: `Cov(X_r, X_t) = Cov(X_r, X_s) Cov(X_s)⁻¹ Cov(X_s, X_t)`."""

    def defect(bridge):
        r, s, t = 0.2, 0.5, 0.8
        through = bridge.cross(r, s) @ torch.linalg.solve(bridge.marginal(s).cov, bridge.cross(s, t))
        return float((bridge.cross(r, t) - through).abs().max())

    assert defect(GaussianBridge.between(x0, x1, reference)) < 1e-10
    assert defect(GaussianBridge(Joint.independent(x0, x1), reference)) > 1e-3


def test_energy_is_kl_for_the_plan_and_less_for_any_other_coupling(reference, x0, x1):
    """The Markovian projection forgets what is not Markov, and with it some KL."""
    plan = GaussianBridge.between(x0, x1, reference)
    assert plan.energy(12) == pytest.approx(plan.kl, rel=1e-5)
    loose = GaussianBridge(Joint.independent(x0, x1), reference)
    assert plan.kl < loose.energy(8) < loose.kl - 1e-2


def test_the_flow_of_the_velocity_carries_the_likelihood(reference, x0, x1):
    """`∫ tr A_t dt = ½ ln(det B / det A)`: the log-volume of the probability-flow ODE."""
    bridge = GaussianBridge.between(x0, x1, reference)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    total = sum(
        w / 4 * float(bridge.velocity(half + z / 4).A.trace())
        for half in (0.25, 0.75)
        for z, w in zip(nodes, weights, strict=True)
    )
    assert total == pytest.approx(float(torch.logdet(x1.cov) - torch.logdet(x0.cov)) / 2, abs=1e-3)


def test_exchanging_the_ends_mirrors_the_drifts(x0, x1):
    """Brownian motion is its own reverse: the bridge from x1 to x0 at 1 − t has the drifts exchanged."""
    one = GaussianBridge.between(x0, x1, Brownian(sigma=0.8))
    other = GaussianBridge.between(x1, x0, Brownian(sigma=0.8))
    for t in TIMES:
        torch.testing.assert_close(one.b_f(t).A, other.b_b(1 - t).A, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.b_b(t).v, other.b_f(1 - t).v, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(one.b_f(t).A, other.b_f(1 - t).A, atol=1e-2)


def test_a_quadratic_state_cost_over_brownian_motion_is_the_bridge_of_ou():
    """Generalised bridges with `V = α |x|²` and control cost `1/2σ²`: OU of rate `η = σ √(2α)`.

    The optimal conditional path has the mean `[sinh η(1−t) x0 + sinh ηt x1]/sinh η`, the variance
    `σ² sinh ηt sinh η(1−t)/(η sinh η)` and the drift `η x1/sinh η(1−t) − η coth η(1−t) x`.
    """
    sigma, alpha = 0.7, 2.0
    eta = sigma * math.sqrt(2 * alpha)
    reference = OU(theta=eta, sigma=sigma)
    for t in TIMES:
        here, time = pinned(reference, 0.0, t, 1.0, 1), torch.tensor(t, dtype=torch.float64)
        later, whole = math.sinh(eta * (1 - t)), math.sinh(eta)
        assert float(here.earlier) == pytest.approx(later / whole, rel=1e-11)
        assert float(here.later) == pytest.approx(math.sinh(eta * t) / whole, rel=1e-11)
        assert float(here.cov) == pytest.approx(sigma**2 * math.sinh(eta * t) * later / (eta * whole), rel=1e-11)
        x, end = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-1.3]], dtype=torch.float64)
        drift = eta * -1.3 / later - eta / math.tanh(eta * (1 - t)) * 0.4
        assert float(reference.b_f(x, time, end)) == pytest.approx(drift, rel=1e-10)
    # Between two laws it is the entropic plan with ε = σ² sinh(η)/η.
    one, other = Normal.isotropic(1, 0.3, 0.8), Normal.isotropic(1, -1.0, 1.7)
    epsilon = sigma**2 * math.sinh(eta) / eta
    expected = (math.sqrt(4 * 0.8 * 1.7 + epsilon**2) - epsilon) / 2
    assert float(GaussianBridge.between(one, other, reference).ends.cross) == pytest.approx(expected, rel=1e-11)


def test_a_standard_schedule_of_vp_leaves_nothing_to_couple():
    normal = Normal.isotropic(1)
    bridge = GaussianBridge.between(normal, normal, VP(beta_min=0.1, beta_d=19.9))
    assert bridge.reference.epsilon == pytest.approx(152, abs=0.5)
    assert float(bridge.ends.cross) == pytest.approx(0.0066, abs=5e-5)
