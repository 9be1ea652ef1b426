"""The Gaussian law of a bridge's state given its ends, and the coordinates that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.tensors import expand_as

__all__ = ["Marginal"]


@dataclass(frozen=True)
class Marginal:
    """`X_t | x0, x1 ~ N(a x1 + b x0, c I)` at a batch of times.

    In the coordinates `y = (x − a x1) / b = x0 + sigma_eff ε` every denoising bridge is one and the same diffusion,
    with `1/sigma_eff² = SNR_t − SNR_1` (Zheng et al. 2024, DBIM; derived for any scalar reference).

    Args:
        a: weight of x1, float64, shape (B,) or ().
        b: weight of x0.
        c: variance (not a standard deviation).
    """

    a: Tensor
    b: Tensor
    c: Tensor

    @property
    def std(self) -> Tensor:
        """`sqrt(c)`."""
        return self.c.sqrt()

    @property
    def sigma_eff(self) -> Tensor:
        """Noise per unit of signal, `sqrt(c) / b`; infinite where b = 0."""
        return torch.where(self.b == 0, torch.inf, self.c.sqrt() / self.b)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio `b² / c = 1 / sigma_eff²`; zero where b = 0, infinite where only c = 0."""
        return torch.where(self.b == 0, 0.0, self.b.square() / self.c)

    def mean(self, x0: Tensor, x1: Tensor | None) -> Tensor:
        """`a x1 + b x0`; x1 None stands for zero."""
        out = expand_as(self.b, x0) * x0
        return out if x1 is None else out + expand_as(self.a, x0) * x1

    def sample(self, x0: Tensor, x1: Tensor | None, noise: Tensor) -> Tensor:
        """`a x1 + b x0 + sqrt(c) noise`, shape of x0."""
        return self.mean(x0, x1) + expand_as(self.std, x0) * noise

    def to_y(self, x: Tensor, x1: Tensor | None) -> Tensor:
        """`y = (x − a x1) / b`; needs b > 0."""
        shifted = x if x1 is None else x - expand_as(self.a, x) * x1
        return shifted / expand_as(self.b, x)

    def from_y(self, y: Tensor, x1: Tensor | None) -> Tensor:
        """`x = b y + a x1`, the inverse of `to_y`."""
        out = expand_as(self.b, y) * y
        return out if x1 is None else out + expand_as(self.a, y) * x1

    def score(self, x: Tensor, x0: Tensor, x1: Tensor | None) -> Tensor:
        """`∇ log p_t(x | x0, x1) = −(x − a x1 − b x0) / c`; with x0 the posterior mean it is the learned score."""
        return -(x - self.mean(x0, x1)) / expand_as(self.c, x)

    def noise(self, x: Tensor, x0: Tensor, x1: Tensor | None) -> Tensor:
        """`(x − a x1 − b x0) / sqrt(c)`, the noise that `sample` would have used."""
        return (x - self.mean(x0, x1)) / expand_as(torch.sqrt(self.c), x)
