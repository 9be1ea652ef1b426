"""DSBM: two directions, pairs renewed by the direction that is not trained, two processes, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.laws import Ends, Sampled
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Pair
from latentsb.process.path import Path
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule


@dataclass(frozen=True, kw_only=True)
class Simulated(Coupling):
    """Pairs from a table, drawn with replacement."""

    table: Mapping[str, Tensor]

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        rows = draws.integers("pair", len(self.table["x0"]))
        device = batch.data.device
        return Pair(self.table["x0"][rows].to(device), self.table["x1"][rows].to(device))


class DSBM(Bridge):
    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        reference: ScalarReference,
        path: Path,
        coupling: Coupling,
        network: Build[Network],
        simulation: Solver,
        images: int = 100_000,
        pairs: int = 10_000,
    ) -> None:
        super().__init__()
        self.ends, self.reference, self.path, self.simulation = ends, reference, path, simulation
        self.first, self.coupling, self.aligned = coupling, coupling, coupling.aligned
        self.backward_drift = network(ends.spec, ends.cond, ends.spec)
        self.forward_drift = network(ends.spec, ends.cond, ends.spec)
        self.images, self.pairs = images, pairs

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        network = self.backward_drift if towards == "x0" else self.forward_drift
        out: Tensor = network(x, t, cond)
        return out

    def diffusion(self, t: Tensor) -> Tensor:
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            return State(batch.data, torch.tensor(0.0, dtype=torch.float64), batch.cond)
        x1 = batch.x1
        if x1 is None:
            assert isinstance(self.ends.x1, Sampled)
            x1 = self.ends.x1.sample(len(batch), draws, batch.cond).to(self.device)
        return State(x1, torch.tensor(1.0, dtype=torch.float64), batch.cond)

    def matching(self, towards: End) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            pair = self.coupling.pair(batch, self.ends, draws)
            t = draws.uniform("t")
            point = self.path.at(t, pair, draws)
            target = point.b_b if towards == "x0" else point.b_f
            return Loss((self.drift(point.x, t, pair.cond, towards) - target).square().flatten(1).mean(1))

        return loss

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return self.matching("x0")(batch, draws)

    def schedule(self, part: str = "") -> Schedule:
        if part:
            return super().schedule(part)
        backward = Phase("backward", self.matching("x0"), trains=("backward_drift",))
        forward = Phase("forward", self.matching("x1"), trains=("forward_drift",))
        return Alternate((backward, forward), images=self.images)

    def renew(self, round: Round) -> None:
        if round.number == 0:
            self.coupling = self.first
            return
        teacher: End = "x0" if round.number % 2 else "x1"

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            state = self.start(batch, draws, teacher)
            end = self.simulation.run(self, state, draws, teacher).x
            return {"x0": end, "x1": state.x} if teacher == "x0" else {"x0": state.x, "x1": end}

        self.coupling = Simulated(table=round.simulate("pairs", self.pairs, make))


class Process(Round):
    """What the engine does, for one of several processes: blocks k with k % world == rank, then an exchange."""

    def __init__(self, number: int, seed: int, gather: Callable[[dict[int, Mapping[str, Tensor]]], None]) -> None:
        self.number, self.seed, self.gather = number, seed, gather
        self.rank, self.world, self.size = 0, 2, 32

    def simulate(
        self, name: str, rows: int, make: Callable[[Batch, Draws], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        blocks: dict[int, Mapping[str, Tensor]] = {}
        count = -(-rows // self.size)
        for k in range(self.rank, count, self.world):
            index = torch.arange(k * self.size, (k + 1) * self.size)
            blocks[k] = make(Batch(index), Draws.block(self.seed, f"{name} {self.number}", k, self.size))
        self.gather(blocks)
        return {key: torch.cat([blocks[k][key] for k in range(count)])[:rows] for key in blocks[0]}


def resume(bridge: DSBM, schedule: Schedule, seen: int, state: Mapping[str, object], work: Process) -> None:
    """Weights are restored; the table is made again from the direction that this round does not train."""
    schedule.load_state_dict(state)
    work.number, work.resumed = schedule.round(seen), True
    bridge.renew(work)
