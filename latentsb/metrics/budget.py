"""The error budget of a bridge in latent space: what each of its approximations costs, and what they cost together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State, require
from latentsb.data.source import Source
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Data, Measured, Metric, Subject, Table
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss

__all__ = ["Budget", "EmpiricalBridge", "coupled", "kick", "matched", "refined", "slope"]

Follower = EulerMaruyama | Posterior


@METRICS.register("budget")
@dataclass(frozen=True, kw_only=True)
class Budget(Metric):
    """Upper bound of the W2 error of samples as a sum of measured terms, and its ratio to the error itself.

    In latent space, with p̂ the law of the training latents that are taken, D* its exact denoiser (a softmax over them)
    and all chains driven by the same Brownian motion, root mean square distances of

    * start: the bridge's chain from its own start and from `p̂ * N(0, σ²)`, draws paired optimally;
    * score: the chain of the learned denoiser and that of D*;
    * steps: the chain of D* and the same one on `finer` times as many steps;
    * early stopping: `σ √(d (1 − T))`, a bound;
    * sample: W2 of as many training and held-out latents.

    Each is the cost of one coupling, so that the sum bounds W2. In data space the sum times the decoder's Lipschitz
    constant, and the autoencoder's error on the target, bound W2 of the samples; with pre-training on another law p~
    its error there and `(1 + ξ_D ξ_E) W2(p, p~)` take the latter's place in the published bound. Lipschitz constants
    are the largest slopes between pairs of samples: estimates from below, so that what they enter is no strict bound.

    Source: the triangle inequality; Jiao et al. 2024, Latent Schrödinger bridge diffusion model (its three parts).

    Args:
        samples: of each law; W2 is that of two sets of them, by optimal assignment.
        finer: how many steps of the finer chain are one of the solver's.
        seed: of the choice of samples and of all noise.
    """

    samples: Count = 1000
    finer: Count = 8
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """A one-sided bridge that denoises, and a solver whose noise can be refined."""
        bridge = require(subject.bridge, DenoisingBridge, "the metric 'budget'")
        if bridge.pinned or bridge.reference.total == 0 or bridge.ends.cond:
            raise CapabilityError("the metric 'budget' needs a bridge from noise without conditions, such as 'lsbdm'")
        solver = subject.follower()
        if not (isinstance(solver, EulerMaruyama) or (isinstance(solver, Posterior) and solver.eta in (0.0, 1.0))):
            raise CapabilityError("the metric 'budget' needs the solver 'euler_maruyama', or 'posterior' of eta 0 or 1")

    @torch.no_grad()
    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is the budget over the error in latent space."""
        self.require(subject)
        bridge, solver = subject.bridge, subject.follower()
        assert isinstance(bridge, DenoisingBridge)
        assert isinstance(solver, EulerMaruyama | Posterior)
        n = min(self.samples, len(subject.train), len(subject.test))
        known, fresh = (self._read(data, n, latents=True) for data in (subject.train, subject.test))
        latent, made = self._latent_terms(bridge, solver, known.to(bridge.device), n)
        latent["sample"] = matched(known, fresh)[0]
        whole, floor = matched(made, fresh)[0], latent["sample"]
        outside, details = self._data_terms(subject, fresh, made, sum(latent.values()), n)
        rows = [(name, (value,)) for name, value in latent.items()]
        rows += [("sum", (sum(latent.values()),)), ("error", (whole,))]
        budget = sum(latent.values()) / whole
        return Measured(
            value=budget,
            protocol={"samples": n, "finer": self.finer, "on": subject.test.name, "solver": repr(solver)},
            details={"count": n, **latent, "error": whole, "error floor": floor, **details},
            of="budget over error (latents)",
            tables=(
                Table("latents: root mean square distances", ("", "W2 <="), rows),
                Table("data", ("", "W2 <="), [(name, (value,)) for name, value in outside.items()]),
            ),
        )

    def _read(self, data: Data, n: int, *, latents: bool = False) -> Tensor:
        return data.read(data.rows(n, self.seed, "budget"), latents=latents).x0

    def _latent_terms(
        self, bridge: DenoisingBridge, solver: Follower, known: Tensor, n: int
    ) -> tuple[dict[str, float], Tensor]:
        """Terms of the chain, and the latents that it ends in."""
        draws = Draws.block(self.seed, "budget", 0, n)
        times = solver.grid.times(bridge, solver.steps)
        fine, owner = refined(times, self.finer)
        noises = [draws.fork(f"noise {k}").normal("noise", known) for k in range(len(fine) - 1)]
        coarse = gathered(bridge, solver, fine, owner, noises)
        there = bridge.marginal(times[0])
        rows = draws.integers("row", n).to(known.device)
        begun = there.sample(known[rows], None, draws.normal("x1", known))
        own = bridge.start(Batch(torch.arange(n)).to(bridge.device), draws.fork("start")).x
        own = own[matched(begun, own)[1].to(own.device)]
        exact = EmpiricalBridge(bridge, known)
        ends = {
            "fine": coupled(exact, replace(solver, steps=len(fine) - 1), begun, fine, noises),
            "exact": coupled(exact, solver, begun, times, coarse),
            "right": coupled(bridge, solver, begun, times, coarse),
            "own": coupled(bridge, solver, own, times, coarse),
        }
        stop = bridge.marginal(times[-2] if float(times[-1]) == 0 else times[-1])
        noisy = isinstance(solver, EulerMaruyama) and not solver.noiseless_last and float(times[-1]) == 0
        terms = {
            "start": apart(ends["own"], ends["right"]),
            "score": apart(ends["right"], ends["exact"]),
            "steps": apart(ends["exact"], ends["fine"]),
            # The denoised state is as near to the data as the state at most; a last noisy step adds as much again.
            "early stopping": (1 + noisy) * float(stop.sigma_eff) * math.sqrt(known[0].numel()),
        }
        return terms, ends["own"].cpu()

    def _data_terms(
        self, subject: Subject, fresh: Tensor, made: Tensor, latent: float, n: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Bounds and the error in data space, and what they are made of."""
        autoencoder, device = subject.autoencoder, subject.bridge.device
        target = self._read(subject.test, n)
        lost = apart(autoencoder.round_trip(target.to(device)).cpu(), target)
        decoded = autoencoder.decode(made.to(device)).cpu()
        error = matched(decoded, target)[0]
        decoder = slope(fresh, autoencoder.decode(fresh.to(device)).cpu())
        details = {"autoencoder": lost, "decoder slope": decoder, "data error": error}
        found = {"slope of the decoder × latents": decoder * latent, "autoencoder on the target": lost}
        found |= {"sum": decoder * latent + lost, "error": error}
        other: Source | None = subject.train.source.pretraining
        if other is not None:
            before = self._read(Data(other, lambda: other, held_out=False), n)
            coded = autoencoder.encode(before.to(device)).cpu()
            shift, encoder = matched(before[: len(target)], target[: len(before)])[0], slope(before, coded)
            lost_before = apart(autoencoder.round_trip(before.to(device)).cpu(), before)
            shifted = (1 + decoder * encoder) * shift
            details |= {"autoencoder before": lost_before, "encoder slope": encoder, "shift": shift}
            found |= {"autoencoder on its own data": lost_before, "shift: (1 + ξ_D ξ_E) W2(p, p~)": shifted}
            found["published sum"] = decoder * latent + lost_before + shifted
        return found, details


class EmpiricalBridge(DenoisingBridge):
    """The process of another bridge out of points: its exact denoiser is a softmax over them.

    Args:
        like: gives the process.
        points: shape (N, …).
    """

    def __init__(self, like: DenoisingBridge, points: Tensor) -> None:
        super().__init__()
        self.ends, self.reference, self.t_min, self.t_max = like.ends, like.reference, like.t_min, like.t_max
        self.like, self.points = (like.marginal,), points

    reference: ScalarReference

    def marginal(self, t: Tensor) -> Marginal:
        """That of the other bridge."""
        return self.like[0](t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`Σ_i softmax_i(−|y − x_i|²/(2 sigma_eff²)) x_i`."""
        now = self.marginal(t)
        far = torch.cdist(now.to_y(x, None).flatten(1).double(), self.points.flatten(1).double()).square()
        share = (-far / (2 * now.sigma_eff.square())).softmax(1)
        return (share @ self.points.flatten(1).double()).reshape(x.shape).to(x)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """Points with noise at t = 1; the data at t = 0."""
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)
        t = torch.ones((), dtype=torch.float64)
        chosen = self.points[draws.integers("row", len(self.points)).to(self.points.device)]
        return State(self.marginal(t).sample(chosen, None, draws.normal("x1", chosen)), t, batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Zero: nothing is trained."""
        return Loss(torch.zeros(len(batch)))


class Given(Draws):
    """Draws whose normal numbers are given."""

    @classmethod
    def of(cls, noise: Tensor) -> Given:
        """These for every name."""
        found = cls((), len(noise))
        object.__setattr__(found, "noise", noise)
        return found

    def normal(self, name: str, like: Tensor) -> Tensor:
        """The given numbers."""
        noise: Tensor = vars(self)["noise"]
        return noise.to(like)


def kick(bridge: DenoisingBridge, solver: Follower, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """What a step from t to s keeps of a deviation where the denoiser is constant, and its own noise, shape () each."""
    if isinstance(solver, EulerMaruyama):
        return torch.ones_like(t), bridge.diffusion(t) * (t - s).sqrt()
    here, there = bridge.marginal(t), bridge.marginal(s)
    spread2 = solver.eta**2 * there.c * (1 - (there.sigma_eff / here.sigma_eff).square())
    return ((there.c - spread2).clamp(min=0) / here.c).sqrt(), spread2.clamp(min=0).sqrt()


def refined(times: Tensor, finer: int) -> tuple[Tensor, list[int]]:
    """Falling times with each interval cut into `finer` of equal ratios, but a last one that ends in 0.

    Returns:
        The times, and for each of their intervals the number of the one that it is cut from.
    """
    found, owner = [times[:1]], []
    for k, (t, s) in enumerate(pairwise(times)):
        parts = finer if float(s) > 0 else 1
        inner = t * (s / t) ** (torch.arange(1, parts, dtype=torch.float64) / parts)
        found += [inner, s[None]]
        owner += [k] * parts
    return torch.cat(found), owner


def gathered(
    bridge: DenoisingBridge, solver: Follower, fine: Tensor, owner: list[int], noises: list[Tensor]
) -> list[Tensor]:
    """Noise of the coarse steps that is the same Brownian motion as that of the fine ones."""
    coarse = []
    for k in range(owner[-1] + 1):
        total, weight = torch.zeros_like(noises[0]), 0.0
        for j in (j for j, of in enumerate(owner) if of == k):
            keep, spread = kick(bridge, solver, fine[j], fine[j + 1])
            total = expand_as(keep, total) * total + expand_as(spread, total) * noises[j]
            weight = float(keep) ** 2 * weight + float(spread) ** 2
        coarse.append(total / math.sqrt(weight) if weight > 0 else total)
    return coarse


def coupled(bridge: Bridge, solver: Follower, x: Tensor, times: Tensor, noises: list[Tensor]) -> Tensor:
    """Follow a bridge along given times with given noise, shape of x."""
    state = State(x, times[0], Condition())
    memory: Any = solver.begin(bridge, state, "x0")
    for s, noise in zip(times[1:], noises, strict=True):
        state, memory = solver.step(bridge, state, s, Given.of(noise), "x0", memory)
    return state.x


def apart(a: Tensor, b: Tensor) -> float:
    """Root mean square distance of rows."""
    return float((a - b).flatten(1).double().square().sum(1).mean().sqrt())


def matched(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """W2 of two sets of equally many points, and the row of b that goes with each of a; exact, by assignment."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(a.flatten(1).double().cpu(), b.flatten(1).double().cpu()).square().numpy()
    rows, columns = linear_sum_assignment(cost)
    return math.sqrt(float(cost[rows, columns].mean())), torch.from_numpy(columns)


def slope(a: Tensor, b: Tensor, n: int = 500) -> float:
    """Largest `|b_i − b_j|/|a_i − a_j|` over pairs of the first n rows: a Lipschitz constant's estimate from below."""
    far, image = (torch.cdist(v[:n].flatten(1).double(), v[:n].flatten(1).double()) for v in (a, b))
    unequal = far > 1e-9
    return float((image[unequal] / far[unequal]).max())
