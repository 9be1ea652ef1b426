"""Diffusion bridge autoencoder: data and an endpoint decoded from its code, joined by a diffusion bridge."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.channels import Channel, Exact
from latentsb.coding import CodingBridge
from latentsb.conditioning import drop_conditions
from latentsb.denoising import denoised, denoising_loss, require_times
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.prior import Prior
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP
from latentsb.process.times import TimeDistribution, Uniform, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, NonNegative
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

__all__ = ["DBAE"]


@BRIDGES.register("dbae")
class DBAE(CodingBridge):
    """Diffusion bridge autoencoder: x0 is coded into a vector z, z decoded into x1, and a bridge leads from x1 to x0.

    Training, with one loss for the encoder, the endpoint decoder and the denoiser:

        z ~ q(z | x0) of Enc and its channel,   x1 = Dec(z),   x_t = a x1 + b x0 + √c ε
        loss = w(t) |D(x_t, t, x1, z) − x0|² + λ |x1 − x0|² + β rate,   each per number of x0

    In the coordinates `y = (x_t − a x1)/b = x0 + sigma_eff ε` the endpoint drops out: the best D and the least loss of
    the first term do not depend on Dec, which therefore means nothing by itself before `λ > 0` makes it the mean of
    x0 given z. `D(x1, 1, x1, z)` estimates `E[x0 | z]` in one call; a solver draws from `p(x0 | z)`. New data needs
    new codes, which come from the prior.

    Source: Kim et al. 2025, Diffusion bridge autoencoders for unsupervised representation learning, ICLR; λ and the
    charged rate are ours.

    Args:
        ends: shapes and conditions; x1 is made by the bridge itself.
        network: F of the preconditioning; it is given z, x1, label and attributes.
        encoder: Enc.
        decoder: Dec, from z to the shape of x0, unbounded.
        prior: law of new codes, the Gaussian of the training codes if None.
        z_dim: length of the code.
        channel: between Enc and z; a noisy one bounds what z can carry, and may charge for it.
        encodes_images: whether Enc sees the pixels in place of the latents.
        endpoint_weight: λ; 0 as published.
        embeds_z: whether the network is told z beside the time.
        sees_endpoint: whether the network sees x1 beside the state.
        trains_decoder: whether Dec learns; else it stays the random map that it was at first.
        reference: the diffusion whose bridge is used.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided; z and x1
            always stay.

    Raises:
        ArgumentError: if pixels are to be encoded and batches bring none, or if the reference is noiseless or has none
            of the training times, or if a part is to learn that the loss does not reach.
    """

    # At t = 1 itself the state carries no noise and sigma_eff is infinite; a moment earlier it is 80.
    t_max = 1 - 1e-4

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        encoder: Build[Encoder],
        decoder: Build[Decoder],
        prior: Build[Prior] | None = None,
        z_dim: Count = 64,
        channel: Channel = Exact(),
        encodes_images: bool = False,
        endpoint_weight: NonNegative = 0.0,
        embeds_z: bool = True,
        sees_endpoint: bool = True,
        trains_decoder: bool = True,
        reference: ScalarReference = VP(),
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__(ends, encoder, prior, z_dim=z_dim, channel=channel, encodes_images=encodes_images)
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise; a noiseless one leaves nothing to denoise")
        if endpoint_weight and not trains_decoder:
            raise ArgumentError("endpoint_weight", "has no effect on a decoder that does not learn")
        half = torch.tensor(0.5, dtype=torch.float64)
        marginal = reference.pinned(half)
        subtracted = bool(preconditioning.coefficients(marginal, half).shift == marginal.a)
        if subtracted and not sees_endpoint and not endpoint_weight:
            if not embeds_z:
                raise ArgumentError("embeds_z", "must be true: nothing else tells the network of the code")
            if trains_decoder:
                raise ArgumentError(
                    "trains_decoder",
                    "must be false: x1 is subtracted from the state and unseen, so no loss reaches Dec",
                )
        self.endpoint_weight = endpoint_weight
        self.fixed = () if trains_decoder else ("decoder",)
        self.reference, self.preconditioning = reference, preconditioning
        self.times, self.weight, self.dropout = times, weight, dropout
        require_times(times, self)
        self.decoder = decoder(z_dim, ends.spec)
        code = {"z": Spec((z_dim,))} if embeds_z else {}
        beside = {"x1": ends.spec} if sees_endpoint else {}
        self.network = network(ends.spec, {**code, **beside, **ends.cond})

    def endpoint(self, cond: Condition, x0: Tensor | None = None, draws: Draws | None = None) -> Condition:
        """`x1 = Dec(z)` beside the conditions; neither the data nor draws play a part."""
        return cond.with_(x1=self.decoder(cond["z"]))

    def marginal(self, t: Tensor) -> Marginal:
        """`N(a x1 + b x0, c)`, the reference pinned to both ends."""
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`D(x, t, x1, z)`, the network behind its preconditioning."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return denoised(self.network, scales, x, cond["x1"], cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of the class, per number of x0, shape (B,)."""
        x0, law = batch.data, self.code_law(batch.data, batch.images)
        known = drop_conditions(batch.cond, self.dropout, draws)
        cond = self.endpoint(known.with_(z=law.draw(draws)))
        found = denoising_loss(self, x0, cond["x1"], cond, draws)
        if self.endpoint_weight:
            error = (cond["x1"] - x0).square().flatten(1).mean(1)
            found = Loss(found.total + self.endpoint_weight * error, {"denoising": found.total, "endpoint": error})
        return self.charged(found, law, batch, draws)
