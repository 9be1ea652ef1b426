"""The official sampler of denoising diffusion bridges: noise and ODE in turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.base import SOLVERS, Coordinates, Grid, Start, StepSolver, denoising, one_way
from latentsb.solvers.coordinates import TimeCoordinate
from latentsb.solvers.grid import KarrasTime
from latentsb.solvers.ode import travel
from latentsb.solvers.start import Endpoint
from latentsb.tensors import expand_as

__all__ = ["Hybrid"]


@SOLVERS.register("hybrid")
@dataclass(frozen=True, kw_only=True)
class Hybrid(StepSolver[None]):
    """The official bridge sampler: a share of each interval by the SDE, the rest by the ODE.

    From t to s: one Euler–Maruyama step to `t' = t + churn (s − t)`, then a step of the probability-flow ODE from t' to
    s, Euler's or Heun's; the last interval ends with Euler's. Calls: `steps` for Euler, `2 steps − 1` for Heun, and
    `steps` more with churn. It needs hundreds of calls; it is here to reproduce published figures.

    The last interval's ODE step asks the denoiser at `(1 − churn) t_min`, just below its smallest training time.
    The published code also clamps every prediction of x0 to the range of pixels, [-1, 1]; latents have none, and here
    nothing is clamped.

    Source: Zhou et al. 2024 (Denoising diffusion bridge models), Alg. 1; churn 0.33 is its default, and with
    `steps: 333` that of Kim et al. 2025 (Diffusion bridge autoencoders).

    Args:
        steps: intervals.
        churn: share of each interval that carries noise; 0 is the ODE alone.
        corrector: Heun's step in the place of Euler's.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        coordinates: of the ODE step.
    """

    steps: Count = 333
    churn: Annotated[float, Ge(0), Lt(1)] = 0.33
    corrector: bool = True
    grid: Grid = KarrasTime()
    start: Start = Endpoint()
    coordinates: Coordinates = TimeCoordinate()

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check the bridge and the direction."""
        one_way("hybrid", towards)
        self.coordinates.clock(denoising(bridge, "solver 'hybrid'"), state.t)

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: None
    ) -> tuple[State, None]:
        """Noise, then the ODE."""
        bridge, plane = denoising(bridge, "solver 'hybrid'"), self.coordinates
        if self.churn > 0:
            h = self.churn * (state.t - s)
            x = state.x + expand_as(h, state.x) * bridge.drift(state.x, state.t, state.cond, towards)
            spread = bridge.diffusion(state.t) * h.sqrt()
            x = x + expand_as(spread, x) * draws.normal("noise", x)
            state = replace(state, x=x, t=state.t - h)
        slope = plane.slope(bridge, state)
        guess = travel(plane, bridge, state, s, slope)
        if not self.corrector or float(s) < bridge.t_min:
            return guess, None
        return travel(plane, bridge, state, s, (slope + plane.slope(bridge, guess)) / 2), None
