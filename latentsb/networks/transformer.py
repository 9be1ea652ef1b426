"""Diffusion transformer over the patches of a latent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsb.errors import ArgumentError
from latentsb.networks.attention import Attention
from latentsb.networks.base import NETWORKS, Network
from latentsb.networks.embeddings import FAR, THETA, Conditioning, TimeEmbedding, position_features, rotary_table
from latentsb.networks.positions import Interpolated, Positions
from latentsb.ranges import Count, Fraction, Positive
from latentsb.tensors import Condition, Spec

__all__ = ["Block", "SwiGLU", "Transformer", "patchify", "unpatchify"]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut a latent into square patches, row by row.

    Args:
        x: shape (B, C, H, W); `patch` divides H and W.
        patch: side of a patch.

    Returns:
        Shape (B, H/p * W/p, C p p).
    """
    b, c, h, w = x.shape
    cut = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`.

    Args:
        tokens: shape (B, N, C p p).
        patch: side of a patch.
        grid: rows and columns of tokens, N in all.

    Returns:
        Shape (B, C, H, W).
    """
    rows, columns = grid
    cut = tokens.reshape(len(tokens), rows, columns, -1, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * patch, columns * patch)


class SwiGLU(nn.Module):
    """Gated feed-forward layer, `W3 (silu(W1 x) * W2 x)`.

    Source: Shazeer 2020, Eq. 6.

    Args:
        width: of input and output.
        hidden: of the gate.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, width) to (…, width)."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return cast(Tensor, self.out(F.silu(gate) * value))


class Block(nn.Module):
    """Attention and feed-forward layer, each behind an adaptive norm and a gate that begins at zero (adaLN-zero).

    `x + gate * f(norm(x) * (1 + scale) + shift)`. Source: Peebles and Xie 2023, section 3.2.

    Args:
        width: of the tokens and of the condition.
        heads: of the attention.
        hidden: of the feed-forward layer.
        qk_norm: normalise queries and keys.
        dropout: probability, on both branches.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads, qk_norm=qk_norm)
        self.norm2 = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor, rotary: Tensor) -> Tensor:
        """Tokens (B, N, width), activated condition (B, width), rotary table; to tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        mixed = self.attention(_modulate(self.norm1(x), shift1, scale1), rotary)
        x = x + gate1 * self.dropout(mixed)
        fed = self.mlp(_modulate(self.norm2(x), shift2, scale2))
        return cast(Tensor, x + gate2 * self.dropout(fed))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


@NETWORKS.register("dit")
class Transformer(Network):
    """Diffusion transformer: patches, rotary positions, adaptive norm that begins as the identity.

    Any channel count and non-square sizes; another size than the trained one works too. It predicts exactly zero
    before training.
    Source: Peebles and Xie 2023; Ma et al. 2024; Yao et al. 2025 (RMSNorm, SwiGLU, rotary positions).

    Args:
        x: shape (C, H, W) of the state.
        cond: shapes of the conditions, by name.
        out: shape of the prediction, with the state's H and W.
        patch: side of a patch; must divide H and W.
        width: of the tokens.
        depth: number of blocks.
        heads: of each attention; width / heads must be a multiple of four.
        mlp_ratio: feed-forward width over `width`, counted as that of a layer without gate with equal parameters.
        qk_norm: normalise queries and keys; steadier in bf16 and at high learning rates.
        dropout: probability on the residual branches.
        positions: what becomes of positions at another size; without effect at the trained one.

    Raises:
        ArgumentError: if the shapes do not fit.
    """

    def __init__(
        self,
        x: Spec,
        cond: Mapping[str, Spec] | None = None,
        out: Spec | None = None,
        *,
        patch: Count = 2,
        width: Count = 384,
        depth: Count = 12,
        heads: Count = 6,
        mlp_ratio: Positive = 4.0,
        qk_norm: bool = False,
        dropout: Fraction = 0.0,
        positions: Positions = Interpolated(),
    ) -> None:
        super().__init__(x, cond, out)
        _check_shapes(x, self.out_spec, patch)
        _check_heads(width, heads)
        self.patch, self.heads, self.checkpointing = patch, heads, False
        self.stride = patch
        self.positions: Positions = positions
        self.reference = (x.shape[1] // patch, x.shape[2] // patch)
        self.time = TimeEmbedding(width)
        self.conditioning = Conditioning(x, self.cond_spec, width)
        self.embed = nn.Linear((x.channels + self.conditioning.channels) * patch**2, width)
        hidden = max(1, round(2 / 3 * mlp_ratio * width / 8)) * 8
        self.blocks = nn.ModuleList(Block(width, heads, hidden, qk_norm=qk_norm, dropout=dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, self.out_spec.channels * patch**2)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Network.forward`.

        Raises:
            ValueError: if `patch` does not divide the size of x.
        """
        if x.shape[-2] % self.patch or x.shape[-1] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the size {x.shape[-2]}x{x.shape[-1]} of the state")
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        state = self.conditioning.concatenate(x.to(self.embed.weight.dtype), cond)
        h = self.embed(patchify(state, self.patch))
        features, rotary = self._places(grid, x.device)
        h = h + features.to(h.dtype)
        c = self.time(t.expand(len(x)))
        vector = self.conditioning.vector(cond)
        c = F.silu(c if vector is None else c + vector)
        for block in self.blocks:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                h = checkpoint(block, h, c, rotary, use_reentrant=False)
            else:
                h = block(h, c, rotary)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        tokens = self.head(_modulate(self.norm(h), shift, scale))
        return unpatchify(tokens, self.patch, grid).to(x.dtype)

    def _places(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Features of absolute positions, added to the tokens, and the rotary table."""
        places, width = self.positions.places(grid, self.reference, device), self.embed.out_features
        dim = width // self.heads
        far = self.positions.bases(FAR, width // 4, grid, self.reference)
        near = self.positions.bases(THETA, dim // 4, grid, self.reference)
        return position_features(places, width, far), rotary_table(places, dim, near)

    def gradient_checkpointing_(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.checkpointing = enabled

    def compile_blocks(self) -> None:
        """Compile the blocks in place; they share one graph, and names of parameters do not change."""
        for block in self.blocks:
            block.compile()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        zeroed = [block.modulation for block in self.blocks if isinstance(block, Block)]
        for layer in (*zeroed, self.modulation, self.head):
            nn.init.zeros_(layer.weight)


def _check_shapes(x: Spec, out: Spec, patch: int) -> None:
    if len(x.shape) != 3:
        raise ArgumentError("x", f"'dit' needs a state of shape (C, H, W), found {x.shape}; 'mlp' takes any shape")
    if len(out.shape) != 3 or out.shape[1:] != x.shape[1:]:
        raise ArgumentError("out", f"needs the state's size {x.shape[1:]}, found {out.shape}")
    height, width = x.shape[1:]
    if height % patch or width % patch:
        side = math.gcd(height, width)
        fits = _nearest([n for n in range(1, side + 1) if side % n == 0], patch)
        raise ArgumentError("patch", f"{patch} does not divide the size {height}x{width} of the state; {fits}")


def _check_heads(width: int, heads: int) -> None:
    fits = [n for n in range(1, width + 1) if width % n == 0 and (width // n) % 4 == 0]
    if not fits:
        raise ArgumentError(
            "width", f"{width} is no multiple of 4, which rotary positions need; {width // 4 * 4 + 4} is"
        )
    if heads not in fits:
        raise ArgumentError(
            "heads", f"width / heads must be a multiple of 4, found {width} / {heads}; {_nearest(fits, heads)}"
        )


def _nearest(fits: list[int], wanted: int) -> str:
    below = [n for n in fits if n < wanted][-1:]
    above = [n for n in fits if n > wanted][:1]
    return f"nearest that fit: {' and '.join(map(str, below + above))}"
