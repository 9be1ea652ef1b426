"""Trains in forked children and kills them; run by `test_kills.py` in a process of its own.

Usage: python killing.py RECIPE FOLDER TRIALS SEED. Prints one JSON object per trial.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401  imported once, before forking
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from latentsb import cache, trainer  # noqa: F401
from latentsb.disk import Disk
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run


class Suicidal(Disk):
    """Kills its own process at the k-th operation, half-way through a write."""

    def __init__(self, k):
        self.k = k

    def tick(self):
        self.k -= 1
        if self.k == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path, data):
        path.write_bytes(data[: len(data) // 2])
        self.tick()
        super().write(path, data)

    def rename(self, old, new):
        self.tick()
        super().rename(old, new)
        self.tick()

    def unlink(self, path):
        self.tick()
        super().unlink(path)

    def _sync(self, path, flags):
        self.tick()


def train(recipe_path, folder, die_in_save_at):
    """The same command, in a child; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        recipe = Recipe.load(recipe_path)
        run = Run.create(recipe, folder)
        if die_in_save_at:
            run.checkpoints.disk = Suicidal(die_in_save_at)
        code = trainer.Trainer(run, build(recipe), device="cpu").fit().exit_code
    finally:
        os._exit(code)


def ended(pid, seconds):
    """Wait for a child; None if it still runs after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def trial(recipe_path, folder, rng, duration):
    """Kill at a random time, inside a save, and while resuming; then let it end."""
    kills = {"any time": 0, "saving": 0, "resuming": 0}
    for kind in ("any time", "saving", "resuming", "any time"):
        pid = train(recipe_path, folder, rng.randint(1, 60) if kind == "saving" else 0)
        seconds = {"any time": rng.uniform(0.1, duration), "saving": 60, "resuming": rng.uniform(0, 0.2)}[kind]
        code = ended(pid, seconds)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            code = ended(pid, 60)
        kills[kind] += code == -signal.SIGKILL
    code = ended(train(recipe_path, folder, 0), 120)
    return {"kills": kills, "code": code}


def main():
    recipe_path, folder, trials, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    began = time.monotonic()
    assert ended(train(recipe_path, folder / "whole", 0), 120) == 0
    duration = time.monotonic() - began
    for number in range(trials):
        print(json.dumps(trial(recipe_path, folder / f"trial-{number}", rng, duration)), flush=True)


if __name__ == "__main__":
    main()
