"""Log Z, effective sample size, modes and spreads of a sampler of an unnormalised density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject, Table
from latentsb.randomness import Draws
from latentsb.ranges import Count, enforce
from latentsb.targets.base import Target
from latentsb.tensors import Batch
from latentsb.weighing import WeighingBridge, Weighted

__all__ = ["LogZ", "figures", "weighted"]


@METRICS.register("log_z")
@dataclass(frozen=True, kw_only=True)
class LogZ(Metric):
    """Log Z by importance sampling beside its two lower bounds, effective sample size, modes and spreads.

    A good `log_z` alone is no proof: a sampler that has found five of nine modes can come close by chance, with an
    effective sample size of next to nothing. `mode_tv` is the total variation between the shares of samples (without
    weights) in the modes and the exact ones; `std_error` is the mean over dimensions of |std − exact|.

    Source: Richter & Berner 2024, Sec. 4, with ratios of Gaussian kernels, for which `E w = Z` at any number of steps.

    Args:
        paths: weighted samples.
        batch: of them at a time.
        seed: of the first.
    """

    paths: Count = 10_000
    batch: Count = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For samplers with weights."""
        return "log Z and modes of its density" if isinstance(subject.bridge, WeighingBridge) else ""

    def require(self, subject: Subject) -> None:
        """The bridge must weigh its samples."""
        if not isinstance(subject.bridge, WeighingBridge):
            raise CapabilityError("the metric 'log_z' needs a bridge that weighs its samples, such as 'density'")

    def measure(self, subject: Subject) -> Measured:
        """Measure."""
        self.require(subject)
        assert isinstance(subject.bridge, WeighingBridge)
        with subject.watch("weighing", self.paths) as advance:
            parts = []
            for part in weighted(subject.bridge, self.paths, self.batch, self.seed):
                parts.append(part)
                advance(len(part.x))
        found = figures(subject.bridge.target, parts)
        exact = subject.bridge.target.log_z
        log_z, error = found.pop("log_z"), found.pop("log_z ±")
        rows = [("log_z", (log_z, exact)), *((name, (value, EXACT.get(name, exact))) for name, value in found.items())]
        return Measured(
            value=log_z,
            floors={} if exact is None else {"exact": exact},
            protocol={"paths": self.paths},
            details={"count": self.paths, **found},
            of="log Z",
            tables=(Table("sampler", ("", "measured", "exact"), rows),),
            error=error,
        )


EXACT = {"ess": 1.0, "mode_tv": 0.0, "modes": None, "std_error": 0.0}
"""What figures are for a perfect sampler; the others are estimates of log Z."""


@torch.no_grad()
def weighted(bridge: WeighingBridge, n: int, batch: int, seed: int) -> Iterable[Weighted]:
    """N weighted samples, on the CPU, in batches."""
    for k, first in enumerate(range(0, n, batch)):
        size = min(batch, n - first)
        rows = Batch(torch.arange(size)).to(bridge.device)
        part = bridge.weigh(rows, Draws.block(seed, "log_z", k, size))
        yield Weighted(part.x.cpu(), part.log_weight.cpu().double(), part.ito.cpu().double())


def figures(target: Target, parts: Iterable[Weighted]) -> dict[str, float]:
    """Estimates of log Z with the standard error of the first, and what of the target the samples have found.

    `log_z` is `log mean w`; `elbo` and `elbo_ito` are the lower bounds `mean log w` without and with the Itô part.

    Args:
        target: that they are samples of.
        parts: weighted samples.
    """
    held = list(parts)
    x, log_w, ito = (torch.cat([getattr(p, name) for p in held]) for name in ("x", "log_weight", "ito"))
    n = len(log_w)
    log_w = torch.where(log_w.isfinite(), log_w, -math.inf)  # a path that left all bounds weighs nothing
    ess = float((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()) / n
    whole = log_w.isfinite()
    found: dict[str, float] = {
        "log_z": float(log_w.logsumexp(0)) - math.log(n),
        "log_z ±": math.sqrt(max(0.0, 1 / max(ess, 1 / n) - 1) / n),
        "elbo": float((log_w + ito)[whole].mean()),
        "elbo_ito": float(log_w[whole].mean()),
        "ess": ess,
    }
    return {**found, **_of_samples(target, x)}


def _of_samples(target: Target, x: Tensor) -> Mapping[str, float]:
    """Modes and spreads, where they are known exactly."""
    found: dict[str, float] = {}
    if target.mode_mass:
        exact = torch.tensor(target.mode_mass, dtype=torch.float64)
        share = torch.bincount(target.mode_of(x), minlength=len(exact)) / len(x)
        found["mode_tv"] = float((share - exact).abs().sum()) / 2
        found["modes"] = float((share > exact / 10).sum())
    if target.std is not None:
        exact = torch.tensor(target.std, dtype=torch.float64)
        found["std_error"] = float((x.double().flatten(1).std(0) - exact).abs().mean())
    return found
