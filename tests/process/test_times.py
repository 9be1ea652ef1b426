"""Training times against the distribution functions of their laws; weights against closed forms and integrals."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.preconditioning import Official, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP, Brownian
from latentsb.process.times import (
    TIMES,
    WEIGHTS,
    Likelihood,
    LogitNormal,
    LogNormalSigma,
    LogUniformSigma,
    MinSNR,
    Plain,
    Uniform,
    Unit,
    time_of_sigma,
)
from latentsb.randomness import Draws


@dataclass
class Span:
    reference: ScalarReference
    pinned: bool = True
    t_min: float = 1e-4
    t_max: float = 1.0

    def marginal(self, t):
        return self.reference.pinned(t) if self.pinned else self.reference.noised(t)


@dataclass
class Plainest:
    t_min: float = 1e-3
    t_max: float = 0.999


U = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]


@pytest.fixture(params=[True, False], ids=["pinned", "one-sided"])
def span(request, reference) -> Span:
    return Span(reference, request.param)


def cut(cdf, value, low, high):
    return (cdf(value) - cdf(low)) / (cdf(high) - cdf(low))


def log_sigmas(span, t):
    ends = span.marginal(torch.tensor([span.t_min, span.t_max], dtype=torch.float64)).sigma_eff.log()
    return span.marginal(t).sigma_eff.log().numpy(), *ends.tolist()


def test_uniform():
    t = Uniform().quantile(U, Plainest())
    assert_close(t, 1e-3 + 0.998 * U, rtol=1e-12, atol=0)


def test_lognormal_sigma_has_its_distribution_function(span):
    law = LogNormalSigma(mean=-0.4, std=1.1)
    value, low, high = log_sigmas(span, law.quantile(U, span))
    assert_close(torch.from_numpy(cut(norm(-0.4, 1.1).cdf, value, low, high)), U, rtol=0, atol=1e-9)


def test_loguniform_sigma_has_its_distribution_function(span):
    law = LogUniformSigma(sigma_min=0.01, sigma_max=40.0)
    value, low, high = log_sigmas(span, law.quantile(U, span))
    low, high = max(low, math.log(0.01)), min(high, math.log(40.0))
    assert_close(torch.from_numpy((value - low) / (high - low)), U, rtol=0, atol=1e-9)


def test_logit_normal_has_its_distribution_function():
    t = LogitNormal(mean=0.5, std=1.2).quantile(U, Plainest())
    low, high = math.log(1e-3 / 0.999), math.log(0.999 / 1e-3)
    assert_close(torch.from_numpy(cut(norm(0.5, 1.2).cdf, t.logit().numpy(), low, high)), U, rtol=0, atol=1e-9)


LAWS = [Uniform(), LogNormalSigma(), LogUniformSigma(), LogitNormal()]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_times_grow_with_u_and_stay_in_the_span(law, span):
    t = law.quantile(torch.cat([U, torch.tensor([1 - 2.0**-53], dtype=torch.float64)]), span)
    assert bool((t.diff() >= 0).all())
    assert float(t.diff()[20:180].min()) > 0
    assert span.t_min <= float(t.min())
    assert float(t.max()) <= span.t_max


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_times_belong_to_global_rows(law):
    span = Span(VP())
    whole = law.sample(span, Draws.step(0, "loss", 128, range(64)))
    part = law.sample(span, Draws.step(0, "loss", 128, range(40, 50)))
    assert whole.dtype == torch.float64
    assert_close(part, whole[40:50], rtol=0, atol=0)
    assert not torch.equal(whole, law.sample(span, Draws.step(0, "loss", 256, range(64))))
    # The mean of u over 4096 rows is 1/2 within five standard errors.
    many = Uniform().sample(Plainest(0.0, 1.0), Draws.step(0, "loss", 0, range(4096)))
    assert float(many.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 4096))


def test_a_law_outside_the_span_is_refused():
    with pytest.raises(ArgumentError, match="no share in the span"):
        LogNormalSigma(mean=30.0, std=0.1).quantile(U, Span(VP(), t_max=0.9))
    with pytest.raises(ArgumentError, match="no share in the span"):
        LogitNormal(mean=-40.0).quantile(U, Plainest())


def test_levels_beyond_the_span_have_its_ends(span):
    """Exactly at the top, where t = 1 means that a state needs no start; at the bottom to 2^-60."""
    span.t_max = 0.9
    low, high = time_of_sigma(span, torch.tensor([0.0, torch.inf], dtype=torch.float64)).tolist()
    assert low == pytest.approx(1e-4, abs=1e-17)
    assert high == 0.9


def test_levels_need_a_denoising_bridge():
    with pytest.raises(CapabilityError, match="Plainest"):
        LogNormalSigma().quantile(U, Plainest())


def test_levels_outside_the_process_are_refused():
    with pytest.raises(ArgumentError, match="levels run from"):
        LogUniformSigma(sigma_min=10.0, sigma_max=20.0).quantile(U, Span(Brownian(sigma=0.7), pinned=False))
    with pytest.raises(ArgumentError, match="sigma_min"):
        LogUniformSigma(sigma_min=2.0, sigma_max=1.0)


def test_likelihood_weight_is_the_score_weight(span, t):
    m, k = span.marginal(t), Shifted().coefficients(span.marginal(t), t)
    weight = Likelihood().of(t, span, k)
    assert_close(weight, span.reference.g2(t) * m.b.square() / m.c.square(), rtol=1e-8, atol=1e-12)
    # g² |score error|² = weight |x0 error|²
    x, x0, wrong = torch.full_like(t, 0.3), torch.full_like(t, -0.2), torch.full_like(t, 0.9)
    score_error = m.score(x, x0, None) - m.score(x, wrong, None)
    assert_close(span.reference.g2(t) * score_error**2, weight * (x0 - wrong) ** 2, rtol=1e-6, atol=1e-10)


def integral(function, low, high=1.0):
    """∫ over t, in ln t near 0."""
    value = quad(lambda u: function(math.exp(u)) * math.exp(u), math.log(low), math.log(high), epsabs=0, epsrel=1e-9)
    return value[0]


def mmse(p, m):
    return p * m.c / (m.b**2 * p + m.c)


# Linear-Gaussian code: x0 ~ N(0, 1/4), z = 1.3 x0 + 0.4 n, x1 = 0.8 z.
P = 0.25 - (1.3 * 0.25) ** 2 / (1.3**2 * 0.25 + 0.4**2)


def test_half_the_integral_of_the_likelihood_weight_is_information():
    span = Span(VP())
    assert pytest.approx(0.0686695279, rel=1e-9) == P

    def rate(time):
        t = torch.tensor(time, dtype=torch.float64)
        k = Official().coefficients(span.marginal(t), t)
        return float(Likelihood().of(t, span, k) * mmse(P, span.marginal(t))) / 2

    assert integral(rate, 1e-3, 1 - 1e-12) == pytest.approx(3.2616546453, rel=1e-8)


def test_optimal_loss_of_the_linear_gaussian_code():
    span = Span(VP())

    def loss(time):
        t = torch.tensor(time, dtype=torch.float64)
        m = span.marginal(t)
        return float(Unit().of(t, span, Official().coefficients(m, t)) * mmse(P, m))

    assert integral(loss, 1e-4) / (1 - 1e-4) == pytest.approx(0.459759, abs=1e-6)


def test_other_weights(span, t):
    k = Shifted(sigma_data=0.5).coefficients(span.marginal(t), t)
    s2 = span.marginal(t).sigma_eff.square()
    assert_close(Unit().of(t, span, k), 1 / s2 + 4, rtol=1e-8, atol=0)
    assert_close(Plain().of(t, span, k), torch.ones_like(t))
    expected = torch.minimum(1 / s2, torch.full_like(t, 3.0))
    assert_close(MinSNR(gamma=3.0).of(t, span, k), expected, rtol=1e-9, atol=0)


def test_words():
    assert TIMES.names() == ["logit_normal", "lognormal_sigma", "loguniform_sigma", "uniform"]
    assert WEIGHTS.names() == ["likelihood", "min_snr", "plain", "unit"]
