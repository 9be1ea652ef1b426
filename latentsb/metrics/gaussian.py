"""Gaussian (Wiener) denoisers fitted to data: what linear algebra reaches at every noise level, without a network.

For data `x ~ N(m, S)` and `y = x + σ ε` the best estimate is `m + S (S + σ²)^{-1} (y − m)`, with the error
`tr S σ² (S + σ²)^{-1}`. Coordinates in which S has blocks make it affordable: over the spatial frequencies of
stationary data each block is the covariance of the channels at one frequency.

Source: Wiener 1949, Extrapolation, interpolation and smoothing of stationary time series.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Basis", "Cosine", "Fourier", "Gaussian", "Moments", "Whole", "fit"]

FULL = 1024
"""Largest dimension for which the full covariance is fitted."""
SHRINKAGES = (0.0, 0.03, 0.1, 0.3)
"""Weights of the diagonal in a covariance block, of which cross-validation chooses."""
FOLDS = 4
CHANNEL, WHOLE = "per channel", "full"


class Basis(ABC):
    """Orthonormal coordinates of samples, in K blocks of d numbers.

    Args:
        shape: of one sample, channels first.
    """

    word = ""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Coordinates of samples (B, *shape), shape (B, K, d)."""

    @abstractmethod
    def back(self, coordinates: Tensor) -> Tensor:
        """Samples of coordinates, shape (B, *shape)."""


class Whole(Basis):
    """One block of all numbers."""

    word = WHOLE

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.flatten(1)[:, None]

    def back(self, coordinates: Tensor) -> Tensor:
        """See the class."""
        return coordinates.reshape(-1, *self.shape)


class Cosine(Basis):
    """Channels at each frequency of the discrete cosine transform (type II), which mirrors samples at their borders.

    Samples without spatial dimensions are one block.
    """

    word = "cosine"

    @cached_property
    def _matrices(self) -> list[Tensor]:
        def matrix(n: int) -> Tensor:
            k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
            rows = torch.cos(torch.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
            rows[0] /= math.sqrt(2)
            return rows

        return [matrix(n) for n in self.shape[1:]]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for matrix in self._matrices:
            x = torch.tensordot(x, matrix.to(x), dims=([2], [1]))  # a transformed dimension goes last: they rotate
        return x.reshape(len(x), self.shape[0], -1).transpose(1, 2)

    def back(self, coordinates: Tensor) -> Tensor:
        """See the class."""
        x = coordinates.transpose(1, 2).reshape(-1, *self.shape)
        for matrix in self._matrices:
            x = torch.tensordot(x, matrix.to(x), dims=([2], [0]))
        return x


class Fourier(Basis):
    """Channels at each frequency of the discrete Fourier transform, which repeats samples beyond their borders."""

    word = "Fourier"

    def forward(self, x: Tensor) -> Tensor:
        """See the class; complex."""
        dims = tuple(range(2, x.ndim))
        found: Tensor = torch.fft.fftn(x, dim=dims, norm="ortho")
        return found.reshape(len(x), self.shape[0], -1).transpose(1, 2)

    def back(self, coordinates: Tensor) -> Tensor:
        """See the class; real."""
        x = coordinates.transpose(1, 2).reshape(-1, *self.shape)
        found: Tensor = torch.fft.ifftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
        return found.real


@dataclass(frozen=True)
class Moments:
    """Sums over samples in a basis, which add up.

    Args:
        count: samples.
        total: sum of the coordinates, shape (K, d).
        square: sum of their outer products, shape (K, d, d).
    """

    count: int
    total: Tensor
    square: Tensor

    @classmethod
    def of(cls, coordinates: Tensor) -> Moments:
        """Sums over a batch of coordinates (B, K, d)."""
        c = coordinates.transpose(0, 1)
        return cls(len(coordinates), c.sum(1), c.transpose(1, 2) @ c.conj())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    @property
    def mean(self) -> Tensor:
        """Shape (K, d)."""
        return self.total / self.count

    def about(self, centre: Tensor) -> Tensor:
        """Mean outer product of deviations from a centre (K, d), shape (K, d, d)."""
        mean, c = self.mean, centre
        cross = mean[:, :, None] * c[:, None, :].conj()
        return self.square / self.count - cross - cross.mH + c[:, :, None] * c[:, None, :].conj()


@dataclass(frozen=True)
class Gaussian:
    """A normal law whose covariance has blocks in a basis.

    Args:
        name: of the strength.
        basis: its coordinates.
        mean: shape (K, d).
        values: eigenvalues of the blocks, shape (K, d), not negative.
        vectors: eigenvectors in columns, shape (K, d, d); None where blocks are diagonal.
        shrinkage: weight of the diagonal.
    """

    name: str
    basis: Basis
    mean: Tensor
    values: Tensor
    vectors: Tensor | None = None
    shrinkage: float = 0.0

    @classmethod
    def blocks(cls, basis: Basis, moments: Moments, shrinkage: float) -> Gaussian:
        """The law of these moments, each block mixed with its own diagonal."""
        block = moments.about(moments.mean)
        diagonal = torch.diag_embed(block.diagonal(dim1=1, dim2=2))
        values, vectors = torch.linalg.eigh((1 - shrinkage) * block + shrinkage * diagonal)
        return cls(basis.word, basis, moments.mean, values.clamp(min=0), vectors, shrinkage)

    @classmethod
    def per_channel(cls, basis: Cosine, moments: Moments) -> Gaussian:
        """Independent numbers with the mean and the variance of their channel."""
        mean = moments.mean.clone()
        mean[1:] = 0  # the mean of a channel is its lowest frequency
        variance = moments.about(mean).diagonal(dim1=1, dim2=2).mean(0)
        return cls(CHANNEL, basis, mean, variance.expand_as(mean).clone())

    @property
    def centre(self) -> Tensor:
        """The mean as a sample, float64, shape (1, *shape)."""
        return self.basis.back(self.mean[None])

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        """`E[x | x + σ ε = y]`, shape of y."""
        off = self.basis.forward(y)
        wide = off.dtype
        off = off - self.mean.to(wide)
        gain = (self.values / (self.values + sigma**2)).to(y.dtype)
        if self.vectors is None:
            kept = gain * off
        else:
            vectors, rows = self.vectors.to(wide), off.transpose(0, 1)
            kept = ((rows @ vectors.conj()) * gain[:, None]) @ vectors.transpose(1, 2)
            kept = kept.transpose(0, 1)
        return self.basis.back(kept + self.mean.to(wide)).to(y.dtype)

    def error(self, sigma: float, moments: Moments | None = None) -> float:
        """Mean squared error per dimension of `denoise` in closed form.

        With gains `g = λ/(λ + σ²)` it is `Σ (1 − g)² r + σ² g²`, r being the second moment about the mean along each
        eigenvector; of the law itself, where r = λ, that is `Σ λ σ²/(λ + σ²)`.

        Args:
            sigma: noise level.
            moments: of other data in the same basis; those of the law if None.
        """
        gain = self.values / (self.values + sigma**2)
        r = self.values
        if moments is not None:
            about = moments.about(self.mean)
            if self.vectors is None:
                r = about.diagonal(dim1=1, dim2=2).real
            else:
                r = ((about @ self.vectors) * self.vectors.conj()).sum(1).real
        return float(((1 - gain).square() * r + sigma**2 * gain.square()).mean())


def fit(
    batches: Iterable[Tensor], shape: Sequence[int], sigmas: Sequence[float], *, together: int = 1
) -> dict[str, list[Gaussian]]:
    """Fit Gaussians of several strengths to data; cross-validation chooses how much each is shrunk.

    The strengths are the variance `per channel`; the covariance of the channels at each spatial frequency, by `cosine`
    and by `Fourier`; and the `full` covariance where the dimension is small. `best` is the one of least
    cross-validated error at each noise level, so it may differ between levels. Nothing but the given data decides.

    Args:
        batches: of samples (B, *shape), four samples at least.
        shape: of one sample, channels first.
        sigmas: noise levels.
        together: how many samples in a row belong to one, such as an image and its mirror image; cross-validation
            never parts them.

    Returns:
        By strength one Gaussian per noise level.

    Raises:
        ValueError: if there are fewer samples than folds.
    """
    spatial = len(shape) > 1
    bases: list[Basis] = [Cosine(shape)]
    if spatial:
        bases.append(Fourier(shape))
        bases += [Whole(shape)] if math.prod(shape) <= FULL else []
    folds: list[list[Moments | None]] = [[None] * FOLDS for _ in bases]
    seen = 0
    for batch in batches:
        x = batch.double().cpu()
        places = torch.arange(seen, seen + len(x)) // together % FOLDS  # among all samples, whatever the batches
        for k, basis in enumerate(bases):
            coordinates = basis.forward(x)
            for fold in range(FOLDS):
                part = coordinates[places == fold]
                if len(part):
                    known = folds[k][fold]
                    folds[k][fold] = Moments.of(part) if known is None else known + Moments.of(part)
        seen += len(x)
    found: dict[str, list[Gaussian]] = {}
    errors: dict[str, list[float]] = {}
    for basis, parts in zip(bases, folds, strict=True):
        whole = [part for part in parts if part is not None]
        if len(whole) < FOLDS:
            raise ValueError(f"found fewer than {FOLDS} samples to fit Gaussians to")
        strengths = [CHANNEL] if isinstance(basis, Cosine) else []
        for strength in [*strengths, basis.word if spatial else WHOLE]:
            found[strength], errors[strength] = _chosen(basis, strength, whole, sigmas)
    least = [min(errors, key=lambda strength: errors[strength][k]) for k in range(len(sigmas))]
    found["best"] = [found[strength][k] for k, strength in enumerate(least)]
    return found


def _chosen(
    basis: Basis, strength: str, folds: Sequence[Moments], sigmas: Sequence[float]
) -> tuple[list[Gaussian], list[float]]:
    """The Gaussian of one strength for each noise level, and its cross-validated error there."""

    def law(moments: Moments, shrinkage: float) -> Gaussian:
        if strength == CHANNEL:
            assert isinstance(basis, Cosine)
            return Gaussian.per_channel(basis, moments)
        return replace(Gaussian.blocks(basis, moments, shrinkage), name=strength)

    options = (0.0,) if strength == CHANNEL else SHRINKAGES
    table = torch.zeros(len(options), len(sigmas), dtype=torch.float64)
    for held, part in enumerate(folds):
        rest = _sum([m for k, m in enumerate(folds) if k != held])
        for row, shrinkage in enumerate(options):
            one = law(rest, shrinkage)
            table[row] += torch.tensor([one.error(s, part) for s in sigmas], dtype=torch.float64) / len(folds)
    laws = [law(_sum(folds), shrinkage) for shrinkage in options]
    rows = table.argmin(0)
    return [laws[int(r)] for r in rows], table.amin(0).tolist()


def _sum(parts: Sequence[Moments]) -> Moments:
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found
