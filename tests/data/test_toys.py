"""Toys have the moments and supports that their definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentsb.data.arrays import ArraySource
from latentsb.data.toys import Checkerboard, EightGaussians, Gaussian, Mixture, Moons, Swissroll
from latentsb.errors import ArgumentError

N = 20_000


def points(source: ArraySource) -> np.ndarray:
    return source.samples.double().numpy()


def test_gaussian_has_its_mean_and_covariance() -> None:
    mean, cov = (1.0, -2.0, 0.5), ((2.0, 0.6, 0.0), (0.6, 0.5, -0.1), (0.0, -0.1, 0.3))
    x = points(Gaussian(mean=mean, covariance=cov, n=N))
    truth = np.array(cov)
    np.testing.assert_array_less(abs(x.mean(0) - mean), 4 * np.sqrt(truth.diagonal() / N))
    # Var of an empirical covariance: (C_ii C_jj + C_ij²) / n.
    error = np.sqrt((np.outer(truth.diagonal(), truth.diagonal()) + truth**2) / N)
    np.testing.assert_array_less(abs(np.cov(x.T) - truth), 4.5 * error)


def test_singular_covariance_is_allowed_and_a_negative_one_is_not() -> None:
    x = points(Gaussian(covariance=((1.0, 1.0), (1.0, 1.0)), n=100))
    np.testing.assert_allclose(x[:, 0], x[:, 1], atol=1e-6)
    for wrong in (((1.0, 2.0), (2.0, 1.0)), ((1.0, 0.5), (0.0, 1.0)), ((1.0,), (0.0,))):
        with pytest.raises(ArgumentError, match="covariance"):
            Gaussian(covariance=wrong)


def test_mixture_has_its_weights_means_and_spread() -> None:
    source = Mixture(means=((0.0, 0.0), (3.0, 1.0)), std=0.5, weights=(3.0, 1.0), n=N)
    labels = source.values["label"].numpy()
    assert abs((labels == 1).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)
    for k, mean in enumerate(((0.0, 0.0), (3.0, 1.0))):
        x, n = points(source)[labels == k], (labels == k).sum()
        np.testing.assert_array_less(abs(x.mean(0) - mean), 4.5 * 0.5 / math.sqrt(n))
        np.testing.assert_array_less(abs(x.std(0) - 0.5), 4.5 * 0.5 / math.sqrt(2 * n))
    with pytest.raises(ArgumentError, match="weights"):
        Mixture(weights=(1.0,))


def test_eight_gaussians_lie_on_a_circle() -> None:
    source = EightGaussians(radius=3.0, std=0.1, n=N)
    labels = source.values["label"].numpy()
    for k in range(8):
        x = points(source)[labels == k]
        truth = 3.0 * np.array([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
        np.testing.assert_array_less(abs(x.mean(0) - truth), 4.5 * 0.1 / math.sqrt(len(x)))


def test_moons_are_each_others_half_turn() -> None:
    source = Moons(scale=2.0, std=0.0, n=2000)
    x, labels = points(source), source.values["label"].numpy()
    upper = np.where(labels[:, None] == 0, x, -x)
    radius = np.hypot(upper[:, 0] + 1.0, upper[:, 1] + 0.5)
    np.testing.assert_allclose(radius, 2.0, atol=1e-5)
    assert (upper[:, 1] >= -0.5 - 1e-6).all()


def test_swissroll_radius_follows_its_angle() -> None:
    x = points(Swissroll(radius=3.0, std=0.0, n=2000))
    radius = np.hypot(x[:, 0], x[:, 1])
    angle = 4.5 * math.pi * radius / 3.0
    assert (radius.min() >= 1.0 - 1e-6) and (radius.max() <= 3.0 + 1e-6)  # noqa: PT018
    np.testing.assert_allclose(x, radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), atol=2e-5)


def test_checkerboard_fills_dark_squares_evenly() -> None:
    cell = np.floor(points(Checkerboard(half=2.0, n=N))).astype(int)
    assert (cell.min() >= -2) and (cell.max() <= 1)  # noqa: PT018
    assert (cell.sum(1) % 2 == 0).all()
    _, counts = np.unique(cell, axis=0, return_counts=True)
    assert len(counts) == 8
    assert abs(counts - N / 8).max() < 4.5 * math.sqrt(N / 8)


@pytest.mark.parametrize("toy", [Gaussian, Mixture, EightGaussians, Moons, Swissroll, Checkerboard])
def test_points_and_fingerprint_depend_on_the_seed(toy: type[ArraySource]) -> None:
    a, b, c = toy(n=64), toy(n=64), toy(n=64, seed=1)  # type: ignore[call-arg]
    assert torch.equal(a.samples, b.samples)
    assert not torch.equal(a.samples, c.samples)
    assert a.fingerprint() == b.fingerprint() != c.fingerprint()
