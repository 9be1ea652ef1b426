"""Flow matching: straight lines from data to the other end, in one regression."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.denoising import require_times
from latentsb.errors import ArgumentError, DataError
from latentsb.laws import Ends, Gaussian, Sampled
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Independent, Pair
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.process.times import TimeDistribution, Uniform
from latentsb.randomness import Draws
from latentsb.ranges import Fraction
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss

__all__ = ["Flow", "GaussianFlow"]


@BRIDGES.register("flow")
class Flow(Bridge):
    """Flow matching: an ODE along straight lines from noise, or from a second data set, to data.

    With `x_t = (1 − t) x0 + t x1` the network learns `v(x, t) = E[x1 − x0 | x_t = x]` by the loss
    `|v_θ(x_t, t) − (x1 − x0)|²`, and `dx/dt = v` carries one law into the other. The reference is Brownian motion
    without noise: `g = 0` and `b_f = −b_b = v`.

    Where neither the data nor a law brings x1, it is standard normal noise. If it is independent of x0, the bridge is a
    `GaussianFlow`, which every solver of denoising bridges follows; otherwise only the velocity exists.

    Source: Lipman et al. 2023, Flow matching for generative modeling, Eq. 23; Liu et al. 2023, Rectified flow, Eq. 1.

    Args:
        ends: shapes, conditions, and whether batches bring x1.
        network: predicts the velocity from `(x_t, t, conditions)`.
        coupling: which x1 goes with which x0.
        times: law of the training times.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided.

    Raises:
        ArgumentError: if a coupling of partners is asked of data without an x1, or times of a noiseless reference are
            asked by their noise level.
    """

    coupling: Coupling
    reference: ScalarReference = Brownian(sigma=0.0)
    t_min: float = 1e-4
    t_max: float = 1.0

    def __new__(cls, ends: Ends, **recipe: Any) -> Flow:
        """A `GaussianFlow` where x1 is noise: what a bridge can do is its type."""
        # What is coupled with x0 is no Gaussian given x0: neither its noise nor its score follow from the velocity.
        alone = isinstance(recipe.get("coupling", Independent()), Independent)
        return super().__new__(GaussianFlow if cls is Flow and _from_noise(ends) and alone else cls)

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        coupling: Coupling = Independent(),
        times: TimeDistribution = Uniform(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        if coupling.aligned and not ends.two_sided:
            raise ArgumentError("coupling", "partners need data that brings an x1 for each x0; this data has no x1")
        self.ends = replace(ends, x1=Gaussian(ends.spec)) if _from_noise(ends) else ends
        self.coupling, self.times, self.dropout = coupling, times, dropout
        self.aligned = coupling.aligned
        require_times(times, self)
        self.network = network(ends.spec, ends.cond)

    def pair(self, batch: Batch, draws: Draws) -> Pair:
        """Both ends of the rows of a batch, by the coupling."""
        return self.coupling.pair(batch, self.ends, draws)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`|v_θ(x_t, t) − (x1 − x0)|²`, mean over a sample, shape (B,)."""
        pair = self.pair(batch, draws)
        t = self.times.sample(self, draws)
        weight = expand_as(t, pair.x0)
        x = (1 - weight) * pair.x0 + weight * pair.x1
        v = self.velocity(x, t, drop_conditions(pair.cond, self.dropout, draws))
        return Loss((v - (pair.x1 - pair.x0)).square().flatten(1).mean(1))

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The network's `E[x1 − x0 | x_t = x]`, t in [0, 1] of shape () or (B,)."""
        v: Tensor = self.network(x, t.to(device=x.device, dtype=x.dtype), cond)
        return v

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`v` towards x1 and `−v` towards x0."""
        v = self.velocity(x, t, cond)
        return v if towards == "x1" else -v

    def diffusion(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t, dtype=torch.float64)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The batch's x1, or a draw of its law, at t = 1; towards x1 the data at t = 0.

        Raises:
            DataError: towards x0, if neither the batch nor a law brings x1.
        """
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)
        return State(self.other_end(batch, draws), torch.ones((), dtype=torch.float64), batch.cond)

    def other_end(self, batch: Batch, draws: Draws) -> Tensor:
        """x1 for the rows of a batch, shape (B, …)."""
        if batch.x1 is not None:
            return batch.x1
        if isinstance(self.ends.x1, Sampled):
            return self.ends.x1.sample(len(batch), draws, batch.cond).to(self.device)
        raise DataError("this flow starts from data: give batches with x1, since no law of x1 is known")


def _from_noise(ends: Ends) -> bool:
    """Whether nothing brings x1, so that it is standard normal."""
    return ends.x1 is None and not ends.two_sided


class GaussianFlow(Flow, DenoisingBridge):
    """Flow matching from standard normal noise: `X_t | x0 ~ N((1 − t) x0, t²)`.

    The velocity gives the denoiser, `E[x0 | x_t] = x_t − t v`, and with it score and noise.
    """

    def pair(self, batch: Batch, draws: Draws) -> Pair:
        """The data and fresh noise."""
        return Pair(batch.data, draws.normal("x1", batch.data), batch.cond)

    def other_end(self, batch: Batch, draws: Draws) -> Tensor:
        """Standard normal noise, shape (B, …)."""
        return draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x0 | x_t = x] = x − t v`."""
        return x - expand_as(t, x) * self.velocity(x, t, cond)

    def marginal(self, t: Tensor) -> Marginal:
        """`N((1 − t) x0, t²)`, the law of x_t given x0."""
        t = t.to(torch.float64)
        return Marginal(torch.zeros_like(t), 1 - t, t.square())
