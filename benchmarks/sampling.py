"""Sampling: network evaluations per second, and what the solvers' own arithmetic adds to them.

The overhead is measured on a network so small that it costs next to nothing, and told in milliseconds per step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _harness import Report, alternate, estimate, limits, main, per_second, ratio
from _training import dbae

from latentsb.bridge import DenoisingBridge
from latentsb.randomness import Draws
from latentsb.solvers.base import SOLVERS, Solver
from latentsb.tensors import Batch

STEPS = 10


@torch.inference_mode()
def calls(bridge: DenoisingBridge, batch: Batch) -> None:
    """The denoiser alone, as often as a solver of the first order asks for it."""
    state = bridge.start(batch, Draws.seeds(range(len(batch))))
    for t in torch.linspace(0.9, 0.01, STEPS, dtype=torch.float64):
        bridge.denoise(state.x, t, state.cond)


@torch.inference_mode()
def solve(bridge: DenoisingBridge, batch: Batch, solver: Solver) -> None:
    """A whole sampling run."""
    draws = Draws.seeds(range(len(batch)))
    assert solver.run(bridge, bridge.start(batch, draws), draws).calls > 0


def measure(quick: bool = False) -> Report:
    """Compare solvers with bare calls on a tiny network, and count evaluations of a real one."""
    report = Report("sampling", f"{STEPS} steps of each solver beside bare calls of its denoiser")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    solvers: dict[str, Solver] = {word: SOLVERS[word](steps=STEPS) for word in ("dpmpp", "posterior")}
    sizes = {
        "tiny": ((4, 8, 8), {"width": 24, "depth": 1, "heads": 6}),
        "S/2": ((4, 32, 32), {"width": 384, "depth": 12, "heads": 6}),
    }
    for what, (shape, size) in sizes.items():
        tiny = what == "tiny"
        bridge = dbae(shape, z_dim=8, channel="exact", batch=1, **(sizes["tiny"][1] if quick else size))
        own = bridge.session.experiment.bridge.eval()
        assert isinstance(own, DenoisingBridge)
        batch = Batch(torch.arange(1), torch.randn(1, *shape))
        rivals: dict[str, Callable[[], None]] = {"bare": lambda b=own, x=batch: calls(b, x)}
        for word, solver in solvers.items():
            rivals[word] = lambda b=own, x=batch, s=solver: solve(b, x, s)
        seconds = alternate(rivals, repeats=2 if quick else 11 if tiny else 3)
        if not tiny:
            report.add("S/2: network evaluations per second, fp32", per_second(STEPS, seconds["bare"]), "1/s")
        for word in solvers:
            if tiny:
                own_work = [1e3 * (a - b) / STEPS for a, b in zip(seconds[word], seconds["bare"], strict=True)]
                report.add(f"{word}: own work per step", estimate(own_work), "ms")
            else:
                report.add(f"S/2: {word} / bare calls", ratio(seconds[word], seconds["bare"]), at_most=1.05)
    return report


if __name__ == "__main__":
    main(measure, __doc__)
