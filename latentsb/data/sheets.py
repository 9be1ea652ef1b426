"""Points of low dimension on a curved sheet in many dimensions, and the square from which they may be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latentsb.data.arrays import ArraySource
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, NonNegativeInt, Positive
from latentsb.tensors import Spec

__all__ = ["Sheet", "Square", "embed"]


@SOURCES.register("square")
class Square(ArraySource):
    """Points spread evenly over `[−half, half]²`.

    Args:
        half: half of a side.
        n: number of points.
        seed: of the points.
    """

    def __init__(self, *, half: Positive = 2.0, n: Count = 10000, seed: NonNegativeInt = 0) -> None:
        points = numpy_generator(seed, "square").uniform(-half, half, (n, 2))
        identity = {"data": "square", "half": half, "seed": seed}
        super().__init__(torch.from_numpy(points.astype(np.float32)), identity=identity)


def embed(points: np.ndarray, dim: int, hidden: int, seed: int) -> np.ndarray:
    """`tanh(z W1) W2` with standard normal W1 of shape (d, hidden) and W2 of shape (hidden, dim) over `√hidden`.

    Args:
        points: z, shape (N, d).
        dim: numbers of what they become.
        hidden: of the sheet: more of them bend it in more directions.
        seed: of W1 and W2.

    Returns:
        Shape (N, dim), float64.
    """
    rng = numpy_generator(seed, "sheet")
    inner = rng.standard_normal((points.shape[1], hidden))
    outer = rng.standard_normal((hidden, dim)) / np.sqrt(hidden)
    found: np.ndarray = np.tanh(points.astype(np.float64) @ inner) @ outer
    return found


@SOURCES.register("sheet")
class Sheet(Source):
    """Vectors of another source on a curved sheet in more dimensions: `tanh(z W1) W2`; data of low intrinsic dimension.

    Args:
        source: of vectors z, whose labels stay.
        dim: numbers of a sample.
        hidden: numbers between W1 and W2.
        seed: of W1 and W2; equal ones are the same sheet.

    Raises:
        ArgumentError: if the samples are no vectors or have an x1.
    """

    def __init__(self, *, source: Source, dim: Count = 32, hidden: Count = 32, seed: NonNegativeInt = 0) -> None:
        if len(source.spec.shape) != 1 or source.two_sided:
            raise ArgumentError("source", f"expected vectors without an x1, found the shape {source.spec.shape}")
        self.flat, self.dim, self.hidden, self.seed = source, dim, hidden, seed
        self.spec, self.cond = Spec((dim,)), source.cond

    def __len__(self) -> int:
        return len(self.flat)

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the flat source."""
        return self.flat.words(name)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read vectors and bend them."""
        found = self.flat.read(index, variant)
        points = embed(found.x0.numpy(), self.dim, self.hidden, self.seed)
        return Items(torch.from_numpy(points.astype(np.float32)), None, found.cond)

    def fingerprint(self) -> dict[str, Any]:
        """That of the flat source, and the sheet."""
        sheet = {"dim": self.dim, "hidden": self.hidden, "seed": self.seed}
        return {"data": "sheet", "source": self.flat.fingerprint(), **sheet}
