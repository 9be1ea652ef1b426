"""Wiener denoisers against trace formulas, and the metric on data whose best denoiser is known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from latentsb.bridges.flow import Flow
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.metrics.denoising import Denoising, time_of_level
from latentsb.metrics.gaussian import CHANNEL, WHOLE, Cosine, Fourier, Moments, Whole, fit
from latentsb.networks.base import Network
from latentsb.tensors import Spec

SHAPE = (2, 6, 6)
SIGMAS = [0.05, 0.5, 1.0, 5.0]
DOUBLE = torch.float64


def spectrum(basis: type) -> torch.Tensor:
    """Covariance of the channels at each frequency, shape (36, 2, 2), low frequencies strong, channels correlated.

    Over the Fourier basis the second channel is moved by one pixel against the first, which its phase tells.
    """
    k = torch.arange(6.0, dtype=DOUBLE)
    phase = torch.ones(36, dtype=DOUBLE)
    if basis is Fourier:
        phase = torch.exp(2j * torch.pi * k / 6).expand(6, 6).flatten()
        k = torch.minimum(k, 6 - k)
    power = 4 / (1 + k[:, None] ** 2 + k**2).flatten()
    ones = torch.ones_like(phase)
    block = torch.stack([ones, 0.6 * phase, 0.6 * phase.conj().resolve_conj(), 0.5 * ones], 1).reshape(36, 2, 2)
    return power[:, None, None] * block


def stationary(n: int, basis: type, seed: int = 0) -> torch.Tensor:
    """Gaussian data about (1, −1) with that spectrum."""
    noise = torch.randn(n, *SHAPE, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    root = torch.linalg.cholesky(spectrum(basis))
    own = basis(SHAPE)
    coordinates = own.forward(noise)
    coloured = (root.to(coordinates.dtype) @ coordinates[..., None])[..., 0]
    return own.back(coloured) + torch.tensor([1.0, -1.0], dtype=DOUBLE)[:, None, None]


def truth(basis: type, sigma: float) -> float:
    """The trace formula, per dimension."""
    s = spectrum(basis)
    gain = s @ torch.linalg.inv(s + sigma**2 * torch.eye(2, dtype=DOUBLE))
    return float(sigma**2 * gain.diagonal(dim1=1, dim2=2).real.mean())


@pytest.mark.parametrize("basis", [Whole, Cosine, Fourier])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 4, 6)])
def test_coordinates_are_orthonormal_and_lead_back(basis, shape):
    x = torch.randn(7, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    found = basis(shape).forward(x)
    torch.testing.assert_close(found.abs().square().sum((1, 2)), x.square().flatten(1).sum(1))
    torch.testing.assert_close(basis(shape).back(found), x)


def test_the_cosine_transform_is_scipys():
    from scipy.fft import dctn

    x = torch.randn(3, 2, 4, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    theirs = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    ours = Cosine((2, 4, 6)).forward(x).transpose(1, 2).reshape(3, 2, 4, 6)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


@pytest.mark.parametrize("basis", [Cosine, Fourier])
def test_stationary_data_meet_the_trace_formula(basis):
    laws = fit([stationary(20_000, basis)], SHAPE, SIGMAS)
    x = stationary(4000, basis, seed=1)
    noise = torch.randn(x.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    for k, sigma in enumerate(SIGMAS):
        y = x + sigma * noise
        exact = truth(basis, sigma)
        # A fitted covariance adds at most about d/N of the error, far below a standard error here.
        law = laws[basis.word][k]
        errors = (law.denoise(y, sigma) - x).square().flatten(1).mean(1)
        assert abs(float(errors.mean()) - exact) < 4 * float(errors.std()) / math.sqrt(len(x))
        assert law.error(sigma) == pytest.approx(exact, rel=0.01)
        variance = float((x - x.mean((0, 2, 3), keepdim=True)).square().mean((0, 2, 3)).mean())
        scalar = laws[CHANNEL][k].error(sigma)
        v = spectrum(basis).diagonal(dim1=1, dim2=2).real.mean(0)
        assert scalar == pytest.approx(float((v * sigma**2 / (v + sigma**2)).mean()), rel=0.01)
        assert variance == pytest.approx(float(v.mean()), rel=0.05)
        # Its error on these data is that of the formula too: it depends on the variance alone.
        made = laws[CHANNEL][k].denoise(y, sigma)
        assert float((made - x).square().mean()) == pytest.approx(scalar, rel=0.05)
        assert law.error(sigma) < scalar


def test_cross_validation_takes_what_is_best_for_the_data():
    # Independent numbers of equal variance: nothing but the variance can be learned, and strong shrinkage helps.
    white = torch.randn(60, *SHAPE, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    laws = fit([white], SHAPE, [1.0])
    assert laws["best"][0].name == CHANNEL
    assert laws[Cosine.word][0].shrinkage == 0.3
    assert fit([stationary(2000, Cosine)], SHAPE, [1.0])["best"][0].name == Cosine.word
    assert fit([stationary(2000, Fourier)], SHAPE, [1.0])["best"][0].name == Fourier.word


def test_per_channel_knows_no_places():
    # A fixed picture in faint noise: to one mean and one variance per channel the picture itself is all spread.
    noise = torch.randn(200, *SHAPE, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    picture = torch.linspace(-1, 1, 72, dtype=DOUBLE).reshape(SHAPE) * torch.tensor([1.0, 3.0])[:, None, None]
    laws = fit([picture + 0.01 * noise], SHAPE, [0.5])
    variance = picture.flatten(1).var(1, correction=0) + 1e-4
    expected = float((variance * 0.25 / (variance + 0.25)).mean())
    assert laws[CHANNEL][0].error(0.5) == pytest.approx(expected, rel=1e-3)
    assert laws[Cosine.word][0].error(0.5) == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_fit_does_not_depend_on_the_batches(size):
    x = stationary(30, Cosine)
    whole, parts = fit([x], SHAPE, SIGMAS), fit(x.split(size), SHAPE, SIGMAS)
    for name, laws in whole.items():
        assert [(law.name, law.shrinkage) for law in laws] == [(law.name, law.shrinkage) for law in parts[name]]
        torch.testing.assert_close(parts[name][1].denoise(x, 0.5), laws[1].denoise(x, 0.5))


def test_moments_add_up_and_the_error_on_other_data_is_that_of_denoising_them():
    x = stationary(500, Fourier)
    law = fit([x[:300]], SHAPE, [0.7])[Fourier.word][0]
    coordinates = law.basis.forward(x[300:])
    moments = Moments.of(coordinates[:70]) + Moments.of(coordinates[70:])
    noise = torch.randn(100, *x[300:].shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    made = law.denoise((x[300:] + 0.7 * noise).flatten(0, 1), 0.7).reshape(noise.shape)
    errors = (made - x[300:]).square().flatten(1).mean(1)
    assert abs(law.error(0.7, moments) - float(errors.mean())) < 4 * float(errors.std()) / 10


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="fewer than 4"):
        fit([torch.zeros(3, *SHAPE)], SHAPE, [1.0])


VECTOR = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=DOUBLE)


def vectors(n: int, seed: int) -> torch.Tensor:
    noise = torch.randn(n, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return (noise @ torch.linalg.cholesky(VECTOR).T + 2).float()


def exact(y, sigma, cond):
    gain = VECTOR @ torch.linalg.inv(VECTOR + sigma**2 * torch.eye(3, dtype=DOUBLE))
    return ((y.double() - 2) @ gain.T + 2).to(y.dtype)


@pytest.fixture(scope="module")
def gaussian(parts):
    bridge = parts.Denoiser(Spec((3,)), exact)
    subject = parts.Stand(vectors(8000, 0), vectors(3000, 1), bridge=bridge)
    return Denoising(images=3000, levels=5, lowest=0.05, highest=20.0).measure(subject)


def column(found, name):
    table = found.tables[0]
    return [row[list(table.columns).index(name) - 1] for _, row in table.rows]


def test_an_exact_denoiser_equals_the_trace_formula_and_is_not_beaten(gaussian):
    sigmas = [float(name) for name, _ in gaussian.tables[0].rows]
    assert sigmas == pytest.approx(np.geomspace(0.05, 20, 5), rel=0.01)
    own, se = column(gaussian, "bridge"), column(gaussian, "± SE")
    for sigma, found, error in zip(gaussian.protocol["levels_used"], own, se, strict=True):
        gain = VECTOR @ torch.linalg.inv(VECTOR + sigma**2 * torch.eye(3, dtype=DOUBLE))
        assert abs(found - sigma**2 * float(gain.trace()) / 3) < 4 * error
    for name in (CHANNEL, WHOLE, "mean", "identity"):
        assert all(theirs > ours * (1 - 1e-3) for theirs, ours in zip(column(gaussian, name), own, strict=True)), name
    # Noise is paired: the fitted Gaussian is within a part in a thousand of the exact one although the errors have a
    # standard error of about one part in fifty.
    assert max(column(gaussian, WHOLE)[k] / own[k] for k in range(5)) < 1.003
    columns = list(gaussian.tables[0].columns)
    assert columns[-1] == "± SE"
    assert max(row[-1] for _, row in gaussian.tables[0].rows) < 0.005
    assert 0.995 < gaussian.value <= gaussian.floors["best Gaussian"] * 1.001


def test_gaussians_are_fitted_to_training_data_alone(parts):
    x, held = vectors(500, 0), 3 * vectors(400, 1).flip(1) + 5
    found = Denoising(images=400, levels=3).measure(
        parts.Stand(x, held, bridge=parts.Denoiser(Spec((3,)), lambda y, sigma, cond: y))
    )
    assert found.protocol["gaussians_fitted_on"] == 500
    sigmas = found.protocol["levels_used"]
    moments = Moments.of(Whole((3,)).forward(held.double()))
    for k, laws in enumerate(zip(fit([x], (3,), sigmas)[WHOLE], fit([held], (3,), sigmas)[WHOLE], strict=True)):
        expected, wrong = (law.error(sigmas[k], moments) for law in laws)
        # 1,200 numbers of noise, whose squares have a relative standard error of 4 %, and their product with the bias.
        assert column(found, WHOLE)[k] == pytest.approx(expected, rel=0.16)
        assert k == 0 or wrong < 0.8 * expected


def test_the_error_of_a_ratio_is_that_of_leaving_each_sample_out(parts, monkeypatch):
    kept = {}
    errors = Denoising._errors
    monkeypatch.setattr(Denoising, "_errors", lambda *a: kept.setdefault("errors", errors(*a)))
    bridge = parts.Denoiser(Spec((3,)), lambda y, sigma, cond: 2 + 0.3 * (y - 2))
    found = Denoising(images=300, levels=3).measure(parts.Stand(vectors(500, 0), vectors(300, 1), bridge=bridge))
    own, best = (kept["errors"][name] for name in ("bridge", "best"))
    ratios = (own.sum(1, keepdims=True) - own) / (best.sum(1, keepdims=True) - best)
    n = ratios.shape[1]
    jackknife = np.sqrt((n - 1) / n * np.square(ratios - ratios.mean(1, keepdims=True)).sum(1))
    np.testing.assert_allclose([row[-1] for _, row in found.tables[0].rows], jackknife, rtol=0.03)


def test_the_trivial_ones_are_what_they_are(gaussian):
    for sigma, identity, mean in zip(
        gaussian.protocol["levels_used"],
        column(gaussian, "identity"),
        column(gaussian, "mean"),
        strict=True,
    ):
        assert identity == pytest.approx(sigma**2, rel=4 * math.sqrt(2 / 9000))
        assert mean == pytest.approx(float(VECTOR.trace()) / 3, rel=0.05)


def test_a_bad_denoiser_is_told_by_how_much(parts):
    bridge = parts.Denoiser(Spec((3,)), lambda y, sigma, cond: y)
    subject = parts.Stand(vectors(2000, 0), vectors(500, 1), bridge=bridge)
    found = Denoising(levels=3, lowest=0.1, highest=10.0).measure(subject)
    best = column(found, "best Gaussian")
    assert best[0].startswith(WHOLE)
    assert found.value == max(column(found, "bridge / best"))
    assert found.value > 100  # 10² against a variance of 0.83
    assert found.details["worst at σ"] == pytest.approx(10)


@pytest.mark.parametrize("training", [True, False])
def test_a_bridge_is_measured_as_it_is_used_and_left_as_it_was(parts, training):
    # Dropout doubles half of the numbers and loses the others, but in training alone.
    dropout = torch.nn.Dropout(0.5)
    bridge = parts.Denoiser(Spec((3,)), lambda y, sigma, cond: dropout(exact(y, sigma, cond)))
    bridge.network = dropout
    bridge.train(training)
    plain = parts.Denoiser(Spec((3,)), exact)
    found, expected = (
        Denoising(levels=3).measure(parts.Stand(vectors(500, 0), vectors(300, 1), bridge=b)) for b in (bridge, plain)
    )
    assert column(found, "bridge") == column(expected, "bridge")
    assert (bridge.training, dropout.training) == (training, training)


def test_a_figure_on_training_data_says_so(parts):
    x = vectors(100, 0)
    bridge = parts.Denoiser(Spec((3,)), exact)
    held = Denoising(levels=2).measure(parts.Stand(x, vectors(50, 1), bridge=bridge))
    own = Denoising(levels=2).measure(parts.Stand(x, bridge=bridge))
    assert held.protocol["measured_on"] == "held-out data"
    assert own.protocol["measured_on"] == "training data (none are held out)"
    assert "training data (none are held out)" in own.tables[0].title


def test_conditions_reach_the_denoiser(parts):
    seen = []
    bridge = parts.Denoiser(Spec((3,)), lambda y, sigma, cond: seen.append(cond["label"]) or y, classes=4)
    labels = torch.arange(40) % 4
    Denoising(levels=1).measure(parts.Stand(vectors(40, 0), labels=labels, classes=4, bridge=bridge))
    assert torch.equal(torch.cat(seen), labels)


class Whitening(Network):
    """E[x1 − x0 | x_t] for x0 ~ N(0, 1)."""

    def forward(self, x, t, cond):
        return (t - (1 - t)) / ((1 - t) ** 2 + t**2) * x


def test_noise_levels_of_a_flow_are_found(parts):
    bridge = Flow(Ends(spec=Spec((2,))), network=lambda *a: Whitening(*a))
    for sigma in (0.01, 1.0, 80.0):
        assert float(time_of_level(bridge, sigma)) == pytest.approx(sigma / (1 + sigma), rel=1e-12)
    assert time_of_level(bridge, 1e-5) is None  # below t_min = 1e-4
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    found = Denoising(levels=4, images=500).measure(parts.Stand(x, x[:500].flip(1), bridge=bridge))
    for sigma, error, se in zip(
        found.protocol["levels_used"], column(found, "bridge"), column(found, "± SE"), strict=True
    ):
        assert abs(error - sigma**2 / (1 + sigma**2)) < 4 * se + 1e-6


def test_the_picture_and_the_json(gaussian):
    picture = Denoising().picture(gaussian)
    assert picture.size[0] > 300
    assert json.loads(json.dumps(asdict(gaussian), default=str))["value"] == gaussian.value


def test_what_cannot_be_measured_is_told(parts):
    with pytest.raises(CapabilityError, match="at least 4 training samples"):
        Denoising().require(parts.Stand(torch.zeros(3, 3), bridge=parts.Denoiser(Spec((3,)), exact)))
    with pytest.raises(ArgumentError, match="at least lowest"):
        Denoising(lowest=2.0, highest=1.0)
    subject = parts.Stand(vectors(9, 0), bridge=parts.Denoiser(Spec((3,)), exact))
    with pytest.raises(CapabilityError, match="none of the noise levels"):
        Denoising(lowest=1e6, highest=1e7).measure(subject)
