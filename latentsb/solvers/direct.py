"""Solvers that do not step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from latentsb.bridge import Bridge, End, State
from latentsb.randomness import Draws
from latentsb.solvers.base import SOLVERS, Record, Solution, Solver, Start, counting, denoising, one_way, settle
from latentsb.solvers.start import Centre

__all__ = ["Denoise"]


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
