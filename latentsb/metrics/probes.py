"""Linear probes: what a linear map of a code tells about labels, attributes and factors of samples not seen before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentsb.bridge import EncodingBridge, require
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Row, Subject, Table
from latentsb.metrics.codes import MEAN, coders
from latentsb.metrics.scores import auroc, average_precision, interval, pearson, resampled, squared_error
from latentsb.metrics.targets import Target, split_rows, targets_of
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, NonNegativeInt, OpenFraction, enforce

__all__ = ["CHANCE", "PENALTIES", "Probes", "Told", "probe"]

PENALTIES = tuple(10.0**k for k in range(-5, 2))
"""Of the squared weights, relative to the mean loss of a sample."""
CHANCE = "chance"
AP, AUROC, R, ERROR = "AP", "AUROC", "r", "MSE / variance"
Told = dict[str, np.ndarray]
"""Figures of one target by name, each with its resamples, shape (1 + R,)."""


@METRICS.register("probes")
@dataclass(frozen=True, kw_only=True)
class Probes(Metric):
    """What linear probes read from a code: average precision and AUROC of classes, Pearson's r and error of numbers.

    Logistic and ridge regression on features that are standardised by the samples they are fitted to, which are
    training data; the penalty is chosen on a part of these, by the log loss or the squared error, and the probe then
    fitted to all of them. Held-out data choose nothing. Classes are asked for one against the rest. A number's squared
    error is divided by its variance over the fitted samples: 1 is chance. Intervals are bootstrapped over the tested
    samples, the same resamples for all codes and targets.

    Mean codes and, of a noisy channel, drawn ones; beside them principal components and a random projection of the
    same length, the encoder before its training, and chance, which is the prevalence of each class.

    Source: Kim et al. 2025, Diffusion bridge autoencoders, Table 1 (what is asked); Alain and Bengio 2016.

    Args:
        images: samples that probes are tested on, at most.
        fitted_on: training samples that they are fitted to, at most; as many as PCA is fitted to.
        validation: share of these that chooses the penalty.
        resamples: of the bootstrap.
        table: CSV file with a column `key`, the names of the samples, where more is told about them.
        columns: of the table; empty cells are left out.
        batch: samples at a time; changes nothing but rounding.
        seed: of every choice.
    """

    images: Count = 5000
    fitted_on: Count = 10_000
    validation: OpenFraction = 0.2
    resamples: Count = 500
    table: Path | None = None
    columns: tuple[str, ...] = ()
    batch: Count = 256
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        enforce(self)
        if (self.table is None) != (not self.columns):
            raise ArgumentError("columns", "a table and columns of it belong together")

    def require(self, subject: Subject) -> None:
        """The bridge must encode, and something must be known about the data."""
        require(subject.bridge, EncodingBridge, "the metric 'probes'")
        if self.table is None and not {"label", "attributes"} & subject.test.source.cond.keys():
            raise CapabilityError(
                f"the metric 'probes' needs labels or attributes, and the {subject.test.name} have none; "
                "probes.table=FILE.csv and probes.columns=[NAME] bring some"
            )

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is the mean average precision over all classes, or else the mean r over all numbers."""
        self.require(subject)
        bridge = require(subject.bridge, EncodingBridge, "the metric 'probes'")
        fitted, tested = split_rows(subject.train, subject.held, self.fitted_on, self.images, self.seed)
        both = ((subject.train, fitted), (subject.test, tested))
        targets = targets_of(both, self.table, self.columns, self.batch)
        weights = resampled(len(tested), self.resamples, self.seed)
        kinds = coders(subject, bridge, fitted_on=self.fitted_on, seed=self.seed, batch=self.batch, drawn=True)
        told: dict[str, list[Told]] = {}
        for name, code in kinds.items():
            features = np.concatenate([code(data, rows).double().numpy() for data, rows in both])
            with subject.watch(f"probing: {name}", len(targets)) as advance:
                told[name] = []
                for target in targets:
                    told[name].append(probe(features, target, len(fitted), weights, self.validation, self.seed))
                    advance(1)
        told[CHANCE] = [_chance(target.part(slice(len(fitted), None)), weights) for target in targets]
        return self._told(subject, bridge, targets, told, len(fitted), len(tested))

    def _told(
        self,
        subject: Subject,
        bridge: EncodingBridge,
        targets: Sequence[Target],
        told: dict[str, list[Told]],
        fitted: int,
        tested: int,
    ) -> Measured:
        means = {name: _means(found) for name, found in told.items()}
        main = AP if any(target.classes for target in targets) else R
        pca = next(name for name in told if name.startswith("PCA"))
        better = interval(means[MEAN][main] - means[pca][main])
        protocol: dict[str, Any] = {
            **{key: value for key, value in vars(self).items() if key not in ("table", "batch")},
            "targets": [target.name for target in targets],
            "measured_on": subject.test.name,
            "fitted": fitted,
            "tested": tested,
            "z_dim": bridge.z_dim,
            "probe": "logistic or ridge, standardised features, penalty by validation, refitted",
        }
        figures = {
            name: {
                target.name: {key: interval(values) for key, values in one.items()}
                for target, one in zip(targets, found, strict=True)
            }
            for name, found in told.items()
        }
        return Measured(
            interval(means[MEAN][main])[0],
            {name: interval(found[main])[0] for name, found in means.items() if name != MEAN},
            protocol,
            {
                "count": tested,
                f"{MEAN} − PCA": better[0],
                "of it, 95 %": list(better[1:]),
                "measured on": subject.test.name,
                "figures": figures,
                "means": {name: {k: interval(v) for k, v in found.items()} for name, found in means.items()},
            },
            of=f"{MEAN}, mean codes: mean {main}",
            tables=(_overview(means, subject.test.name, fitted, tested), _each(targets, told, pca)),
            hidden=frozenset(("figures", "means")),
            error=float(means[MEAN][main][1:].std()) if self.resamples > 1 else None,
            better="higher",
        )


def probe(features: np.ndarray, target: Target, fitted: int, weights: np.ndarray, validation: float, seed: int) -> Told:
    """Fit a probe to the first samples and test it on the others.

    Args:
        features: shape (N, K), those fitted to before those tested on.
        target: of the same samples; those of which it is not known are left out.
        fitted: how many of the samples are fitted to.
        weights: of the tested samples, shape (1 + R, N − fitted).
        validation: share of the fitted samples that chooses the penalty.
        seed: of this choice.

    Returns:
        Average precision and AUROC, means over classes; or r and the relative squared error.
    """
    known = target.known
    train, test = np.flatnonzero(known[:fitted]), np.flatnonzero(known[fitted:])
    x, y = features[train], target.values[train]
    mean, spread = x.mean(0), x.std(0)
    x, new = ((part - mean) / np.where(spread > 0, spread, 1.0) for part in (x, features[fitted:][test]))
    truth, own = target.values[fitted:][test], weights[:, test]
    order = numpy_generator(seed, "validation").permutation(len(x))
    cut = max(1, round(validation * len(x)))
    chooses, teaches = order[:cut], order[cut:]
    if not target.classes:
        centre, unit = y.mean(), y.std() or 1.0
        predict = _ridge(x, (y - centre) / unit, teaches, chooses)
        guess = predict(new) * unit + centre
        return {R: pearson(truth, guess, own), ERROR: squared_error(truth, guess, own) / unit**2}
    if len(np.unique(y[teaches])) < 2:
        return _chance(Target(target.name, target.values[fitted:], target.classes), weights)
    scores = _logistic(x, y.astype(int), target.classes, teaches, chooses)(new)
    return _classified(truth, scores, target.classes, own)


def _ridge(x: np.ndarray, y: np.ndarray, teaches: np.ndarray, chooses: np.ndarray) -> Callable[..., np.ndarray]:
    from sklearn.linear_model import Ridge

    def fit(rows: np.ndarray, penalty: float) -> Any:
        return Ridge(alpha=penalty * len(rows), solver="cholesky").fit(x[rows], y[rows])

    errors = [((fit(teaches, p).predict(x[chooses]) - y[chooses]) ** 2).mean() for p in PENALTIES]
    best = fit(np.arange(len(x)), PENALTIES[int(np.argmin(errors))])
    return lambda new: np.asarray(best.predict(new))


def _logistic(
    x: np.ndarray, y: np.ndarray, classes: int, teaches: np.ndarray, chooses: np.ndarray
) -> Callable[..., np.ndarray]:
    """Log-odds of each class, shape (N, classes); minus infinity of one that is not among the fitted samples."""
    from scipy.special import logsumexp
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fit(rows: np.ndarray, penalty: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at the smallest penalty, of separable classes
            return LogisticRegression(C=1 / (penalty * len(rows)), max_iter=300).fit(x[rows], y[rows])

    def loss(model: Any) -> float:
        chances = np.full((len(chooses), classes), 1e-15)
        chances[:, model.classes_] = model.predict_proba(x[chooses]).clip(1e-15)
        return float(-np.log(chances[np.arange(len(chooses)), y[chooses]]).mean())

    best = fit(np.arange(len(x)), PENALTIES[int(np.argmin([loss(fit(teaches, p)) for p in PENALTIES]))])

    def scores(new: np.ndarray) -> np.ndarray:
        sums = best.decision_function(new)
        sums = np.stack([-sums / 2, sums / 2], 1) if sums.ndim == 1 else sums
        found = np.full((len(new), classes), -np.inf)
        for k, own in enumerate(best.classes_):
            found[:, own] = sums[:, k] - logsumexp(np.delete(sums, k, axis=1), axis=1)
        return found

    return scores


def _classified(truth: np.ndarray, scores: np.ndarray, classes: int, weights: np.ndarray) -> Told:
    """Means over classes, each against the rest; of two classes the second is what is asked for."""
    asked = [1] if classes == 2 else [k for k in range(classes) if (truth == k).any()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any positive
        return {
            AP: np.nanmean([average_precision(truth == k, scores[:, k], weights) for k in asked], axis=0),
            AUROC: np.nanmean([auroc(truth == k, scores[:, k], weights) for k in asked], axis=0),
        }


def _chance(target: Target, weights: np.ndarray) -> Told:
    """What one gets who always says the same: prevalence, one half; nothing, the variance."""
    test = np.flatnonzero(target.known)
    truth, own = target.values[test], weights[:, test]
    if target.classes:
        return _classified(truth, np.zeros((len(test), target.classes)), target.classes, own)
    return {R: np.zeros(len(own)), ERROR: np.ones(len(own))}


def _means(found: Sequence[Told]) -> Told:
    """Means over targets, resample by resample."""
    keys = {key: None for one in found for key in one}
    return {key: np.nanmean([one[key] for one in found if key in one], axis=0) for key in keys}


def _overview(means: dict[str, Told], name: str, fitted: int, tested: int) -> Table:
    keys = [key for key in (AP, AUROC, R, ERROR) if key in means[MEAN]]
    columns = [""]
    for key in keys:
        columns += [key, "95 %"] if key in (AP, R) else [key]
    rows: list[Row] = []
    for kind, found in means.items():
        cells: list[Any] = []
        for key in keys:
            value, low, high = interval(found[key])
            cells += [value, f"{low:.3f} … {high:.3f}"] if key in (AP, R) else [value]
        rows.append((kind, cells))
    return Table(
        f"means over targets, {tested} samples of the {name}, probes fitted to {fitted}", columns, rows, digits=3
    )


def _each(targets: Sequence[Target], told: dict[str, list[Told]], pca: str) -> Table:
    rows: list[Row] = []
    for k, target in enumerate(targets):
        key, other = (AP, AUROC) if target.classes else (R, ERROR)
        value, low, high = interval(told[MEAN][k][key])
        beside = [interval(told[name][k][key])[0] for name in (pca, CHANCE)]
        rows.append((target.name, [key, value, f"{low:.3f} … {high:.3f}", *beside, other, told[MEAN][k][other][0]]))
    return Table("each target, mean codes", ["", "", MEAN, "95 %", pca, CHANCE, "", f"{MEAN} "], rows, digits=3)
