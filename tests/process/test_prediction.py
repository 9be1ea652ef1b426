"""What a network of one direction predicts: inverses, closed forms, and targets that stay bounded."""

import pytest
import torch
from torch.testing import assert_close

from latentsb.process.coupling import Pair
from latentsb.process.path import PinnedPath
from latentsb.process.prediction import PREDICTIONS, DriftItself, EndPoint, Scaled
from latentsb.process.references import OU, VP, Brownian, Varying
from latentsb.randomness import Draws

DOUBLE = torch.float64
ALL = [DriftItself(), EndPoint(), Scaled()]
TOWARDS = ["x0", "x1"]


def points(reference, t, n=64):
    """Points of pinned paths between normal numbers, at the times t of shape (n,)."""
    draws = Draws.step(3, "points", 0, range(n))
    like = torch.zeros(n, 3, dtype=DOUBLE)
    pair = Pair(1 + draws.normal("x0", like), 2 * draws.normal("x1", like))
    return pair, PinnedPath(reference).at(t, pair, draws)


@pytest.mark.parametrize("towards", TOWARDS)
@pytest.mark.parametrize("prediction", ALL, ids=PREDICTIONS.word_of)
def test_a_drift_and_its_prediction_are_inverses(reference, t, prediction, towards):
    x = torch.randn(len(t), 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    drift = x.flip(0) * 3 - 1
    output = prediction.target(drift, x, t, reference, towards)
    back = prediction.drift(output, x, t, reference, towards)
    # The pull towards an end is the drift less the reference's own, which near t = 0 or 1 is 1e4 times as small.
    assert_close(back, drift, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("prediction", ALL, ids=PREDICTIONS.word_of)
def test_single_precision_round_trips_to_a_millionth(prediction):
    t = torch.tensor([1e-3, 0.2, 0.5, 0.8, 1 - 1e-3], dtype=DOUBLE)
    for reference in (Brownian(sigma=0.7), OU(theta=1.7, sigma=0.6), VP()):
        for towards in TOWARDS:
            x, drift = torch.linspace(-2, 2, 5)[:, None], torch.linspace(1, 3, 5)[:, None]
            output = prediction.target(drift, x, t, reference, towards)
            assert output.dtype == torch.float32
            again = prediction.target(prediction.drift(output, x, t, reference, towards), x, t, reference, towards)
            assert_close(again, output, rtol=2e-6, atol=2e-6)


def test_the_predicted_end_is_the_end(reference):
    t = torch.linspace(0.01, 0.99, 64, dtype=DOUBLE)
    pair, point = points(reference, t)
    assert_close(EndPoint().target(point.b_f, point.x, t, reference, "x1"), pair.x1, rtol=1e-6, atol=1e-6)
    assert_close(EndPoint().target(point.b_b, point.x, t, reference, "x0"), pair.x0, rtol=1e-6, atol=1e-6)


def test_scaled_targets_of_brownian_motion():
    t = torch.linspace(0.01, 0.99, 64, dtype=DOUBLE)
    pair, point = points(Brownian(sigma=0.7), t)
    left, run = (1 - t).sqrt()[:, None], t.sqrt()[:, None]
    forward = Scaled().target(point.b_f, point.x, t, Brownian(sigma=0.7), "x1")
    backward = Scaled().target(point.b_b, point.x, t, Brownian(sigma=0.7), "x0")
    assert_close(forward, (pair.x1 - point.x) / left, rtol=1e-9, atol=1e-9)
    assert_close(backward, (pair.x0 - point.x) / run, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("towards", TOWARDS)
def test_only_the_plain_drift_has_targets_that_grow_without_bound(towards):
    near = 1e-4 if towards == "x0" else 1 - 1e-4
    t = torch.full((4096,), near, dtype=DOUBLE)
    reference = Brownian(sigma=1.0)
    _, point = points(reference, t, len(t))
    drift = point.b_f if towards == "x1" else point.b_b
    spread = {type(p): float(p.target(drift, point.x, t, reference, towards).var()) for p in ALL}
    # (x1 − x_t)/(1 − t) has the variance t/(1 − t) of its noise alone.
    assert 0.9e4 < spread[DriftItself] < 1.1e4
    assert spread[Scaled] < 1.1
    assert spread[EndPoint] < 4.5


@pytest.mark.parametrize("prediction", ALL, ids=PREDICTIONS.word_of)
def test_drifts_are_finite_where_a_trajectory_departs(prediction):
    x = torch.ones(2, 3)
    for reference in (Brownian(sigma=1.0), Varying(), OU(), VP()):
        for towards, t in (("x1", 0.0), ("x0", 1.0)):
            found = prediction.drift(0.5 * x, x, torch.tensor(t, dtype=DOUBLE), reference, towards)
            assert found.isfinite().all()
            assert found.dtype == torch.float32
