"""Latent beside ambient: a bridge in the two numbers of a pre-trained autoencoder, and the same one in all 32.

python benchmarks/lsbdm.py

Points of a plane lie on a curved sheet in 32 dimensions. An autoencoder is pre-trained on 20,000 points of a uniform
square (the shifted law); the target is a ring of six Gaussians of which n samples are known. The same bridge with the
same network, steps and sampler is trained on their latents and on the samples themselves. Told are the sliced W2 to
4,000 fresh points over 200 projections, and the root mean square distance to the nearest of them (off the sheet);
floors are those of another 4,000 fresh points. Every fit is kept as soon as it is done: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import RESULTS, machine
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.autoencoders.identity import Identity
from latentsb.autoencoders.mlp import MLPAutoencoder
from latentsb.bridges.lsbdm import LSBDM
from latentsb.data.sheets import embed
from latentsb.laws import Ends
from latentsb.networks.mlp import MLP
from latentsb.normalisers import Channel
from latentsb.randomness import Draws, numpy_generator
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.grid import Karras
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Trainable

DIM, HIDDEN, BATCH, SHOWN, PROJECTIONS = 32, 32, 256, 4000, 200
CALLS = (25, 100)
NAMES = ("sliced W2, 25 calls", "sliced W2, 100 calls", "off the sheet, 100 calls")


def square(n: int, seed: int) -> Tensor:
    """The shifted law."""
    return bent(numpy_generator(seed, "square").uniform(-2, 2, (n, 2)))


def ring(n: int, seed: int) -> Tensor:
    """The target."""
    rng = numpy_generator(seed, "ring")
    angle = rng.integers(6, size=n) * math.pi / 3
    return bent(1.5 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.12 * rng.standard_normal((n, 2)))


def bent(points: np.ndarray) -> Tensor:
    """Points of the plane on the sheet."""
    return torch.from_numpy(embed(points, DIM, HIDDEN, 0)).float()


def train(trainable: Trainable, data: Tensor, steps: int, seed: int, lr: float = 2e-3) -> float:
    """Adam with a falling rate; returns seconds of the processor."""
    began = time.process_time()
    optimizer = torch.optim.Adam(trainable.parameters(), lr=lr, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randint(len(data), (BATCH,), generator=generator)
        batch = Batch(torch.arange(BATCH), data[rows], seen=step * BATCH)
        optimizer.zero_grad()
        trainable.loss(batch, Draws.step(seed, "loss", step, range(BATCH))).total.mean().backward()
        torch.nn.utils.clip_grad_norm_(trainable.parameters(), 1.0)
        optimizer.step()
    return time.process_time() - began


@torch.no_grad()
def sliced_w2(x: Tensor, y: Tensor) -> float:
    """Root of the mean over directions of the squared W2 of the projections; equally many points."""
    directions = torch.randn(x.shape[1], PROJECTIONS, generator=torch.Generator().manual_seed(7))
    directions = directions / directions.norm(dim=0)
    gap = (x @ directions).sort(0).values - (y @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


@torch.no_grad()
def off(x: Tensor, y: Tensor) -> float:
    """Root mean square distance of points x to the nearest of y."""
    return float(torch.cdist(x, y).min(1).values.square().mean().sqrt())


@torch.no_grad()
def sampled(bridge: LSBDM, autoencoder: Autoencoder, calls: int, seed: int) -> Tensor:
    """Samples of the bridge, decoded."""
    draws = Draws.block(seed, "samples", 0, SHOWN)
    state = bridge.start(Batch(torch.arange(SHOWN)), draws.fork("start"))
    solver = Posterior(steps=calls, eta=1.0, grid=Karras(sigma_max=80.0, sigma_min=0.01))
    return autoencoder.decode(solver.run(bridge, state, draws.fork("solve")).x)


def fitted(autoencoder: Autoencoder, data: Tensor, steps: int, seed: int) -> tuple[LSBDM, float]:
    """A bridge trained on the latents of data."""
    with torch.no_grad():
        autoencoder.fit_normaliser([autoencoder.moments(data).mean])
        latents = autoencoder.encode(data)
    torch.manual_seed(seed)
    bridge = LSBDM(Ends(autoencoder.latent), network=lambda x, cond: MLP(x, cond, width=128, depth=3), sigma=3.0)
    seconds = train(bridge, latents, steps, seed)
    bridge.fit(lambda: [Batch(torch.arange(len(latents)), latents, cond=Condition())])
    return bridge.eval(), seconds


def measure(bridge: LSBDM, autoencoder: Autoencoder, fresh: Tensor, seed: int) -> dict[str, float]:
    """The figures of one bridge."""
    few, many = (sampled(bridge, autoencoder, calls, seed) for calls in CALLS)
    return dict(zip(NAMES, (sliced_w2(few, fresh), sliced_w2(many, fresh), off(many, fresh)), strict=True))


class Results:
    """Figures by name in a JSON file, each kept as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}

    def once(self, name: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What is known, or is computed now."""
        if name not in self.found:
            self.found[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"about": (__doc__ or "").splitlines()[0], "machine": machine(), "runs": self.found}
            self.path.write_text(json.dumps(content, indent=1) + "\n")
        return dict(self.found[name])


def one_seed(results: Results, seed: int, sizes: list[int], steps: int) -> None:
    """All fits of a seed."""
    fresh, other = ring(SHOWN, 1000 + seed), ring(SHOWN, 2000 + seed)
    keep: dict[str, MLPAutoencoder] = {}

    def pretrained() -> MLPAutoencoder:
        if not keep:
            torch.manual_seed(seed)
            keep["it"] = MLPAutoencoder(Spec((DIM,)), dim=2, width=128, depth=2, normaliser=Channel())
            train(keep["it"], square(20_000, seed), steps, seed)
        return keep["it"]

    def errors() -> dict[str, float]:
        found, laws = pretrained(), {"shifted": square(SHOWN, 3000 + seed), "target": fresh}
        with torch.no_grad():
            return {
                name: float((found.raw_decode(found.moments(x).mean) - x).square().mean()) for name, x in laws.items()
            }

    def figures(name: str, n: int) -> dict[str, float]:
        autoencoder = pretrained() if name == "latent" else Identity(Spec((DIM,)), normaliser=Channel())
        bridge, seconds = fitted(autoencoder, ring(n, seed), steps, seed)
        return {**measure(bridge, autoencoder, fresh, seed), "seconds": seconds}

    floor = sliced_w2(other, fresh)
    results.once(f"floor {seed}", lambda: dict(zip(NAMES, (floor, floor, off(other, fresh)), strict=True)))
    results.once(f"reconstruction {seed}", errors)
    for n in sizes:
        for name in ("latent", "ambient"):
            results.once(f"{name} {n} {seed}", lambda name=name, n=n: figures(name, n))


def told(values: list[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def main() -> None:
    """Fit what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULTS / "lsbdm.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(asked.out)
    for seed in range(asked.seeds):
        one_seed(results, seed, asked.sizes, asked.steps)
    print(f"| n | | {' | '.join(NAMES)} |\n|---|---|---|---|---|")
    rows = [(str(n), name, f"{name} {n}") for n in asked.sizes for name in ("latent", "ambient")]
    for n, name, key in [*rows, ("4000", "floor: fresh samples", "floor")]:
        runs = [results.found[f"{key} {seed}"] for seed in range(asked.seeds)]
        print(f"| {n} | {name} | {' | '.join(told([run[what] for run in runs]) for what in NAMES)} |")
    errors = [results.found[f"reconstruction {seed}"] for seed in range(asked.seeds)]
    print({name: told([run[name] for run in errors]) for name in ("shifted", "target")}, "reconstruction, mean square")


if __name__ == "__main__":
    main()
