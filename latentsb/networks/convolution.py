"""Convolutional blocks that encoders and decoders share."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualConvolution", "Upsample", "group_norm", "halvings"]

SMALLEST = 4


def halvings(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the given one down to at most 4x4, each half of the one before, rounded up."""
    sizes = [(height, width)]
    while max(sizes[-1]) > SMALLEST:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups, of eight channels or more where there are that many.

    A group of one channel on a 1x1 map would be normalised to zero.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 8))), channels, eps=1e-6)


class ResidualConvolution(nn.Module):
    """Two 3x3 convolutions beside a shortcut, `skip(x) + conv2(silu(norm(conv1(silu(norm(x))))))`.

    Source: He et al. 2016 (pre-activation), with group normalisation (Wu and He 2018).

    Args:
        channels: of the input.
        out: channels of the output.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, channels, H, W) to (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return cast(Tensor, self.skip(x) + self.conv2(F.silu(self.norm2(h))))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size, then a convolution.

    Args:
        channels: of input and output.
        size: height and width of the output.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, h, w) to (B, C, *size)."""
        return cast(Tensor, self.conv(F.interpolate(x, size=self.size, mode="nearest")))
