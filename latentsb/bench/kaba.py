"""SB-VAE with an encoder that is trained until its loss is flat, throughout, or not at all; in the plane or in latents.

Source: Kaba et al. 2024, Schrödinger bridge-type diffusion models as an extension of variational autoencoders, who
freeze the encoder early; the rules here are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.digits import Digits
from latentsb.bench.methods import TRAIN
from latentsb.bench.plane import data_of
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.bench.toys import KEPT, ToyBench, codes_of, energy, paths_of, wasserstein
from latentsb.bridge import Bridge
from latentsb.experiment import Experiment
from latentsb.oracles import ExactBridge, Normal
from latentsb.oracles.metrics import gaussian_kl
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama

__all__ = ["ABOUT", "COLUMNS", "LAWS_OF_X0", "METHODS", "Case", "rows"]

ABOUT = "SB-VAE from data to a standard normal law: what freezing the encoder costs and saves"
LAWS_OF_X0 = ("moons", "swissroll", "eight_gaussians", "digits")
BRIDGE = "name: sbvae, network: $NETWORK, reference: {name: brownian, sigma: $SIGMA}, steps: $STEPS, dropout: 0"
METHODS = {
    "until_flat": f"bridge: {{{BRIDGE}, freeze: {{name: plateau}}}}",
    "throughout": f"bridge: {{{BRIDGE}, freeze: {{name: never}}}}",
    "not_at_all": f"bridge: {{{BRIDGE}, freeze: {{name: fixed, after: 0}}}}",
}
"""When the encoder is frozen."""
COLUMNS = (
    Column("W2", "w2"),
    Column("recognised", "recognised"),
    Column("KL of the codes", "prior"),
    Column("energy", "energy"),
    Column("CPU s", "cpu"),
    Column("seconds", "seconds"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)


class Case(Protocol):
    """What is bridged to a standard normal law."""

    name: str
    base: str

    def values(self, seed: int) -> dict[str, Any]:
        """What the words of the recipes stand for."""

    def figures(self, experiment: Experiment, seed: int, folder: Path) -> dict[str, float | None]:
        """Quality of samples, and how far the law of the codes is from the prior; keeps some trajectories beside."""

    def floors(self, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
        """What stands beside."""


class Plane:
    """A law in the plane, whose exact Schrödinger bridge is known on a grid.

    Args:
        bench: the setting.
        name: of the law.
    """

    base = f"\ndata: $X0\n{TRAIN}"

    def __init__(self, bench: ToyBench, name: str) -> None:
        self.bench, self.name = bench, name

    def values(self, seed: int) -> dict[str, Any]:
        """What the words of the recipes stand for."""
        return self.bench.words(2) | {"X0": data_of(self.name, str(self.bench.points), str(seed))}

    def figures(self, experiment: Experiment, seed: int, folder: Path) -> dict[str, float | None]:
        """Of a trained bridge."""
        return self._of(experiment.bridge, experiment.solver, seed, folder)

    def floors(self, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
        """The exact Schrödinger bridge in the same steps, and two samples of the truth."""
        bench, law = self.bench, self.name
        solver = EulerMaruyama(steps=bench.steps, noiseless_last=False)
        folder = runs / "floors" / law
        asked = {"samples": bench.samples, "sigma": bench.sigma, "steps": bench.steps}

        def drift(seed: int) -> Mapping[str, float | None]:
            bridge = ExactBridge(bench.truth(f"gaussian-{law}"))
            return self._of(bridge, solver, seed, folder / f"exact-seed{seed}")

        def twice(seed: int) -> Mapping[str, float | None]:
            return {"w2": wasserstein(bench.fresh(law, seed, "other"), bench.fresh(law, seed, "target"))}

        for name, make in {"two samples of the truth": twice, "exact drift, same steps": drift}.items():
            word = name.partition(",")[0].replace(" ", "-")
            found = {seed: measured(folder / f"{word}-seed{seed}.json", asked, partial(make, seed)) for seed in seeds}
            yield over_seeds(law, name, found)

    @torch.no_grad()
    def _of(self, bridge: Bridge, solver: Solver, seed: int, folder: Path) -> dict[str, float | None]:
        states = paths_of(bridge, solver, self.bench.fresh("gaussian", seed, "source"), seed)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "paths.npy", torch.stack([state.x[:KEPT] for state in states]).float().numpy())
        x0 = self.bench.fresh(self.name, seed, "target")
        return {
            "w2": wasserstein(states[-1].x, x0),
            "prior": gaussian_kl(codes_of(bridge, solver, x0, seed), Normal.isotropic(2)),
            "energy": energy(bridge, states),
        }


def case_of(bench: ToyBench, name: str) -> Case:
    """A case by its word."""
    return Digits(bench) if name == "digits" else Plane(bench, name)


def rows(
    bench: ToyBench, methods: Sequence[Method], laws: Sequence[str], seeds: Sequence[int], runs: Path
) -> Iterator[Row]:
    """What stands beside, then a row for each rule of freezing.

    Args:
        bench: the setting.
        methods: of `METHODS` or of one's own.
        laws: of x0.
        seeds: of points, training and measuring.
        runs: folder of the arms.
    """
    for law in laws:
        case = case_of(bench, law)
        yield from case.floors(seeds, runs)
        for method in methods:
            found = {seed: arm(bench, case, method, seed, runs) for seed in seeds}
            yield over_seeds(law, method.name, found)


def arm(bench: ToyBench, case: Case, method: Method, seed: int, runs: Path) -> dict[str, float | None]:
    """Figures of one arm; trained and measured if it is not there yet."""
    recipe = bind(case.base, method, case.values(seed), seed)
    folder = folder_of(runs, method, case.name, seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        return cost | case.figures(experiment, seed, folder)

    return measured(folder / FIGURES, {"samples": bench.samples}, measure)
