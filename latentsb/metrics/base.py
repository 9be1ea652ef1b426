"""The contract of metrics of generated samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latentsb.registry import Registry

__all__ = ["METRICS", "Measured", "Metric", "Subject"]


@dataclass(frozen=True)
class Subject:
    """What is measured, and the real data beside it.

    Args:
        samples: generated, shape (N, C, H, W) in [-1, 1] or (N, D).
        real: of the training data, same shape but for N.
        labels: of the real data, int64 of shape (N,), where it has labels.
    """

    samples: Tensor
    real: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """A figure, the floors and baselines beside it, and the protocol that it depends on.

    Args:
        value: of the samples.
        floors: the same figure of other samples, by name: real data, noise, a trivial baseline.
        protocol: every choice that changes the figure; figures of unequal protocols are not compared.
        details: further numbers, JSON values.
    """

    value: float
    floors: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Metric(ABC):
    """A figure of generated samples; a frozen dataclass of its settings."""

    def require(self, *, labels: bool) -> None:
        """Say before samples are drawn what `measure` would miss; by default nothing.

        Args:
            labels: whether the data has labels.

        Raises:
            CapabilityError: if the metric needs what the data lacks.
        """

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Measure samples.

        Raises:
            CapabilityError: if the data lacks what the metric needs (labels, for example).
        """


METRICS: Registry[Metric] = Registry("metric", Metric, homes=("latentsb.metrics.recognised",))
