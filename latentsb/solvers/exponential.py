"""Exponential solvers of denoising bridges: exact where the prediction of x0 is constant over a step.

With `(a, b, c)` of the marginals at s (where the state is) and t < s (where it goes), `sigma_eff = sqrt(c)/b`.
Both solvers leave the last call's prediction of x0 as the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, enforce
from latentsb.solvers.base import SOLVERS, Grid, Start, StepSolver, denoising
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.start import FromNoise
from latentsb.tensors import expand_as

__all__ = ["DPMpp", "Posterior", "Prediction"]


@SOLVERS.register("posterior")
@dataclass(frozen=True, kw_only=True)
class Posterior(StepSolver[None]):
    """Steps through the posterior given the predicted x0; `steps` calls, order 1, no bias of the mean.

    `x_t = a_t x1 + b_t D + k (x_s − a_s x1 − b_s D) + w eps` with `w = eta sqrt(c_t (1 − sigma_t²/sigma_s²))` and
    `k = sqrt((c_t − w²)/c_s)`; every eta keeps the marginals.

    Source: Song et al. 2021 (DDIM), Eq. 12; Zheng et al. 2024 (Diffusion bridge implicit models).

    Args:
        steps: intervals.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        eta: 0 is deterministic given the start (DDIM, DBIM); 1 is the Markov posterior (ancestral sampling).
    """

    steps: Count = 50
    grid: Grid = LogUniform()
    start: Start = FromNoise()
    eta: Fraction = 0.0

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check the bridge and the direction."""
        checked(bridge, state, towards, "posterior")

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: None
    ) -> tuple[State, None]:
        """One step to s."""
        bridge = denoising(bridge, "solver 'posterior'")
        here, there = bridge.marginal(state.t), bridge.marginal(s)
        x0 = bridge.denoise(state.x, state.t, state.cond)
        x1 = state.cond.get("x1")
        shrink = (there.sigma_eff / here.sigma_eff) ** 2
        w2 = self.eta**2 * there.c * (1 - shrink)
        k = ((there.c - w2).clamp(min=0) / here.c).sqrt()
        x = there.mean(x0, x1) + expand_as(k, x0) * (state.x - here.mean(x0, x1))
        if float(w2) > 0:
            x = x + expand_as(w2.sqrt(), x) * draws.normal("noise", x)
        return replace(state, x=x, t=s), None


@dataclass(frozen=True)
class Prediction:
    """What a multistep method remembers of the step before.

    Args:
        x0: the prediction there.
        h: length of that step in `−ln sigma_eff`, shape ().
    """

    x0: Tensor
    h: Tensor


@SOLVERS.register("dpmpp")
@dataclass(frozen=True, kw_only=True)
class DPMpp(StepSolver[Prediction | None]):
    """DPM-Solver++ 2M: the prediction of x0 extrapolated from the last two calls; `steps` calls, order 2.

    `x_t = a_t x1 + k (x_s − a_s x1) + b_t (1 − e^{−h}) D'` with `h = ln(sigma_s/sigma_t)`, `k = sqrt(c_t/c_s)` and
    `D' = D_s + h/(2 h_u) (D_s − D_u)`, u being the time before s; the first and the last step are of first order.

    Source: Lu et al. 2022 (DPM-Solver++), Alg. 2, in the bridge's coordinates.

    Args:
        steps: intervals; 15 to 20 are enough on the log-uniform grid.
        grid: where they lie.
        start: how the bridge leaves t = 1.
    """

    steps: Count = 20
    grid: Grid = LogUniform()
    start: Start = FromNoise()

    def __post_init__(self) -> None:
        enforce(self)

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check the bridge and the direction."""
        checked(bridge, state, towards, "dpmpp")

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: Prediction | None
    ) -> tuple[State, Prediction]:
        """One step to s."""
        bridge = denoising(bridge, "solver 'dpmpp'")
        here, there = bridge.marginal(state.t), bridge.marginal(s)
        x0 = bridge.denoise(state.x, state.t, state.cond)
        shrink = there.sigma_eff / here.sigma_eff
        h = -shrink.log()
        ahead = x0
        if memory is not None and bool(shrink > 0):
            ahead = x0 + expand_as(h / (2 * memory.h), x0) * (x0 - memory.x0)
        x = _held(here, there, state, ahead, shrink)
        return replace(state, x=x, t=s), Prediction(x0, h)


def _held(here: Marginal, there: Marginal, state: State, x0: Tensor, shrink: Tensor) -> Tensor:
    """The exact step for a constant prediction x0."""
    x1 = state.cond.get("x1")
    noise = state.x if x1 is None else state.x - expand_as(here.a, x0) * x1
    x = expand_as((there.c / here.c).sqrt(), x0) * noise + expand_as(there.b * (1 - shrink), x0) * x0
    return x if x1 is None else x + expand_as(there.a, x0) * x1


def checked(bridge: Bridge, state: State, towards: End, name: str) -> DenoisingBridge:
    """The bridge, if an exponential solver can follow it from this state.

    Raises:
        CapabilityError: towards x1, for bridges that do not denoise, and where the state carries no noise.
    """
    if towards == "x1":
        raise CapabilityError(
            f"solver '{name}' runs towards x0 only; 'euler', 'heun' and 'euler_maruyama' run both ways"
        )
    bridge = denoising(bridge, f"solver '{name}'")
    if not bool(torch.as_tensor(bridge.marginal(state.t).c) > 0):
        raise CapabilityError(
            f"solver '{name}' needs noise at the grid's first time; there is none at t = {float(state.t):g}"
        )
    return bridge
