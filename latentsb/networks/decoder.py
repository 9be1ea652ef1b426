"""Decoders: a code to a tensor of a latent's shape, unbounded."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.networks.base import DECODERS, Decoder
from latentsb.networks.convolution import ResidualConvolution, Upsample, group_norm, halvings
from latentsb.networks.mlp import ResidualLayer
from latentsb.ranges import Count
from latentsb.tensors import Spec

__all__ = ["ConvDecoder", "DenseDecoder"]


@DECODERS.register("conv")
class ConvDecoder(Decoder):
    """Convolutional decoder; one linear layer to at most 4x4, then doubles the size up to that of the latent.

    No batch normalisation: a decoded row depends on its own code only.

    Args:
        dim: length of the code.
        out: shape (C, H, W) of the output.
        width: channels at full size; doubled at each halving, up to eight times.
        blocks: residual blocks per size.

    Raises:
        ArgumentError: if the output is not of shape (C, H, W).
    """

    def __init__(self, dim: int, out: Spec, *, width: Count = 64, blocks: Count = 2) -> None:
        super().__init__(dim, out)
        if len(out.shape) != 3:
            raise ArgumentError("out", f"'conv' decodes to (C, H, W), found {out.shape}; 'dense' takes any shape")
        sizes = halvings(*out.shape[1:])
        channels = width * 2 ** min(len(sizes) - 1, 3)
        self.smallest = (channels, *sizes[-1])
        self.embed = nn.Linear(dim, channels * sizes[-1][0] * sizes[-1][1])
        layers: list[nn.Module] = []
        for level in reversed(range(len(sizes))):
            wanted = width * 2 ** min(level, 3)
            for _ in range(blocks):
                layers.append(ResidualConvolution(channels, wanted))
                channels = wanted
            if level:
                layers.append(Upsample(channels, sizes[level - 1]))
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels)
        self.head = nn.Conv2d(channels, out.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Shape (B, dim) to (B, C, H, W)."""
        h = self.embed(z.to(self.embed.weight.dtype)).reshape(len(z), *self.smallest)
        return cast(Tensor, self.head(F.silu(self.norm(self.layers(h)))).to(z.dtype))


@DECODERS.register("dense")
class DenseDecoder(Decoder):
    """Residual perceptron decoder to vectors; other shapes are folded from one.

    Args:
        dim: length of the code.
        out: shape of the output.
        width: of the hidden layers.
        depth: number of residual layers.
    """

    def __init__(self, dim: int, out: Spec, *, width: Count = 256, depth: Count = 3) -> None:
        super().__init__(dim, out)
        self.embed = nn.Linear(dim, width)
        self.layers = nn.Sequential(*(ResidualLayer(width, adaptive=False) for _ in range(depth)))
        self.head = nn.Linear(width, out.numel)

    def forward(self, z: Tensor) -> Tensor:
        """Shape (B, dim) to (B, *out.shape)."""
        h = self.layers(self.embed(z.to(self.embed.weight.dtype)))
        return cast(Tensor, self.head(F.silu(h)).reshape(len(z), *self.out_spec.shape).to(z.dtype))
