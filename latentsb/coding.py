"""What bridges that learn a code share: the encoder, its channel, and the prior that new codes come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, End, State
from latentsb.channels import Channel, CodeLaw
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Encoder
from latentsb.prior import PRIORS, GaussianPrior, LearnedPrior, Prior
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Alternate, Loss, OnePass, Phase, Round, Schedule

__all__ = ["CodingBridge"]

LOOKED_AT = 4096
"""Codes whose statistics normalise a prior that is trained beside the encoder; their errors are a hundredth."""


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
        ArgumentError: if pixels are to be encoded and batches bring none, or the prior's `weight` is above 0 and codes
            carry no noise.
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
        if self.encoder.sees_images and not encodes_images:
            raise ArgumentError("encodes_images", "must be true for a pretrained encoder, which knows images alone")
        code = Spec((z_dim,), ends.spec.dtype)
        self.prior = GaussianPrior(code, dict(ends.cond)) if prior is None else prior(code, dict(ends.cond))
        if isinstance(self.prior, LearnedPrior) and self.prior.weight and not channel.noisy:
            raise ArgumentError(
                "prior", "its weight needs a noisy channel: KL(q(z|x0) ‖ p(z)) of a code without noise is infinite"
            )
        self._table: Mapping[str, Tensor] | None = None

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
        """All but what stays fixed and a prior that waits for its own stage; of the part `prior` that prior alone.

        Raises:
            CapabilityError: of another part, or a prior without weights.
        """
        learned = isinstance(self.prior, LearnedPrior)
        if part == "prior" and learned:
            return OnePass(Phase("all", self.prior_loss, trains=("prior.",)))
        if part == "prior":
            raise CapabilityError(
                f"the prior '{PRIORS.word_of(self.prior)}' is fitted when the bridge's stage ends and has nothing to "
                "train; a prior with weights is bridge.prior: {name: bridge, …}"
            )
        if part:
            return super().schedule(part)
        rest = self.fixed if self._joint is not None else ("prior", *self.fixed)
        phase = Phase("all", self.loss, trains=tuple(name for name, _ in self.named_children() if name not in rest))
        return OnePass(phase) if self._joint is None else Alternate((phase,), images=self._joint.renew)

    @property
    def _joint(self) -> LearnedPrior | None:
        """The prior, if it is trained beside the encoder."""
        return self.prior if isinstance(self.prior, LearnedPrior) and self.prior.joint else None

    def renew(self, round: Round) -> None:
        """Look at the codes of the data: all of them for the prior's own stage, some for one trained beside them.

        In its own stage the encoder stands still, and the codes that the prior is trained on are kept.
        """
        if round.part == "prior":
            self._table = round.simulate("codes", round.size, self._laws)
        if isinstance(self.prior, LearnedPrior) and not round.resumed and (round.part == "prior" or self.prior.joint):
            whole = round.part == "prior" and self._table is not None
            rows = min(round.size, LOOKED_AT)
            table = self._table if whole else round.simulate("statistics", rows, self._laws)
            assert table is not None
            self.prior.normalise(*_moments(table))

    def _laws(self, batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
        """Laws of the codes of a batch, and their conditions."""
        law = self.code_law(batch.data, batch.images)
        sigma = {} if law.sigma is None else {"sigma": law.sigma}
        return {"mean": law.mean, **sigma, **{f"cond.{name}": value for name, value in batch.cond.values.items()}}

    def prior_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The prior's own loss, on codes that are drawn anew from laws that were encoded once.

        Which of them is a draw of each row, so batches do not matter; in evaluation it is the batch that is encoded.
        """
        assert isinstance(self.prior, LearnedPrior)
        with torch.no_grad():
            if self._table is None or not self.training:
                law, cond = self.code_law(batch.data, batch.images), batch.cond
            else:
                rows = draws.integers("code of the table", len(self._table["mean"]))
                found = {name: value[rows].to(self.device) for name, value in self._table.items()}
                law = CodeLaw(found["mean"], found.get("sigma"))
                named = ((name.partition("."), value) for name, value in found.items())
                cond = Condition({name: value for (_, dot, name), value in named if dot})
            z = law.draw(draws)
        return self.prior.loss(z, cond, draws.fork("prior"))

    def charged(self, loss: Loss, law: CodeLaw, batch: Batch, draws: Draws) -> Loss:
        """A loss per number of x0, with what the code costs: its channel's charge, its prior's loss and `L_PR`.

        The channel charges in nats per number of x0, and so does `weight L_PR`, `L_PR = −ln p(z) − H(q(z | x0))`, an
        unbiased estimate of `KL(q(z | x0) ‖ p)` or more. A prior that is trained beside the encoder adds its own loss,
        which does not reach the encoder. The rate of a noisy channel is logged in bits per sample.

        Args:
            loss: what the code does for x0.
            law: of the code.
            batch: which the code is of.
            draws: those that the code was drawn with.
        """
        total, terms, numbers = loss.total, dict(loss.terms), batch.data[0].numel()
        if self.channel.noisy:
            terms["rate_bits"] = law.rate().detach().sum(1) / math.log(2)
            charge = self.channel.charge(law)
            total = total if charge is None else total + charge / numbers
        prior = self._joint
        if prior is not None:
            z = law.draw(draws)  # the same name gives the same code
            own = prior.loss(z.detach(), batch.cond, draws.fork("prior"))
            total, terms["prior"] = total + own.total, own.total
            if prior.weight:
                nats = prior.nats(z, batch.cond, draws.fork("prior bound")) - law.entropy()
                total = total + prior.weight * nats / numbers
                terms |= {"prior_nats": nats.detach(), "prior_bits": nats.detach() / math.log(2)}
        return Loss(total, terms)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """x1 at t = 1, made from the condition z, else the mean code of the batch's data, else a code of the prior.

        Towards x1 it is the data at t = 0 with the same conditions, x1 among them where the bridge is pinned to it.

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
        if towards == "x0" or self.pinned:
            cond = self.endpoint(cond, batch.x0, draws)
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), cond)
        return State(cond["x1"], torch.ones((), dtype=torch.float64), cond)

    def new_codes(self, cond: Condition, draws: Draws) -> Condition:
        """Codes of the prior, one per row of the draws.

        Raises:
            CapabilityError: before the prior is fitted or trained.
        """
        return Condition({"z": self.prior.sample(cond, draws.fork("prior"))})

    @property
    def prior_description(self) -> str:
        """What new codes are drawn from, for the reader of samples."""
        return self.prior.description

    @property
    def awaits_prior(self) -> bool:
        """Whether new codes have to wait for a stage that trains the prior."""
        return isinstance(self.prior, LearnedPrior) and not self.prior.ready

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


def _moments(table: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean and standard deviation of codes of these laws, float64, and how many there are."""
    mean = table["mean"].double()
    variance = mean.var(0, correction=0)
    if "sigma" in table:
        variance = variance + table["sigma"].double().square().mean(0)
    return mean.mean(0), variance.sqrt(), len(mean)
