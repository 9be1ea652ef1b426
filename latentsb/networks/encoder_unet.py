"""Half a U-Net as an encoder."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.networks.base import ENCODERS, Encoder
from latentsb.networks.convolution import SMALLEST
from latentsb.networks.unet import MapAttention, check_heads, common_groups
from latentsb.ranges import Count, Fraction, NonNegativeInt
from latentsb.tensors import Spec

__all__ = ["HalfUNet"]


@ENCODERS.register("half_unet")
class HalfUNet(Encoder):
    """The way down of a U-Net to 4x4 or less, with self-attention; then the mean over places and one linear layer.

        z = W mean(silu(norm(h))) + b,    h = middle(levels(conv(x)))

    Levels halve the sides, by residual blocks that take the mean of 2x2 places (the last row of an odd side is left
    out). The blocks are the U-Net's, without a time: two convolutions each. In the published encoder a block without a
    time has lost its second convolution, which nothing there argues for; it therefore has about half of the parameters
    of this one at equal width, and equal ones at 1.4 times the width.

    Source: Preechakul et al. 2022, Diffusion autoencoders, official code; the same encoder in Kim et al. 2025.

    Args:
        x: shape (C, H, W) of the input.
        dim: length of the code.
        width: channels at full size.
        multipliers: of the channels at each level, from full size on; the last one holds for all further levels.
        blocks: residual blocks per level.
        attention: self-attention at levels whose longer side is at most this, and in the middle; 0: nowhere.
        head_dim: of each attention; must divide the channels of the levels that have attention.
        dropout: probability on the residual branches.

    Raises:
        ArgumentError: if the input is not of shape (C, H, W), one side is too short to be halved with the other, or
            heads do not fit.
    """

    def __init__(
        self,
        x: Spec,
        dim: int,
        *,
        width: Count = 64,
        multipliers: tuple[Count, ...] = (1, 2, 4, 8),
        blocks: Count = 2,
        attention: NonNegativeInt = 16,
        head_dim: Count = 64,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(x, dim)
        from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D  # a second of import

        if not multipliers:
            raise ArgumentError("multipliers", "needs one number at least, found none")
        sides = _sides(x)
        channels = tuple(width * multipliers[min(k, len(multipliers) - 1)] for k in range(len(sides)))
        attends = [side <= attention for side in sides]
        if attention:
            check_heads(channels, attends, head_dim)
        common = {
            "temb_channels": None,
            "dropout": dropout,
            "resnet_groups": common_groups((width, *channels)),
            "attention_head_dim": head_dim,
        }
        self.conv_in = nn.Conv2d(x.channels, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _level(before, here, blocks, attends=a, halves=k < len(sides) - 1, **common)
            for k, (before, here, a) in enumerate(zip((width, *channels), channels, attends, strict=False))
        )
        self.mid_block = UNetMidBlock2D(in_channels=channels[-1], add_attention=attention > 0, **common)
        self.norm = nn.GroupNorm(common_groups((width, *channels)), channels[-1], eps=1e-6)
        self.head = nn.Linear(channels[-1], dim)
        for module in self.modules():
            if hasattr(module, "set_processor"):
                cast(Any, module).set_processor(MapAttention())
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) to (B, dim)."""
        h = self.conv_in(x.to(self.head.weight.dtype))
        for block in self.down_blocks:
            h = block(h)[0]
        h = F.silu(self.norm(self.mid_block(h)))
        return cast(Tensor, self.head(h.mean((2, 3)))).to(x.dtype)

    def _initialise(self) -> None:
        """Every residual branch begins as zero, as in ADM."""
        for name, module in self.named_modules():
            if name.endswith((".conv2", ".to_out.0")):
                nn.init.zeros_(cast(Tensor, module.weight))
                nn.init.zeros_(cast(Tensor, module.bias))


def _level(channels: int, out: int, blocks: int, *, attends: bool, halves: bool, **common: object) -> nn.Module:
    """Residual blocks of one size, each followed by attention where the level attends, and the halving."""
    from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D, ResnetDownsampleBlock2D

    shape = {"in_channels": channels, "out_channels": out, "num_layers": blocks}
    if attends:
        return cast(nn.Module, AttnDownBlock2D(**shape, downsample_type="resnet" if halves else None, **common))
    del common["attention_head_dim"]
    return cast(nn.Module, ResnetDownsampleBlock2D(**shape, add_downsample=halves, **common))


def _sides(x: Spec) -> list[int]:
    """The longer side at each level, halved until it is at most 4."""
    if len(x.shape) != 3:
        raise ArgumentError("x", f"'half_unet' encodes (C, H, W), found {x.shape}; 'dense' takes any shape")
    short, long = sorted(x.shape[1:])
    sides = [long]
    while sides[-1] > SMALLEST:
        sides.append(sides[-1] // 2)
    if short >> (len(sides) - 1) == 0:
        raise ArgumentError(
            "x", f"'half_unet' halves both sides until they are at most 4, and {short} is too short for {long}"
        )
    return sides
