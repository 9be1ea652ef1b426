"""Likelihood: what a bridge says of data it has not seen, in nats and bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.errors import CapabilityError, DataError
from latentsb.laws import FittedGaussian
from latentsb.likelihood import Likelihood, bits_per_dim, has_density
from latentsb.metrics.base import METRICS, Data, Measured, Metric, Subject, Table
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt, Positive, enforce
from latentsb.tensors import Condition

__all__ = ["LogLikelihood"]

FULL = 1024
"""Largest dimension for which the baseline has a full covariance."""
PER_DIMENSION = 4
"""Samples per dimension that a full covariance needs; with fewer it fits the training data and little else."""
BYTE = 256
OFF = 1e-2
"""Of a level: pixels are float32, whose rounding is far below, while other numbers lie anywhere between."""


@dataclass(frozen=True)
class Independent:
    """Independent normal numbers.

    Args:
        mean: shape (dim,), float64.
        std: above 0.
    """

    mean: Tensor
    std: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of vectors (B, dim), shape (B,)."""
        off = (x - self.mean) / self.std
        return -(off.square() / 2 + self.std.log() + math.log(2 * math.pi) / 2).sum(1)


@METRICS.register("likelihood")
@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Metric):
    """Negative log-likelihood of held-out latents by the probability-flow ODE, beside a fitted Gaussian's.

    The figure is in bits per dimension, smaller is better; the table has the mean of `ln p` of the latents in nats too,
    and standard errors over samples.
    Bits of latents count in units of the latents and can be compared only within one autoencoder and normaliser.
    Pictures that are their own latents (`identity`) get uniform noise of one level's width, and bits count in levels:
    then the figure bounds from above what a lossless code of the pictures would need.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), Sec. 4.3; Theis et al. 2016 (A note on the
    evaluation of generative models).

    Args:
        images: held-out samples; training samples where none are held out.
        levels: of pictures that are their own latents, evenly spaced from -1 to 1; 0 for numbers without levels.
            256 for pictures, if None.
        exact_up_to: largest number of dimensions in which the divergence is exact.
        probes: vectors of signs per sample where it is estimated.
        rtol: error per step of the ODE, relative.
        atol: error per step of the ODE.
        fitted_on: training samples, at most, that the Gaussian is fitted to.
        batch: samples at a time; changes the figure by the ODE's tolerance only.
        seed: of the choice of samples and of all noise.
    """

    images: Count = 256
    levels: NonNegativeInt | None = None
    exact_up_to: NonNegativeInt = 16
    probes: Count = 1
    rtol: Positive = 1e-4
    atol: Positive = 1e-4
    fitted_on: Count = 10_000
    batch: Count = 64
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """The law at t = 1 must have a density."""
        has_density(subject.bridge)
        if min(len(subject.test), self.images) < 2:
            raise CapabilityError("the metric 'likelihood' needs at least 2 samples")

    def measure(self, subject: Subject) -> Measured:
        """Measure."""
        self.require(subject)
        levels = self._levels(subject.autoencoder)
        rows = subject.test.rows(self.images, self.seed, "likelihood")
        baseline, name = self._baseline(subject, levels)
        ode = Likelihood(exact_up_to=self.exact_up_to, probes=self.probes, rtol=self.rtol, atol=self.atol)
        ours, theirs, calls, exact = [], [], 0, True
        with subject.watch("likelihood", len(rows)) as advance:
            for first in range(0, len(rows), self.batch):
                part = rows[first : first + self.batch]
                x0, cond = self._latents(subject, subject.test, part, levels)
                device = subject.bridge.device
                found = ode.log_prob(subject.bridge, x0.to(device), cond.to(device), self._draws(part))
                ours.append(found.nats.cpu())
                theirs += [] if baseline is None else [baseline.log_prob(x0.flatten(1).double()).double()]
                calls, exact = max(calls, found.calls), found.exact
                advance(len(part))
        dims = math.prod(subject.bridge.ends.spec.shape)
        volume = _volume(subject.autoencoder, levels)
        figures = {"bridge": _row(torch.cat(ours), dims, volume)}
        if baseline is not None:
            figures[name] = _row(torch.cat(theirs), dims, volume)
            figures["difference"] = _row(torch.cat(ours) - torch.cat(theirs), dims, 0.0)
        unit = f"one of {levels} levels" if levels else "normalised latents"
        return Measured(
            value=figures["bridge"][2],
            floors={name: figures[name][2]} if baseline is not None else {},
            protocol={
                "images": len(rows),
                "held out": subject.test.held_out,
                "unit": unit,
                "dequantised": bool(levels),
                "exact divergence": exact,
                "seed": self.seed,
            },
            details={
                "samples": f"{len(rows)} of {subject.test.name}",
                "unit": unit,
                "dimensions": dims,
                "calls": calls,
            },
            of="bits per dimension",
            error=figures["bridge"][3],
            better="lower",
            tables=(
                Table(
                    f"ln p of {len(rows)} samples, {subject.test.name}",
                    ("", "nats/dim", "± SE", "bits/dim", "± SE"),
                    list(figures.items()),
                    better={"nats/dim": "higher", "bits/dim": "lower"},
                ),
            ),
        )

    def _levels(self, autoencoder: Autoencoder) -> int:
        """Levels of the pictures, 0 where bits count in units of the latents."""
        if not autoencoder.is_identity:
            if self.levels:
                raise CapabilityError("likelihood.levels counts levels of pixels; these latents are not pixels")
            return 0
        if self.levels is None:
            return BYTE if len(autoencoder.images.shape) == 3 else 0
        return self.levels

    def _draws(self, rows: np.ndarray) -> Draws:
        return Draws.seeds(rows.tolist()).fork(f"likelihood {self.seed}")

    def _latents(self, subject: Subject, data: Data, rows: np.ndarray, levels: int) -> tuple[Tensor, Condition]:
        """Latents as training sees them, with the width of one level where there are levels."""
        draws = self._draws(rows)
        items = data.latents.draw(rows, None, draws.fork("posterior"))
        known = {name: value for name, value in items.cond.items() if name in subject.bridge.ends.cond}
        if not levels:
            return items.x0, Condition(known)
        coder = subject.autoencoder
        step, scale = 2 / (levels - 1), coder.scale.cpu()
        place = (items.x0 * scale + coder.shift.cpu() + 1) / step
        if bool((place - place.round()).abs().max() > OFF):
            raise DataError(
                f"the data does not lie on {levels} even levels from -1 to 1; give likelihood.levels=N where there are "
                "N levels, or 0 for numbers that have none"
            )
        width = torch.special.ndtr(draws.normal("level", items.x0)) - 0.5
        return items.x0 + width * step / scale, Condition(known)

    def _baseline(self, subject: Subject, levels: int) -> tuple[FittedGaussian | Independent | None, str]:
        """The Gaussian of the training latents that has a density."""
        rows = subject.train.rows(self.fitted_on, self.seed, "fitted Gaussian")
        dims = math.prod(subject.bridge.ends.spec.shape)
        cuts = [rows[first : first + self.batch] for first in range(0, len(rows), self.batch)]
        if dims <= FULL and len(rows) >= PER_DIMENSION * dims:
            law = FittedGaussian(dims)
            law.fit(self._latents(subject, subject.train, cut, levels)[0].flatten(1) for cut in cuts)
            if law.rank == dims:
                return law, f"Gaussian, full covariance, of {len(rows)} training samples"
        moments = torch.zeros(2, dims, dtype=torch.float64)
        for cut in cuts:
            flat = self._latents(subject, subject.train, cut, levels)[0].flatten(1).double()
            moments += torch.stack([flat.sum(0), flat.square().sum(0)])
        mean = moments[0] / len(rows)
        spread = (moments[1] / len(rows) - mean.square()).clamp(min=0).sqrt()
        if not bool((spread > 0).all()):
            return None, ""
        return Independent(mean, spread), f"Gaussian, variance per number, of {len(rows)} training samples"


def _volume(autoencoder: Autoencoder, levels: int) -> float:
    """`ln |d latent / d level|` over all dimensions; 0 where bits count in units of the latents."""
    if not levels:
        return 0.0
    per_dimension = math.log(2 / (levels - 1)) - autoencoder.scale.double().log().expand(autoencoder.latent.shape)
    return float(per_dimension.sum())


def _row(nats: Tensor, dims: int, volume: float) -> tuple[float, float, float, float]:
    """Mean and standard error of `ln p` per dimension, and of the bits."""
    bits = bits_per_dim(nats, dims, volume)
    error = float(nats.std()) / math.sqrt(len(nats)) / dims
    return float(nats.mean()) / dims, error, float(bits.mean()), error / math.log(2)
