"""Solvers of the stochastic differential equation: any bridge, both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.base import SOLVERS, Grid, Start, StepSolver
from latentsb.solvers.grid import Natural
from latentsb.solvers.start import FromNoise
from latentsb.tensors import expand_as

__all__ = ["EulerMaruyama"]


@SOLVERS.register("euler_maruyama")
@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(StepSolver[int]):
    """Euler–Maruyama steps of the SDE: `x + h b + g sqrt(h) eps`; `steps` calls, weak order 1.

    Source: Maruyama 1955; De Bortoli et al. 2021 (Diffusion Schrödinger bridge) for the noiseless last step.

    Args:
        steps: intervals.
        grid: where they lie.
        start: how a denoising bridge leaves t = 1.
        noiseless_last: leave the noise of the last step out. Better pictures; the law loses that step's variance.
    """

    steps: Count = 100
    grid: Grid = Natural()
    start: Start = FromNoise()
    noiseless_last: bool = True

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> int:
        """The number of steps that are still to come."""
        return self.steps

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: int
    ) -> tuple[State, int]:
        """One step with the drift as executed."""
        h = (s - state.t).abs()
        x = state.x + expand_as(h, state.x) * bridge.drift(state.x, state.t, state.cond, towards)
        if memory > 1 or not self.noiseless_last:
            spread = bridge.diffusion(state.t) * h.sqrt()
            x = x + expand_as(spread, x) * draws.normal("noise", x)
        return replace(state, x=x, t=s), memory - 1
