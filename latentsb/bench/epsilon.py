"""What an epsilon does: the correlation that it leaves between the ends, and the paths that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentsb.bench.pictures import trajectories
from latentsb.bench.plane import LAWS, solve
from latentsb.bench.tables import Column, Row
from latentsb.oracles import Normal, entropic_plan
from latentsb.oracles.chain import uniform
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP, Brownian
from latentsb.randomness import Draws

__all__ = ["ABOUT", "BROWNIAN", "COLUMNS", "INTEGRALS", "correlation", "draw", "rows"]

ABOUT = "correlation of the two ends of the Schrödinger bridge between standard normal laws, by the reference"
BROWNIAN = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
INTEGRALS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 10.05)
"""Of β over [0, 1] in a variance-preserving reference; the last is the standard schedule of score-based models."""
COLUMNS = (Column("epsilon", "epsilon"), Column("correlation of the ends", "correlation"))


def correlation(reference: ScalarReference) -> float:
    """`Corr(X0, X1)` of the bridge between two standard normal laws, (√(4 + ε²) − ε)/2 for Brownian motion."""
    normal = Normal.isotropic(1)
    return float(entropic_plan(normal, normal, reference).cross)


def rows() -> list[Row]:
    """Brownian motion by its epsilon, and variance-preserving references by the integral of β."""
    told: list[tuple[str, str, ScalarReference]] = [
        ("brownian", f"sigma = {epsilon**0.5:.3g}", Brownian(sigma=epsilon**0.5)) for epsilon in BROWNIAN
    ]
    told += [("vp", f"∫β = {whole:g}", VP(beta_min=whole, beta_d=0.0)) for whole in INTEGRALS]
    return [
        Row(case, name, (), {"epsilon": [float(reference.epsilon)], "correlation": [correlation(reference)]})
        for case, name, reference in told
    ]


def draw(path: Path, epsilons: Sequence[float] = (0.1, 0.3, 1.0, 3.0), *, n: int = 120, seed: int = 0) -> Path:
    """Exact trajectories between laws of unit variance, a column for each epsilon; nothing is trained.

    Args:
        path: of the PNG.
        epsilons: of the Brownian reference.
        n: trajectories.
        seed: of them.
    """
    times, panels = uniform(60), {}
    for source, target in (("gaussian", "moons"), ("moons", "eight_gaussians")):
        for epsilon in epsilons:
            bridge = solve(LAWS[target].standard(), LAWS[source].standard(), epsilon**0.5)
            paths = bridge.sample_paths(n, times, Draws.block(seed, "bench epsilon", 0, n)).flip(0)
            panels[f"{source} to {target}, ε = {epsilon:g}".replace("_", " ")] = paths.numpy()
    return trajectories(panels, path, columns=len(epsilons))
