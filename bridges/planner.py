"""Planning bridge: from a first guess of a trajectory to one that goes around walls."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.errors import ArgumentError
from latentsb.guesses import Guess, LineGuess
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.times import TimeDistribution, Uniform, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.registry import Build
from latentsb.tensors import Batch
from latentsb.trainable import Loss

from ._planning import Planning

__all__ = ["Planner"]

LINE = cast("Build[Guess]", partial(LineGuess))


@BRIDGES.register("planner")
class Planner(Planning):
    """Planning bridge: a pinned process between recorded trajectories and first guesses with the same start and goal.

        x_t = a x1 + b x0 + √c ε outside of start and goal,   loss = w(t) |D(x_t, t, x1) − x0|²

    Over Brownian motion `c = σ² t (1 − t)`: the noise in all is a property of the reference, whatever the number of
    steps of the solver, and x1 is the guess of that start and goal.

    Source: Srivastava 2024, Planning using Schrödinger bridge diffusion models, arXiv 2406.12458; Liu et al.
        2023, I2SB.

    Args:
        ends: shapes; batches bring the line between start and goal as x1.
        network: F of the preconditioning; it is given x1 and the known entries beside the state.
        prior: the first guess.
        goal: leading channels that are known at the end: the positions.
        reference: the process that is pinned to both ends.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.

    Raises:
        ArgumentError: if the data are no trajectories, or the reference has no noise.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        prior: Build[Guess] = LINE,
        goal: Count = 2,
        reference: ScalarReference = Brownian(sigma=0.5),
        preconditioning: Preconditioning = Shifted(sigma_data=0.5),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
    ) -> None:
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise; a noiseless one leaves nothing to denoise")
        super().__init__(ends, goal, reference, preconditioning, times, weight)
        self.prior = prior(ends.spec, self.mask)
        self.network = network(ends.spec, {"known": ends.spec, "x1": ends.spec})

    def marginal(self, t: Tensor) -> Marginal:
        """`N(a x1 + b x0, c)`, the reference pinned to both ends."""
        return self.reference.pinned(t)

    def origin(self, line: Tensor, draws: Draws) -> Tensor:
        """A guess for each line."""
        return self.prior.sample(line, draws)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """That of the bridge, and that of a guess which is trained."""
        bridge = super().loss(batch, draws)
        guess = self.prior.loss(batch.data, self.lines(batch))
        if guess is None:
            return bridge
        return Loss(bridge.total + guess, {"bridge": bridge.total.detach(), "prior": guess.detach()})
