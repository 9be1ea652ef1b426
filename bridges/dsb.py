"""Diffusion Schrödinger bridge: each direction learns to reverse the chains of the other, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, End
from latentsb.conditioning import drop_conditions
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process import conversion
from latentsb.process.prediction import DriftItself, Prediction
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.reversal import Link, Objective, Simplified
from latentsb.process.times import time_of_sigma
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction
from latentsb.registry import Build
from latentsb.solvers.base import Grid
from latentsb.solvers.grid import Uniform
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule
from latentsb.twosided import TwoSided, other

__all__ = ["DSB"]


@BRIDGES.register("dsb")
class DSB(TwoSided):
    """Diffusion Schrödinger bridge (DSB, SDSB): iterative proportional fitting with simulated chains.

    Half steps take turns. In one of them a direction is trained; the other rests and has drawn, with its averaged
    weights, chains of N steps

        x_{k+1} = F_k(x_k) + g √h ε,    F_k(x) = x + h b(x, t_k),    2 γ_{k+1} = g² h,

    from the data of its end. The trained network learns to undo their steps (`objective`). The first chains are those
    of the reference, from x0. Each half step gives one end its right law and keeps what the other has learned; in the
    limit both ends are right, and the process is the Schrödinger bridge over the reference, with its epsilon.

    Source: De Bortoli et al. 2021, Diffusion Schrödinger bridge, Alg. 1; Tang et al. 2024, Simplified DSB.

    Args:
        ends: shapes and conditions; x1 is standard normal where neither the data nor a law brings it.
        network: of the drifts; built twice. It is told the time of the state that it sees, in forward time.
        reference: process of the first chains; Brownian motion of sigma has epsilon = sigma² = 2 Σ γ.
        objective: what a step is undone to.
        prediction: what the networks predict.
        steps: N, of the chains that are trained on.
        grid: their times; `uniform` is a constant γ under Brownian motion, `symmetric` the linear one.
        half_step: images of a turn.
        refresh: images after which the chains are drawn anew; None for once in a turn. Divides `half_step`.
        paths: chains that are kept, with all their states.
        begin: a trained bridge from standard normal noise (`{run: runs/x, part: bridge}`), which takes the place of
            the reference and of the first half step: the first chains are its own, from x1.
        dropout: share of training rows whose label and attributes are hidden.

    Raises:
        ArgumentError: if the reference has no noise, the grid is not one of this bridge, `refresh` does not divide
            `half_step`, or `begin` does not start from standard normal noise where this bridge does.
    """

    turn: Tensor

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = Brownian(sigma=1.0),
        objective: Objective = Simplified(),
        prediction: Prediction = DriftItself(),
        steps: Count = 20,
        grid: Grid = Uniform(),
        half_step: Count = 500_000,
        refresh: Count | None = None,
        paths: Count = 10_000,
        begin: Build[Bridge] | None = None,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__(ends, network, reference=reference, prediction=prediction, dropout=dropout)
        self.objective, self.steps, self.grid = objective, steps, grid
        self.half_step, self.refresh, self.paths = half_step, refresh, paths
        if refresh is not None and half_step % refresh:
            raise ArgumentError("refresh", f"found {refresh}, expected a divisor of half_step = {half_step}")
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.begin = None if begin is None else _from_noise(begin(ends), ends)
        self.chains: Mapping[str, Tensor] | None = None
        self._require_noise()

    def _require_noise(self) -> None:
        try:
            g = self.reference.g(self.grid.times(self, self.steps))
        except CapabilityError as error:
            raise ArgumentError("grid", str(error)) from error
        if not bool((g > 0).all()):
            raise ArgumentError("reference", "must have noise at every time of the chains, both ends included")

    @property
    def opening(self) -> End:
        """Where the first chains lead: to x1, those of the reference; to x0, those of the bridge to begin with."""
        return "x1" if self.begin is None else "x0"

    def schedule(self, part: str = "") -> Schedule:
        """The two directions in turns; first the one that undoes the first chains."""
        if part:
            return super().schedule(part)
        order = (other(self.opening), self.opening)
        phases = tuple(Phase(f"towards {end}", self._loss_towards(end), (f"networks.{end}.",)) for end in order)
        return Alternate(phases, images=self.half_step, renew=self.refresh)

    def renew(self, round: Round) -> None:
        """Draw the chains of the direction that rests."""
        turn = round.number * (self.refresh or self.half_step) // self.half_step
        self.turn.fill_(turn)
        teacher = self.opening if turn % 2 == 0 else other(self.opening)
        name, make = f"chains towards {teacher}", self._maker(teacher)
        self.chains = round.simulate(name, self.paths, make)

    def _maker(self, teacher: End) -> Callable[[Batch, Draws], Mapping[str, Tensor]]:
        return lambda batch, draws: self.simulate_chains(batch, draws, teacher)

    @torch.no_grad()
    def simulate_chains(self, batch: Batch, draws: Draws, towards: End) -> Mapping[str, Tensor]:
        """Chains from the data of one end, noise in every step.

        States are kept at float32 at least: a step of `√(2 γ)` may be lost in fewer bits.

        Returns:
            `x` of shape (B, N + 1, …) in the order of travel, `correction` of shape (B, N, …) where the objective
            keeps one, and each condition as `cond.NAME` (`present.NAME` says in which rows).
        """
        state = self.start(batch, draws, towards)
        x, cond = state.x.to(torch.promote_types(state.x.dtype, torch.float32)), state.cond
        times = self.grid.times(self, self.steps, towards)
        h = times.diff().abs()
        spread = self.diffusion(times[:-1]) * h.sqrt()
        states, kept = [x], []
        for k, t in enumerate(times[:-1]):
            push = self.drift(x, t, cond, towards)
            x = x + expand_as(h[k], x) * push + expand_as(spread[k], x) * draws.normal(f"step {k}", x)
            states.append(x)
            kept.append(self.objective.correction(push, partial(self.drift, x, t, cond, towards)))
        corrections = [value for value in kept if value is not None]
        found = {"correction": torch.stack(corrections, 1)} if corrections else {}
        values = {f"cond.{name}": value for name, value in cond.values.items()}
        present = {f"present.{name}": value for name, value in cond.present.items()}
        return {"x": torch.stack(states, 1), **found, **values, **present}

    def links(self, table: Mapping[str, Tensor], draws: Draws, towards: End) -> tuple[Link, Condition]:
        """A step of a chain for each row of the draws, chain and place independent, and the conditions of its chain."""
        path, k = draws.integers("path", len(table["x"])), draws.integers("step", self.steps)
        times = self.grid.times(self, self.steps, other(towards))
        first, before, after = (table["x"][path, place].to(self.device) for place in (0 * k, k, k + 1))
        kept = table.get("correction")
        correction = None if kept is None else kept[path, k].to(self.device)
        values, present = (
            {name.removeprefix(kind): table[name][path].to(self.device) for name in table if name.startswith(kind)}
            for kind in ("cond.", "present.")
        )
        return Link(first, before, after, times[k + 1], times[k], correction), Condition(values, present)

    def _loss_towards(self, towards: End) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            # Of data that are not trained on, the chains are their own.
            table = self.chains if self.training else None
            if table is None:
                table = self.simulate_chains(batch, draws.fork("chains"), other(towards))
            link, cond = self.links(table, draws, towards)
            output = self.output(link.after, link.t, drop_conditions(cond, self.dropout, draws), towards)
            error = self.objective.error(output, link, self.prediction, self.reference, towards)
            return Loss(error.square().flatten(1).mean(1))

        return loss

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of the present turn, mean over a sample, shape (B,)."""
        opening = self.opening
        return self._loss_towards(other(opening) if int(self.turn) % 2 == 0 else opening)(batch, draws)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """The network's drift; in the first turn that of the first chains towards their end.

        Towards x1 it is the reference's `f x`. Towards x0 it is `−f x + r'/r (α_t E[x0 | x_t] − x)`, where x_t is the
        reference pinned to x0 and independent noise x1, whose signal-to-noise ratio says what to ask the denoiser of
        the bridge to begin with.
        """
        if towards != self.opening or int(self.turn) > 0:
            return super().drift(x, t, cond, towards)
        if self.begin is None:
            return self.reference.b_f(x, t, None)
        return conversion.b_b_from_x0(self.reference, t, x, self._begin_with(self.begin, x, t, cond))

    def _begin_with(self, begin: DenoisingBridge, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x0 | x]` for `x ~ N(b x0, a² + c)` from a denoiser of `N(b' x0, c')` with equal ratios."""
        here = self.reference.pinned(t)
        variance = here.a.square() + here.c
        time = time_of_sigma(begin, (variance.sqrt() / here.b).reshape(-1)).reshape(t.shape)
        there = begin.marginal(time)
        # Where the ratios are equal, so are those of either part; at t = 1 the signal's, at t = 0 the noise's is lost.
        scale = ((there.b.square() + there.c) / (here.b.square() + variance)).sqrt()
        return begin.denoise(expand_as(scale, x) * x, time, cond)


def _from_noise(begin: Bridge, ends: Ends) -> DenoisingBridge:
    """The bridge to begin with, if it can be one.

    Raises:
        ArgumentError: if not.
    """
    if ends.x1 is not None or ends.two_sided:
        raise ArgumentError("begin", "a bridge from noise cannot begin one whose x1 is data or has a law of its own")
    if not isinstance(begin, DenoisingBridge) or begin.pinned:
        raise ArgumentError("begin", "expected a bridge from noise that denoises, such as 'flow' or 'score'")
    return begin
