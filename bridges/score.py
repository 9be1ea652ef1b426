"""Denoising score matching: data dissolved in noise by a VP or VE reference, and the denoiser that brings it back."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, DenoisingBridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.denoising import denoised, denoising_loss, require_noise, require_times
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.distances import Distance, Squared
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VE
from latentsb.process.times import LogNormalSigma, TimeDistribution, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Fraction
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Loss

__all__ = ["Score"]


@BRIDGES.register("score")
class Score(DenoisingBridge):
    """Denoising score matching: the time reversal of a diffusion that dissolves data in noise.

    `X_t | x0 ~ N(α x0, α² ρ²)`; the network, behind its preconditioning, learns `D(x, t) = E[x0 | X_t = x]` by the loss
    `w(t) |D − x0|²`, and the score is `(α D − x)/(α² ρ²)`. In units of the signal, `y = x/α = x0 + ρ ε`, this is EDM.
    A trajectory starts at `N(0, α_1² ρ²_1)`, which leaves out the data's own share `α_1²` of the variance: one part in
    ρ²_1.

    Source: Song et al. 2021, Score-based generative modeling through SDEs, Eq. 7; Karras et al. 2022, EDM, Sec. 5.

    Args:
        ends: shapes and conditions.
        network: F of the preconditioning.
        reference: the diffusion; use `{name: vp, beta_d: 19.9}` for the variance-preserving one.
        preconditioning: scales of the network's input and output.
        times: law of the training times; the default is EDM's for data of unit variance.
        weight: w, on the squared error of x0.
        distance: between what the network predicts and what it should; `absolute` in the place of the square.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided.

    Raises:
        ArgumentError: if the reference leaves more than a hundredth of the data's variance at t = 1, where a
            trajectory must start from noise alone, or has none of the training times.
    """

    t_min = 1e-5

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = VE(),
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = LogNormalSigma(mean=-0.5),
        weight: Weight = Unit(),
        distance: Distance = Squared(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        require_noise(reference)
        self.ends, self.reference, self.preconditioning = ends, reference, preconditioning
        self.times, self.weight, self.distance, self.dropout = times, weight, distance, dropout
        require_times(times, self)
        self.network = network(ends.spec, ends.cond)

    def marginal(self, t: Tensor) -> Marginal:
        """`N(α x0, α² ρ²)`, the law of x_t given x0."""
        return self.reference.noised(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`D(x, t)`, the network behind its preconditioning."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return denoised(self.network, scales, x, None, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`w(t) |D(x_t, t) − x0|²`, mean over a sample, shape (B,)."""
        cond = drop_conditions(batch.cond, self.dropout, draws)
        return denoising_loss(self, batch.data, None, cond, draws, self.distance)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """Noise `N(0, α_1² ρ²_1)` at t = 1; towards x1 the data at t = 0."""
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)
        t = torch.ones((), dtype=torch.float64)
        noise = draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        return State(self.marginal(t).sample(torch.zeros_like(noise), None, noise), t, batch.cond)
