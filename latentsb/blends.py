"""Ways between two points: the straight line, and the great circle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.registry import Registry

__all__ = ["BLENDS", "Blend", "Lerp", "Slerp", "between"]


class Blend(ABC):
    """A way from one point to another; a frozen dataclass."""

    @abstractmethod
    def mix(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """The points at `weight` on the ways from a to b.

        Args:
            a: shape (N, …).
            b: same shape.
            weight: shape (), in [0, 1]; 0 gives a and 1 gives b.

        Returns:
            Shape (N, …).
        """


BLENDS: Registry[Blend] = Registry("blend", Blend, homes=("latentsb.blends",))


@BLENDS.register("lerp")
@dataclass(frozen=True, kw_only=True)
class Lerp(Blend):
    """The straight line, `(1 − w) a + w b`."""

    def mix(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """See the class."""
        return torch.lerp(a, b, weight.to(a))


@BLENDS.register("slerp")
@dataclass(frozen=True, kw_only=True)
class Slerp(Blend):
    """The great circle, `(sin((1 − w)θ) a + sin(wθ) b) / sin θ` with θ the angle between a and b.

    A straight mixture of two independent Gaussian noises has too small a norm; the great circle keeps it. Every sample
    is one vector, whatever its shape.

    Source: Shoemake 1985, Animating rotation with quaternion curves.
    """

    def mix(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """See the class."""
        u, v, w = a.flatten(1), b.flatten(1), weight.to(a)
        cosine = torch.nn.functional.cosine_similarity(u, v, dim=1)[:, None].clamp(-1 + 1e-6, 1 - 1e-6)
        angle = torch.arccos(cosine)
        mixed: Tensor = (torch.sin((1 - w) * angle) * u + torch.sin(w * angle) * v) / torch.sin(angle)
        return mixed.reshape(a.shape)


def between(blend: Blend, corners: Tensor, sizes: Sequence[int]) -> Tensor:
    """Points between two ends, on a sheet between four corners, and so on: one blend after the other.

    With `Lerp` this is multilinear interpolation. The first of the sizes runs from the first half of the corners to
    the second.

    Args:
        blend: of two points.
        corners: shape (P, 2^D, …); of a sheet: top left, top right, bottom left, bottom right.
        sizes: points along each of D directions, ends included, each at least 2.

    Returns:
        Shape (P, Π sizes, …); the last direction runs fastest.
    """
    if not sizes:
        return corners
    first, last = (between(blend, half, sizes[1:]) for half in corners.chunk(2, dim=1))
    weights = torch.linspace(0, 1, sizes[0], dtype=torch.float64)
    rows = [blend.mix(first.flatten(0, 1), last.flatten(0, 1), w).reshape(first.shape) for w in weights]
    return torch.cat(rows, dim=1)
