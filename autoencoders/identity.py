"""The identity: pixels and vectors are their own latents."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.normalisers import Normaliser, Unchanged
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["Identity"]


@AUTOENCODERS.register("identity")
class Identity(Autoencoder):
    """Samples as they are: bridges in pixel space, on vectors, or on latents that were made elsewhere.

    Args:
        images: shape of one sample, of any rank.
        normaliser: `none` leaves samples untouched; `channel` gives them mean 0 and standard deviation 1.
    """

    trained = deterministic = True
    latent_dtype = torch.float32
    bounded = False
    any_size = True
    is_identity = True
    cached = False

    def __init__(self, images: Spec, *, normaliser: Normaliser = Unchanged()) -> None:
        super().__init__(images, images, normaliser=normaliser)

    def moments(self, images: Tensor) -> Moments:
        """The samples."""
        return Moments(images)

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The samples."""
        return raw

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Zero for every row: there is nothing to train."""
        return Loss(torch.zeros(len(batch)))
