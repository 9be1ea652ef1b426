"""Solvers that do not step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from latentsb.bridge import Bridge, End, PlannedBridge, State, require
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.base import SOLVERS, Record, Solution, Solver, Start, counting, denoising, one_way, settle
from latentsb.solvers.start import Centre
from latentsb.tensors import expand_as

__all__ = ["Denoise", "Direct"]


@SOLVERS.register("denoise")
@dataclass(frozen=True, kw_only=True)
class Denoise(Solver):
    """One call, `D(x1, 1, z)`: the mean of x0 given the other end, the decoding of least squared error (faithful).

    Source: Kim et al. 2025 (Diffusion bridge autoencoders), reconstruction.

    Args:
        start: what the denoiser is shown where it may not be asked at t = 1 itself.
    """

    start: Start = Centre()

    def run(
        self, bridge: Bridge, state: State, draws: Draws, towards: End = "x0", record: Record | None = None
    ) -> Solution:
        """Ask the denoiser at the latest time at which it may be asked."""
        one_way("denoise", towards)
        bridge = denoising(bridge, "solver 'denoise'")
        latest = torch.tensor(bridge.t_max, dtype=torch.float64)
        with counting(bridge) as count:
            if bool(state.t > latest):
                state = self.start.enter(bridge, state, latest, draws.fork("start"))
            state = settle(bridge, state, record)
            x0 = bridge.denoise(state.x, state.t, state.cond)
            state = settle(bridge, replace(state, x=x0, t=torch.zeros_like(state.t)), record)
        return Solution(state.x, count.calls, state)


@SOLVERS.register("direct")
@dataclass(frozen=True, kw_only=True)
class Direct(Solver):
    """A draw of the other end itself, of bridges with a closed-form plan (`lightsb`); no calls, no bias of steps.

    A recorded trajectory is the reference pinned to both ends, drawn at evenly spaced times, which is exact too.

    Source: Korotin et al. 2024, Light Schrödinger bridge, Sec. 3.3.

    Args:
        steps: intervals of a recorded trajectory; where it ends does not depend on them.
    """

    steps: Count = 50

    def __post_init__(self) -> None:
        enforce(self)

    def run(
        self, bridge: Bridge, state: State, draws: Draws, towards: End = "x0", record: Record | None = None
    ) -> Solution:
        """Draw the end, then the way to it for who records it."""
        planned = require(bridge, PlannedBridge, "solver 'direct'")
        with counting(bridge) as count:
            end = State(planned.arrive(state, draws.fork("end"), towards), _time(towards), state.cond)
            if record is not None:
                self._fill(planned, settle(bridge, state, record), end, draws, record)
            end = settle(bridge, end, record)
        return Solution(end.x, count.calls, end)

    def _fill(self, bridge: PlannedBridge, state: State, end: State, draws: Draws, record: Record) -> None:
        """Show the way from a state to its end, without both."""
        for k, t in enumerate(torch.linspace(float(state.t), float(end.t), self.steps + 1, dtype=torch.float64)[1:-1]):
            early, late = sorted((state, end), key=lambda one: float(one.t))
            law = bridge.reference.between(early.t, t, late.t)
            mean = expand_as(law.a, state.x) * late.x + expand_as(law.b, state.x) * early.x
            noise = draws.fork(f"way {k}").normal("noise", state.x)
            state = settle(bridge, State(mean + expand_as(law.std, mean) * noise, t, state.cond), record)


def _time(end: End) -> torch.Tensor:
    return torch.tensor(float(end == "x1"), dtype=torch.float64)
