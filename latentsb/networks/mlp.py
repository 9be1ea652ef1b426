"""Residual multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.networks.base import NETWORKS, Network
from latentsb.networks.embeddings import Conditioning, TimeEmbedding
from latentsb.ranges import Count, Fraction
from latentsb.tensors import Condition, Spec

__all__ = ["MLP", "ResidualLayer"]


class ResidualLayer(nn.Module):
    """Two layers behind an adaptive norm, `h + W2 silu(W1 (norm(h) * (1 + scale) + shift))`.

    Args:
        width: of input, output and condition.
        dropout: probability on the branch.
        adaptive: whether there is a condition that scales and shifts.
    """

    def __init__(self, width: int, *, dropout: float = 0.0, adaptive: bool = True) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=not adaptive)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 2 * width) if adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        """Shape (B, width) and activated condition (B, width) to (B, width)."""
        normed = self.norm(h)
        if self.modulation is not None:
            shift, scale = self.modulation(c).chunk(2, dim=-1)
            normed = torch.addcmul(shift, normed, 1 + scale)
        return cast(Tensor, h + self.layers(normed))


@NETWORKS.register("mlp")
class MLP(Network):
    """Residual perceptron for vectors; other shapes are flattened.

    It predicts exactly zero before training.

    Args:
        x: shape of the state.
        cond: shapes of the conditions, by name; sorted as `Conditioning` says.
        out: shape of the prediction.
        width: of the hidden layers.
        depth: number of residual layers.
        dropout: probability on the residual branches.
    """

    def __init__(
        self,
        x: Spec,
        cond: Mapping[str, Spec] | None = None,
        out: Spec | None = None,
        *,
        width: Count = 256,
        depth: Count = 4,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(x, cond, out)
        self.time = TimeEmbedding(width)
        self.conditioning = Conditioning(x, self.cond_spec, width)
        beside = sum(self.cond_spec[name].numel for name in self.conditioning.beside)
        self.embed = nn.Linear(x.numel + beside, width)
        self.layers = nn.ModuleList(ResidualLayer(width, dropout=dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, self.out_spec.numel)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Network.forward`."""
        h = self.embed(self.conditioning.concatenate(x.to(self.embed.weight.dtype), cond).flatten(1))
        c = self.time(t.expand(len(x)))
        vector = self.conditioning.vector(cond)
        c = F.silu(c if vector is None else c + vector)
        for layer in self.layers:
            h = layer(h, c)
        return cast(Tensor, self.head(F.silu(self.norm(h))).reshape(len(x), *self.out_spec.shape).to(x.dtype))
