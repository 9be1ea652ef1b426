"""What planners share: trajectories whose start and goal are known, and stay where they are."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, End, State
from latentsb.denoising import denoised, require_times
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.preconditioning import Preconditioning
from latentsb.process.reference import ScalarReference
from latentsb.process.times import TimeDistribution, Weight
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec, expand_as
from latentsb.trainable import Loss

__all__ = ["Planning", "known_places"]


def known_places(spec: Spec, goal: int) -> Tensor:
    """Which entries of a trajectory are known: the whole first state, and the first `goal` channels of the last.

    Returns:
        Bool, shape (channels, horizon).
    """
    mask = torch.zeros(spec.shape, dtype=torch.bool)
    mask[:, 0] = True
    mask[:goal, -1] = True
    return mask


class Planning(DenoisingBridge):
    """A denoising bridge over trajectories (channels, horizon), conditioned on a start and a goal by projection.

    Batches bring as x1 the straight line from start to goal (data `trajectories`). Of it the entries of `mask` are
    known: at every time, in training and in sampling, the state has exactly these values there, and so has the
    prediction of x0. They carry no noise and no loss.

    Args:
        ends: shapes; batches must bring x1.
        goal: leading channels that are known at the end: the positions.
        reference: the process.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.

    Raises:
        ArgumentError: if the data are no trajectories with both ends.
    """

    aligned = True
    ways: tuple[End, ...] = ("x0",)
    t_max = 1 - 1e-4
    mask: Tensor
    network: Network

    def __init__(
        self,
        ends: Ends,
        goal: int,
        reference: ScalarReference,
        preconditioning: Preconditioning,
        times: TimeDistribution,
        weight: Weight,
    ) -> None:
        super().__init__()
        if len(ends.spec.shape) != 2 or not ends.two_sided:
            raise ArgumentError("data", "a planner needs trajectories and the lines between their ends: 'trajectories'")
        if goal > ends.spec.channels:
            raise ArgumentError("goal", f"found {goal}, but trajectories have {ends.spec.channels} channels")
        self.ends, self.reference, self.preconditioning = ends, reference, preconditioning
        self.times, self.weight = times, weight
        require_times(times, self)
        self.register_buffer("mask", known_places(ends.spec, goal), persistent=False)

    @abstractmethod
    def origin(self, line: Tensor, draws: Draws) -> Tensor | None:
        """The x1 of the rows, in agreement with what is known; None where the process has no other end.

        Args:
            line: shape (B, channels, horizon).
            draws: of the rows.
        """

    def project(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The state with the known entries in their places, at any time."""
        return torch.where(self.mask, cond["known"].to(x), x)

    def lines(self, batch: Batch) -> Tensor:
        """The lines of a batch; where it brings data, what is known agrees with these to the last bit.

        Raises:
            DataError: if there are none.
        """
        if batch.x1 is None:
            raise DataError("a planner starts from a start and a goal: give batches whose x1 is the line between them")
        return batch.x1 if batch.x0 is None else torch.where(self.mask, batch.x0, batch.x1)

    def asked(self, line: Tensor, draws: Draws) -> Condition:
        """The conditions of plans along these lines: `known`, zero where nothing is, and the x1 if there is one."""
        known = torch.where(self.mask, line, torch.zeros_like(line))
        x1 = self.origin(line, draws)
        return Condition({"known": known} if x1 is None else {"known": known, "x1": torch.where(self.mask, known, x1)})

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x0 | x_t = x, start, goal]`, with start and goal in their places."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return self.project(denoised(self.network, scales, x, cond.get("x1"), cond), t, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`w(t) |D(x_t, t) − x0|²`, mean over what is unknown of a trajectory, shape (B,)."""
        x0 = batch.data
        cond = self.asked(self.lines(batch), draws)
        t = self.times.sample(self, draws)
        marginal = self.marginal(t)
        x = self.project(marginal.sample(x0, cond.get("x1"), draws.normal("noise", x0)), t, cond)
        error = self.denoise(x, t, cond) - x0
        weight = self.weight.of(t, self, self.preconditioning.coefficients(marginal, t))
        unknown = (~self.mask).sum()
        return Loss((expand_as(weight, error) * error.square()).flatten(1).sum(1) / unknown)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The state at t = 1 for the lines that the batch brings as x1.

        Raises:
            CapabilityError: towards x1.
            DataError: if there are no lines.
        """
        if towards == "x1":
            raise CapabilityError("a planner runs towards x0: what a plan starts from is known")
        line = self.lines(batch)
        cond = self.asked(line, draws)
        end = torch.ones((), dtype=torch.float64)
        x1, nothing = cond.get("x1"), torch.zeros_like(line)
        x = self.marginal(end).sample(nothing, x1, draws.normal("x1", nothing))
        return State(self.project(x, end, cond), end, cond)
