"""Density matrices: pictures of two channels (real and imaginary part), latents are the mirror map's coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.normalisers import Global
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss


class Mirror(Autoencoder):
    """`Y = I + log X` and back by `exp(Y − I) / trace`; an orthonormal basis makes Y a real vector of d² numbers.

    In these coordinates isotropic noise is isotropic on Hermitian matrices, so one affine serves all of them.
    """

    trained = True
    latent_dtype = torch.float32
    bounded = False

    def __init__(self, images: Spec, *, smallest: float = 1e-6) -> None:
        self.d = images.shape[-1]
        super().__init__(images, Spec((self.d**2,)), normaliser=Global())
        self.smallest = smallest

    def moments(self, images: Tensor) -> Moments:
        values, vectors = torch.linalg.eigh(torch.complex(images[:, 0].double(), images[:, 1].double()))
        logs = 1 + values.clamp_min(self.smallest).log()
        return Moments(self._pack(vectors * logs[:, None] @ vectors.mH).float())

    def raw_decode(self, raw: Tensor) -> Tensor:
        eye = torch.eye(self.d, device=raw.device)
        grown = torch.linalg.matrix_exp(self._unpack(raw.double()) - eye)
        rho = grown / grown.diagonal(dim1=-2, dim2=-1).sum(-1).real[:, None, None]
        return torch.stack([rho.real, rho.imag], 1).to(raw.dtype)

    def _pack(self, Y: Tensor) -> Tensor:
        upper = torch.triu_indices(self.d, self.d, 1)
        off = 2**0.5 * Y[:, upper[0], upper[1]]
        return torch.cat([Y.diagonal(dim1=-2, dim2=-1).real, off.real, off.imag], 1)

    def _unpack(self, y: Tensor) -> Tensor:
        upper, n = torch.triu_indices(self.d, self.d, 1), self.d * (self.d - 1) // 2
        Y = torch.diag_embed(y[:, : self.d]).to(torch.complex128)
        off = torch.complex(y[:, self.d : self.d + n], y[:, self.d + n :]) / 2**0.5
        Y[:, upper[0], upper[1]], Y[:, upper[1], upper[0]] = off, off.conj()
        return Y

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Nothing to learn: how far the map is from its inverse."""
        images = batch.pixels
        return Loss((self.decode(self.encode(images)) - images).square().flatten(1).mean(1))
