"""A bridge of somebody else: one file, one decorator, one word in a recipe."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb import BRIDGES, Batch, Bridge, Build, CapabilityError, Condition, Draws, Ends, Loss, Network, State
from latentsb.bridge import End
from latentsb.ranges import Positive
from latentsb.tensors import expand_as


@BRIDGES.register("straight")
class Straight(Bridge):
    """Straight lines from data to a Gaussian.

    Source: Liu et al. 2023, Rectified Flow.
    """

    def __init__(self, ends: Ends, *, network: Build[Network], spread: Positive = 1.0) -> None:
        super().__init__()
        self.ends, self.spread = ends, spread
        self.network = network(ends.spec, ends.cond, ends.spec)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.network(x, t, cond)
        return out

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        return self.velocity(x, t, cond) * (1 if towards == "x1" else -1)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            raise CapabilityError("straight runs towards x0")
        x1 = self.spread * draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        return State(x1, torch.tensor(1.0, dtype=torch.float64), batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x0, t = batch.data, draws.uniform("t")
        x1 = self.spread * draws.normal("x1", x0)
        x = x0 + expand_as(t, x0) * (x1 - x0)
        return Loss((self.velocity(x, t, batch.cond) - (x1 - x0)).square().flatten(1).mean(1))
