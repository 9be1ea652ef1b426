"""Class-conditional training with dropped labels, and guidance as a bridge around the bridge."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solution, Solver
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Loss


class Score(DenoisingBridge):
    def __init__(
        self, ends: Ends, *, reference: ScalarReference, network: Build[Network], drop_label: float = 0.1
    ) -> None:
        super().__init__()
        self.ends, self.reference, self.drop_label = ends, reference, drop_label
        self.network = network(ends.spec, {"label": ends.cond["label"]}, ends.spec)

    def marginal(self, t: Tensor) -> Marginal:
        return self.reference.noised(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.network(x, t, cond)
        return out

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            return State(batch.data, torch.tensor(0.0, dtype=torch.float64), batch.cond)
        t = torch.tensor(1.0, dtype=torch.float64)
        zero = self.ends.spec.zeros(len(batch), self.device)
        return State(self.marginal(t).sample(zero, None, draws.normal("x1", zero)), t, batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        cond = batch.cond.drop("label", draws.uniform("drop") < self.drop_label)
        t = draws.uniform("t")
        x = self.marginal(t).sample(batch.data, None, draws.normal("noise", batch.data))
        return Loss((self.denoise(x, t, cond) - batch.data).square().flatten(1).mean(1))


class Guided(DenoisingBridge):
    """`denoise(x, absent) + scale (denoise(x, cond) − denoise(x, absent))` for t inside the interval."""

    def __init__(
        self, bridge: DenoisingBridge, scale: float, interval: tuple[float, float] = (0.0, 1.0), name: str = "label"
    ) -> None:
        super().__init__()
        self.bridge, self.scale, self.interval, self.name = bridge, scale, interval, name
        self.ends, self.reference = bridge.ends, bridge.reference
        self.t_min, self.t_max = bridge.t_min, bridge.t_max

    def marginal(self, t: Tensor) -> Marginal:
        return self.bridge.marginal(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        guided = self.bridge.denoise(x, t, cond)
        if not self.interval[0] <= float(t) <= self.interval[1]:
            return guided
        plain = self.bridge.denoise(x, t, cond.drop(self.name))
        return plain + self.scale * (guided - plain)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        return self.bridge.start(batch, draws, towards)

    def project(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.bridge.project(x, t, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        raise CapabilityError("guidance is for sampling; train the bridge inside")


def sample(bridge: DenoisingBridge, solver: Solver, labels: Tensor, seeds: list[int]) -> Solution:
    draws = Draws.seeds(seeds)
    batch = Batch(torch.arange(len(seeds)), cond=Condition({"label": labels}))
    guided = Guided(bridge, scale=2.0)
    return solver.run(guided, guided.start(batch, draws), draws)
