"""Channels between an encoder and its code: laws, rates, capacities and charges, each derived a second time."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from latentsb.channels import CHANNELS, Clamped, CodeLaw, Exact, Fixed, soft_clamp
from latentsb.errors import ArgumentError
from latentsb.randomness import Draws

DOUBLE = torch.float64


def spread(n=7, z=5, seed=0):
    """Means and spreads on both sides of the standard normal's."""
    mean, log_sigma = torch.randn(2, n, z, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).unbind()
    return mean, (0.8 * log_sigma).exp()


def test_the_rate_is_the_divergence_from_the_standard_normal():
    mean, sigma = spread()
    expected = kl_divergence(Normal(mean, sigma), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    assert_close(CodeLaw(mean, sigma).rate(), expected, rtol=1e-12, atol=1e-14)
    assert float(expected.min()) > 0
    standard = CodeLaw(torch.zeros(2, 3), torch.ones(2, 3))
    assert_close(standard.rate(), torch.zeros(2, 3), rtol=0, atol=0)


def test_the_entropy_is_that_of_independent_normals():
    mean, sigma = spread()
    law = CodeLaw(mean, sigma)
    assert_close(law.entropy(), Independent(Normal(mean, sigma), 1).entropy(), rtol=1e-12, atol=1e-12)
    # The rate is the cross-entropy with the standard normal, less the entropy.
    cross = ((mean.square() + sigma.square() + math.log(2 * math.pi)) / 2).sum(1)
    assert_close(law.rate().sum(1), cross - law.entropy(), rtol=1e-12, atol=1e-12)


def test_a_point_has_neither_rate_nor_entropy():
    point = Exact().law(torch.ones(2, 3))
    for number in (point.rate, point.entropy):
        with pytest.raises(ValueError, match="without noise"):
            number()


def test_codes_have_their_law(gauss):
    n = 20_000
    mean, sigma = (v.expand(n, -1) for v in spread(1, 3))
    law, draws = CodeLaw(mean, sigma), Draws.step(0, "code", 0, range(n))
    z = law.draw(draws)
    assert gauss.within(z, mean[0])
    assert gauss.within((z - mean).square(), sigma[0].square())
    assert gauss.within((z - mean).prod(1), 0.0), "the numbers of a code are independent"
    assert torch.equal(law.draw(None), mean)
    assert torch.equal(CodeLaw(mean).draw(draws), mean)
    # A row's noise is its own, wherever the row stands.
    few = CodeLaw(mean[:2], sigma[:2]).draw(Draws.step(0, "code", 0, [17, 4]))
    assert_close(few, z[[17, 4]], rtol=0, atol=0)


def test_encoders_are_asked_for_what_the_law_takes():
    for channel, factor in ((Exact(), 1), (Clamped(), 2), (Fixed(), 1)):
        assert channel.outputs(6) == 6 * factor
        law = channel.law(torch.randn(4, channel.outputs(6), generator=torch.Generator().manual_seed(1)))
        assert law.mean.shape == (4, 6)
        assert (law.sigma is not None) == channel.noisy
        assert law.sigma is None or law.sigma.shape == (4, 6)


def test_the_soft_clamp_is_the_identity_at_zero_and_keeps_the_limit():
    x = torch.tensor([0.0, 1e-6, -1e-6, 1e9, -1e9, 2.0], dtype=DOUBLE, requires_grad=True)
    found = soft_clamp(x, 3.0)
    expected = torch.tensor([0.0, 1e-6, -1e-6, 3.0, -3.0, 3 * math.tanh(2 / 3)], dtype=DOUBLE)
    assert_close(found.detach(), expected, rtol=1e-12, atol=0)
    found.sum().backward()
    slopes = torch.tensor([1, 1, 1, 0, 0, 1 / math.cosh(2 / 3) ** 2], dtype=DOUBLE)
    assert_close(x.grad, slopes, rtol=1e-9, atol=1e-12)


def test_fixed_noise_is_the_same_for_all():
    channel = Fixed(sigma=0.3, limit=2.0)
    law = channel.law(torch.tensor([[0.0, 1.0], [1e9, -1e9]], dtype=DOUBLE))
    assert_close(law.sigma, torch.full((2, 2), 0.3, dtype=DOUBLE))
    assert_close(law.mean, torch.tensor([[0.0, 2 * math.tanh(0.5)], [2.0, -2.0]], dtype=DOUBLE))


def test_capacities():
    """Shannon's `log2(1 + power/noise)/2` of noise that is the same for all, at the largest mean."""
    assert Fixed().capacity == pytest.approx(0.5 * math.log2(1 + 100), rel=1e-14)
    assert Exact().capacity == math.inf
    extreme = torch.tensor([[1e9]], dtype=DOUBLE)
    for channel in (Fixed(), Fixed(sigma=0.5, limit=4.0)):
        law = channel.law(extreme)
        assert float(torch.log2(1 + law.mean**2 / law.sigma**2)) / 2 == pytest.approx(channel.capacity, rel=1e-12)
        others = channel.law(4 * torch.randn(500, 1, generator=torch.Generator().manual_seed(2)))
        assert float(torch.log2(1 + others.mean**2 / others.sigma**2).max()) / 2 < channel.capacity


@pytest.mark.parametrize("limits", [{}, {"limit": 3.0, "floor": 0.2}, {"limit": 1.0, "floor": 1.0}, {"floor": 10.0}])
def test_the_capacity_of_noise_that_differs_is_its_largest_entropy(limits):
    """`log2(limit² + E σ²)/2 − E log2 σ` is at most that over any law of σ, and equal for one of the two extremes."""
    channel = Clamped(**limits)
    extremes = channel.law(torch.tensor([[9e9, -9e9], [9e9, 9e9]], dtype=DOUBLE))
    least, most = extremes.sigma.flatten()
    power = extremes.mean[0] ** 2

    def entropy(chances, sigma):
        return (torch.log2(power + chances @ sigma**2) / 2 - chances @ sigma.log2()).max()

    share = torch.linspace(0, 1, 10_001, dtype=DOUBLE)
    best = entropy(torch.stack([1 - share, share], 1), torch.stack([least, most]))
    # The slope is zero at the best share, so the grid costs a square of its step: (1e-4/2)² times the curvature.
    curvature = float((most**2 - least**2) ** 2 / (power + least**2) ** 2)
    assert float(best) <= channel.capacity + 1e-12
    assert float(best) == pytest.approx(channel.capacity, abs=min(1e-4, 2.5e-9 * curvature + 1e-9))
    generator = torch.Generator().manual_seed(3)
    between = least + (most - least) * torch.rand(30, dtype=DOUBLE, generator=generator) ** 4
    chances = torch.rand(500, 30, dtype=DOUBLE, generator=generator) ** 8
    assert float(entropy(chances / chances.sum(1, keepdim=True), between)) < channel.capacity


def test_the_size_of_the_noise_is_told_too():
    """Of two codes with mean 0, one of much noise and one of little: more than Shannon's bound of the little one."""
    channel = Clamped(limit=5.0, floor=10.0)
    sigma = channel.law(torch.tensor([[0.0, -9e9], [0.0, 9e9]], dtype=DOUBLE)).sigma
    z = torch.linspace(-1500, 1500, 300_001, dtype=DOUBLE)
    each = torch.exp(Normal(torch.zeros_like(sigma), sigma).log_prob(z))
    entropy = torch.trapezoid(-torch.xlogy(both := each.mean(0), both), z)
    information = float(entropy - Normal(torch.zeros_like(sigma), sigma).entropy().mean()) / math.log(2)
    assert 0.5 * math.log2(1 + (channel.limit / float(sigma[0])) ** 2) < 0.17 < 0.7 < information < channel.capacity


def test_a_uniform_input_carries_less_than_the_capacity():
    """I(μ; μ + σε) for μ uniform on ±limit, by quadrature: at most Shannon's bound of the power limit²/3."""
    channel = Fixed(sigma=0.1, limit=1.0)
    z = torch.linspace(-2, 2, 40001, dtype=DOUBLE)
    normal = Normal(torch.zeros((), dtype=DOUBLE), torch.tensor(channel.sigma, dtype=DOUBLE))
    density = (normal.cdf(z + channel.limit) - normal.cdf(z - channel.limit)) / (2 * channel.limit)
    entropy = torch.trapezoid(-torch.xlogy(density, density), z)
    information = (float(entropy) - float(normal.entropy())) / math.log(2)
    assert information < 0.5 * math.log2(1 + (channel.limit / channel.sigma) ** 2 / 3) < channel.capacity
    # With little noise it is the entropy of the uniform law, 1 bit, less that of the noise; the blurred edges add some.
    assert 0 < information - (1 - float(normal.entropy()) / math.log(2)) < 0.15


# Of N(μ, 1) the rate is μ²/2: 0, 1/2 and 2 nats; a bit is 0.693 nats.
MEANS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 2.0, 0.0]], dtype=DOUBLE)


@pytest.mark.parametrize("make", [Clamped, Fixed])
@pytest.mark.parametrize(
    ("beta", "free_bits", "expected"),
    [
        (1.0, 0.0, [2.5, 4.0]),
        (0.3, 0.0, [0.75, 1.2]),
        (0.3, 1.0, [0.3 * (2 * math.log(2) + 2), 0.3 * (math.log(2) + 4)]),
        (2.0, 4.0, [24 * math.log(2), 24 * math.log(2)]),
    ],
)
def test_the_charge_by_hand(make, beta, free_bits, expected):
    found = make(beta=beta, free_bits=free_bits).charge(CodeLaw(MEANS, torch.ones_like(MEANS)))
    assert_close(found, torch.tensor(expected, dtype=DOUBLE), rtol=1e-12, atol=0)


def test_what_is_free_is_not_charged():
    law = CodeLaw(MEANS, torch.ones_like(MEANS))
    for channel in (Clamped(), Fixed(), Fixed(free_bits=2.0), Exact()):
        assert channel.charge(law) is None


def test_free_bits_have_no_gradient_and_the_others_their_price():
    """`dKL/dμ = μ`, `dKL/dσ = σ − 1/σ` above the threshold of 1 bit, nothing below."""
    mean = torch.tensor([[0.5, 1.1, 2.0, 0.1]], dtype=DOUBLE, requires_grad=True)
    sigma = torch.tensor([[0.9, 1.2, 0.5, 0.1]], dtype=DOUBLE, requires_grad=True)
    law = CodeLaw(mean, sigma)
    paid = (law.rate().detach() > math.log(2)).double()
    assert paid.tolist() == [[0, 0, 1, 1]]
    Clamped(beta=0.3, free_bits=1.0).charge(law).sum().backward()
    assert_close(mean.grad, 0.3 * paid * mean.detach(), rtol=1e-12, atol=0)
    assert_close(sigma.grad, 0.3 * paid * (sigma - 1 / sigma).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("e", "q"), [(1.3, 0.4), (0.2, 0.9), (math.sqrt(0.84) * 2, 0.4)])
def test_the_mean_rate_bounds_the_information(gauss, e, q):
    """z = e x0 + q ε with x0 ~ N(0, 1/4): E rate = I(x0; z) + KL(N(0, e²/4 + q²) ‖ N(0, 1)); equal where z is normal.

    In the last pair e²/4 + q² = 1, so that the bound is tight.
    """
    n, variance = 200_000, e**2 / 4 + q**2
    x0 = 0.5 * torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    rate = CodeLaw(e * x0, torch.full_like(x0, q)).rate().sum(1)
    information = math.log(variance / q**2) / 2
    gap = (variance - 1 - math.log(variance)) / 2
    assert gauss.within(rate, information + gap)
    assert gap >= 0
    if (e, q) == (1.3, 0.4):
        assert information == pytest.approx(0.6460776851, abs=1e-10)
        assert gap > 0.05
    if e > 1.5:
        assert gap == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (Clamped, "beta", -0.1),
        (Clamped, "free_bits", -1.0),
        (Clamped, "limit", 0.0),
        (Clamped, "floor", 0.0),
        (Fixed, "sigma", 0.0),
        (Fixed, "limit", -1.0),
        (Fixed, "beta", math.nan),
    ],
)
def test_impossible_arguments_are_named(make, field, value):
    with pytest.raises(ArgumentError) as error:
        make(**{field: value})
    assert error.value.name == field


def test_words():
    assert {"exact", "clamped", "fixed"} <= set(CHANNELS.names())
    assert CHANNELS["clamped"] is Clamped
