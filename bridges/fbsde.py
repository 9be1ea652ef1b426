"""SB-FBSDE: the two controls of a Schrödinger bridge by likelihood losses with divergences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, End
from latentsb.bridges._controlled import Controlled
from latentsb.divergence import Divergence, Rademacher, divergence
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, NonNegativeInt, enforce
from latentsb.registry import Build, Registry
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Alternate, Freeze, Loss, OnePass, Phase, Round, Schedule
from latentsb.twosided import other

__all__ = ["FBSDE", "OBJECTIVES", "Alternating", "JointLikelihood", "Objective"]


class Objective(ABC):
    """How the two controls are trained; a frozen dataclass."""

    @abstractmethod
    def loss(self, bridge: FBSDE, batch: Batch, draws: Draws) -> Loss:
        """A loss whose optimum both controls share, per sample."""

    @abstractmethod
    def schedule(self, bridge: FBSDE) -> Schedule:
        """The phases, after the warm start."""

    def check(self, bridge: FBSDE) -> None:
        """Find out whether the bridge has what the loss needs; nothing by default.

        Raises:
            CapabilityError: if it lacks something.
        """

    def renew(self, bridge: FBSDE, round: Round, number: int) -> None:
        """Begin a round of the schedule, numbered from 0; nothing by default."""


OBJECTIVES: Registry[Objective] = Registry("training", Objective)


@OBJECTIVES.register("joint")
@dataclass(frozen=True, kw_only=True)
class JointLikelihood(Objective):
    """The bound on the likelihood, for both networks at once, with gradients through the simulated paths.

    `E[−ln π(x1)] + E ∫ ½ |Z + Ẑ|² + div(g Ẑ − f x) dt` over forward paths of Z; at the optimum it is `−E ln p(x0)`. For
    few dimensions: the graph of a whole path is kept.

    Source: Chen et al. 2022, Likelihood training of Schrödinger bridge, Theorem 4 and Alg. 2.
    """

    def check(self, bridge: FBSDE) -> None:
        """Ask for the density of x1."""
        _ = bridge.prior

    def loss(self, bridge: FBSDE, batch: Batch, draws: Draws) -> Loss:
        """The bound in nats per dimension."""
        cond = bridge.hidden(batch.cond, draws)
        paths = bridge.chain(batch.data, cond, draws)
        x, k = paths.x[:, :-1], torch.arange(bridge.steps)
        back, div = bridge.spread(x, k, cond, "x0", draws)
        power = (paths.control + back).square().flatten(2).sum(2) / 2
        d = x[0, 0].numel()
        rate = power + div - d * bridge.f[:-1].to(x)
        prior, matching = -bridge.prior.log_prob(paths.x[:, -1], cond) / d, rate.sum(1) * (bridge.h / d)
        return Loss(prior + matching, {"prior": prior.detach(), "matching": matching.detach()})

    def schedule(self, bridge: FBSDE) -> Schedule:
        """Both networks in every step."""
        return OnePass(Phase("joint", lambda batch, draws: self.loss(bridge, batch, draws)))


@OBJECTIVES.register("alternate")
@dataclass(frozen=True, kw_only=True)
class Alternating(Objective):
    """Half steps of iterative proportional fitting: one control learns along stored paths of the other.

    On forward paths `Ẑ` minimises `E ½ |Ẑ|² + Ẑ·Z + div(g Ẑ)`, on backward paths `Z` the mirror image. Each is
    `½ |Z + Ẑ − g ∇ln p_t|²` integrated by parts, so the trained process becomes the time reversal of the simulated one.

    Source: Chen et al. 2022, Likelihood training of Schrödinger bridge, Eq. 18, 19 and Alg. 3.

    Args:
        turn: images of a half step.
        refresh: images after which paths are simulated anew within a half step; divides `turn`.
        paths: that are simulated at once.

    Raises:
        ArgumentError: if `refresh` does not divide `turn`.
    """

    turn: Count = 250_000
    refresh: Count = 250_000
    paths: Count = 4096

    def __post_init__(self) -> None:
        enforce(self)
        if self.turn % self.refresh:
            raise ArgumentError("refresh", f"must divide turn = {self.turn}, found {self.refresh}")

    def half(self, bridge: FBSDE, batch: Batch, draws: Draws, towards: End) -> Loss:
        """Loss of the control towards an end at a random node of a stored path, in nats per dimension.

        All nodes take part, the ends too: the other control is asked there when its own half step comes.
        """
        at = bridge.pick(batch, draws, other(towards), nodes=1)
        own, div = bridge.spread(at.x, at.k[:, None], at.cond, towards, draws)
        power = (own.square() / 2 + own * at.control).flatten(2).sum(2)
        return Loss((power + div)[:, 0] / at.x[0, 0].numel())

    def loss(self, bridge: FBSDE, batch: Batch, draws: Draws) -> Loss:
        """The losses of both half steps."""
        back, forth = (self.half(bridge, batch, draws.fork(end), end) for end in ("x0", "x1"))
        return Loss(back.total + forth.total, {"x0": back.total.detach(), "x1": forth.total.detach()})

    def schedule(self, bridge: FBSDE) -> Schedule:
        """`Ẑ` on forward paths, then Z on backward paths, and so on."""

        def phase(towards: End) -> Phase:
            return Phase(
                f"half_{towards}",
                lambda batch, draws: self.half(bridge, batch, draws, towards),
                (f"networks.{towards}.",),
            )

        return Alternate((phase("x0"), phase("x1")), images=self.turn, renew=self.refresh)

    def renew(self, bridge: FBSDE, round: Round, number: int) -> None:
        """Simulate paths of the network that rests."""
        bridge.tabulate(round, self.paths, "x0" if number * self.refresh // self.turn % 2 else "x1")


@BRIDGES.register("fbsde")
class FBSDE(Controlled):
    """SB-FBSDE: the Schrödinger bridge from the likelihoods of its forward and backward SDEs.

    `dX = (f x + g Z) dt + g dW` towards x1, `−f x + g Ẑ` as executed towards x0; at the optimum `Z + Ẑ = g ∇ln p_t`.

    Source: Chen, Liu, Theodorou 2022, Likelihood training of Schrödinger bridge using forward-backward SDEs theory.

    Args:
        ends: shapes and conditions; x1 is standard normal where the data brings none.
        network: of the controls Z and Ẑ; built twice, twice differentiable.
        reference: with noise at every time.
        objective: how they are trained.
        estimate: of the divergence.
        warmup: images of the warm start: Ẑ by denoising score matching under the reference, that is with Z = 0.
        steps: N of the training's chains; a sampler may take another number.
        dropout: share of training rows whose label and attributes are hidden.
        recompute: save memory by computing each step of a chain again in the backward pass.

    Raises:
        CapabilityError: if the objective needs a density of x1 that is not known.
        ArgumentError: if the reference has no noise at some time.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = Brownian(),
        objective: Objective = Alternating(),
        estimate: Divergence = Rademacher(),
        warmup: NonNegativeInt = 0,
        steps: Count = 50,
        dropout: Fraction = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__(ends, network, reference=reference, steps=steps, dropout=dropout, recompute=recompute)
        self.objective, self.estimate, self.warmup = objective, estimate, warmup
        objective.check(self)

    def spread(self, x: Tensor, k: Tensor, cond: Condition, towards: End, draws: Draws) -> tuple[Tensor, Tensor]:
        """A control at states (B, M, …) of the nodes k, and the divergence of g times it, shape (B, M)."""
        b, m = x.shape[:2]
        probes = [p.flatten(0, 1) for p in self.estimate.probes(x, draws.fork("divergence"))]

        def field(at: Tensor) -> Tensor:
            return self.controls(at.reshape(x.shape), k, cond, towards).flatten(0, 1)

        found, div = divergence(field, x.flatten(0, 1), probes)
        return found.reshape(x.shape), self.over(self.g[k], x).reshape(-1, m) * div.reshape(b, m)

    def warm_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Denoising score matching: squared error of the noise that `Ẑ = g ∇ln p(x | x0)` stands for, shape (B,).

        Times are uniform between the first step of a chain and 1.
        """
        t = self.h + (1 - self.h) * draws.uniform("time")
        marginal = self.reference.noised(t)
        noise = draws.normal("noise", batch.data)
        x = marginal.sample(batch.data, None, noise)
        found = self.output(x, t, self.hidden(batch.cond, draws), "x0")
        error = expand_as(marginal.std / self.reference.g(t), x) * found + noise
        return Loss(error.square().flatten(1).mean(1))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """That of the objective."""
        return self.objective.loss(self, batch, draws)

    def schedule(self, part: str = "") -> Schedule:
        """The warm start, if there is one, and then the phases of the objective."""
        if part:
            return super().schedule(part)
        main = self.objective.schedule(self)
        if not self.warmup:
            return main
        return Freeze(self.warmup, OnePass(Phase("warm", self.warm_loss, ("networks.x0.",))), main)

    def renew(self, round: Round) -> None:
        """Let the objective simulate what it needs; the warm start is a round of its own that needs nothing."""
        number = round.number - bool(self.warmup)
        if number >= 0:
            self.objective.renew(self, round, number)
