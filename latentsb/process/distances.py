"""Distances: how the error of a prediction is measured in a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from latentsb.registry import Registry

__all__ = ["DISTANCES", "Absolute", "Distance", "Squared"]


class Distance(ABC):
    """A distance between what a network predicts and what it should; a frozen dataclass.

    A loss knows the error of x0, `D − x0`, which is `out` times the error of the network's own prediction. The weight
    is one on the squared error of x0, so `weight out²` weighs the network's own error.
    """

    @abstractmethod
    def of(self, error: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """Weighted distance of each number, shape of `error`.

        Args:
            error: of x0, shape (B, …).
            weight: on its square; broadcasts against it.
            out: the preconditioning's scale of the network's output; broadcasts likewise.
        """


DISTANCES: Registry[Distance] = Registry("distance", Distance, homes=("latentsb.process.distances",))


@DISTANCES.register("squared")
@dataclass(frozen=True, kw_only=True)
class Squared(Distance):
    """The square, whose best prediction is the conditional mean."""

    def of(self, error: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """`weight error²`."""
        return weight * error.square()


@DISTANCES.register("absolute")
@dataclass(frozen=True, kw_only=True)
class Absolute(Distance):
    """The absolute value of the network's own error, whose best prediction is the conditional median of each number.

    Where the posterior is symmetric the median is the mean; elsewhere it is biased, and no likelihood is bounded.

    Source: Preechakul et al. 2022, Diffusion autoencoders (the loss of their latent prior).
    """

    def of(self, error: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """`weight out² |error/out|`."""
        return weight * out.abs() * error.abs()
