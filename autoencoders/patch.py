"""Space to depth: patches as channels, without loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments, sizes_near
from latentsb.errors import ArgumentError
from latentsb.normalisers import Normaliser, Unchanged
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["Patch"]


@AUTOENCODERS.register("patch")
class Patch(Autoencoder):
    """Pixels of each patch as the channels of one latent position: lossless, without weights.

    Channel `c f² + i f + j` at (y, x) is the pixel of channel c at (f y + i, f x + j). Like pixels, latents are not
    cached: they are cut as images are read.

    Source: Shi et al. 2016, Real-time single image and video super-resolution (its layer, backwards).

    Args:
        images: shape of one image, (C, H, W).
        factor: side of a patch; divides both sides.
        normaliser: `none` leaves pixels untouched, so that the round trip is exact to the bit; others to rounding.

    Raises:
        ArgumentError: if samples are no images, or the factor does not divide their sides.
    """

    trained = deterministic = True
    latent_dtype = torch.float32
    bounded = False
    cached = False
    any_size = True

    def __init__(self, images: Spec, *, factor: Count = 2, normaliser: Normaliser = Unchanged()) -> None:
        if len(images.shape) != 3:
            raise ArgumentError("images", f"patch needs images (C, H, W), found samples of shape {images.shape}")
        channels, height, width = images.shape
        if height % factor or width % factor:
            raise ArgumentError("factor", f"{factor} does not divide {sizes_near(images, factor)}")
        latent = Spec((channels * factor**2, height // factor, width // factor))
        super().__init__(images, latent, normaliser=normaliser)
        self.side = factor

    def moments(self, images: Tensor) -> Moments:
        """The patches."""
        return Moments(F.pixel_unshuffle(images, self.side))

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The image that they make up."""
        return F.pixel_shuffle(raw, self.side)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Zero for every row: there is nothing to train."""
        return Loss(torch.zeros(len(batch)))
