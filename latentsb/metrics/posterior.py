"""How well a posterior sampler restores what a measurement has hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.tensors import Batch, Condition
from latentsb.weighing import MeasuringBridge, Weighted

__all__ = ["PosteriorError", "moments"]


@METRICS.register("posterior")
@dataclass(frozen=True, kw_only=True)
class PosteriorError(Metric):
    """Squared error of the posterior mean where nothing is known, beside that of a constant; and sample sizes.

    Held-out latents are measured; `error` is the mean square of `E[x0|y] − x0` over latents and numbers that the
    measurement does not see. The law of the posterior is right if `spread`, the mean of the posterior's variance there,
    equals it.

    Source: the bias-variance identity `E |E[x|y] − x|² = E Var(x|y)`.

    Args:
        images: held-out samples; training samples where none are held out.
        paths: of each.
        seed: of the choice of samples and of all noise.
    """

    images: Count = 64
    paths: Count = 64
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For bridges to a posterior."""
        return "what a measurement has hidden" if isinstance(subject.bridge, MeasuringBridge) else ""

    def require(self, subject: Subject) -> None:
        """The bridge must know a measurement."""
        if not isinstance(subject.bridge, MeasuringBridge):
            raise CapabilityError("the metric 'posterior' needs a bridge that measures, such as 'posterior'")

    @torch.no_grad()
    def measure(self, subject: Subject) -> Measured:
        """Measure."""
        self.require(subject)
        bridge = subject.bridge
        assert isinstance(bridge, MeasuringBridge)
        rows = subject.test.rows(self.images, self.seed, "posterior")
        items = subject.test.read(rows, latents=True)
        draws = Draws.block(self.seed, "posterior", 0, len(rows))
        cond = Condition(dict(subject.known(items.cond).values))
        asked = bridge.observe(Batch(torch.arange(len(rows)), items.x0, cond=cond).to(bridge.device), draws)
        with subject.watch("posterior", len(rows)) as advance:
            found = bridge.posterior(asked, self.paths, draws.fork("paths"))
            advance(len(rows))
        mean, variance, ess = moments(found, self.paths)
        hidden = bridge.measurement.matrix(bridge.ends.spec).square().sum(0) == 0
        off = (mean - items.x0).flatten(1)[:, hidden].square().mean(1)
        constant = (items.x0 - items.x0.mean(0)).flatten(1)[:, hidden].square().mean(1)
        return Measured(
            value=float(off.mean()),
            floors={"constant": float(constant.mean())},
            protocol={"paths": self.paths, "images": len(rows), "on": subject.test.name},
            details={
                "count": len(rows),
                "spread": float(variance.flatten(1)[:, hidden].mean()),
                "ess": float(ess.mean()),
                "ess_least": float(ess.min()),
            },
            of="hidden numbers",
            error=float(off.std()) / math.sqrt(len(rows)),
            better="lower",
        )


def moments(found: Weighted, paths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean and variance of each row's samples, shape (B, …), and effective sample sizes in [1/paths, 1]."""
    x = found.x.cpu().double().reshape(-1, paths, *found.x.shape[1:])
    w = torch.softmax(found.log_weight.cpu().double().reshape(-1, paths), 1)
    wide = w.reshape(*w.shape, *(1,) * (x.ndim - 2))
    mean = (wide * x).sum(1)
    variance = (wide * (x - mean[:, None]).square()).sum(1)
    ess = 1 / (w.square().sum(1) * paths)
    # Of few samples a variance comes out too small by what the mean has taken away.
    return mean, variance / (1 - w.square().sum(1)).clamp(min=1e-6).reshape(-1, *(1,) * (mean.ndim - 1)), ess
