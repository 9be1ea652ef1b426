"""Diffusion autoencoder: a diffusion whose denoiser is told a code of the data."""

from __future__ import annotations

from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.channels import Channel, Exact
from latentsb.coding import CodingBridge
from latentsb.conditioning import drop_conditions
from latentsb.denoising import denoised, denoising_loss, require_noise, require_times
from latentsb.endpoints import Endpoint, EndpointBridge, Random
from latentsb.laws import Ends
from latentsb.networks.base import Encoder, Network
from latentsb.prior import Prior
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Preconditioning, Shifted
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP
from latentsb.process.times import TimeDistribution, Uniform, Unit, Weight
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

__all__ = ["DiffAE"]


@BRIDGES.register("diffae")
class DiffAE(EndpointBridge, CodingBridge):
    """Diffusion autoencoder: x0 is coded into a vector z, and noise x1 leads back to x0 under the eyes of z.

    Training, with one loss for the encoder and the denoiser:

        z ~ q(z | x0) of Enc and its channel,   x_t = α x0 + α ρ ε
        loss = w(t) |D(x_t, t, z) − x0|² + β rate,   each per number of x0

    What z leaves out of x0 is in x1, which no decoder makes: it is drawn, or inferred from the data by the inverse of
    decoding, or left at zero. Decoded from noise, z alone gives a draw of `p(x0 | z)`; `D(x1, 1, z)` estimates
    `E[x0 | z]` in one call, up to the signal-to-noise ratio that is left at t = 1, here 4e-5. Where x1 is to be
    inferred and there is no data (new samples, whose codes come from the prior) it is drawn.

    Published are `preconditioning: noise` (the network predicts ε, and the loss is `|F − ε|²` at uniform times) and
    `endpoint: inferred`. An estimate of x0 by ε at t = 1 multiplies the network's error by 150, which `shifted` does
    not.

    Source: Preechakul et al. 2022, Diffusion autoencoders: toward a meaningful and decodable representation, CVPR; the
    endpoints `zero` and `decoded` and the charged rate are ours.

    Args:
        ends: shapes and conditions; x1 is noise.
        network: F of the preconditioning; it is given z, label and attributes.
        encoder: Enc.
        prior: law of new codes, the Gaussian of the training codes if None.
        z_dim: length of the code.
        channel: between Enc and z; a noisy one bounds what z can carry, and may charge for it.
        encodes_images: whether Enc sees the pixels in place of the latents.
        endpoint: how x1 is found when a code is decoded; of no effect in training.
        reference: the diffusion; the default is the continuous form of 1000 steps with β from 1e-4 to 0.02.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided; z always
            stays.

    Raises:
        ArgumentError: if pixels are to be encoded and batches bring none, or if the reference leaves more than a
            hundredth of the data's variance at t = 1 or has none of the training times.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        encoder: Build[Encoder],
        prior: Build[Prior] | None = None,
        z_dim: Count = 64,
        channel: Channel = Exact(),
        encodes_images: bool = False,
        endpoint: Endpoint = Random(),
        reference: ScalarReference = VP(beta_d=19.9),
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__(ends, encoder, prior, z_dim=z_dim, channel=channel, encodes_images=encodes_images)
        require_noise(reference)
        self.choose(endpoint)
        self.reference, self.preconditioning = reference, preconditioning
        self.times, self.weight, self.dropout = times, weight, dropout
        require_times(times, self)
        self.network = network(ends.spec, {"z": Spec((z_dim,)), **ends.cond})

    def marginal(self, t: Tensor) -> Marginal:
        """`N(α x0, α² ρ²)`, the law of x_t given x0."""
        return self.reference.noised(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`D(x, t, z)`, the network behind its preconditioning."""
        scales = self.preconditioning.coefficients(self.marginal(t), t)
        return denoised(self.network, scales, x, None, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The loss of the class, per number of x0, shape (B,)."""
        x0, law = batch.data, self.code_law(batch.data, batch.images)
        cond = drop_conditions(batch.cond, self.dropout, draws).with_(z=law.draw(draws))
        return self.charged(denoising_loss(self, x0, None, cond, draws), law, batch, draws)
