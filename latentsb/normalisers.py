"""Normalisers: the affine map from raw latents to those that bridges see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentsb.registry import Registry

__all__ = ["NORMALISERS", "Channel", "Global", "Limits", "Normaliser", "Statistics", "Unchanged"]


@dataclass(frozen=True)
class Statistics:
    """Moments and range per channel, in float64, that add up over batches.

    Batches are joined by the update of Chan, Golub and LeVeque 1979, which does not subtract large numbers.

    Args:
        count: numbers per channel.
        mean: shape (C,).
        square: sum of squared deviations from the mean, shape (C,).
        low: smallest number, shape (C,).
        high: largest number, shape (C,).
    """

    count: int
    mean: Tensor
    square: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, raw: Tensor, std: Tensor | None = None) -> Statistics:
        """Statistics of one batch.

        Args:
            raw: shape (B, C, …).
            std: of independent noise on `raw`, same shape, whose variance is added; the range is that of `raw`.
        """
        flat = raw.detach().transpose(0, 1).flatten(1).double().cpu()
        mean = flat.mean(1)
        square = (flat - mean[:, None]).square().sum(1)
        if std is not None:
            square = square + std.detach().double().cpu().square().transpose(0, 1).flatten(1).sum(1)
        return cls(flat.shape[1], mean, square, flat.amin(1), flat.amax(1))

    @classmethod
    def over(cls, raws: Iterable[Tensor]) -> Statistics:
        """Statistics of all batches.

        Raises:
            ValueError: if there are none.
        """
        found: Statistics | None = None
        for raw in raws:
            found = cls.of(raw) if found is None else found + cls.of(raw)
        if found is None:
            raise ValueError("statistics of no data")
        return found

    def __add__(self, other: Statistics) -> Statistics:
        count = self.count + other.count
        apart = other.mean - self.mean
        return Statistics(
            count,
            self.mean + apart * (other.count / count),
            self.square + other.square + apart.square() * (self.count * other.count / count),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    @property
    def std(self) -> Tensor:
        """Standard deviation per channel (of the population: divided by the count)."""
        return (self.square / self.count).sqrt()

    def to_json(self) -> dict[str, Any]:
        """JSON values, exact."""
        parts = {name: getattr(self, name).tolist() for name in ("mean", "square", "low", "high")}
        return {"count": self.count, **parts}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Statistics:
        """What `to_json` returned."""
        parts = (torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "square", "low", "high"))
        return cls(int(values["count"]), *parts)


class Normaliser(ABC):
    """Finds `shift` and `scale` of `(raw − shift) / scale`, each of shape (C,).

    `fits` is false where no data are needed.
    """

    fits: ClassVar[bool] = True

    @abstractmethod
    def affine(self, found: Statistics) -> tuple[Tensor, Tensor]:
        """Shift and scale in float64, shape (C,) each; scales of constant channels are 1."""


NORMALISERS: Registry[Normaliser] = Registry("normaliser", Normaliser, homes=("latentsb.normalisers",))


def nonzero(scale: Tensor) -> Tensor:
    """A constant channel is shifted to zero and not scaled."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


@NORMALISERS.register("channel")
@dataclass(frozen=True, kw_only=True)
class Channel(Normaliser):
    """Mean 0 and standard deviation 1 in every channel."""

    def affine(self, found: Statistics) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel."""
        return found.mean, nonzero(found.std)


@NORMALISERS.register("global")
@dataclass(frozen=True, kw_only=True)
class Global(Normaliser):
    """Mean 0 and standard deviation 1 over all channels together; their proportions are kept."""

    def affine(self, found: Statistics) -> tuple[Tensor, Tensor]:
        """One mean and one standard deviation for all channels."""
        mean = found.mean.mean()
        variance = (found.square / found.count + (found.mean - mean).square()).mean()
        return mean.expand_as(found.mean), nonzero(variance.sqrt()).expand_as(found.mean)


@NORMALISERS.register("limits")
@dataclass(frozen=True, kw_only=True)
class Limits(Normaliser):
    """Every channel's range becomes [-1, 1]."""

    def affine(self, found: Statistics) -> tuple[Tensor, Tensor]:
        """Middle and half width of each channel's range."""
        return (found.low + found.high) / 2, nonzero((found.high - found.low) / 2)


@NORMALISERS.register("none")
@dataclass(frozen=True, kw_only=True)
class Unchanged(Normaliser):
    """Raw latents as they are."""

    fits: ClassVar[bool] = False

    def affine(self, found: Statistics) -> tuple[Tensor, Tensor]:
        """Shift 0 and scale 1."""
        return torch.zeros_like(found.mean), torch.ones_like(found.mean)
