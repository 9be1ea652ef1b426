"""The contracts of samplers with weights: of a density without data, and of a posterior under a measurement."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from latentsb.bridge import Bridge
from latentsb.measurements import Measurement
from latentsb.randomness import Draws
from latentsb.targets.base import Target
from latentsb.tensors import Batch

__all__ = ["MeasuringBridge", "WeighingBridge", "Weighted"]


@dataclass(frozen=True)
class Weighted:
    """Samples with importance weights.

    Args:
        x: shape (B, *spec.shape).
        log_weight: `E exp(log_weight) = Z` exactly, whatever the training; shape (B,).
        ito: what may be added to `log_weight` without changing its mean, shape (B,).
    """

    x: Tensor
    log_weight: Tensor
    ito: Tensor


class WeighingBridge(Bridge):
    """A bridge to a density, whose samples it can weigh.

    Attributes:
        target: the density at t = 0.
    """

    target: Target

    @abstractmethod
    def weigh(self, batch: Batch, draws: Draws) -> Weighted:
        """One weighted sample per row, by the chain that training sees."""


class MeasuringBridge(Bridge):
    """A bridge to what samples may have been of which a measurement is known.

    Attributes:
        measurement: of a sample.
    """

    measurement: Measurement

    @abstractmethod
    def observe(self, batch: Batch, draws: Draws) -> Batch:
        """The batch with a measurement of its x0 as the condition `known`; x0 is left out."""

    @abstractmethod
    def posterior(self, batch: Batch, paths: int, draws: Draws) -> Weighted:
        """Weighted samples given the condition `known`, row after row, B·paths in all; `E w = p(y)`."""
