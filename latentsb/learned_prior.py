"""The prior that is learned: a bridge from noise to normalised codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.prior import PRIORS, LearnedPrior
from latentsb.process.times import LogUniformSigma
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.solvers.exponential import DPMpp
from latentsb.tensors import Batch, Condition, Spec, expand_as
from latentsb.trainable import Loss

__all__ = ["BridgePrior"]

LEVELS = LogUniformSigma(sigma_min=0.002, sigma_max=80.0)
"""Noise levels of the bound on the likelihood, drawn evenly in their logarithm, within those of the bridge."""


@PRIORS.register("bridge")
class BridgePrior(LearnedPrior):
    """A bridge from noise to codes whose numbers are normalised one by one.

        u = (z − mean) / std,      u ~ the bridge given the conditions,      z = mean + std u

    Mean and standard deviation are those of the training codes. It is trained in a stage `{train: bridge.prior}`,
    with everything else frozen and the codes encoded once, or, with `joint`, beside the encoder, which its loss does
    not reach. With `weight` the bound on `−ln p(z)` reaches both:

        −ln p(z) ≤ ∫ E|u − D(x_t, t)|²/σ² d ln σ + |u|²/(2 σ_max²) + d/2 ln(2πe σ_min²) + Σ ln std

    over σ from σ_min = 0.002 to σ_max = 80, or the bridge's own levels where they span less: diffusion, what the
    largest level leaves of the code, the code within the smallest noise, and the unit of volume.

    Source: Preechakul et al. 2022, Diffusion autoencoders, Sec. 4 (a diffusion of normalised codes, as a second
    stage); Kim et al. 2025 (the regularised loss); Kingma et al. 2021, Variational diffusion models, Eq. 11 and 17
    (the bound); Vahdat et al. 2021, LSGM (its gradient in the encoder).

    Args:
        code: shape of a code.
        cond: conditions that codes come with; new codes are of the conditions asked for.
        bridge: from noise to vectors, such as `flow` or `score`.
        solver: that new codes are drawn with.
        joint: train in the bridge's own stage.
        renew: images between two looks at mean and standard deviation, in a joint training.
        weight: of `−ln p(z) − H(q(z | x0))`, per number of x0, in the bridge's loss.

    Raises:
        ArgumentError: if the bridge is none from noise, or `weight` is above 0 without `joint`.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(
        self,
        code: Spec,
        cond: dict[str, Spec],
        *,
        bridge: Build[Bridge],
        solver: Solver = DPMpp(steps=50),
        joint: bool = False,
        renew: Count = 20_000,
        weight: NonNegative = 0.0,
    ) -> None:
        super().__init__(code, cond)
        if weight and not joint:
            raise ArgumentError("weight", "acts on the encoder, and needs joint: true")
        made = bridge(Ends(code, cond=cond))
        if not isinstance(made, DenoisingBridge) or isinstance(made, EncodingBridge) or made.pinned:
            word = BRIDGES.word_of(made)
            raise ArgumentError(
                "bridge", f"must lead from independent noise to codes, as 'flow' and 'score' do; this '{word}' does not"
            )
        self.bridge, self.solver = made, solver
        self.joint, self.renew, self.weight = joint, renew, weight
        self.register_buffer("mean", torch.zeros(code.numel, dtype=torch.float64))
        self.register_buffer("std", torch.ones(code.numel, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def ready(self) -> bool:
        """Whether the statistics of the codes are known, which training begins with."""
        return int(self.count) > 0

    @torch.no_grad()
    def normalise(self, mean: Tensor, std: Tensor, count: int) -> None:
        """Keep mean and standard deviation; a number without spread is only shifted."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))
        self.count.fill_(count)

    def normalised(self, z: Tensor) -> Tensor:
        """`(z − mean) / std`.

        Raises:
            CapabilityError: before there are statistics.
        """
        if not self.ready:
            raise CapabilityError("the codes that this prior is for have not been looked at yet: `renew` comes first")
        return (z - self.mean.to(z.dtype)) / self.std.to(z.dtype)

    def loss(self, z: Tensor, cond: Condition, draws: Draws) -> Loss:
        """The bridge's own loss of the normalised codes."""
        return self.bridge.loss(Batch(torch.arange(len(z)), self.normalised(z), cond=cond), draws)

    def nats(self, z: Tensor, cond: Condition, draws: Draws) -> Tensor:
        """The bound of the class at one noise level per row, shape (B,)."""
        u, bridge = self.normalised(z), self.bridge
        ends = LEVELS.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64), bridge)
        low, high = bridge.marginal(ends).sigma_eff.tolist()
        t = LEVELS.sample(bridge, draws)
        marginal = bridge.marginal(t)
        error = u - bridge.denoise(marginal.sample(u, None, draws.normal("noise", u)), t, cond)
        diffusion = math.log(high / low) * (expand_as(marginal.snr, error) * error.square()).sum(1)
        left = u.square().sum(1) / (2 * high**2)
        within = u.shape[1] * (math.log(2 * math.pi * math.e) / 2 + math.log(low))
        bound: Tensor = diffusion + left + within + self.std.log().sum().to(u.dtype)
        return bound

    def sample(self, cond: Condition, draws: Draws) -> Tensor:
        """Codes of the conditions, by the solver; a condition that is not given is absent.

        Raises:
            CapabilityError: before training has begun.
        """
        if not self.ready:
            raise CapabilityError(f"no samples yet: {self.description}")
        for name, spec in self.cond_spec.items():
            if name not in cond:
                cond = cond.with_(**{name: spec.zeros(draws.size, self.mean.device)}).drop(name)
        asked = Batch(torch.arange(draws.size), cond=cond.without(*(cond.values.keys() - self.cond_spec.keys())))
        solved = self.solver.run(self.bridge, self.bridge.start(asked, draws.fork("start")), draws.fork("solve"))
        return self.mean.to(solved.x.dtype) + self.std.to(solved.x.dtype) * solved.x

    @property
    def description(self) -> str:
        """How it was learned, or what is missing."""
        word = BRIDGES.word_of(self.bridge)
        if not self.ready and self.joint:
            return f"the prior over z (a '{word}') has not been trained; it is in the stage {{train: bridge}}"
        if not self.ready:
            return f"the prior over z (a '{word}') has not been trained; add a stage {{train: bridge.prior}}"
        how = "beside the encoder" if self.joint else f"on {int(self.count)} encodings"
        return f"z is drawn from a prior (a '{word}') that was learned {how}"
