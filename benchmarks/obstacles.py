"""A run between obstacles beside the Schrödinger bridge that does not know of them: cost, time inside, and a picture.

python benchmarks/obstacles.py runs/obstacles_gsbm [--picture FILE] [--paths N] [--steps N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import latentsb
from latentsb.bridges.gsbm import GSBM
from latentsb.oracles import GaussianBridge, Normal
from latentsb.process.statecost import Obstacles
from latentsb.tensors import Condition

Drift = Callable[[Tensor, Tensor], Tensor]


def simulate(drift: Drift, start: Tensor, sigma: float, steps: int, towards: str, seed: int) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama paths, shape (steps + 1, N, 2), and the energy of each, `∫ |b|²/(2σ²) dt`, shape (N,)."""
    rng = torch.Generator().manual_seed(seed)
    x, h, path, energy = start, 1 / steps, [start], torch.zeros(len(start))
    for k in range(steps):
        t = torch.tensor(k * h if towards == "x1" else 1 - k * h, dtype=torch.float64)
        b = drift(x, t)
        energy = energy + h * b.square().sum(1) / (2 * sigma**2)
        x = x + h * b + sigma * math.sqrt(h) * torch.randn(x.shape, generator=rng)
        path.append(x)
    return torch.stack(path), energy


def tell(name: str, path: Tensor, energy: Tensor, cost: Obstacles) -> str:
    """One row of the table, with standard errors over paths."""
    t = torch.linspace(0, 1, len(path), dtype=torch.float64)
    inside = cost.inside(path).double()
    values = [inside.amax(0), inside.mean(0), energy.double(), cost(path, t).mean(0).double()]
    values.append(values[2] + values[3])
    cells = [f"{v.mean():.4g} ± {v.std() / math.sqrt(len(v)):.2g}" for v in values]
    end = (
        f"({path[-1].mean(0)[0]:.3f}, {path[-1].mean(0)[1]:.3f}), ({path[-1].std(0)[0]:.3f}, {path[-1].std(0)[1]:.3f})"
    )
    return f"| {name} | " + " | ".join([*cells, end]) + " |"


def draw(paths: dict[str, Tensor], cost: Obstacles, file: Path, shown: int = 60) -> None:
    """Paths over obstacles, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(paths), figsize=(5 * len(paths), 4), sharex=True, sharey=True)
    for axis, (name, path) in zip(axes, paths.items(), strict=True):
        for *centre, radius in cost.balls:
            axis.add_patch(pyplot.Circle(centre, radius, color="0.75"))
        axis.plot(path[:, :shown, 0], path[:, :shown, 1], lw=0.5, color="C0", alpha=0.6)
        for point, colour in ((0, "C1"), (-1, "C2")):
            axis.scatter(path[point, :shown, 0], path[point, :shown, 1], s=6, color=colour, zorder=3)
        axis.set(title=name, aspect="equal")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)


@torch.no_grad()
def main() -> None:
    """Print the table; draw the picture if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--paths", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    bridge = latentsb.load_run(asked.run).experiment().bridge.eval()
    assert isinstance(bridge, GSBM)
    assert isinstance(bridge.cost, Obstacles)
    sigma = bridge.path.sigma
    laws = {"x0": Normal.isotropic(2, 0.0, 0.04), "x1": Normal.isotropic(2, 0.0, 0.04)}
    for name, side in (("x0", 2.0), ("x1", -2.0)):
        laws[name] = Normal(torch.tensor([side, 0.0], dtype=torch.float64), laws[name].cov)
    oracle = GaussianBridge.between(laws["x0"], laws["x1"], bridge.reference)
    rng, shown = torch.Generator().manual_seed(1), {}
    print("| paths | share that touch | share of time inside | energy | state cost | sum | end: mean, deviation |")
    print("|---|---|---|---|---|---|---|")
    for towards, origin in (("x1", "x0"), ("x0", "x1")):
        start = (laws[origin].mean + 0.2 * torch.randn(asked.paths, 2, dtype=torch.float64, generator=rng)).float()
        exact = {"x1": oracle.b_f, "x0": oracle.b_b}[towards]
        drifts: dict[str, Drift] = {
            "Schrödinger bridge without the cost, exact": lambda x, t, e=exact: e(float(t))(x.double()).float(),
            "gsbm": lambda x, t, w=towards: bridge.drift(x, t, Condition(), w),
        }
        for name, drift in drifts.items():
            path, energy = simulate(drift, start, sigma, asked.steps, towards, seed=2)
            print(tell(f"{name}, towards {towards}", path, energy, bridge.cost))
            shown.setdefault(name, path)
    if asked.picture:
        draw(shown, bridge.cost, asked.picture)


if __name__ == "__main__":
    main()
