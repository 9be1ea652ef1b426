"""The probability-flow ODE to a tolerance rather than in a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.errors import Error
from latentsb.randomness import Draws
from latentsb.ranges import Count, Positive
from latentsb.solvers.base import SOLVERS, Coordinates, Grid, Start
from latentsb.solvers.coordinates import NaturalCoordinate
from latentsb.solvers.grid import Natural
from latentsb.solvers.ode import OdeSolver, travel
from latentsb.solvers.start import FromNoise

__all__ = ["Adaptive", "integrate"]


@SOLVERS.register("adaptive")
@dataclass(frozen=True, kw_only=True)
class Adaptive(OdeSolver):
    """Dormand–Prince steps of order 5 on the probability-flow ODE, as long as a tolerance allows; both ways.

    Steps are chosen so that the estimated error of *every* sample, root mean square over its numbers, stays below
    `atol + rtol |position|` in each step; what they cost is counted in `calls`. All samples of a batch take the same
    steps, those that the hardest of them needs: a sample is the same in every batch to the tolerance, not to rounding
    as with the other solvers. A step that ends where the denoiser may not be asked (t = 0) is an Euler step: in the
    coordinates `noise` the last call's prediction of x0.

    Source: Dormand & Prince 1980, by torchdiffeq; Song et al. 2021 (Score-based generative modeling through SDEs),
    Sec. 4.3.

    Args:
        steps: parts of the way between the times of the grid, at which trajectories are shown; the error control
            divides each further.
        grid: where the parts begin and end.
        start: how a denoising bridge leaves t = 1.
        coordinates: `time` for any bridge; `noise` for denoising ones, where the ODE is nearly straight; `natural`
            takes `noise` where there is any.
        rtol: error per step, relative to the position.
        atol: error per step.
    """

    steps: Count = 2
    grid: Grid = Natural()
    start: Start = FromNoise()
    coordinates: Coordinates = NaturalCoordinate()
    rtol: Positive = 1e-5
    atol: Positive = 1e-5

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: None
    ) -> tuple[State, None]:
        """The ODE from one time of the grid to the next."""
        plane = self.coordinates
        if isinstance(bridge, DenoisingBridge) and not bridge.t_min <= float(s) <= bridge.t_max:
            return travel(plane, bridge, state, s, plane.slope(bridge, state)), None

        def slope(clock: Tensor, position: Tensor) -> Tensor:
            return plane.slope(bridge, plane.state(bridge, position, plane.time(bridge, clock), state))

        span = plane.clock(bridge, state.t), plane.clock(bridge, s)
        end = integrate(slope, plane.position(bridge, state), span, rtol=self.rtol, atol=self.atol)
        return plane.state(bridge, end, s, state), None


def integrate(
    slope: Callable[[Tensor, Tensor], Tensor],
    position: Tensor,
    span: tuple[Tensor, Tensor],
    *,
    rtol: float,
    atol: float,
) -> Tensor:
    """Follow `d position/d clock = slope` from one end of a span to the other, to a tolerance in every row.

    Args:
        slope: of the clock, float64 on the CPU of shape (), and the position.
        position: where it begins, shape (B, …).
        span: first and last clock, float64, shape () each; it may fall.
        rtol: error per step, relative to the position.
        atol: error per step.

    Returns:
        The last position, shape and dtype of `position`.

    Raises:
        Error: if no step is short enough.
    """

    def worst(error: Tensor) -> Tensor:
        return error.flatten(1).square().mean(1).sqrt().max() if error.ndim > 1 else error.abs().max()

    def field(clock: Tensor, at: Tensor) -> Tensor:
        return slope(clock.to("cpu", torch.float64), at)

    clocks = torch.stack(span).to(position.device)
    # Without `step_t` the last step passes the end, where the network may not be asked, and is interpolated back.
    options = {"norm": worst, "step_t": clocks}
    try:
        path: Tensor = odeint(field, position, clocks, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        raise Error(
            f"no step is short enough for rtol = {rtol:g} and atol = {atol:g} ({error}); the network's answers may not "
            "be finite, or ask for more than their rounding allows"
        ) from error
    return path[-1]
