"""The contract of data sources: random access by index, on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from latentsb.data.pixels import PixelRule, UnreadableError
from latentsb.errors import DataError
from latentsb.laws import Law
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Spec

__all__ = ["SOURCES", "Factor", "Items", "Source"]


@dataclass(frozen=True)
class Factor:
    """What one column of the condition `attributes` holds.

    Args:
        name: of the attribute.
        values: all that it may take, ascending; its classes are their positions.
        categorical: the values are names without an order.
    """

    name: str
    values: tuple[float, ...]
    categorical: bool = False

    def classes(self, column: Tensor) -> Tensor:
        """Position of the nearest value of each, int64, the shape of the column."""
        values = torch.tensor(self.values, dtype=torch.float64)
        return torch.bucketize(column.double().contiguous(), (values[1:] + values[:-1]) / 2)


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
        factors: what the columns of the condition `attributes` hold, where the data are made from them; else none.
        variants: 2 where samples may be mirrored, else 1.
        two_sided: samples have an x1.
        paired: the x1 of a sample is its partner (else it is an unrelated draw).
        x0: the law of the samples where it is known: an exact toy, or a density of which there are no samples at all;
            the length is then 0 and batches bring rows only.
        x1: the law of the other end where it is known.
        pretraining: what stages that train the autoencoder see, where that is other data.
        recipe_key: where the source stands in its recipe, for messages at first use.
    """

    spec: Spec
    cond: Mapping[str, Spec]
    factors: tuple[Factor, ...] = ()
    variants: int = 1
    two_sided: bool = False
    paired: bool = False
    x0: Law | None = None
    x1: Law | None = None
    pretraining: Source | None = None
    recipe_key: str = "data"

    @abstractmethod
    def __len__(self) -> int: ...

    def require(self) -> None:
        """Look whether the files of the data are there, without reading them.

        Raises:
            DataError: if one is not; says what to put where.
        """

    @property
    def partners(self) -> int:
        """How many x1 there are: as many as samples, unless the two ends are unrelated sets of other sizes."""
        return len(self) if self.two_sided else 0

    def names(self) -> list[str] | None:
        """A name for each sample by which partners are found; None where samples have no names."""
        return None

    def words(self, name: str) -> tuple[str, ...]:
        """Names of the classes of `label`, of the columns of `attributes`; empty where they have only numbers."""
        return ()

    def contents(self) -> Mapping[str, str]:
        """sha256 of each file of the data, by name; empty where the data are no files of their own each."""
        return {}

    def problems(self) -> Mapping[str, str]:
        """Why files of the data are left out, by name; empty where none is."""
        return {}

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

    def image_rule(self) -> PixelRule:
        """What an image file becomes that is opened beside the data; `open` reads by it.

        By default images of another size are cut to their largest centred part of the right proportions and resized
        by a cubic kernel, and bytes become [-1, 1]; sources that read files have their own rule.

        Raises:
            DataError: if samples are no images of 1, 3 or 4 channels.
        """
        if len(self.spec.shape) != 3 or self.spec.channels not in (1, 3, 4):
            raise DataError(f"image files are no samples of these data, whose shape is {self.spec.shape}")
        channels, height, width = self.spec.shape
        return PixelRule(height, width, channels, "crop")

    @final
    def open(self, path: Path) -> Tensor:
        """Read an image file as a sample, shape `spec.shape`, in [-1, 1].

        Args:
            path: of a file that need not belong to the data.

        Raises:
            DataError: if it cannot be read; names the path and the reason.
        """
        if not Path(path).is_file():
            raise DataError(f"{path}: there is no such file")
        try:
            return torch.from_numpy(self.image_rule().read(Path(path)))
        except UnreadableError as error:
            raise DataError(f"{path}: {error}") from error

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that identify the data and its transform; unequal values mean another cache."""


SOURCES: Registry[Source] = Registry(
    "data",
    Source,
    homes=(
        "latentsb.data.folder",
        "latentsb.data.tar",
        "latentsb.data.arrays",
        "latentsb.data.mapped",
        "latentsb.data.huggingface",
        "latentsb.data.toys",
        "latentsb.data.eot",
        "latentsb.data.sprites",
        "latentsb.data.pairs",
        "latentsb.data.qubits",
        "latentsb.data.classes",
        "latentsb.data.folders",
        "latentsb.data.degraded",
        "latentsb.data.series",
        "latentsb.data.trajectories",
        "latentsb.data.sheets",
        "latentsb.data.shifted",
    ),
)
