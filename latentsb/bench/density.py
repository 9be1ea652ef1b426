"""Samplers of unnormalised densities beside exact constants: log Z, effective sample size, modes and spreads.

The grid of Richter & Berner 2024: DIS and PIS by the log-variance and by the Kullback-Leibler divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.metrics.log_z import figures, weighted
from latentsb.targets.base import TARGETS, Target
from latentsb.weighing import WeighingBridge

__all__ = ["ABOUT", "COLUMNS", "METHODS", "PROBLEMS", "DensityBench", "rows"]

ABOUT = (
    "log Z by importance sampling with discrete kernel ratios, and its lower bound with the Itô part; share of "
    "effective samples; of samples without weights: modes with a tenth of their mass, total variation of mode masses, "
    "mean error of marginal standard deviations; rows through networks in training in millions"
)
BASE = """
seed: $SEED
bridge: {name: density, target: $TARGET, steps: $STEPS, paths: $PATHS}
solver: {name: euler_maruyama, steps: $STEPS, noiseless_last: false}
train: {images: $IMAGES, batch: 16, lr: 3e-3, warmup: $WARMUP, log_every: $LOG, save_every: $SAVE,
  preview_every: 1_000_000_000, workers: 0}
preview: {n: 1}
"""
NETWORK = "network: {name: mlp, width: $WIDTH, depth: 2}"
DIS = f"sampler: dis, control: {{name: lerp, {NETWORK}}}"
PIS = f"sampler: {{name: pis, reference: {{name: brownian, sigma: $SPREAD}}}}, control: {{name: score, {NETWORK}}}"
METHODS = {
    f"{name}_{loss}": f"bridge: {{name: density, {sampler}, loss: {loss}}}"
    for name, sampler in (("dis", DIS), ("pis", PIS))
    for loss in ("lv", "kl")
}
"""What each method adds to the recipe of the bench."""
PROBLEMS = {"gmm": 5.0, "funnel": 3.0, "mw": 2.0, "mw_50d": 1.4}
"""Targets, each with the standard deviation of the reference's end that PIS is given: about the target's own."""
COLUMNS = (
    Column("log Z", "log_z"),
    Column("bound", "elbo_ito"),
    Column("ESS", "ess"),
    Column("modes", "modes"),
    Column("mode TV", "mode_tv"),
    Column("std error", "std_error"),
    Column("CPU s", "cpu"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)


@dataclass(frozen=True)
class DensityBench:
    """The setting.

    Args:
        images: rows of training, each of `paths` paths.
        paths: in a row.
        steps: of the chain.
        width: of the networks.
        samples: weighted ones, to measure with.
    """

    images: int = 24_000
    paths: int = 16
    steps: int = 50
    width: int = 64
    samples: int = 20_000

    def values(self, problem: str) -> dict[str, Any]:
        """What the words of a recipe stand for, but for the seed."""
        return {
            "TARGET": problem,
            "SPREAD": PROBLEMS.get(problem, 1.0),
            "STEPS": self.steps,
            "PATHS": self.paths,
            "IMAGES": self.images,
            "WIDTH": self.width,
            "WARMUP": self.images // 30,
            "LOG": max(1, self.images // 30),
            "SAVE": max(1, self.images // 4),
        }


def rows(
    bench: DensityBench, methods: Sequence[Method], problems: Sequence[str], seeds: Sequence[int], runs: Path
) -> Iterator[Row]:
    """What is exact of each target, then a row for each method.

    Args:
        bench: the setting.
        methods: of the table or of one's own.
        problems: words of targets.
        seeds: of training and measuring.
        runs: folder of the arms.
    """
    for problem in problems:
        yield exact(problem, TARGETS[problem]())
        for method in methods:
            yield over_seeds(problem, method.name, {seed: arm(bench, method, problem, seed, runs) for seed in seeds})


def exact(problem: str, target: Target) -> Row:
    """The figures of a perfect sampler."""
    known: dict[str, float] = {"ess": 1.0, "std_error": 0.0}
    if target.log_z is not None:
        known |= {"log_z": target.log_z, "elbo_ito": target.log_z}
    if target.mode_mass:
        known |= {"modes": float(len(target.mode_mass)), "mode_tv": 0.0}
    return Row(problem, "exact", (), {key: [value] for key, value in known.items()})


def arm(bench: DensityBench, method: Method, problem: str, seed: int, runs: Path) -> dict[str, float | None]:
    """Figures of one arm; trained and measured if it is not there yet."""
    recipe = bind(BASE, method, bench.values(problem), seed)
    folder = folder_of(runs, method, problem, seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        bridge = experiment.bridge
        assert isinstance(bridge, WeighingBridge)
        return {**figures(bridge.target, weighted(bridge, bench.samples, 2_000, seed)), **cost}

    return measured(folder / FIGURES, {"samples": bench.samples}, measure)
