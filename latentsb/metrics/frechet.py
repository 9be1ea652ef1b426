"""Fréchet distance of two sets of features: how far apart the normal laws with their moments are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance"]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """`|m_a − m_b|² + tr(C_a + C_b − 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})`, in float64.

    It is the squared 2-Wasserstein distance of the normal laws, and biased upwards in small sets, so figures are
    compared at equal numbers of samples.

    Source: Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions; Heusel et al. 2017.

    Args:
        a: features, shape (N, F), N > 1.
        b: shape (M, F), M > 1.
    """
    a, b = a.double(), b.double()
    between = (a.mean(0) - b.mean(0)).square().sum()
    one, other = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float((between + one.trace() + other.trace() - 2 * cross).clamp(min=0))
