"""The mirror map: density matrices become vectors in which nothing is forbidden."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError, DataError
from latentsb.normalisers import Global, Normaliser
from latentsb.process.hermitian import coordinates, log_traceless, matrix_of, matrix_softmax
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["Mirror"]


@AUTOENCODERS.register("mirror")
class Mirror(Autoencoder):
    """Density matrices as their logarithm: whatever a bridge makes of the latents decodes to a density matrix.

    `y = coordinates(log X − tr(log X)/n)` and back by `X = exp Y / tr exp Y`, in float64. The coordinates are those of
    an orthonormal basis of the traceless Hermitian matrices, n² − 1 real numbers: noise in them has no preferred basis,
    and trace one is exact. Latents are float32.

    Source: Zhu et al. 2024, Structure-preserving diffusion models of density matrices (arXiv 2404.06336), with the
    identity, which changes no state, projected out.

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
            raise ArgumentError("autoencoder", f"mirror maps complex matrices (n, n), found samples of {images}")
        super().__init__(images, Spec((images.shape[0] ** 2 - 1,)), normaliser=normaliser)

    def moments(self, images: Tensor) -> Moments:
        """Coordinates of the traceless logarithm; there is no posterior.

        Raises:
            DataError: if a matrix has an eigenvalue that is not positive.
        """
        least = float(torch.linalg.eigvalsh(images).min())
        if not least > 0:
            raise DataError(
                f"mirror: a matrix has the eigenvalue {least:.3g}, whose logarithm does not exist; mix the matrices "
                "with a little of the identity, `(1 − ε) X + ε/n` (data.depolarise=1e-4 of the data 'qubits')"
            )
        return Moments(coordinates(log_traceless(images)).float())

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The density matrix of coordinates, complex128."""
        return matrix_softmax(matrix_of(raw))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Zero for every row: there is nothing to train."""
        return Loss(torch.zeros(len(batch)))
