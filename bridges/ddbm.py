"""Denoising diffusion bridge between partners: from a degraded image to the clean one, from one domain to another."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, DenoisingBridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.denoising import denoised, denoising_loss, require_times
from latentsb.errors import ArgumentError, DataError
from latentsb.laws import Ends, Sampled
from latentsb.networks.base import Network
from latentsb.process.coupling import Coupling, Paired
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP
from latentsb.process.times import TimeDistribution, Uniform, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Fraction
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Loss

__all__ = ["DDBM"]


@BRIDGES.register("ddbm")
class DDBM(DenoisingBridge):
    """Denoising diffusion bridge: a diffusion pinned to x0 and its partner x1, and the denoiser that undoes it.

        x_t = a x1 + b x0 + √c ε,   loss = w(t) |D(x_t, t, x1) − x0|²

    `D(x, t, x1) = E[x0 | x_t = x, x1]`. A solver that starts at x1 draws from `p(x0 | x1)`; `D(x1, 1, x1)` is its mean,
    in one call. The way from x0 to a given x1 is the pinned reference itself, with nothing to learn.

    Source: Zhou et al. 2024, Denoising diffusion bridge models, ICLR, Sec. 3 and 4.

    Args:
        ends: shapes and conditions; batches or a law bring x1.
        network: F of the preconditioning; it is given x1, label and attributes.
        coupling: which x1 goes with which x0; partners of the data by default.
        reference: the diffusion whose bridge is used.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided; x1 always
            stays.

    Raises:
        ArgumentError: if nothing brings x1, or the reference is noiseless or has none of the training times.
    """

    # At t = 1 itself the state carries no noise and sigma_eff is infinite; a moment earlier it is 80.
    t_max = 1 - 1e-4
    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        coupling: Coupling = Paired(),
        reference: ScalarReference = VP(),
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        if not ends.two_sided and (coupling.aligned or ends.x1 is None):
            raise ArgumentError("coupling", "a bridge to x1 needs data with two ends, such as `{name: paired, …}`")
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise; a noiseless one leaves nothing to denoise")
        self.ends, self.coupling, self.aligned = ends, coupling, coupling.aligned
        self.reference, self.preconditioning = reference, preconditioning
        self.times, self.weight, self.dropout = times, weight, dropout
        require_times(times, self)
        self.network = network(ends.spec, {"x1": ends.spec, **ends.cond})

    def marginal(self, t: Tensor) -> Marginal:
        """`N(a x1 + b x0, c)`, the reference pinned to both ends."""
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`D(x, t, x1)`, the network behind its preconditioning."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return denoised(self.network, scales, x, cond["x1"], cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`w(t) |D(x_t, t, x1) − x0|²`, mean over a sample, shape (B,)."""
        pair = self.coupling.pair(batch, self.ends, draws)
        cond = drop_conditions(pair.cond, self.dropout, draws).with_(x1=pair.x1)
        return denoising_loss(self, pair.x0, pair.x1, cond, draws)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The batch's x1, or a draw of its law, at t = 1; towards x1 the data at t = 0 on its way to that x1.

        Raises:
            DataError: if neither the batch nor a law brings x1.
        """
        x1 = batch.x1
        if x1 is None:
            if not isinstance(self.ends.x1, Sampled):
                raise DataError("this bridge leads to and from a given x1: give batches that bring one")
            x1 = self.ends.x1.sample(len(batch), draws, batch.cond).to(self.device)
        cond = batch.cond.with_(x1=x1)
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), cond)
        return State(x1, torch.ones((), dtype=torch.float64), cond)
