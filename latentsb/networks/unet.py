"""U-Net of residual convolutions with self-attention at the coarse levels, built from diffusers' blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsb.errors import ArgumentError
from latentsb.networks.attention import Dispatched, attention
from latentsb.networks.base import NETWORKS, Network
from latentsb.networks.embeddings import Conditioning, TimeEmbedding
from latentsb.ranges import Count, Fraction, NonNegativeInt
from latentsb.tensors import Condition, Spec

if TYPE_CHECKING:
    from diffusers.models import UNet2DModel

__all__ = ["MapAttention", "UNet", "check_heads", "common_groups"]


class MapAttention(Dispatched):
    """Self-attention over the places of a map: a processor for diffusers' `Attention`, with a backend of its own."""

    # diffusers reads the parameters' names from here, and warns of each that it cannot find.
    def __call__(
        self,
        layer: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Mix places, `x + W_o attention(W_q n, W_k n, W_v n)` with n = norm(x).

        Args:
            layer: whose weights are used.
            hidden_states: x, shape (B, C, H, W).
            encoder_hidden_states: of another sequence; there is none in self-attention.
            attention_mask: there is none over a map.
            temb: embedding of time and conditions; it enters in the residual blocks.

        Returns:
            Shape (B, C, H, W).
        """
        assert encoder_hidden_states is None
        assert attention_mask is None
        b, channels, height, width = hidden_states.shape
        tokens = layer.group_norm(hidden_states).flatten(2).transpose(1, 2)
        q, k, v = (
            project(tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project in (layer.to_q, layer.to_k, layer.to_v)
        )
        mixed = attention(q, k, v, backend=self.backend).transpose(1, 2).flatten(2)
        out = layer.to_out[0](mixed).transpose(1, 2).reshape(b, channels, height, width)
        return hidden_states + cast(Tensor, out)


@NETWORKS.register("unet")
class UNet(Network):
    """Convolutional U-Net with adaptive group norm and self-attention at its coarse levels.

    Each level has `blocks` residual blocks on the way down and one more on the way up; time and conditions scale and
    shift the second norm of each. Levels halve the sides; another size than the trained one works where the levels
    divide it. It predicts exactly zero before training.
    Source: Ronneberger et al. 2015; Ho et al. 2020; Dhariwal and Nichol 2021, section 3 and appendix (ADM).

    Args:
        x: shape (C, H, W) of the state.
        cond: shapes of the conditions, by name.
        out: shape of the prediction, with the state's H and W.
        width: channels, times the multiplier of a level; the embedding of time and conditions is four times as wide.
        multipliers: of the channels, one for each level, from the state's own size on.
        blocks: residual blocks per level on the way down.
        attention: self-attention at levels whose longer side is at most this, and in the middle; 0: nowhere.
        head_dim: of each attention; must divide the channels of the levels that have attention.
        dropout: probability on the residual branches.

    Raises:
        ArgumentError: if the shapes do not fit.
    """

    def __init__(
        self,
        x: Spec,
        cond: Mapping[str, Spec] | None = None,
        out: Spec | None = None,
        *,
        width: Count = 128,
        multipliers: tuple[Count, ...] = (1, 2, 2, 2),
        blocks: Count = 2,
        attention: NonNegativeInt = 16,
        head_dim: Count = 64,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(x, cond, out)
        _check_shapes(x, self.out_spec, multipliers)
        channels = tuple(width * m for m in multipliers)
        sides = [max(x.shape[1:]) >> level for level in range(len(channels))]
        attends = [side <= attention for side in sides]
        if attention:
            check_heads(channels, attends, head_dim)
        self.factor, self.checkpointing = 2 ** (len(channels) - 1), False
        self.stride = self.factor
        self.time = TimeEmbedding(4 * width)
        self.conditioning = Conditioning(x, self.cond_spec, 4 * width)
        body = _body(
            attends,
            in_channels=x.channels + self.conditioning.channels,
            out_channels=self.out_spec.channels,
            block_out_channels=channels,
            time_embedding_dim=4 * width,
            layers_per_block=blocks,
            attention_head_dim=head_dim,
            add_attention=attention > 0,
            dropout=dropout,
        )
        # Time and conditions are embedded as in every network here, so the model's own embedding is left behind.
        self.conv_in, self.down_blocks, self.mid_block = body.conv_in, body.down_blocks, body.mid_block
        self.up_blocks, self.conv_norm_out, self.conv_out = body.up_blocks, body.conv_norm_out, body.conv_out
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Network.forward`.

        Raises:
            ValueError: if the levels do not divide the size of x.
        """
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"{len(self.down_blocks)} levels divide the sides by {self.factor}; "
                f"the state has {x.shape[-2]}x{x.shape[-1]}"
            )
        c = self.time(t.expand(len(x)))
        vector = self.conditioning.vector(cond)
        c = c if vector is None else c + vector
        h = self.conv_in(self.conditioning.concatenate(x.to(self.conv_in.weight.dtype), cond))
        skips = [h]
        for block in self.down_blocks:
            h, made = self._run(block, h, c)
            skips.extend(made)
        h = self._run(self.mid_block, h, c)
        for block in self.up_blocks:
            taken = len(cast(nn.ModuleList, block.resnets))
            h = self._run(block, h, tuple(skips[-taken:]), c)
            del skips[-taken:]
        return cast(Tensor, self.conv_out(F.silu(self.conv_norm_out(h)))).to(x.dtype)

    def gradient_checkpointing_(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile each level's block in place; names of parameters do not change."""
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.compile()

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _initialise(self) -> None:
        """Every residual branch and the prediction begin as zero, as in ADM."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        last = [m for name, m in self.named_modules() if name.endswith((".conv2", ".to_out.0"))]
        for layer in (*last, self.conv_out):
            nn.init.zeros_(cast(Tensor, layer.weight))
            nn.init.zeros_(cast(Tensor, layer.bias))


def _body(attends: list[bool], **config: Any) -> UNet2DModel:
    """A `UNet2DModel` in ADM's layout, with residual blocks that halve and double, and our attention.

    Args:
        attends: for each level, whether it has attention.
        config: other arguments of `UNet2DModel`.
    """
    from diffusers.models import UNet2DModel  # a second of import

    groups = common_groups(config["block_out_channels"])
    model = UNet2DModel(
        down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=groups,
        attn_norm_num_groups=groups,  # left out, the attention in the middle has no norm where times scale and shift
        **config,
    )
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(MapAttention())
    return model


def common_groups(channels: tuple[int, ...]) -> int:
    """Groups of the group norms: at most 32, equal at all levels, of four channels or more where there are that many.

    Groups of one channel on a 1x1 map would be normalised to zero.
    """
    most = max(1, min(32, min(channels) // 4))
    common = math.gcd(*channels)
    return max(n for n in range(1, most + 1) if common % n == 0)


def _check_shapes(x: Spec, out: Spec, multipliers: tuple[int, ...]) -> None:
    if len(x.shape) != 3:
        raise ArgumentError("x", f"'unet' needs a state of shape (C, H, W), found {x.shape}; 'mlp' takes any shape")
    if len(out.shape) != 3 or out.shape[1:] != x.shape[1:]:
        raise ArgumentError("out", f"needs the state's size {x.shape[1:]}, found {out.shape}")
    if not multipliers:
        raise ArgumentError("multipliers", "needs one number for each level, found none")
    height, width = x.shape[1:]
    factor, common = 2 ** (len(multipliers) - 1), math.gcd(height, width)
    if common % factor:
        fits = (common & -common).bit_length()
        raise ArgumentError(
            "multipliers",
            f"{len(multipliers)} levels divide the sides by {factor}; the state has {height}x{width}, "
            f"which allows {fits} at most",
        )


def check_heads(channels: tuple[int, ...], attends: list[bool], head_dim: int) -> None:
    """See that heads of this width fit every level that has attention, and the last, which the middle follows.

    Raises:
        ArgumentError: if they do not; names the nearest that do.
    """
    with_attention = {n for n, a in zip(channels, attends, strict=True) if a} | {channels[-1]}
    if any(n % head_dim for n in with_attention):
        common = math.gcd(*with_attention)
        fits = [n for n in range(1, common + 1) if common % n == 0]
        near = [*[n for n in fits if n < head_dim][-1:], *[n for n in fits if n > head_dim][:1]]
        raise ArgumentError(
            "head_dim",
            f"must divide the channels of every level with attention, found {head_dim} and "
            f"{', '.join(map(str, sorted(with_attention)))}; nearest that fit: {' and '.join(map(str, near))}",
        )
