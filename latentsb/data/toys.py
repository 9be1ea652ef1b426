"""Toy laws as finite data sets: points drawn once, by seed, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from latentsb.data.arrays import ArraySource
from latentsb.data.source import SOURCES
from latentsb.errors import ArgumentError
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, NonNegative, NonNegativeInt, Positive

__all__ = ["Checkerboard", "EightGaussians", "Gaussian", "Mixture", "Moons", "Swissroll"]


def source(toy: ArraySource, name: str, points: np.ndarray, labels: np.ndarray | None = None, **identity: Any) -> None:
    """Make `toy` the data set of these points, shape (n, D), and of their component's labels."""
    cond = {} if labels is None else {"label": torch.from_numpy(labels.astype(np.int64))}
    classes = None if labels is None else int(identity.pop("components"))
    x0 = torch.from_numpy(points.astype(np.float32))
    ArraySource.__init__(toy, x0, cond=cond, classes=classes, identity={"data": name, **identity})


def stretched(points: np.ndarray, stretch: tuple[float, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    """Points with each axis multiplied by its number, and what that adds to their identity: nothing for none.

    Raises:
        ArgumentError: if there are not as many numbers as axes.
    """
    if not stretch:
        return points, {}
    if len(stretch) != points.shape[1]:
        raise ArgumentError("stretch", f"found {len(stretch)} numbers for {points.shape[1]} axes")
    return points * np.array(stretch), {"stretch": list(stretch)}


@SOURCES.register("gaussian")
class Gaussian(ArraySource):
    """Points of one Gaussian with full covariance in any dimension.

    Args:
        mean: shape (D,).
        covariance: shape (D, D), symmetric and positive semi-definite; the identity if None.
        n: number of points.
        seed: of the points.

    Raises:
        ArgumentError: if the covariance has another shape, is not symmetric or has a negative eigenvalue.
    """

    def __init__(
        self,
        *,
        mean: tuple[float, ...] = (0.0, 0.0),
        covariance: tuple[tuple[float, ...], ...] | None = None,
        n: Count = 10000,
        seed: NonNegativeInt = 0,
    ) -> None:
        dim = len(mean)
        if covariance is not None and [len(row) for row in covariance] != [dim] * dim:
            raise ArgumentError("covariance", f"found rows of {[len(row) for row in covariance]}, expected {dim}×{dim}")
        matrix = np.eye(dim) if covariance is None else np.array(covariance, dtype=np.float64)
        if not np.allclose(matrix, matrix.T):
            raise ArgumentError("covariance", "the matrix is not symmetric")
        values, vectors = np.linalg.eigh(matrix)
        if values.min() < -1e-12 * max(1.0, values.max()):
            raise ArgumentError(
                "covariance", f"the matrix has the eigenvalue {values.min():.3g}, expected none below 0"
            )
        root = vectors * np.sqrt(values.clip(min=0.0))
        points = np.array(mean) + numpy_generator(seed, "gaussian").standard_normal((n, dim)) @ root.T
        source(self, "gaussian", points, mean=list(mean), covariance=matrix.tolist(), seed=seed)


@SOURCES.register("mixture")
class Mixture(ArraySource):
    """Points of a mixture of round Gaussians, labelled by component.

    Args:
        means: of the components, shape (K, D).
        std: of each component in every direction.
        weights: shape (K,), positive; equal if None.
        n: number of points.
        seed: of the points.

    Raises:
        ArgumentError: if the means are of several dimensions or the weights do not fit them.
    """

    def __init__(
        self,
        *,
        means: tuple[tuple[float, ...], ...] = ((-1.0, 0.0), (1.0, 0.0)),
        std: NonNegative = 0.2,
        weights: tuple[Positive, ...] | None = None,
        n: Count = 10000,
        seed: NonNegativeInt = 0,
    ) -> None:
        if not means or len({len(mean) for mean in means}) != 1:
            raise ArgumentError("means", f"found dimensions {[len(mean) for mean in means]}, expected equal ones")
        if weights is not None and len(weights) != len(means):
            raise ArgumentError("weights", f"found {len(weights)} weights for {len(means)} components")
        share = np.array(weights if weights is not None else [1.0] * len(means), dtype=np.float64)
        rng = numpy_generator(seed, "mixture")
        labels = rng.choice(len(means), size=n, p=share / share.sum())
        points = np.array(means)[labels] + std * rng.standard_normal((n, len(means[0])))
        identity = {"means": [list(mean) for mean in means], "std": std, "weights": share.tolist(), "seed": seed}
        source(self, "mixture", points, labels, components=len(means), **identity)


@SOURCES.register("eight_gaussians")
class EightGaussians(ArraySource):
    """Eight round Gaussians on a circle, labelled 0-7 counter-clockwise from the right.

    Args:
        radius: of the circle.
        std: of each Gaussian.
        n: number of points.
        seed: of the points.
    """

    def __init__(
        self, *, radius: Positive = 2.0, std: NonNegative = 0.1, n: Count = 10000, seed: NonNegativeInt = 0
    ) -> None:
        rng = numpy_generator(seed, "eight_gaussians")
        labels = rng.integers(8, size=n)
        angle = labels * math.pi / 4
        points = radius * np.stack([np.cos(angle), np.sin(angle)], 1) + std * rng.standard_normal((n, 2))
        source(self, "eight_gaussians", points, labels, components=8, radius=radius, std=std, seed=seed)


@SOURCES.register("moons")
class Moons(ArraySource):
    """Two interleaved half circles of radius `scale`, labelled 0 (upper) and 1 (lower), centred on the origin.

    Args:
        scale: radius of the half circles.
        std: of the noise across and along them.
        n: number of points.
        seed: of the points.
    """

    def __init__(
        self, *, scale: Positive = 1.0, std: NonNegative = 0.05, n: Count = 10000, seed: NonNegativeInt = 0
    ) -> None:
        rng = numpy_generator(seed, "moons")
        labels = rng.integers(2, size=n)
        angle = rng.random(n) * math.pi
        side = 1.0 - 2.0 * labels
        # The upper arc is centred at (−1/2, −1/4), the lower, its half turn about the origin, at (1/2, 1/4).
        points = scale * side[:, None] * np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], 1)
        points += std * rng.standard_normal((n, 2))
        source(self, "moons", points, labels, components=2, scale=scale, std=std, seed=seed)


@SOURCES.register("swissroll")
class Swissroll(ArraySource):
    """A spiral whose radius grows with its angle, from a third of `radius` to `radius` in one and a half turns.

    Args:
        radius: at the outer end.
        std: of the noise.
        stretch: what each axis is multiplied with at the end; nothing if empty.
        n: number of points.
        seed: of the points.

    Raises:
        ArgumentError: if `stretch` does not have a number for each axis.
    """

    def __init__(
        self,
        *,
        radius: Positive = 2.0,
        std: NonNegative = 0.05,
        stretch: tuple[Positive, ...] = (),
        n: Count = 10000,
        seed: NonNegativeInt = 0,
    ) -> None:
        rng = numpy_generator(seed, "swissroll")
        angle = 1.5 * math.pi * (1.0 + 2.0 * rng.random(n))
        points = radius * (angle / (4.5 * math.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        points += std * rng.standard_normal((n, 2))
        points, more = stretched(points, stretch)
        source(self, "swissroll", points, radius=radius, std=std, seed=seed, **more)


@SOURCES.register("checkerboard")
class Checkerboard(ArraySource):
    """The eight dark squares of a 4×4 board over [−half, half]², uniformly filled.

    A point lies on a dark square where ⌊x / (half/2)⌋ + ⌊y / (half/2)⌋ is even.

    Args:
        half: half of the board's side.
        stretch: what each axis is multiplied with at the end; nothing if empty.
        n: number of points.
        seed: of the points.

    Raises:
        ArgumentError: if `stretch` does not have a number for each axis.
    """

    def __init__(
        self,
        *,
        half: Positive = 2.0,
        stretch: tuple[Positive, ...] = (),
        n: Count = 10000,
        seed: NonNegativeInt = 0,
    ) -> None:
        rng = numpy_generator(seed, "checkerboard")
        row = rng.integers(4, size=n)
        column = 2 * rng.integers(2, size=n) + row % 2
        corner = np.stack([column, row], 1) - 2
        points = half / 2 * (corner + rng.random((n, 2)))
        points, more = stretched(points, stretch)
        source(self, "checkerboard", points, half=half, seed=seed, **more)
