"""What an autoencoder loses and what its latents are like: similarity, rate, statistics per channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.bridge import EncodingBridge
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject, Table
from latentsb.metrics.linear import Components
from latentsb.metrics.reconstruction import BETTER, averages, likeness
from latentsb.metrics.statistics import LatentStatistics, statistics_of
from latentsb.pictures import grid
from latentsb.ranges import Count, NonNegativeInt, enforce

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Codec", "Coded", "coded"]

SHOWN = 16
"""Images in the picture."""
LARGEST = 1024
"""Numbers of a latent up to which principal components of as many numbers are a matter of seconds."""
NONE = "none: deterministic"


@dataclass(frozen=True)
class Coded:
    """What an autoencoder made of images.

    Args:
        figures: mean squared error, PSNR and SSIM, as `averages` gives them.
        statistics: of the raw latents.
        originals: the first images, (B, C, H, W) in [-1, 1].
        decoded: what was made of them from the posteriors' means.
    """

    figures: Mapping[str, float | None]
    statistics: LatentStatistics
    originals: Tensor
    decoded: Tensor


@torch.no_grad()
def coded(autoencoder: Autoencoder, images: Iterable[Tensor], done: Callable[[int], None] = lambda n: None) -> Coded:
    """Encode and decode images, in one pass.

    Args:
        autoencoder: in evaluation mode, on its device.
        images: batches (B, C, H, W) in [-1, 1].
        done: called with the number of images just finished.
    """
    likenesses: list[dict[str, Tensor]] = []
    shown: list[tuple[Tensor, Tensor]] = []

    def latents() -> Iterable[Moments]:
        for batch in images:
            x = batch.to(autoencoder.device)
            found = autoencoder.posterior(x)
            made = autoencoder.decode(autoencoder.normalise(found.mean)).float().cpu()
            likenesses.append(likeness(batch.float(), made))
            if sum(len(x) for x, _ in shown) < SHOWN:
                shown.append((batch[:SHOWN], made[:SHOWN]))
            done(len(batch))
            yield found

    statistics = statistics_of(latents())
    each = {name: torch.cat([found[name] for found in likenesses]) for name in likenesses[0]}
    originals, decoded = (torch.cat(parts)[:SHOWN] for parts in zip(*shown, strict=True))
    return Coded(averages(each), statistics, originals, decoded)


@METRICS.register("autoencoder")
@dataclass(frozen=True, kw_only=True)
class Codec(Metric):
    """What the autoencoder alone keeps of held-out images, its rate in bits, and the statistics of its latents.

    Images are decoded from the posterior's mean, and compared on [0, 1]. The rate is `KL(q(z|x) ‖ N(0, 1))` of the
    raw latents, and beside it that to the normal law of each channel's own mean and variance, which bounds the
    information in z on x; an encoder without a posterior has none. Statistics are of raw latents drawn from their
    posteriors: mean, deviation, excess kurtosis, and the power in rings of frequency over the variance, which is 1
    everywhere for white noise. The figure is the mean squared error; floors are the mean image and, where a latent
    is small, principal components of as many numbers.

    Source: Wang et al. 2004 (SSIM); Kingma and Welling 2014 (rate).

    Args:
        images: held-out images.
        fitted_on: training images, at most, that the floors are fitted to; 0 for no floors.
        batch: images at a time; changes the figures by rounding only.
        seed: of the choice of images and of the principal components.
    """

    images: Count = 500
    fitted_on: NonNegativeInt = 5_000
    batch: Count = 32
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For autoencoders that were trained in the run, where `reconstruction` does not tell of them already."""
        codec = subject.autoencoder
        own = not codec.trained and len(codec.images.shape) == 3
        return "the autoencoder was trained here" if own and not isinstance(subject.bridge, EncodingBridge) else ""

    def require(self, subject: Subject) -> None:
        """Images are needed, and an autoencoder of them."""
        if len(subject.autoencoder.images.shape) != 3:
            raise CapabilityError("the metric 'autoencoder' measures images; these data are none")

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is the mean squared error on [0, 1]."""
        self.require(subject)
        codec, data = subject.autoencoder, subject.test
        rows = data.rows(self.images, self.seed, "coded images")
        parts = (data.read(rows[k : k + self.batch]).x0.float() for k in range(0, len(rows), self.batch))
        with subject.watch("encoding and decoding", len(rows)) as advance:
            found = coded(codec, parts, advance)
        floors = self._floors(subject, rows)
        statistics = found.statistics
        rows_of = {"autoencoder": found.figures, **floors}
        columns = ["", "MSE on [0, 1]", "± SE", "PSNR of mean MSE", "mean PSNR", "± SE", "SSIM", "± SE"]
        title = f"{len(rows)} images of the {data.name}, latents of {codec.latent.numel} numbers"
        quality = Table(title, columns, [(n, list(f.values())) for n, f in rows_of.items()], better=BETTER)
        return Measured(
            found.figures["mse"] or 0.0,
            {name: figures["mse"] or 0.0 for name, figures in floors.items()},
            self._protocol(subject, len(rows)),
            {
                "count": len(rows),
                "measured on": data.name,
                "latent": list(codec.latent.shape),
                **rates(statistics),
                "figures": rows_of,
                "channels": channels(statistics),
            },
            of="autoencoder: MSE",
            digits=5,
            error=found.figures["se"],
            better="lower",
            tables=(quality, table_of(statistics), *spectra(statistics)),
            hidden=frozenset(("figures", "channels")),
            shown=(found.originals, found.decoded),
        )

    def _floors(self, subject: Subject, rows: Any) -> dict[str, Mapping[str, float | None]]:
        """The mean image, and as many principal components as a latent has numbers, where it is small."""
        if not self.fitted_on:
            return {}
        numbers = subject.autoencoder.latent.numel
        small = numbers <= LARGEST and numbers < subject.autoencoder.images.numel
        linear = Components.fit(subject.train, numbers if small else 1, self.fitted_on, self.seed)
        x = subject.test.read(rows).x0.float()
        found = {f"PCA, {len(linear.directions)} components": linear.round_trip(x)} if small else {}
        found["mean image"] = linear.mean.reshape(1, *x.shape[1:]).expand_as(x)
        return {name: averages(likeness(x, made)) for name, made in found.items()}

    def _protocol(self, subject: Subject, count: int) -> dict[str, Any]:
        codec = subject.autoencoder
        return {
            **{key: value for key, value in vars(self).items() if key != "batch"},
            "measured_on": subject.test.name,
            "count": count,
            "shape": list(codec.images.shape),
            "range": "[0, 1], clamped",
            "decoded_from": "the posterior's mean",
        }

    def picture(self, found: Measured) -> Image | None:
        """Originals over what the autoencoder makes of them."""
        if found.shown is None:
            return None
        originals, decoded = found.shown
        return grid(torch.cat([originals, decoded]), columns=len(originals))


def rates(found: LatentStatistics) -> dict[str, Any]:
    """Bits per image and per number of the latent; of a deterministic encoder the word that there are none."""
    if found.bits is None or found.fitted_bits is None:
        return {"rate": NONE}
    return {
        "bits per image": found.bits,
        "bits per latent number": found.bits / found.numbers,
        "bits per image, normal law of each channel": found.fitted_bits,
    }


def channels(found: LatentStatistics) -> dict[str, Any]:
    """Everything per channel, as JSON."""
    spectrum = None if found.spectrum is None else numbers(found.spectrum)
    return {name: numbers(getattr(found, name)) for name in ("mean", "std", "kurtosis")} | {"spectrum": spectrum}


def numbers(x: Tensor) -> Any:
    """Nested lists, with None where there is no number."""
    if x.ndim:
        return [numbers(part) for part in x]
    return x.item() if math.isfinite(x.item()) else None


def table_of(found: LatentStatistics) -> Table:
    """Statistics per channel."""
    rows = zip(numbers(found.mean), numbers(found.std), numbers(found.kurtosis), strict=True)
    return Table(
        "raw latents per channel",
        ["channel", "mean", "std", "excess kurtosis"],
        [(str(k), list(row)) for k, row in enumerate(rows)],
        digits=3,
    )


def spectra(found: LatentStatistics) -> tuple[Table, ...]:
    """Power over variance in each ring of frequencies: over the channels; nothing where there is no spectrum."""
    if found.spectrum is None or found.frequencies is None:
        return ()
    rows = [
        (f"{frequency:g}", [power.mean().item(), power.min().item(), power.max().item()])
        for frequency, power in zip(found.frequencies.tolist(), found.spectrum.T, strict=True)
    ]
    return (
        Table(
            "power over variance (white noise: 1)",
            ["cycles per side", "mean of the channels", "least", "most"],
            rows,
            digits=3,
        ),
    )
