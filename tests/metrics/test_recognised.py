"""The share of recognised samples: real digits reach the floor of real digits, noise that of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentsb.data.arrays import Digits
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS
from latentsb.metrics.recognised import Recognised
from latentsb.randomness import numpy_generator
from latentsb.registry import UnknownPartError


@pytest.fixture(scope="module")
def digits():
    return Digits().read(np.arange(1797))


@pytest.fixture
def measure(parts):
    def figure(digits, samples, **settings):
        subject = parts.Stand(digits.x0, labels=digits.cond["label"], samples=samples)
        return Recognised(**settings).measure(subject)

    return figure


def test_held_out_digits_are_their_own_floor(digits, measure):
    order = numpy_generator(0, "recognised").permutation(1797)
    held = digits.x0[order[898:]]
    found = measure(digits, held)
    assert found.value == found.floors["real, held out"]
    assert found.details["classes"] == 10
    assert sum(found.details["per_class"].values()) == round(found.value * len(held))
    assert found.details["accuracy_held_out"] > 0.9


def test_noise_reaches_the_floor_of_noise_and_a_gaussian_its_own(digits, measure):
    n = 4000
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.standard_normal((n, 1, 8, 8)).clip(-1, 1))
    found = measure(digits, noise)
    real = digits.x0.flatten(1).double().numpy()
    gaussian = rng.multivariate_normal(real.mean(0), np.cov(real.T), n).clip(-1, 1).reshape(-1, 1, 8, 8)
    other = measure(digits, torch.from_numpy(gaussian))
    for value, floor in ((found.value, "noise"), (other.value, "Gaussian of the pixels")):
        p = found.floors[floor]
        assert abs(value - p) < 4 * math.sqrt(p * (1 - p) * (1 / n + 1 / 2000))
    assert found.floors["noise"] < found.floors["real, held out"] / 2


def test_one_digit_over_and_over_is_one_class(digits, measure):
    zero = digits.x0[digits.cond["label"] == 0][:1].expand(50, -1, -1, -1)
    found = measure(digits, zero)
    assert found.value in (0.0, 1.0)
    assert found.details["classes"] == found.value
    assert found.protocol["confidence"] == 0.9


def test_a_higher_confidence_is_met_by_fewer(digits, measure):
    shares = [measure(digits, digits.x0, confidence=c).value for c in (0.5, 0.9, 0.99)]
    assert shares[0] > shares[1] > shares[2]


def test_labels_are_needed_and_words_are_told(digits, parts):
    subject = parts.Stand(digits.x0, samples=digits.x0)
    with pytest.raises(CapabilityError, match="needs labelled data"):
        Recognised().require(subject)
    assert subject.drawn == 0
    with pytest.raises(UnknownPartError, match="Did you mean 'recognised'"):
        METRICS["recognized"]
