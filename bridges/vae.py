"""Variational and plain autoencoders of vector codes, as bridges without a bridge: baselines for those with one."""

from __future__ import annotations

from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.channels import Channel, Clamped
from latentsb.coding import CodingBridge
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder
from latentsb.prior import Prior
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Loss

__all__ = ["VAE"]


@BRIDGES.register("vae")
class VAE(CodingBridge):
    """Variational autoencoder of a vector code: `x1 = Dec(z)` is itself the estimate of x0, and no network refines it.

        z ~ q(z | x0) of Enc and its channel,      loss = |Dec(z) − x0|² + β rate,   each per number of x0

    The denoiser ignores its state, `D(x, t, x1, z) = x1`, so that a draw and the mean are one. With a Gaussian decoder
    of variance s² the negative evidence bound per number of x0 is this loss over `2 s²`, up to a constant, at
    `β = 2 s²`; an `exact` channel makes a plain autoencoder.

    Source: Kingma and Welling 2014, Auto-encoding variational Bayes, Eq. 10; Higgins et al. 2017, beta-VAE, Eq. 4.

    Args:
        ends: shapes and conditions; x1 is made by the bridge itself.
        encoder: Enc.
        decoder: Dec, from z to the shape of x0.
        prior: law of new codes, the Gaussian of the training codes if None.
        z_dim: length of the code.
        channel: between Enc and z; its `beta` is the β of the loss.
        encodes_images: whether Enc sees the pixels in place of the latents.

    Raises:
        ArgumentError: if pixels are to be encoded and batches bring none.
    """

    # The process between x1 and x0 plays no part; any one lets the solvers of bridges run.
    reference: ScalarReference = VP()
    t_max = 1 - 1e-4

    def __init__(
        self,
        ends: Ends,
        *,
        encoder: Build[Encoder],
        decoder: Build[Decoder],
        prior: Build[Prior] | None = None,
        z_dim: Count = 64,
        channel: Channel = Clamped(beta=0.01),
        encodes_images: bool = False,
    ) -> None:
        super().__init__(ends, encoder, prior, z_dim=z_dim, channel=channel, encodes_images=encodes_images)
        self.decoder = decoder(z_dim, ends.spec)

    def endpoint(self, cond: Condition, x0: Tensor | None = None, draws: Draws | None = None) -> Condition:
        """`x1 = Dec(z)` beside the conditions; neither the data nor draws play a part."""
        return cond.with_(x1=self.decoder(cond["z"]))

    def marginal(self, t: Tensor) -> Marginal:
        """`N(a x1 + b x0, c)`, the reference pinned to both ends."""
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x1, whatever the state."""
        return cond["x1"]

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of the class, per number of x0, shape (B,)."""
        x0, law = batch.data, self.code_law(batch.data, batch.images)
        error = (self.decoder(law.draw(draws)) - x0).square().flatten(1).mean(1)
        return self.charged(Loss(error, {"reconstruction": error}), law, batch, draws)
