"""Density matrices in plain coordinates: the baseline beside the mirror map."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError
from latentsb.normalisers import Global, Normaliser
from latentsb.process.hermitian import coordinates, matrix_of
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["Plain"]


@AUTOENCODERS.register("hermitian")
class Plain(Autoencoder):
    """Density matrices as they are, in orthonormal coordinates: Hermitian and of trace one, positive or not.

    `y = coordinates(X − 1/n)` and back by `X = Y + 1/n`. The same basis and number of latents as `mirror`, so that the
    map alone is compared.

    Source: Zhu et al. 2024 (arXiv 2404.06336), whose Euclidean baseline this is, with trace one built in.

    Args:
        images: shape of one matrix, (n, n), complex.
        normaliser: of the latents; `global` has one scale, since one for each coordinate would prefer a basis.

    Raises:
        ArgumentError: if samples are no complex square matrices.
    """

    trained = deterministic = True
    latent_dtype = torch.float32
    bounded = False

    def __init__(self, images: Spec, *, normaliser: Normaliser = Global()) -> None:
        if len(images.shape) != 2 or images.shape[0] != images.shape[1] or not images.dtype.is_complex:
            raise ArgumentError("autoencoder", f"hermitian maps complex matrices (n, n), found samples of {images}")
        super().__init__(images, Spec((images.shape[0] ** 2 - 1,)), normaliser=normaliser)

    def moments(self, images: Tensor) -> Moments:
        """Coordinates of the traceless part; there is no posterior."""
        return Moments(coordinates(images).float())

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The matrix of coordinates, complex128."""
        n = self.images.shape[0]
        return matrix_of(raw) + torch.eye(n, dtype=torch.float64, device=raw.device) / n

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Zero for every row: there is nothing to train."""
        return Loss(torch.zeros(len(batch)))
