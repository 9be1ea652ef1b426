"""Reconstruction and retrieval: linear codes whose figures are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentsb.errors import CapabilityError, Error
from latentsb.metrics.codes import PROJECTION, coders
from latentsb.metrics.linear import Components
from latentsb.metrics.reconstruction import Reconstructed, compare
from latentsb.metrics.retrieval import Retrieval, chance, retrieve
from latentsb.tensors import Spec

DIM, KEPT = 12, 4


def data(n: int, seed: int) -> torch.Tensor:
    """Independent numbers of variances 12, 11, …, 1 along the axes."""
    noise = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return noise * torch.arange(DIM, 0, -1.0).sqrt() + 3


@pytest.fixture
def subject(parts):
    """A bridge whose code is the *last* four axes: the worst choice there is."""
    matrix = torch.eye(DIM)[:, -KEPT:]
    return parts.Stand(data(4000, 0), data(3000, 1), bridge=parts.Coder(matrix))


def test_pca_leaves_the_smallest_variances(subject):
    found = Components.fit(subject.train, KEPT, 4000, 0)
    gram = found.directions @ found.directions.T
    torch.testing.assert_close(gram, torch.eye(KEPT), atol=1e-5, rtol=0)
    left = (found.round_trip(subject.held.source.samples) - subject.held.source.samples).square().mean()
    # The eight smallest variances, 1 … 8; 4,000 samples tilt the directions by about one part in a hundred.
    assert float(left) == pytest.approx(sum(range(1, 9)) / DIM, rel=0.03)
    assert Components.fit(subject.train, 100, 4000, 0).directions.shape == (DIM, DIM)


def test_reconstruction_stands_beside_its_floors(subject):
    found = Reconstructed(images=3000).measure(subject)
    # Eight axes of variance 12 … 5 are lost, and with them their mean of 3.
    expected = (sum(range(5, 13)) + 8 * 9) / DIM
    assert abs(found.value - expected) < 4 * found.details["figures"]["bridge, faithful"]["se"]
    assert found.floors["PCA, 4 components"] == pytest.approx(36 / DIM, rel=0.04)
    assert found.floors["mean image"] == pytest.approx(78 / DIM, rel=0.04)
    # Noise of variance 1, whose product with the error has a mean of 0 ± 2 √(value / 36,000).
    assert found.floors["bridge, perceptual"] == pytest.approx(found.value + 1, abs=8 * math.sqrt(found.value / 36_000))
    assert "autoencoder alone" not in found.floors  # it is the identity
    assert found.protocol["measured_on"] == "held-out data"


def test_principal_components_are_those_of_training_data(parts):
    # Held-out data vary most along the axes where training data vary least, and about another mean.
    held = data(300, 1).flip(1) + torch.arange(DIM)
    labels = torch.arange(300) // 3
    stand = parts.Stand(data(4000, 0), held, held_labels=labels, bridge=parts.Coder(torch.eye(DIM)[:, -KEPT:]))
    linear = Components.fit(stand.train, KEPT, 20_000, 0)
    left = (linear.round_trip(held) - held).square().mean()
    assert left > 1.5 * (Components.fit(stand.held, KEPT, 20_000, 0).round_trip(held) - held).square().mean()
    found = Reconstructed(images=300).measure(stand)
    assert found.floors["PCA, 4 components"] == pytest.approx(float(left), rel=1e-4)
    codes = retrieve(linear.encode(held), labels)
    assert Retrieval().measure(stand).details["figures"]["PCA, 4 components"] == pytest.approx(codes)


def test_both_conventions_of_psnr():
    x = torch.zeros(2, 1, 8, 8)
    y = torch.stack([torch.full((1, 8, 8), 0.2), torch.full((1, 8, 8), 0.02)])
    found = compare(x, y, pictures=True)  # errors of 0.1 and 0.01 on [0, 1]
    assert found["mse"] == pytest.approx((1e-2 + 1e-4) / 2)
    assert found["psnr_of_mean_mse"] == pytest.approx(-10 * math.log10((1e-2 + 1e-4) / 2))
    assert found["mean_psnr"] == pytest.approx((20 + 40) / 2)
    assert found["se"] == pytest.approx((1e-2 - 1e-4) / 2)
    assert compare(x, x, pictures=True)["mean_psnr"] is None
    # Beyond white is white.
    assert compare(torch.ones(1, 1, 8, 8), torch.full((1, 1, 8, 8), 5.0), pictures=True)["mse"] == 0


def test_retrieval_by_hand():
    # Directions after centring: a and b together, c opposite; d and e at right angles to them, apart from each other.
    codes = torch.tensor([[1.0, 0.0], [2.0, 0.1], [-3.0, -0.1], [0.0, 1.0], [0.0, -1.0]])
    labels = torch.tensor([7, 7, 7, 5, 9])
    found = retrieve(codes - codes.mean(0), labels)
    assert retrieve(codes + torch.tensor([5.0, -2.0]), labels) == pytest.approx(found)  # centred
    assert found["queries"] == 3
    # a finds b and then d, e, c (the order of d and e does not matter): precision (1 + 2/4)/2; b alike. For c all are
    # far: d and e come first, a and b last: (1/3 + 2/4)/2.
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["map"] == pytest.approx((0.75 + 0.75 + (1 / 3 + 2 / 4) / 2) / 3)
    assert chance(labels) == pytest.approx(2 / 4)


def test_retrieval_of_noise_is_chance_and_of_labels_perfect():
    n, each = 600, 4
    labels = torch.arange(n) // each
    noise = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    guess = chance(labels)
    assert guess == pytest.approx((each - 1) / (n - 1))
    found = retrieve(noise, labels)
    assert abs(found["top1"] - guess) < 4 * math.sqrt(guess / n)
    centres = torch.randn(n // each, 8, generator=torch.Generator().manual_seed(1))[labels]
    found = retrieve(centres + 1e-4 * noise, labels)
    assert (found["top1"], found["map"]) == (1.0, pytest.approx(1.0))
    with pytest.raises(CapabilityError, match="each label occurs once"):
        retrieve(noise, torch.arange(n))


def test_retrieval_of_a_code_that_keeps_the_class_beats_pca(parts):
    # The class is in the last axes, which have the least variance: PCA loses it, this bridge keeps nothing else.
    labels = torch.arange(400) // 4
    places = 0.9 * torch.nn.functional.normalize(
        torch.randn(100, KEPT, generator=torch.Generator().manual_seed(3)), dim=1
    )
    held = data(400, 2)
    held[:, -KEPT:] = places[labels] + 0.01 * held[:, -KEPT:]
    bridge = parts.Coder(torch.eye(DIM)[:, -KEPT:])
    found = Retrieval().measure(parts.Stand(data(2000, 0), held, held_labels=labels, bridge=bridge))
    assert found.value > 0.99
    assert found.floors["chance"] == pytest.approx(3 / 399)
    assert found.floors["PCA, 4 components"] < 0.1
    assert found.floors["PCA, 4 components"] < found.floors["pixels"] < found.value
    assert found.details["queries"] == 400


def test_codes_are_those_of_latents_and_the_floors_those_of_pixels(parts):
    # The latents are the pixels in reverse order, scaled: their first axes are the pixels' last ones.
    labels = torch.arange(300) // 3
    train, held, eye = data(500, 0), data(300, 1), torch.eye(DIM)
    held[:, -KEPT:] += 2 * torch.randn(100, KEPT, generator=torch.Generator().manual_seed(3))[labels]
    plain = parts.Stand(train, held, held_labels=labels, bridge=parts.Coder(eye[:, -KEPT:]))
    bridge = parts.Coder(eye[:, :KEPT])
    coded = parts.Stand(train, held, held_labels=labels, bridge=bridge, latents=lambda x: 3 * x.flip(1) - 1)
    expected, found = (Retrieval().measure(subject).details["figures"] for subject in (plain, coded))
    assert list(found) == ["z, 4 numbers", "PCA, 4 components", "pixels"]
    for name, figures in found.items():
        assert figures == pytest.approx(expected[name]), name
    assert found["z, 4 numbers"]["top1"] > 2 * retrieve(held[:, :KEPT], labels)["top1"]


def test_a_random_projection_is_one_normal_matrix_for_all(parts):
    """Of unit vectors it shows its rows: N(0, 1/D), so that codes keep the squares of samples, K/D of them each."""
    train = torch.cat([torch.eye(DIM), data(100, 0)])
    subject = parts.Stand(train, torch.eye(DIM), bridge=parts.Coder(torch.eye(DIM)[:, :KEPT]))
    squares = []
    for seed in range(40):
        keys = {"fitted_on": 50, "seed": seed, "batch": 5, "drawn": False}
        project = coders(subject, subject.bridge, **keys)[PROJECTION]
        rows = project(subject.held, np.arange(DIM))
        assert torch.equal(rows, project(subject.train, np.arange(DIM)))
        squares.append(rows.square().flatten())
    squares = torch.cat(squares)
    assert abs(float(squares.mean()) * DIM - 1) < 4 * math.sqrt(2 / len(squares))
    assert float((squares == 0).double().mean()) == 0


def test_what_is_missing_is_told(parts):
    plain = parts.Denoiser(Spec((DIM,)), lambda y, sigma, cond: y)
    coder = parts.Coder(torch.eye(DIM)[:, :2])
    with pytest.raises(CapabilityError, match="the held-out data have none"):
        Retrieval().require(parts.Stand(data(9, 0), data(9, 1), labels=torch.arange(9), bridge=coder))
    for metric in (Retrieval(), Reconstructed()):
        with pytest.raises(Error, match="is not a registered bridge"):  # it has no word: it lives in a test
            metric.require(parts.Stand(data(9, 0), bridge=plain))
