"""A bridge of one's own: quarter circles from data to noise."""

import math

import torch
from torch import Tensor

from latentsb import BRIDGES, Batch, Bridge, Build, Condition, Draws, Ends, Loss, Network, State


@BRIDGES.register("arc")
class Arc(Bridge):
    """Flow along arcs, `x_t = cos(πt/2) x0 + sin(πt/2) ε`, from noise at t = 1 to data at t = 0.

    Source: Albergo & Vanden-Eijnden 2023, Building normalizing flows with stochastic interpolants, Eq. 5.
    """

    def __init__(self, ends: Ends, *, network: Build[Network]) -> None:
        super().__init__()
        self.ends, self.network = ends, network(ends.spec, ends.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x0, noise = batch.data, draws.normal("noise", batch.data)
        t = draws.uniform("time")
        angle = (t * math.pi / 2).to(x0).reshape(-1, *[1] * (x0.ndim - 1))
        x, speed = angle.cos() * x0 + angle.sin() * noise, angle.cos() * noise - angle.sin() * x0
        return Loss((self.velocity(x, t, batch.cond) - math.pi / 2 * speed).square().flatten(1).mean(1))

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.network(x, t.to(x), cond)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: str = "x0") -> Tensor:
        return self.velocity(x, t, cond) if towards == "x1" else -self.velocity(x, t, cond)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def start(self, batch: Batch, draws: Draws, towards: str = "x0") -> State:
        at = batch.data if towards == "x1" else draws.normal("noise", self.ends.spec.zeros(len(batch), self.device))
        return State(at, torch.tensor(float(towards == "x0"), dtype=torch.float64), batch.cond)
