"""Encoders: a latent or an image to a vector."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.networks.base import ENCODERS, Encoder
from latentsb.networks.convolution import ResidualConvolution, group_norm, halvings
from latentsb.networks.mlp import ResidualLayer
from latentsb.ranges import Count
from latentsb.tensors import Spec

__all__ = ["ConvEncoder", "DenseEncoder"]


@ENCODERS.register("conv")
class ConvEncoder(Encoder):
    """Convolutional encoder; halves the size until it is at most 4x4, then one linear layer.

    Args:
        x: shape (C, H, W) of the input.
        dim: length of the code.
        width: channels at full size; doubled at each halving, up to eight times.
        blocks: residual blocks per size.

    Raises:
        ArgumentError: if the input is not of shape (C, H, W).
    """

    def __init__(self, x: Spec, dim: int, *, width: Count = 64, blocks: Count = 2) -> None:
        super().__init__(x, dim)
        if len(x.shape) != 3:
            raise ArgumentError("x", f"'conv' encodes (C, H, W), found {x.shape}; 'dense' takes any shape")
        sizes = halvings(*x.shape[1:])
        channels = width
        layers: list[nn.Module] = [nn.Conv2d(x.channels, width, 3, padding=1)]
        for level in range(len(sizes)):
            wanted = width * 2 ** min(level, 3)
            if level:
                layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            for _ in range(blocks):
                layers.append(ResidualConvolution(channels, wanted))
                channels = wanted
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels)
        self.head = nn.Linear(channels * sizes[-1][0] * sizes[-1][1], dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) to (B, dim)."""
        h = self.layers(x.to(self.head.weight.dtype))
        return cast(Tensor, self.head(F.silu(self.norm(h)).flatten(1)).to(x.dtype))


@ENCODERS.register("dense")
class DenseEncoder(Encoder):
    """Residual perceptron encoder for vectors; other shapes are flattened.

    Args:
        x: shape of the input.
        dim: length of the code.
        width: of the hidden layers.
        depth: number of residual layers.
    """

    def __init__(self, x: Spec, dim: int, *, width: Count = 256, depth: Count = 3) -> None:
        super().__init__(x, dim)
        self.embed = nn.Linear(x.numel, width)
        self.layers = nn.Sequential(*(ResidualLayer(width, adaptive=False) for _ in range(depth)))
        self.head = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, *x.shape) to (B, dim)."""
        h = self.layers(self.embed(x.flatten(1).to(self.embed.weight.dtype)))
        return cast(Tensor, self.head(F.silu(h)).to(x.dtype))
