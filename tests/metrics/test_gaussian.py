import numpy as np
import pytest
import torch

from latentsb.data.arrays import ArraySource
from latentsb.metrics.base import Data
from latentsb.metrics.gaussian import CHANNEL, FOLDS, WHOLE, Fourier, fit


def test_an_image_and_its_mirror_image_are_never_parted():
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    data = Data(ArraySource(x, flip=True), lambda: ArraySource(x, flip=True), held_out=False)
    rows = np.arange(12)
    (seen,) = data.batches(rows)
    assert torch.equal(seen[0::2], x)
    assert torch.equal(seen[1::2], x.flip(-1))
    one = fit(data.batches(rows, batch=5), (2, 4, 4), [0.5], together=2)
    other = fit(data.batches(rows, batch=12), (2, 4, 4), [0.5], together=2)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for strength in one:
        assert torch.allclose(one[strength][0].denoise(y, 0.5), other[strength][0].denoise(y, 0.5), atol=1e-12)
    # The law knows no left and right.
    shown = one[Fourier.word][0].denoise(y, 0.5)
    assert torch.allclose(one[Fourier.word][0].denoise(y.flip(-1), 0.5), shown.flip(-1), atol=1e-10)


def test_copies_that_belong_together_change_nothing():
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    twice = x.repeat_interleave(2, dim=0)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    once, kept, parted = (
        fit([batch], (2, 4, 4), [0.5], together=together)[WHOLE][0]
        for batch, together in ((x, 1), (twice, 2), (twice, 1))
    )
    assert torch.allclose(kept.denoise(y, 0.5), once.denoise(y, 0.5), atol=1e-12)
    assert parted.shrinkage < once.shrinkage  # each was tested on copies of what it was fitted to


def validated(x: torch.Tensor, shrinkage: float, sigma: float) -> float:
    """Cross-validated error of the Wiener matrix `G = S (S + σ²)⁻¹`: `|(1 − G)(x − m)|² + σ² |G|²` per dimension."""
    eye, errors = torch.eye(x.shape[1], dtype=x.dtype), []
    for fold in range(FOLDS):
        tested = torch.arange(len(x)) % FOLDS == fold
        known = x[~tested]
        covariance = torch.cov(known.T, correction=0)
        covariance = (1 - shrinkage) * covariance + shrinkage * covariance * eye
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * eye)
        off = (x[tested] - known.mean(0)) @ (eye - gain).T
        errors.append(float(off.square().mean() + sigma**2 * gain.square().sum() / len(eye)))
    return sum(errors) / FOLDS


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_is_found_among_laws_as_they_are_shrunk(seed):
    # Twelve numbers that share seven tenths of their variance, and 24 samples: the covariance as it stands is worse
    # than none at all, and with three tenths of its diagonal better.
    noise = torch.randn(24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    common = 0.7 * torch.ones(12, 12, dtype=torch.float64) + 0.3 * torch.eye(12, dtype=torch.float64)
    x = noise @ torch.linalg.cholesky(common).T
    plain, shrunk, alone = (validated(x, shrinkage, 0.3) for shrinkage in (0.0, 0.3, 1.0))
    assert shrunk < 0.95 * alone
    assert alone < 0.9 * plain
    laws = fit([x], (12,), [0.3])
    assert (laws[WHOLE][0].shrinkage, laws[CHANNEL][0].name) == (0.3, CHANNEL)
    assert laws["best"][0] is laws[WHOLE][0]
