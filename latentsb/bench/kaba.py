"""SB-VAE with an encoder that is trained until its loss is flat, throughout, or not at all; on a law in the plane.

Source: Kaba et al. 2024, Schrödinger bridge-type diffusion models as an extension of variational autoencoders, who
freeze the encoder early; the rules here are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentsb.bench.arms import FIGURES, Method, bind, folder_of, measured, trained
from latentsb.bench.methods import TRAIN, words
from latentsb.bench.plane import data_of
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.bench.toys import KEPT, ToyBench, energy, paths_of, wasserstein
from latentsb.bridge import Bridge
from latentsb.oracles import ExactBridge, Normal
from latentsb.oracles.metrics import gaussian_kl
from latentsb.randomness import Draws
from latentsb.solvers.base import Solver
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch

__all__ = ["ABOUT", "COLUMNS", "LAWS_OF_X0", "METHODS", "rows"]

ABOUT = "SB-VAE from a law in the plane to a standard normal one: what freezing the encoder costs and saves"
LAWS_OF_X0 = ("moons", "swissroll", "eight_gaussians")
BASE = f"""
data: $X0
{TRAIN}"""
BRIDGE = "name: sbvae, network: $NETWORK, reference: {name: brownian, sigma: $SIGMA}, steps: $STEPS, dropout: 0"
METHODS = {
    "until_flat": f"bridge: {{{BRIDGE}, freeze: {{name: plateau}}}}",
    "throughout": f"bridge: {{{BRIDGE}, freeze: {{name: never}}}}",
    "not_at_all": f"bridge: {{{BRIDGE}, freeze: {{name: fixed, after: 0}}}}",
}
"""When the encoder is frozen."""
COLUMNS = (
    Column("W2", "w2"),
    Column("KL of the codes", "prior"),
    Column("energy", "energy"),
    Column("CPU s", "cpu"),
    Column("seconds", "seconds"),
    Column("trained", "trained", 1e-6),
    Column("simulated", "simulated", 1e-6),
)


def values(bench: ToyBench, law: str, seed: int) -> dict[str, Any]:
    """What the words of the recipes stand for."""
    budget: dict[str, Any] = {"steps": bench.steps, "images": bench.images, "turns": bench.turns, "width": bench.width}
    own = {"X0": data_of(law, str(bench.points), str(seed))}
    return own | words(dim=2, sigma=bench.sigma, components=50, towards="x0", **budget)


def rows(
    bench: ToyBench, methods: Sequence[Method], laws: Sequence[str], seeds: Sequence[int], runs: Path
) -> Iterator[Row]:
    """The exact Schrödinger bridge beside, then a row for each rule of freezing.

    Args:
        bench: the setting.
        methods: of `METHODS` or of one's own.
        laws: of x0.
        seeds: of points, training and measuring.
        runs: folder of the arms.
    """
    for law in laws:
        yield from floors(bench, law, seeds, runs)
        for method in methods:
            found = {seed: arm(bench, method, law, seed, runs) for seed in seeds}
            yield over_seeds(law, method.name, found)


def arm(bench: ToyBench, method: Method, law: str, seed: int, runs: Path) -> dict[str, float | None]:
    """Figures of one arm; trained and measured if it is not there yet."""
    recipe = bind(BASE, method, values(bench, law, seed), seed)
    folder = folder_of(runs, method, law, seed, recipe)

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        return cost | figures_of(bench, experiment.bridge, experiment.solver, law, seed, folder)

    return measured(folder / FIGURES, {"samples": bench.samples}, measure)


def floors(bench: ToyBench, law: str, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
    """The exact Schrödinger bridge in the same steps, and two samples of the truth."""
    solver = EulerMaruyama(steps=bench.steps, noiseless_last=False)
    folder = runs / "floors" / law
    asked = {"samples": bench.samples, "sigma": bench.sigma, "steps": bench.steps}

    def drift(seed: int) -> Mapping[str, float | None]:
        bridge = ExactBridge(bench.truth(f"gaussian-{law}"))
        return figures_of(bench, bridge, solver, law, seed, folder / f"exact-seed{seed}")

    def twice(seed: int) -> Mapping[str, float | None]:
        return {"w2": wasserstein(bench.fresh(law, seed, "other"), bench.fresh(law, seed, "target"))}

    for name, make in {"two samples of the truth": twice, "exact drift, same steps": drift}.items():
        word = name.partition(",")[0].replace(" ", "-")
        found = {seed: measured(folder / f"{word}-seed{seed}.json", asked, partial(make, seed)) for seed in seeds}
        yield over_seeds(law, name, found)


@torch.no_grad()
def figures_of(
    bench: ToyBench, bridge: Bridge, solver: Solver, law: str, seed: int, folder: Path
) -> dict[str, float | None]:
    """Quality of samples, and how far the law of the codes is from the prior; keeps some trajectories beside."""
    states = paths_of(bridge, solver, bench.fresh("gaussian", seed, "source"), seed)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "paths.npy", torch.stack([state.x[:KEPT] for state in states]).float().numpy())
    x0 = bench.fresh(law, seed, "target")
    draws = Draws.block(seed, "bench codes", 0, len(x0))
    start = bridge.start(Batch(torch.arange(len(x0)), x0=x0.to(bridge.ends.spec.dtype)), draws.fork("start"), "x1")
    codes = solver.run(bridge, start, draws.fork("solve"), "x1").x.double()
    return {
        "w2": wasserstein(states[-1].x, x0),
        "prior": gaussian_kl(codes, Normal.isotropic(2)),
        "energy": energy(bridge, states),
    }
