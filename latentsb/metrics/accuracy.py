"""Accuracy: does a classifier of the real data see the class that a sample was asked to show?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.features import CifarResNet, Classifier, Features
from latentsb.metrics.base import METRICS, Measured, Metric, Row, Subject, Table
from latentsb.metrics.frechet import frechet_distance
from latentsb.ranges import Count, NonNegative, enforce

__all__ = ["Accuracy", "confusion", "spread"]

BATCH = 256


@METRICS.register("accuracy")
@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Share of class-conditional samples that a given classifier assigns to the class asked for.

    Samples run through the classes in turn, so that they are balanced if their number is a multiple of the classes.
    A sampler that shows one perfect image per class has accuracy 1, so beside it stand the spread of each class in
    the classifier's features, relative to real images, and the Fréchet distance to real images in these features,
    which bears the classifier's name. Floors: real images, what the autoencoder makes of them, and chance. With
    several guidance scales the figure is that of the best one, and the table has a row for each.

    Source: Ravuri and Vinyals 2019, Classification accuracy score, in reverse: there the classifier sees samples.

    Args:
        classifier: with its weights; see `latentsb list features`.
        guidance: scales of classifier-free guidance, each with samples of its own; 1 is none, 0 forgets the class.
        real: real images, at most.
        seed: of the choice of real images.
    """

    classifier: Features = CifarResNet()
    guidance: tuple[NonNegative, ...] = (1.0,)
    real: Count = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)
        if not self.guidance:
            raise ArgumentError("guidance", "found none, expected at least one scale")

    def require(self, subject: Subject) -> None:
        """The bridge must know classes, and the classifier must be there and read such images."""
        spec = subject.bridge.ends.cond.get("label")
        if spec is None or not spec.classes:
            raise CapabilityError("the metric 'accuracy' needs a bridge with classes: conditions: [label]")
        if not subject.test.labelled:
            raise CapabilityError(f"the metric 'accuracy' needs labels; the {subject.test.name} have none")
        try:
            self.classifier.require()
        except DataError as error:  # which speaks of its own keys
            raise DataError(str(error).replace("path=…", "accuracy.classifier.path=…")) from error

    def load(self, subject: Subject) -> Classifier:
        """The classifier, on the bridge's device.

        Raises:
            CapabilityError: if it has no classes, or other ones, or reads other images.
        """
        network = self.classifier.load()
        spec = subject.bridge.ends.cond["label"]
        if not isinstance(network, Classifier) or network.classes != spec.classes:
            raise CapabilityError(f"{network.name} does not tell the {spec.classes} classes of these data apart")
        try:
            network.check(subject.train.source.spec.shape)
        except ArgumentError as error:
            raise CapabilityError(str(error)) from error
        return network.to(subject.bridge.device)

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is in [0, 1]."""
        self.require(subject)
        network = self.load(subject)
        real = self._real(subject, network)
        width = spread(real.features, real.labels, network.classes)
        rows: list[Row] = []
        details: dict[str, Any] = {"confusion": {}, "per_class": {}}
        shares = {}
        for scale in self.guidance:
            drawn = subject.samples(guidance=scale)
            if drawn.labels is None:
                raise CapabilityError("the metric 'accuracy' needs samples of known classes")
            features, found = network.read(drawn.images)
            right = (found == drawn.labels).double()
            shares[scale] = share = float(right.mean())
            table = confusion(drawn.labels, found, network.classes)
            details["confusion"][f"{scale:g}"] = table.tolist()
            details["per_class"][f"{scale:g}"] = (table.diag() / table.sum(1).clamp(min=1)).tolist()
            relative = float((spread(features, drawn.labels, network.classes) / width).nanmean())
            distance = frechet_distance(features, real.features) if len(features) > 1 else None
            n = len(right)
            rows.append((f"guidance {scale:g}", [share, math.sqrt(share * (1 - share) / n), relative, distance, n]))
        best = max(shares, key=lambda scale: shares[scale])
        rows += self._floors(subject, network, real, width, n)
        rows.append(("chance", [1 / network.classes, None, None, None, None]))
        columns = ["", "accuracy", "± SE", "spread within classes / real", network.frechet_name, "images"]
        protocol: dict[str, Any] = {
            "classifier": network.identity(),
            "guidance": list(self.guidance),
            "seed": self.seed,
            "measured_against": subject.test.name,
            "real": len(real.labels),
            "count": n,
        }
        return Measured(
            shares[best],
            {name: float(values[0]) for name, values in rows if not name.startswith("guidance")},
            protocol,
            {"count": n, **details, "class balance of the answers": _balance(details["confusion"][f"{best:g}"])},
            of=f"samples, guidance {best:g}",
            error=math.sqrt(shares[best] * (1 - shares[best]) / n),
            better="higher",
            tables=(
                Table(
                    f"{network.name} on class-conditional samples",
                    columns,
                    rows,
                    better={"accuracy": "higher", network.frechet_name: "lower"},
                ),
            ),
            hidden=frozenset(("confusion", "per_class")),
        )

    def _real(self, subject: Subject, network: Classifier) -> _Real:
        """Real images as the classifier sees them."""
        rows = subject.test.rows(self.real, self.seed, "real images")
        features, labels, right, through = [], [], [], []
        with subject.watch("classifying", len(rows)) as advance:
            for first in range(0, len(rows), BATCH):
                items = subject.test.read(rows[first : first + BATCH])
                seen, found = network.read(items.x0)
                features.append(seen)
                labels.append(items.cond["label"])
                right.append(found == labels[-1])
                if not subject.autoencoder.is_identity:
                    made = subject.autoencoder.round_trip(items.x0.to(subject.bridge.device)).cpu()
                    through.append(network.read(made)[1] == labels[-1])
                advance(len(items.x0))
        parts = (torch.cat(features), torch.cat(labels), torch.cat(right).double())
        return _Real(*parts, torch.cat(through).double() if through else None)

    def _floors(self, subject: Subject, network: Classifier, real: _Real, width: Tensor, n: int) -> list[Row]:
        """Rows of real images, of what the autoencoder makes of them, and of as many training images as samples."""

        def row(right: Tensor, *more: Any) -> list[Any]:
            share = float(right.mean())
            return [share, math.sqrt(share * (1 - share) / len(right)), *more, len(right)]

        rows: list[Row] = [(f"real: {subject.test.name}", row(real.right, 1.0, None))]
        if real.through is not None:
            rows.append(("real, through the autoencoder", row(real.through, None, None)))
        if subject.held is not None and subject.train.labelled:
            items = subject.train.read(subject.train.rows(n, self.seed, "real training images"))
            features, found = network.read(items.x0)
            label = items.cond["label"]
            relative = float((spread(features, label, network.classes) / width).nanmean())
            distance = frechet_distance(features, real.features)
            rows.append(("real: training data", row((found == label).double(), relative, distance)))
        return rows


@dataclass(frozen=True)
class _Real:
    """Real images as the classifier sees them; `right` and `through` are 1 where it is right."""

    features: Tensor
    labels: Tensor
    right: Tensor
    through: Tensor | None


def confusion(asked: Tensor, found: Tensor, classes: int) -> Tensor:
    """How often class i was asked for and class j seen, int64 of shape (classes, classes)."""
    return torch.bincount(asked * classes + found, minlength=classes**2).reshape(classes, classes)


def spread(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Total variance of the features within each class, float64 of shape (classes,); nan for fewer than two images."""
    found = [features[labels == c].double() for c in range(classes)]
    widths = [f.var(0).sum() if len(f) > 1 else torch.tensor(torch.nan, dtype=torch.float64) for f in found]
    return torch.stack(widths)


def _balance(table: list[list[int]]) -> str:
    """Smallest and largest share that one class has of the answers."""
    columns = [sum(row[c] for row in table) for c in range(len(table))]
    total = max(1, sum(columns))
    return f"{min(columns) / total:.3f} to {max(columns) / total:.3f}"
