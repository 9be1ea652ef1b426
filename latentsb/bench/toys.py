"""Laws in the plane, between which the Schrödinger bridge is known on a grid: quality, energy, error of the drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.methods import TRAIN, words
from latentsb.bench.plane import LAWS, data_of, solve
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.bridge import Bridge, State
from latentsb.oracles import ExactBridge, GridBridge
from latentsb.process.transport import assign, costs
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition
from latentsb.translate import direction

__all__ = [
    "ABOUT",
    "COLUMNS",
    "PROBLEMS",
    "ToyBench",
    "codes_of",
    "drift_error",
    "figures_of",
    "paths_of",
    "rows",
    "wasserstein",
]

ABOUT = "laws in the plane: W2 of the results from the law, mean squared way, energy, and error of the drift"
PROBLEMS = ("gaussian-moons", "gaussian-swissroll", "gaussian-eight_gaussians", "moons-eight_gaussians")
"""Source (x1) and target (x0)."""
BASE = f"""
data:
  name: unpaired
  x0: $X0
  x1: $X1
{TRAIN}"""
COLUMNS = (
    Column("W2", "w2"),
    Column("E|x0 − x1|²", "way"),
    Column("energy", "energy"),
    Column("error of the drift", "drift"),
    Column("CPU s", "cpu"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)
TIMES = tuple(k / 10 for k in range(1, 10))
"""Where drifts are compared."""
KEPT = 100
"""Trajectories that are kept for the picture."""


@dataclass(frozen=True)
class ToyBench:
    """The setting.

    Args:
        sigma: of the reference.
        steps: of Euler–Maruyama, in simulated pairs and in the samples that are measured.
        samples: that are measured.
        points: of each end that are trained on.
        images: of training, of every method.
        turns: into which alternating methods divide them.
        width: of the networks.
    """

    sigma: float = 1.0
    steps: int = 50
    samples: int = 2000
    points: int = 20_000
    images: int = 2_500_000
    turns: int = 20
    width: int = 256

    def values(self, problem: str, seed: int) -> dict[str, Any]:
        """What the words of the recipes stand for."""
        source, target = problem.split("-")
        n = str(self.points)
        own = {"X0": data_of(target, n, str(2 * seed)), "X1": data_of(source, n, str(2 * seed + 1))}
        return own | self.words(2)

    def words(self, dim: int) -> dict[str, Any]:
        """What the words of a method stand for, on vectors of `dim` numbers."""
        budget: dict[str, Any] = {"steps": self.steps, "images": self.images, "turns": self.turns, "width": self.width}
        return words(dim=dim, sigma=self.sigma, components=50, towards="x0", **budget)

    @cache  # noqa: B019 - benches are few and live as long as the command
    def truth(self, problem: str) -> GridBridge:
        """The bridge on a grid."""
        source, target = problem.split("-")
        return solve(LAWS[target], LAWS[source], self.sigma)

    def fresh(self, law: str, seed: int, name: str) -> Tensor:
        """Samples that nobody was trained on, shape (n, 2)."""
        far = Draws.block(seed, f"bench {law} {name}", 0, 1).integers("seed", 2**31 - 1)
        recipe = Recipe.parse(
            f"data: {data_of(law, str(self.samples), str(int(far)))}\nbridge: {{name: flow, network: mlp}}", label="law"
        )
        found: Tensor = recipe.data.build().read(np.arange(self.samples)).x0
        return found


def rows(
    bench: ToyBench, methods: Sequence[Method], problems: Sequence[str], seeds: Sequence[int], runs: Path
) -> Iterator[Row]:
    """The floors of each problem, then a row for each method.

    Args:
        bench: the setting.
        methods: of the table or of one's own.
        problems: of `PROBLEMS`, or any two of `LAWS` with a dash between.
        seeds: of points, training and measuring.
        runs: folder of the arms.
    """
    for problem in problems:
        yield from floors(bench, problem, seeds, runs)
        for method in methods:
            found = {seed: arm(bench, method, problem, seed, runs) for seed in seeds}
            yield over_seeds(problem, method.name, found)


def arm(bench: ToyBench, method: Method, problem: str, seed: int, runs: Path) -> dict[str, float | None]:
    """Figures of one arm; trained and measured if it is not there yet."""
    recipe = bind(BASE, method, bench.values(problem, seed), seed)
    folder = folder_of(runs, method, problem, seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        direction(experiment.bridge, "x0")
        return cost | figures_of(bench, experiment.bridge, experiment.solver, problem, seed, folder)

    return measured(folder / FIGURES, {"samples": bench.samples}, measure)


def floors(bench: ToyBench, problem: str, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
    """Two samples of the truth, the exact drift in the same steps, x0 without regard to x1, and the source itself."""
    source, target = problem.split("-")
    solver = EulerMaruyama(steps=bench.steps, noiseless_last=False)
    folder = runs / "floors" / problem

    def drift(seed: int) -> Mapping[str, float | None]:
        bridge = ExactBridge(bench.truth(problem))
        return figures_of(bench, bridge, solver, problem, seed, folder / f"exact-seed{seed}")

    def unrelated(seed: int) -> Mapping[str, float | None]:
        x1, x0 = bench.fresh(source, seed, "source"), bench.fresh(target, seed, "other")
        return {"w2": wasserstein(x0, bench.fresh(target, seed, "target")), "way": way(x0, x1)}

    def identity(seed: int) -> Mapping[str, float | None]:
        return {"w2": wasserstein(bench.fresh(source, seed, "source"), bench.fresh(target, seed, "target")), "way": 0.0}

    asked = {"samples": bench.samples, "sigma": bench.sigma, "steps": bench.steps}
    made = {"exact drift, same steps": drift, "independent coupling": unrelated, "source as it is": identity}
    for name, make in made.items():
        word = name.partition(",")[0].replace(" ", "-")
        found = {seed: measured(folder / f"{word}-seed{seed}.json", asked, partial(make, seed)) for seed in seeds}
        yield over_seeds(problem, name, found)


def figures_of(
    bench: ToyBench, bridge: Bridge, solver: Solver, problem: str, seed: int, folder: Path
) -> dict[str, float | None]:
    """Figures of a bridge from x1 towards x0; keeps some trajectories beside."""
    source, target = problem.split("-")
    states = paths_of(bridge, solver, bench.fresh(source, seed, "source"), seed)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "paths.npy", torch.stack([state.x[:KEPT] for state in states]).float().numpy())
    begin, end = states[0].x, states[-1].x
    return {
        "w2": wasserstein(end, bench.fresh(target, seed, "target")),
        "way": way(begin, end),
        "energy": energy(bridge, states),
        "drift": drift_error(bridge, bench.truth(problem), seed),
    }


@torch.no_grad()
def paths_of(bridge: Bridge, solver: Solver, x1: Tensor, seed: int) -> list[State]:
    """The states of trajectories from x1 towards x0, in the order of travel."""
    draws = Draws.block(seed, "bench trajectories", 0, len(x1))
    batch = Batch(torch.arange(len(x1)), x1=x1.to(bridge.ends.spec.dtype))
    states: list[State] = []
    solver.run(bridge, bridge.start(batch, draws.fork("start")), draws.fork("solve"), "x0", states.append)
    return states


def codes_of(bridge: Bridge, solver: Solver, x0: Tensor, seed: int) -> Tensor:
    """Where trajectories from x0 towards x1 end, float64."""
    draws = Draws.block(seed, "bench codes", 0, len(x0))
    start = bridge.start(Batch(torch.arange(len(x0)), x0=x0.to(bridge.ends.spec.dtype)), draws.fork("start"), "x1")
    return solver.run(bridge, start, draws.fork("solve"), "x1").x.double()


def wasserstein(x: Tensor, y: Tensor) -> float:
    """`W2` between two samples of one size: the root of the least mean squared distance over all permutations."""
    return float((x - y[assign(costs(x, y))]).double().square().sum(1).mean().sqrt())


def way(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of partners."""
    return float((x - y).double().square().sum(1).mean())


@torch.no_grad()
def energy(bridge: Bridge, states: Sequence[State]) -> float:
    """`E ∫ |b|² dt` along trajectories: left sums over their steps.

    Of the Schrödinger bridge over Brownian motion it is 2 σ² KL(process ‖ reference); of an ODE the transport cost.
    """
    total = 0.0
    for here, there in pairwise(states):
        drift = bridge.drift(here.x, here.t, here.cond, "x0")
        total += float((there.t - here.t).abs()) * float(drift.double().square().sum(1).mean())
    return total


@torch.no_grad()
def drift_error(bridge: Bridge, truth: GridBridge, seed: int, n: int = 300) -> float:
    """`E|b − b*|² / E|b*|²` of the drift towards x0 at points of exact paths; of a noiseless bridge the velocities'.

    Args:
        bridge: to be judged.
        truth: whose drift is b*.
        seed: of the paths.
        n: paths.
    """
    paths = truth.sample_paths(n, TIMES, Draws.block(seed, "bench exact paths", 0, n))
    wrong = size = 0.0
    for t, x in zip(TIMES, paths, strict=True):
        time = torch.tensor(t, dtype=torch.float64)
        exact = truth.drift(x, t, "x0")
        if float(bridge.diffusion(time)) == 0:
            exact = (exact - truth.drift(x, t, "x1")) / 2
        found = bridge.drift(x.to(bridge.ends.spec.dtype), time, Condition(), "x0").double()
        wrong += float((found - exact).square().sum(1).mean())
        size += float(exact.square().sum(1).mean())
    return wrong / size
