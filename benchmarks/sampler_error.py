"""Solver error against network calls on a law with five modes in 64 dimensions, exact denoiser, float64.

The error of a start is `|x − x*|/|x*|`, x* being where the converged probability-flow ODE leads from the same start;
"wrong" are starts with more than 10 %, which end in another mode. Figures are over several mixtures: a start in the
middle of all modes (`endpoint`) depends on where the mixture's watersheds happen to lie.

    python benchmarks/sampler_error.py
"""

from __future__ import annotations

import argparse

import torch
from _exact import ONE, Exact
from torch import Tensor

from latentsb.bridge import State
from latentsb.randomness import Draws
from latentsb.solvers.base import Grid, Solver, Start
from latentsb.solvers.coordinates import NoiseCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior, Posterior2
from latentsb.solvers.grid import Asinh, LogUniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Heun
from latentsb.solvers.start import Endpoint, FromNoise
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition

MODES, WIDTH, STARTS, OFFICIAL = 5, 64, 256, 4
GRIDS: dict[str, Grid] = {"": LogUniform(), "asinh": Asinh(), "asinh to 20": Asinh(sigma_max=20.0)}
SHOWN = (8, 16, 20, 32, 100)
SOUGHT = (8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 64, 80, 100, 200, 400)


def solver(column: str, calls: int, start: Start) -> Solver:
    """That of a column, "word" or "word, grid", at a number of calls."""
    name, _, grid = column.partition(", ")
    match name:
        case "official Euler":
            return Hybrid(steps=calls, churn=0.0, corrector=False)
        case "official Heun":
            return Hybrid(steps=(calls + 1) // 2, churn=0.0)
        case "posterior":
            return Posterior(steps=calls, start=start, grid=GRIDS[grid])
        case "posterior2":
            return Posterior2(steps=calls, start=start, grid=GRIDS[grid])
        case "dpmpp":
            return DPMpp(steps=calls, start=start, grid=GRIDS[grid])
        case _:
            return UniPC(steps=calls, start=start, grid=GRIDS[grid])


class Problem:
    """One mixture with its starts and their true ends."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        centres = 0.5 * torch.randn(MODES, WIDTH, generator=rng, dtype=torch.float64)
        x1 = torch.randn(STARTS, WIDTH, generator=rng, dtype=torch.float64)
        self.bridge = Exact(centres, torch.linspace(0.05, 0.25, MODES, dtype=torch.float64))
        self.state = State(x1, ONE, Condition({"x1": x1}))
        self.draws = Draws.seeds(range(seed * STARTS, (seed + 1) * STARTS))
        self.truths: dict[tuple[Start, float], Tensor] = {}

    def end(self, chosen: Solver) -> Tensor:
        """Where a solver leads."""
        return chosen.run(self.bridge, self.state, self.draws).x

    def truth(self, start: Start, sigma_max: float) -> Tensor:
        """Where the ODE leads from a level, by an algorithm that is none of the columns."""
        if (start, sigma_max) not in self.truths:
            fine = LogUniform(sigma_max=sigma_max, sigma_min=0.001)
            exact = Heun(steps=400, grid=fine, start=start, coordinates=NoiseCoordinate())
            self.truths[start, sigma_max] = self.end(exact)
        return self.truths[start, sigma_max]

    def error(self, column: str, calls: int, start: Start) -> Tensor:
        """Relative error of every start."""
        truth = self.truth(start, 20.0 if "to 20" in column else 80.0)
        return (self.end(solver(column, calls, start)) - truth).norm(dim=1) / truth.norm(dim=1)


def table(problems: list[Problem], columns: tuple[str, ...], start: Start) -> None:
    """Print one table, and below it the calls to a median of 1 % and the mixtures without a wrong start at 16."""
    print("| calls | " + " | ".join(columns) + " |\n|---:" + "|---" * len(columns) + "|")
    known: dict[tuple[str, int], list[Tensor]] = {}

    def errors(column: str, calls: int) -> list[Tensor]:
        if (column, calls) not in known:
            known[column, calls] = [p.error(column, calls, start) for p in problems]
        return known[column, calls]

    def median(column: str, calls: int) -> float:
        return float(torch.cat(errors(column, calls)).median())

    def wrong(column: str, calls: int) -> list[int]:
        return [int((e > 0.1).sum()) for e in errors(column, calls)]

    def line(title: str, cells: list[str]) -> None:
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)

    for calls in SHOWN:
        line(str(calls), [f"{median(c, calls):.2%}, {sum(wrong(c, calls))}" for c in columns])
    reached = [next((n for n in SOUGHT if median(c, n) <= 0.01), None) for c in columns]
    line("to 1 %", ["not by 400" if n is None else str(n) for n in reached])
    line("none wrong at 16", [f"{wrong(c, 16).count(0)} of {len(problems)}" for c in columns])


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=20, help=f"of {STARTS} starts each")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first mixture")
    arguments = parser.parse_args()
    problems = [Problem(arguments.first + i) for i in range(arguments.mixtures)]
    print(f"Median error and wrong starts of {STARTS * len(problems)}, from noise:\n")
    second = ("posterior2", "dpmpp", "unipc")
    table(problems, (*second, *(f"{word}, asinh" for word in second), "unipc, asinh to 20"), FromNoise())
    few = problems[:OFFICIAL]
    print(f"\nOf {STARTS * len(few)}, from the endpoint, the official start:\n")
    table(few, ("official Euler", "official Heun", "posterior", "dpmpp", "unipc", "unipc, asinh"), Endpoint())


if __name__ == "__main__":
    main()
