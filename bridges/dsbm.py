"""Diffusion Schrödinger bridge matching: bridge matching on pairs that the other direction simulates, in turns."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from latentsb.bridge import BRIDGES, End
from latentsb.denoising import require_times
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Independent, Pair
from latentsb.process.path import PinnedPath
from latentsb.process.prediction import Prediction, Scaled
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.times import TimeDistribution, Uniform
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch
from latentsb.trainable import Alternate, Freeze, Loss, OnePass, Phase, Round, Schedule
from latentsb.twosided import Simulated, TwoSided, other

__all__ = ["DSBM"]

ENDS: tuple[End, End] = ("x0", "x1")


@BRIDGES.register("dsbm")
class DSBM(TwoSided):
    """Schrödinger bridge matching: a drift for each direction, matched in turns to pairs that the other one simulates.

    A turn of the drift towards one end regresses it on the reference pinned to pairs,
    `E|b_f(x_t, t) − b_f(x_t, t | x1)|²` or `E|b_b(x_t, t) − b_b(x_t, t | x0)|²`. The pairs of the next turn are
    simulated by the averaged weights of the drift just trained, from data at the end that it leaves. The fixed point
    is the Schrödinger bridge between the two ends over the reference.

    The first coupling makes the variant: `independent` begins iterative Markovian fitting (DSBM-IMF), `reference`
    iterative proportional fitting (DSBM-IPF). Both drifts are trained on a first coupling that has both ends right;
    on another, only that towards x0.

    Source: Shi et al. 2023, Diffusion Schrödinger bridge matching, Alg. 1; Peluchetti 2023, Diffusion bridge mixture
    transports.

    Args:
        ends: shapes, conditions, and whether batches bring x1.
        network: of each drift.
        reference: the process whose bridge is sought, any scalar one; its epsilon is the entropic regularisation.
        coupling: of the first pairs.
        prediction: what the networks predict.
        times: law of the training times.
        simulation: makes the pairs; it keeps the noise of its last step, or they would lose that variance.
        images: of a turn.
        first: of each turn on the first coupling; as many as of the others if None.
        pairs: simulated at a time.
        renew: images after which pairs are simulated anew within a turn, a divisor of `images`; never if None.
        continuing: a network goes on from its weights when its turn comes, instead of from its initial ones.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided.

    Raises:
        ArgumentError: if partners are asked of data without an x1, or `renew` does not divide `images`.
    """

    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = Brownian(sigma=0.5),
        coupling: Coupling = Independent(),
        prediction: Prediction = Scaled(),
        times: TimeDistribution = Uniform(),
        simulation: Solver = EulerMaruyama(steps=50, noiseless_last=False),
        images: Count = 500_000,
        first: Count | None = None,
        pairs: Count = 10_000,
        renew: Count | None = None,
        continuing: bool = True,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__(ends, network, reference=reference, prediction=prediction, dropout=dropout)
        if coupling.aligned and not ends.two_sided:
            raise ArgumentError("coupling", "partners need data that brings an x1 for each x0; this data has no x1")
        self.first = self.coupling = coupling.over(reference)
        self.aligned = coupling.aligned
        self.times, self.simulation, self.path = times, simulation, PinnedPath(reference)
        self.images, self.beginning, self.every, self.pairs = images, first or images, renew or images, pairs
        require_times(times, self)
        self.schedule()
        self.initial: dict[End, dict[str, Tensor]] = {}
        if not continuing:
            self.initial = {end: {k: v.clone() for k, v in self.networks[end].state_dict().items()} for end in ENDS}

    def schedule(self, part: str = "") -> Schedule:
        """Turns on the first coupling, then on simulated pairs: always first the drift that did not train just now."""
        if part:
            return super().schedule(part)
        back = Phase("backward", self._matching("x0"), ("networks.x0.",))
        forth = Phase("forward", self._matching("x1"), ("networks.x1.",))
        if self.first.both_ends:
            both = (back, forth)
            return Freeze(2 * self.beginning, Alternate(both, self.beginning), Alternate(both, self.images, self.every))
        return Freeze(self.beginning, OnePass(back), Alternate((forth, back), self.images, self.every))

    def student(self, number: int) -> tuple[End, bool]:
        """Whose drift is trained in a round, and on simulated pairs or on the first coupling."""
        starts = 2 if self.first.both_ends else 1
        turn = max(number - starts, 0) // (self.images // self.every) + min(number, starts)
        return ENDS[turn % 2], number >= starts

    def renew(self, round: Round) -> None:
        """The first coupling, or pairs from the drift that this round does not train."""
        student, simulated = self.student(round.number)
        if not simulated:
            self.coupling = self.first.fitted(round, self.ends)
            return
        self.coupling = self.simulate(round, self.pairs, self.simulation, other(student))
        begins = self.student(round.number - 1)[0] != student
        if self.initial and begins and not round.resumed:
            self.networks[student].load_state_dict(self.initial[student])

    def _matching(self, towards: End) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            return self.matching(self.pair(batch, draws, towards), self.path, self.times, draws, towards)

        return loss

    def pair(self, batch: Batch, draws: Draws, towards: End) -> Pair:
        """Both ends of the rows of a batch, for the drift towards an end.

        In evaluation mode simulated pairs are those of the batch itself, so that a held-out loss is one.
        """
        if isinstance(self.coupling, Simulated) and not self.training:
            return self.reach(batch, draws, self.simulation, other(towards))
        return self.coupling.pair(batch, self.ends, draws)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The losses of both drifts on the same pairs, added."""
        back, forth = (self._matching(end)(batch, draws).total for end in ENDS)
        return Loss(back + forth, {"backward": back, "forward": forth})
