"""Scalar references against published values, closed forms and second derivations."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from latentsb.errors import ArgumentError
from latentsb.process.reference import REFERENCES, ScalarReference
from latentsb.process.references import OU, VE, VP, Brownian, Varying

EXACT = dict(rtol=1e-11, atol=1e-12)

# t, alpha, a, b, sqrt(c), sigma_eff; VP with beta_min 0.1, beta_d 2
VP_TABLE = [
    (0.0001, 0.999994995, 8.65689893e-6, 0.99999, 0.00316384259, 0.00316387422),
    (0.001, 0.999949501, 8.73473319e-5, 0.999899106, 0.0100493686, 0.0100503826),
    (0.01, 0.999450151, 0.000951307623, 0.998901294, 0.0331480238, 0.0331844837),
    (0.1, 0.990049834, 0.0172967896, 0.980070454, 0.140006199, 0.142853198),
    (0.25, 0.957193226, 0.075696336, 0.913520239, 0.282769381, 0.309538168),
    (0.5, 0.860707976, 0.260421544, 0.710457816, 0.462533793, 0.651036251),
    (0.75, 0.727057291, 0.560709453, 0.403556078, 0.511513088, 1.26751427),
    (0.9, 0.637628152, 0.804878883, 0.173253433, 0.401552243, 2.31771594),
    (0.99, 0.583010548, 0.979175944, 0.0180751729, 0.143056456, 7.91452769),
    (0.9999, 0.57701039, 0.999790234, 0.000181604616, 0.0144895118, 79.7860323),
]
# noise level rho = 80 t, a, b, sqrt(c), sigma_eff
VE_TABLE = [
    (0.002, 6.25e-10, 1.0, 0.002, 0.002),
    (0.2, 6.25e-6, 0.99999375, 0.19999937, 0.20000063),
    (1, 0.00015625, 0.99984375, 0.99992187, 1.0000781),
    (5, 0.00390625, 0.99609375, 4.9902248, 5.0097943),
    (20, 0.0625, 0.9375, 19.364917, 20.655911),
    (79.9, 0.99750156, 0.0024984375, 3.9937514, 1598.4996),
]


def column(table, i):
    return torch.tensor([row[i] for row in table], dtype=torch.float64)


def slope(function, t):
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


def test_vp_golden_table():
    vp, t = VP(), column(VP_TABLE, 0)
    m = vp.pinned(t)
    for i, value in enumerate((vp.alpha(t), m.a, m.b, m.std, m.sigma_eff), start=1):
        assert_close(value, column(VP_TABLE, i), rtol=1e-6, atol=0)


def test_vp_golden_end():
    vp, one = VP(), torch.ones((), dtype=torch.float64)
    assert float(vp.alpha(one)) == pytest.approx(0.576949810, abs=5e-10)
    assert vp.total == pytest.approx(2.004166024, abs=5e-10)
    assert float(vp.noised(one).c) == pytest.approx(0.667128916, abs=5e-10)
    assert float(vp.noised(one).snr) == pytest.approx(0.498960659, abs=5e-10)


def test_ve_golden_table():
    m = VE(sigma_max=80.0).pinned(column(VE_TABLE, 0) / 80)
    for i, value in enumerate((m.a, m.b, m.std, m.sigma_eff), start=1):
        assert_close(value, column(VE_TABLE, i), rtol=1e-6, atol=0)


def test_drift_and_diffusion_are_the_defining_ones(t):
    beta = 0.1 + 2 * t
    g = math.sqrt(0.1) + (math.sqrt(1.3) - math.sqrt(0.1)) * (1 - (1 - 2 * t).abs())
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    for reference, f, g2 in [
        (VP(), -beta / 2, beta),
        (VE(sigma_max=80.0), zero, 2 * 80**2 * t),
        (Brownian(sigma=0.7), zero, 0.49 * one),
        (OU(theta=1.7, sigma=0.6), -1.7 * one, 0.36 * one),
        (Varying(beta_ends=0.1, beta_middle=1.3), zero, g.square()),
    ]:
        assert_close(reference.f(t), f, **EXACT)
        assert_close(reference.g2(t), g2, **EXACT)
        assert_close(reference.g(t), g2.sqrt(), **EXACT)


def test_rates_are_exact_at_both_ends():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(VP().g2(ends), torch.tensor([0.1, 2.1], dtype=torch.float64), **EXACT)
    assert_close(VP().f(ends), torch.tensor([-0.05, -1.05], dtype=torch.float64), **EXACT)


def test_rates_work_inside_no_grad_and_inference_mode(reference, t):
    expected = reference.rates(t)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(reference.rates(t.clone()), expected, rtol=0, atol=0)


def test_transition_solves_the_moment_equations(reference, t):
    # dPhi/dt = f Phi and dQ/dt = 2 f Q + g² for the law of X_t given X_s.
    s = t / 2
    law = reference.transition(s, t)
    assert_close(slope(lambda u: reference.transition(s, u).Phi, t), reference.f(t) * law.Phi, rtol=1e-10, atol=1e-12)
    growth = 2 * reference.f(t) * law.Q + reference.g2(t)
    assert_close(slope(lambda u: reference.transition(s, u).Q, t), growth, rtol=1e-10, atol=1e-12)
    assert_close(law.m, torch.zeros_like(t))
    still = reference.transition(t, t)
    assert_close((still.Phi, still.Q), (torch.ones_like(t), torch.zeros_like(t)))


def test_noised_is_the_transition_from_zero(reference, t):
    law, m = reference.transition(torch.zeros_like(t), t), reference.noised(t)
    assert_close((m.a, m.b, m.c), (torch.zeros_like(t), law.Phi, law.Q), **EXACT)
    assert_close(reference.rho2(t), 1 / m.snr, **EXACT)


def test_pinned_is_the_bayes_bridge_of_the_transitions(reference, t):
    # Conditioning the joint Gaussian of (X_t, X_1) on X_1: K = P Phi2 / Q_1, mean K x1 + (1 − K Phi2) Phi1 x0.
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    first, second = reference.transition(zero, t), reference.transition(t, one)
    gain = first.Q * second.Phi / (second.Phi.square() * first.Q + second.Q)
    m = reference.pinned(t)
    assert_close(m.a, gain, rtol=1e-10, atol=0)
    assert_close(m.b, (1 - gain * second.Phi) * first.Phi, rtol=1e-9, atol=1e-13)
    assert_close(m.c, (1 - gain * second.Phi) * first.Q, rtol=1e-9, atol=1e-13)


def test_pinning(reference, t):
    ends = reference.pinned(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert_close(ends.a, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert_close(ends.b, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert_close(ends.c, torch.tensor([0.0, 0.0], dtype=torch.float64))
    # Exactly: a solver asks c whether the end carries noise. Vectorised and scalar functions round differently.
    for n in (1, 2, 4, 7, 64):
        law = reference.pinned(torch.ones(n, dtype=torch.float64))
        assert bool((law.c == 0).all())
        assert bool((law.b == 0).all())
    assert float(ends.sigma_eff[0]) == 0
    assert float(ends.sigma_eff[1]) == math.inf
    assert float(ends.snr[1]) == 0
    assert bool((reference.pinned(t).c > 0).all())


def test_special_cases_of_the_pinned_law(t):
    m = Brownian(sigma=0.7).pinned(t)
    assert_close((m.a, m.b, m.c), (t, 1 - t, 0.49 * t * (1 - t)), **EXACT)
    th, sg = 1.7, 0.6
    m, sinh = OU(theta=th, sigma=sg).pinned(t), torch.sinh
    assert_close(m.a, sinh(th * t) / math.sinh(th), **EXACT)
    assert_close(m.b, sinh(th * (1 - t)) / math.sinh(th), **EXACT)
    assert_close(m.c, sg**2 / th * sinh(th * t) * sinh(th * (1 - t)) / math.sinh(th), **EXACT)
    # g linear on both halves: the integral of g² by Simpson's rule on each, which is exact for a square of a line.
    varying = Varying(beta_ends=0.1, beta_middle=1.3)
    half = torch.minimum(t, 1 - t)
    simpson = half / 6 * (varying.g2(0 * t) + 4 * varying.g2(half / 2) + varying.g2(half))
    total = (0.1 + 4 * ((math.sqrt(0.1) + math.sqrt(1.3)) / 2) ** 2 + 1.3) / 6
    s = torch.where(t < 0.5, simpson, total - simpson)
    r = total - s
    m = varying.pinned(t)
    assert_close((m.a, m.b, m.c), (s / total, r / total, s * r / total), rtol=1e-9, atol=1e-14)


def test_drifts_of_special_cases(t):
    x, x0, x1 = (torch.full_like(t, v) for v in (0.3, -1.1, 0.8))
    brownian = Brownian(sigma=0.7)
    assert_close(brownian.b_f(x, t, x1), (x1 - x) / (1 - t), **EXACT)
    assert_close(brownian.b_b(x, t, x0), (x0 - x) / t, **EXACT)
    th = 1.7
    ou, tau = OU(theta=th, sigma=0.6), 1 - t
    assert_close(
        ou.b_f(x, t, x1), th * x1 / torch.sinh(th * tau) - th * x / torch.tanh(th * tau), rtol=1e-9, atol=1e-11
    )
    assert_close(ou.b_b(x, t, x0), th * x0 / torch.sinh(th * t) - th * x / torch.tanh(th * t), rtol=1e-9, atol=1e-11)
    varying = Varying(beta_ends=0.1, beta_middle=1.3)
    s = varying.rho2(t)
    assert_close(varying.b_f(x, t, x1), varying.g2(t) * (x1 - x) / (varying.total - s), **EXACT)
    assert_close(varying.b_b(x, t, x0), varying.g2(t) * (x0 - x) / s, **EXACT)


def test_noiseless_reference_is_the_straight_line(t):
    flow = Brownian(sigma=0.0)
    x0, x1 = torch.full_like(t, -1.1), torch.full_like(t, 0.8)
    m = flow.pinned(t)
    x = m.mean(x0, x1)
    assert_close(m.c, torch.zeros_like(t))
    assert_close(flow.b_f(x, t, x1), x1 - x0, rtol=1e-10, atol=1e-10)
    assert_close(flow.b_b(x, t, x0), x0 - x1, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="noiseless"):
        flow.time_of_sigma_eff(t, pinned=True)


def test_forward_moments_by_integration(reference):
    # Mean and variance of dX = b_f(X) dt + g dW from x0; b_f is affine in x, so two evaluations give its coefficients.
    x0, x1, end = 0.4, -0.9, 0.9
    pull = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def rhs(t, y):
        time = torch.tensor(t, dtype=torch.float64)
        offset, whole = reference.b_f(pull, time, torch.full((2,), x1, dtype=torch.float64)).tolist()
        k = whole - offset
        return [k * y[0] + offset, 2 * k * y[1] + float(reference.g2(time))]

    # Stopped at 1/2, where g has a kink in one of the references.
    y = [x0, 0.0]
    for a, b in ((0.0, 0.5), (0.5, end)):
        y = solve_ivp(rhs, (a, b), y, rtol=1e-8, atol=1e-9, method="LSODA").y[:, -1]
    m = reference.pinned(torch.tensor(end, dtype=torch.float64))
    assert y[0] == pytest.approx(float(m.a * x1 + m.b * x0), abs=1e-6)
    assert y[1] == pytest.approx(float(m.c), rel=1e-6)


def test_h_is_the_gradient_of_the_log_transition(reference, t):
    x = torch.linspace(-1, 1, len(t), dtype=torch.float64, requires_grad=True)
    x1 = torch.full_like(t, 0.8)
    law = reference.transition(t, torch.ones_like(t))
    log_p = torch.distributions.Normal(law.Phi * x, law.Q.sqrt()).log_prob(x1)
    (gradient,) = torch.autograd.grad(log_p.sum(), x)
    assert_close(reference.h(x.detach(), t, x1), gradient, rtol=1e-9, atol=1e-10)
    pulled = reference.f(t) * x.detach() + reference.g2(t) * gradient
    assert_close(reference.b_f(x.detach(), t, x1), pulled, rtol=1e-9, atol=1e-9)


def test_bayes_bridge_score_is_kernel_score_plus_pull(reference, t):
    x, x0, x1 = (torch.full_like(t, v) for v in (0.3, -1.1, 0.8))
    bridge = reference.pinned(t).score(x, x0, x1)
    kernel = reference.noised(t).score(x, x0, None)
    pull = reference.h(x, t, x1)
    # Each side is a difference of numbers as large as 1/c.
    scale = (kernel.abs() + pull.abs()).max()
    assert_close(bridge / scale, (kernel + pull) / scale, rtol=0, atol=1e-11)
    assert_close(reference.b_b(x, t, x0), -reference.f(t) * x + reference.g2(t) * kernel, rtol=1e-10, atol=1e-10)


def test_h_limits(reference):
    near = torch.tensor(1 - 1e-7, dtype=torch.float64)
    x, x1 = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    # First-order corrections are (f + g²'/g²/2 …) 1e-7, of order 1e-5 for the fastest schedule.
    assert_close((1 - near) * reference.g2(near) * reference.h(x, near, x1), x1 - x, rtol=2e-5, atol=0)


def test_ve_pull_is_explicit(t):
    x, x1 = torch.full_like(t, 0.3), torch.full_like(t, 0.8)
    assert_close(VE(sigma_max=80.0).h(x, t, x1), (x1 - x) / (80**2 * (1 - t.square())), **EXACT)


def test_snr_difference_and_its_rate(reference, t):
    m, end = reference.pinned(t), reference.noised(torch.ones_like(t))
    assert_close(m.snr, reference.noised(t).snr - end.snr, rtol=1e-10, atol=1e-11 * float(reference.noised(t).snr[0]))
    rate = slope(lambda u: reference.pinned(u).snr, t)
    assert_close(rate, -reference.g2(t) * m.b.square() / m.c.square(), rtol=1e-8, atol=1e-12)


def test_vp_asymptotics():
    small = torch.tensor(1e-8, dtype=torch.float64)
    m = VP().pinned(small)
    assert float(m.a / small) == pytest.approx(0.0864825068, rel=1e-6)
    assert float(m.c / small) == pytest.approx(0.1, rel=1e-6)
    m = VP().pinned(1 - small)
    assert float(m.c / small) == pytest.approx(2.1, rel=1e-6)
    assert float((1 - m.a) / m.b) == pytest.approx(1.155101414, rel=1e-6)


def test_posterior_is_the_published_one_and_keeps_the_marginals(reference, t):
    s, t = t[:-1], t[1:]
    q, early, late = reference.posterior(s, t), reference.pinned(s), reference.pinned(t)
    ratio = reference.rho2(s) / reference.rho2(t)
    assert_close(q.a, reference.alpha(s) / reference.alpha(t) * ratio, **EXACT)
    assert_close(q.b, reference.alpha(s) * (1 - ratio), **EXACT)
    assert_close(q.c, reference.alpha(s).square() * reference.rho2(s) * (1 - ratio), **EXACT)
    # Chapman–Kolmogorov for the pinned and for the one-sided law.
    assert_close(q.a * late.a, early.a, rtol=1e-9, atol=1e-13)
    assert_close(q.a * late.b + q.b, early.b, rtol=1e-9, atol=1e-13)
    assert_close(q.a.square() * late.c + q.c, early.c, rtol=1e-9, atol=1e-13)
    late = reference.noised(t)
    assert_close(q.a * late.b + q.b, reference.noised(s).b, rtol=1e-9, atol=1e-13)
    assert_close(q.a.square() * late.c + q.c, reference.noised(s).c, rtol=1e-9, atol=1e-13)


def test_between_is_the_bayes_bridge_and_composes_forward(reference, t):
    s, u = t / 3, t + (1 - t) * 0.6
    first, second = reference.transition(s, t), reference.transition(t, u)
    gain = first.Q * second.Phi / (second.Phi.square() * first.Q + second.Q)
    m = reference.between(s, t, u)
    assert_close(m.a, gain, rtol=1e-9, atol=0)
    assert_close(m.b, (1 - gain * second.Phi) * first.Phi, rtol=1e-8, atol=1e-12)
    assert_close(m.c, (1 - gain * second.Phi) * first.Q, rtol=1e-8, atol=1e-12)
    # The pinned law at s, moved to t by the bridge towards x1, is the pinned law at t.
    onward, early, late = reference.between(s, t, torch.ones_like(t)), reference.pinned(s), reference.pinned(t)
    assert_close(onward.b * early.b, late.b, rtol=1e-9, atol=1e-13)
    assert_close(onward.a + onward.b * early.a, late.a, rtol=1e-9, atol=1e-13)
    assert_close(onward.b.square() * early.c + onward.c, late.c, rtol=1e-9, atol=1e-13)


def test_scaled_time_and_space_turn_vp_into_ve(t):
    vp = VP()
    ve = VE(sigma_max=math.sqrt(vp.total))
    alpha, end = vp.alpha(t), vp.alpha(torch.ones_like(t))
    here, there = vp.pinned(t), ve.pinned((vp.rho2(t) / vp.total).sqrt())
    assert_close((here.a * end / alpha, here.b / alpha, here.c / alpha.square()), (there.a, there.b, there.c), **EXACT)

    def denoised(m, x, x1, m0=0.25, v0=0.09):
        return m0 + m.b * v0 / (m.b.square() * v0 + m.c) * (x - m.a * x1 - m.b * m0)

    x, x1 = torch.full_like(t, 0.3), torch.full_like(t, 0.8)
    assert_close(denoised(here, x, x1), denoised(there, x / alpha, x1 / end), rtol=1e-10, atol=1e-11)


def test_epsilon():
    assert Brownian(sigma=0.7).epsilon == pytest.approx(0.49, rel=1e-12)
    assert OU(theta=1.7, sigma=0.6).epsilon == pytest.approx(0.36 * math.sinh(1.7) / 1.7, rel=1e-12)
    # Mean of beta is (.1 + √(.1 .1866) + .1866)/3; I2SB's thousand discrete steps sum to .141.
    assert Varying().epsilon == pytest.approx(0.141, abs=5e-4)
    assert VE(sigma_max=3.0).epsilon == pytest.approx(9.0, rel=1e-12)
    table = {0.5: 0.505, 1: 1.04, 2: 2.35, 3: 4.26, 4: 7.25, 6: 20.0}
    for integral, expected in table.items():
        vp = VP(beta_min=integral, beta_d=0.0)
        assert vp.epsilon == pytest.approx(2 * math.sinh(integral / 2), rel=1e-12)
        assert vp.epsilon == pytest.approx(expected, rel=5e-3)
    assert VP(beta_min=0.1, beta_d=19.9).epsilon == pytest.approx(152, rel=5e-3)


def test_epsilon_gives_the_correlation_of_the_schroedinger_bridge():
    def rho(eps):
        return (math.sqrt(4 + eps**2) - eps) / 2

    table = {0.01: 0.995, 0.1: 0.951, 0.5: 0.781, 1: 0.618, 2: 0.414, 5: 0.193, 10: 0.099}
    for eps, expected in table.items():
        assert rho(Brownian(sigma=math.sqrt(eps)).epsilon) == pytest.approx(expected, abs=5.01e-4)
    for integral, expected in {0.5: 0.779, 1: 0.607, 2: 0.368, 3: 0.223, 4: 0.135, 6: 0.050}.items():
        assert rho(VP(beta_min=integral, beta_d=0.0).epsilon) == pytest.approx(expected, abs=5.01e-4)
    assert rho(VP(beta_min=0.1, beta_d=19.9).epsilon) == pytest.approx(0.0066, abs=5e-5)


def test_time_of_sigma_eff_inverts_the_level(reference):
    for pinned in (True, False):
        law = reference.pinned if pinned else reference.noised
        span = law(torch.tensor([1e-4, 0.9999], dtype=torch.float64)).sigma_eff.log()
        sigma = torch.linspace(float(span[0]), float(span[1]), 101, dtype=torch.float64).exp()
        t = reference.time_of_sigma_eff(sigma, pinned=pinned)
        # t itself is only known to 2^-53, which at a pinned end moves ln sigma by 2^-54/(1 − t).
        allowed = 1e-12 + (2.0**-51 / (1 - t) if pinned else 0.0)
        assert bool(((law(t).sigma_eff / sigma - 1).abs() <= allowed).all())


def test_closed_inverse_of_the_clock_is_the_bisected_one(reference):
    r = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 0.3, 0.5, 0.9, 0.9999, 1.0], dtype=torch.float64)
    closed, bisected = reference.time_of_clock(r), ScalarReference.time_of_clock(reference, r)
    assert_close(closed, bisected, rtol=1e-11, atol=1e-20)


def test_infinite_level_is_the_pinned_end(reference):
    sigma = torch.tensor([0.0, math.inf], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(reference.time_of_sigma_eff(sigma, pinned=True), expected, rtol=1e-12, atol=1e-12)


def test_coefficients_do_not_lose_digits_to_float32_times(t):
    # A float32 time is widened before anything is computed: expm1 and 1 − r then keep their digits.
    small = torch.tensor([1e-4], dtype=torch.float32)
    assert VP().pinned(small).c.dtype == torch.float64
    assert_close(VP().pinned(small).c, VP().pinned(small.double()).c, rtol=0, atol=0)
    x = torch.linspace(-1, 1, len(t), dtype=torch.float64)
    wide = VP().b_b(x, t, 0.9 * x)
    narrow = VP().b_b(x.float(), t, (0.9 * x).float())
    assert narrow.dtype == torch.float32
    # Rounding of x and x0 (2^-24 each) is amplified by the pull's coefficient r'/r.
    rates = VP().rates(t)[1] / VP().clock(t)
    assert bool(((narrow - wide).abs() <= 2.0**-22 * (1 + rates)).all())


def test_coefficients_reach_every_dimension():
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x, x1 = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    whole = VP().b_f(x, t, x1)
    for i in range(2):
        assert_close(whole[i], VP().b_f(x[i], t[i], x1[i]))


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (VP, "beta_min", 0.0),
        (VP, "beta_d", -1.0),
        (VE, "sigma_max", math.inf),
        (Brownian, "sigma", -0.1),
        (Varying, "beta_middle", math.nan),
        (OU, "theta", 0.0),
    ],
)
def test_impossible_arguments_are_named(cls, field, value):
    with pytest.raises(ArgumentError) as error:
        cls(**{field: value})
    assert error.value.name == field


def test_words():
    assert {"brownian", "ou", "varying", "ve", "vp"} <= set(REFERENCES.names())
    assert REFERENCES["vp"] is VP
