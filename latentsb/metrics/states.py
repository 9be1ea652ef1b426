"""Density matrices: how many samples are none, and how far spectra, entanglement and the whole law are from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Row, Subject, Table
from latentsb.process.hermitian import coordinates, fidelity, negativity, purity, smallest
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, enforce

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ROUNDING", "States", "invalid", "sliced", "wasserstein"]

ROUNDING = 1e-12
"""An eigenvalue below minus this is negative by more than rounding."""
FIGURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "smallest eigenvalue": smallest,
    "negativity": negativity,
    "purity": purity,
}


def invalid(x: Tensor) -> Tensor:
    """Which matrices (N, n, n) are no density matrices: not Hermitian, not positive, or not of trace one."""
    apart = (x - x.mH).abs().amax((-2, -1))
    trace = (x.diagonal(dim1=-2, dim2=-1).sum(-1) - 1).abs()
    return (smallest(x) < -ROUNDING) | (apart > ROUNDING) | (trace > 1e-6)


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of numbers: the area between their distribution functions."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a.numpy(), b.numpy()))


def sliced(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Sliced Wasserstein-2 distance: root of the mean over directions of the squared distance of projections.

    Args:
        a: shape (N, D).
        b: of the same shape.
        directions: shape (D, K), unit columns.
    """
    return float(((a @ directions).sort(0)[0] - (b @ directions).sort(0)[0]).square().mean().sqrt())


@METRICS.register("states")
@dataclass(frozen=True, kw_only=True)
class States(Metric):
    """Share of samples that are no density matrices; distances of spectrum, negativity, purity and law from the data.

    A matrix is none if an eigenvalue is below zero by more than rounding. Distances are Wasserstein-1 of the
    smallest eigenvalue, of the negativity (first qubit against the others) and of the purity, and sliced
    Wasserstein-2 of the matrices; beside them those of other data, and of a Gaussian of the latents, decoded.

    Source: Zhu et al. 2024 (arXiv 2404.06336), Table 1 (the kinds of figures).

    Args:
        directions: of the sliced distance.
        seed: of them, of the choice of data and of the Gaussian.
    """

    directions: Count = 256
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For complex square matrices."""
        return "validity and spectra of density matrices" if _matrices(subject) else ""

    def require(self, subject: Subject) -> None:
        """Samples must be complex square matrices."""
        if not _matrices(subject):
            raise CapabilityError(
                f"the metric 'states' needs complex square matrices; samples are of {subject.train.source.spec.shape}"
            )

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is in [0, 1]."""
        self.require(subject)
        drawn = subject.samples()
        data, other, labels = self._data(subject, len(drawn.images))
        n = len(data)
        samples = drawn.images[:n]
        sets = {"samples": samples, "other data": other, "Gaussian of the latents": self._gaussian(subject, n)}
        rng = numpy_generator(self.seed, "directions")
        directions = torch.from_numpy(rng.standard_normal((coordinates(data).shape[1], self.directions)))
        directions /= directions.norm(dim=0)
        columns = ["", "invalid %", *FIGURES, "sliced W2"]
        rows = [(name, self._row(x, data, directions)) for name, x in sets.items()]
        details = dict(zip((f"{c} W1" for c in FIGURES), rows[0][1][1:], strict=False))
        details |= {"sliced_w2": rows[0][1][-1], "most_negative": float(smallest(drawn.images).min())}
        table = Table("distances from the data", columns, rows, better=dict.fromkeys(columns[1:], "lower"))
        share = float(invalid(drawn.images).double().mean())
        through = subject.autoencoder.round_trip(data[:256].to(subject.bridge.device)).cpu()
        return Measured(
            share,
            {name: row[0] / 100 for name, row in rows[1:]},
            {
                "directions": self.directions,
                "seed": self.seed,
                "count": len(drawn.images),
                "data": n,
                "on": subject.test.name,
            },
            details
            | {"count": len(drawn.images), "round_trip_infidelity": float((1 - fidelity(data[:256], through)).mean())},
            of="samples that are no density matrices",
            tables=(table, *self._by_class(subject, samples, drawn.labels, data, labels)),
            error=math.sqrt(share * (1 - share) / len(drawn.images)),
            better="lower",
            shown=[smallest(samples), smallest(data)],
        )

    def picture(self, found: Measured) -> Image | None:
        """Histogram of the smallest eigenvalue, of samples over that of data."""
        if found.shown is None:
            return None
        return _histogram(*found.shown)

    def _data(self, subject: Subject, n: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Two disjoint halves of equal size, and the labels of the first."""
        rows = subject.test.rows(2 * n, self.seed, "states")
        rows = numpy_generator(self.seed, "halves").permutation(rows)
        half = len(rows) // 2
        first, second = (subject.test.read(part) for part in (rows[:half], rows[half : 2 * half]))
        return first.x0, second.x0, first.cond.get("label")

    def _gaussian(self, subject: Subject, n: int) -> Tensor:
        """A Gaussian with mean and covariance of the latents, decoded: a generator without a network."""
        rows = subject.train.rows(10_000, self.seed, "Gaussian of the latents")
        y = subject.train.read(rows, latents=True).x0.double().numpy()
        made = numpy_generator(self.seed, "Gaussian").multivariate_normal(y.mean(0), np.cov(y.T), n)
        with torch.no_grad():
            return subject.autoencoder.decode(torch.from_numpy(made).float().to(subject.bridge.device)).cpu()

    def _row(self, x: Tensor, data: Tensor, directions: Tensor) -> list[float]:
        apart = [wasserstein(figure(x), figure(data)) for figure in FIGURES.values()]
        return [100 * float(invalid(x).double().mean()), *apart, sliced(coordinates(x), coordinates(data), directions)]

    def _by_class(
        self, subject: Subject, samples: Tensor, asked: Tensor | None, data: Tensor, labels: Tensor | None
    ) -> tuple[Table, ...]:
        """Mean negativity and purity of each class that was asked for, beside the data's."""
        if asked is None or labels is None:
            return ()
        asked, names = asked[: len(samples)], subject.train.source.words("label")
        rows: list[Row] = []
        for kind in sorted(set(labels.tolist())):
            mine, theirs = samples[asked == kind], data[labels == kind]
            found = (
                [float(figure(x).mean()) for figure in (negativity, purity) for x in (mine, theirs)]
                if len(mine)
                else []
            )
            rows += [(names[kind] if names else str(kind), found)] if found else []
        return (Table("means of each class", ["", "negativity", "of data", "purity", "of data "], rows),)


def _matrices(subject: Subject) -> bool:
    spec = subject.train.source.spec
    return spec.dtype.is_complex and len(spec.shape) == 2 and spec.shape[0] == spec.shape[1]


def _histogram(samples: Tensor, data: Tensor) -> Image:
    from io import BytesIO

    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(5, 4), dpi=100)
    axes = figure.add_subplot()
    low, high = float(torch.minimum(samples.min(), data.min())), float(torch.maximum(samples.max(), data.max()))
    for values, colour, name in ((data, "0.7", "data"), (samples, "C0", "samples")):
        axes.hist(values.numpy(), bins=60, range=(low, high), density=True, color=colour, alpha=0.7, label=name)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("smallest eigenvalue")
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
