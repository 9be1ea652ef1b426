"""CPU seconds until a light Schrödinger bridge is within 1 % of the plan of a mixture pair with a known one.

python benchmarks/lightsb.py --dims 2 16 64 --epsilon 1

Conditional unexplained variance from closed-form moments of both plans, so that it has no sampling floor. Ten
components with full matrices above two dimensions, batches of 512 of 100,000 unpaired samples, Adam at a rate of 1e-2.
"""

from __future__ import annotations

import argparse
import time

import torch

from latentsb.bridges.lightsb import LightSB
from latentsb.laws import Ends
from latentsb.oracles.metrics import bw2
from latentsb.oracles.mixtures import MixturePair
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec

BATCH, EVERY = 512, 10


@torch.no_grad()
def uvp(bridge: LightSB, pair: MixturePair, inputs: int = 200) -> float:
    """cBW2-UVP in per cent."""
    x0 = pair.sample_x0(inputs, Draws.block(7, "inputs", 0, inputs))
    mine, truth = bridge.conditional(x0), pair.conditional(x0)
    distance = bw2(mine.mean().double(), mine.cov().double(), truth.mean(), truth.cov()).mean()
    return float(100 * distance / (pair.x1_moments.cov.trace() / 2))


def measure(dim: int, epsilon: float, *, rows: int, steps: int, lr: float) -> str:
    """One row of the table."""
    pair = MixturePair(dim=dim, epsilon=epsilon)
    x0 = pair.sample_x0(rows, Draws.block(1, "x0", 0, rows)).float()
    x1 = pair.sample_x1(rows, Draws.block(2, "x1", 0, rows)).float()
    bridge = LightSB(
        Ends(Spec((dim,)), two_sided=True), reference=pair.reference, towards="x1", components=10, rotation=dim > 2
    )
    began = time.process_time()
    bridge.place(x1[:10_000])
    spent, passed = time.process_time() - began, None
    first, generator = uvp(bridge, pair), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(bridge.parameters(), lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        near, far = torch.randint(rows, (2, BATCH), generator=generator)
        batch = Batch(torch.arange(BATCH), x0[near], x1[far])
        optimizer.zero_grad()
        bridge.loss(batch, Draws.step(0, "loss", step, range(BATCH))).total.mean().backward()
        optimizer.step()
        spent += time.process_time() - began
        if passed is None and step % EVERY == EVERY - 1 and uvp(bridge, pair) < 1:
            passed = spent
    reached = "never" if passed is None else f"{passed:.2f} s"
    return f"| {dim} | {epsilon:g} | {first:.2f} | {reached} | {uvp(bridge, pair):.3f} | {spent:.1f} s |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=1e-2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| D | epsilon | at the start | below 1 after | at the end | all steps |")
    print("|---|---|---|---|---|---|")
    for dim in asked.dims:
        for epsilon in asked.epsilon:
            print(measure(dim, epsilon, rows=asked.rows, steps=asked.steps, lr=asked.lr), flush=True)


if __name__ == "__main__":
    main()
