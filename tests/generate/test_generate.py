"""Samples and reconstructions of exact experiments, held to closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.generate import reconstruct, sample
from latentsb.tensors import Condition
from latentsb.walks import interpolate


def standard_error(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def test_a_faithful_reconstruction_is_the_conditional_mean(exact):
    found = reconstruct(exact.autoencoder, exact.points[:50])
    expected = exact.law.mean(exact.points[:50, :1])
    # The one call is made at sigma_eff = 80 with y = 0, which pulls the posterior mean by spread²/(spread² + 80²).
    pull = exact.law.spread**2 / (exact.law.spread**2 + 80**2)
    torch.testing.assert_close(found.bridge, expected, rtol=2 * pull, atol=0)
    assert found.calls == 1
    assert torch.equal(found.autoencoder, found.originals)
    assert torch.equal(found.z, exact.points[:50, :1])


def test_a_perceptual_reconstruction_has_twice_the_error_of_a_faithful_one(exact):
    """With x0 and its decoding independent draws of p(x0 | z), E|x0 − x0'|² = 2 E|x0 − E[x0 | z]|²."""
    faithful = reconstruct(exact.autoencoder, exact.points)
    perceptual = reconstruct(exact.autoencoder, exact.points, mode="perceptual")
    one = (faithful.bridge - exact.points).square().sum(1)
    two = (perceptual.bridge - exact.points).square().sum(1)
    assert abs(float(one.mean()) - exact.law.spread**2) < 4 * standard_error(one)
    assert abs(float((two - 2 * one).mean())) < 4 * standard_error(two - 2 * one)
    # The draws themselves have the law's spread about the mean.
    drawn = (perceptual.bridge - exact.law.mean(exact.points[:, :1]))[:, 1].square()
    assert abs(float(drawn.mean()) - exact.law.spread**2) < 4 * standard_error(drawn)


def test_a_sample_depends_on_its_seed_alone(exact):
    whole = sample(exact.flow, range(10))
    again = sample(exact.flow, range(10))
    assert torch.equal(whole.images, again.images)
    split = sample(exact.flow, range(10), batch=3)
    torch.testing.assert_close(split.images, whole.images, rtol=1e-12, atol=1e-12)
    turned = sample(exact.flow, [9, 4, 0])
    torch.testing.assert_close(turned.images, whole.images[[9, 4, 0]], rtol=1e-12, atol=1e-12)
    assert turned.seeds == (9, 4, 0)
    assert not torch.allclose(whole.images[0], whole.images[1])


def test_reconstructions_do_not_depend_on_the_batch(exact):
    whole = reconstruct(exact.autoencoder, exact.points[:9], mode="perceptual", seed=3)
    split = reconstruct(exact.autoencoder, exact.points[:9], mode="perceptual", seed=3, batch=4)
    torch.testing.assert_close(split.bridge, whole.bridge, rtol=1e-12, atol=1e-12)


def test_samples_of_a_two_sided_bridge_start_from_the_other_end_of_the_data(exact):
    """x1 = x0 + 3 for every pair, so sample i is the i-th x0; seeds beyond the data begin again."""
    seeds = [0, 1, 2, 3000, 3001]
    found = sample(exact.shift, seeds)
    torch.testing.assert_close(found.images, exact.points[[0, 1, 2, 0, 1]], rtol=1e-6, atol=1e-6)


def test_labels_come_in_turn_or_as_asked_and_an_absent_one_is_known_to_be(exact):
    network = exact.labelled.bridge.network
    assert sample(exact.labelled, range(5)).cond["label"].tolist() == [0, 1, 2, 0, 1]
    assert network.labels.tolist() == [0, 1, 2, 0, 1]
    assert sample(exact.labelled, range(4), label=2).cond["label"].tolist() == [2, 2, 2, 2]
    given = Condition({"label": torch.tensor([1, 1])}).drop("label", torch.tensor([True, False]))
    sample(exact.labelled, range(2), cond=given)
    assert network.present.tolist() == [False, True]
    interpolate(exact.labelled, torch.zeros(2, 2, dtype=torch.float64), frames=2)
    assert network.present.tolist() == [False, False]


def test_what_cannot_be_done_is_told(exact):
    points = exact.points
    with pytest.raises(ArgumentError, match="label: found 3, expected 0 to 2"):
        sample(exact.labelled, range(4), label=3)
    with pytest.raises(CapabilityError, match="trained without labels"):
        sample(exact.flow, range(4), label=1)
    with pytest.raises(CapabilityError, match="guidance needs one of the conditions"):
        sample(exact.flow, range(4), guidance=2.0)
    with pytest.raises(ArgumentError, match="cond: 'label' has 2 rows, expected 4"):
        sample(exact.labelled, range(4), cond=Condition({"label": torch.tensor([1, 1])}))
    with pytest.raises(ArgumentError, match="n: found 0"):
        sample(exact.flow, [])
    told = r"reconstruct needs an EncodingBridge; 'flow' is not one\. These are: .*dbae"
    with pytest.raises(CapabilityError, match=told):
        reconstruct(exact.flow, points[:2])
    with pytest.raises(ArgumentError, match="mode: found 'exact'"):
        reconstruct(exact.autoencoder, points[:2], mode="exact")
    with pytest.raises(ArgumentError, match="images: found 3, expected pairs"):
        interpolate(exact.autoencoder, points[:3])
    with pytest.raises(ArgumentError, match="frames: found 1"):
        interpolate(exact.autoencoder, points[:2], frames=1)
    with pytest.raises(ArgumentError, match=r"found shape \(2, 3\), expected \(B, 2\)"):
        reconstruct(exact.autoencoder, torch.zeros(2, 3))


def test_results_show_shapes_in_place_of_numbers(tiny):
    made = tiny.sample(16)
    assert len(repr(made)) < 300
    assert "images=<16 × 1 × 8 × 8>" in repr(made)
    assert "seeds=(0, …, 15)" in repr(made)
    images = torch.zeros(2, 1, 8, 8)
    assert len(repr(tiny.reconstruct(images))) < 300
    assert len(repr(tiny.interpolate(images))) < 300
