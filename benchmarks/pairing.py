"""Exact minibatch transport beside POT's `ot.emd`, processor time of the whole pairing, cost matrix included."""

from __future__ import annotations

import math

import numpy as np
import ot
import torch
from _harness import Report, alternate, estimate, main, ratio

from latentsb.process.transport import assign, costs

DIMENSIONS = 64


def measure(quick: bool = False) -> Report:
    """Pair standard normal points of 64 dimensions in batches of 256, 512 and 1024, at equal cost."""
    report = Report("pairing", "exact transport in a batch, processor time")
    for n in (16,) if quick else (256, 512, 1024):
        rng = np.random.default_rng(n)
        x, y = (rng.standard_normal((n, DIMENSIONS), dtype=np.float32) for _ in "xy")
        near, far, weights = torch.from_numpy(x), torch.from_numpy(y), np.full(n, 1 / n)

        def ours(near: torch.Tensor = near, far: torch.Tensor = far) -> torch.Tensor:
            return assign(costs(near, far))

        def theirs(x: np.ndarray = x, y: np.ndarray = y, weights: np.ndarray = weights) -> np.ndarray:
            plan: np.ndarray = ot.emd(weights, weights, ot.dist(x, y))
            return plan

        ours_cost = float((near - far[ours()]).double().square().sum(1).mean())
        pot_cost = float((theirs() * ot.dist(x.astype(np.float64), y.astype(np.float64))).sum())
        if not math.isclose(ours_cost, pot_cost, rel_tol=1e-6):
            raise AssertionError(f"the plans cost {ours_cost} and {pot_cost}")
        seconds = alternate({"latentsb": ours, "POT": theirs}, repeats=2 if quick else 15)
        for name, spent in seconds.items():
            report.add(f"n = {n}: {name}", estimate([1e3 * s for s in spent]), "ms")
        report.add(f"n = {n}: POT / latentsb", ratio(seconds["POT"], seconds["latentsb"]), at_least=2.0)
    return report


if __name__ == "__main__":
    main(measure, __doc__)
