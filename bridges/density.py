"""Samplers of unnormalised densities: DIS, PIS, DDS and the general bridge, trained by divergences of path measures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, End, State
from latentsb.controls import Control, Lerp
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.process.pathloss import LogVariance, PathLoss, Paths
from latentsb.process.pathspace import DIS, Sampler
from latentsb.process.pathweights import Walk, walk, weigh
from latentsb.randomness import Draws
from latentsb.ranges import Count, Positive
from latentsb.registry import Build
from latentsb.solvers.base import Grid
from latentsb.solvers.grid import Natural
from latentsb.targets.base import Target
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Joint, Loss, Phase, Schedule
from latentsb.weighing import WeighingBridge, Weighted

__all__ = ["DensitySampler"]

LERP = cast("Build[Control]", partial(Lerp))
BACK_LR = 0.02
"""Learning rate of a learned comparison, in that of the control; Richter & Berner 2024, official code."""


@BRIDGES.register("density")
class DensitySampler(WeighingBridge):
    """Samples from a density that is known up to a constant, without any data, and estimates the constant.

    A controlled process runs from a simple law at t = 1 to t = 0, `b_b = base + g u`; training compares it on whole
    paths with a process whose end has the target's density. Weights of samples are ratios of the Gaussian kernels of
    both chains, so that `E w = Z` exactly for any control and any number of steps. Rows are not read from data: an
    image of the recipe's counts is a row of `paths` simulated paths.

    Source: Richter & Berner 2024 (Improved sampling via learned diffusions).

    Args:
        ends: shapes.
        target: density at t = 0.
        sampler: the two processes: `dis`, `pis`, `dds`, `general`.
        control: of the process that makes samples, in units of g.
        back: learned part of the comparison's drift; for the sampler `general` alone, which needs it.
        loss: divergence of the path measures.
        steps: of the chain.
        grid: where they lie.
        paths: simulated in each row; log-variances are taken over these.
        limit: paths with a larger |R|, or one that is not finite, are left out of the loss; the log counts them.

    Raises:
        ArgumentError: if the target has another shape than the data, the loss needs more paths, or `back` does not fit
            the sampler.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        target: Target,
        sampler: Sampler = DIS(),
        control: Build[Control] = LERP,
        back: Build[Control] | None = None,
        loss: PathLoss = LogVariance(),
        steps: Count = 50,
        grid: Grid = Natural(),
        paths: Count = 8,
        limit: Positive = 1e8,
    ) -> None:
        super().__init__()
        if target.spec.shape != ends.spec.shape:
            raise ArgumentError("target", f"has the shape {target.spec.shape}, the data have {ends.spec.shape}")
        if paths < loss.least:
            raise ArgumentError("paths", f"this loss needs at least {loss.least}, found {paths}")
        if sampler.learns_back != (back is not None):
            needs = "needs the control of its comparison" if back is None else "has a comparison that is not learned"
            raise ArgumentError("back", f"the sampler {needs}; only 'general' learns it")
        self.ends, self.target, self.sampler = replace(ends, x0=target), target, sampler
        self.control = control(target, sampler)
        self.back = None if back is None else back(target, sampler)
        self.divergence, self.paths, self.limit = loss, paths, limit
        self.times = grid.times(self, steps)
        if sampler.from_point:
            self.ways = ("x0",)

    def schedule(self, part: str = "") -> Schedule:
        """One phase; where the comparison is learned too, an update of each in every step."""
        if part or self.back is None:
            return super().schedule(part)
        control = Phase("control", self.loss, ("control",))
        return Joint((control, Phase("back", self.loss, ("back",), lr=BACK_LR)))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The divergence over the paths of each row, shape (B,)."""
        rows = len(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.divergence.through):
            path = self.simulate(rows, self.paths, draws, shared=self.divergence.shared_start)
        u = path.u if self.divergence.through else self._along(self.control, path.x[:-1], path.times[:-1])
        weight = weigh(self.sampler, path, u, self._back(path))
        log_f, ito = (value.reshape(rows, self.paths) for value in (weight.log_f, weight.ito))
        log_b = (weight.log_b + self.target.log_prob(path.end)).reshape(rows, self.paths)
        ratio = (log_f - log_b).detach()
        paths = Paths(log_f, log_b, ito, kept=ratio.isfinite() & (ratio.abs() < self.limit))
        terms = {
            "elbo": -paths.mean(ratio),
            "variance": paths.spread(ratio, ratio),
            "left_out": 1 - paths.kept.to(ratio).mean(1),
        }
        return Loss(self.divergence.of(paths), terms)

    def simulate(self, rows: int, paths: int, draws: Draws, *, shared: bool = False) -> Walk:
        """Paths of the controlled chain, row after row.

        Args:
            rows: B.
            paths: K in each row.
            draws: of the rows.
            shared: all paths of a row start in one state.
        """
        shape = self.ends.spec.shape
        like = torch.empty((rows, paths, *shape), device=self.device)
        first = self.sampler.begin(like[:, :1] if shared else like, draws).expand_as(like).flatten(0, 1)

        def noise(k: int) -> Tensor:
            return draws.fork(f"step {k}").normal("noise", like).flatten(0, 1)

        return walk(self.sampler, self.control, first, self.times, noise)

    def weigh(self, batch: Batch, draws: Draws) -> Weighted:
        """One weighted sample per row."""
        path = self.simulate(len(batch), 1, draws)
        weight = weigh(self.sampler, path, v=self._back(path))
        log_weight = self.target.log_prob(path.end) + weight.log_b - weight.log_f
        return Weighted(path.end, log_weight, weight.ito)

    def _back(self, path: Walk) -> Tensor | None:
        """The learned drift of the comparison at all states of paths."""
        return None if self.back is None else self._along(self.back, path.x, path.times)

    def _along(self, control: Control, x: Tensor, times: Tensor) -> Tensor:
        """A control at states of shape (N, n, …), all at once."""
        n = x.shape[1]
        found: Tensor = control(x.flatten(0, 1), times.repeat_interleave(n))
        return found.reshape(x.shape)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """A draw of the prior; towards x1 the rows' own x0.

        Raises:
            CapabilityError: towards x1, if there are no x0.
        """
        if towards == "x0":
            x1 = self.sampler.begin(self.ends.spec.zeros(len(batch), self.device), draws)
            return State(x1, torch.ones((), dtype=torch.float64), batch.cond)
        if batch.x0 is None:
            raise CapabilityError("a target density has no samples to start from; give x0")
        return State(batch.x0, torch.zeros((), dtype=torch.float64), batch.cond)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`base + g u` towards x0; towards x1 that of the comparison, whose reversal the optimum is.

        Raises:
            CapabilityError: towards x1, if the process starts in a point.
        """
        g = expand_as(self.sampler.g(t), x)
        if towards == "x0":
            out: Tensor = self.sampler.base(x, t) + g * self.control(x, t)
            return out
        if self.sampler.from_point:
            raise CapabilityError("a process from a point runs towards x0 only: solver euler_maruyama")
        forward = self.sampler.forward(x, t)
        return forward if self.back is None else forward + g * self.back(x, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)`."""
        return self.sampler.g(t)
