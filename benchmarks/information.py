"""The certified bound on I(x0; z) beside the true information, on the linear Gaussian autoencoder.

    python benchmarks/information.py

x0 ~ N(0, 1/4), z = 1.3 x0 + 0.4 ε, so that I(x0; z) = ½ ln(Var x0 / Var(x0 | z)) = 0.6461 nats. The bound is
I(x0; x0 + σ0 ε) − M with the first term in closed form and M measured, once with the best denoiser and once with a
small network that was trained as any other is.
"""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from _harness import Estimate, Report, main
from torch import Tensor

from latentsb.bridges.dbae import DBAE
from latentsb.channels import Clamped
from latentsb.laws import Ends
from latentsb.metrics.information import combined, missing
from latentsb.networks.base import Decoder, Encoder
from latentsb.networks.mlp import MLP
from latentsb.process.times import LogUniformSigma
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec, expand_as

VARIANCE, GAIN, NOISE = 0.25, 1.3, 0.4
LEFT = VARIANCE - (GAIN * VARIANCE) ** 2 / (GAIN**2 * VARIANCE + NOISE**2)
"""Var(x0 | z)."""
SHARE = GAIN * VARIANCE / (GAIN**2 * VARIANCE + NOISE**2)
"""E[x0 | z] / z."""
TRUE = math.log(VARIANCE / LEFT) / 2
LEVELS = (0.3, 0.03, 0.003)
HIGHEST = 79.0


class Linear(Encoder):
    """The inverse of the channel's clamps, so that z is the linear code exactly."""

    def forward(self, x: Tensor) -> Tensor:
        """Mean and log spread before the channel, shape (B, 2)."""
        spread = torch.full_like(x, 5 * math.atanh(math.log(NOISE - 0.01) / 5))
        return torch.cat([5 * torch.atanh(GAIN * x / 5), spread], 1)


class Scaled(Decoder):
    """x1 = 0.8 z."""

    def forward(self, z: Tensor) -> Tensor:
        """Shape (B, 1)."""
        return 0.8 * z


class Best(DBAE):
    """The denoiser in closed form."""

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x0 | y, z]`, by adding precisions."""
        marginal = self.marginal(t)
        noise = expand_as(marginal.sigma_eff.square(), x)
        return (SHARE * cond["z"] * noise + marginal.to_y(x, cond["x1"]) * LEFT) / (LEFT + noise)


def bridge(kind: type[DBAE], dtype: torch.dtype) -> DBAE:
    """A DBAE of one dimension with the linear code; its times reach below the lowest level."""
    torch.manual_seed(0)
    found = kind(
        Ends(Spec((1,), dtype)),
        network=partial(MLP, width=64, depth=3),
        encoder=Linear,
        decoder=Scaled,
        z_dim=1,
        channel=Clamped(),
        times=LogUniformSigma(sigma_min=0.003, sigma_max=HIGHEST),
    )
    found.t_min = 1e-5
    return found


def data(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Samples, shape (n, 1)."""
    return math.sqrt(VARIANCE) * torch.randn(n, 1, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def trained(steps: int, batch: int = 512) -> DBAE:
    """The small network after training, its weights averaged over the second half; code and endpoint stay linear."""
    model = bridge(DBAE, torch.float32)
    average, optimiser = copy.deepcopy(model.network), torch.optim.AdamW(model.network.parameters(), lr=2e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        x0 = data(batch, torch.float32, 1_000_000 + step)
        loss = model.loss(
            Batch(torch.arange(batch), x0), Draws.step(0, "loss", step * batch, range(batch))
        ).total.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.network.parameters(), strict=True):
                kept.lerp_(new, 1 / max(1, step - steps // 2))
    model.network = average
    return model.eval()


@torch.no_grad()
def bound(model: DBAE, sigma0: float, n: int, dtype: torch.dtype, batch: int = 4096) -> Estimate:
    """The certified bound in nats, with the interval of two standard errors."""
    parts = []
    for first in range(0, n, batch):
        x0 = data(batch, dtype, first)
        draws = Draws.step(0, "bound", first, range(batch))
        cond = model.encode(x0, draws)
        terms, noises = missing(model, x0, cond, draws, torch.zeros(1, dtype=dtype), sigma0, HIGHEST, 12)
        # Most of what differs between samples is their distance from the mean given z, whose square is LEFT on average.
        far = (x0 - SHARE * cond["z"]).double().square().flatten() / LEFT - 1
        parts.append((terms, noises, far / 2))
    terms, noises, far = (torch.cat(found) for found in zip(*parts, strict=True))
    gaps = combined(terms, noises) - far
    found = math.log1p(VARIANCE / sigma0**2) / 2 - float(gaps.mean())
    error = 2 * float(gaps.std()) / math.sqrt(len(gaps))
    return Estimate(found, found - error, found + error)


def measure(quick: bool) -> Report:
    """Both denoisers at all levels."""
    report = Report("information", "certified bound on I(x0; z), linear Gaussian autoencoder, nats")
    report.add("true information", TRUE)
    n, steps = (4096, 20) if quick else (32_768, 4000)
    models = {"best denoiser": (bridge(Best, torch.float64), torch.float64)}
    models["trained network"] = (trained(steps), torch.float32)
    for name, (model, dtype) in models.items():
        for sigma0 in LEVELS:
            ideal = math.log1p(VARIANCE / sigma0**2) / 2 - math.log1p(LEFT / sigma0**2) / 2
            report.add(f"{name}, σ0 = {sigma0:g} (best possible {ideal:.5f})", bound(model, sigma0, n, dtype), "nats")
        last = report.value(f"{name}, σ0 = {LEVELS[-1]:g} (best possible {ideal:.5f})")
        report.add(f"{name}: short of the true information", 100 * (1 - last / TRUE), "%", at_most=1.0)
    return report


if __name__ == "__main__":
    main(measure, __doc__)
