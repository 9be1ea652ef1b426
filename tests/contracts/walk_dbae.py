"""DBAE in latents: a learned endpoint, and a prior over z in a stage of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch, Condition, Spec, expand_as
from latentsb.trainable import Loss, OnePass, Phase, Schedule


class DBAE(EncodingBridge):
    def __init__(
        self,
        ends: Ends,
        *,
        reference: ScalarReference,
        network: Build[Network],
        encoder: Build[Encoder],
        decoder: Build[Decoder],
        prior: Build[Network],
        z_dim: int = 512,
    ) -> None:
        super().__init__()
        self.ends, self.reference, self.z_dim = ends, reference, z_dim
        self.needs_images = ends.images is not None
        code = Spec((z_dim,))
        self.encoder = encoder(ends.images or ends.spec, z_dim)
        self.decoder = decoder(z_dim, ends.spec)
        self.network = network(ends.spec, {"z": code, "x1": ends.spec}, ends.spec)
        self.code_network = prior(code, {}, code)

    def encode(self, x0: Tensor, draws: Draws | None = None, images: Tensor | None = None) -> Condition:
        z: Tensor = self.encoder(x0 if images is None else images)
        return Condition({"z": z})

    def endpoint(self, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Condition:
        return cond.with_(x1=self.decoder(cond["z"]))

    def new_codes(self, cond: Condition, draws: Draws) -> Condition:
        z = draws.normal("z", torch.zeros(draws.size, self.z_dim, device=self.device))
        for k in reversed(range(1, 11)):
            z = z - 0.1 * self.code_network(z, torch.tensor(k / 10), Condition())
        return Condition({"z": z})

    def marginal(self, t: Tensor) -> Marginal:
        return self.reference.pinned(t)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        y = self.marginal(t).to_y(x, cond["x1"])
        out: Tensor = self.network(y, t, cond)
        return out

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            raise CapabilityError("DBAE runs towards x0")
        codes = batch.cond if "z" in batch.cond else self.new_codes(batch.cond, draws)
        cond = self.endpoint(codes, batch.x0, draws)
        return State(cond["x1"], torch.tensor(1.0, dtype=torch.float64), cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x0 = batch.data
        cond = self.endpoint(self.encode(x0, draws, batch.images), x0, draws)
        t = draws.uniform("t")
        x = self.marginal(t).sample(x0, cond["x1"], draws.normal("noise", x0))
        error = (self.denoise(x, t, cond) - x0).square().flatten(1).mean(1)
        return Loss(error, {"reconstruction": error})

    def prior_loss(self, batch: Batch, draws: Draws) -> Loss:
        with torch.no_grad():
            z = self.encode(batch.data, None, batch.images)["z"]
        t, noise = draws.uniform("t"), draws.normal("noise", z)
        x = z + expand_as(t, z) * (noise - z)
        return Loss((self.code_network(x, t, Condition()) - (noise - z)).square().mean(1))

    def schedule(self, part: str = "") -> Schedule:
        if part == "prior":
            return OnePass(Phase("prior", self.prior_loss, trains=("code_network",)))
        if part:
            return super().schedule(part)
        return OnePass(Phase("bridge", self.loss, trains=("encoder", "decoder", "network")))
