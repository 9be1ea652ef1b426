"""What a user waits for before anything happens: processor time of whole commands."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _harness import Report, alternate, estimate, main

TINY = """
name: tiny
data: {name: moons, n: 200}
bridge: {name: flow, network: {name: mlp, width: 16, depth: 1}}
solver: {name: heun, steps: 2}
train: {images: 8, batch: 8, preview_every: 1_000_000}
"""


def children() -> float:
    """Processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(*words: str, folder: str | None = None) -> Callable[[], None]:
    """A call of Python in a process of its own; one that fails is an error."""

    def call() -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=folder, env=env)

    return call


def measure(quick: bool = False) -> Report:
    """Time commands; a training of one step begins in a new folder each time."""
    report = Report("startup", "processor time of whole commands")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "tiny.yaml"
        recipe.write_text(TINY)
        count = iter(range(1000))

        def train() -> None:
            words = ("-m", "latentsb", "train", str(recipe), "--run", f"runs/{next(count)}")
            command(*words, folder=folder)()

        rivals = {
            "python alone": (command("-c", "pass"), None),
            "import latentsb": (command("-c", "import latentsb"), 0.15),
            "latentsb --help": (command("-m", "latentsb", "--help"), 0.25),
            "import torch": (command("-c", "import torch"), None),
            "first training step of a tiny recipe, with checkpoint and preview": (train, 8.0),
        }
        if quick:
            rivals = {name: rivals[name] for name in ("import latentsb", "latentsb --help")}
        calls = {name: call for name, (call, _) in rivals.items()}
        seconds = alternate(calls, repeats=1 if quick else 5, clock=children)
        for name, found in seconds.items():
            report.add(name, estimate(found), "s", at_most=rivals[name][1])
    return report


if __name__ == "__main__":
    main(measure, __doc__)
