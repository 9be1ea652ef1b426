"""Disentanglement: whether single numbers of a code answer to single factors of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentsb.bridge import EncodingBridge, require
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Row, Subject, Table
from latentsb.metrics.codes import MEAN, coders
from latentsb.metrics.targets import Target, targets_of
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, NonNegativeInt, enforce

__all__ = [
    "CAPTURED",
    "REDUNDANT",
    "Disentanglement",
    "binary",
    "dci",
    "information",
    "latent_aurocs",
    "mig",
    "redundancy",
    "sap",
    "tad",
]

CAPTURED, REDUNDANT = 0.75, 0.2
"""Least AUROC of an attribute that counts as captured, and the largest redundancy of one that counts at all."""
TREES, DEPTH = 10, 12
"""Of the random forests whose importances DCI is made of."""


@METRICS.register("disentanglement")
@dataclass(frozen=True, kw_only=True)
class Disentanglement(Metric):
    """TAD, ATTRS, MIG, DCI and SAP of mean codes, beside those of codes that nobody has learned.

    TAD adds, over captured attributes, how far the best AUROC of a single number of the code is above the second best;
    ATTRS counts these attributes. An attribute is captured if its best AUROC is at least .75, and if no other attribute
    tells more than a fifth of its entropy. Five folds; each uses its four fifths. A number with more than two values
    becomes an attribute by whether it is above its median, and so does the number of one of three classes; of four
    classes and more each becomes an attribute (each of three would be redundant by the rule above).

    MIG is the gap between the two largest informations that a number of the code, in 20 bins of equal width, has about
    a factor, over the factor's entropy. DCI comes from the importances of random forests (10 trees of depth 12, half of
    the samples, tested on the other). SAP is the gap between the two best scores of a single number: the squared
    correlation of factors with an order, and the balanced accuracy of thresholds for classes without one.

    Source: Yeats et al. 2022, NashAE (TAD, ATTRS); Chen et al. 2018, Isolating sources of disentanglement, Eq. 6;
    Eastwood and Williams 2018 (DCI); Kumar et al. 2018, DIP-VAE (SAP).

    Args:
        images: samples that are measured, at most.
        fitted_on: training samples, at most, that PCA is fitted to.
        folds: of TAD.
        bins: of each number of the code, and of factors that take more values than that and know no classes.
        batch: samples at a time.
        seed: of every choice.
    """

    images: Count = 10_000
    fitted_on: Count = 10_000
    folds: Count = 5
    bins: Count = 20
    batch: Count = 256
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """The bridge must encode to two numbers or more, and the data must have attributes or labels."""
        bridge = require(subject.bridge, EncodingBridge, "the metric 'disentanglement'")
        if not {"label", "attributes"} & subject.test.source.cond.keys():
            raise CapabilityError(f"the metric 'disentanglement' needs factors; the {subject.test.name} have none")
        if bridge.z_dim < 2:
            raise CapabilityError("the metric 'disentanglement' compares the numbers of a code, and here is one")

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is TAD, larger is better."""
        self.require(subject)
        bridge = require(subject.bridge, EncodingBridge, "the metric 'disentanglement'")
        rows = subject.test.rows(self.images, self.seed, "disentangled codes")
        targets = targets_of(((subject.test, rows),), batch=self.batch)
        kinds = coders(subject, bridge, fitted_on=self.fitted_on, seed=self.seed, batch=self.batch, drawn=False)
        figures: dict[str, dict[str, float]] = {}
        with subject.watch("disentanglement", len(kinds)) as advance:
            for name, code in kinds.items():
                codes = code(subject.test, rows).double().numpy()
                figures[name] = self.figures(codes, targets, self.bins_of(subject, targets))
                advance(1)
        protocol: dict[str, Any] = {
            **{key: value for key, value in vars(self).items() if key != "batch"},
            "measured_on": subject.test.name,
            "count": len(rows),
            "z_dim": bridge.z_dim,
            "targets": [target.name for target in targets],
            "attributes": "above the median, or one of four classes and more",
            "forest": [TREES, DEPTH],
        }
        columns = ["", "TAD", "± folds", "ATTRS", "MIG", "D", "C", "I", "SAP"]
        keys = ("tad", "tad_std", "attrs", "mig", "disentanglement", "completeness", "informativeness", "sap")
        table: list[Row] = [(name, [found[key] for key in keys]) for name, found in figures.items()]
        title = f"{len(rows)} samples of the {subject.test.name}, {len(targets)} factors, mean codes"
        return Measured(
            figures[MEAN]["tad"],
            {name: found["tad"] for name, found in figures.items() if name != MEAN},
            protocol,
            {"count": len(rows), "figures": figures, "measured on": subject.test.name},
            of="TAD",
            tables=(
                Table(title, columns, table, digits=3, better=dict.fromkeys(columns[1:2] + columns[3:], "higher")),
            ),
            hidden=frozenset(("figures",)),
            better="higher",
        )

    def bins_of(self, subject: Subject, targets: Sequence[Target]) -> list[np.ndarray]:
        """Class numbers of each target: its own, those of its factor, or bins of equal width."""
        factors = {factor.name: len(factor.values) for factor in subject.test.source.factors}
        found = []
        for target in targets:
            if target.classes:
                found.append(target.values.astype(int))
            elif target.name in factors:
                found.append(np.unique(target.values, return_inverse=True)[1])
            else:
                found.append(_binned(target.values[:, None], self.bins)[:, 0])
        return found

    def figures(self, codes: np.ndarray, targets: Sequence[Target], classes: Sequence[np.ndarray]) -> dict[str, float]:
        """All figures of codes (N, K) and targets; `classes` are those of the targets, each (N,)."""
        scores, counts = tad(codes, np.concatenate([binary(target) for target in targets], 1), self.folds)
        told = {"tad": float(scores.mean()), "tad_std": float(scores.std()), "attrs": float(counts.mean())}
        told["mig"] = mig(codes, classes, self.bins)
        importances, told["informativeness"] = importances_of(codes, targets, self.seed)
        told["disentanglement"], told["completeness"] = dci(importances)
        return told | {"sap": sap(codes, targets, self.seed)}


def binary(target: Target) -> np.ndarray:
    """Attributes that a target becomes, bool of shape (N, A); of two values the larger one, however seldom it is."""
    if target.classes > 3:
        each: np.ndarray = target.values[:, None] == np.arange(target.classes)
        return each
    distinct = np.unique(target.values)
    above: np.ndarray = target.values > (distinct[0] if len(distinct) == 2 else np.median(target.values))
    return above[:, None]


def latent_aurocs(codes: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """AUROC of each attribute by each number of the code, of the better sign; shape (A, K), NaN for a constant.

    Args:
        codes: shape (N, K).
        attributes: bool, shape (N, A).
    """
    from scipy.stats import rankdata

    ranks = rankdata(codes, axis=0)
    positive = attributes.sum(0).astype(np.float64)[:, None]
    negative = len(codes) - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (attributes.T.astype(np.float64) @ ranks - positive * (positive + 1) / 2) / (positive * negative)
    best: np.ndarray = np.maximum(area, 1 - area)
    return best


def redundancy(attributes: np.ndarray) -> np.ndarray:
    """`r_i = max_{k ≠ i} MI(y_i, y_k) / H(y_i)`, shape (A,); 1 for an attribute that never changes."""
    columns = [column.astype(int) for column in attributes.T]
    shared = np.array([[information(a, b) for b in columns] for a in columns])
    entropy = shared.diagonal().copy()
    np.fill_diagonal(shared, 0.0)
    return np.where(entropy > 0, shared.max(1) / np.where(entropy > 0, entropy, 1.0), 1.0)


def tad(codes: np.ndarray, attributes: np.ndarray, folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Total AUROC difference and number of captured attributes, each of shape (folds,).

    AUROCs do not depend on the scale of a number, so that codes need not be standardised.

    Args:
        codes: shape (N, K), K ≥ 2.
        attributes: bool, shape (N, A).
        folds: each leaves one part out.
    """
    from sklearn.model_selection import KFold

    scores, counts = [], []
    for kept, _ in KFold(folds, shuffle=True, random_state=0).split(codes):
        best = np.sort(latent_aurocs(codes[kept], attributes[kept]), axis=1)
        captured = (best[:, -1] >= CAPTURED) & (redundancy(attributes[kept]) <= REDUNDANT)
        scores.append((best[captured, -1] - best[captured, -2]).sum())
        counts.append(captured.sum())
    return np.array(scores), np.array(counts)


def information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two columns of small integers, by their frequencies, in nats."""
    wide = int(b.max()) + 1
    joint = np.bincount(a * wide + b, minlength=(int(a.max()) + 1) * wide).reshape(-1, wide) / len(a)
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / alone[seen])).sum())


def mig(codes: np.ndarray, classes: Sequence[np.ndarray], bins: int = 20) -> float:
    """Mutual information gap, mean over factors: `(I(z_1; v) − I(z_2; v)) / H(v)` of the two best numbers.

    Args:
        codes: shape (N, K), K ≥ 2.
        classes: of each factor, integers of shape (N,).
        bins: of equal width, of each number of the code.
    """
    columns = _binned(codes, bins).T
    gaps = []
    for own in classes:
        entropy = information(own, own)
        told = np.sort([information(column, own) for column in columns])
        gaps.append((told[-1] - told[-2]) / entropy if entropy > 0 else 0.0)
    return float(np.mean(gaps))


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Numbers of bins of equal width between the extremes of each column."""
    low, high = values.min(0), values.max(0)
    width = np.where(high > low, high - low, 1.0)
    found: np.ndarray = np.minimum((values - low) / width * bins, bins - 1).astype(int)
    return found


def importances_of(codes: np.ndarray, targets: Sequence[Target], seed: int) -> tuple[np.ndarray, float]:
    """Importances of each number of the code (rows) for each factor (columns), and how well forests predict.

    Informativeness is R² of factors with an order and accuracy of the others, on samples that were not fitted to, mean
    over factors; the larger the better.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    order = numpy_generator(seed, "forests").permutation(len(codes))
    fitted, tested = order[: len(order) // 2], order[len(order) // 2 :]
    columns, scores = [], []
    for target in targets:
        kind = RandomForestClassifier if target.classes else RandomForestRegressor
        # Every split may take any number, so that one which tells all gets all the importance.
        forest = kind(TREES, max_depth=DEPTH, max_features=1.0, random_state=seed)
        forest.fit(codes[fitted], target.values[fitted])
        columns.append(forest.feature_importances_)
        scores.append(max(0.0, forest.score(codes[tested], target.values[tested])))
    return np.stack(columns, 1), float(np.mean(scores))


def dci(importances: np.ndarray) -> tuple[float, float]:
    """Disentanglement and completeness of importances of shape (K, F), in [0, 1].

    `D = Σ_k w_k (1 − H_F(P_k))` with the row of each number of the code as a distribution over factors and its share of
    all importance as weight; `C = mean_f (1 − H_K(P_f))` with the columns.
    """
    total = importances.sum()
    if total == 0:
        return 0.0, 0.0
    rows = 1 - _entropies(importances)
    weights = importances.sum(1) / total
    return float(rows @ weights), float((1 - _entropies(importances.T)).mean())


def _entropies(rows: np.ndarray) -> np.ndarray:
    """Entropy of each row as a distribution, relative to that of the uniform one; 1 for a row of zeros."""
    sums = rows.sum(1, keepdims=True)
    shares = np.where(sums > 0, rows / np.where(sums > 0, sums, 1.0), 1 / rows.shape[1])
    logs = np.log(np.where(shares > 0, shares, 1.0))
    found: np.ndarray = -(shares * logs).sum(1) / math.log(max(rows.shape[1], 2))
    return found


def sap(codes: np.ndarray, targets: Sequence[Target], seed: int) -> float:
    """Separated attribute predictability: the mean gap between the two best numbers of the code.

    Args:
        codes: shape (N, K), K ≥ 2.
        targets: squared correlation of those with an order; of the others the balanced accuracy of as many intervals
            as there are classes, fitted to one half of the samples and tested on the other.
        seed: of the halves.
    """
    gaps = []
    centred = codes - codes.mean(0)
    norms = (centred**2).sum(0)
    for target in targets:
        if target.classes:
            scores = _intervals(codes, target, seed)
        else:
            y = target.values - target.values.mean()
            scores = np.where(norms > 0, (centred.T @ y) ** 2 / np.where(norms > 0, norms, 1.0) / (y @ y), 0.0)
        best = np.sort(scores)
        gaps.append(best[-1] - best[-2])
    return float(np.mean(gaps))


def _intervals(codes: np.ndarray, target: Target, seed: int) -> np.ndarray:
    """Balanced accuracy of each number of the code, shape (K,)."""
    from sklearn.tree import DecisionTreeClassifier

    order = numpy_generator(seed, "intervals").permutation(len(codes))
    fitted, tested = order[: len(order) // 2], order[len(order) // 2 :]
    y, new = target.values[fitted], target.values[tested]
    scores = []
    for column in codes.T:
        tree = DecisionTreeClassifier(max_leaf_nodes=target.classes, class_weight="balanced", random_state=0)
        guess = tree.fit(column[fitted, None], y).predict(column[tested, None])
        scores.append(np.mean([(guess[new == k] == k).mean() for k in np.unique(new)]))
    return np.array(scores)
