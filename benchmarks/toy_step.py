"""The trainer beside a bare loop of torch: what stepping through it costs, on a toy and on real sizes.

The bare loop calls the same network with the same loss on data in memory, draws by `torch.randn`, and takes a step of
fused Adam: no clipping, no average, no log, no guard against losses that are not finite. On the toy, where a step takes
milliseconds, all of the trainer's extra work shows.
"""

from __future__ import annotations

from typing import cast

import torch
from _harness import Report, alternate, estimate, limits, main, ratio
from _training import Loop, dbae
from torch import Tensor

from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.data.arrays import ArraySource
from latentsb.tensors import Condition, expand_as

MOONS = """
seed: 0
data: {name: moons, n: 20_000}
bridge: {name: flow, network: {name: mlp, width: 128, depth: 3}}
train: {images: 1000000000, batch: 500, lr: 2e-3, warmup: 20_000}
"""


class Bare:
    """The same networks in a plain loop.

    Args:
        loop: whose bridge is copied anew from the same recipe.
    """

    def __init__(self, loop: Loop) -> None:
        self.bridge = cast(Flow | DBAE, loop.session.experiment.bridge.train().requires_grad_(True))
        self.data = cast(ArraySource, loop.source).samples
        self.batch = loop.session.settings.batch
        self.optimizer = torch.optim.AdamW(self.bridge.parameters(), lr=1e-3, fused=True, weight_decay=0.0)

    def run(self, steps: int) -> None:
        """Train for some steps."""
        for _ in range(steps):
            x0 = self.data[torch.randint(len(self.data), (self.batch,))]
            self.optimizer.zero_grad(set_to_none=True)
            _bare_loss(self.bridge, x0).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


def _bare_loss(bridge: Flow | DBAE, x0: Tensor) -> Tensor:
    t = bridge.t_min + (bridge.t_max - bridge.t_min) * torch.rand(len(x0), dtype=torch.float64)
    if isinstance(bridge, Flow):
        x1, w = torch.randn_like(x0), expand_as(t, x0)
        v = bridge.network((1 - w) * x0 + w * x1, t.float(), Condition())
        return (v - (x1 - x0)).square().mean()
    z = bridge.encode(x0)["z"]
    x1 = bridge.decoder(z)
    there = bridge.marginal(t)
    scales = bridge.preconditioning.coefficients(there, t)
    x = expand_as(there.a, x0) * x1 + expand_as(there.b, x0) * x0 + expand_as(there.std, x0) * torch.randn_like(x0)
    shifted = x - expand_as(scales.shift, x) * x1
    cond = Condition({"z": z, "x1": x1})
    output = bridge.network(expand_as(scales.scale_in, x) * shifted, scales.noise.float(), cond)
    found = expand_as(scales.skip, x) * shifted + expand_as(scales.out, x) * output
    return (expand_as(scales.weight, x) * (found - x0).square()).mean()


def measure(quick: bool = False) -> Report:
    """Compare the loops on half moons in the plane, on digits' latents, and on latents of 32×32×32."""
    report = Report("toy_step", "the trainer beside a bare loop, processor time of whole steps")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    small = {"z_dim": 3, "channel": "clamped", "width": 128, "depth": 4, "heads": 4, "batch": 64}
    large = {"z_dim": 64, "channel": "exact", "width": 192, "depth": 6, "heads": 6, "batch": 32}
    if quick:
        small |= {"width": 16, "depth": 1, "batch": 4}
        large |= {"width": 24, "depth": 1, "batch": 2}
    cases = {
        "half moons, perceptron of width 128, batch 500": (lambda: Loop(MOONS), 40, 1.10),
        "digits' latents 4×4×4, DBAE of width 128, batch 64": (lambda: dbae((4, 4, 4), **small), 15, 1.10),
        "latents 32×32×32, DBAE of width 192, batch 32": (lambda: dbae((32, 32, 32), **large), 1, 1.05),
    }
    for what, (make, steps, target) in cases.items():
        ours, bare = make(), Bare(make())
        count = 1 if quick else steps
        rivals = {"trainer": lambda o=ours, n=count: o.run(n), "bare": lambda b=bare, n=count: b.run(n)}
        seconds = alternate(rivals, repeats=2 if quick else 7 if steps > 1 else 5)
        report.add(f"{what}: bare", estimate([1e3 * s / count for s in seconds["bare"]]), "ms/step")
        report.add(f"{what}: trainer", estimate([1e3 * s / count for s in seconds["trainer"]]), "ms/step")
        report.add(f"{what}: trainer / bare", ratio(seconds["trainer"], seconds["bare"]), at_most=target)
    return report


if __name__ == "__main__":
    main(measure, __doc__)
