"""Perceptrons for vectors: a small nonlinear autoencoder, trained by reconstruction."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["MLPAutoencoder"]


def perceptron(before: int, after: int, width: int, depth: int) -> nn.Sequential:
    """`depth` hidden layers of one width with SiLU between linear maps."""
    sizes = [before, *[width] * depth]
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, after))


@AUTOENCODERS.register("mlp")
class MLPAutoencoder(Autoencoder):
    """Two perceptrons, samples to a short vector and back, trained by squared error; for vectors and small arrays.

    Source: Hinton and Salakhutdinov 2006, Reducing the dimensionality of data with neural networks.

    Args:
        images: shape of one sample, of any rank; it is flattened.
        dim: numbers in the latent.
        width: of the hidden layers.
        depth: hidden layers of each half.
        normaliser: of the latents.

    Raises:
        ArgumentError: if the latent is longer than the sample.
    """

    deterministic = True

    latent_dtype = torch.float32

    def __init__(
        self, images: Spec, *, dim: Count = 2, width: Count = 128, depth: Count = 2, normaliser: Normaliser = Channel()
    ) -> None:
        if dim > images.numel:
            raise ArgumentError("dim", f"found {dim}; samples have {images.numel} numbers")
        super().__init__(images, Spec((dim,)), normaliser=normaliser)
        self.bounded = len(images.shape) == 3
        self.encoder = perceptron(images.numel, dim, width, depth)
        self.decoder = perceptron(dim, images.numel, width, depth)

    def moments(self, images: Tensor) -> Moments:
        """The code; there is no posterior."""
        return Moments(self.encoder(images.flatten(1)))

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The sample of a code."""
        found: Tensor = self.decoder(raw)
        return found.reshape(-1, *self.images.shape)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`|D(E(x)) − x|²`, mean over a sample, shape (B,)."""
        found = self.raw_decode(self.moments(batch.data).mean)
        return Loss((found - batch.data).square().flatten(1).mean(1))
