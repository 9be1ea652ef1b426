"""Density matrices through the mirror map and in plain coordinates: the share that is invalid, and distances.

python benchmarks/density_matrices.py [--seeds 1,2,3] [--samples 4000] [--images N] [--runs FOLDER] [--out FILE]

Every arm is a run of `recipes/qubits_dual.yaml` or `recipes/qubits_primal.yaml` with its own seed of states and of
training; an arm that is there is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from latentsb.bench.arms import FIGURES, measured, trained
from latentsb.bench.tables import Column, Row, contents, over_seeds
from latentsb.evaluate import RunSubject
from latentsb.metrics.states import States
from latentsb.outputs import write_json
from latentsb.recipe import Recipe
from latentsb.run import Run

ROOT = Path(__file__).parents[1]
ARMS = {"dual (mirror)": "qubits_dual", "primal (hermitian)": "qubits_primal"}
COLUMNS = (
    Column("invalid %", "invalid %"),
    Column("W1 smallest eigenvalue", "smallest eigenvalue"),
    Column("W1 negativity", "negativity"),
    Column("W1 purity", "purity"),
    Column("sliced W2", "sliced W2"),
    Column("most negative eigenvalue", "most_negative"),
    Column("CPU s", "cpu"),
)
Figures = Mapping[str, float | None]


def arm(word: str, seed: int, samples: int, images: int | None, runs: Path) -> dict[str, Figures]:
    """Figures of samples, of other data and of a Gaussian of the latents, by name; trained if it is not there yet."""
    changes = [f"seed={seed}", f"data.seed={1000 + seed}", f"held_out.seed={2000 + seed}"]
    changes += [] if images is None else [f"train.images={images}"]
    recipe = Recipe.load(ROOT / "recipes" / f"{word}.yaml", changes)
    folder = runs / f"{word}-seed{seed}-{recipe.hash[:8]}"

    def measure() -> dict[str, float | None]:
        experiment, cost = trained(recipe, folder)
        found = States(seed=seed).measure(RunSubject(Run.open(folder), experiment, samples, seed=seed))
        table = found.tables[0]
        flat = {
            f"{name}|{head}": value
            for name, row in table.rows
            for head, value in zip(table.columns[1:], row, strict=True)
        }
        return {**flat, "samples|most_negative": found.details["most_negative"], "samples|cpu": cost["cpu"]}

    flat = measured(folder / FIGURES, {"samples": samples}, measure)
    names = dict.fromkeys(key.partition("|")[0] for key in flat)
    return {n: {k.partition("|")[2]: v for k, v in flat.items() if k.partition("|")[0] == n} for n in names}


def main() -> None:
    """Print a Markdown table and keep the rows as JSON after every arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--images", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench/states"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "density_matrices.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    held: dict[str, dict[int, Figures]] = {}
    rows: list[Row] = []
    for seed in map(int, asked.seeds.split(",")):
        for name, word in ARMS.items():
            for of, figures in arm(word, seed, asked.samples, asked.images, asked.runs).items():
                held.setdefault(of if of == "other data" else f"{name}: {of}", {})[seed] = figures
        rows = [over_seeds("qubits", name, found) for name, found in held.items()]
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.out, contents(str(__doc__).partition("\n")[0], {"samples": asked.samples}, rows))
    print("| | " + " | ".join(column.head for column in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for row in rows:
        print(f"| {row.name} | " + " | ".join(column.cell(row) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
