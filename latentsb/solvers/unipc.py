"""Exponential predictor–corrector: two orders for every call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.base import SOLVERS, Grid, Start, StepSolver, denoising
from latentsb.solvers.exponential import checked
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.start import FromNoise
from latentsb.tensors import expand_as

__all__ = ["Past", "UniPC"]


@dataclass(frozen=True)
class Past:
    """What the predictor–corrector remembers.

    Args:
        clock: `−ln sigma_eff` of the last state, shape ().
        y: the last state, corrected.
        predictions: of x0 with their clocks, the latest first.
    """

    clock: Tensor
    y: Tensor
    predictions: tuple[tuple[Tensor, Tensor], ...]


@SOLVERS.register("unipc")
@dataclass(frozen=True, kw_only=True)
class UniPC(StepSolver[Past | None]):
    """Predictor–corrector of denoising bridges: each call predicts the next state and corrects this one; `steps` calls.

    In `y` and `lambda = −ln sigma_eff` the ODE is `dy/dlambda = D − y`, and over a step
    `y_t = e^{−h} y_s + ∫_0^h e^{−(h−r)} P(r) dr` with P the polynomial through predictions of x0. The predictor's
    passes through the last `order` of them; the call at its end adds one more, with which the same step is taken again,
    so that the corrected state is of order `order + 1` without a further call. The first steps have fewer predictions
    and the last returns the last call's.

    Source: Zhao et al. 2023 (UniPC), whose varying coefficients these are; Hochbruck & Ostermann 2010 (Exponential
    integrators) for exponential Adams methods.

    Args:
        steps: intervals; 16 to 20 are enough on the log-uniform grid.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        order: of the predictor.
    """

    steps: Count = 20
    grid: Grid = LogUniform()
    start: Start = FromNoise()
    order: Annotated[int, Ge(1), Le(4)] = 3

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check the bridge and the direction; nothing is remembered yet."""
        checked(bridge, state, towards, "unipc")

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: Past | None
    ) -> tuple[State, Past]:
        """Correct the state at hand, then predict the one at s."""
        bridge = denoising(bridge, "solver 'unipc'")
        here, there, x1 = bridge.marginal(state.t), bridge.marginal(s), state.cond.get("x1")
        clock, x0 = -here.sigma_eff.log(), bridge.denoise(state.x, state.t, state.cond)
        if memory is None:
            past = Past(clock, here.to_y(state.x, x1), ((clock, x0),))
        else:
            known = ((clock, x0), *memory.predictions)[: self.order + 1]
            past = Past(clock, follow(memory.y, memory.clock, clock, known), known)
        if bool(there.sigma_eff == 0):
            return replace(state, x=there.from_y(x0, x1), t=s), past
        y = follow(past.y, clock, -there.sigma_eff.log(), past.predictions[: self.order])
        return replace(state, x=there.from_y(y, x1), t=s), past


def follow(y: Tensor, clock: Tensor, to: Tensor, predictions: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """Solve `dy/dlambda = P − y` exactly from one clock to another.

    Args:
        y: at the first clock, shape (B, …).
        clock: the first, float64, shape ().
        to: the second.
        predictions: points of the polynomial P: their clocks and their values, of the shape of y.
    """
    h = to - clock
    places = torch.stack([where for where, _ in predictions]) - clock
    powers = torch.arange(len(predictions), dtype=torch.float64)
    moments = [-torch.expm1(-h)]
    for k in range(1, len(predictions)):
        moments.append(h**k - k * moments[-1])
    weights = torch.linalg.solve(places[None] ** powers[:, None], torch.stack(moments))
    out = expand_as((-h).exp(), y) * y
    for weight, (_, x0) in zip(weights, predictions, strict=True):
        out = out + expand_as(weight, y) * x0
    return out
