"""Starts: how a denoising bridge leaves t = 1.

At a pinned t = 1 the state is x1 itself and carries no noise, while a moment later it must look like the noised
states that the denoiser was trained on. What is put there decides between a sample and an average. Where the bridge
is not pinned (`a = 0`) the state at t = 1 already is noise, and that noise is kept rather than drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, State
from latentsb.process.marginal import Marginal
from latentsb.randomness import Draws
from latentsb.solvers.base import STARTS, Start
from latentsb.tensors import expand_as

__all__ = ["Boot", "Centre", "Endpoint", "FromNoise"]


@STARTS.register("noise")
@dataclass(frozen=True, kw_only=True)
class FromNoise(Start):
    """Begin at pure noise around x1: `x = a x1 + sqrt(c) eps`, a sample of what x0 may be (perceptual).

    In the coordinates y it is `y ~ N(0, sigma_eff²)`, the start of any diffusion model.

    Source: Karras et al. 2022 (EDM), in the bridge's coordinates.
    """

    def enter(self, bridge: DenoisingBridge, state: State, t: Tensor, draws: Draws) -> State:
        """`a x1 + sqrt(c) eps` at t."""
        there = bridge.marginal(t)
        noise = noise_of(bridge.marginal(state.t), state, draws)
        return replace(state, x=there.sample(torch.zeros_like(state.x), state.cond.get("x1"), noise), t=t)


@STARTS.register("endpoint")
@dataclass(frozen=True, kw_only=True)
class Endpoint(Start):
    """Keep the state of t = 1 as it is: the official start of bridge samplers.

    Exact in law for the SDE up to the noise of the first interval; the ODE started here ends near the centre of
    what x0 may be.

    Source: Zhou et al. 2024 (Denoising diffusion bridge models), Alg. 1.
    """

    def enter(self, bridge: DenoisingBridge, state: State, t: Tensor, draws: Draws) -> State:
        """The same x at t."""
        return replace(state, t=t)


@STARTS.register("centre")
@dataclass(frozen=True, kw_only=True)
class Centre(Start):
    """Begin at `y = 0`, that is `x = a x1`, with no noise at all: for the one-call decode.

    At a pinned t = 1 it is x1 exactly, as `endpoint`; below it differs from x1 by what the bridge has moved.

    Source: Kim et al. 2025 (Diffusion bridge autoencoders), reconstruction.
    """

    def enter(self, bridge: DenoisingBridge, state: State, t: Tensor, draws: Draws) -> State:
        """`a x1` at t."""
        return replace(state, x=bridge.marginal(t).mean(torch.zeros_like(state.x), state.cond.get("x1")), t=t)


@STARTS.register("boot")
@dataclass(frozen=True, kw_only=True)
class Boot(Start):
    """Ask the denoiser once at t = 1 and add the noise that belongs to the grid's first time.

    `x = a x1 + b D(x1, 1) + sqrt(c) eps`; one call more than `noise`, which matters when the grid begins at a
    sigma_eff of a few.

    Source: Zheng et al. 2024 (Diffusion bridge implicit models).
    """

    def enter(self, bridge: DenoisingBridge, state: State, t: Tensor, draws: Draws) -> State:
        """The re-noised prediction at t."""
        noise = noise_of(bridge.marginal(state.t), state, draws)
        latest = torch.tensor(bridge.t_max, dtype=torch.float64).clamp(max=state.t)
        asked = state if latest == state.t else Centre().enter(bridge, state, latest, draws)
        x0 = bridge.denoise(asked.x, asked.t, asked.cond)
        return replace(state, x=bridge.marginal(t).sample(x0, state.cond.get("x1"), noise), t=t)


def noise_of(here: Marginal, state: State, draws: Draws) -> Tensor:
    """Standard normal noise for a start: that of an unpinned state, drawn where the state has none.

    Args:
        here: the marginal at `state.t`.
        state: at the other end.
        draws: of the start.
    """
    if bool(here.a == 0) and bool(here.c > 0):
        return state.x / expand_as(here.std, state.x)
    return draws.normal("noise", state.x)
