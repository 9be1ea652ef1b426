"""Plans in closed loop: bridges from the line, a learned guess and noise, beside diffusion, line and controller.

python benchmarks/planning.py [--mazes medium,large] [--seeds 0] [--episodes 200] [--folder runs/planning] [SETTING ...]

Each part is done once: the command goes on where it stopped. Settings such as train.images=3200 go to every training.
The table is printed and written to benchmarks/results/planning.json.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from latentsb.data.trajectories import Trajectories
from latentsb.disk import write_text

RESULTS = Path(__file__).parent / "results" / "planning.json"
KINDS = ("line", "learned", "gaussian", "diffusion")
STEPS = 100_000
CALLS = "1,4,16"


def call(*arguments: str) -> None:
    """Run one command of latentsb."""
    subprocess.run([sys.executable, "-m", "latentsb", *arguments], check=True)


def trained(maze: str, kind: str, seed: int, folder: Path, episodes: int, settings: list[str]) -> dict[str, Any]:
    """The evaluation of one run, which is trained and evaluated if it has not been."""
    data, run = folder / f"{maze}.npz", folder / f"{maze}_{kind}_{seed}"
    if not data.is_file():
        call("record", maze, "-o", str(data), "--steps", str(STEPS))
    call("train", f"plan_{maze}_{kind}", f"data.path={data}", f"seed={seed}", "-o", str(run), *settings)
    for file in sorted(run.glob("plans/*.json"), reverse=True):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["episodes"] == episodes and f"step-{found['step']:09d}" == file.stem:
            return found
    call("plan", str(run), "--episodes", str(episodes), "--calls", CALLS)
    made: dict[str, Any] = json.loads(max(run.glob("plans/*.json")).read_text(encoding="utf-8"))
    return made


def share(values: np.ndarray) -> str:
    """Mean and standard error over tasks, of values that are averaged over seeds first, (seeds, tasks)."""
    over = values.mean(0)
    return f"{over.mean():.3f} ± {over.std(ddof=1) / math.sqrt(len(over)):.3f}"


def arms(evaluations: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, np.ndarray]]:
    """Success and share inside walls of every arm, each of shape (seeds, tasks); the tasks are the same for all."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for kind, made in evaluations.items():
        for k, row in enumerate(made[0]["rows"]):
            name = row["plan"] if row["calls"] is None else f"{kind}, {row['calls']} calls"
            found[name] = {
                key: np.array([one["rows"][k]["episodes"][key] for one in made], dtype=float)
                for key in ("success", "inside")
            }
    return found


def main() -> None:
    """Do what is missing, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mazes", default="medium,large")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/planning"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("settings", nargs="*")
    asked = parser.parse_args()
    kept: dict[str, Any] = {"episodes": asked.episodes, "seeds": asked.seeds, "settings": asked.settings, "mazes": {}}
    for maze in asked.mazes.split(","):
        made = {
            kind: [trained(maze, kind, s, asked.folder, asked.episodes, asked.settings) for s in asked.seeds]
            for kind in KINDS
        }
        found = arms(made)
        data = Trajectories(path=asked.folder / f"{maze}.npz", horizon=2, stride=1)
        print(f"\n{maze}: {len(data.states):,} recorded steps, {asked.episodes} tasks, seeds {asked.seeds}\n")
        print("| plan | success | points inside walls | success beyond diffusion at 16 calls |\n|---|---|---|---|")
        last, rows = found["diffusion, 16 calls"]["success"], {}
        for name, values in found.items():
            gap = values["success"] - last
            rows[name] = {key: share(values[key]) for key in values} | {"beyond diffusion at 16": share(gap)}
            print(f"| {name} | {' | '.join(rows[name].values())} |")
        kept["mazes"][maze] = rows
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(asked.output, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
