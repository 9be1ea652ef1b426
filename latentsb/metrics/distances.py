"""How far two sets of features are apart: the Fréchet distance of their moments, and the kernel distance.

Both come with a standard error over both sets. Sets are drawn independently; the value is the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Cloud", "Estimate", "KernelSums", "frechet", "frechet_distance", "kid"]

DEGREE = 3
"""Of the polynomial kernel."""
BLOCKS = 20
"""Parts of a set that the jackknife leaves out in turn."""
NEGLIGIBLE = 1e-10
"""Eigenvalues below this part of the largest are rounding."""


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Cloud:
    """A set of features and its moments, in float64.

    Args:
        features: shape (N, F), N > 1.
    """

    features: Tensor

    @cached_property
    def mean(self) -> Tensor:
        """Shape (F,)."""
        return self.features.double().mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """Unbiased, shape (F, F)."""
        centred = self.features.double() - self.mean
        return centred.T @ centred / (len(centred) - 1)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of the covariance, none of them negative, and eigenvectors in columns."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp(min=0), vectors

    @cached_property
    def root(self) -> Tensor:
        """The square root of the covariance."""
        values, vectors = self.spectrum
        return (vectors * values.sqrt()) @ vectors.T


def frechet(a: Cloud, b: Cloud) -> Estimate:
    """Fréchet distance of the moments, with its standard error by the delta method.

    `d = |m_a − m_b|² + tr(C_a + C_b − 2 M^{1/2})`, `M = C_a^{1/2} C_b C_a^{1/2}`; the trace of the root is the sum
    of the roots of M's eigenvalues. A sample x of a moves d by

    `2 (m_a − m_b)·(x − m_a) + (x − m_a)ᵀ (1 − T) (x − m_a) − tr((1 − T) C_a)`, `T = C_a^{-1/2} M^{1/2} C_a^{-1/2}`,

    the derivative of d with respect to the law of a, in which T is the optimal map from a to b; likewise one of b
    with `T⁻¹ = C_a^{1/2} M^{-1/2} C_a^{1/2}`. The standard error is that of the means of these. It knows nothing of the
    bias: d is too large in small sets, all the more where there are fewer samples than features.

    Source: Dowson and Landau 1982; Heusel et al. 2017; derivative: Villani 2009, Optimal transport, ch. 5.

    Args:
        a: the set whose root is taken; give the one that is compared with many.
        b: the other; the distance is symmetric.
    """
    between = a.mean - b.mean
    values, vectors = torch.linalg.eigh(a.root @ b.covariance @ a.root)
    values = values.clamp(min=0)
    trace = a.covariance.trace() + b.covariance.trace() - 2 * values.sqrt().sum()
    distance = float((between.square().sum() + trace).clamp(min=0))
    own, axes = a.spectrum
    x, y = a.features.double() - a.mean, b.features.double() - b.mean
    white = ((x @ axes) * _inverse(own).sqrt()) @ axes.T
    seen = (white @ vectors).square() @ values.sqrt()
    shown = (y @ a.root @ vectors).square() @ _inverse(values).sqrt()
    moves_a = 2 * (x @ between) + x.square().sum(1) - seen
    moves_b = -2 * (y @ between) + y.square().sum(1) - shown
    return Estimate(distance, float((moves_a.var() / len(x) + moves_b.var() / len(y)).sqrt()))


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for what is only rounding."""
    known = values > NEGLIGIBLE * values.max().clamp(min=1e-300)
    return torch.where(known, 1 / values.where(known, torch.ones_like(values)), torch.zeros_like(values))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`|m_a − m_b|² + tr(C_a + C_b − 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})`, in float64.

    It is the squared 2-Wasserstein distance of the normal laws, and biased upwards in small sets, so figures are
    compared at equal numbers of samples.

    Source: Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions; Heusel et al. 2017.

    Args:
        a: features, shape (N, F), N > 1.
        b: shape (M, F), M > 1.
    """
    return frechet(Cloud(a), Cloud(b)).value


@dataclass(frozen=True, eq=False)
class KernelSums:
    """A set of features in blocks, and the sums of its own kernel `k(x, y) = (x·y / F + 1)³` between these.

    Args:
        features: shape (N, F), N > 1.
        blocks: of nearly equal size; no more than half as many as there are samples are made.
    """

    features: Tensor
    blocks: int = BLOCKS

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """The blocks, in float64."""
        groups = max(1, min(self.blocks, len(self.features) // 2))
        return tuple(torch.tensor_split(self.features.double(), groups))

    @cached_property
    def sizes(self) -> Tensor:
        """Samples of each block."""
        return torch.tensor([len(part) for part in self.parts], dtype=torch.float64)

    @cached_property
    def own(self) -> Tensor:
        """Sums over ordered pairs of two different samples, one of block i and one of block j; shape (G, G)."""
        itself = [(_scale(part.square().sum(1), part) ** DEGREE).sum() for part in self.parts]
        return self.across(self) - torch.stack(itself).diag()

    def across(self, other: KernelSums) -> Tensor:
        """Sums over pairs of this set and another one, by blocks; shape (G, H)."""
        whole = torch.cat(other.parts)
        sizes = [len(part) for part in other.parts]
        rows = [(_scale(part @ whole.T, part) ** DEGREE).sum(0) for part in self.parts]
        return torch.stack([torch.stack([block.sum() for block in torch.split(row, sizes)]) for row in rows])


def _scale(products: Tensor, like: Tensor) -> Tensor:
    return products / like.shape[1] + 1


def kid(a: Tensor | KernelSums, b: Tensor | KernelSums) -> Estimate:
    """Unbiased squared maximum mean discrepancy under the kernel `(x·y / F + 1)³`; over all pairs, not over subsets.

    `Σ_{i≠j} k(a_i, a_j) / (n (n−1)) + Σ_{i≠j} k(b_i, b_j) / (m (m−1)) − 2 Σ_{ij} k(a_i, b_j) / (n m)`. The standard
    error is the jackknife's over blocks of a and of b. Of equal laws the value is 0 on average, and as often negative.

    Source: Bińkowski et al. 2018, Demystifying MMD GANs (the kernel inception distance, in Inception's features).

    Args:
        a: features, shape (N, F), N > 1, or what is known of them.
        b: shape (M, F), M > 1.
    """
    a = a if isinstance(a, KernelSums) else KernelSums(a)
    b = b if isinstance(b, KernelSums) else KernelSums(b)
    cross = a.across(b)
    n, m = a.sizes.sum(), b.sizes.sum()

    def within(total: Tensor, count: Tensor) -> Tensor:
        return total / (count * (count - 1))

    value = within(a.own.sum(), n) + within(b.own.sum(), m) - 2 * cross.sum() / (n * m)
    variance = torch.zeros((), dtype=torch.float64)
    for one, other, between in ((a, b, cross), (b, a, cross.T)):
        if len(one.parts) < 2:
            return Estimate(float(value), float("nan"))
        left = one.sizes.sum() - one.sizes
        own = one.own.sum() - 2 * one.own.sum(1) + one.own.diagonal()
        without = within(own, left) - 2 * (between.sum() - between.sum(1)) / (left * other.sizes.sum())
        groups = len(one.parts)
        variance = variance + (groups - 1) / groups * (without - without.mean()).square().sum()
    return Estimate(float(value), float(variance.sqrt()))
