"""Recognisability: does a classifier of the real data know what a sample shows?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, OpenFraction

__all__ = ["Recognised"]

REAL = 10_000
"""Real samples that the figure is held against; all of a smaller data set."""
SMALL = 1024
"""Numbers of a sample up to which the classifier and the Gaussian are a matter of seconds."""


@METRICS.register("recognised")
@dataclass(frozen=True, kw_only=True)
class Recognised(Metric):
    """Share of samples that a linear classifier of the real data recognises with confidence.

    A multinomial logistic regression (unit L2 penalty) on the pixels of half of the real data; a sample counts if
    the largest class probability exceeds `confidence`. The figure says nothing of diversity within a class, so the
    classes that appear are counted beside it. Floors: the held-out half of the data, clipped Gaussian noise, and a
    full-covariance Gaussian fitted to the pixels (a generator without a network).

    Source: a sanity check, not a published metric.

    Args:
        confidence: in (0, 1).
        seed: of the split and of the noise.
        drawn: size of the noise floors.
    """

    confidence: OpenFraction = 0.9
    seed: int = 0
    drawn: Count = 2000

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For samples of several classes that a linear classifier is soon fitted to."""
        source = subject.train.source
        classes = source.cond["label"].classes or 0 if subject.train.labelled else 0
        fast = classes > 1 and source.spec.numel <= SMALL and not source.spec.dtype.is_complex
        return f"{classes} classes of samples of {source.spec.numel} numbers" if fast else ""

    def require(self, subject: Subject) -> None:
        """Labels are needed, and real numbers."""
        if not subject.train.labelled:
            raise CapabilityError("the metric 'recognised' needs labelled data; these data have no labels")
        if subject.train.source.spec.dtype.is_complex:
            raise CapabilityError("the metric 'recognised' needs real samples; these are complex matrices")

    def measure(self, subject: Subject) -> Measured:
        """Measure samples; the value is in [0, 1]."""
        from sklearn.linear_model import LogisticRegression

        self.require(subject)
        rng = numpy_generator(self.seed, "recognised")
        items = subject.train.read(np.arange(min(len(subject.train), REAL)))
        real = items.x0.flatten(1).double().numpy()
        labels = items.cond["label"].numpy()
        order = rng.permutation(len(real))
        seen, held = order[: len(order) // 2], order[len(order) // 2 :]
        classifier = LogisticRegression(max_iter=2000).fit(real[seen], labels[seen])

        def share(x: np.ndarray) -> float:
            return float((classifier.predict_proba(x).max(axis=1) > self.confidence).mean())

        samples = subject.samples().images.flatten(1).double().numpy()
        sure = classifier.predict_proba(samples).max(axis=1) > self.confidence
        found = classifier.predict(samples)
        counts = {str(c): int((found[sure] == c).sum()) for c in classifier.classes_}
        noise = rng.standard_normal((self.drawn, real.shape[1])).clip(-1, 1)
        kind = "pixels" if items.x0.ndim == 4 else "samples"
        gaussian = rng.multivariate_normal(real.mean(0), np.cov(real.T), self.drawn).clip(-1, 1)
        recognised = share(samples)
        return Measured(
            recognised,
            {"real, held out": share(real[held]), f"Gaussian of the {kind}": share(gaussian), "noise": share(noise)},
            {
                "classifier": f"logistic regression on {kind}, C = 1",
                "fitted_on": len(seen),
                "count": len(samples),
                **vars(self),
            },
            {
                "count": len(samples),
                "classes": sum(n > 0 for n in counts.values()),
                "of_classes": len(counts),
                "per_class": counts,
                "accuracy_held_out": float(classifier.score(real[held], labels[held])),
            },
            error=math.sqrt(recognised * (1 - recognised) / len(samples)),
            better="higher",
        )
