"""Does a cache hold the latents of these images, and does the decoder understand them? A test of a few images.

A wrong cache, a wrong decoder, a wrong type of number, a scale that is applied twice or not at all: all of them train
without an error, to noise. Each shows in eight images, encoded and decoded, beside what the cache holds of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.data.source import Source
from latentsb.errors import CacheError, DataError
from latentsb.randomness import Draws

if TYPE_CHECKING:
    from latentsb.cache import LatentCache

__all__ = ["FLOOR", "Kept", "RoundTrip", "Tested", "chosen", "decibel", "kept", "measured", "prove", "sides"]

IMAGES, FEWER = 8, 2
"""Images of a test before the first step, and of one before training goes on."""
PIXELS = IMAGES * 3 * 256**2
"""Numbers in the images of a test, at most, unless one image has more."""
FLOOR = 0.01
"""Mean squared error (a PSNR of 26 dB) below which no round trip is called wrong, however much images are alike."""
APART = 0.02
"""Of a latent's standard deviation: what another device, batch or library may change in it (root mean square)."""
BRIGHTER = 0.02
"""Of the half range of pixels: what they may change in the decoded images (root mean square)."""
WORSE = 1.25
"""Times the error of the round trip: what an old cache, which remembers none, may have more (root mean square)."""


@dataclass(frozen=True)
class RoundTrip:
    """What `decode(encode(x))` leaves of some images.

    Args:
        errors: mean squared error of each image, whose pixels are in [-1, 1].
        floor: that of the mean of these images in place of each of them.
    """

    errors: tuple[float, ...]
    floor: float

    @classmethod
    def of(cls, decoded: Tensor, images: Tensor) -> RoundTrip:
        """Compare images (B, C, H, W)."""
        errors = (decoded - images).abs().double().square().flatten(1).mean(1)
        floor = (images - images.mean(0)).abs().double().square().mean()
        return cls(tuple(errors.tolist()), float(floor))

    @property
    def error(self) -> float:
        """Mean squared error of all images."""
        return sum(self.errors) / len(self.errors)

    def told(self) -> str:
        """`28.93 dB`."""
        return decibel(self.error)


@dataclass(frozen=True)
class Kept:
    """A round trip that a cache remembers: through the latents as they are kept, by the decoder of that time.

    Args:
        index: of the images.
        errors: mean squared error of each.
    """

    index: tuple[int, ...]
    errors: tuple[float, ...]

    def json(self) -> dict[str, Any]:
        """JSON values; errors to six digits."""
        return {"index": list(self.index), "errors": [float(f"{error:.6g}") for error in self.errors]}

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Kept | None:
        """What `json` returned; None where a cache remembers none."""
        return None if values is None else cls(tuple(values["index"]), tuple(values["errors"]))


@dataclass(frozen=True)
class Tested:
    """What the test of a cache found.

    Args:
        own: the round trip, encoded and decoded now.
        cached: decoded now from what the cache holds.
        apart: difference of the latents, root mean square, of their standard deviation.
        allowed: the largest `apart`.
        before: the round trip that the cache remembers, of the same images; None if none.
    """

    own: RoundTrip
    cached: RoundTrip
    apart: float
    allowed: float
    before: RoundTrip | None


def decibel(error: float) -> str:
    """PSNR of a mean squared error in [-1, 1]."""
    return f"{10 * math.log10(4 / error):.2f} dB" if error > 0 else "∞ dB"


def chosen(source: Source, images: int = IMAGES) -> np.ndarray:
    """Positions of a few samples, evenly over the data; fewer of large images."""
    n = max(1, min(images, len(source), PIXELS // source.spec.numel))
    return np.unique(np.linspace(0, len(source) - 1, n).round().astype(np.int64))


def sides(source: Source, index: np.ndarray) -> np.ndarray:
    """Every second one is mirrored, where the data are."""
    return np.arange(len(index)) % source.variants


@torch.no_grad()
def measured(source: Source, autoencoder: Autoencoder, index: np.ndarray) -> tuple[RoundTrip, Tensor, Tensor]:
    """Encode and decode images now.

    Returns:
        The round trip, the images, and their normalised latents, on the CPU.
    """
    images = source.read(index, sides(source, index)).x0
    device = autoencoder.shift.device
    latents = autoencoder.encode(images.to(device))
    return RoundTrip.of(_wide(autoencoder.decode(latents)), images), images, latents.cpu().float()


@torch.no_grad()
def kept(source: Source, autoencoder: Autoencoder, index: np.ndarray, raw: Tensor) -> Kept:
    """The round trip through raw latents, as a cache that is being made holds them."""
    images = source.read(index, sides(source, index)).x0
    decoded = _wide(autoencoder.decode(autoencoder.normalise(raw.to(autoencoder.shift.device))))
    return Kept(tuple(index.tolist()), RoundTrip.of(decoded, images).errors)


def prove(cache: LatentCache, source: Source, autoencoder: Autoencoder, *, fewer: bool = False) -> Tested:
    """Test that a cache holds the latents of the data and that the decoder makes the images of them.

    Args:
        cache: of the data.
        source: of the images.
        autoencoder: in evaluation mode, with its normaliser fitted.
        fewer: two images, for where training goes on.

    Returns:
        What was found, where nothing is wrong.

    Raises:
        CacheError: if the cache holds other latents, or another decoder than now made images of them.
        DataError: if a pretrained autoencoder's images are worse than the mean image.
    """
    index = chosen(source)
    index = index[:: max(1, len(index) // FEWER)][:FEWER] if fewer else index
    own, images, latents = measured(source, autoencoder, index)
    held = cache.read(index, sides(source, index)).x0
    with torch.no_grad():
        decoded = _wide(autoencoder.decode(held.to(autoencoder.shift.device)))
    found = Tested(
        own,
        RoundTrip.of(decoded, images),
        float((held - latents).square().mean().sqrt()),
        APART + 2 * max(cache.lost("mean")["rms"], default=0.0),
        _before(cache.round_trip, index, own.floor),
    )
    what = f"{len(index)} images decoded from the latent cache {cache.path} have a PSNR of {found.cached.told()}"
    worse = math.sqrt(found.cached.error) > WORSE * math.sqrt(own.error) + BRIGHTER
    if not found.apart <= found.allowed or (found.before is None and worse):
        raise CacheError(
            f"{what}, encoded and decoded now {own.told()}; their latents differ by {found.apart:.3g} of their "
            f"standard deviation, expected at most {found.allowed:.3g}: the cache holds other latents than this "
            "autoencoder's; remove that folder to encode again"
        )
    if found.before is not None and not _moved(found.cached, found.before) <= BRIGHTER:
        raise CacheError(
            f"{what}, and had {found.before.told()} when it was made: the decoder is another one, or its code; "
            "bring it back, or remove that folder to encode again"
        )
    _others(cache, source, autoencoder, index, found.allowed)
    if autoencoder.trained and not own.error <= max(own.floor, FLOOR):
        raise DataError(
            f"the autoencoder '{type(autoencoder).__name__}' leaves {len(index)} training images a PSNR of "
            f"{own.told()}, less than their mean image would have ({decibel(own.floor)}): weights that are not this "
            "autoencoder's, or images that are not what it was trained on; see what `latentsb check` says of them"
        )
    return found


def _wide(decoded: Tensor) -> Tensor:
    """On the CPU, float32 at least; complex matrices stay what they are."""
    return decoded.cpu() if decoded.is_complex() else decoded.cpu().float()


def _moved(now: RoundTrip, before: RoundTrip) -> float:
    """How far decoded images moved at least (root mean square), by the triangle inequality for each of them."""
    apart = [math.sqrt(a) - math.sqrt(b) for a, b in zip(now.errors, before.errors, strict=True)]
    return math.sqrt(sum(d * d for d in apart) / len(apart))


def _before(kept: Kept | None, index: np.ndarray, floor: float) -> RoundTrip | None:
    """What the cache remembers of these very images."""
    known = {} if kept is None else dict(zip(kept.index, kept.errors, strict=True))
    return RoundTrip(tuple(known[k] for k in index.tolist()), floor) if known.keys() >= set(index.tolist()) else None


def _others(cache: LatentCache, source: Source, autoencoder: Autoencoder, index: np.ndarray, allowed: float) -> None:
    """The same of the other end's latents, where there is one."""
    if not cache.partners:
        return
    at = index % cache.partners
    images = source.draw_x1(at, None, Draws.seeds(at.tolist()))
    held = cache.read(at).x1
    assert held is not None
    with torch.no_grad():
        latents = autoencoder.encode(images.to(autoencoder.shift.device)).cpu().float()
    apart = float((held - latents).square().mean().sqrt())
    if not apart <= allowed:
        raise CacheError(
            f"{len(at)} latents of x1 in the latent cache {cache.path} differ from those of the images by {apart:.3g} "
            f"of their standard deviation, expected at most {allowed:.3g}; remove that folder to encode again"
        )
