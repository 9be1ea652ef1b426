"""Diffusion bridge autoencoder: data and an endpoint decoded from its code, joined by a diffusion bridge."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, EncodingBridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.denoising import denoised, denoising_loss, require_times
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends, FittedGaussian
from latentsb.networks.base import Decoder, Encoder, Network
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

__all__ = ["DBAE", "soft_clamp"]

LIMIT = 5.0
"""Size beyond which the mean and the log of the spread of a stochastic code cannot go."""
FLOOR = 0.01
"""Smallest spread of a stochastic code; with the limit it bounds the rate to 8.22 bit per dimension."""


def soft_clamp(value: Tensor, limit: float = LIMIT) -> Tensor:
    """`limit tanh(value / limit)`: the identity near zero, within ±limit everywhere."""
    return limit * torch.tanh(value / limit)


@BRIDGES.register("dbae")
class DBAE(EncodingBridge):
    """Diffusion bridge autoencoder: x0 is coded into a vector z, z decoded into x1, and a bridge leads from x1 to x0.

    Training, with one loss for the encoder, the endpoint decoder and the denoiser:

        z = Enc(x0),   x1 = Dec(z),   x_t = a x1 + b x0 + √c ε,   loss = w(t) |D(x_t, t, x1, z) − x0|²

    A stochastic code is `z = μ + σ ε` with `(m, l) = Enc(x0)`, `μ = 5 tanh(m/5)`, `σ = exp(5 tanh(l/5)) + 0.01`.
    `D(x1, 1, x1, z)` estimates `E[x0 | z]` in one call; a solver draws from `p(x0 | z)`. New data needs new codes:
    until a learned prior exists they come from the Gaussian with the mean and full covariance of the training codes.

    Source: Kim et al. 2025, Diffusion bridge autoencoders for unsupervised representation learning, ICLR.

    Args:
        ends: shapes and conditions; x1 is made by the bridge itself.
        network: F of the preconditioning; it is given z, x1, label and attributes.
        encoder: Enc.
        decoder: Dec, from z to the shape of x0, unbounded.
        z_dim: length of the code.
        stochastic: whether the code carries noise, which bounds its rate.
        encodes_images: whether Enc sees the pixels in place of the latents.
        reference: the diffusion whose bridge is used.
        preconditioning: scales of the network's input and output.
        times: law of the training times.
        weight: w, on the squared error of x0.
        dropout: share of training rows whose label and attributes are hidden, so that samples can be guided; z and x1
            always stay.

    Raises:
        ArgumentError: if pixels are to be encoded and batches bring none, or if the reference is noiseless or has none
            of the training times.
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
        z_dim: Count = 64,
        stochastic: bool = False,
        encodes_images: bool = False,
        reference: ScalarReference = VP(),
        preconditioning: Preconditioning = Shifted(),
        times: TimeDistribution = Uniform(),
        weight: Weight = Unit(),
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        if encodes_images and ends.images is None:
            raise ArgumentError("encodes_images", "batches bring no pixels here; leave it false to encode the latents")
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise; a noiseless one leaves nothing to denoise")
        self.ends, self.z_dim, self.stochastic = ends, z_dim, stochastic
        self.needs_images = encodes_images
        self.reference, self.preconditioning = reference, preconditioning
        self.times, self.weight, self.dropout = times, weight, dropout
        require_times(times, self)
        seen = ends.images if encodes_images and ends.images is not None else ends.spec
        self.encoder = encoder(seen, 2 * z_dim if stochastic else z_dim)
        self.decoder = decoder(z_dim, ends.spec)
        self.network = network(ends.spec, {"z": Spec((z_dim,)), "x1": ends.spec, **ends.cond})
        self.codes = FittedGaussian(z_dim)

    def encode(self, x0: Tensor, draws: Draws | None = None, images: Tensor | None = None) -> Condition:
        """`z = Enc(x0)`, shape (B, Z); a stochastic code is drawn, or its mean without draws.

        Raises:
            CapabilityError: if the encoder sees pixels and none are given.
        """
        if self.needs_images and images is None:
            raise CapabilityError("this encoder sees pixels; give the images beside their latents")
        out: Tensor = self.encoder(images if self.needs_images and images is not None else x0)
        if not self.stochastic:
            return Condition({"z": out})
        m, log_sigma = out.chunk(2, dim=1)
        z = soft_clamp(m)
        if draws is not None:
            z = z + (soft_clamp(log_sigma).exp() + FLOOR) * draws.normal("code", z)
        return Condition({"z": z})

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
        """`w(t) |D(x_t, t, x1, z) − x0|²`, mean over a sample, shape (B,)."""
        x0 = batch.data
        z = self.encode(x0, draws, batch.images)["z"]
        cond = self.endpoint(drop_conditions(batch.cond, self.dropout, draws).with_(z=z))
        return denoising_loss(self, x0, cond["x1"], cond, draws)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """x1 at t = 1, decoded from the condition z, else the mean code of the batch's data, else a code of the prior.

        Towards x1 it is the data at t = 0 with the same conditions.

        Raises:
            CapabilityError: if a code is to come from the prior and none has been fitted.
        """
        cond = batch.cond
        if "z" not in cond:
            code = self.prior(len(batch), draws) if batch.x0 is None else self.encode(batch.x0, None, batch.images)
            cond = cond.with_(z=code["z"])
        cond = self.endpoint(cond)
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), cond)
        return State(cond["x1"], torch.ones((), dtype=torch.float64), cond)

    def prior(self, n: int, draws: Draws) -> Condition:
        """Codes of the fitted Gaussian.

        Raises:
            CapabilityError: before `fit`, which training does at its end.
        """
        if not self.codes.fitted:
            raise CapabilityError(
                "no prior over z has been fitted yet: train to the end of the stage, or give codes by encoding data"
            )
        return Condition({"z": self.codes.sample(n, draws.fork("prior")).to(self.device, self.ends.spec.dtype)})

    @property
    def prior_description(self) -> str:
        """What new codes are drawn from, for the reader of samples."""
        if not self.codes.fitted:
            return "no prior over z has been fitted yet"
        return f"z is drawn from the Gaussian fitted to {int(self.codes.count)} encodings; no prior over z was learned"

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Fit the Gaussian over z to a full pass of codes; stochastic codes are drawn, as the denoiser saw them."""
        was = self.training
        self.eval()
        self.codes.fit(self._codes(batches()))
        self.train(was)

    def _codes(self, batches: Iterable[Batch]) -> Iterable[Tensor]:
        for batch in batches:
            draws = Draws.step(0, "codes of the prior", batch.seen, batch.index)
            yield self.encode(batch.data, draws, batch.images)["z"]
