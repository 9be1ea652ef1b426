"""A bridge whose denoiser is known: data from a mixture of Gaussians, x1 pinned."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, End, State
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.marginal import Marginal
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

ONE = torch.ones((), dtype=torch.float64)


class Posterior(Network):
    """`E[x0 | y, sigma]` under equal Gaussians `N(centre_k, spread_k² I)`."""

    def __init__(self, centres: Tensor, spread: Tensor) -> None:
        super().__init__(Spec(centres.shape[1:], torch.float64))
        self.centres, self.variance = centres, spread.square()

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The posterior mean; t is sigma."""
        variance, gaps = self.variance + t.square(), x[:, None] - self.centres
        weight = -gaps.square().sum(2) / (2 * variance) - x.shape[1] / 2 * variance.log()
        means = self.centres + (self.variance / variance)[:, None] * gaps
        return (weight.softmax(1)[:, :, None] * means).sum(1)


class Exact(DenoisingBridge):
    """The bridge of VP with DBAE's betas."""

    def __init__(self, centres: Tensor, spread: Tensor, t_min: float = 1e-4) -> None:
        super().__init__()
        self.reference, self.t_min, self.network = VP(), t_min, Posterior(centres, spread)
        self.ends = Ends(Spec(centres.shape[1:], torch.float64))

    def marginal(self, t: Tensor) -> Marginal:
        """Pinned."""
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Exact."""
        there = self.marginal(t)
        if bool(there.b == 0):
            return self.network(torch.zeros_like(x), 1e100 * ONE, cond)
        return self.network(there.to_y(x, cond["x1"]), there.sigma_eff, cond)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """At x1."""
        return State(batch.cond["x1"], ONE, batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """There is nothing to train."""
        raise NotImplementedError
