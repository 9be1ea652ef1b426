"""Solvers of the probability-flow ODE: any bridge, both ways."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.base import SOLVERS, Coordinates, Grid, Start, StepSolver
from latentsb.solvers.coordinates import NaturalCoordinate
from latentsb.solvers.grid import Natural
from latentsb.solvers.start import FromNoise
from latentsb.tensors import expand_as

__all__ = ["Euler", "Heun"]


@dataclass(frozen=True, kw_only=True)
class OdeSolver(StepSolver[None]):
    """A one-step method on the probability-flow ODE, in the coordinates of choice.

    Args:
        steps: intervals.
        grid: where they lie.
        start: how a denoising bridge leaves t = 1.
        coordinates: `time` for any bridge; `noise` for denoising ones, where the ODE is nearly straight; `natural`
            takes `noise` where there is any.
    """

    steps: Count
    grid: Grid = Natural()
    start: Start = FromNoise()
    coordinates: Coordinates = NaturalCoordinate()

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check that the bridge has these coordinates."""
        self.coordinates.clock(bridge, state.t)


@SOLVERS.register("euler")
@dataclass(frozen=True, kw_only=True)
class Euler(OdeSolver):
    """Euler's method on the probability-flow ODE; `steps` calls, order 1.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), Sec. 4.3.

    Args:
        steps: intervals.
        grid: where they lie.
        start: how a denoising bridge leaves t = 1.
        coordinates: `time` for any bridge; `noise` for denoising ones, where the ODE is nearly straight; `natural`
            takes `noise` where there is any.
    """

    steps: Count = 50

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: None
    ) -> tuple[State, None]:
        """`u + (τ_s − τ_t) du/dτ`."""
        plane = self.coordinates
        return travel(plane, bridge, state, s, plane.slope(bridge, state)), None


@SOLVERS.register("heun")
@dataclass(frozen=True, kw_only=True)
class Heun(OdeSolver):
    """Heun's method on the probability-flow ODE; two calls per step, order 2.

    A step that ends where the denoiser may not be asked (t = 0) is an Euler step, so a denoising bridge costs
    `2 steps − 1` calls.

    Source: Karras et al. 2022 (EDM), Alg. 1.

    Args:
        steps: intervals.
        grid: where they lie.
        start: how a denoising bridge leaves t = 1.
        coordinates: `time` for any bridge; `noise` for denoising ones, where the ODE is nearly straight; `natural`
            takes `noise` where there is any.
    """

    steps: Count = 25

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: None
    ) -> tuple[State, None]:
        """Average of the slopes at both ends of the Euler step."""
        plane = self.coordinates
        slope = plane.slope(bridge, state)
        guess = travel(plane, bridge, state, s, slope)
        if isinstance(bridge, DenoisingBridge) and not bridge.t_min <= float(s) <= bridge.t_max:
            return guess, None
        return travel(plane, bridge, state, s, (slope + plane.slope(bridge, guess)) / 2), None


def travel(plane: Coordinates, bridge: Bridge, state: State, s: Tensor, slope: Tensor) -> State:
    """The state at s when the position moves with a constant slope."""
    position = plane.position(bridge, state)
    length = expand_as(plane.clock(bridge, s) - plane.clock(bridge, state.t), position)
    return plane.state(bridge, position + length * slope, s, state)
