"""Perceptron of latent diffusion over codes: every layer sees the state beside its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.networks.base import NETWORKS, Network
from latentsb.networks.embeddings import Conditioning, TimeEmbedding
from latentsb.ranges import Count
from latentsb.tensors import Condition, Spec

__all__ = ["MLPSkip", "ModulatedLayer"]


class ModulatedLayer(nn.Module):
    """`silu(norm(W h * (1 + V silu(c))))` with a layer norm.

    Source: Preechakul et al. 2022, Diffusion autoencoders, official code.

    Args:
        inputs: length of the input.
        width: length of the output.
        embedding: length of the condition.
    """

    def __init__(self, inputs: int, width: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.modulation = nn.Linear(embedding, width)
        self.norm = nn.LayerNorm(width)
        for layer in (self.linear, self.modulation):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Shape (B, inputs) and activated condition (B, embedding) to (B, width)."""
        return F.silu(self.norm(self.linear(h) * (1 + self.modulation(c))))


@NETWORKS.register("mlp_skip")
class MLPSkip(Network):
    """Perceptron whose every layer sees the state again, for diffusion over codes; other shapes are flattened.

    The first layer is given the state, every later one the last layer's output and the state; time and conditions
    scale what each hidden layer computes, before its norm; the last layer is plain. It predicts exactly zero before
    training, where the published network begins with random predictions. Published: width 2048, embedding 512,
    depth 10 (20 for LSUN), 54 million weights for codes of 512 numbers.

    Source: Preechakul et al. 2022, Diffusion autoencoders, Table 6; Kim et al. 2025 use it as their prior.

    Args:
        x: shape of the state.
        cond: shapes of the conditions, by name; sorted as `Conditioning` says.
        out: shape of the prediction.
        width: of the hidden layers.
        depth: number of layers, the last one included.
        embedding: length of what time and conditions become.
    """

    def __init__(
        self,
        x: Spec,
        cond: Mapping[str, Spec] | None = None,
        out: Spec | None = None,
        *,
        width: Count = 512,
        depth: Count = 5,
        embedding: Count = 256,
    ) -> None:
        super().__init__(x, cond, out)
        self.time = TimeEmbedding(embedding, features=64)
        self.conditioning = Conditioning(x, self.cond_spec, embedding)
        seen = x.numel + sum(self.cond_spec[name].numel for name in self.conditioning.beside)
        self.layers = nn.ModuleList(
            ModulatedLayer(seen if i == 0 else width + seen, width, embedding) for i in range(depth - 1)
        )
        self.head = nn.Linear(seen if depth == 1 else width + seen, self.out_spec.numel)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Network.forward`."""
        state = self.conditioning.concatenate(x.to(self.head.weight.dtype), cond).flatten(1)
        c = self.time(t.expand(len(x)))
        vector = self.conditioning.vector(cond)
        c = F.silu(c if vector is None else c + vector)
        h = state
        for i, layer in enumerate(self.layers):
            h = layer(h if i == 0 else torch.cat([h, state], 1), c)
        last = torch.cat([h, state], 1) if len(self.layers) else h
        return cast(Tensor, self.head(last).reshape(len(x), *self.out_spec.shape).to(x.dtype))
