"""The training step: transformer and whole DBAE, beside the machine's matrix products, and what its parts take.

A step of the transformer is forward and backward of width 384, depth 12 (S/2) on latents of 4×32×32, four at a time.
MFU is its rate over that of a large matrix product in the same type and run.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from _harness import Report, alternate, flops, limits, main, per_second, ratio
from _training import dbae

from latentsb.networks.transformer import Transformer
from latentsb.tensors import Condition, Spec

COMPILE = "transformer, compiled"


def transformer(shape: tuple[int, int, int], width: int, depth: int, heads: int) -> Transformer:
    """A transformer whose gates are open, so that every layer works."""
    network = Transformer(Spec(shape), width=width, depth=depth, heads=heads)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return network.train()


def forward_backward(network: Transformer, batch: int, *, bf16: bool = False) -> None:
    """One loss and its gradients."""
    shape, device = network.x_spec.shape, next(network.parameters()).device
    x, t = torch.randn(batch, *shape, device=device), torch.rand(batch, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = network(x, t, Condition()).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    network.zero_grad()


def measure(quick: bool = False) -> Report:
    """Time the transformer in both types, then DBAE and its parts."""
    report = Report("train_step", "transformer S/2 and DBAE, processor time of one thread")
    limit = limits(report, repeats=2 if quick else 7, size=64 if quick else 1024)
    width, depth, batch = (24, 1, 1) if quick else (384, 12, 4)
    network = transformer((4, 32, 32), width, depth, 6)
    work = flops(partial(forward_backward, network, batch))
    rivals = {
        "fp32": partial(forward_backward, network, batch),
        "bf16": partial(forward_backward, network, batch, bf16=True),
    }
    seconds = alternate(rivals, repeats=2 if quick else 7)
    report.add("transformer: work per image", work / batch / 1e9, "GFLOP")
    for name, target in (("fp32", 0.80), ("bf16", 0.60)):
        report.add(f"transformer {name}", per_second(work / 1e9, seconds[name]), "GFLOP/s")
        report.add(f"transformer {name}: MFU", per_second(work / 1e9 / limit[name], seconds[name]), at_least=target)
    report.add("transformer: fp32 / bf16", ratio(seconds["fp32"], seconds["bf16"]), at_least=1.55)
    _dbae(report, quick)
    return report


def _dbae(report: Report, quick: bool) -> None:
    cases = {
        "DBAE 4×32×32, width 384, depth 12, batch 4": ((4, 32, 32), {"width": 384, "depth": 12, "batch": 4}),
        "DBAE 32×32×32, width 192, depth 6, batch 8": ((32, 32, 32), {"width": 192, "depth": 6, "batch": 8}),
    }
    for what, (shape, size) in cases.items():
        sizes = {"width": 24, "depth": 1, "batch": 2} if quick else size
        loops = {p: dbae(shape, p, z_dim=64, channel="exact", heads=6, **sizes) for p in ("fp32", "bf16")}
        steps = {name: lambda loop=loop: loop.step(loop.stream.batch(0)) for name, loop in loops.items()}
        seconds = alternate(steps, repeats=2 if quick else 5)
        report.add(f"{what}: step", statistics.median(seconds["fp32"]) * 1e3, "ms")
        report.add(f"{what}: fp32 / bf16", ratio(seconds["fp32"], seconds["bf16"]))
        found = loops["fp32"].shares(1 if quick else 3)
        whole = found.pop("step")
        for part, share in found.items():
            report.add(f"{what}: {part}", 100 * share / whole, "% of the step")
        update = found["optimiser"] + found["average"] + found["clipping, logs, rest"]
        report.add(f"{what}: optimiser + average + norms + logs", 100 * update / whole, "% of the step", at_most=4.0)


if __name__ == "__main__":
    main(measure, __doc__)
