"""A sampler of an unnormalised density: no data at all, batches are rows only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.data.source import Items, Source
from latentsb.errors import CapabilityError
from latentsb.laws import Density, Ends, Law, Sampled
from latentsb.networks.base import Network
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec, expand_as
from latentsb.trainable import Loss


class Target(Source):
    """`data: {name: target, law: {name: …}}`: a density of which there are no samples."""

    cond: Mapping[str, Spec] = {}

    def __init__(self, *, law: Law) -> None:
        self.spec, self.x0 = law.spec, law

    def __len__(self) -> int:
        return 0

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        raise CapabilityError("a target density has no samples")

    def fingerprint(self) -> dict[str, Any]:
        return {"law": type(self.x0).__name__}


class DensitySampler(Bridge):
    """DIS with the log-variance loss, from two trajectories per row, so that the loss belongs to its row."""

    def __init__(self, ends: Ends, *, reference: ScalarReference, network: Build[Network], steps: int = 25) -> None:
        super().__init__()
        if not isinstance(ends.x0, Density):
            raise CapabilityError("density needs an x0 whose log-density is known")
        if not isinstance(ends.x1, Sampled) or not isinstance(ends.x1, Density):
            raise CapabilityError("density needs an x1 that can be drawn from and whose log-density is known")
        self.ends, self.reference, self.steps = ends, reference, steps
        self.target, self.prior_law, self.prior_density = ends.x0, ends.x1, ends.x1
        self.network = network(ends.spec, {}, ends.spec)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        if towards == "x1":
            return torch.zeros_like(x)
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.target.log_prob(y).sum(), y)
        out: Tensor = self.network(x, t, cond)
        return out + slope

    def diffusion(self, t: Tensor) -> Tensor:
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            raise CapabilityError("a target density has no samples to start from")
        x1 = self.prior_law.sample(len(batch), draws, batch.cond).to(self.device)
        return State(x1, torch.tensor(1.0, dtype=torch.float64), batch.cond)

    def log_weight(self, batch: Batch, draws: Draws) -> Tensor:
        """Log ratio of the discrete Gaussian kernels of both directions, shape (B,)."""
        state, h = self.start(batch, draws), 1 / self.steps
        x, weight = state.x, -self.prior_density.log_prob(state.x)
        for k in reversed(range(self.steps)):
            t = torch.tensor((k + 1) * h, dtype=torch.float64)
            sd = h**0.5 * expand_as(self.diffusion(t), x)
            noise = draws.fork(f"step {k}").normal("noise", x)
            earlier = (x + h * self.drift(x, t, state.cond, "x0") + sd * noise).detach()
            back = (earlier - x - h * self.drift(x, t, state.cond, "x0")) / sd
            forth = (x - earlier - h * self.drift(earlier, t - h, state.cond, "x1")) / sd
            weight = weight + (back.square() - forth.square()).flatten(1).sum(1) / 2
            x = earlier
        return weight + self.target.log_prob(x)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        first, second = (self.log_weight(batch, draws.fork(name)) for name in ("first", "second"))
        return Loss((first - second).square() / 2, {"log_weight": first.detach()})


def step(bridge: DensitySampler, seen: int, rows: Tensor) -> Loss:
    """One step of the engine: a batch without data."""
    return bridge.loss(Batch(rows, seen=seen), Draws.step(0, "loss", seen, rows))
