"""Latent Schrödinger bridge diffusion: from the latents' own law, blurred by a Gaussian, back to that law."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, DenoisingBridge, End, State
from latentsb.denoising import denoised, denoising_loss, require_times
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.origins import GaussianOrigin, Origin
from latentsb.process.distances import Distance, Squared
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.references import Brownian
from latentsb.process.times import LogNormalSigma, TimeDistribution, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import OpenFraction, Positive
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss

__all__ = ["LSBDM"]

GAUSSIAN = cast("Build[Origin]", partial(GaussianOrigin))


@BRIDGES.register("lsbdm")
class LSBDM(DenoisingBridge):
    """Latent Schrödinger bridge diffusion: from `p * N(0, σ²)` to p over Brownian motion, in finite time.

    Of all processes that join `q_σ = p * N(0, σ² I)` to the law p of the latents, the one nearest to `dZ = σ dW` is
    Brownian motion out of p, reversed: `X_t = X_0 + σ √t ξ` with X_0 of p at t = 0, and towards x0

        b_b = σ² ∇log q_{σ√t}(x) = (E[X_0 | X_t = x] − x)/t.

    The denoiser learns by denoising score matching, without simulation; its noise level is `σ √t`. The paper's time is
    `1 − t`, and its early stopping T is `horizon`: the denoiser is never asked below `t = 1 − T`.

    Source: Jiao et al. 2024, Latent Schrödinger bridge diffusion model for generative learning (arXiv 2404.13309);
    Wang et al. 2021, Deep generative learning via Schrödinger bridge, stage 2.

    Args:
        ends: shapes.
        network: F of the preconditioning.
        sigma: σ, in units of the latents; the largest noise level.
        horizon: T, in (0, 1).
        start: stands for p in the start `p * N(0, σ²)`: `gaussian` or `empirical`.
        preconditioning: scales of the network's input and output; `noise` is the published form.
        times: law of the training times; `uniform` is the published one.
        weight: on the squared error of x0.
        distance: between what the network predicts and what it should; `absolute` in the place of the square.

    Raises:
        ArgumentError: if conditions are asked for, each of which would need a start of its own, or no training time is
            in `[1 − T, 1]`.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        sigma: Positive = 3.0,
        horizon: OpenFraction = 1 - 1e-6,
        start: Build[Origin] = GAUSSIAN,
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = LogNormalSigma(mean=-0.5),
        weight: Weight = Unit(),
        distance: Distance = Squared(),
    ) -> None:
        super().__init__()
        if ends.cond:
            told = f"'lsbdm' starts from the law of all latents and is given none, found {', '.join(ends.cond)}"
            raise ArgumentError("network", f"{told}; 'score' takes conditions")
        self.ends, self.reference, self.t_min = ends, Brownian(sigma=sigma), 1 - horizon
        self.preconditioning, self.times = preconditioning, times
        self.weight, self.distance = weight, distance
        require_times(times, self)
        self.network = network(ends.spec, ends.cond)
        self.origin = start(ends.spec)

    def marginal(self, t: Tensor) -> Marginal:
        """`N(x0, σ² t)`, the law of x_t given x0."""
        return self.reference.noised(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[X_0 | X_t = x]`, the network behind its preconditioning."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return denoised(self.network, scales, x, None, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`w(t) |D(x_t, t) − x0|²`, mean over a sample, shape (B,)."""
        return denoising_loss(self, batch.data, None, batch.cond, draws, self.distance)

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Fit the start to the latents."""
        self.origin.fit(batches)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """A draw of the origin and σ ξ at t = 1; towards x1 the data at t = 0.

        Raises:
            CapabilityError: towards x0, before the origin is fitted.
        """
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)
        t = torch.ones((), dtype=torch.float64)
        x0 = self.origin.sample(len(batch), draws).to(self.device)
        noise = draws.normal("x1", x0)
        return State(x0 + expand_as(self.marginal(t).std, x0) * noise, t, batch.cond)
