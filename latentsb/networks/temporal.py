"""Convolutional network over time, for trajectories and other series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.networks.base import NETWORKS, Network
from latentsb.networks.embeddings import Conditioning, TimeEmbedding
from latentsb.ranges import Count
from latentsb.tensors import Condition, Spec

__all__ = ["TemporalUNet"]

GROUPS = 8
"""Of the norms inside the blocks."""


@NETWORKS.register("temporal")
class TemporalUNet(Network):
    """Temporal U-Net: residual convolutions along the last dimension, halved and doubled, with skips.

    The state has shape (C, L), C channels over L moments. It predicts exactly zero before training.
    Source: Janner et al. 2022, Planning with diffusion, Appendix C; the residual blocks are diffusers'.

    Args:
        x: shape (C, L) of the state.
        cond: shapes of the conditions, by name.
        out: shape of the prediction, with the state's L.
        width: of the channels; a multiple of 8.
        multipliers: of the width, one for each level, of which every one but the last halves the length.
        kernel: moments that a convolution sees; odd.

    Raises:
        ArgumentError: if the shapes do not fit.
    """

    def __init__(
        self,
        x: Spec,
        cond: Mapping[str, Spec] | None = None,
        out: Spec | None = None,
        *,
        width: Count = 32,
        multipliers: tuple[Count, ...] = (1, 2, 4),
        kernel: Count = 5,
    ) -> None:
        super().__init__(x, cond, out)
        _check(x, self.out_spec, width, multipliers, kernel)
        from diffusers.models.downsampling import Downsample1D
        from diffusers.models.resnet import ResidualTemporalBlock1D
        from diffusers.models.upsampling import Upsample1D

        embedding = 4 * width
        self.time = TimeEmbedding(embedding)
        self.conditioning = Conditioning(x, self.cond_spec, embedding)
        widths = [width * m for m in multipliers]

        def block(inside: int, outside: int) -> nn.Module:
            return cast(nn.Module, ResidualTemporalBlock1D(inside, outside, embedding, kernel))

        entering = [x.channels + self.conditioning.channels, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.ModuleList([block(a, b), block(b, b)]) for a, b in zip(entering, widths, strict=True)
        )
        self.shorter = nn.ModuleList(Downsample1D(w, use_conv=True) for w in widths[:-1])
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]) for _ in range(2)])
        self.longer = nn.ModuleList(Upsample1D(w, use_conv_transpose=True) for w in widths[:0:-1])
        self.up = nn.ModuleList(
            nn.ModuleList([block(wide + narrow, narrow), block(narrow, narrow)])
            for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.head = nn.Conv1d(widths[0], self.out_spec.channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast(Tensor, self.head.bias))
        self.stride = 2 ** (len(widths) - 1)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Network.forward`."""
        h = self.conditioning.concatenate(x.to(self.head.weight.dtype), cond)
        c = self.time(t.expand(len(x)))
        vector = self.conditioning.vector(cond)
        c = c if vector is None else c + vector
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            for block in cast(nn.ModuleList, blocks):
                h = block(h, c)
            if level < len(self.shorter):
                skips.append(h)
                h = self.shorter[level](h)
        for block in self.middle:
            h = block(h, c)
        for longer, blocks in zip(self.longer, self.up, strict=True):
            h = torch.cat([longer(h), skips.pop()], 1)
            for block in cast(nn.ModuleList, blocks):
                h = block(h, c)
        return cast(Tensor, self.head(nn.functional.silu(self.norm(h)))).to(x.dtype)


def _check(x: Spec, out: Spec, width: int, multipliers: tuple[int, ...], kernel: int) -> None:
    if len(x.shape) != 2:
        raise ArgumentError("x", f"'temporal' needs a state of shape (C, L), found {x.shape}; 'mlp' takes any shape")
    if len(out.shape) != 2 or out.shape[1] != x.shape[1]:
        raise ArgumentError("out", f"needs the state's length {x.shape[1]}, found {out.shape}")
    if width % GROUPS:
        raise ArgumentError("width", f"found {width}, expected a multiple of {GROUPS}")
    if kernel % 2 == 0:
        raise ArgumentError("kernel", f"found {kernel}, expected an odd number")
    if not multipliers:
        raise ArgumentError("multipliers", "found none, expected at least one")
    if x.shape[1] % 2 ** (len(multipliers) - 1):
        raise ArgumentError(
            "multipliers",
            f"{len(multipliers)} levels halve the length {len(multipliers) - 1} times, and {x.shape[1]} cannot be",
        )
