"""Principal components of images: the linear code of a given length with the smallest squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentsb.metrics.base import Data

__all__ = ["NUMBERS", "Components"]

NUMBERS = 1 << 28
"""Largest number of pixels that are held at once (1 GB)."""


@dataclass(frozen=True)
class Components:
    """A linear code and its decoder.

    Args:
        mean: shape (D,).
        directions: orthonormal rows, shape (K, D).
        fitted_on: samples.
    """

    mean: Tensor
    directions: Tensor
    fitted_on: int

    @classmethod
    def fit(cls, data: Data, dim: int, limit: int, seed: int) -> Components:
        """Fit to samples of the data, and their mirror images where training sees them, by randomised iteration.

        Source: Halko, Martinsson and Tropp 2011, Finding structure with randomness.

        Args:
            data: whose pixels are read.
            dim: length of the code; shorter where there are fewer samples or pixels.
            limit: samples, at most.
            seed: of the choice of samples and of the iteration.
        """
        from sklearn.decomposition import PCA

        pixels = data.source.spec.numel
        limit = min(limit, NUMBERS // (pixels * data.source.variants))
        rows = data.rows(max(2, limit), seed, "fitted components")
        x = np.concatenate([batch.flatten(1).float().numpy() for batch in data.batches(rows)])
        dim = min(dim, *x.shape)
        small = min(x.shape) <= 4 * dim
        solver = "full" if small else "randomized"
        found = PCA(dim, svd_solver=solver, random_state=seed).fit(x.astype(np.float64) if small else x)
        mean, directions = (torch.from_numpy(np.asarray(v)).float() for v in (found.mean_, found.components_))
        return cls(mean, directions, len(x))

    def encode(self, x: Tensor) -> Tensor:
        """Codes of samples (B, …), shape (B, K)."""
        return (x.flatten(1).float() - self.mean) @ self.directions.T

    def decode(self, codes: Tensor, like: Tensor) -> Tensor:
        """Samples of codes, shape of `like`."""
        return (codes @ self.directions + self.mean).reshape(like.shape)

    def round_trip(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`, shape of x."""
        return self.decode(self.encode(x), x)
