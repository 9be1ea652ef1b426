"""Bounds on I(x0; z) against the linear Gaussian autoencoder, whose information and missing information are known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from latentsb.bridges.dbae import DBAE
from latentsb.channels import Clamped, CodeLaw
from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.metrics.information import Information, Spectrum, combined, contrasted, missing, rate
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.randomness import Draws
from latentsb.tensors import Condition, Spec

DOUBLE = torch.float64
S2, E, Q, END = 0.25, 1.3, 0.4, 0.8
P = S2 - (E * S2) ** 2 / (E**2 * S2 + Q**2)
"""Var(x0 | z) for x0 ~ N(0, 1/4), z = 1.3 x0 + 0.4 ε."""
TRUE = math.log(S2 / P) / 2
BOUNDS = {0.3: 0.38106, 0.03: 0.64136, 0.003: 0.64603}


class Enc(Encoder):
    """The inverse of the channel's clamps: z = E x0 + Q ε exactly."""

    def forward(self, x):
        return torch.cat([5 * torch.atanh(E * x / 5), torch.full_like(x, 5 * math.atanh(math.log(Q - 0.01) / 5))], 1)


class Dec(Decoder):
    def forward(self, z):
        return END * z


class Silent(Network):
    def forward(self, x, t, cond):
        return torch.zeros_like(x)


class Exact(DBAE):
    """The posterior mean given y and z: precisions add up. `bias` is added to it."""

    t_min, bias = 1e-5, 0.0

    def denoise(self, x, t, cond):
        marginal = self.marginal(t)
        sigma2 = marginal.sigma_eff.square().reshape(-1, 1)
        prior = E * S2 / (E**2 * S2 + Q**2) * cond["z"]
        y = marginal.to_y(x, cond["x1"])
        return (prior * sigma2 + y * P) / (P + sigma2) + self.bias


def bridge() -> Exact:
    return Exact(Ends(Spec((1,), DOUBLE)), network=Silent, encoder=Enc, decoder=Dec, z_dim=1, channel=Clamped())


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def within(values, expected, k=4.0):
    return abs(float(values.mean()) - expected) < k * float(values.std()) / math.sqrt(len(values))


def gaps(sigma0, n=10_000, *, bias=0.0, levels=6, highest=79.0):
    model, x0 = bridge(), 0.5 * normal(n, 1)
    model.bias = bias
    draws = Draws.step(0, "test", 0, range(n))
    cond = model.encode(x0, draws)
    zero = torch.zeros(1, dtype=DOUBLE)
    return missing(model, x0, cond, draws, zero, sigma0, highest, levels)


def expected(sigma0, highest=79.0):
    """M with the mean of x0 above the highest level: there the error is the variance instead of what y and z leave."""
    return (math.log1p(P / sigma0**2) - math.log1p(P / highest**2) + S2 / highest**2) / 2


@pytest.mark.parametrize("sigma0", BOUNDS)
def test_certified_bound_of_the_linear_gaussian_autoencoder(sigma0):
    terms, noises = gaps(sigma0)
    assert noises.mean(0).abs().max() < 4 * noises.std(0).max() / math.sqrt(len(noises))
    assert within(terms.sum(1), expected(sigma0))
    found = combined(terms, noises)
    assert within(found, expected(sigma0))
    if sigma0 == 0.003:
        # What is left is r²/(2p) of each sample, r² its squared distance from E[x0 | z]: a variance of one half.
        assert 0.5**0.5 < found.std() < 0.35 * terms.sum(1).std()
    bound = math.log1p(S2 / sigma0**2) / 2 - float(found.mean())
    error = 4 * float(found.std()) / math.sqrt(len(found))
    assert bound == pytest.approx(BOUNDS[sigma0], abs=error + 1e-4)
    assert bound < TRUE + error
    assert error < 0.07 * TRUE


def test_a_worse_denoiser_makes_the_bound_smaller_by_what_it_errs():
    """A constant error δ adds ½ δ² (1/σ0² − 1/σ²) to M, whatever the noise."""
    sigma0, bias = 0.03, 0.02
    a, b = (combined(*gaps(sigma0, 4000, bias=off)) for off in (0.0, bias))
    assert within(b - a, bias**2 * (sigma0**-2 - 79.0**-2) / 2)


def test_above_the_highest_level_the_mean_stands_in():
    """That part of the integral is |x0 − m|²/(2 σ²) of the highest level, to the last digit, and has no noise."""
    terms, noises = gaps(0.03, 5, levels=1, highest=0.5)
    assert torch.allclose(terms[:, 0], (0.5 * normal(5, 1))[:, 0] ** 2 / (2 * 0.5**2), rtol=1e-12)
    assert (noises[:, 0] == 0).all()


def test_weights_of_the_noise_are_those_of_the_other_half():
    """By hand; a sample changes what is subtracted from samples of the other half alone, so that nothing is biased."""
    terms, noises = normal(12, 3, seed=20), normal(12, 3, seed=21)
    found = combined(terms, noises)
    for part in (0, 1):
        x, y = noises[1 - part :: 2], terms[1 - part :: 2]
        slopes = torch.stack([torch.cov(torch.stack([a, b]))[0, 1] / a.var() for a, b in zip(x.T, y.T, strict=True)])
        assert torch.allclose(found[part::2], (terms - slopes * noises)[part::2].sum(1), rtol=1e-12)
    terms[4] += 1
    moved = combined(terms, noises) != found
    assert moved.tolist() == [k % 2 == 1 or k == 4 for k in range(12)]


def test_the_endpoint_does_not_matter():
    """x1 is made from z and shifts the state only: another decoder, the same M, draw by draw."""
    one = gaps(0.03, 500)[0]
    Dec.forward, kept = (lambda self, z: -3 * z), Dec.forward
    try:
        other = gaps(0.03, 500)[0]
    finally:
        Dec.forward = kept
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_gaussians_without_z_in_closed_form(parts, shape):
    d = math.prod(shape)
    mix = normal(d, d, seed=1) / math.sqrt(d) + 0.3 * torch.eye(d, dtype=DOUBLE)
    x = (normal(4 * d if d > 8 else 4000, d, seed=2) @ mix.T + 0.2).reshape(-1, *shape)
    spectrum = Spectrum.fit(parts.Stand(x).train, 10**6, 64, 0)
    flat = x.flatten(1) - x.flatten(1).mean(0)
    covariance = flat.T @ flat / len(x)
    gamma = 0.1**-2
    # Of the very samples it is fitted to, the mean square in each direction is the variance.
    assert float(spectrum.missing(x, 0.1).mean()) == pytest.approx(spectrum.information(0.1), rel=1e-9)
    whole = torch.linalg.slogdet(torch.eye(d, dtype=DOUBLE) + gamma * covariance)[1] / 2
    assert spectrum.information(0.1) == pytest.approx(float(whole), rel=1e-9)
    # Of others it is the integral of the error of its own Wiener denoiser.
    new = normal(3, d, seed=3)

    def error(snr: float) -> float:
        if snr == 0:
            return float((new - x.flatten(1).mean(0)).square().sum(1).mean())
        gain = covariance @ torch.linalg.inv(covariance + torch.eye(d, dtype=DOUBLE) / snr)
        bias = (new - x.flatten(1).mean(0)) @ (torch.eye(d, dtype=DOUBLE) - gain).T
        return float(bias.square().sum(1).mean() + (gain @ gain.T).trace() / snr)

    total = quad(lambda u: error(math.exp(u)) * math.exp(u), -14, math.log(gamma), limit=200)[0]
    found = float(spectrum.missing(new.reshape(3, *shape), 0.1).mean())
    assert found == pytest.approx((total + error(0.0) * math.exp(-14)) / 2, rel=1e-5)


def test_contrast_lies_around_the_information_of_a_gaussian_channel():
    n, dim, snr = 2000, 2, 3.0
    true = dim / 2 * math.log1p(snr)
    mean = math.sqrt(snr) * normal(n, dim, seed=4)
    law = CodeLaw(mean, torch.ones_like(mean))
    below, above = contrasted(law, mean + normal(n, dim, seed=5))
    error = 4 * float(below.std()) / math.sqrt(n)
    # The bias of the contrast is about −Var(q/mean q)/(2 N), and that of the other as much upwards: here below 0.01.
    assert true - error - 0.01 < float(below.mean()) < true + error
    assert true - error < float(above.mean()) < true + error + 0.01
    assert below.mean() < above.mean()
    assert float(contrasted(CodeLaw(100 * mean, law.sigma), 100 * mean)[0].max()) <= math.log(n) + 1e-12
    codes = mean + normal(n, dim, seed=6)
    assert within(rate(law, codes), true, k=5)
    # Against N(0, 1): the rate is larger by KL(N(0, 1 + snr) ‖ N(0, 1)).
    plain = law.rate().sum(1)
    assert within(plain - rate(law, codes), dim / 2 * (snr - math.log1p(snr)), k=5)


def test_contrasts_are_their_definitions():
    """`ln q(z_i|x_i)` less the log of the mean density over all samples, and over all others."""
    n, law = 3, CodeLaw(normal(3, 2, seed=9), normal(3, 2, seed=10).exp())
    z = law.mean + law.sigma * normal(3, 2, seed=11)
    density = torch.distributions.Normal(law.mean, law.sigma).log_prob(z[:, None]).sum(2).exp()
    own, total = density.diagonal(), density.sum(1)
    below, above = contrasted(law, z)
    assert torch.allclose(below, (own / (total / n)).log(), rtol=1e-9)
    assert torch.allclose(above, (own / ((total - own) / (n - 1))).log(), rtol=1e-9)


def test_the_metric_puts_the_true_information_between_its_bounds(parts):
    x, held = 0.5 * normal(50_000, 1, seed=7), 0.5 * normal(2000, 1, seed=8)
    stand = parts.Stand(x, held, bridge=bridge())
    metric = Information(sigma0=0.003, images=2000, fitted_on=50_000, gaussian=True, batch=500)
    found = metric.measure(stand)
    [table] = found.tables
    rows = {name: values for name, values in table.rows}
    value, error = rows["M: bridge, with z"]
    assert value == found.value == pytest.approx(expected(0.003), abs=4 * error)
    lower, error = rows["I(x0; z) ≥ I(x0; y) − M"]
    assert lower == pytest.approx(0.64603, abs=4 * error + 4 / math.sqrt(2 * len(x)))
    for name, (bound, se) in rows.items():
        if name.startswith("I(x0; z) ≥"):
            assert bound - 4 * se < TRUE, name
        elif name.startswith("I(x0; z) ≤"):
            assert bound + 4 * (se or 0) > TRUE, name
    assert rows["I(x0; z) ≤ capacity"][0] == pytest.approx(Clamped().capacity * math.log(2), rel=1e-12)
    fitted = rows["I(x0; z) ≤ rate, fitted Gaussian of codes"]
    assert fitted[0] == pytest.approx(TRUE, abs=4 * fitted[1] + 0.01)  # q(z) is Gaussian, so that nothing is lost
    assert found.floors["Gaussian, without z"] == pytest.approx(math.log1p(S2 / 0.003**2) / 2, abs=0.05)


def test_a_level_that_the_bridge_never_has_is_refused(parts):
    x = normal(50, 1)
    with pytest.raises(CapabilityError, match="sigma0 = 1e-05"):
        Information(sigma0=1e-5).measure(parts.Stand(x, bridge=bridge()))
    with pytest.raises(CapabilityError, match="at least 4"):
        Information(images=3).measure(parts.Stand(x, bridge=bridge()))


def test_conditions_of_the_data_reach_nobody_who_was_not_given_them(parts):
    assert "z" not in bridge().ends.cond
    stand = parts.Stand(
        normal(64, 1).float(), bridge=bridge().float(), labels=torch.zeros(64, dtype=torch.long), classes=1
    )
    assert stand.known(Condition({"label": torch.zeros(2)}).values).values == {}
    assert math.isfinite(Information(images=16, levels=1).measure(stand).value)
