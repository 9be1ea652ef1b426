"""Mixtures of Gaussians with a known entropic plan, in any dimension and for any epsilon.

x0 is standard normal and x1 the other end of the plan of a seeded mixture potential (`latentsb.oracles.MixturePair`),
in the manner of Gushchin et al. 2023. Their mixtures are not public as numbers: compare figures among themselves only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.methods import TRAIN, words
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.bridge import Bridge
from latentsb.oracles import MixturePair
from latentsb.oracles.chain import uniform
from latentsb.oracles.metrics import Sampler, bw2_uvp, cbw2_uvp, follow
from latentsb.randomness import Draws
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch
from latentsb.translate import direction

__all__ = ["ABOUT", "COLUMNS", "EotBench", "floor_samplers", "rows", "sampler_of", "scores"]

ABOUT = "unexplained variance in per cent: of the law of x1 given x0 (cBW2²-UVP), and of x1 (BW2²-UVP)"
BASE = f"""
data: {{name: eot_pair, dim: $DIM, epsilon: $EPSILON, n: $POINTS, potential: $POTENTIAL, seed: $SEED}}
{TRAIN}"""
COLUMNS = (
    Column("cBW2²-UVP %", "cbw2_uvp"),
    Column("BW2²-UVP %", "bw2_uvp"),
    Column("CPU s", "cpu"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)


@dataclass(frozen=True)
class EotBench:
    """The setting.

    Args:
        potential: seed of the mixture.
        steps: of Euler–Maruyama, in simulated pairs and in the samples that are measured.
        inputs: test states x0.
        samples: of x1 for each of them.
        points: of each end that are trained on.
        images: of training, of every method.
        turns: into which alternating methods divide them.
        width: of the networks.
        components: of mixtures that are fitted.
    """

    potential: int = 0
    steps: int = 50
    inputs: int = 100
    samples: int = 1000
    points: int = 100_000
    images: int = 5_000_000
    turns: int = 20
    width: int = 256
    components: int = 50

    def pair(self, dim: int, epsilon: float) -> MixturePair:
        """The truth."""
        return MixturePair(dim=dim, epsilon=epsilon, seed=self.potential)

    def values(self, dim: int, epsilon: float) -> dict[str, Any]:
        """What the words of the recipes stand for."""
        budget: dict[str, Any] = {"steps": self.steps, "images": self.images, "turns": self.turns, "width": self.width}
        shared = words(dim=dim, sigma=math.sqrt(epsilon), components=self.components, **budget)
        return shared | {"EPSILON": epsilon, "POINTS": self.points, "POTENTIAL": self.potential}

    @property
    def measuring(self) -> dict[str, int]:
        """What figures depend on, beside the arm."""
        return {"inputs": self.inputs, "samples": self.samples}


def rows(
    bench: EotBench,
    methods: Sequence[Method],
    dims: Sequence[int],
    epsilons: Sequence[float],
    seeds: Sequence[int],
    runs: Path,
) -> Iterator[Row]:
    """The floors of each problem, then a row for each method.

    Args:
        bench: the setting.
        methods: of the table or of one's own.
        dims: D.
        epsilons: of the reference, and of the pair.
        seeds: of points, training and measuring.
        runs: folder of the arms.
    """
    for dim in dims:
        for epsilon in epsilons:
            yield from floors(bench, dim, epsilon, seeds, runs)
            for method in methods:
                found = {seed: arm(bench, method, dim, epsilon, seed, runs) for seed in seeds}
                yield over_seeds(_case(dim, epsilon), method.name, found)


def _case(dim: int, epsilon: float) -> str:
    return f"D = {dim}, ε = {epsilon:g}"


def arm(bench: EotBench, method: Method, dim: int, epsilon: float, seed: int, runs: Path) -> dict[str, float | None]:
    """Figures of one arm; trained and measured if it is not there yet."""
    recipe = bind(BASE, method, bench.values(dim, epsilon), seed)
    folder = folder_of(runs, method, f"D{dim}-epsilon{epsilon:g}", seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        direction(experiment.bridge, "x1")
        sampler = sampler_of(experiment.bridge, experiment.solver)
        return cost | scores(sampler, bench.pair(dim, epsilon), bench, seed)

    return measured(folder / FIGURES, bench.measuring, measure)


def floors(bench: EotBench, dim: int, epsilon: float, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
    """Samples of the true plan, the exact drift in the same steps, and x1 drawn without regard to x0."""
    pair = bench.pair(dim, epsilon)
    asked = bench.measuring | {"steps": bench.steps, "potential": bench.potential}
    for name, sampler in floor_samplers(pair, bench.steps).items():
        word = name.partition(",")[0].replace(" ", "-")
        path = runs / "floors" / f"D{dim}-epsilon{epsilon:g}"
        found = {
            seed: measured(path / f"{word}-seed{seed}.json", asked, partial(scores, sampler, pair, bench, seed))
            for seed in seeds
        }
        yield over_seeds(_case(dim, epsilon), name, found)


def floor_samplers(pair: MixturePair, steps: int) -> dict[str, Sampler]:
    """What stands beside every method, by name."""
    return {
        "samples of the true plan": lambda x0, draws: pair.conditional(x0).sample(draws),
        "exact drift, same steps": lambda x0, draws: follow(pair, x0, uniform(steps), draws),
        "independent coupling": lambda x0, draws: pair.sample_x1(len(x0), draws),
    }


def scores(sampler: Sampler, pair: MixturePair, bench: EotBench, seed: int) -> dict[str, float | None]:
    """Both figures of a sampler; `… ±` is the standard error over test states."""
    conditional = cbw2_uvp(sampler, pair, inputs=bench.inputs, samples=bench.samples, seed=seed)
    n = bench.inputs * bench.samples
    draws = Draws.block(seed, "bench x1", 0, n)
    marginal = bw2_uvp(sampler(pair.sample_x0(n, draws), draws.fork("x1")), pair.x1_moments)
    return {"cbw2_uvp": conditional.value, "cbw2_uvp ±": conditional.error, "bw2_uvp": marginal}


def sampler_of(bridge: Bridge, solver: Solver) -> Sampler:
    """Draws x1 given x0 as a bridge does."""

    @torch.no_grad()
    def sample(x0: Tensor, draws: Draws) -> Tensor:
        batch = Batch(torch.arange(len(x0)), x0=x0.to(bridge.ends.spec.dtype))
        state = bridge.start(batch, draws.fork("start"), "x1")
        return solver.run(bridge, state, draws.fork("solve"), "x1").x.double()

    return sample
