"""Principal components: eigenvalues, scikit-learn and scipy, what is refused, what the engine does with them."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA as Theirs

from latentsb.autoencoders.pca import PCA, Covariance
from latentsb.data.arrays import Digits
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.latents import fit_autoencoder
from latentsb.networks.transformer import patchify
from latentsb.normalisers import Unchanged
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec


def fitted(x, **keys):
    codec = PCA(Spec(tuple(x.shape[1:])), **keys)
    codec.fit(lambda: (Batch(torch.arange(len(part)), part) for part in x.split(40)))
    return codec


def skewed(n, *shape, seed=0):
    """Correlated numbers about a mean far from zero."""
    rng = torch.Generator().manual_seed(seed)
    dim = int(np.prod(shape))
    mix = torch.randn(dim, dim, generator=rng) * torch.linspace(1.5, 0.1, dim)[:, None] ** 2
    return (torch.randn(n, dim, generator=rng) @ mix + 3 * torch.randn(dim, generator=rng)).reshape(n, *shape)


def covariance(rows):
    """Of the population, in float64, about the mean, with eigenvalues that rise."""
    rows = rows.double()
    apart = rows - rows.mean(0)
    return torch.linalg.eigh(apart.T @ apart / len(rows))


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((6,), {"components": 2}),
        ((2, 4, 6), {"components": 11}),
        ((3, 4, 6), {"components": 5, "patch": 2}),
        ((2, 4, 4), {"components": 8, "patch": 2}),
        ((1, 6, 3), {"components": 1, "patch": 3}),
    ],
)
def test_squared_error_is_the_sum_of_the_dropped_eigenvalues(shape, keys):
    """What no other linear code of that length goes below, and what any wrong transposition goes above."""
    x = skewed(900, *shape)
    codec = fitted(x, **keys)
    rows = x.flatten(1) if "patch" not in keys else patchify(x, keys["patch"]).flatten(0, 1)
    values = covariance(rows)[0]
    k = keys["components"]
    dropped = values[: len(values) - k].sum()
    found = (codec.raw_decode(codec.moments(x).mean) - x).double().square().sum() / len(rows)
    assert float(found) == pytest.approx(float(dropped), rel=2e-5, abs=1e-9)  # float32 coordinates
    assert float(codec.dropped) == pytest.approx(float(dropped), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(codec.variances, values.flip(0)[:k])
    latent = codec.moments(x).mean
    assert latent.shape[1:] == codec.latent.shape
    flat = latent.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], codec.variances.diag(), rtol=1e-4, atol=1e-4)


def test_whole_images_are_scikit_learns_to_the_sign():
    x = Digits().samples
    codec = fitted(x, components=10)
    theirs = Theirs(10, svd_solver="full").fit(x.flatten(1).double().numpy())
    codes = theirs.transform(x.flatten(1).double().numpy())
    top = np.abs(theirs.components_).argmax(1)
    signs = np.sign(theirs.components_[np.arange(10), top])
    np.testing.assert_allclose(codec.moments(x).mean.numpy(), codes * signs, atol=2e-5)
    np.testing.assert_allclose(codec.variances.numpy(), theirs.explained_variance_ * (len(x) - 1) / len(x), rtol=1e-9)
    assert (codec.components.amax(0) == codec.components.abs().amax(0)).all()


def test_patches_are_coded_one_by_one_in_their_places():
    x = skewed(400, 2, 6, 4)
    codec = fitted(x, components=3, patch=2)
    assert codec.latent.shape == (3, 3, 2)
    whole = codec.moments(x).mean
    part = codec.moments(x[:, :, 2:4, 2:4]).mean
    torch.testing.assert_close(whole[:, :, 1:2, 1:2], part)
    torch.testing.assert_close(codec.raw_decode(part), codec.raw_decode(whole)[:, :, 2:4, 2:4])
    rows = patchify(x, 2)
    expected = (rows - rows.flatten(0, 1).mean(0)) @ codec.components
    torch.testing.assert_close(whole.flatten(2).mT, expected, atol=1e-4, rtol=1e-4)


def test_batches_do_not_matter_and_large_means_cost_nothing():
    x = skewed(301, 5).double() + torch.tensor([1e6, -1e6, 0, 1e5, 1.0])
    found = Covariance(5)
    for part in x.split([1, 100, 200]):
        found.add(part)
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.scatter / 301, torch.cov(x.T, correction=0), rtol=1e-9, atol=1e-8)


def test_density_is_that_of_a_gaussian():
    x = skewed(900, 2, 4, 4) / 3
    for keys in ({"components": 7}, {"components": 3, "patch": 2}):
        codec = fitted(x, **keys)
        rows = x[:, None].flatten(2) if "patch" not in keys else patchify(x, 2)
        values, vectors = covariance(rows.flatten(0, 1))
        dropped = len(values) - keys["components"]
        values[:dropped] = values[:dropped].mean()
        law = multivariate_normal(rows.flatten(0, 1).double().mean(0), (vectors * values) @ vectors.T)
        expected = law.logpdf(rows.double().numpy()).reshape(rows.shape[:2]).sum(1)
        np.testing.assert_allclose(codec.log_prob(x).numpy(), expected, rtol=1e-4)
    with pytest.raises(CapabilityError, match="fewer components than numbers"):
        fitted(x, components=8, patch=2).log_prob(x)


def test_normalised_latents_are_white():
    source = Digits()
    codec = PCA(source.spec, components=20)
    fit_autoencoder(codec, source)
    codec.fit_normaliser(codec.moments(part).mean for part in source.samples.split(64))
    z = codec.encode(source.samples).double()
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(20).double(), atol=1e-4, rtol=0)
    plain = fitted(source.samples, components=20, normaliser=Unchanged())
    torch.testing.assert_close(codec.round_trip(source.samples), plain.round_trip(source.samples), atol=1e-5, rtol=0)


def test_refusals():
    with pytest.raises(ArgumentError, match="patch: 3 does not divide 8×8"):
        PCA(Spec((1, 8, 8)), patch=3)
    with pytest.raises(ArgumentError, match="components: found 64; patches have 16 numbers"):
        PCA(Spec((1, 8, 8)), patch=4)
    with pytest.raises(ArgumentError, match=r"samples have 49,152 numbers.*patch: 8"):
        PCA(Spec((3, 128, 128)))
    with pytest.raises(ArgumentError, match="cut from images"):
        PCA(Spec((64,)), components=2, patch=2)
    with pytest.raises(CapabilityError, match="not fitted"):
        PCA(Spec((4,)), components=2).encode(torch.zeros(1, 4))
    with pytest.raises(CapabilityError, match="leave out the stage"):
        PCA(Spec((4,)), components=2).loss(Batch(torch.arange(1), torch.zeros(1, 4)), Draws.seeds([0]))
    with pytest.raises(DataError, match=r"3 samples vary in 2 directions, components: 4 asks for more; take .* 2"):
        fitted(skewed(3, 6), components=4)
