"""Quality against calls: images drawn from their codes by every solver, in the features of MobileNetV2.

    python benchmarks/calls.py RUN --weights path/to/mobilenet_v2_imagenet

RUN is a trained bridge with codes, such as one of `benchmarks/representation.py`. Each row decodes the same held-out
images from the same codes with the same seeds; distances are to other images of the training data, and the floor is
that of the held-out images themselves. The published hybrid (churn .33 with Heun's step) stands beside.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from _harness import RESULTS, Estimate, Report
from torch import Tensor

from latentsb.allocator import keep_freed_memory
from latentsb.evaluate import RunSubject
from latentsb.features import FEATURES
from latentsb.generate import reconstruct
from latentsb.metrics.distances import Cloud, KernelSums, frechet, kid
from latentsb.metrics.similarity import mse
from latentsb.run import Run
from latentsb.solvers.base import Solver
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.hybrid import Hybrid

STEPS = (5, 10, 15, 20, 30, 50)
HYBRID = (34, 83, 167, 333)
"""Intervals of 101, 248, 500 and 998 calls."""


def solvers() -> dict[str, Solver | None]:
    """Rows of the table; None is the mean of the code, in one call."""
    told: dict[str, Solver | None] = {"faithful": None}
    told |= {f"posterior steps, {n}": Posterior(steps=n) for n in STEPS}
    told |= {f"DPM-Solver++ 2M, {n}": DPMpp(steps=n) for n in STEPS}
    return told | {f"hybrid, {n} intervals": Hybrid(steps=n) for n in HYBRID}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder of MobileNetV2's weights")
    parser.add_argument("-n", type=int, default=500, help="held-out images that are decoded")
    parser.add_argument("--real", type=int, default=5000, help="training images that they are compared with")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    report = measure(Run.open(given.run), given.weights, given.n, given.real)
    report.show()
    report.write(given.out)


def measure(run: Run, weights: Path, n: int, real: int) -> Report:
    """The table of a run."""
    experiment = run.experiment()
    subject = RunSubject(run, experiment, n)
    network = FEATURES["mobilenet_v2"](path=weights, size=96).load()
    seen = subject.train.read(subject.train.rows(real, 0, "images to compare with")).x0
    items = subject.test.read(subject.test.rows(n, 0, "decoded images"))
    features = network.features_of(seen)
    cloud, sums = Cloud(features), KernelSums(features)
    report = Report(f"calls-{run.path.name}", f"{n} images from their codes, {network.frechet_name}, 95 % by two SE")

    def add(name: str, images: Tensor) -> None:
        found = network.features_of(images)
        for kind, value in (
            (network.kernel_name, kid(sums, found)),
            (network.frechet_name, frechet(cloud, Cloud(found))),
        ):
            error = 2 * (value.error or 0.0)
            report.add(f"{name}: {kind}", Estimate(value.value, value.value - error, value.value + error))

    add("floor: held-out images", items.x0)
    for name, solver in solvers().items():
        began = time.process_time()
        mode = "faithful" if solver is None else "perceptual"
        made = reconstruct(experiment, items.x0, mode=mode, cond=subject.known(items.cond), solver=solver)
        seconds = time.process_time() - began
        images = made.bridge.clamp(-1, 1)
        add(f"{name} ({made.calls} calls)", images)
        report.add(f"{name} ({made.calls} calls): squared error", float(mse(items.x0, images).mean()))
        report.add(f"{name} ({made.calls} calls): seconds per image", seconds / n)
        print(name, f"{made.calls} calls, {seconds:.0f} s", flush=True)
    return report


if __name__ == "__main__":
    main()
