"""Figures of codes that are their factors, mix them, double them, or know nothing of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.model_selection import KFold

from latentsb.data.sprites import Sprites
from latentsb.errors import CapabilityError
from latentsb.metrics.base import Data
from latentsb.metrics.disentanglement import (
    Disentanglement,
    _binned,
    binary,
    dci,
    importances_of,
    information,
    latent_aurocs,
    mig,
    redundancy,
    sap,
    tad,
)
from latentsb.metrics.targets import Target
from latentsb.tensors import Condition

GRID = np.array(list(itertools.product(range(8), range(8), range(8), range(8))), dtype=float)
"""Four independent factors of eight values, all combinations once."""
CLASSES = [column.astype(int) for column in GRID.T]
NUMBERS = [Target(f"f{k}", column) for k, column in enumerate(GRID.T)]
ABOVE = np.concatenate([binary(target) for target in NUMBERS], 1)


def gauss(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def turned(angle, codes=GRID):
    """The first two numbers of the code turned into each other."""
    rotation = np.eye(codes.shape[1])
    rotation[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return (codes - codes.mean(0)) @ rotation


def test_aurocs_are_those_of_scikit_learn_of_the_better_sign():
    codes, attributes = np.round(gauss(300, 3), 1), gauss(300, 2, seed=1) > 0.5
    found = latent_aurocs(codes, attributes)
    for i, j in itertools.product(range(2), range(3)):
        one = roc_auc_score(attributes[:, i], codes[:, j])
        assert found[i, j] == pytest.approx(max(one, 1 - one), abs=1e-12)
    assert np.allclose(found, latent_aurocs(-3 * codes + 1, attributes))


def test_information_is_that_of_scikit_learn():
    a, b = np.random.default_rng(0).integers(0, [[4], [7]], size=(2, 500))
    assert information(a, b) == pytest.approx(mutual_info_score(a, b), abs=1e-12)
    assert information(a, a) == pytest.approx(-sum(p * math.log(p) for p in np.bincount(a) / 500), abs=1e-12)


def test_bins_have_equal_widths_and_the_last_one_its_end():
    values = np.stack([np.arange(33) / 8 - 1, np.full(33, 7.0)], 1)
    assert _binned(values, 16)[:, 0].tolist() == [min(k // 2, 15) for k in range(33)]
    assert (_binned(values, 16)[:, 1] == 0).all()


def test_tad_of_one_number_for_each_attribute():
    """`z_i = y_i + noise`: each attribute adds its AUROC less one half, up to the best of the other numbers."""
    n, k = 8000, 6
    attributes = gauss(n, k, seed=2) > 0
    codes = 2.0 * attributes + gauss(n, k, seed=3)
    scores, counts = tad(codes, attributes)
    area = 0.5 * math.erfc(-(2 / math.sqrt(2)) / math.sqrt(2))
    assert counts.tolist() == [k] * 5
    # The largest of k − 1 distances from one half, each of standard deviation 1/√(12 n p q), n here four fifths.
    noise = math.sqrt(1 / (12 * 0.8 * n / 4))
    assert k * (area - 0.5 - 3.5 * noise) < scores.mean() < k * (area - 0.5)


def test_tad_by_hand():
    """Of the four fifths that each fold leaves, attribute by attribute and number by number."""
    n = 60
    attributes = gauss(n, 3, seed=20) > 0
    codes = 2.0 * attributes[:, [0, 0, 1, 2]] + gauss(n, 4, seed=21)
    expected = []
    for kept, left in KFold(5, shuffle=True, random_state=0).split(codes):
        assert (len(kept), len(left)) == (48, 12)
        y, z, total, captured = attributes[kept], codes[kept], 0.0, 0
        for i in range(3):
            areas = sorted((max(a, 1 - a) for a in (roc_auc_score(y[:, i], column) for column in z.T)), reverse=True)
            others = [mutual_info_score(y[:, i], y[:, k]) for k in range(3) if k != i]
            if areas[0] >= 0.75 and max(others) <= 0.2 * mutual_info_score(y[:, i], y[:, i]):
                total, captured = total + areas[0] - areas[1], captured + 1
        expected.append((total, captured))
    scores, counts = tad(codes, attributes)
    assert list(zip(scores, counts, strict=True)) == [(pytest.approx(a, abs=1e-12), b) for a, b in expected]
    assert len({round(a, 6) for a, _ in expected}) > 1
    assert max(b for _, b in expected) > 0


def test_a_doubled_number_and_noise_have_no_tad():
    n, k = 4000, 4
    attributes = gauss(n, k, seed=4) > 0
    codes = 2.0 * attributes + gauss(n, k, seed=5)
    scores, counts = tad(np.concatenate([codes, -codes], 1), attributes)
    assert abs(scores).max() < 1e-12
    assert counts.tolist() == [k] * 5
    scores, counts = tad(gauss(n, k, seed=6), attributes)
    assert (scores == 0).all()
    assert (counts == 0).all()


def test_redundant_attributes_do_not_count():
    n = 8000
    attributes = gauss(n, 3, seed=7) > 0
    same = attributes[:, :1] ^ (np.random.default_rng(8).random((n, 1)) < 0.05)
    flat = np.zeros((n, 1), dtype=bool)
    found = redundancy(np.concatenate([attributes, same, flat], 1))
    h = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    error = 4 * math.sqrt(0.05 * 0.95 / n) * math.log(19) / math.log(2)  # of the share that differs, and of h by it
    assert found[[0, 3]] == pytest.approx(1 - h / math.log(2), abs=error)
    assert (found[1:3] < 0.01).all()
    assert found[4] == 1
    codes = 3.0 * attributes + gauss(n, 3, seed=9)
    assert tad(codes, attributes)[1].tolist() == [3] * 5
    assert tad(codes, np.concatenate([attributes, same], 1))[1].tolist() == [2] * 5


def test_what_attributes_targets_become():
    assert binary(Target("x", np.array([0.0, 1, 2, 3])))[:, 0].tolist() == [False, False, True, True]
    assert binary(Target("seldom", np.array([0.0, 0, 0, 1]), 2))[:, 0].tolist() == [False, False, False, True]
    assert binary(Target("often", np.array([0.0, 1, 1, 1]), 2))[:, 0].tolist() == [False, True, True, True]
    assert binary(Target("shape", np.array([0.0, 1, 2]), 3))[:, 0].tolist() == [False, False, True]
    assert (binary(Target("c", np.arange(5.0), 5)) == np.eye(5, dtype=bool)).all()
    # Of three equal classes, one against the rest, each would be redundant; of four none is.
    three, four = (redundancy(np.arange(12)[:, None] % k == np.arange(k)) for k in (3, 4))
    assert (three > 0.2).all()
    assert (four < 0.2).all()


def test_factors_themselves_are_at_the_extremes():
    assert mig(GRID, CLASSES) == pytest.approx(1, abs=1e-12)
    assert sap(GRID, NUMBERS, 0) == pytest.approx(1, abs=1e-12)
    named = [Target("c", column, 8) for column in GRID.T]
    assert sap(GRID, named, 0) == pytest.approx(1 - 1 / 8, abs=0.05)  # the second best number guesses
    importances, informative = importances_of(GRID, NUMBERS, 0)
    assert dci(importances) == pytest.approx((1, 1), abs=0.01)
    assert informative > 0.999
    scores, counts = tad(GRID, ABOVE)
    assert counts.tolist() == [4] * 5
    assert scores.mean() == pytest.approx(4 * 0.5, abs=4 * 0.05)


def test_turning_lowers_everything():
    angles = [0.0, math.pi / 12, math.pi / 6, math.pi / 4]
    rows = []
    for angle in angles:
        codes = turned(angle)
        d, c = dci(importances_of(codes, NUMBERS, 0)[0])
        rows.append([mig(codes, CLASSES), sap(codes, NUMBERS, 0), d, c, tad(codes, ABOVE)[0].mean()])
        # Squared correlations are cos² and sin²; two factors of four are turned.
        assert rows[-1][1] == pytest.approx((2 + 2 * math.cos(2 * angle)) / 4, abs=1e-9)
    assert (np.diff(rows, axis=0)[:, 1:] < 0).all()
    assert (
        max(row[0] for row in rows[1:]) < 0.7 < rows[0][0]
    )  # a turned lattice falls into bins of equal width by chance
    # Halfway the two numbers are equal for both factors: two of the four keep all that they had.
    assert rows[-1][0] == pytest.approx(0.5, abs=0.02)
    assert rows[-1][4] == pytest.approx(1.0, abs=0.12)


def test_dci_in_closed_form():
    assert dci(np.eye(3)) == pytest.approx((1, 1))
    assert dci(np.ones((3, 3))) == pytest.approx((0, 0), abs=1e-12)
    assert dci(np.zeros((2, 3))) == (0, 0)
    # A number counts by its share of all importance: nine tenths of it tell of both factors alike.
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(3)
    assert dci(np.array([[0.9, 0.9], [0.1, 0.0], [0.0, 0.1]])) == pytest.approx((0.1, 1 - h))
    # Nothing tells of the second factor: it is not complete.
    assert dci(np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx((1, 0.5))
    p = math.cos(0.3) ** 2
    h = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert dci(np.array([[p, 1 - p], [1 - p, p]])) == pytest.approx((1 - h, 1 - h))
    # Two numbers for one factor, one for the other: all are pure, the first factor is not complete.
    both = dci(np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]))
    assert both == pytest.approx((1, (1 - math.log(2) / math.log(3) + 1) / 2))


def test_rare_classes_count_as_much_as_others():
    """A number is 1 in the class of one tenth, and in two fifths of the rest: it is right in all and in .6, so .8."""
    n = 40_000
    rng = np.random.default_rng(22)
    label = rng.random(n) < 0.1
    codes = np.stack([label | (rng.random(n) < 0.4), np.zeros(n)], 1).astype(float)
    # The other number is right in one class of the two. Half of the rest is tested.
    error = 4 * math.sqrt(0.4 * 0.6 / (0.9 * n / 2)) / 2
    assert sap(codes, [Target("rare", label.astype(float), 2)], 0) == pytest.approx(0.8 - 0.5, abs=error)


def test_noise_tells_nothing():
    n = len(GRID)
    codes = gauss(n, 4, seed=10)
    # 2 N I is chi-squared with (20 − 1)(8 − 1) degrees of freedom, at most, since some of the bins are empty.
    largest = chi2.ppf(1 - 1e-4, 19 * 7) / (2 * n)
    assert 0 <= mig(codes, CLASSES) < largest / math.log(8)
    # N r² is chi-squared with one; the mean over factors is below the largest.
    assert 0 <= sap(codes, NUMBERS, 0) < chi2.ppf(1 - 1e-4, 1) / n
    importances, informative = importances_of(codes, NUMBERS, 0)
    assert informative < 0.02
    assert max(dci(importances)) < 0.05
    assert (tad(codes, ABOVE)[1] == 0).all()


def test_the_metric_on_sprites(parts):
    """A code of the centre of mass and the area: both positions belong to one number each."""
    source = Sprites(size=32, n=1500)
    data = Data(source, lambda: source, held_out=True)
    coder = parts.Coder(torch.zeros(1, 3))
    grid = (torch.arange(32) + 0.5) / 32

    def encode(x0, draws=None, images=None):
        lit = (x0[:, 0] + 1) / 2
        area = lit.sum((1, 2))
        across, down = (lit.sum(1) @ grid / area, lit.sum(2) @ grid / area)
        return Condition({"z": torch.stack([across, down, area], 1)})

    coder.encode = encode
    stand = parts.Stand(torch.zeros(20, 1), bridge=coder)
    stand.train = stand.held = data
    found = Disentanglement(images=1500).measure(stand)
    rows = {name: values for name, values in found.tables[0].rows}
    assert list(rows) == ["z", "PCA, 3 components", "random projection"]
    value, _, attrs, gap, *_ = rows["z"]
    assert attrs == 3  # both positions and the scale; the area confuses shapes, and knows no orientation
    assert value == found.value > 1.2
    assert value > 3 * rows["random projection"][0]
    assert gap > 2 * rows["random projection"][3]
    with pytest.raises(CapabilityError, match="here is one"):
        Disentanglement().measure(
            parts.Stand(torch.zeros(20, 1), bridge=parts.Coder(torch.zeros(1, 1)), labels=torch.arange(20) % 2)
        )
