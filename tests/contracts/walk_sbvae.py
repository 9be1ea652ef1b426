"""SB-VAE: prior loss and drift matching together, then the encoder is frozen and only the decoder drift learns."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import Bridge, End, State
from latentsb.errors import CapabilityError
from latentsb.laws import Density, Ends, Sampled
from latentsb.networks.base import Network
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Freeze, Loss, OnePass, Phase, Schedule


class SBVAE(Bridge):
    def __init__(
        self,
        ends: Ends,
        *,
        reference: ScalarReference,
        network: Build[Network],
        steps: int = 16,
        freeze: int = 1_000_000,
    ) -> None:
        super().__init__()
        if not isinstance(ends.x1, Density):
            raise CapabilityError("sbvae needs an x1 whose log-density is known")
        self.ends, self.prior, self.reference, self.steps, self.freeze = ends, ends.x1, reference, steps, freeze
        self.encoder_drift = network(ends.spec, {}, ends.spec)
        self.decoder_drift = network(ends.spec, {}, ends.spec)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        out: Tensor = (self.decoder_drift if towards == "x0" else self.encoder_drift)(x, t, cond)
        return out

    def diffusion(self, t: Tensor) -> Tensor:
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            return State(batch.data, torch.tensor(0.0, dtype=torch.float64), batch.cond)
        assert isinstance(self.ends.x1, Sampled)
        x1 = self.ends.x1.sample(len(batch), draws).to(self.device)
        return State(x1, torch.tensor(1.0, dtype=torch.float64), batch.cond)

    def _chain(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """End of the encoder's chain and the drift-matching error along it."""
        x, matching = batch.data, batch.data.new_zeros(len(batch))
        h = 1 / self.steps
        for k in range(self.steps):
            t = torch.tensor(k * h, dtype=torch.float64)
            g = expand_as(self.diffusion(t), x)
            noise = draws.fork(f"step {k}").normal("noise", x)
            later = x + h * self.drift(x, t, batch.cond, "x1") + h**0.5 * g * noise
            error = (x - later - h * self.drift(later, t + h, batch.cond, "x0")) / (h**0.5 * g)
            x, matching = later, matching + error.square().flatten(1).sum(1) / 2
        return x, matching

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x1, matching = self._chain(batch, draws)
        prior = -self.prior.log_prob(x1)
        return Loss(prior + matching, {"prior": prior, "matching": matching})

    def decoder_loss(self, batch: Batch, draws: Draws) -> Loss:
        return Loss(self._chain(batch, draws)[1])

    def schedule(self, part: str = "") -> Schedule:
        if part:
            return super().schedule(part)
        joint = Phase("joint", self.loss)
        alone = Phase("decoder", self.decoder_loss, trains=("decoder_drift",))
        return Freeze(after=self.freeze, first=OnePass(joint), then=OnePass(alone))
