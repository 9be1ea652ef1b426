"""Preconditionings against published values and the unit variances that define them."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.testing import assert_close

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import PRECONDITIONINGS, Noise, Official, Shifted
from latentsb.process.references import VE, VP

# t, c_in, c_skip, c_out of the published form with sd = se = 0.5; VP with beta_min 0.1, beta_d 2
VP_TABLE = [
    (0.0001, 1.99997996, 0.99996996, 0.00316381384),
    (0.001, 1.99979784, 0.999696978, 0.0100484477),
    (0.01, 1.99780376, 0.996708668, 0.0331150319),
    (0.1, 1.96187434, 0.943060772, 0.137599056),
    (0.25, 1.85688675, 0.787460931, 0.264876623),
    (0.5, 1.67346748, 0.49740811, 0.402061102),
    (0.75, 1.62017155, 0.264829221, 0.472526866),
    (0.9, 1.73891771, 0.13097244, 0.494294592),
    (0.99, 1.96024474, 0.0173637315, 0.499921531),
    (0.9999, 1.9995798, 0.000181528315, 0.499999992),
]
# noise level 80 t instead of t
VE_TABLE = [
    (0.002, 1.999984, 0.999984, 0.001999984),
    (0.2, 1.8569642, 0.86207361, 0.18569584),
    (1, 0.89451105, 0.20000625, 0.44722058),
    (5, 0.19940111, 0.0099013715, 0.49752822),
    (20, 0.051624589, 0.00062463238, 0.49985358),
    (79.9, 0.24846117, 3.8558981e-5, 0.49999998),
]


def official(t, **fields):
    return Official(**fields).coefficients(VP().pinned(t), t)


def scalar(t: float):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize(("table", "reference", "unit"), [(VP_TABLE, VP(), 1), (VE_TABLE, VE(sigma_max=80.0), 80)])
def test_official_golden_table(table, reference, unit):
    t, *expected = (torch.tensor(column, dtype=torch.float64) for column in zip(*table, strict=True))
    k = Official().coefficients(reference.pinned(t / unit), t / unit)
    for found, value in zip((k.scale_in, k.skip, k.out), expected, strict=True):
        assert_close(found, value, rtol=1e-6, atol=0)
    assert_close(k.noise, 250 * (t / unit).log(), rtol=1e-12, atol=0)
    assert_close(k.shift, torch.zeros_like(t))


@pytest.mark.parametrize("cov", [0.0, 0.1, 0.2, -0.15])
def test_official_input_and_target_have_unit_variance(reference, t, cov):
    sd, se = 0.5, 0.7
    m = reference.pinned(t)
    k = Official(sigma_data=sd, sigma_end=se, covariance=cov).coefficients(m, t)
    # From the covariance matrix of (x0, x1) and the weights of the state.
    var_x = m.b**2 * sd**2 + m.a**2 * se**2 + 2 * m.a * m.b * cov + m.c
    cov_x0_x = m.b * sd**2 + m.a * cov
    assert_close(k.scale_in**2 * var_x, torch.ones_like(t), rtol=1e-10, atol=0)
    target = (sd**2 - 2 * k.skip * cov_x0_x + k.skip**2 * var_x) / k.out**2
    assert_close(target, torch.ones_like(t), rtol=1e-7, atol=0)
    # skip is the regression coefficient: the target does not correlate with the input.
    assert_close(cov_x0_x - k.skip * var_x, torch.zeros_like(t), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sd", [0.5, 1.0])
@pytest.mark.parametrize("pinned", [True, False])
def test_shifted_input_and_target_have_unit_variance(reference, t, sd, pinned):
    m = reference.pinned(t) if pinned else reference.noised(t)
    k = Shifted(sigma_data=sd).coefficients(m, t)
    var = m.b**2 * sd**2 + m.c
    assert_close(k.scale_in**2 * var, torch.ones_like(t), rtol=1e-12, atol=0)
    target = (sd**2 - 2 * k.skip * m.b * sd**2 + k.skip**2 * var) / k.out**2
    assert_close(target, torch.ones_like(t), rtol=1e-7, atol=0)
    assert_close(k.shift, m.a, rtol=0, atol=0)


def test_initial_loss_is_one(reference, t):
    """With F = 0 the weighted x0 error is 1 at each t, by sampling: 40,000 draws, tolerance five standard errors."""
    generator = torch.Generator().manual_seed(0)
    x0, x1, noise = torch.randn(3, 40_000, len(t), generator=generator, dtype=torch.float64).unbind()
    m = reference.pinned(t)
    for rule, sd, se in [(Shifted(sigma_data=0.5), 0.5, 3.0), (Official(sigma_end=0.7), 0.5, 0.7)]:
        k = rule.coefficients(m, t)
        x = m.a * se * x1 + m.b * sd * x0 + m.std * noise
        denoised = k.skip * (x - k.shift * se * x1)
        loss = (k.weight * (denoised - sd * x0) ** 2).mean(0)
        # Var(z²) = 2 for a standard normal target.
        assert_close(loss, torch.ones_like(t), rtol=0, atol=5 * math.sqrt(2 / 40_000))


def test_initial_loss_under_a_wrong_covariance():
    t = torch.tensor([0.001, 0.1, 0.3, 0.5, 0.8, 0.999], dtype=torch.float64)
    m, k, v, cov = VP().pinned(t), official(t), 0.25, 0.2
    var_x = (m.a**2 + m.b**2) * v + 2 * m.a * m.b * cov + m.c
    loss = k.weight * (v - 2 * k.skip * (m.b * v + m.a * cov) + k.skip**2 * var_x)
    expected = torch.tensor([0.99986, 0.9739, 0.8791, 0.7927, 0.7737, 0.9971], dtype=torch.float64)
    assert_close(loss, expected, rtol=0, atol=6e-5)


@pytest.mark.parametrize("rule", [Shifted(sigma_data=0.5), Official(), Noise()])
def test_weighted_error_is_the_error_of_the_output(rule, reference, t):
    draw = torch.randn(4, len(t), 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x0, x1, noise, output = draw.unbind()
    m = reference.pinned(t)
    k, x = rule.coefficients(m, t), m.sample(x0, x1, noise)
    error = (k.leave(x, x1, output) - x0).square().flatten(1).mean(1)
    assert_close(k.weight * error, (output - k.target(x, x1, x0)).square().flatten(1).mean(1), rtol=1e-6, atol=1e-9)
    assert_close(k.leave(x, x1, k.target(x, x1, x0)), x0, rtol=1e-10, atol=1e-10)


def test_shifted_is_edm_in_y(reference, t):
    sd, m = 0.5, reference.pinned(t)
    k, s = Shifted(sigma_data=sd).coefficients(m, t), m.sigma_eff
    assert_close(k.out, sd * s / torch.sqrt(sd**2 + s**2), rtol=1e-9, atol=0)
    assert_close(m.b * k.skip, sd**2 / (sd**2 + s**2), rtol=1e-9, atol=1e-15)
    assert_close(m.b * k.scale_in, 1 / torch.sqrt(sd**2 + s**2), rtol=1e-9, atol=1e-15)
    inside = (s > 1e-5 * sd) & (s < 1e3 * sd)
    assert_close(k.noise[inside], s[inside].log() / 4, rtol=1e-12, atol=1e-12)
    assert_close(k.weight, (s**2 + sd**2) / (s * sd) ** 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sd", [0.5, 1.0, 40.0])
def test_shifted_tells_levels_in_units_of_the_data(sd):
    """Data and noise scaled together: the same level is told up to `ln(sd)/4`, also beyond both ends of the range."""
    levels = torch.tensor([1e-9, 1e-5, 1.0, 1e3, 1e9], dtype=torch.float64)
    told = (
        Shifted(sigma_data=sd)
        .coefficients(Marginal(0 * levels, torch.ones_like(levels), (sd * levels) ** 2), 0 * levels)
        .noise
    )
    expected = torch.tensor([1e-5, 1e-5, 1.0, 1e3, 1e3], dtype=torch.float64).mul(sd).log() / 4
    assert_close(told, expected, rtol=1e-12, atol=1e-12)


def test_official_without_spread_of_x1_is_edm(t):
    m, sd = VP().pinned(t), 0.5
    k, s = official(t, sigma_end=1e-9), m.sigma_eff
    assert_close(k.out, sd * s / torch.sqrt(sd**2 + s**2), rtol=1e-8, atol=0)
    assert_close(m.b * k.skip, sd**2 / (sd**2 + s**2), rtol=1e-8, atol=1e-15)


def test_shifted_without_output_is_the_denoiser_of_a_gaussian(reference, t):
    sd, m = 0.8, reference.pinned(t)
    x, x1 = torch.full_like(t, 0.3), torch.full_like(t, -2.0)
    k = Shifted(sigma_data=sd).coefficients(m, t)
    exact = m.b * sd**2 / (m.b**2 * sd**2 + m.c) * (x - m.a * x1)
    assert_close(k.leave(x, x1, torch.zeros_like(x)), exact, rtol=1e-10, atol=1e-12)


def test_shifted_at_the_pinned_end(reference):
    one, sd = torch.ones(3, dtype=torch.float64), 0.8
    k = Shifted(sigma_data=sd).coefficients(reference.pinned(one), one)
    for value in (k.skip, k.out, k.scale_in, k.shift, k.noise, k.weight):
        assert bool(value.isfinite().all())
    x1 = torch.tensor([0.1, -3.0, 7.0])
    output = torch.tensor([0.5, 0.25, -1.0])
    # There x = x1 carries nothing, and D is the network's answer to x1 alone.
    assert_close(k.enter(x1, x1), torch.zeros(3), rtol=0, atol=0)
    assert_close(k.leave(x1, x1, output), sd * output)
    # out and the noise label come up to it continuously.
    near = Shifted(sigma_data=sd).coefficients(reference.pinned(one - 1e-9), one - 1e-9)
    assert_close((near.out, near.noise), (k.out, k.noise), rtol=1e-3, atol=1e-3)


def test_official_limits():
    end = official(scalar(1.0))
    assert_close(
        torch.stack([end.scale_in, end.skip, end.out, end.weight]),
        torch.tensor([2.0, 0.0, 0.5, 4.0]).double(),
        rtol=1e-12,
        atol=1e-12,
    )
    small = scalar(1e-8)
    assert float(official(small).weight * 0.1 * small) == pytest.approx(1, rel=1e-5)


def test_official_weight_integrates_to_its_published_value():
    # In ln t, where the weight ~ 1/(0.1 t) is smooth.
    value = quad(lambda u: float(official(scalar(math.exp(u))).weight) * math.exp(u), math.log(1e-4), 0, epsrel=1e-8)[0]
    assert value == pytest.approx(71.011, abs=1e-3)


def test_float32_coefficients_keep_their_digits():
    k = Shifted(sigma_data=0.5).coefficients(VP().pinned(scalar(1e-4)), scalar(1e-4))
    x0, x1 = torch.tensor([[0.3, -0.9]]), torch.tensor([[1.0, 2.0]])
    noise = torch.tensor([[1.3, -0.4]])
    x = VP().pinned(scalar(1e-4)).sample(x0.double(), x1.double(), noise.double())
    exact = k.target(x, x1.double(), x0.double())
    # The target is a difference of numbers of size 1, divided by out = 0.0032.
    assert_close(k.target(x.float(), x1, x0).double(), exact, rtol=0, atol=4 * 2.0**-24 / 0.00316)


def test_equal_settings_are_equal_and_others_are_not():
    assert Official() == Official(sigma_data=0.5, sigma_end=0.5, covariance=0.0)
    assert hash(Official()) == hash(Official(sigma_end=0.5))
    assert Official() != Official(sigma_end=0.1)
    near = scalar(0.99)
    ratio = official(near, sigma_end=1e-3).scale_in / official(near).scale_in
    assert float(ratio) > 3


def test_impossible_arguments_are_named():
    with pytest.raises(ArgumentError) as error:
        Official(covariance=0.25)
    assert error.value.name == "covariance"
    with pytest.raises(ArgumentError, match="sigma_data"):
        Shifted(sigma_data=0.0)


def test_words():
    assert PRECONDITIONINGS.names() == ["noise", "official", "shifted"]


@pytest.mark.parametrize("pinned", [True, False])
def test_what_noise_predicts_is_the_noise(reference, t, pinned):
    m = reference.pinned(t) if pinned else reference.noised(t)
    x0, x1, noise = torch.randn(3, len(t), 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).unbind()
    end = x1 if pinned else None
    k, x = Noise().coefficients(m, t), m.sample(x0, end, noise)
    assert_close(k.target(x, end, x0), noise, rtol=1e-7, atol=1e-7)
    assert_close(k.enter(x, end), x - m.a[:, None] * x1 if pinned else x, rtol=0, atol=0)
    assert_close(k.noise, t, rtol=0, atol=0)


def test_noise_needs_signal():
    with pytest.raises(CapabilityError, match="signal at every time"):
        Noise().coefficients(VP().pinned(scalar(1.0)), scalar(1.0))


def test_the_published_schedule_of_latent_priors():
    """1,000 steps of β = 0.008 leave (1 − β)^500 = 0.0180 of the signal; in continuous time e^{−4} = 0.0183."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    published = (1 - 0.008) ** (torch.arange(1001, dtype=torch.float64) / 2)
    m = VP(beta_min=8.0, beta_d=0.0).noised(t)
    # ln(1 − β) = −β − β²/2 − …: 500 steps of β²/2 make 1.6 %.
    assert_close(m.b, published, rtol=0.0165, atol=0)
    assert float(m.b[-1]) == pytest.approx(math.exp(-4))
    assert_close(m.c, 1 - m.b**2, rtol=1e-9, atol=1e-12)
