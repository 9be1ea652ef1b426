"""What bridges that learn a code share: the encoder, its channel, and the prior that new codes come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, End, State
from latentsb.channels import Channel, CodeLaw
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Encoder
from latentsb.prior import GaussianPrior, Prior
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss, OnePass, Phase, Schedule

__all__ = ["CodingBridge"]


class CodingBridge(EncodingBridge):
    """A bridge whose code is an encoder's output behind a channel; what x1 is made from it is the bridge's own.

    Args:
        ends: shapes and conditions.
        encoder: Enc, from data to the numbers that the channel asks for.
        prior: law of new codes; the fitted Gaussian if None.
        z_dim: length of the code.
        channel: from Enc's output to the law of z.
        encodes_images: whether Enc sees the pixels in place of the latents.

    Attributes:
        fixed: names of submodules that do not learn.

    Raises:
        ArgumentError: if pixels are to be encoded and batches bring none.
    """

    prior: Prior
    fixed: tuple[str, ...] = ()

    def __init__(
        self,
        ends: Ends,
        encoder: Build[Encoder],
        prior: Build[Prior] | None,
        *,
        z_dim: int,
        channel: Channel,
        encodes_images: bool,
    ) -> None:
        super().__init__()
        if encodes_images and ends.images is None:
            raise ArgumentError("encodes_images", "batches bring no pixels here; leave it false to encode the latents")
        self.ends, self.z_dim, self.channel, self.needs_images = ends, z_dim, channel, encodes_images
        seen = ends.images if encodes_images and ends.images is not None else ends.spec
        self.encoder = encoder(seen, channel.outputs(z_dim))
        code = Spec((z_dim,), ends.spec.dtype)
        self.prior = GaussianPrior(code, dict(ends.cond)) if prior is None else prior(code, dict(ends.cond))

    def code_law(self, x0: Tensor, images: Tensor | None = None) -> CodeLaw:
        """Law of z given the data.

        Raises:
            CapabilityError: if the encoder sees pixels and none are given.
        """
        if self.needs_images and images is None:
            raise CapabilityError("this encoder sees pixels; give the images beside their latents")
        return self.channel.law(self.encoder(images if self.needs_images and images is not None else x0))

    def encode(self, x0: Tensor, draws: Draws | None = None, images: Tensor | None = None) -> Condition:
        """Code of shape (B, Z); that of a noisy channel is drawn, or its mean without draws.

        Raises:
            CapabilityError: if the encoder sees pixels and none are given.
        """
        return Condition({"z": self.code_law(x0, images).draw(draws)})

    def schedule(self, part: str = "") -> Schedule:
        """All but the prior and what stays fixed; of a part nothing."""
        if part:
            return super().schedule(part)
        trains = tuple(name for name, _ in self.named_children() if name not in ("prior", *self.fixed))
        return OnePass(Phase("all", self.loss, trains=trains))

    def charged(self, loss: Loss, law: CodeLaw, x0: Tensor) -> Loss:
        """A loss per number of x0, and what the channel charges for the rate, in nats per number of x0.

        The rate itself is logged in bits per sample wherever the channel is noisy.
        """
        if not self.channel.noisy:
            return loss
        terms = {**loss.terms, "rate_bits": law.rate().detach().sum(1) / math.log(2)}
        charge = self.channel.charge(law)
        total = loss.total if charge is None else loss.total + charge / x0[0].numel()
        return Loss(total, terms)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """x1 at t = 1, made from the condition z, else the mean code of the batch's data, else a code of the prior.

        Towards x1 it is the data at t = 0 with the same conditions.

        Raises:
            CapabilityError: if a code is to come from the prior and it has not been fitted.
        """
        cond = batch.cond
        if "z" not in cond:
            if batch.x0 is None:
                code = self.new_codes(cond, draws)
            else:
                code = self.encode(batch.x0, None, batch.images)
            cond = cond.with_(z=code["z"])
        cond = self.endpoint(cond, batch.x0, draws)
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), cond)
        return State(cond["x1"], torch.ones((), dtype=torch.float64), cond)

    def new_codes(self, cond: Condition, draws: Draws) -> Condition:
        """Codes of the prior, one per row of the draws.

        Raises:
            CapabilityError: before `fit`, which training does at its end.
        """
        return Condition({"z": self.prior.sample(cond, draws.fork("prior"))})

    @property
    def prior_description(self) -> str:
        """What new codes are drawn from, for the reader of samples."""
        return self.prior.description

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Fit the prior's closed form to a full pass of codes; noisy ones are drawn, as the denoiser saw them."""
        was = self.training
        self.eval()
        self.prior.fit(self._codes(batches()))
        self.train(was)

    def _codes(self, batches: Iterable[Batch]) -> Iterable[Tensor]:
        for batch in batches:
            draws = Draws.step(0, "codes of the prior", batch.seen, batch.index)
            yield self.encode(batch.data, draws, batch.images)["z"]
