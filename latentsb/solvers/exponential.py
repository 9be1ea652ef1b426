"""Exponential solvers of denoising bridges: exact where the prediction of x0 is constant over a step.

With `(a, b, c)` of the marginals at s (where the state is) and t < s (where it goes), `sigma_eff = sqrt(c)/b`, and
`h = ln(sigma_s/sigma_t)`, every step here is

`x_t = a_t x1 + k (x_s − a_s x1) + (b_t − k b_s) D_s + b_t G (D_s − D_u)/h_u + w eps`

with `w = eta sqrt(c_t (1 − sigma_t²/sigma_s²))` and `k = sqrt((c_t − w²)/c_s)`. In `y` and `lambda = −ln sigma_eff` it
solves `dy = m (D − y) dlambda + noise` over the step, where `e^{−m h} = k b_s/b_t` (m is 1 for eta 0, 2 for eta 1). The
solvers differ only in G, the share of the prediction's slope since the time u before s. The last step has no noise to
look ahead for, and leaves the last call's prediction of x0 as the result.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, enforce
from latentsb.solvers.base import SOLVERS, Grid, Start, StepSolver, denoising, one_way
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.start import FromNoise
from latentsb.tensors import expand_as

__all__ = ["DPMpp", "Exponential", "Posterior", "Posterior2", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What a multistep method remembers of the step before.

    Args:
        x0: the prediction there.
        h: length of that step in `−ln sigma_eff`, shape ().
    """

    x0: Tensor
    h: Tensor


@dataclass(frozen=True, kw_only=True)
class Exponential(StepSolver[Prediction | None]):
    """A step that is exact for a constant prediction of x0, and what a solver makes of the prediction's slope.

    Args:
        steps: intervals.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        eta: 0 is deterministic given the start; 1 has the noise of the Markov posterior (ancestral sampling).
    """

    steps: Count
    grid: Grid = LogUniform()
    start: Start = FromNoise()
    eta: Fraction = 0.0

    def __post_init__(self) -> None:
        enforce(self)

    @abstractmethod
    def gain(self, h: Tensor, decay: Tensor) -> Tensor | None:
        """What the slope of the prediction adds to `y` over a step.

        Args:
            h: the step's length in `−ln sigma_eff`, finite, shape ().
            decay: `m h`, shape ().

        Returns:
            G of the module's formula, shape (); None for a solver of first order.
        """

    def begin(self, bridge: Bridge, state: State, towards: End) -> None:
        """Check the bridge and the direction; no prediction is remembered yet."""
        checked(bridge, state, towards, SOLVERS.word_of(self))

    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: Prediction | None
    ) -> tuple[State, Prediction]:
        """One step to s."""
        bridge = denoising(bridge, f"solver '{SOLVERS.word_of(self)}'")
        here, there = bridge.marginal(state.t), bridge.marginal(s)
        x0 = bridge.denoise(state.x, state.t, state.cond)
        x1 = state.cond.get("x1")
        shrink = there.sigma_eff / here.sigma_eff
        h = -shrink.log()
        w2 = self.eta**2 * there.c * (1 - shrink**2)
        k = ((there.c - w2).clamp(min=0) / here.c).sqrt()
        noise = state.x if x1 is None else state.x - expand_as(here.a, x0) * x1
        x = expand_as(k, x0) * noise + expand_as(there.b - k * here.b, x0) * x0
        if x1 is not None:
            x = x + expand_as(there.a, x0) * x1
        if memory is not None and bool(shrink > 0):
            gain = self.gain(h, -(k * here.b / there.b).log())
            if gain is not None:
                x = x + expand_as(there.b * gain / memory.h, x0) * (x0 - memory.x0)
        if bool(w2 > 0):
            x = x + expand_as(w2.sqrt(), x) * draws.normal("noise", x)
        return replace(state, x=x, t=s), Prediction(x0, h)


@SOLVERS.register("posterior")
@dataclass(frozen=True, kw_only=True)
class Posterior(Exponential):
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

    def gain(self, h: Tensor, decay: Tensor) -> None:
        """Nothing: the prediction is held."""


@SOLVERS.register("posterior2")
@dataclass(frozen=True, kw_only=True)
class Posterior2(Exponential):
    """Posterior steps of second order: the line through the last two predictions, integrated exactly; `steps` calls.

    `posterior`'s step with `b_t (h − (1 − e^{−mh})/m) (D_s − D_u)/h_u` added; for eta 0 the bracket is
    `e^{−h} + h − 1`. The first and the last step are of first order.

    Source: Zheng et al. 2024 (Diffusion bridge implicit models), multistep of order 2, for eta 0; for other eta the
    integral of the same line under the noise of that eta, constant over a step.

    Args:
        steps: intervals; 15 to 20 are enough on the log-uniform grid where eta is 0.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        eta: 0 is deterministic given the start; 1 has the noise of the Markov posterior.
    """

    steps: Count = 20

    def gain(self, h: Tensor, decay: Tensor) -> Tensor:
        """`h − (1 − e^{−mh})/m`."""
        return h * (1 + torch.expm1(-decay) / decay)


@SOLVERS.register("dpmpp")
@dataclass(frozen=True, kw_only=True)
class DPMpp(Exponential):
    """DPM-Solver++ 2M: the prediction of x0 extrapolated from the last two calls; `steps` calls, order 2.

    `posterior`'s step with `D' = D_s + h/(2 h_u) (D_s − D_u)` in the place of D, u being the time before s: the line
    of `posterior2`, held at the middle of the step. The first and the last step are of first order.

    Source: Lu et al. 2022 (DPM-Solver++), Alg. 2, in the bridge's coordinates; with eta 1 SDE-DPM-Solver++ 2M.

    Args:
        steps: intervals; 15 to 20 are enough on the log-uniform grid where eta is 0.
        grid: where they lie.
        start: how the bridge leaves t = 1.
        eta: 0 is deterministic given the start; 1 has the noise of the Markov posterior.
    """

    steps: Count = 20

    def gain(self, h: Tensor, decay: Tensor) -> Tensor:
        """`(1 − e^{−mh}) h/2`."""
        return -torch.expm1(-decay) * h / 2


def checked(bridge: Bridge, state: State, towards: End, name: str) -> DenoisingBridge:
    """The bridge, if an exponential solver can follow it from this state.

    Raises:
        CapabilityError: towards x1, for bridges that do not denoise, and where the state carries no noise.
    """
    one_way(name, towards)
    bridge = denoising(bridge, f"solver '{name}'")
    if not bool(torch.as_tensor(bridge.marginal(state.t).c) > 0):
        raise CapabilityError(
            f"solver '{name}' needs noise at the grid's first time; there is none at t = {float(state.t):g}"
        )
    return bridge
