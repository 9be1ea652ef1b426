"""Measurements: what is seen of a sample, and how likely it is given another sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.randomness import Draws
from latentsb.ranges import OpenFraction, Positive, enforce
from latentsb.registry import Registry
from latentsb.tensors import Spec, expand_as

__all__ = ["MEASUREMENTS", "Linear", "Mask", "Measurement"]


class Measurement(ABC):
    """A linear measurement with normal noise, `y = A x + sigma ε`; a frozen dataclass.

    Attributes:
        sigma: of the noise, in units of the latents.
    """

    sigma: float

    @abstractmethod
    def matrix(self, spec: Spec) -> Tensor:
        """A for samples of this shape, shape (M, spec.numel), float64; its rows are orthonormal or diagonal.

        Raises:
            ArgumentError: if it does not fit the shape.
        """

    def observe(self, x: Tensor, draws: Draws) -> Tensor:
        """A draw of y, shape (B, M)."""
        clean = self.apply(x)
        return clean + self.sigma * draws.normal("measure", clean)

    def apply(self, x: Tensor) -> Tensor:
        """`A x`, shape (B, M)."""
        clean: Tensor = x.flatten(1) @ self.matrix(Spec(tuple(x.shape[1:]))).T.to(x)
        return clean

    def back(self, y: Tensor, spec: Spec) -> Tensor:
        """`Aᵀ y`, shape (B, *spec.shape)."""
        return (y @ self.matrix(spec).to(y)).reshape(len(y), *spec.shape)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """`log N(y; A x, sigma²)`, shape (B,)."""
        off = y - self.apply(x)
        return -off.square().sum(1) / (2 * self.sigma**2) - y.shape[1] * math.log(self.sigma * math.sqrt(2 * math.pi))

    def pull(self, y: Tensor, x: Tensor, spread: Tensor) -> Tensor:
        """`Aᵀ (spread A Aᵀ + sigma²)⁻¹ (y − A x)`: slope in x of `log p(y)` if the sample were `N(x, spread)`.

        Args:
            y: shape (B, M).
            x: shape (B, …).
            spread: variance, float64, shape () or (B,).

        Returns:
            Shape of x.
        """
        a = self.matrix(Spec(tuple(x.shape[1:])))
        values, vectors = torch.linalg.eigh(a @ a.T)
        rotated = (y - self.apply(x)) @ vectors.to(y)
        gain = rotated / (expand_as(spread, rotated) * values.to(y) + self.sigma**2)
        slope: Tensor = gain @ (vectors.T @ a).to(y)
        return slope.reshape(x.shape)


MEASUREMENTS: Registry[Measurement] = Registry("measurement", Measurement, homes=("latentsb.measurements",))


@MEASUREMENTS.register("mask")
@dataclass(frozen=True, kw_only=True)
class Mask(Measurement):
    """A part of each sample is seen: all but the last columns of images, the last numbers of vectors (inpainting).

    Args:
        hidden: share of the last dimension that is not seen.
        sigma: of the noise on what is seen, in units of the latents.
    """

    hidden: OpenFraction = 0.5
    sigma: Positive = 0.1

    def __post_init__(self) -> None:
        enforce(self)

    def matrix(self, spec: Spec) -> Tensor:
        """Rows of the identity."""
        width = spec.shape[-1]
        seen = width - round(self.hidden * width)
        if not 0 < seen < width:
            raise ArgumentError("hidden", f"of {width} columns leaves {seen} to be seen; expected some and not all")
        places = torch.arange(spec.numel).reshape(spec.shape)[..., :seen].flatten()
        return torch.eye(spec.numel, dtype=torch.float64)[places]


@MEASUREMENTS.register("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Measurement):
    """A matrix times the flattened sample.

    Args:
        rows: of the matrix, each of as many numbers as a sample has.
        sigma: of the noise.
    """

    rows: tuple[tuple[float, ...], ...]
    sigma: Positive = 0.1

    def __post_init__(self) -> None:
        enforce(self)
        if not self.rows or len({len(row) for row in self.rows}) != 1:
            raise ArgumentError("rows", "needs rows of equal length")

    def matrix(self, spec: Spec) -> Tensor:
        """The rows."""
        if len(self.rows[0]) != spec.numel:
            raise ArgumentError("rows", f"have {len(self.rows[0])} numbers, a sample has {spec.numel}")
        return torch.tensor(self.rows, dtype=torch.float64)
