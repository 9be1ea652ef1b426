"""What a network of one direction predicts, and how a drift follows from it.

All of them are affine in each other given the state, the time and the reference, so a conditional expectation of one
is that of the others, and the squared error of one is that of the drift up to a weight that depends on t alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentsb.process import conversion
from latentsb.process.reference import ScalarReference
from latentsb.registry import Registry
from latentsb.tensors import expand_as

__all__ = ["PREDICTIONS", "Control", "DriftItself", "EndPoint", "Prediction", "Scaled"]

End = Literal["x0", "x1"]


class Prediction(ABC):
    """A choice of what the networks of a two-sided bridge predict; a frozen dataclass."""

    @abstractmethod
    def drift(self, output: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """The drift as executed towards an end that belongs to a network's output.

        Args:
            output: of the network, shape of x.
            x: state, shape (B, …).
            t: times inside (0, 1), float64, shape () or (B,); the time of departure (0 towards x1, 1 towards x0) too.
            reference: of the bridge.
            towards: which end.
        """

    @abstractmethod
    def target(self, drift: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """What a network should give for a drift; inverse of `drift`, for t inside (0, 1)."""


PREDICTIONS: Registry[Prediction] = Registry("prediction", Prediction, homes=("latentsb.process.prediction",))


@PREDICTIONS.register("drift")
@dataclass(frozen=True, kw_only=True)
class DriftItself(Prediction):
    """The drift itself; its target's variance grows like `1/(1 − t)` towards x1, like `1/t` towards x0.

    Source: Shi et al. 2023, Diffusion Schrödinger bridge matching, Eq. 8 and 11.
    """

    def drift(self, output: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """The output."""
        return output

    def target(self, drift: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """The drift."""
        return drift


@PREDICTIONS.register("scaled")
@dataclass(frozen=True, kw_only=True)
class Scaled(Prediction):
    """The drift times the root of the clock that is left, `√(1 − r) b_f` and `√r b_b`: targets of bounded variance.

    Source: Shi et al. 2023, Diffusion Schrödinger bridge matching, official code (loss scale and output scale).
    """

    def drift(self, output: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """`output / √(1 − r)` or `output / √r`."""
        return output / expand_as(_left(reference, t, towards).sqrt(), output)

    def target(self, drift: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """`√(1 − r) b_f` or `√r b_b`."""
        return drift * expand_as(_left(reference, t, towards).sqrt(), drift)


@PREDICTIONS.register("endpoint")
@dataclass(frozen=True, kw_only=True)
class EndPoint(Prediction):
    """The end that the trajectory goes to, `E[x1 | x_t]` or `E[x0 | x_t]`: bounded, and exact where it arrives.

    Source: Shi et al. 2023, official code (mean matching); Tang et al. 2024, Simplified DSB (terminal
    reparameterisation).
    """

    def drift(self, output: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """Of the reference pinned to the predicted end."""
        if towards == "x1":
            return conversion.b_f_from_x1(reference, t, x, output)
        return conversion.b_b_from_x0(reference, t, x, output)

    def target(self, drift: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """The end that the drift leads to."""
        if towards == "x1":
            return conversion.x1_from_b_f(reference, t, x, drift)
        return conversion.x0_from_b_b(reference, t, x, drift)


@PREDICTIONS.register("control")
@dataclass(frozen=True, kw_only=True)
class Control(Prediction):
    """The control in units of the noise, `Z = (b_f − f x)/g` and `Ẑ = (b_b + f x)/g`: zero is the reference itself.

    Source: Chen et al. 2022, Likelihood training of Schrödinger bridge (SB-FBSDE), Eq. 13.
    """

    def drift(self, output: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """`f x + g Z` or `−f x + g Ẑ`."""
        f = reference.f(t) if towards == "x1" else -reference.f(t)
        return expand_as(f, x) * x + expand_as(reference.g(t), x) * output

    def target(self, drift: Tensor, x: Tensor, t: Tensor, reference: ScalarReference, towards: End) -> Tensor:
        """`(b_f − f x)/g` or `(b_b + f x)/g`."""
        f = reference.f(t) if towards == "x1" else -reference.f(t)
        return (drift - expand_as(f, x) * x) / expand_as(reference.g(t), x)


def _left(reference: ScalarReference, t: Tensor, towards: End) -> Tensor:
    """Share of the clock that is still to run."""
    r = reference.progress(t.to(torch.float64))
    return 1 - r if towards == "x1" else r
