"""VSDM on stretched shapes beside isotropic diffusion on raw and on whitened data: W2 over calls, and straightness.

python benchmarks/vsdm.py runs/vsdm [--problems spiral checkerboard] [--seeds 0 1 2] [--images N] [--samples N]

Arms are kept in the folder and the same command goes on. All have one network, one count of images that train it
(turns of the policy come on top and use no network with gradients) and Heun's method on one grid. `isotropic`
starts from N(0, I), `isotropic, fitted start` from the Gaussian that its forward process arrives at; W2 is exact
between samples, in the coordinates of the raw data divided by their standard deviations, and its floor is that of
two samples of the data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentsb.allocator import keep_freed_memory
from latentsb.bench.arms import trained
from latentsb.bench.toys import wasserstein
from latentsb.experiment import Experiment
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.solvers.grid import Power
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch

STEPS = (2, 3, 4, 6, 8, 16, 50)
DATA = {
    "spiral": "{name: swissroll, stretch: [1, 8], n: 20_000, seed: SEED}",
    "checkerboard": "{name: checkerboard, stretch: [6, 1], n: 20_000, seed: SEED}",
}
PLAIN = "adapt: 0, "
ARMS = {
    "vsdm": ("none", "adapt: 10, ", 4 / 3),
    "isotropic": ("none", PLAIN + "standard: true, ", 1),
    "isotropic, beta_max 20": ("none", PLAIN + "standard: true, beta_max: 20.0, ", 1),
    "isotropic, fitted start": ("none", PLAIN, 1),
    "isotropic, whitened data": ("channel", PLAIN + "standard: true, ", 1),
}
RECIPE = """
seed: SEED
data: DATA
autoencoder: {name: identity, normaliser: NORMALISER}
bridge: {name: vsdm, KEYS turn: TURN, network: {name: mlp, width: 128, depth: 3}}
solver: {name: heun, steps: 16, grid: power}
train: {images: IMAGES, batch: 400, lr: 2e-3, warmup: 8_000, ema: {half_life: 10_000}, log_every: 40_000,
  save_every: 400_000, preview_every: 100_000_000}
preview: {n: 16}
"""


def recipe(problem: str, arm: str, seed: int, images: int) -> Recipe:
    """The recipe of an arm."""
    normaliser, keys, more = ARMS[arm]
    turn = max(400, images // 50 // 400 * 400)
    # The policy's ten turns come on top of the images that the network sees.
    total = images + 10 * turn if more > 1 else images
    words = {"DATA": DATA[problem], "NORMALISER": normaliser, "KEYS": keys, "TURN": turn, "IMAGES": total, "SEED": seed}
    text = RECIPE
    for word, value in words.items():
        text = text.replace(word, str(value))
    return Recipe.parse(text, label=arm)


@torch.no_grad()
def figures(experiment: Experiment, seed: int, samples: int) -> dict[str, float]:
    """W2 by calls, and length over chord, kinetic energy and their like of the ODE's trajectories in raw units."""
    source, bridge = experiment.source, experiment.bridge.eval()
    real = source.read(np.arange(2 * samples)).x0
    spread = source.read(np.arange(len(source))).x0.std(0)
    found = {"floor": wasserstein(real[:samples] / spread, real[samples:] / spread)}
    draws = Draws.block(seed, "vsdm", 0, samples)
    for steps in STEPS:
        path: list[torch.Tensor] = []
        state = bridge.start(Batch(torch.arange(samples)), draws)
        done = Heun(steps=steps, grid=Power()).run(
            bridge, state, draws, "x0", lambda s, path=path: path.append(experiment.autoencoder.decode(s.x))
        )
        found[f"W2, {done.calls} calls"] = wasserstein(path[-1] / spread, real[:samples] / spread)
    whole, times = torch.stack(path), Power().times(bridge, STEPS[-1])
    ways = whole.diff(dim=0)
    ratio = ways.norm(dim=2).sum(0) / (whole[-1] - whole[0]).norm(dim=1)
    energy = (ways.square() / times.diff().abs()[:, None, None]).sum(0).mean(0)
    return found | {"path/chord": float(ratio.median()), "KE x": float(energy[0]), "KE y": float(energy[1])}


def arm(problem: str, name: str, seed: int, images: int, samples: int, runs: Path) -> dict[str, Any]:
    """Figures of one arm, read back if they are there."""
    asked = recipe(problem, name, seed, images)
    word = "".join(c if c.isalnum() else "-" for c in name)
    folder = runs / f"{problem}-{word}-seed{seed}-{asked.hash[:8]}"
    file = folder / f"figures-{samples}.json"
    if not file.is_file():
        experiment, cost = trained(asked, folder)
        file.write_text(json.dumps(figures(experiment, seed, samples) | {"CPU s": cost["cpu"]}))
    return dict(json.loads(file.read_text()))


def main() -> None:
    """Print a table and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--problems", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vsdm.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for problem in asked.problems:
        for name in asked.arms:
            found = [arm(problem, name, s, asked.images, asked.samples, asked.runs) for s in asked.seeds]
            row: dict[str, Any] = {"problem": problem, "arm": name, "seeds": len(found)}
            for key in found[0]:
                values = [one[key] for one in found if one[key] is not None]
                if values:
                    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
                    row[key] = [statistics.fmean(values), error]
            rows.append(row)
            kept = {key: row[key] for key in found[0] if key in row}
            told = (f"{k} {v:.4g}" + ("" if e is None else f" ± {e:.2g}") for k, (v, e) in kept.items())
            print(f"{problem}, {name}: " + " · ".join(told), flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"images": asked.images, "samples": asked.samples, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
