"""Hermitian matrices: isometric coordinates, the mirror map of density matrices, random unitaries, entanglement.

A density matrix ρ of n = 2^q dimensions is Hermitian, positive semi-definite and of trace one. Everything here is in
complex128, over leading batch dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "coordinates",
    "fidelity",
    "haar",
    "helmert",
    "log_traceless",
    "matrix_of",
    "matrix_softmax",
    "negativity",
    "partial_transpose",
    "purity",
    "smallest",
]


def helmert(n: int) -> Tensor:
    """Orthonormal rows that span the vectors of sum zero, shape (n − 1, n), float64.

    Row k is `(1, …, 1, −k, 0, …) / √(k (k + 1))` with k ones.
    """
    rows = torch.zeros(n - 1, n, dtype=torch.float64)
    for k in range(1, n):
        rows[k - 1, :k], rows[k - 1, k] = 1.0, -float(k)
        rows[k - 1] /= math.sqrt(k * (k + 1))
    return rows


def coordinates(y: Tensor) -> Tensor:
    """Coordinates of the traceless part of Hermitian matrices in an orthonormal basis of these.

    The diagonal in the basis of `helmert`, then `√2 Re` and `√2 Im` of what is above it, so that the Euclidean norm is
    the Frobenius norm and isotropic noise has a law that no unitary conjugation changes.

    Args:
        y: Hermitian, shape (…, n, n); the part along the identity is dropped.

    Returns:
        float64, shape (…, n² − 1).
    """
    n = y.shape[-1]
    row, column = torch.triu_indices(n, n, 1, device=y.device)
    above = math.sqrt(2) * y[..., row, column]
    diagonal = y.diagonal(dim1=-2, dim2=-1).real.double() @ helmert(n).to(y.device).T
    return torch.cat([diagonal, above.real.double(), above.imag.double()], -1)


def matrix_of(values: Tensor) -> Tensor:
    """The traceless Hermitian matrix of coordinates (…, n² − 1), complex128 of shape (…, n, n)."""
    n = math.isqrt(values.shape[-1] + 1)
    pairs = n * (n - 1) // 2
    diagonal, real, imaginary = torch.split(values.double(), [n - 1, pairs, pairs], dim=-1)
    row, column = torch.triu_indices(n, n, 1, device=values.device)
    above = torch.complex(real, imaginary) / math.sqrt(2)
    y = torch.diag_embed(diagonal @ helmert(n).to(values.device)).to(torch.complex128)
    y[..., row, column], y[..., column, row] = above, above.conj()
    return y


def log_traceless(x: Tensor) -> Tensor:
    """`log X − tr(log X)/n`, the gradient of the negative entropy `tr X log X` up to the identity, by eigenvectors.

    Args:
        x: Hermitian and positive definite, shape (…, n, n).
    """
    values, vectors = torch.linalg.eigh(x.to(torch.complex128))
    logs = values.log()
    return _composed(vectors, logs - logs.mean(-1, keepdim=True))


def matrix_softmax(y: Tensor) -> Tensor:
    """`exp Y / tr exp Y` of Hermitian matrices (…, n, n): a density matrix whatever Y, the same for Y + c.

    It is the gradient of `log tr exp Y`, the convex conjugate of the negative entropy over matrices of trace one.
    """
    values, vectors = torch.linalg.eigh(y.to(torch.complex128))
    return _composed(vectors, values.softmax(-1))


def _composed(vectors: Tensor, values: Tensor) -> Tensor:
    """The matrix of these eigenvectors (columns) and eigenvalues."""
    return (vectors * values[..., None, :]) @ vectors.mH


def _spectrum(x: Tensor) -> Tensor:
    """Eigenvalues, ascending."""
    values: Tensor = torch.linalg.eigvalsh(x.to(torch.complex128))
    return values


def haar(ginibre: Tensor) -> Tensor:
    """Unitary matrices with the Haar law, from matrices of independent complex normal numbers (…, n, n).

    The QR decomposition alone is not Haar: its phases are those of the algorithm. With the phases of R's diagonal in
    the columns of Q it is.

    Source: Mezzadri 2007, How to generate random matrices from the classical compact groups.
    """
    q, r = torch.linalg.qr(ginibre.to(torch.complex128))
    d = r.diagonal(dim1=-2, dim2=-1)
    unitary: Tensor = q * (d / d.abs())[..., None, :]
    return unitary


def smallest(x: Tensor) -> Tensor:
    """Smallest eigenvalue of Hermitian matrices (…, n, n), float64."""
    return _spectrum(x)[..., 0]


def purity(x: Tensor) -> Tensor:
    """`tr ρ²`, in [1/n, 1] for a density matrix."""
    return x.to(torch.complex128).abs().square().sum((-2, -1))


def fidelity(x: Tensor, y: Tensor) -> Tensor:
    """`(tr √(√ρ σ √ρ))²` of density matrices, in [0, 1].

    Source: Uhlmann 1976; Jozsa 1994 (with the square).
    """
    values, vectors = torch.linalg.eigh(x.to(torch.complex128))
    root = _composed(vectors, values.clamp_min(0.0).sqrt())
    inner = _spectrum(root @ y.to(torch.complex128) @ root).clamp_min(0.0)
    return inner.sqrt().sum(-1).square()


def partial_transpose(x: Tensor, first: int) -> Tensor:
    """The transpose of the first factor alone, of matrices (…, n, n) on a space of `first` × n/first dimensions."""
    n = x.shape[-1]
    parts = x.reshape(*x.shape[:-2], first, n // first, first, n // first)
    return parts.transpose(-4, -2).reshape(x.shape)


def negativity(x: Tensor, first: int = 2) -> Tensor:
    """Sum of |negative eigenvalues| of the partial transpose: 0 where the two parts are not entangled.

    Source: Vidal and Werner 2002, Computable measure of entanglement.

    Args:
        x: density matrices, shape (…, n, n).
        first: dimensions of the first part; 2 is the first qubit against all others.
    """
    return -_spectrum(partial_transpose(x, first)).clamp_max(0.0).sum(-1)
