"""Probes on codes that hold their targets, or nothing of them; scores against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from latentsb.bridges.dbae import DBAE
from latentsb.channels import Fixed
from latentsb.data.arrays import ArraySource
from latentsb.data.sprites import Sprites
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.laws import Ends
from latentsb.metrics import codes as module
from latentsb.metrics import probes as probing
from latentsb.metrics.base import Data
from latentsb.metrics.probes import Probes, probe
from latentsb.metrics.scores import auroc, average_precision, interval, pearson, resampled, squared_error
from latentsb.metrics.targets import Target, _number, split_rows, targets_of
from latentsb.networks.base import Encoder, Network
from latentsb.randomness import Draws

RNG = np.random.default_rng(0)
ONCE = np.ones((1, 4000))


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_those_of_scikit_learn(ties):
    n = 300
    truth, score = RNG.random(n) < 0.3, RNG.standard_normal(n)
    score = np.round(score) if ties else score
    weights = resampled(n, 20, 1)
    found = average_precision(truth, score, weights), auroc(truth, score, weights)
    for k, w in enumerate(weights):
        assert found[0][k] == pytest.approx(average_precision_score(truth, score, sample_weight=w), abs=1e-12)
        assert found[1][k] == pytest.approx(roc_auc_score(truth, score, sample_weight=w), abs=1e-12)


def test_scores_of_numbers():
    x, y = gauss(2, 200, seed=1)
    weights = resampled(200, 3, 2)
    for k, w in enumerate(weights):
        rows = np.repeat(np.arange(200), w.astype(int))
        assert pearson(x, y, weights)[k] == pytest.approx(np.corrcoef(x[rows], y[rows])[0, 1], abs=1e-12)
        assert squared_error(x, y, weights)[k] == pytest.approx(((x - y)[rows] ** 2).mean(), abs=1e-12)
    assert pearson(x, np.ones(200), weights).tolist() == [0, 0, 0, 0]


def test_the_bootstrap_has_the_spread_of_a_mean():
    x = gauss(400, seed=3)
    means = resampled(400, 2000, 0) @ x / 400
    figure, low, high = interval(means)
    assert figure == pytest.approx(x.mean())
    # Quantiles of 2000 resamples have a relative error of about 3 %.
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)


def test_linear_targets_are_read_perfectly_and_noise_not_at_all():
    """Labels that are a linear function of the code: AP 1 and r 1; of an unrelated code: the prevalence and 0."""
    n, fitted = 6000, 2000
    code, other = gauss(n, 5, seed=4), gauss(n, 5, seed=5)
    value = code @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + 7
    rare = Target("rare", (value > np.quantile(value, 0.9)).astype(float), 2)
    told = probe(code, rare, fitted, ONCE, 0.2, 0)
    assert (told["AP"][0], told["AUROC"][0]) == pytest.approx((1, 1), abs=2e-3)
    told = probe(other, rare, fitted, ONCE, 0.2, 0)
    share = rare.values[fitted:].mean()
    assert told["AUROC"][0] == pytest.approx(0.5, abs=4 * math.sqrt(1 / (12 * 4000 * share * (1 - share))))
    assert told["AP"][0] == pytest.approx(share, abs=4 * math.sqrt(share / 4000) + 0.01)
    told = probe(code, Target("number", value), fitted, ONCE, 0.2, 0)
    assert told["r"][0] == pytest.approx(1, abs=1e-9)
    assert told["MSE / variance"][0] < 1e-9
    told = probe(other, Target("number", value), fitted, ONCE, 0.2, 0)
    assert abs(told["r"][0]) < 4 / math.sqrt(4000)
    assert told["MSE / variance"][0] == pytest.approx(1, abs=4 * math.sqrt(2 / 4000) + 0.02)


def half_known(n, fitted):
    """Codes of unequal spreads, of which the tested ones are elsewhere, and rows of which nothing is known."""
    x = gauss(n, 3, seed=30) * [1.0, 5.0, 0.2] + [0.0, 3.0, -1.0]
    x[fitted:] = 1.5 * x[fitted:] + 0.3
    return x, np.random.default_rng(31).random(n) < 0.3


@pytest.mark.parametrize("penalty", [0.3, 10.0])
def test_ridge_regression_by_hand(monkeypatch, penalty):
    """`w = (XᵀX/n + penalty)⁻¹ Xᵀy/n` of features in units of the fitted ones; resamples stay with their samples."""
    monkeypatch.setattr(probing, "PENALTIES", (penalty,))
    n, fitted = 400, 250
    x, hidden = half_known(n, fitted)
    y = x @ np.array([1.0, 0.3, -2.0]) + gauss(n, seed=32) + 5
    weights = resampled(n - fitted, 3, 4)
    told = probe(x, Target("y", np.where(hidden, np.nan, y)), fitted, weights, 0.2, 0)
    train, test = np.flatnonzero(~hidden[:fitted]), fitted + np.flatnonzero(~hidden[fitted:])
    mean, spread, centre = x[train].mean(0), x[train].std(0), y[train].mean()
    u, v = (x[train] - mean) / spread, (x[test] - mean) / spread
    w = np.linalg.solve(u.T @ u / len(u) + penalty * np.eye(3), u.T @ (y[train] - centre) / len(u))
    guess = v @ w + centre
    for k, own in enumerate(weights[:, test - fitted]):
        rows = np.repeat(np.arange(len(test)), own.astype(int))
        assert told["r"][k] == pytest.approx(np.corrcoef(guess[rows], y[test][rows])[0, 1], abs=1e-9)
        error = ((guess - y[test])[rows] ** 2).mean() / y[train].var()
        assert told["MSE / variance"][k] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [1e-3, 3.0])
def test_logistic_regression_by_hand(monkeypatch, penalty, classes):
    """The mean loss of a sample and `penalty |w|²/2`, of features in units of the fitted ones; by probability."""
    monkeypatch.setattr(probing, "PENALTIES", (penalty,))
    n, fitted = 500, 300
    x, hidden = half_known(n, fitted)
    y = np.digitize(x @ np.array([1.0, 0.3, -2.0]) + 3 * gauss(n, seed=33), [0.0, 4.0][: classes - 1]) % classes
    weights = resampled(n - fitted, 3, 4)
    told = probe(x, Target("y", np.where(hidden, np.nan, y), classes), fitted, weights, 0.2, 0)
    train, test = np.flatnonzero(~hidden[:fitted]), fitted + np.flatnonzero(~hidden[fitted:])
    mean, spread = x[train].mean(0), x[train].std(0)
    model = LogisticRegression(C=1 / (penalty * len(train)), max_iter=300).fit((x[train] - mean) / spread, y[train])
    chances = model.predict_proba((x[test] - mean) / spread)
    for k, own in enumerate(weights[:, test - fitted]):
        asked = [1] if classes == 2 else range(3)
        aps = [average_precision_score(y[test] == c, chances[:, c], sample_weight=own) for c in asked]
        assert told["AP"][k] == pytest.approx(np.mean(aps), abs=1e-9)
        areas = [roc_auc_score(y[test] == c, chances[:, c], sample_weight=own) for c in asked]
        assert told["AUROC"][k] == pytest.approx(np.mean(areas), abs=1e-9)


def test_the_penalty_is_the_best_of_the_validation(monkeypatch):
    """Many numbers of noise and few samples: a penalty among two is right, whichever place it has."""
    n, fitted = 2060, 60
    x = gauss(n, 40, seed=34)
    y = x[:, 0] + gauss(n, seed=35)
    told = {}
    for penalties in ((1e-6,), (0.5,), (0.5, 1e-6), (1e-6, 0.5)):
        monkeypatch.setattr(probing, "PENALTIES", penalties)
        told[penalties] = probe(x, Target("y", y), fitted, np.ones((1, n - fitted)), 0.3, 0)["r"][0]
    assert told[0.5, 1e-6] == told[1e-6, 0.5] == told[0.5,] > told[1e-6,] + 0.1


def test_noisy_labels_reach_the_best_rate_that_exists():
    """A threshold of z + noise: the AUROC of z is that of two normal laws, and r is that of the signal."""
    n, fitted = 8000, 4000
    z, noise = gauss(n, 1, seed=6), gauss(n, seed=7)
    told = probe(z, Target("number", z[:, 0] + noise), fitted, ONCE, 0.2, 0)
    assert told["r"][0] == pytest.approx(math.sqrt(0.5), abs=4 * 0.5 / math.sqrt(4000))
    assert told["MSE / variance"][0] == pytest.approx(
        0.5, abs=4 * 0.5 * math.sqrt(2 / 4000) + 4 * 0.5 * math.sqrt(2 / 4000)
    )
    label = RNG.random(n) < 0.5
    told = probe(z + label[:, None] * 1.5, Target("label", label.astype(float), 2), fitted, ONCE, 0.2, 0)
    assert told["AUROC"][0] == pytest.approx(norm.cdf(1.5 / math.sqrt(2)), abs=4 / math.sqrt(12 * 4000 / 4))


def test_classes_and_unknown_cells():
    n, fitted = 3000, 1500
    z = gauss(n, 3, seed=8)
    label = z.argmax(1).astype(float)
    known = label.copy()
    known[RNG.random(n) < 0.4] = np.nan
    weights = np.ones((1, n - fitted))
    whole, part = (probe(z, Target("c", v, 3), fitted, weights, 0.2, 0) for v in (label, known))
    assert whole["AP"][0] > 0.98  # the regions of argmax are those of a linear classifier
    assert part["AP"][0] == pytest.approx(whole["AP"][0], abs=0.02)
    z[np.isnan(known)] = 1e6  # what is not known has no influence
    assert probe(z, Target("c", known, 3), fitted, weights, 0.2, 0)["AP"][0] == part["AP"][0]


def test_held_out_samples_choose_nothing():
    """Changing the targets of the tested samples changes no prediction: the figures follow from the old scores."""
    n, fitted = 400, 200
    z = gauss(n, 4, seed=9)
    y = z[:, 0] + gauss(n, seed=10)
    first = probe(z, Target("y", y), fitted, np.ones((1, 200)), 0.2, 0)
    turned = np.concatenate([y[:fitted], -y[fitted:]])
    assert probe(z, Target("y", turned), fitted, np.ones((1, 200)), 0.2, 0)["r"][0] == pytest.approx(-first["r"][0])


def test_rows_never_meet():
    train, held = (Data(ArraySource(torch.zeros(100, 1)), dict, held_out=h) for h in (False, True))
    fitted, tested = split_rows(train, None, 60, 30, 0)
    assert not set(fitted.tolist()) & set(tested.tolist())
    assert (len(fitted), len(tested)) == (60, 30)
    fitted, tested = split_rows(train, held, 10**4, 50, 0)
    assert (len(fitted), len(tested)) == (100, 50)
    with pytest.raises(CapabilityError, match="ten are the least"):
        split_rows(train, held, 10, 9, 0)


def sprites(n=1200):
    source = Sprites(size=32, n=n, colours=3)
    return Data(source, lambda: source, held_out=False)


def test_targets_of_sprites():
    data = sprites(300)
    found = {t.name: t for t in targets_of(((data, np.arange(200)), (data, np.arange(200, 300))))}
    assert {name: t.classes for name, t in found.items()} == {
        "colour": 3,
        "shape": 3,
        "scale": 0,
        "orientation": 0,
        "position x": 0,
        "position y": 0,
    }
    truth = data.source.classes_of(data.source.chosen)
    assert (found["shape"].values == truth[:, 2]).all()
    assert found["scale"].values == pytest.approx(0.5 + 0.1 * truth[:, 3])


def test_of_two_values_the_larger_one_is_asked_for():
    """What AP is of: the second class, whichever is rarer, and whatever the numbers are."""
    column = np.array([5.0, 2.0, np.nan, 5.0, 5.0])
    for sign, words in ((1, ("2", "5")), (-1, ("-5", "-2"))):
        found = _number("a", sign * column)
        assert np.array_equal(found.values, (sign * column == max(2 * sign, 5 * sign)) + 0 * column, equal_nan=True)
        assert (found.classes, found.words) == (2, words)


def test_targets_of_a_table(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(
        "key,mood,age,glad\n" + "".join(f"s{k},{'ab'[k % 2]},{k},{'' if k == 3 else k % 2}\n" for k in range(9))
    )
    data = sprites(9)
    with pytest.raises(CapabilityError, match="no names"):
        targets_of(((data, np.arange(9)),), path, ["age"])
    data.source.names = lambda: [f"s{k}" for k in range(9)]
    *_, mood, age, glad = targets_of(((data, np.arange(9)),), path, ["mood", "age", "glad"])
    assert (mood.classes, mood.words, mood.values.tolist()) == (2, ("a", "b"), [0, 1] * 4 + [0])
    assert (age.classes, age.values.tolist()) == (0, list(range(9)))
    assert glad.classes == 2
    assert np.flatnonzero(~glad.known).tolist() == [3]
    with pytest.raises(DataError, match="no column 'agee'"):
        targets_of(((data, np.arange(9)),), path, ["agee"])
    with pytest.raises(ArgumentError, match="belong together"):
        Probes(columns=("age",))


class Pixels(Encoder):
    """The mean of each quarter of the image."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).mean(1).flatten(1) * 3


class Silent(Network):
    def forward(self, x, t, cond):
        return torch.zeros_like(x)


def noisy_bridge(spec, sigma=0.3):
    return DBAE(
        Ends(spec),
        network=Silent,
        encoder=Pixels,
        decoder=lambda dim, out: torch.nn.Linear(dim, 1),
        z_dim=4,
        channel=Fixed(sigma=sigma),
    )


def test_codes_of_draws_belong_to_rows():
    data = sprites(70)
    bridge = noisy_bridge(data.source.spec)
    rows = np.arange(5, 65)
    mean, cond = module.codes_of(bridge, data, rows, batch=16)
    assert torch.equal(cond["attributes"], data.source.read(rows).cond["attributes"])
    assert torch.equal(mean, module.codes_of(bridge, data, rows, batch=60)[0])
    draws = Draws.step(0, "here", 0, rows.tolist())
    one, other = (module.codes_of(bridge, data, rows, draws=draws, batch=b)[0] for b in (7, 60))
    assert torch.equal(one, other)
    assert torch.equal(one, mean + 0.3 * draws.normal("code", mean))
    assert bridge.training


def test_the_metric_on_sprites(parts):
    train, held = sprites(1000), sprites(400)
    held.source.chosen = held.source.chosen[::-1].copy()
    stand = parts.Stand(torch.zeros(20, 1), bridge=noisy_bridge(train.source.spec))
    stand.train, stand.held = train, Data(held.source, lambda: held.source, held_out=True)
    stand.untrained = lambda: stand.bridge
    found = Probes(images=400, fitted_on=1000, resamples=50).measure(stand)
    overview, each = found.tables
    rows = {name: values for name, values in overview.rows}
    assert list(rows) == ["z", "z, drawn", "PCA, 4 components", "untrained encoder", "random projection", "chance"]
    assert rows["untrained encoder"] == rows["z"]
    assert rows["chance"][2] == 0.5
    assert rows["chance"][0] == pytest.approx(1 / 3, abs=1e-9)  # two targets of three classes each
    assert found.value == rows["z"][0]
    told = {name: values for name, values in each.rows}
    # Four quarters tell the position, roughly, and their noise hides some of it.
    assert told["position x"][1] > 0.6
    assert rows["z, drawn"][3] < rows["z"][3]
    assert found.details["z − PCA"] == pytest.approx(found.value - found.floors["PCA, 4 components"])


def test_without_anything_to_ask_for_it_is_refused(parts):
    stand = parts.Stand(torch.zeros(50, 3), bridge=parts.Coder(torch.eye(3)))
    with pytest.raises(CapabilityError, match="labels or attributes"):
        Probes().measure(stand)
