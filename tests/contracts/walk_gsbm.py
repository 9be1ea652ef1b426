"""GSBM: Gaussian splines between simulated ends, fitted to a state cost when a round begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Pair
from latentsb.process.path import Path, PathPoint
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule

StateCost = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Spline:
    """A bent Brownian bridge: mean `(1−t) x0 + t x1 + t(1−t) bend`, variance `sigma² t(1−t)`."""

    sigma: float = 1.0

    def at(self, t: Tensor, pair: Pair, draws: Draws) -> PathPoint:
        u, bend = expand_as(t, pair.x0), pair.extra["bend"]
        mean = (1 - u) * pair.x0 + u * pair.x1 + u * (1 - u) * bend
        slope = pair.x1 - pair.x0 + (1 - 2 * u) * bend
        eps = draws.normal("path", pair.x0)
        x = mean + self.sigma * (u * (1 - u)).sqrt() * eps
        score = -(x - mean) / (self.sigma**2 * u * (1 - u))
        velocity = slope + (1 - 2 * u) / (2 * u * (1 - u)) * (x - mean)
        half = self.sigma**2 / 2 * score
        return PathPoint(x, velocity + half, -velocity + half, score)


class GSBM(Bridge):
    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        cost: StateCost,
        coupling: Coupling,
        network: Build[Network],
        simulation: Solver,
        sigma: float = 1.0,
        images: int = 100_000,
    ) -> None:
        super().__init__()
        self.ends, self.cost, self.coupling, self.simulation, self.images = ends, cost, coupling, simulation, images
        self.sigma = sigma
        self.path: Path = Spline(sigma=sigma)
        self.networks = torch.nn.ModuleDict({end: network(ends.spec, {}, ends.spec) for end in ("x0", "x1")})
        self.table: Mapping[str, Tensor] = {}

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        out: Tensor = self.networks[towards](x, t, cond)
        return out

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        pair = self.coupling.pair(batch, self.ends, draws)
        known = pair.x1 if towards == "x0" else pair.x0
        return State(known, torch.tensor(float(towards == "x0"), dtype=torch.float64), pair.cond)

    def matching(self, towards: End) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            rows = draws.integers("pair", len(self.table["x0"]))
            x0, x1, bend = (self.table[k][rows].to(self.device) for k in ("x0", "x1", "bend"))
            t = draws.uniform("t")
            point = self.path.at(t, Pair(x0, x1, extra={"bend": bend}), draws)
            target = point.b_b if towards == "x0" else point.b_f
            return Loss((self.drift(point.x, t, Condition(), towards) - target).square().flatten(1).mean(1))

        return loss

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return self.matching("x0")(batch, draws)

    def schedule(self, part: str = "") -> Schedule:
        if part:
            return super().schedule(part)
        ends: tuple[End, End] = ("x0", "x1")
        return Alternate(tuple(Phase(e, self.matching(e), trains=(f"networks.{e}",)) for e in ends), self.images)

    def bend(self, pair: Pair, draws: Draws) -> Tensor:
        """Fit the curve of each pair to the state cost by gradient descent."""
        bend = torch.zeros_like(pair.x0, requires_grad=True)
        with torch.enable_grad():
            for k in range(10):
                fork = draws.fork(f"fit {k}")
                t = fork.uniform("t")
                point = self.path.at(t, Pair(pair.x0, pair.x1, extra={"bend": bend}), fork)
                total = (self.cost(point.x, t) + point.b_f.square().flatten(1).sum(1) / 2).sum()
                (slope,) = torch.autograd.grad(total, bend)
                bend = (bend - 0.1 * slope).detach().requires_grad_()
        return bend.detach()

    def renew(self, round: Round) -> None:
        teacher: End = "x0" if round.number % 2 else "x1"

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            pair = self.coupling.pair(batch, self.ends, draws)
            if round.number:
                state = self.start(batch, draws, teacher)
                end = self.simulation.run(self, state, draws, teacher).x
                pair = Pair(end, state.x) if teacher == "x0" else Pair(state.x, end)
            return {"x0": pair.x0, "x1": pair.x1, "bend": self.bend(pair, draws)}

        self.table = round.simulate("splines", 10_000, make)
