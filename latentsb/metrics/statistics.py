"""Statistics of latents per channel (mean, deviation, excess kurtosis, spectrum), and the rate of their posteriors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.autoencoder import Moments

__all__ = ["LatentStatistics", "radial_power", "radii", "statistics_of"]


@dataclass(frozen=True)
class LatentStatistics:
    """Of raw latents drawn from their posteriors, over a number of images; all in float64.

    Expectations over the posterior are taken in closed form, so that nothing here depends on draws.

    Args:
        count: images.
        mean: per channel, shape (C,).
        std: per channel, of the population, shape (C,).
        kurtosis: excess over a normal law's, `E(z − μ)⁴ / σ⁴ − 3`, shape (C,); NaN for a constant channel.
        spectrum: mean power in rings of equal frequency, relative to the variance, shape (C, rings); 1 is white.
            None where a latent is no image.
        frequencies: of the rings, in cycles per image of the shorter side; None likewise.
        rate: mean `KL(q(z|x) ‖ N(0, 1))` of an image in nats; None for a deterministic encoder.
        fitted_rate: the same beside `N(μ_c, σ_c²)` per channel instead, which is no larger than beside any other
            normal law per channel, and bounds the information in z on x from above.
        numbers: in one latent.
    """

    count: int
    mean: Tensor
    std: Tensor
    kurtosis: Tensor
    spectrum: Tensor | None
    frequencies: Tensor | None
    rate: float | None
    fitted_rate: float | None
    numbers: int

    @property
    def bits(self) -> float | None:
        """`rate` in bits per image."""
        return None if self.rate is None else self.rate / math.log(2)

    @property
    def fitted_bits(self) -> float | None:
        """`fitted_rate` in bits per image."""
        return None if self.fitted_rate is None else self.fitted_rate / math.log(2)


def radii(height: int, width: int) -> Tensor:
    """The ring of each frequency of `torch.fft.fft2`: `|f|` in cycles per shorter side, rounded; int64 (H, W)."""
    rows, columns = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    rings: Tensor = ((rows[:, None] ** 2 + columns**2).sqrt() * min(height, width)).round().long()
    return rings


def radial_power(x: Tensor) -> Tensor:
    """Mean power of fields in rings of frequencies, `|Σ_s x_s e^{−2πi f·s}|² / (H W)`.

    White noise of variance v has power v in every ring; the mean over all frequencies is the mean square of x.

    Args:
        x: shape (…, H, W).

    Returns:
        Shape (…, rings).
    """
    height, width = x.shape[-2:]
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square().flatten(-2)
    ring = radii(height, width).flatten().to(x.device)
    sums = power.new_zeros(*power.shape[:-1], int(ring.max()) + 1).index_add_(-1, ring, power)
    found: Tensor = sums / torch.bincount(ring)
    return found


def statistics_of(batches: Iterable[Moments]) -> LatentStatistics:
    """Statistics over all batches of posteriors, in one pass.

    Raises:
        ValueError: if there are none.
    """
    sums: _Sums | None = None
    for moments in batches:
        sums = _Sums(moments) if sums is None else sums
        sums.add(moments)
    if sums is None:
        raise ValueError("statistics of no data")
    return sums.found()


class _Sums:
    """Sums of powers around the first batch's means, which are near enough to the true ones for float64."""

    def __init__(self, first: Moments) -> None:
        shape = first.mean.shape[1:]
        self.centre = _channels(first.mean).mean(1)
        self.images, self.shape = 0, shape
        self.powers = torch.zeros(5, shape[0], dtype=torch.float64)  # Σ d^p
        self.noise = torch.zeros(4, shape[0], dtype=torch.float64)  # Σ s², Σ d s², Σ d² s², Σ s⁴
        self.logs = torch.zeros(shape[0], dtype=torch.float64)  # Σ log s
        self.random = first.std is not None
        self.square = torch.zeros((), dtype=torch.float64)
        self.power = torch.zeros(shape[0], int(radii(*shape[1:]).max()) + 1).double() if len(shape) == 3 else None

    def add(self, moments: Moments) -> None:
        """Take in a batch."""
        mean = moments.mean.detach().double().cpu()
        self.images += len(mean)
        centred = mean - self.centre.reshape(-1, *(1,) * (mean.ndim - 2))
        d = _channels(centred)
        self.powers += torch.stack([(d**p).sum(1) for p in range(5)])
        if self.power is not None:
            self.power += radial_power(centred).sum(0)
        if moments.std is not None:
            s = _channels(moments.std)
            self.noise += torch.stack([(v * s**2).sum(1) for v in (torch.ones_like(d), d, d**2)] + [(s**4).sum(1)])
            self.logs += s.log().sum(1)
            self.square += mean.square().sum()

    def found(self) -> LatentStatistics:
        """The statistics."""
        each = self.powers[0]
        m1, m2, m3, m4 = self.powers[1:] / each
        s2, ds2, dds2, s4 = self.noise / each
        # Central moments of the means, then of means with independent normal noise on them.
        signal = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        fourth = fourth + 6 * (dds2 - 2 * m1 * ds2 + m1**2 * s2) + 3 * s4
        variance = signal + s2
        spectrum = None
        if self.power is not None:
            power = self.power / self.images
            # What is left of the mean has all of its power at frequency 0.
            lowest = int((radii(*self.shape[1:]) == 0).sum())
            power[:, 0] -= m1**2 * self.shape[1:].numel() / lowest
            spectrum = (power + s2[:, None]) / variance[:, None]
        nats = fitted = None
        if self.random:
            per_image = each[0] / self.images
            logs = self.logs / each
            nats = float(0.5 * (self.square / self.images + per_image * (s2 - 1 - 2 * logs).sum()))
            fitted = float(per_image * (0.5 * variance.log() - logs).sum())
        return LatentStatistics(
            count=self.images,
            mean=self.centre + m1,
            std=variance.sqrt(),
            kurtosis=fourth / variance**2 - 3,
            spectrum=spectrum,
            frequencies=None if spectrum is None else torch.arange(spectrum.shape[1]).double(),
            rate=nats,
            fitted_rate=fitted,
            numbers=self.shape.numel(),
        )


def _channels(x: Tensor) -> Tensor:
    """Shape (C, everything else), float64, on the CPU."""
    return x.detach().double().cpu().transpose(0, 1).flatten(1)
