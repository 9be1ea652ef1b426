"""The posterior of a trained bridge under a measurement: its reverse process, controlled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, End, State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.measurements import Mask, Measurement
from latentsb.networks.base import Network
from latentsb.networks.embeddings import TimeEmbedding
from latentsb.process.pathloss import LogVariance, PathLoss, Paths
from latentsb.randomness import Draws
from latentsb.ranges import Count, Positive
from latentsb.registry import Build
from latentsb.solvers.base import Grid
from latentsb.solvers.grid import Natural
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss, OnePass, Phase, Schedule
from latentsb.weighing import MeasuringBridge, Weighted

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Steered:
    """Paths of the controlled reverse chain.

    Args:
        x: states before each noisy step, shape (N, n, …).
        guess: the prior's `E[X0 | X_t]` there.
        noise: each step less its mean without control, shape (N, n, …).
        pull: controls that the paths were simulated with, shape (N, n, …).
        end: states at t = 0, shape (n, …).
    """

    x: Tensor
    guess: Tensor
    noise: Tensor
    pull: Tensor
    end: Tensor


@BRIDGES.register("posterior")
class Posterior(MeasuringBridge):
    """Samples what a measured sample may have been, under a trained denoising bridge as the prior.

    The reverse chain of the prior, `x_s ~ N(a x_t + b E[X0|x_t], c)`, gets a control κ that moves its mean by `c κ`.
    With the likelihood `ℓ` of the measurement, `log w = log ℓ(y|x_0) + Σ log P_k − log F_k` has `E w = p(y)` for any κ,
    and the process closest to the posterior minimises the divergence whose terminal cost is `−log ℓ`: the path integral
    sampler with the trained reverse process in the place of Brownian motion. Its optimum `κ = ∇ log E[ℓ(y|X_0) | X_t]`
    is the posterior's own reverse process. Paths start in the prior's law at t = 1; where that is not independent of x0
    the posterior begins elsewhere, and the weights tell.

    Measurements are drawn from the data; one network learns all of them, since variances are taken over paths of one
    measurement, whose unknown `log p(y)` drops out.

    Source: Zhang & Chen 2022 (Path integral sampler) and Richter & Berner 2024 for the losses; Song et al. 2023
    (Pseudoinverse-guided diffusion models) for the guide.

    Args:
        ends: shapes; the data bring x0.
        prior: a trained one-sided denoising bridge with noise, from its run.
        network: of the control, from the state, the guess and what is known.
        measurement: of a sample.
        loss: divergence of the path measures.
        steps: of the chain, the last one without noise.
        grid: where they lie.
        paths: simulated for each measurement.
        spread: standard deviation of the prior's samples, for the guide alone.
        limit: paths with a larger |R|, or one that is not finite, are left out of the loss.

    Raises:
        ArgumentError: if the prior is none such, or the loss needs more paths.
    """

    ways = ("x0",)

    def __init__(
        self,
        ends: Ends,
        *,
        prior: Build[Bridge],
        network: Build[Network],
        measurement: Measurement = Mask(),
        loss: PathLoss = LogVariance(),
        steps: Count = 50,
        grid: Grid = Natural(),
        paths: Count = 4,
        spread: Positive = 1.0,
        limit: Positive = 1e8,
    ) -> None:
        super().__init__()
        built = prior(ends)
        if not isinstance(built, DenoisingBridge) or built.pinned or built.reference.total == 0:
            raise ArgumentError(
                "prior", "must be a denoising bridge from noise whose process has noise, such as 'score'"
            )
        if paths < loss.least:
            raise ArgumentError("paths", f"this loss needs at least {loss.least}, found {paths}")
        if steps < 2:
            raise ArgumentError("steps", "found 1, expected at least 2: the last one has no noise")
        measurement.matrix(ends.spec)
        self.ends, self.prior, self.measurement, self.divergence = ends, built, measurement, loss
        self.paths, self.spread, self.limit = paths, spread, limit
        self.times = grid.times(built, steps)
        self.control = Control(
            self, network(ends.spec, {**ends.cond, "known": ends.spec, "image": ends.spec}, ends.spec)
        )
        t, s = self.times[:-2], self.times[1:-1]
        self.kernels = built.reference.posterior(s, t)

    def train(self, mode: bool = True) -> Posterior:
        """The control alone trains; the prior stays as it is."""
        super().train(mode)
        self.prior.eval()
        return self

    def schedule(self, part: str = "") -> Schedule:
        """One phase, of the control."""
        return super().schedule(part) if part else OnePass(Phase("control", self.loss, ("control",)))

    def observe(self, batch: Batch, draws: Draws) -> Batch:
        """Measure x0 and forget it."""
        y = self.measurement.observe(batch.data, draws)
        return Batch(batch.index, cond=batch.cond.with_(known=y), seen=batch.seen)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The divergence over the paths of each measurement, shape (B,)."""
        rows = self.observe(batch, draws)
        cond = repeated(rows.cond, self.paths)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.divergence.through):
            path = self.simulate(rows, cond, self.paths, draws)
        pull = path.pull if self.divergence.through else self._along(path, cond)
        log_f, ito = (v.reshape(len(batch), self.paths) for v in self._log_f(path, pull))
        log_b = self.measurement.log_likelihood(cond["known"], path.end).reshape(len(batch), self.paths)
        ratio = (log_f - log_b).detach()
        found = Paths(log_f, log_b, ito, kept=ratio.isfinite() & (ratio.abs() < self.limit))
        terms = {"elbo": -found.mean(ratio), "variance": found.spread(ratio, ratio)}
        return Loss(self.divergence.of(found), terms)

    def posterior(self, batch: Batch, paths: int, draws: Draws) -> Weighted:
        """Weighted samples of the rows' measurements."""
        cond = repeated(batch.cond, paths)
        path = self.simulate(batch, cond, paths, draws)
        log_f, ito = self._log_f(path, path.pull)
        return Weighted(path.end, self.measurement.log_likelihood(cond["known"], path.end) - log_f, ito)

    def simulate(self, batch: Batch, cond: Condition, paths: int, draws: Draws) -> Steered:
        """Paths of the controlled chain, row after row.

        Args:
            batch: B rows.
            cond: of the paths, B·paths rows.
            paths: in each row.
            draws: of the rows.
        """
        like = torch.empty((len(batch), paths, *self.ends.spec.shape), device=self.device)
        one = torch.ones((), dtype=torch.float64)
        x = expand_as(self.prior.marginal(one).c.sqrt(), like) * draws.normal("begin", like)
        x, held = x.flatten(0, 1), []
        known = cond.without("known")
        for k, t in enumerate(self.times[:-2]):
            a, b, c = (expand_as(v[k], x) for v in (self.kernels.a, self.kernels.b, self.kernels.c))
            guess = self.prior.denoise(x, t, known)
            pull = self.control(x, guess, t, cond)
            noise = c * pull + c.sqrt() * draws.fork(f"step {k}").normal("noise", like).flatten(0, 1)
            held.append((x, guess, noise, pull))
            x = a * x + b * guess + noise
        end = self.prior.denoise(x, self.times[-2], known)
        states, guesses, noises, pulls = (torch.stack(values) for values in zip(*held, strict=True))
        return Steered(states, guesses, noises, pulls, end)

    def _log_f(self, path: Steered, pull: Tensor) -> tuple[Tensor, Tensor]:
        """`log F − log P = Σ r·κ − c |κ|²/2` with a step's noise r, and its martingale part `Σ κ·(r − c κ)`."""
        c = expand_as(self.kernels.c, pull)
        dims = (0, *range(2, pull.ndim))
        log_f = (pull * path.noise - c * pull.square() / 2).sum(dims)
        return log_f, (pull * (path.noise - c * path.pull)).sum(dims)

    def _along(self, path: Steered, cond: Condition) -> Tensor:
        """The control at all states of paths, all at once."""
        steps, n = path.x.shape[:2]

        def every_step(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.repeat(steps, *(1,) * (v.ndim - 1)) for k, v in values.items()}

        every = Condition(every_step(cond.values), every_step(cond.present))
        times = self.times[:-2].repeat_interleave(n)
        found: Tensor = self.control(path.x.flatten(0, 1), path.guess.flatten(0, 1), times, every)
        return found.reshape(path.x.shape)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """A draw of the prior's noise.

        Raises:
            CapabilityError: towards x1, or if nothing is known.
        """
        if "known" not in batch.cond:
            raise CapabilityError("a posterior needs a measurement: the metric 'posterior', or Posterior.observe")
        begun = self.prior.start(Batch(batch.index, cond=batch.cond.without("known")), draws, towards)
        return State(begun.x, begun.t, batch.cond)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """The prior's drift and `g² κ`.

        Raises:
            CapabilityError: towards x1.
        """
        if towards == "x1":
            raise CapabilityError("'posterior' runs towards x0 only: solver euler_maruyama")
        known = cond.without("known")
        pull: Tensor = self.control(x, self.prior.denoise(x, t, known), t, cond)
        return self.prior.drift(x, t, known) + expand_as(self.prior.diffusion(t).square(), x) * pull

    def diffusion(self, t: Tensor) -> Tensor:
        """Of the prior."""
        return self.prior.diffusion(t)


class Control(nn.Module):
    """`κ = scale(t) guide + network/√c`, where the guide is exact for an isotropic normal prior.

    With `x_t = b x_0 + √c ε` and a normal prior of variance S, `v = S c/(b² S + c)` is that of x0 given x_t, and
    `∇ log p(y|x_t) = b v/c Aᵀ (v A Aᵀ + σ²)⁻¹ (y − A E[X0|x_t])`.

    Args:
        owner: whose prior and measurement it belongs to.
        network: from the scaled state, with the guess and what is known beside it; zero before training.
    """

    def __init__(self, owner: Posterior, network: Network) -> None:
        super().__init__()
        self.network, self.time, self.head = network, TimeEmbedding(64), nn.Linear(64, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.ones_(self.head.bias)
        self.marginal: Any = owner.prior.marginal
        self.measurement, self.variance, self.spec = owner.measurement, owner.spread**2, owner.ends.spec

    def forward(self, x: Tensor, guess: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Control at states (n, …) and times () or (n,), given the prior's guess and the measurement `known`."""
        at = self.marginal(t)
        wide = at.b.square() * self.variance + at.c
        left = self.variance * at.c / wide
        y = cond["known"]
        guide = expand_as(at.b * left / at.c, x) * self.measurement.pull(y, guess, left)
        feature = (at.sigma_eff.log() / 4).to(x).expand(len(x))
        scale: Tensor = self.head(F.silu(self.time(feature))).to(x).reshape(-1, *(1,) * (x.ndim - 1))
        inside = cond.with_(known=self.measurement.back(y, self.spec), image=guess)
        own: Tensor = self.network(x / expand_as(wide.sqrt(), x), feature, inside)
        return scale * guide + own / expand_as(at.c.sqrt(), x)


def repeated(cond: Condition, paths: int) -> Condition:
    """Each row as many times as there are paths."""
    return Condition(
        {k: v.repeat_interleave(paths, 0) for k, v in cond.values.items()},
        {k: v.repeat_interleave(paths, 0) for k, v in cond.present.items()},
    )
