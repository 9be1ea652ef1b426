"""What a code carries: DBAE beside DiffAE, a plain autoencoder, a beta-VAE and PCA, at equal parameters and images.

    python benchmarks/representation.py sprites --runs runs/representation
    python benchmarks/representation.py faces --shared ../shared        # photographs stay where they are
    python benchmarks/representation.py cifar10 --shared ../shared --ablation

Every arm is a recipe, trained and measured like any other: an interrupted command goes on where it stopped, and what is
there already is not made again. The table shows means over seeds with their standard errors; PCA, chance and the mean
image stand beside, and all of it goes to `results/representation-DATA.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, machine
from rich.console import Console
from rich.table import Table

from latentsb.allocator import keep_freed_memory
from latentsb.evaluate import evaluate
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer

IMAGES = 32_000
BASE = """
seed: {seed}
data: {data}
held_out: {held_out}
bridge: {bridge}
solver: {{name: dpmpp, steps: 20}}
train: {{images: {images}, batch: 64, lr: 1e-3, warmup: 6_400, precision: bf16, log_every: 3_200, save_every: 16_000,
  preview_every: 64_000, workers: 1}}
stages:
  - {{train: bridge}}
  - {{train: bridge.prior, images: 256_000, batch: 512, precision: fp32, warmup: 25_600, save_every: 256_000}}
"""

COMMON = (
    "z_dim: {z}, encoder: {{name: conv, width: 16}}, "
    "prior: {{name: bridge, bridge: {{name: flow, network: {{name: mlp_skip, width: 256, depth: 5}}}}}}"
)
DENOISING = "preconditioning: {{sigma_data: 0.5}}, times: {{name: lognormal_sigma, mean: 0, std: 1.6}}"
DBAE = (
    f"{{{{name: dbae, {COMMON}, {DENOISING}, decoder: {{{{name: conv, width: 16}}}}, "
    "network: {{name: dit, patch: 4, width: 128, depth: 4, heads: 2}}MORE}}"
)
PLAIN = f"{{{{name: vae, {COMMON}, decoder: {{{{name: conv, width: 24}}}}, channel: MORE}}}}"
METHODS = {
    "DBAE": DBAE.replace("MORE", ""),
    "DBAE, endpoint 1": DBAE.replace("MORE", ", endpoint_weight: 1"),
    "DiffAE": f"{{{{name: diffae, {COMMON}, {DENOISING}, "
    "network: {{name: dit, patch: 4, width: 128, depth: 8, heads: 2}}}}",
    "autoencoder": PLAIN.replace("MORE", "{{name: exact}}"),
    "beta-VAE": PLAIN.replace("MORE", "{{name: clamped, beta: 0.02}}"),
}
"""Of equal size to 1 %: what DBAE spends on Dec goes into DiffAE's network and the autoencoders' Dec."""
ABLATION = {
    "DBAE": METHODS["DBAE"],
    "no z in the norms": DBAE.replace("MORE", ", embeds_z: false"),
    "no x1 beside the state": DBAE.replace("MORE", ", sees_endpoint: false, trains_decoder: false"),
    "Dec random": DBAE.replace("MORE", ", trains_decoder: false"),
    "endpoint 0.1": DBAE.replace("MORE", ", endpoint_weight: 0.1"),
    "endpoint 1": METHODS["DBAE, endpoint 1"],
}
ENDPOINTS = ("random", "zero", "decoded", "inferred")
METRICS = ("reconstruction", "probes", "frechet")
FACTORS = (*METRICS, "disentanglement")


@dataclass(frozen=True)
class Data:
    """What the arms are trained on.

    Args:
        name: of the results.
        data: of the recipe.
        held_out: of the recipe.
        features: network of the Fréchet distance.
        metrics: words.
        settings: of the metrics.
    """

    name: str
    data: str
    held_out: str
    features: str
    metrics: tuple[str, ...] = METRICS
    settings: tuple[str, ...] = ()


def sources(shared: Path) -> dict[str, Data]:
    """The three data sets; photographs and CIFAR-10 lie below `shared`."""
    mobile = f"{{name: mobilenet_v2, size: 96, path: {shared}/weights/mobilenet_v2_imagenet}}"
    resnet = f"{{name: cifar_resnet, path: {shared}/weights/cifar10_resnet}}"
    face = f"name: tar, paths: ['{shared}/data/faces64/%s-*.tar.gz'], size: 32, channels: 1"
    cifar = f"name: tar, paths: ['{shared}/data/cifar10/%s-*.tar.gz'], size: 32, fit: exact, labels: true, classes: 10"
    table = (f"probes.table={shared}/data/faces64/attributes.csv", "probes.columns=[gender, happy]")
    return {
        "sprites": Data("sprites", "{name: sprites, size: 32, n: 60_000, smooth: true}", "10_000", mobile, FACTORS),
        "faces": Data("faces", "{%s, flip: true}" % (face % "train"), "{%s}" % (face % "val"), mobile, METRICS, table),
        "cifar10": Data("cifar10", "{%s, flip: true}" % (cifar % "train"), "{%s}" % (cifar % "test"), resnet, METRICS),
    }


@dataclass(frozen=True)
class Arm:
    """One method with one length of the code and one seed."""

    method: str
    bridge: str
    z: int
    seed: int

    @property
    def folder(self) -> str:
        """Name of its run."""
        word = "".join(c if c.isalnum() else "_" for c in self.method.lower())
        return f"{word}-z{self.z}-seed{self.seed}"


def arms(methods: Mapping[str, str], lengths: Sequence[int], seeds: Sequence[int]) -> Iterator[Arm]:
    """All of them, one seed after the other, so that an early look sees every method."""
    for seed in seeds:
        for z in lengths:
            for name, bridge in methods.items():
                yield Arm(name, bridge.format(z=z), z, seed)


def train(arm: Arm, data: Data, folder: Path, images: int) -> Run:
    """Train an arm, or go on with it."""
    path = folder / f"{arm.folder}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = BASE.format(seed=arm.seed, data=data.data, held_out=data.held_out, bridge=arm.bridge, images=images)
    path.write_text(text)
    recipe = Recipe.load(path)
    opened = Run.create(recipe, folder / arm.folder)
    try:
        outcome = Trainer(opened, build(recipe), "cpu").fit()
    finally:
        opened.close()
    if outcome.exit_code:
        sys.exit(outcome.exit_code)
    return Run.open(folder / arm.folder)


def measure(run: Run, arm: Arm, data: Data, n: int) -> dict[str, float]:
    """Figures of an arm; those that lie there are not measured again."""
    path = run.path / "figures.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    experiment = run.experiment()
    found: dict[str, float] = {
        "parameters": sum(p.numel() for n, p in experiment.bridge.named_parameters() if not n.startswith("prior")),
        "seconds": run.checkpoint().state["seconds"],
    }
    settings = (*data.settings, f"reconstruction.images={n // 2}", f"frechet.network={data.features}")
    told = evaluate(run, experiment, data.metrics, n, settings=settings)
    for who, row in told["reconstruction"].details["figures"].items():
        found |= {f"{who}: {key}": row[key] for key in ("mse", "ssim")}
    if arm.method == "DiffAE":
        for endpoint in ENDPOINTS:
            extra = (f"reconstruction.endpoint={endpoint}", f"reconstruction.images={n // 2}")
            rows = evaluate(run, experiment, ("reconstruction",), n, settings=extra)["reconstruction"].details[
                "figures"
            ]
            found |= {f"{endpoint}, perceptual: {key}": rows["bridge, perceptual"][key] for key in ("mse", "ssim")}
    for who, means in told["probes"].details["means"].items():
        found |= {f"probes, {who}: {key}": value[0] for key, value in means.items()}
    if "disentanglement" in told:
        for who, row in told["disentanglement"].details["figures"].items():
            found |= {f"factors, {who}: {key}": value for key, value in row.items()}
    for row in told["frechet"].tables[0].rows:
        found |= {f"{row[0]}: Fréchet": row[1][0], f"{row[0]}: kernel": row[1][2]}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def summary(figures: Mapping[Arm, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean over seeds and its standard error, by method and length of the code."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for arm, found in figures.items():
        groups.setdefault(f"{arm.method}, z {arm.z}", []).append(found)
    told = {}
    for name, rows in groups.items():
        keys = [key for key in rows[0] if all(key in row for row in rows)]
        values = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
        told[name] = {"seeds": len(rows)} | {k: [statistics.fmean(v), _se(v)] for k, v in values.items() if v}
    return told


def _se(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


COLUMNS = {
    "MSE": "bridge, faithful: mse",
    "MSE of a draw": "bridge, perceptual: mse",
    "SSIM": "bridge, faithful: ssim",
    "AP": "probes, z: AP",
    "r": "probes, z: r",
    "TAD": "factors, z: tad",
    "MIG": "factors, z: mig",
    "D": "factors, z: disentanglement",
    "prior": "samples: kernel",
}


def show(told: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print the means; everything else is in the JSON."""
    table = Table("", *COLUMNS, title=title)
    for name, row in told.items():
        cells = []
        for key in COLUMNS.values():
            mean, error = row.get(key, (None, None))
            cells.append("" if mean is None else f"{mean:.4g}" + ("" if error is None else f" ± {error:.1g}"))
        table.add_row(name, *cells)
    Console(width=180).print(table)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("sprites", "faces", "cifar10"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of data and weights")
    parser.add_argument("--runs", type=Path, default=Path("runs/representation"))
    parser.add_argument("--z", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="some of them; all if none")
    parser.add_argument("--ablation", action="store_true", help="DBAE with one thing changed at a time")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("-n", type=int, default=1000, help="samples and, half of it, reconstructions")
    parser.add_argument("--table", action="store_true", help="only what has been measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = sources(given.shared.resolve())[given.data]
    chosen = ABLATION if given.ablation else METHODS
    chosen = {name: bridge for name, bridge in chosen.items() if not given.methods or name in given.methods}
    folder = given.runs / f"{given.data}-{given.images}"
    figures: dict[Arm, Mapping[str, float]] = {}
    for arm in arms(chosen, given.z, given.seeds):
        done = folder / arm.folder / "figures.json"
        if done.exists():
            figures[arm] = json.loads(done.read_text())
        elif not given.table:
            print(f"{given.data}: {arm.folder}", flush=True)
            figures[arm] = measure(train(arm, data, folder, given.images), arm, data, given.n)
    told = summary(figures)
    kind = "ablation" if given.ablation else "representation"
    show(told, f"{kind}: {given.data}, {given.images:,} images, means over seeds")
    protocol = {"images": given.images, "samples": given.n, "seeds": given.seeds, "batch": 64}
    content = {"about": __doc__.splitlines()[0], "machine": machine(), "protocol": protocol, "arms": told}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{kind}-{given.data}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
