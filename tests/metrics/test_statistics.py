"""Statistics of latents against laws whose moments, spectra and divergences are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentsb.autoencoder import Moments
from latentsb.metrics.statistics import LatentStatistics, radial_power, radii, statistics_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def over(mean: Tensor, std: Tensor | None = None, batch: int = 37) -> LatentStatistics:
    stds = [None] * len(mean) if std is None else std.split(batch)
    return statistics_of(Moments(m, s) for m, s in zip(mean.split(batch), stds, strict=False))


def test_moments_of_known_laws_within_their_standard_errors() -> None:
    n = 4000
    uniform = torch.rand(n, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    laplace = drawn(n, 25, seed=2) * (2 * -torch.log1p(-uniform)).sqrt()  # sqrt(2 Exp) N is Laplace
    coin = drawn(n, 25, seed=3).sign()
    x = torch.stack([drawn(n, 25), uniform, laplace, coin], 1).reshape(n, 4, 5, 5) * 3 + 100
    found = over(x)
    assert found.count == n
    assert found.numbers == 100
    torch.testing.assert_close(found.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(found.std, x.std((0, 2, 3), correction=0))
    # Excess kurtosis: 0, −6/5, 3, −2; standard errors from the laws' moments, √24/n for the normal one.
    m = n * 25
    for value, truth, error in zip(found.kurtosis, (0, -1.2, 3, -2), (math.sqrt(24 / m), 0.01, 0.3, 1e-2), strict=True):
        assert abs(value - truth) < 4 * error
    central = (x - x.mean((0, 2, 3), keepdim=True)).pow(4).mean((0, 2, 3)) / x.var((0, 2, 3), correction=0) ** 2 - 3
    torch.testing.assert_close(found.kurtosis, central)


def test_posteriors_are_those_of_samples_without_drawing_any() -> None:
    mean, std = drawn(3000, 2, 4, 4) ** 3 + 1, 0.3 + drawn(3000, 2, 4, 4, seed=1).abs()
    found = over(mean, std)
    many = torch.cat([mean + std * drawn(3000, 2, 4, 4, seed=k) for k in range(2, 12)])
    again = over(many)
    # The samples share their means: their error is that of 480,000 draws of noise.
    torch.testing.assert_close(found.mean, again.mean, atol=5 * 0.9 / math.sqrt(480_000), rtol=0)
    torch.testing.assert_close(found.std, again.std, atol=0.01, rtol=0)
    torch.testing.assert_close(found.kurtosis, again.kurtosis, atol=0, rtol=0.02)
    assert found.spectrum is not None
    assert again.spectrum is not None
    torch.testing.assert_close(found.spectrum, again.spectrum, atol=0.02, rtol=0)


def test_kurtosis_of_two_normal_laws_of_unequal_width() -> None:
    """`E(d + s n)⁴ = d⁴ + 6 d² s² + 3 s⁴` with d = ∓3/2 about the mean 1/2, half of them with s = 1/2, half with 2."""
    mean, std = torch.tensor([[-1.0], [2.0]]).repeat(20, 1), torch.tensor([[0.5], [2.0]]).repeat(20, 1)
    variance, square = 2.25 + 4.25 / 2, 4.25 / 2
    fourth = 1.5**4 + 6 * 2.25 * square + 3 * (1 / 16 + 16) / 2
    for batch in (3, 40):  # the first of three are not about the mean of all
        found = over(mean, std, batch=batch)
        assert found.std.item() == pytest.approx(math.sqrt(variance))
        assert found.kurtosis.item() == pytest.approx(fourth / variance**2 - 3)


def test_batches_far_from_the_first_change_nothing() -> None:
    """Images whose level drifts; of 4 × 12 pixels, whose lowest ring has three frequencies."""
    assert int((radii(4, 12) == 0).sum()) == 3
    x = drawn(60, 2, 4, 12) + torch.linspace(-20, 20, 60).reshape(-1, 1, 1, 1)
    for std in (None, 0.1 + drawn(60, 2, 4, 12, seed=1).abs()):
        whole, parts = over(x, std, batch=60), over(x, std, batch=1)
        for name in ("mean", "std", "kurtosis", "spectrum"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-9, rtol=1e-9)


def test_rate_is_the_divergence_of_gaussians_in_bits() -> None:
    mean, std = (2 * drawn(50, 3, 2, 4)).float(), (0.1 + drawn(50, 3, 2, 4, seed=1).abs()).float()
    found = over(mean, std, batch=7)
    posterior = Normal(mean.double(), std.double())
    truth = kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).sum(1).mean() / math.log(2)
    assert found.bits == pytest.approx(truth.item(), rel=1e-9)
    marginal = Normal(found.mean.reshape(3, 1, 1), found.std.reshape(3, 1, 1))
    best = kl_divergence(posterior, marginal).flatten(1).sum(1).mean() / math.log(2)
    assert found.fitted_bits == pytest.approx(best.item(), rel=1e-9)
    assert found.fitted_bits < found.bits
    # A code of d independent numbers with variance S and noise s² carries exactly d/2 log2(1 + S/s²) bits.
    x = drawn(5000, 2, 4, 4)
    signal = over(x, torch.full_like(x, 0.25))
    assert signal.fitted_bits == pytest.approx(
        16 * math.log2(1 + 16), abs=4 * 16 / math.log(2) * math.sqrt(2 / 160_000)
    )
    assert over(x).bits is over(x).fitted_bits is None


def test_spectrum_of_white_noise_is_flat_and_of_a_wave_a_line() -> None:
    x = 3 * drawn(2000, 3, 8, 8) + torch.tensor([5.0, 0.0, -40.0]).reshape(3, 1, 1)
    found = over(x).spectrum
    assert found is not None
    in_ring = torch.bincount(radii(8, 8).flatten())
    # Each power is exponentially distributed about 1, conjugate frequencies twice: error √2 at most over N · ring.
    assert ((found - 1).abs() < 5 * (2 / (2000 * in_ring)).sqrt()).all()
    rows = torch.arange(8.0)[:, None]
    phase = torch.arange(16.0).reshape(-1, 1, 1, 1) * math.tau / 16
    wave = (4 * torch.cos(math.tau * 2 * rows / 8 + phase)).expand(16, 1, 8, 12) + 7
    power = over(wave, batch=5).spectrum
    rings = torch.bincount(radii(8, 12).flatten())
    expected = torch.zeros_like(rings).double()
    expected[2] = 8 * 12 / rings[2].double()  # all of the variance at two of the ring's frequencies
    assert power is not None
    torch.testing.assert_close(power[0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (5, 7), (2, 9)])
def test_powers_add_up_to_the_mean_square(shape: tuple[int, int]) -> None:
    x = drawn(2, 3, *shape) + 1
    rings = torch.bincount(radii(*shape).flatten()).double()
    together = (radial_power(x) * rings).sum(-1) / rings.sum()
    torch.testing.assert_close(together, x.square().mean((-2, -1)))
    assert radial_power(torch.full(shape, 2.0))[0] == pytest.approx(4 * rings.sum().item() / rings[0].item())


def test_vectors_have_no_spectrum() -> None:
    found = over(drawn(100, 6), batch=30)
    assert found.spectrum is found.frequencies is None
    assert found.numbers == 6
