"""Generalised Schrödinger bridge matching: paths that also pay for where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, End
from latentsb.denoising import require_times
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Independent, Pair
from latentsb.process.prediction import Prediction, Scaled
from latentsb.process.references import Brownian
from latentsb.process.splines import Spline, SplinePath, modes
from latentsb.process.statecost import StateCost
from latentsb.process.times import TimeDistribution, Uniform
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, Positive
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule
from latentsb.twosided import Simulated, TwoSided, other

__all__ = ["GSBM"]

ENDS: tuple[End, End] = ("x0", "x1")

ROUNDING = 1e-4
"""Slope in nats per unit of a knot below which Adam, which knows no sizes, would follow rounding."""

FIRST = 1e-3
"""Share of the first interval before which no time of a fit lies: at t = 0 itself a pinned path has no drift."""


@BRIDGES.register("gsbm")
class GSBM(TwoSided):
    """Generalised Schrödinger bridge matching: the cheapest way between two laws for a state cost V.

        min_u E ∫ [|u|²/(2σ²) + V(x_t, t)] dt,   dX = u dt + σ dW,   X_0 ~ p_0,   X_1 ~ p_1

    A round makes pairs (of the first coupling, then from the averaged weights of the drift just trained), fits to each
    a Gaussian spline of least energy and cost, from the Brownian bridge on, and matches the other drift to the
    splines'. Without a cost it is DSBM.

    Source: Liu et al. 2024, Generalized Schrödinger bridge matching, ICLR, Algorithms 1-4.

    Args:
        ends: shapes and conditions; the data or a law bring x1, which is standard normal where nothing does.
        network: of the drifts; built twice.
        cost: V, in nats per unit of time, the unit of `|u|²/(2σ²)`.
        sigma: diffusion coefficient; σ² is the entropic regularisation where there is no cost.
        coupling: of the first round.
        prediction: what the networks predict.
        times: law of the training times.
        simulation: makes the pairs; it keeps the noise of its last step, or they would lose that variance.
        images: of a turn.
        pairs: simulated in a round, and splines.
        knots: of each spline, between the ends.
        fit_steps: steps of Adam on the splines of a block.
        fit_lr: their first step size, in units of the Brownian bridge's own spread; it falls to zero linearly.
        fit_times: times at which a step looks at the cost.
        fit_draws: pairs of opposite draws at each of them.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided.

    Raises:
        ArgumentError: if the first coupling needs partners or whole batches, which rounds cannot bring.
    """

    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        cost: StateCost,
        sigma: Positive = 1.0,
        coupling: Coupling = Independent(),
        prediction: Prediction = Scaled(),
        times: TimeDistribution = Uniform(),
        simulation: Solver = EulerMaruyama(steps=50, noiseless_last=False),
        images: Count = 500_000,
        pairs: Count = 10_000,
        knots: Count = 15,
        fit_steps: Count = 200,
        fit_lr: Positive = 0.1,
        fit_times: Count = 20,
        fit_draws: Count = 1,
        dropout: Fraction = 0.1,
    ) -> None:
        if coupling.aligned or type(coupling).prepare is not Coupling.prepare:
            raise ArgumentError(
                "coupling", "the first pairs are made in blocks of their own, without partners; use 'independent'"
            )
        super().__init__(ends, network, reference=Brownian(sigma=sigma), prediction=prediction, dropout=dropout)
        require_times(times, self)
        self.coupling = coupling.over(self.reference)
        self.cost, self.times, self.simulation, self.path = cost, times, simulation, SplinePath(sigma=sigma)
        self.images, self.pairs, self.knots = images, pairs, knots
        self.fit_steps, self.fit_lr, self.fit_times, self.fit_draws = fit_steps, fit_lr, fit_times, fit_draws
        self.splines: Simulated | None = None

    def schedule(self, part: str = "") -> Schedule:
        """Turns of both drifts, each on splines of its own; that towards x0 begins."""
        if part:
            return super().schedule(part)
        back = Phase("backward", self._matching("x0"), ("networks.x0.",))
        forth = Phase("forward", self._matching("x1"), ("networks.x1.",))
        return Alternate((back, forth), self.images)

    def renew(self, round: Round) -> None:
        """Pairs of the first coupling, or from the drift that this round does not train, and their splines."""
        student: End = "x1" if round.number % 2 else "x0"
        coupling = self.coupling.fitted(round, self.ends)

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            if round.number == 0:
                pair = coupling.pair(batch, self.ends, draws)
            else:
                # Networks in the stage's precision, splines in that of the data.
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=round.bf16):
                    pair = self.reach(batch, draws, self.simulation, other(student))
            return Simulated.rows(self.controlled(pair, draws.fork("fit")))

        self.splines = Simulated(table=round.simulate(f"splines for {student}", self.pairs, make))

    def controlled(self, pair: Pair, draws: Draws) -> Pair:
        """The pair with the splines of least energy and cost, `bend` and `swell` (conditional stochastic control).

        Every pair has its own problem, and all are solved side by side by Adam, from the Brownian bridge. The bend is
        moved along `modes`, in which the energy is round, so one step size serves slow and fast bends alike.
        """
        basis = self.path.sigma * modes(self.knots).to(pair.x0)
        start = pair.x0.new_zeros(len(pair.x0), self.knots, *pair.x0.shape[1:])
        with torch.enable_grad():
            weights, swell = start.clone().requires_grad_(), start.flatten(2)[..., 0].clone().requires_grad_()
            adam = torch.optim.Adam([weights, swell], lr=self.fit_lr, eps=ROUNDING)
            for k in range(self.fit_steps):
                adam.param_groups[0]["lr"] = self.fit_lr * (1 - k / self.fit_steps)
                bend = torch.einsum("kj,bj...->bk...", basis, weights)
                spline = Spline(self.path.sigma, pair.x0, pair.x1, bend, swell)
                price = self.price(spline, draws.fork(f"step {k}")).sum()
                weights.grad, swell.grad = torch.autograd.grad(price, [weights, swell])
                adam.step()
        bend = torch.einsum("kj,bj...->bk...", basis, weights.detach())
        return replace(pair, extra={"bend": bend, "swell": swell.detach()})

    def price(self, spline: Spline, draws: Draws) -> Tensor:
        """Energy above the Brownian bridge's plus state cost of each path, in nats, shape (B,); an unbiased estimate.

        Times are one in each of `fit_times` equal intervals, the same for all pairs, at a random place; draws come with
        their opposites, so that the cost's slope costs the mean no noise.
        """
        u = draws.uniform("times")[0].clamp(FIRST)
        t = (torch.arange(self.fit_times, dtype=torch.float64) + u) / self.fit_times
        mean, std = spline.sweep(t)
        shape = (len(spline.x0), self.fit_times, self.fit_draws, *spline.x0.shape[1:])
        noise = draws.normal("states", mean.new_empty(shape)).movedim(0, 2)
        spread = std.reshape(len(t), 1, -1, *[1] * (mean.ndim - 2)) * noise
        x = torch.cat([mean[:, None] + spread, mean[:, None] - spread], 1)
        cost = self.cost(x.flatten(1, 2), t).reshape(x.shape[:3]).mean((0, 1))
        return spline.energy(t) + cost

    def pair(self, batch: Batch, draws: Draws, towards: End) -> Pair:
        """Ends and splines for the drift towards an end.

        In evaluation mode they are made from the batch itself, so that a held-out loss is one; so they are before the
        first round.
        """
        if self.splines is not None and self.training:
            return self.splines.pair(batch, self.ends, draws)
        if self.splines is None:
            return self.controlled(self.coupling.pair(batch, self.ends, draws), draws.fork("fit"))
        return self.controlled(self.reach(batch, draws, self.simulation, other(towards)), draws.fork("fit"))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The losses of both drifts, each on its own pairs, added."""
        back, forth = (self._matching(end)(batch, draws).total for end in ENDS)
        return Loss(back + forth, {"backward": back, "forward": forth})

    def _matching(self, towards: End) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            return self.matching(self.pair(batch, draws, towards), self.path, self.times, draws, towards)

        return loss
