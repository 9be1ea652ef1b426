"""The published table of samplers by our solvers: VP, x0 ~ N(0.25, 0.1²), x1 = −0.1, exact denoiser, no clamping.

The result of a solver is affine in every noise that it draws, so its mean and standard deviation are read off from one
batch: one trajectory without noise, and one per unit of each noise. A second table has the standard deviation over the
exact one for Gaussians of other sizes, on two grids.

    python benchmarks/golden_table.py
"""

from __future__ import annotations

from typing import cast

import torch
from _exact import ONE, Exact
from torch import Tensor

from latentsb.bridge import State
from latentsb.randomness import Draws
from latentsb.solvers.base import SOLVERS, StepSolver
from latentsb.solvers.coordinates import NoiseCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.grid import Asinh, Karras, LogUniform, Uniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Heun
from latentsb.solvers.start import Boot
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition

M0, S0, X1 = 0.25, 0.1, -0.1
EVEN = Uniform(margin=1e-3, last=1e-4)
ROWS: dict[str, list[StepSolver]] = {
    "official Euler ODE": [Hybrid(steps=n, churn=0.0, corrector=False) for n in (20, 100)],
    "official Heun ODE": [Hybrid(steps=n, churn=0.0) for n in (100, 333)],
    "official churn 0.33, Heun": [Hybrid(steps=n) for n in (83, 167, 333)],
    "official churn 0.33, Euler": [Hybrid(steps=333, corrector=False)],
    "DBIM eta 0, even times": [Posterior(steps=n, grid=EVEN, start=Boot()) for n in (5, 10, 20, 50)],
    "DBIM eta 1": [Posterior(steps=n, grid=EVEN, start=Boot(), eta=1.0) for n in (5, 10, 20, 50)],
    "DDIM, Karras grid": [Posterior(steps=n, grid=Karras()) for n in (10, 20, 50, 100)],
    "EDM-Heun, Karras grid": [Heun(steps=n, grid=Karras(), coordinates=NoiseCoordinate()) for n in (9, 18, 25)],
    "2M, Karras grid": [DPMpp(steps=n, grid=Karras(sigma_min=0.003)) for n in (10, 15, 20, 30)],
    "2M, log-uniform grid": [DPMpp(steps=n) for n in (8, 10, 15, 20, 30)],
    "ancestral, log-uniform grid": [Posterior(steps=n, grid=LogUniform(), eta=1.0) for n in (10, 20, 50, 100)],
}


SIZES, CALLS = (0.05, 0.1, 1.0), (8, 16, 20, 32)
GRIDS = {"loguniform": LogUniform(), "asinh": Asinh()}


class Units:
    """Draws of which the k-th is one in row k + 1 and zero elsewhere."""

    def __init__(self) -> None:
        self.used = 0

    def fork(self, name: str) -> Units:
        """Itself."""
        return self

    def normal(self, name: str, like: Tensor) -> Tensor:
        """The next unit."""
        self.used += 1
        out = torch.zeros_like(like)
        out[self.used] = 1
        return out


def law(solver: StepSolver, std: float = S0) -> tuple[int, float, float]:
    """Calls, bias of the mean and standard deviation, in units of the exact standard deviation."""
    # The official grid ends at t_min; the others say themselves where they end.
    t_min = 1e-4 if isinstance(solver, Hybrid) else 1e-9
    bridge = Exact(torch.tensor([[M0]], dtype=torch.float64), torch.tensor([std], dtype=torch.float64), t_min)
    x1 = torch.full((solver.steps + 3, 1), X1, dtype=torch.float64)
    end = solver.run(bridge, State(x1, ONE, Condition({"x1": x1})), cast(Draws, Units()))
    mean, columns = end.x[0], end.x[1:] - end.x[0]
    return end.calls, float(mean - M0) / std, float(columns.norm()) / std


@torch.inference_mode()
def main() -> None:
    """Print both tables."""
    print("| sampler | calls | (mean − m0)/s0 | std/s0 |\n|---|---|---|---|")
    for name, solvers in ROWS.items():
        calls, means, spreads = zip(*map(law, solvers), strict=True)
        cells = (map(str, calls), (f"{m:z.4f}" for m in means), (f"{s:.4f}" for s in spreads))
        print(f"| {name} | " + " | ".join(" / ".join(cell) for cell in cells) + " |", flush=True)
    sizes = " / ".join(map(str, SIZES))
    print(f"\n| std/s0 for s0 = {sizes} | " + " | ".join(f"{n} calls" for n in CALLS) + " |\n" + "|---" * 5 + "|")
    for kind in (UniPC, DPMpp):
        for word, grid in GRIDS.items():
            found = [[law(kind(steps=n, grid=grid), size)[2] for size in SIZES] for n in CALLS]
            cells = (" / ".join(f"{spread:.3f}" for spread in spreads) for spreads in found)
            print(f"| `{SOLVERS.word_of(kind())}`, {word} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
