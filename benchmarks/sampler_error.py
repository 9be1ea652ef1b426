"""Solver error against network calls on a law with five modes in 64 dimensions, exact denoiser, float64.

The error of a start is `|x − x*|/|x*|`, x* being where the converged probability-flow ODE leads from the same start;
"wrong" are starts with more than 10 %, which end in another mode. Figures are over several mixtures: a start in the
middle of all modes (`endpoint`) depends on where the mixture's watersheds happen to lie.

    python benchmarks/sampler_error.py --mixtures 10
"""

from __future__ import annotations

import argparse

import torch
from _exact import ONE, Exact
from torch import Tensor

from latentsb.bridge import State
from latentsb.randomness import Draws
from latentsb.solvers.base import Solver, Start
from latentsb.solvers.coordinates import NoiseCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior, Posterior2
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Heun
from latentsb.solvers.start import Endpoint, FromNoise
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition

MODES, WIDTH, STARTS = 5, 64, 256
FULL, MATCHED = LogUniform(), LogUniform(sigma_max=20.0, sigma_min=0.01)
SHOWN = (8, 16, 20, 32, 100, 400)
SOUGHT = (8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 64, 80, 100, 200, 300, 400)


def solver(name: str, calls: int, start: Start) -> Solver:
    """One of the columns, at a number of calls."""
    match name:
        case "official Euler":
            return Hybrid(steps=calls, churn=0.0, corrector=False)
        case "official Heun":
            return Hybrid(steps=(calls + 1) // 2, churn=0.0)
        case "posterior":
            return Posterior(steps=calls, start=start)
        case "posterior2":
            return Posterior2(steps=calls, start=start)
        case "dpmpp":
            return DPMpp(steps=calls, start=start)
        case "unipc":
            return UniPC(steps=calls, start=start)
        case _:
            return UniPC(steps=calls, start=start, grid=MATCHED)


class Problem:
    """One mixture with its starts and their true ends."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        centres = 0.5 * torch.randn(MODES, WIDTH, generator=rng, dtype=torch.float64)
        x1 = torch.randn(STARTS, WIDTH, generator=rng, dtype=torch.float64)
        self.bridge = Exact(centres, torch.linspace(0.05, 0.25, MODES, dtype=torch.float64))
        self.state = State(x1, ONE, Condition({"x1": x1}))
        self.draws = Draws.seeds(range(seed * STARTS, (seed + 1) * STARTS))
        self.truths: dict[tuple[Start, LogUniform], Tensor] = {}

    def end(self, chosen: Solver) -> Tensor:
        """Where a solver leads."""
        return chosen.run(self.bridge, self.state, self.draws).x

    def truth(self, start: Start, grid: LogUniform) -> Tensor:
        """Where the ODE leads, by an algorithm that is none of the columns."""
        if (start, grid) not in self.truths:
            fine = LogUniform(sigma_max=grid.sigma_max, sigma_min=0.001)
            exact = Heun(steps=400, grid=fine, start=start, coordinates=NoiseCoordinate())
            self.truths[start, grid] = self.end(exact)
        return self.truths[start, grid]

    def error(self, name: str, calls: int, start: Start) -> Tensor:
        """Relative error of every start."""
        truth = self.truth(start, MATCHED if "matched" in name else FULL)
        return (self.end(solver(name, calls, start)) - truth).norm(dim=1) / truth.norm(dim=1)


def table(problems: list[Problem], columns: tuple[str, ...], start: Start) -> None:
    """Print one table, and the calls to 1 % below it."""
    print("| calls | " + " | ".join(columns) + " |\n|---:" + "|---" * len(columns) + "|")
    known: dict[tuple[str, int], Tensor] = {}

    def errors(name: str, calls: int) -> Tensor:
        if (name, calls) not in known:
            known[name, calls] = torch.cat([p.error(name, calls, start) for p in problems])
        return known[name, calls]

    for calls in SHOWN:
        cells = [errors(name, calls) for name in columns]
        told = [f"{float(e.median()):.2%}, {int((e > 0.1).sum())}" for e in cells]
        print(f"| {calls} | " + " | ".join(told) + " |", flush=True)
    reached = [next((n for n in SOUGHT if float(errors(name, n).median()) <= 0.01), None) for name in columns]
    print("| to 1 % | " + " | ".join("not by 400" if n is None else str(n) for n in reached) + " |\n", flush=True)


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=10, help="how many, of 256 starts each")
    problems = [Problem(seed) for seed in range(parser.parse_args().mixtures)]
    ours = ("posterior", "posterior2", "dpmpp", "unipc")
    print(f"Median error and wrong starts of {STARTS * len(problems)}; from the endpoint, the official start:\n")
    table(problems, ("official Euler", "official Heun", *ours), Endpoint())
    print("From noise, the default of our solvers; matched is sigma_max 20, sigma_min 0.01:\n")
    table(problems, (*ours, "unipc, matched"), FromNoise())


if __name__ == "__main__":
    main()
