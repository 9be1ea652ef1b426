"""Planning: trajectories as latents, start and goal known in training, along the trajectory and at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.laws import Ends, Law
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss


class Line(Law):
    """The straight line from the known start to the known goal, shape (D, horizon): a law of one point."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        assert cond is not None
        known = cond["known"].cpu()
        u = torch.linspace(0, 1, self.spec.shape[-1])
        return known[..., :1] * (1 - u) + known[..., -1:] * u


class Planner(DenoisingBridge):
    def __init__(self, ends: Ends, *, reference: ScalarReference, network: Build[Network]) -> None:
        super().__init__()
        self.ends, self.line, self.reference = ends, Line(ends.spec), reference
        shapes = {"known": ends.cond["known"], "mask": ends.cond["mask"], "x1": ends.spec}
        self.network = network(ends.spec, shapes, ends.spec)

    def project(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.where(cond["mask"].bool(), cond["known"].to(x), x)

    def marginal(self, t: Tensor) -> Marginal:
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.project(self.network(x, t, cond), t, cond)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            raise CapabilityError("the planner runs towards x0")
        t = torch.tensor(1.0, dtype=torch.float64)
        x1 = self.line.sample(len(batch), draws, batch.cond).to(self.device)
        return State(self.project(x1, t, batch.cond), t, batch.cond.with_(x1=x1))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x0, t = batch.data, draws.uniform("t")
        cond = batch.cond.with_(x1=self.line.sample(len(batch), draws, batch.cond).to(x0))
        x = self.project(self.marginal(t).sample(x0, cond["x1"], draws.normal("noise", x0)), t, cond)
        return Loss((self.denoise(x, t, cond) - x0).square().flatten(1).mean(1))


def plan(bridge: Planner, solver: Solver, known: Tensor, mask: Tensor, seeds: list[int]) -> Tensor:
    """A trajectory per row; nothing but its start and goal is known."""
    draws = Draws.seeds(seeds)
    batch = Batch(torch.arange(len(seeds)), cond=Condition({"known": known, "mask": mask}))
    end = solver.run(bridge, bridge.start(batch, draws), draws).state
    return bridge.project(end.x, end.t, end.cond)
