"""What bridges with a drift of their own for each direction share: networks, starts, matching, simulated pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentsb.bridge import Bridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.errors import DataError
from latentsb.laws import Ends, Gaussian, Sampled
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Pair
from latentsb.process.path import Path, PathPoint
from latentsb.process.prediction import Prediction
from latentsb.process.reference import ScalarReference
from latentsb.process.times import TimeDistribution
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Loss, Round

__all__ = ["Simulated", "TwoSided", "depart", "other"]


def other(end: End) -> End:
    """The end across."""
    return "x1" if end == "x0" else "x0"


def depart(ends: Ends, batch: Batch, draws: Draws, towards: End, device: torch.device) -> State:
    """The start of a trajectory between two laws: the batch's own far end, or a draw of its law where it has none.

    Args:
        ends: of the bridge.
        batch: rows, with the ends that the data brings.
        draws: of the same rows.
        towards: the end that the trajectory goes to.
        device: of what is drawn.

    Raises:
        DataError: if neither the batch nor a law brings that end.
    """
    name = other(towards)
    x = batch.x1 if name == "x1" else batch.x0
    if x is None:
        law = ends.x1 if name == "x1" else ends.x0
        if not isinstance(law, Sampled):
            raise DataError(f"this bridge starts from data: give batches with {name}, since no law of it is known")
        x = law.sample(len(batch), draws.fork(name), batch.cond).to(device, ends.spec.dtype)
    return State(x, torch.tensor(float(name == "x1"), dtype=torch.float64), batch.cond)


@dataclass(frozen=True, kw_only=True)
class Simulated(Coupling):
    """Pairs that a bridge has simulated, drawn with replacement; conditions travel with their pair.

    A table is never paired anew: transport within batches would undo what the simulation has learned.

    Args:
        table: `x0`, `x1`, each condition as `cond.NAME` (absent in some rows: `present.NAME`) and whatever else belongs
            to a pair as `extra.NAME`, of equal numbers of rows, on the CPU.
    """

    table: Mapping[str, Tensor]
    aligned: ClassVar[bool] = False

    def pair(self, batch: Batch, ends: Ends, draws: Draws) -> Pair:
        """One pair of the table for each row of the batch, whatever the batch holds."""
        rows = draws.integers("simulated pair", len(self.table["x0"]))
        found = {name: value[rows].to(batch.data.device) for name, value in self.table.items()}
        cond, present, extra = (
            {name.removeprefix(kind): value for name, value in found.items() if name.startswith(kind)}
            for kind in ("cond.", "present.", "extra.")
        )
        return Pair(found["x0"], found["x1"], Condition(cond, present), extra)

    @staticmethod
    def rows(pair: Pair) -> dict[str, Tensor]:
        """A pair as rows of a table."""
        cond = {f"cond.{name}": value for name, value in pair.cond.values.items()}
        present = {f"present.{name}": value for name, value in pair.cond.present.items()}
        extra = {f"extra.{name}": value for name, value in pair.extra.items()}
        return {"x0": pair.x0, "x1": pair.x1, **cond, **present, **extra}


class TwoSided(Bridge):
    """A bridge between two laws with a network for each direction, `backward` towards x0 and `forward` towards x1.

    Args:
        ends: shapes and conditions; the data or a law bring x1, which is standard normal where nothing does.
        network: of the drifts; built twice.
        reference: the process whose bridge is sought; its epsilon is the entropic regularisation.
        prediction: what the networks predict.
        dropout: share of training rows whose label and attributes are hidden.
    """

    # A pinned drift is singular where it arrives; nearer than this no time is trained.
    t_min = 1e-3
    t_max = 1 - 1e-3

    def __init__(
        self,
        ends: Ends,
        network: Build[Network],
        *,
        reference: ScalarReference,
        prediction: Prediction,
        dropout: float,
    ) -> None:
        super().__init__()
        free = ends.x1 is None and not ends.two_sided
        self.ends = replace(ends, x1=Gaussian(ends.spec)) if free else ends
        self.reference, self.prediction, self.dropout = reference, prediction, dropout
        self.networks = nn.ModuleDict({end: network(self.ends.spec, self.ends.cond) for end in ("x0", "x1")})

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """The drift towards an end, by the network of that direction; t of shape () or (B,)."""
        return self.prediction.drift(self.output(x, t, cond, towards), x, t, self.reference, towards)

    def output(self, x: Tensor, t: Tensor, cond: Condition, towards: End) -> Tensor:
        """What the network towards an end gives, in the type of x: steps of a few thousandths are lost in bf16."""
        output: Tensor = self.networks[towards](x, t.to(device=x.device, dtype=x.dtype), cond)
        return output.to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Probability-flow velocity in forward time, `(b_f − b_b)/2`.

        One of the two drifts is read off where it arrives, so times are kept within [t_min, t_max].
        """
        return super().velocity(x, t.clamp(self.t_min, self.t_max), cond)

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)` of the reference, in both directions."""
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The batch's own far end, or a draw of its law, at t = 1; towards x1 the near end at t = 0.

        Raises:
            DataError: if neither the batch nor a law brings that end.
        """
        return depart(self.ends, batch, draws, towards, self.device)

    def error(self, point: PathPoint, t: Tensor, cond: Condition, towards: End) -> Tensor:
        """Squared error of a network's prediction at a point of a path, mean over a sample, shape (B,)."""
        drift = point.b_f if towards == "x1" else point.b_b
        target = self.prediction.target(drift, point.x, t, self.reference, towards)
        error: Tensor = (self.output(point.x, t, cond, towards) - target).square().flatten(1).mean(1)
        return error

    def matching(self, pair: Pair, path: Path, times: TimeDistribution, draws: Draws, towards: End) -> Loss:
        """Bridge matching: regress a drift on the path's own between the ends of a pair (Shi et al. 2023, Eq. 8, 11).

        Its optimum is the Markovian projection of the mixture of paths: it keeps every marginal, not the coupling.
        """
        t = times.sample(self, draws)
        cond = drop_conditions(pair.cond, self.dropout, draws)
        return Loss(self.error(path.at(t, pair, draws.fork(towards)), t, cond, towards))

    def simulate(self, round: Round, rows: int, solver: Solver, teacher: End) -> Simulated:
        """Pairs whose one end is data and whose other end the network towards `teacher` reaches from it.

        Args:
            round: makes the table, shared by the processes.
            rows: pairs.
            solver: of the trajectories; keep the noise of its last step, or the pairs lose its variance.
            teacher: the end that is simulated; the other one is exact.
        """

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            # Networks in the stage's precision; states and steps stay in that of the data.
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=round.bf16):
                return Simulated.rows(self.reach(batch, draws, solver, teacher))

        return Simulated(table=round.simulate(f"pairs towards {teacher}", rows, make))

    def reach(self, batch: Batch, draws: Draws, solver: Solver, teacher: End) -> Pair:
        """The rows of a batch at the far end of `teacher`, and where its network brings them."""
        state = self.start(batch, draws, teacher)
        reached = solver.run(self, state, draws.fork("simulation"), teacher).x
        return Pair(reached, state.x, batch.cond) if teacher == "x0" else Pair(state.x, reached, batch.cond)
