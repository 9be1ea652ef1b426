"""Reversing a simulated chain: what the network of one direction learns from steps of the other.

A chain `x_{k+1} = F_k(x_k) + g √h ε` with `F_k(x) = x + h b(x, t_k)` is run towards one end. The network of the other
direction learns, at the state `x_{k+1}` and its time, a drift that undoes the step. All labels are drifts as executed,
so that every `Prediction` serves every objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentsb.process.prediction import End, Prediction
from latentsb.process.reference import ScalarReference
from latentsb.registry import Registry
from latentsb.tensors import expand_as

__all__ = ["OBJECTIVES", "Link", "Objective", "Original", "Simplified", "Terminal"]


@dataclass(frozen=True)
class Link:
    """One step of each of B chains, to be undone.

    Args:
        first: where the chain started, at the end that the network leads to, shape (B, …).
        before: state before the step.
        after: state after it, where the network is asked.
        t: time of `after`, float64, shape (B,).
        s: time of `before`.
        correction: what the objective asked to keep of the step, or None.
    """

    first: Tensor
    before: Tensor
    after: Tensor
    t: Tensor
    s: Tensor
    correction: Tensor | None = None


class Objective(ABC):
    """A choice of the label, and of the measure of the error; a frozen dataclass."""

    def correction(self, drift: Tensor, again: Callable[[], Tensor]) -> Tensor | None:
        """What is kept of a step beside the states, shape of x; nothing by default.

        Args:
            drift: of the chain at the state before the step.
            again: the chain's drift at the state after the step, still at the time before it; costs a call.
        """
        return None

    @abstractmethod
    def label(self, link: Link, reference: ScalarReference, towards: End) -> Tensor:
        """Drift towards an end that is right on average, shape of x."""

    @abstractmethod
    def error(
        self, output: Tensor, link: Link, prediction: Prediction, reference: ScalarReference, towards: End
    ) -> Tensor:
        """What is squared: the distance between a network's output at `link.after` and the label, shape of x."""


OBJECTIVES: Registry[Objective] = Registry("objective", Objective, homes=("latentsb.process.reversal",))


class OneStep(Objective):
    """A regression on the mean of one reversed step, in units of the step's noise.

    With `b` the network's drift and `b*` the label it is `√h (b − b*)/g = (x + h b − target)/(g √h)`: the square is
    twice the negative log-likelihood of the target under the network's step, so steps of every length count rightly,
    and it is about one per dimension however many steps there are.
    """

    def error(
        self, output: Tensor, link: Link, prediction: Prediction, reference: ScalarReference, towards: End
    ) -> Tensor:
        """`√h (b − b*)/g`."""
        gap = prediction.drift(output, link.after, link.t, reference, towards) - self.label(link, reference, towards)
        return gap * expand_as((link.s - link.t).abs().sqrt() / reference.g(link.s), gap)


@OBJECTIVES.register("original")
@dataclass(frozen=True, kw_only=True)
class Original(OneStep):
    """The mean that undoes a step to second order: `x_{k+1} + F_k(x_k) − F_k(x_{k+1})`; two calls per step.

    Source: De Bortoli et al. 2021, Diffusion Schrödinger bridge, Prop. 3.
    """

    def correction(self, drift: Tensor, again: Callable[[], Tensor]) -> Tensor | None:
        """`b(x_k, t_k) − b(x_{k+1}, t_k)`."""
        return drift - again()

    def label(self, link: Link, reference: ScalarReference, towards: End) -> Tensor:
        """`(x_k − x_{k+1})/h + b(x_k, t_k) − b(x_{k+1}, t_k)`."""
        assert link.correction is not None
        return _back(link) + link.correction


@OBJECTIVES.register("simplified")
@dataclass(frozen=True, kw_only=True)
class Simplified(OneStep):
    """The state before the step, whose mean is exactly that of the reversed chain; one call per step.

    Source: Tang et al. 2024, Simplified diffusion Schrödinger bridge.
    """

    def label(self, link: Link, reference: ScalarReference, towards: End) -> Tensor:
        """`(x_k − x_{k+1})/h`."""
        return _back(link)


@OBJECTIVES.register("terminal")
@dataclass(frozen=True, kw_only=True)
class Terminal(Objective):
    """Where the chain came from; the drift is the reference's towards that end, as in bridge matching on chains.

    It agrees with the reversal of the chain where the chain is the reference or a Schrödinger bridge over it, and the
    more its pinned paths differ from the reference's, the less. With the prediction `endpoint` it is the published
    terminal reparameterisation, with `drift` that of the flow.

    Source: Tang et al. 2024, Simplified diffusion Schrödinger bridge (terminal and flow reparameterisation).
    """

    def label(self, link: Link, reference: ScalarReference, towards: End) -> Tensor:
        """The drift of the reference that is pinned to the chain's first state."""
        if towards == "x1":
            return reference.b_f(link.after, link.t, link.first)
        return reference.b_b(link.after, link.t, link.first)

    def error(
        self, output: Tensor, link: Link, prediction: Prediction, reference: ScalarReference, towards: End
    ) -> Tensor:
        """The output less what the network should give for the label."""
        return output - prediction.target(self.label(link, reference, towards), link.after, link.t, reference, towards)


def _back(link: Link) -> Tensor:
    """The drift that leads from the state after the step to the one before it."""
    return (link.before - link.after) / expand_as((link.s - link.t).abs(), link.after)
