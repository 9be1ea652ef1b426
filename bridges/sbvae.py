"""SB-VAE: an encoder SDE to a prior and a decoder SDE back, both trained by a bound on the likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.bridges._controlled import Controlled, Paths
from latentsb.divergence import Divergence, Rademacher, divergence
from latentsb.freezing import FreezeRule, Plateau
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, NonNegative, Positive
from latentsb.registry import Build, Registry
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Alternate, Joint, Loss, Phase, Round, Schedule

__all__ = ["FORMS", "SBVAE", "Chain", "Form", "PathIntegral"]


class Form(ABC):
    """A computable form of the drift matching; a frozen dataclass."""

    @abstractmethod
    def matching(self, bridge: SBVAE, paths: Paths, cond: Condition, draws: Draws) -> Tensor:
        """Drift matching and minus the entropy of x0, in nats, shape (B,): with `−ln π(x1)` a bound on `−ln p(x0)`.

        Args:
            bridge: gives the controls and the reference.
            paths: of the encoder, with its controls at the first N nodes.
            cond: of the rows.
            draws: of the rows.
        """


FORMS: Registry[Form] = Registry("loss_form", Form)


@FORMS.register("chain")
@dataclass(frozen=True, kw_only=True)
class Chain(Form):
    """KL of the two Euler–Maruyama chains, without any divergence: exactly the bound of the discretised sampler.

    With `v = g²(t_{k+1})`, `w = g²(t_k)` and the decoder's drift s in forward time

        Σ_k |x_k − x_{k+1} + h s(x_{k+1}, t_{k+1})|² / (2 v h) − d/2 + d/2 ln(v/w)

    and, the square multiplied out, up to terms of mean zero,

        Σ_k h |s_{k+1} − u_k|² / (2 v) − √(w h)/v (s_{k+1} − s_k)·ξ_k + d/2 (w/v − 1 + ln(v/w)),

    where `s_k = s(x_k, t_k)` is the control variate: `s_k · ξ_k` has mean zero. What is left of the noise is of the
    order of one step instead of √N.

    Source: Kaba et al. 2024, Schrödinger bridge-type diffusion models as an extension of variational autoencoders;
    discretised as in De Bortoli et al. 2021, Diffusion Schrödinger bridge, Prop. 3.

    Args:
        control_variate: use the second form; equal in mean, and one more evaluation of the decoder.
    """

    control_variate: bool = True

    def matching(self, bridge: SBVAE, paths: Paths, cond: Condition, draws: Draws) -> Tensor:
        """See the class."""
        nodes = torch.arange(0 if self.control_variate else 1, bridge.steps + 1)
        x = paths.x if self.control_variate else paths.x[:, 1:]
        s = bridge.decoder_drift(x, nodes, cond)
        w, v = bridge.g[:-1].square(), bridge.g[1:].square()
        d = paths.x[0, 0].numel()
        if not self.control_variate:
            gap = paths.x[:, :-1] - paths.x[:, 1:] + bridge.h * s
            total = (gap.square() / bridge.over(2 * v * bridge.h, gap)).flatten(1).sum(1)
            return total + d / 2 * float(((v / w).log() - 1).sum())
        u = bridge.encoder_drift(paths.x[:, :-1], paths.control)
        each = _step(bridge, s, u, paths.noise, torch.arange(bridge.steps))
        return each.flatten(1).sum(1) + d / 2 * float((w / v - 1 + (v / w).log()).sum())


@FORMS.register("divergence")
@dataclass(frozen=True, kw_only=True)
class PathIntegral(Form):
    """The bound in continuous time, `∫ |u − s|²/(2 g²) − div s dt` along the encoder's paths.

    The integral over time is a left Riemann sum on the chain's nodes. Networks must be twice differentiable.

    Source: Kaba et al. 2024; Chen et al. 2022, Likelihood training of Schrödinger bridge, Theorem 4.

    Args:
        estimate: of the divergence.
    """

    estimate: Divergence = Rademacher()

    def matching(self, bridge: SBVAE, paths: Paths, cond: Condition, draws: Draws) -> Tensor:
        """See the class."""
        x = paths.x[:, :-1]
        b, n = x.shape[:2]
        t = bridge.nodes[:-1].expand(b, n).reshape(-1)
        repeated = cond.select(torch.arange(b).repeat_interleave(n))
        probes = [p.flatten(0, 1) for p in self.estimate.probes(x, draws.fork("divergence"))]
        s, div = divergence(lambda at: -bridge.drift(at, t, repeated, "x0"), x.flatten(0, 1), probes)
        gap = (bridge.encoder_drift(x, paths.control) - s.reshape(x.shape)).square()
        power = (gap / bridge.over(2 * bridge.g[:-1].square(), gap)).flatten(2).sum(2)
        total: Tensor = bridge.h * (power - div.reshape(b, n)).sum(1)
        return total


def _step(bridge: SBVAE, s: Tensor, u: Tensor, noise: Tensor, k: Tensor) -> Tensor:
    """Matching of M steps of each row that begin at the nodes k, but for its constant, shape (B, M, …).

    Args:
        bridge: gives the reference.
        s: decoder's drift in forward time at M + 1 nodes.
        u: encoder's drift at the first M of them.
        noise: of the steps.
        k: shape (M,) or (B, M).
    """
    w, v = bridge.g[k].square(), bridge.g[k + 1].square()
    power = bridge.over(bridge.h / (2 * v), u) * (s[:, 1:] - u).square()
    return power - bridge.over((w * bridge.h).sqrt() / v, u) * (s[:, 1:] - s[:, :-1]) * noise


@BRIDGES.register("sbvae")
class SBVAE(Controlled):
    """SB-VAE: a variational autoencoder whose encoder and decoder are SDEs, `u = f x + g Z` and `s = f x − g Ẑ`.

    `dX = u dt + g dW` carries data to x1, `dX = s dt + g dW̄` carries x1 back. The data-processing inequality gives

        −E ln p(x0) <= E[−ln π(x1)] + E ∫ |u − g² ∇ln p_t − s|²/(2 g²) dt + H(x0)        (prior loss + drift matching)

    and `energy` adds `λ E ∫ |u − f x|²/(2 g²) dt`, without which any encoder that reaches π is an optimum. With it, the
    optimum is the Schrödinger bridge between the data and the law in which its paths end, which is π as λ → 0.

    Training: both, in turns within each step; then, as `freeze` says, the decoder alone on stored paths.

    Source: Kaba, Shimizu, Ohzeki, Sughiyama 2024, Schrödinger bridge-type diffusion models as an extension of
    variational autoencoders.

    Args:
        ends: shapes and conditions; x1 needs a density, and is standard normal where the data brings none.
        network: of the controls Z and Ẑ; built twice.
        reference: with noise at every time.
        form: of the drift matching.
        energy: λ.
        encoder_lr: factor on the learning rate of the encoder.
        freeze: when the encoder stops learning, by `encoder/prior` in the log.
        steps: N of the training's chains, and the best number for a sampler: between data and the first node nothing is
            learned.
        paths: that are simulated at once when the encoder is frozen.
        refresh: images after which they are simulated anew.
        dropout: share of training rows whose label and attributes are hidden.
        recompute: save memory by computing each step again in the backward pass.

    Raises:
        CapabilityError: if the density of x1 is not known.
        ArgumentError: if the reference has no noise at some time.
    """

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        reference: ScalarReference = Brownian(),
        form: Form = Chain(),
        energy: NonNegative = 0.01,
        encoder_lr: Positive = 0.5,
        freeze: FreezeRule = Plateau(),
        steps: Count = 20,
        paths: Count = 4096,
        refresh: Count = 200_000,
        dropout: Fraction = 0.1,
        recompute: bool = False,
    ) -> None:
        super().__init__(ends, network, reference=reference, steps=steps, dropout=dropout, recompute=recompute)
        self.form, self.energy, self.encoder_lr, self.freeze = form, energy, encoder_lr, freeze
        self.paths, self.refresh = paths, refresh
        _ = self.prior  # refuses data for which there is none

    def encoder_drift(self, x: Tensor, control: Tensor) -> Tensor:
        """`u = f x + g Z` at the first nodes, for states and controls of shape (B, N, …)."""
        return self.over(self.f[: x.shape[1]], x) * x + self.over(self.g[: x.shape[1]], x) * control

    def decoder_drift(self, x: Tensor, k: Tensor, cond: Condition) -> Tensor:
        """`s = f x − g Ẑ`, in forward time, at states (B, M, …) of the nodes k, (M,) or (B, M)."""
        return self.over(self.f[k], x) * x - self.over(self.g[k], x) * self.controls(x, k, cond, "x0")

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The bound and the energy, in nats per dimension, shape (B,); gradients reach both networks."""
        cond = self.hidden(batch.cond, draws)
        return self._loss(self.chain(batch.data, cond, draws), cond, draws)

    def _loss(self, paths: Paths, cond: Condition, draws: Draws) -> Loss:
        d = paths.x[0, 0].numel()
        prior = -self.prior.log_prob(paths.x[:, -1], cond) / d
        matching = self.form.matching(self, paths, cond, draws) / d
        energy = paths.control.square().flatten(1).sum(1) * (self.h / 2 / d)
        return Loss(
            prior + matching + self.energy * energy,
            {"prior": prior.detach(), "matching": matching.detach(), "energy": energy.detach()},
        )

    def decoder_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The drift matching along paths without gradient, in nats per dimension, shape (B,)."""
        cond = self.hidden(batch.cond, draws)
        with torch.no_grad():
            paths = self.chain(batch.data, cond, draws)
        return Loss(self.form.matching(self, paths, cond, draws) / paths.x[0, 0].numel())

    def regression(self, batch: Batch, draws: Draws) -> Loss:
        """The chain's drift matching at one random step of a stored path, times N, per dimension, shape (B,).

        It is the regression of `(x_{k+1} − x_k)/h` on `x_{k+1}`, less the noise that the control variate takes out.
        """
        steps = self.pick(batch, draws, "x1", nodes=2)
        x, k = steps.x, steps.k[:, None]
        with torch.no_grad():
            f, g = (self.over(values[k], x) for values in (self.f, self.g))
            u = f * x[:, :1] + g * steps.control[:, :1]
            noise = (x[:, 1:] - x[:, :1] - self.h * u) / (g * self.h**0.5)
        s = self.decoder_drift(x, torch.cat([k, k + 1], 1), steps.cond)
        return Loss(self.steps * _step(self, s, u, noise, k).flatten(1).mean(1))

    def schedule(self, part: str = "") -> Schedule:
        """Decoder and encoder in every step, and from the time that `freeze` gives on the decoder alone."""
        if part:
            return super().schedule(part)
        decoder, encoder = ("networks.x0.",), ("networks.x1.",)
        both = Joint(
            (Phase("decoder", self.decoder_loss, decoder), Phase("encoder", self.loss, encoder, self.encoder_lr))
        )
        alone = Alternate((Phase("regression", self.regression, decoder),), images=self.refresh)
        return self.freeze.schedule(both, alone, "encoder/prior")

    def renew(self, round: Round) -> None:
        """Once the encoder is frozen, simulate its paths."""
        if round.number > 0:
            self.tabulate(round, self.paths, "x1")
