"""Two normal laws that differ in their mean: every marginal, drift and coupling of the bridge is known.

`N(−a 1, I)` at t = 0 and `N(a 1, I)` at t = 1, Brownian reference: the problem of De Bortoli et al. 2021 in the
setting of Shi et al. 2023 (DSBM, Sec. 6.1: a = 0.1, sigma = 1, 20 steps, 10,000 samples, 21 times).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.methods import TRAIN, words
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.bridge import Bridge, End, State
from latentsb.oracles import ExactBridge, GaussianBridge, Joint, Normal
from latentsb.oracles.chain import euler_maruyama, run, uniform
from latentsb.oracles.linear import sample_between
from latentsb.oracles.metrics import estimator_floor, gaussian_kl
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch
from latentsb.translate import ways

__all__ = ["COLUMNS", "GaussianBench", "distances", "exact_rows", "follow", "rows"]

ABOUT = (
    "KL ×1e-3 of normal laws fitted to samples from those of the bridge, mean over all times and at the end; "
    "covariance of the ends and variance of the one that is made; rows through networks in training in millions"
)
BASE = f"""
data:
  name: unpaired
  x0: {{name: gaussian, mean: $LOW, n: $POINTS, seed: $EVEN}}
  x1: {{name: gaussian, mean: $HIGH, n: $POINTS, seed: $ODD}}
{TRAIN}"""
COLUMNS = (
    Column("KL full", "kl_full", 1e3),
    Column("KL diag.", "kl_diagonal", 1e3),
    Column("end full", "end_full", 1e3),
    Column("end diag.", "end_diagonal", 1e3),
    Column("cov.", "covariance"),
    Column("var.", "variance"),
    Column("CPU s", "cpu"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)


@dataclass(frozen=True)
class GaussianBench:
    """The setting.

    Args:
        a: half of the distance of the means along each axis.
        sigma: of the reference.
        steps: of Euler–Maruyama, in simulated pairs and in the samples that are measured.
        samples: that are measured.
        points: of each end that are trained on.
        images: of training, of every method.
        turns: into which alternating methods divide them.
        width: of the networks.
    """

    a: float = 0.1
    sigma: float = 1.0
    steps: int = 20
    samples: int = 10_000
    points: int = 10_000
    images: int = 5_000_000
    turns: int = 20
    width: int = 256

    def bridge(self, dim: int) -> GaussianBridge:
        """The truth."""
        ends = Normal.isotropic(dim, -self.a), Normal.isotropic(dim, self.a)
        return GaussianBridge.between(*ends, Brownian(sigma=self.sigma))

    def values(self, dim: int, seed: int) -> dict[str, Any]:
        """What the words of the recipes stand for."""
        own = {"LOW": [-self.a] * dim, "HIGH": [self.a] * dim, "POINTS": self.points}
        own |= {"EVEN": 2 * seed, "ODD": 2 * seed + 1}  # an equal seed would draw the same points at both ends
        budget: dict[str, Any] = {"steps": self.steps, "images": self.images, "turns": self.turns, "width": self.width}
        return own | words(dim=dim, sigma=self.sigma, components=10, **budget)


def rows(
    bench: GaussianBench, methods: Sequence[Method], dims: Sequence[int], seeds: Sequence[int], runs: Path
) -> Iterator[Row]:
    """The floors of each dimension, then a row for each method and each end that it leads to.

    Args:
        bench: the setting.
        methods: of the table or of one's own.
        dims: D.
        seeds: of data, training and measuring.
        runs: folder of the arms.
    """
    for dim in dims:
        yield from floors(bench, dim, seeds, runs)
        for method in methods:
            found: dict[str, dict[int, dict[str, float | None]]] = {}
            for seed in seeds:
                for end, figures in arm(bench, method, dim, seed, runs).items():
                    found.setdefault(end, {})[seed] = figures
            for end, each in found.items():
                yield over_seeds(f"d = {dim}", f"{method.name} → {end}", each)


def arm(bench: GaussianBench, method: Method, dim: int, seed: int, runs: Path) -> dict[str, dict[str, float | None]]:
    """Figures of one arm, by the end that is led to; trained and measured if it is not there yet."""
    recipe = bind(BASE, method, bench.values(dim, seed), seed)
    folder = folder_of(runs, method, f"d{dim}", seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        found: dict[str, float | None] = {}
        obstacles = ways(experiment.bridge)
        for end in ("x0", "x1"):
            if not obstacles[end]:
                truth = bench.bridge(dim)
                figures = distances(experiment.bridge, experiment.solver, truth, end, bench.samples, seed)
                found |= {f"{end}: {key}": value for key, value in (figures | cost).items()}
        return found

    figures = measured(folder / FIGURES, {"samples": bench.samples}, measure)
    ends = dict.fromkeys(key.partition(": ")[0] for key in figures)
    return {end: {k.partition(": ")[2]: v for k, v in figures.items() if k.startswith(end)} for end in ends}


def floors(bench: GaussianBench, dim: int, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
    """What no method can beat, what the exact drift reaches, and what a method reaches that learned no coupling."""
    truth, case = bench.bridge(dim), f"d = {dim}"
    yield from exact_rows(bench, dim)
    solver = EulerMaruyama(steps=bench.steps, noiseless_last=False)
    path = runs / "floors" / f"d{dim}"

    def drift(seed: int) -> dict[str, float | None]:
        return dict(distances(ExactBridge(truth), solver, truth, "x1", bench.samples, seed))

    def unrelated(seed: int) -> dict[str, float | None]:
        loose = Joint.independent(truth.ends.x0, truth.ends.x1)
        draws = Draws.block(seed, "bench independent", 0, bench.samples)
        paths = sample_between(truth.reference, *loose.sample(bench.samples, draws), uniform(bench.steps), draws)
        return dict(of_paths(truth, uniform(bench.steps), list(paths)))

    for name, make in (("exact drift, sampled", drift), ("independent, sampled", unrelated)):
        word = name.split(",")[0].replace(" ", "-")
        asked = asdict(bench) | {"dim": dim}
        for key in ("images", "turns", "points", "width"):
            del asked[key]
        found = {seed: measured(path / f"{word}-seed{seed}.json", asked, partial(make, seed)) for seed in seeds}
        yield over_seeds(case, name, found)


def exact_rows(bench: GaussianBench, dim: int) -> tuple[Row, Row, Row]:
    """Expectations: of samples of the truth, of the exact drift in Euler–Maruyama steps, of the independent coupling.

    The first is the estimator's own bias; the other two are distances of the laws themselves, to which it adds.
    """
    truth, case, n = bench.bridge(dim), f"d = {dim}", bench.samples
    full, diagonal = (estimator_floor(dim, n, diagonal=flag) for flag in (False, True))
    cross = float(truth.ends.cross.diagonal().mean())
    own = {"kl_full": full, "kl_diagonal": diagonal, "end_full": full, "end_diagonal": diagonal}
    first = Row(case, "truth, sampled (expected)", (), _one(own | {"covariance": cross, "variance": 1.0}))
    times = uniform(bench.steps)
    chain = run(euler_maruyama(truth.b_f, truth.a, times), truth.ends.x0)
    laws = {"exact drift (its law)": (chain.laws, chain.ends.cross), "independent (its law)": _loose(truth, times)}
    others = []
    for name, (found, coupled) in laws.items():
        kl = [law.kl(truth.marginal(float(t))) for law, t in zip(found, times, strict=True)]
        mean = sum(kl) / len(kl)
        told = {"kl_full": mean, "kl_diagonal": mean, "end_full": kl[-1], "end_diagonal": kl[-1]}
        told |= {"covariance": float(coupled.diagonal().mean()), "variance": float(found[-1].cov.diagonal().mean())}
        others.append(Row(case, name, (), _one(told)))
    return first, others[0], others[1]


def _one(figures: dict[str, float]) -> dict[str, list[float]]:
    return {key: [value] for key, value in figures.items()}


def _loose(truth: GaussianBridge, times: Tensor) -> tuple[tuple[Normal, ...], Tensor]:
    bridge = GaussianBridge(Joint.independent(truth.ends.x0, truth.ends.x1), truth.reference)
    return tuple(bridge.marginal(float(t)) for t in times), bridge.ends.cross


@torch.no_grad()
def distances(
    bridge: Bridge, solver: Solver, truth: GaussianBridge, towards: End, n: int, seed: int
) -> dict[str, float]:
    """Figures of a bridge on fresh samples of the end that it leaves.

    Args:
        bridge: trained, or exact.
        solver: that visits times from one end to the other.
        truth: what its samples should follow.
        towards: the end that is led to.
        n: samples.
        seed: of them.
    """
    states = follow(bridge, solver, truth.ends.x1 if towards == "x0" else truth.ends.x0, towards, n, seed)
    return of_paths(truth, [state.t for state in states], [state.x for state in states])


def follow(bridge: Bridge, solver: Solver, law: Normal, towards: End, n: int, seed: int) -> list[State]:
    """The states of n trajectories from a normal law, in the order of travel."""
    draws = Draws.block(seed, "bench trajectories", 0, n)
    x = law.sample(n, draws.fork("data")).to(bridge.ends.spec.dtype)
    batch = Batch(torch.arange(n), x1=x) if towards == "x0" else Batch(torch.arange(n), x0=x)
    states: list[State] = []
    solver.run(bridge, bridge.start(batch, draws.fork("start"), towards), draws.fork("solve"), towards, states.append)
    return states


def of_paths(truth: GaussianBridge, times: Sequence[Tensor] | Tensor, xs: Sequence[Tensor]) -> dict[str, float]:
    """Figures of states at times, in the order of travel; the first and the last are the ends."""
    full, diagonal = (
        [gaussian_kl(x.double(), truth.marginal(float(t)), diagonal=flag) for t, x in zip(times, xs, strict=True)]
        for flag in (False, True)
    )
    ends = Normal.fitted(torch.cat([xs[0].double(), xs[-1].double()], 1)).cov
    dim = truth.dim
    return {
        "kl_full": sum(full) / len(full),
        "kl_diagonal": sum(diagonal) / len(diagonal),
        "end_full": full[-1],
        "end_diagonal": diagonal[-1],
        "covariance": float(ends[:dim, dim:].diagonal().mean()),
        "variance": float(ends[dim:, dim:].diagonal().mean()),
        "mean": float(xs[-1].double().mean()),
    }
