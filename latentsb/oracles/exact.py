"""An exact answer as a bridge, so that the solvers and metrics of trained ones run on it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.errors import CapabilityError
from latentsb.laws import Ends, Law
from latentsb.process.reference import Reference
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

__all__ = ["ExactBridge", "Oracle"]


class Oracle(Protocol):
    """What knows its drifts: `GaussianBridge`, `GridBridge`, `MixturePair` (towards x1)."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def reference(self) -> Reference:
        """Reference process."""
        ...

    def drift(self, x: Tensor, t: float | Tensor, towards: End = "x1") -> Tensor:
        """`b_f` towards x1, `b_b` as executed towards x0."""
        ...


class ExactBridge(Bridge):
    """The bridge whose drifts are those of an oracle; there is nothing to train.

    Args:
        oracle: that knows the drifts.
        x1: law of the other end, where a likelihood is wanted.
    """

    def __init__(self, oracle: Oracle, *, x1: Law | None = None) -> None:
        super().__init__()
        self.oracle = oracle
        self.ends = Ends(Spec((oracle.dim,)), x1=x1, two_sided=True)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """At the batch's x0 or x1.

        Raises:
            CapabilityError: if the batch does not bring that end.
        """
        x = batch.x1 if towards == "x0" else batch.x0
        if x is None:
            raise CapabilityError(f"a trajectory towards {towards} starts from the other end, which the batch lacks")
        return State(x, torch.tensor(1.0 if towards == "x0" else 0.0, dtype=torch.float64), batch.cond)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """That of the oracle."""
        return self.oracle.drift(x, t, towards)

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)` of the reference."""
        return self.oracle.reference.g(t)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """There is none.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("an exact bridge is not trained")
