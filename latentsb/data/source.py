"""The contract of data sources: random access by index, on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from latentsb.errors import DataError
from latentsb.laws import Law
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Spec

__all__ = ["SOURCES", "Items", "Source"]


@dataclass(frozen=True)
class Items:
    """Samples read from a source.

    Args:
        x0: images in [-1, 1] of shape (B, C, H, W), vectors (B, D), or normalised latents from a cache; float32.
        x1: the other end where the data has one, of the same shape.
        cond: labels (B,) int64, attributes (B, A) float32, by name.
    """

    x0: Tensor
    x1: Tensor | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)


class Source(ABC):
    """A finite, indexable data set. Constructors take keyword-only arguments from the recipe.

    Attributes:
        spec: shape of one sample; three dimensions are an image.
        cond: shapes of the conditions that come with each sample.
        variants: 2 where samples may be mirrored, else 1.
        two_sided: samples have an x1.
        paired: the x1 of a sample is its partner (else it is an unrelated draw).
        x0: the law of the samples where it is known: an exact toy, or a density of which there are no samples at all;
            the length is then 0 and batches bring rows only.
        x1: the law of the other end where it is known.
    """

    spec: Spec
    cond: Mapping[str, Spec]
    variants: int = 1
    two_sided: bool = False
    paired: bool = False
    x0: Law | None = None
    x1: Law | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def partners(self) -> int:
        """How many x1 there are: as many as samples, unless the two ends are unrelated sets of other sizes."""
        return len(self) if self.two_sided else 0

    def names(self) -> list[str] | None:
        """A name for each sample by which partners are found; None where samples have no names."""
        return None

    @abstractmethod
    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read samples.

        Args:
            index: positions in [0, len), int64, shape (B,).
            variant: 1 where the sample is mirrored left-right, int64, shape (B,); none are if None.

        Raises:
            DataError: if a sample cannot be read; names the path and the reason.
        """

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """Read samples of which a part is random, such as a posterior's; by default none is, and this is `read`.

        Args:
            index: as in `read`.
            variant: as in `read`.
            draws: of the rows that are read.
        """
        return self.read(index, variant)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Read the other ends at positions in [0, partners), where they are ordered independently of the x0."""
        found = self.draw(index, variant, draws).x1
        if found is None:
            raise DataError(f"the data '{type(self).__name__}' have no x1")
        return found

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that identify the data and its transform; unequal values mean another cache."""


SOURCES: Registry[Source] = Registry(
    "data",
    Source,
    homes=("latentsb.data.folder", "latentsb.data.arrays", "latentsb.data.toys", "latentsb.data.pairs"),
)
