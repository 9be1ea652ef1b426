"""Flow and score matching: a velocity and a score on the bridges between coupled points, without simulation."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from latentsb.bridge import BRIDGES, Bridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.errors import ArgumentError
from latentsb.laws import Ends, Gaussian
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, MinibatchOT
from latentsb.process.path import PathPoint, PinnedPath
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.times import TimeDistribution, Uniform
from latentsb.randomness import Draws
from latentsb.ranges import Fraction
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss
from latentsb.twosided import depart

__all__ = ["SF2M"]


@BRIDGES.register("sf2m")
class SF2M(Bridge):
    """Score and flow matching: the two regressions of which a Schrödinger bridge consists once its pairs are known.

    Pairs come from an entropic plan within each batch; between a pair runs the pinned reference. With its drifts and
    its score at `x_t = a x1 + b x0 + √c n`, n standard normal,

        flow:   |v_θ(x_t, t) − (b_f − b_b)/2|²      for Brownian motion x1 − x0 + (c'/2c) (x_t − mean)
        score:  |λ s_θ(x_t, t) + n|²                with λ = 2 √c / g², so that s_θ is g²/2 ∇ ln p_t

    and `b_f = v + s`, `b_b = −v + s`. Of any coupling both learn the Markovian projection; of the entropic plan with
    the reference's epsilon that is the Schrödinger bridge. The plan of a batch of n has a bias that falls with n.

    Source: Tong et al. 2024, Simulation-free Schrödinger bridges via score and flow matching, Eq. 8–10.

    Args:
        ends: shapes, conditions; the data or a law bring x1, which is standard normal where nothing does.
        network: of flow and of score; built twice.
        reference: the process whose bridge is sought.
        coupling: which x0 goes with which x1; the entropic plan of each batch at the reference's epsilon if None.
        times: law of the training times.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided.

    Raises:
        ArgumentError: if the reference is noiseless, or partners are asked of data without an x1.
    """

    # The velocity of a pinned path is singular at both of its ends.
    t_min = 1e-3
    t_max = 1 - 1e-3
    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = Brownian(),
        coupling: Coupling | None = None,
        times: TimeDistribution = Uniform(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise: without it there is no score; `flow` is that bridge")
        self.coupling = MinibatchOT(reference=reference) if coupling is None else coupling
        self.aligned = self.coupling.aligned
        if self.aligned and not ends.two_sided:
            raise ArgumentError("coupling", "partners need data that brings an x1 for each x0; this data has no x1")
        free = ends.x1 is None and not ends.two_sided
        self.ends = replace(ends, x1=Gaussian(ends.spec)) if free else ends
        self.reference, self.times, self.dropout = reference, times, dropout
        self.networks = nn.ModuleDict({name: network(self.ends.spec, self.ends.cond) for name in ("flow", "score")})

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Both regressions at one state, means over a sample, shape (B,)."""
        pair = self.coupling.pair(batch, self.ends, draws)
        cond = drop_conditions(pair.cond, self.dropout, draws)
        t = self.times.sample(self, draws)
        point = PinnedPath(self.reference).at(t, pair, draws)
        flow = self._ask("flow", point.x, t, cond) - (point.b_f - point.b_b) / 2
        score = self._noise_error(point, t, cond)
        terms = {"flow": flow.square().flatten(1).mean(1), "score": score.square().flatten(1).mean(1)}
        return Loss(terms["flow"] + terms["score"], terms)

    def _noise_error(self, point: PathPoint, t: Tensor, cond: Condition) -> Tensor:
        """`λ s_θ + n`, where `n = −√c score`; bounded at all times."""
        std = self.reference.pinned(t).std
        pull = self._ask("score", point.x, t, cond)
        return expand_as(2 * std / self.reference.g2(t), pull) * pull - expand_as(std, pull) * point.score

    def _ask(self, name: str, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.networks[name](x, t.to(device=x.device, dtype=x.dtype), cond)
        return out

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`v_θ`, the probability-flow velocity in forward time; t of shape () or (B,)."""
        return self._ask("flow", x, t, cond)

    def score(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`∇ ln p_t(x) = 2 s_θ / g²`."""
        pull = self._ask("score", x, t, cond)
        return pull * expand_as(2 / self.reference.g2(t), pull)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`v + s` towards x1, `−v + s` towards x0."""
        v, pull = self.velocity(x, t, cond), self._ask("score", x, t, cond)
        return pull + v if towards == "x1" else pull - v

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)` of the reference, in both directions."""
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The batch's own far end, or a draw of its law; see `depart`."""
        return depart(self.ends, batch, draws, towards, self.device)
