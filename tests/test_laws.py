"""Gaussian laws: moments, densities, fits and what happens without full rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.stats import multivariate_normal

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import LAWS, FittedGaussian, Gaussian
from latentsb.randomness import Draws
from latentsb.tensors import Spec

MEAN = (0.5, -1.0, 2.0)
COV = ((1.0, 0.6, -0.2), (0.6, 0.8, 0.1), (-0.2, 0.1, 0.5))


def draws(n):
    return Draws.step(0, "law", 0, range(n))


def moments_agree(x, mean, cov):
    """Means to 4 standard errors, covariances to 4 standard errors `sqrt((v_i v_j + v_ij²)/n)`."""
    n = len(x)
    mean, cov = np.asarray(mean), np.asarray(cov)
    assert np.all(np.abs(x.mean(0).numpy() - mean) <= 4 * np.sqrt(np.diag(cov) / n) + 1e-6)
    found = np.cov(x.numpy().T, bias=True)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(found - cov) <= 4 * error + 1e-6)


def test_word():
    assert LAWS["gaussian"] is Gaussian


def test_standard_normal():
    law = Gaussian(Spec((3, 2, 2)))
    x = law.sample(4000, draws(4000))
    assert x.shape == (4000, 3, 2, 2)
    assert x.dtype == torch.float32
    moments_agree(x.flatten(1).double(), np.zeros(12), np.eye(12))
    expected = -x[:5].double().square().flatten(1).sum(1) / 2 - 6 * math.log(2 * math.pi)
    torch.testing.assert_close(law.log_prob(x[:5].double()), expected)


def test_given_mean_and_covariance():
    law = Gaussian(Spec((3,)), mean=MEAN, cov=COV)
    x = law.sample(20000, draws(20000)).double()
    moments_agree(x, MEAN, COV)
    expected = multivariate_normal(MEAN, COV).logpdf(x[:7].numpy())
    np.testing.assert_allclose(law.log_prob(x[:7]), expected, rtol=1e-10)


def test_density_of_coarse_numbers_is_that_of_their_values():
    """bfloat16 holds these x exactly, but not the mean; the density is that of float32."""
    law = Gaussian(Spec((3,)), mean=(3.1415926, -1.0009765, 0.1))
    x = torch.tensor([[3.0, -1.0, 0.125]], dtype=torch.bfloat16)
    torch.testing.assert_close(law.log_prob(x), law.log_prob(x.double()).float(), rtol=1e-6, atol=0)


def test_density_is_differentiable():
    law = Gaussian(Spec((3,)), mean=MEAN, cov=COV)
    x = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    expected = -np.linalg.solve(np.array(COV), np.array([0.1, 0.2, 0.3]) - np.array(MEAN))
    np.testing.assert_allclose(score[0], expected, rtol=1e-9)


def test_a_row_does_not_depend_on_the_batch():
    law = Gaussian(Spec((3,)), mean=MEAN, cov=COV)
    whole = law.sample(4, Draws.seeds([1, 2, 3, 4]))
    torch.testing.assert_close(law.sample(1, Draws.seeds([3]))[0], whole[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mean", {"mean": (1.0,)}),
        ("cov", {"cov": ((1.0, 0.0), (0.0, 1.0))}),
        ("cov", {"cov": ((1.0, 0.5, 0.0), (0.2, 1.0, 0.0), (0.0, 0.0, 1.0))}),
        ("cov", {"cov": ((1.0, 2.0, 0.0), (2.0, 1.0, 0.0), (0.0, 0.0, 1.0))}),
    ],
)
def test_wrong_arguments_are_named(name, arguments):
    with pytest.raises(ArgumentError) as told:
        Gaussian(Spec((3,)), **arguments)
    assert told.value.name == name


def test_fit_equals_the_moments_of_the_data_for_any_split():
    """A mean of 1e4 costs no digits: naive float32 sums of squares would lose seven of them."""
    rng = np.random.default_rng(0)
    data = 1e4 + rng.standard_normal((500, 3)) @ np.linalg.cholesky(np.array(COV)).T
    for split in ([500], [1, 199, 300], [50] * 10):
        law = FittedGaussian(3).fit(torch.from_numpy(part) for part in np.split(data, np.cumsum(split)[:-1]))
        np.testing.assert_allclose(law.mean, data.mean(0), rtol=1e-14)
        np.testing.assert_allclose(law.cov, np.cov(data.T, bias=True), rtol=1e-9)
        assert int(law.count) == 500
        assert law.rank == 3


def test_fitted_law_samples_and_has_a_density():
    law = FittedGaussian(3).fit([Gaussian(Spec((3,)), mean=MEAN, cov=COV).sample(3000, draws(3000))])
    moments_agree(law.sample(20000, draws(20000)).double(), law.mean.numpy(), law.cov.numpy())
    x = law.sample(5, draws(5)).double()
    np.testing.assert_allclose(law.log_prob(x), multivariate_normal(law.mean, law.cov).logpdf(x.numpy()), rtol=1e-9)


def test_without_full_rank_samples_stay_in_the_subspace_of_the_data():
    """5 vectors in 8 dimensions span 4 directions; one dimension is constant."""
    data = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data[:, 3] = 7.0
    law = FittedGaussian(8).fit([data])
    assert law.rank == 4
    x = law.sample(100, draws(100)).double()
    assert torch.allclose(x[:, 3], torch.tensor(7.0).double(), atol=1e-6)
    span = torch.linalg.svd(data - data.mean(0)).Vh[4:]
    assert ((x - data.mean(0)) @ span.T).abs().max() < 1e-5
    assert (x - data.mean(0)).std() > 0.3
    with pytest.raises(CapabilityError, match="rank 4 in 8 dimensions has no density"):
        law.log_prob(x)


def test_single_vector_is_a_point():
    law = FittedGaussian(2).fit([torch.tensor([[1.0, 2.0]])])
    assert law.rank == 0
    assert law.sample(3, draws(3)).tolist() == [[1.0, 2.0]] * 3


def test_storage_keeps_the_samples():
    """The buffers go through safetensors and give the same bits."""
    law = FittedGaussian(3).fit([torch.randn(50, 3, generator=torch.Generator().manual_seed(1))])
    again = FittedGaussian(3)
    again.load_state_dict(load(save(law.state_dict())))
    assert again.fitted
    assert torch.equal(again.sample(9, draws(9)), law.sample(9, draws(9)))


def test_refusals():
    with pytest.raises(CapabilityError, match="not been fitted"):
        FittedGaussian(3).sample(1, draws(1))
    with pytest.raises(ValueError, match="no vectors"):
        FittedGaussian(3).fit([])
    with pytest.raises(ValueError, match="not finite"):
        FittedGaussian(2).fit([torch.tensor([[1.0, math.nan]])])
