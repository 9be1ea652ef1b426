"""How times, labels, vectors and positions enter a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.tensors import Condition, Spec

__all__ = [
    "FAR",
    "THETA",
    "Conditioning",
    "LabelEmbedding",
    "OrNull",
    "TimeEmbedding",
    "VectorEmbedding",
    "axial_angles",
    "grid_positions",
    "position_features",
    "rotary_table",
    "rotate",
    "time_features",
]

LONGEST, SHORTEST = 64.0, 1 / 16
THETA, FAR = 100.0, 10_000.0
"""Bases of the rotary angles and of the features of absolute positions."""


def time_features(t: Tensor, n: int) -> Tensor:
    """Cosines and sines of a time feature, `cos(2 pi t / P_k), sin(2 pi t / P_k)`.

    The n/2 periods P_k are geometric from 64 to 1/16. The longest one is monotone over |t| < 16, so that no two
    values of `ln(sigma)/4` (about -2 to 6) look alike; the shortest turns by 0.1 rad over 1/1000, so that the
    thousandths of a t in [0, 1] are told apart.

    Args:
        t: the bridge's time feature, shape (B,).
        n: even count of features.

    Returns:
        Shape (B, n), in [-1, 1], float32 or wider.
    """
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    k = torch.arange(n // 2, device=t.device, dtype=t.dtype) / max(n // 2 - 1, 1)
    omega = 2 * math.pi / LONGEST * (LONGEST / SHORTEST) ** k
    phase = t[:, None] * omega
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Time features through two layers.

    Args:
        width: of the output.
        features: even count of cosines and sines.
    """

    def __init__(self, width: int, *, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Shape (B,) to (B, width)."""
        weight = cast(Tensor, self.layers[0].weight)
        return cast(Tensor, self.layers(time_features(t.to(weight.device), self.features).to(weight.dtype)))


class LabelEmbedding(nn.Module):
    """A row of a table for each class, and one more for 'absent'.

    Args:
        classes: how many values the label may take.
        width: of the output.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor, present: Tensor) -> Tensor:
        """Labels (B,) and presence (B,) to (B, width)."""
        absent = torch.full_like(label, self.classes)
        return cast(Tensor, self.table(torch.where(present, label, absent).long()))


class VectorEmbedding(nn.Module):
    """A linear map of a vector; a learned vector stands in where it is absent.

    Args:
        dim: of the vector, flattened.
        width: of the output.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, value: Tensor, present: Tensor) -> Tensor:
        """Vectors (B, …) and presence (B,) to (B, width)."""
        here = present[:, None]
        # An absent value may be anything, also NaN, which a product by zero would pass on to the gradients.
        flat = torch.where(here, value.flatten(1).to(self.linear.weight.dtype), 0.0)
        mapped = cast(Tensor, self.linear(flat))
        return torch.where(here, mapped, self.null.to(mapped.dtype))


class OrNull(nn.Module):
    """Passes a tensor through; one learned number per channel stands in where it is absent.

    Args:
        channels: length of the first dimension after the batch.
        rank: number of dimensions after the batch.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels, *(1,) * (rank - 1)))

    def forward(self, value: Tensor, present: Tensor) -> Tensor:
        """Values (B, C, …) and presence (B,) to (B, C, …), in the parameters' dtype."""
        here = present.reshape(-1, *(1,) * (value.ndim - 1))
        return torch.where(here, value.to(self.null.dtype), self.null)


class Conditioning(nn.Module):
    """Sorts conditions by their shapes into summed vectors and channels beside the state.

    A spec with `classes` is a label; one with the state's shape behind the first dimension is concatenated (for a
    state that is itself a vector: one of the same length); a vector or number goes through a linear layer, and so
    does any other tensor where the state is a vector.

    Args:
        x: shape of the state.
        cond: shapes of the conditions, by name.
        width: of the summed vectors.

    Raises:
        ArgumentError: if a shape is none of these.
    """

    def __init__(self, x: Spec, cond: Mapping[str, Spec], width: int) -> None:
        super().__init__()
        self.vectors, self.beside = nn.ModuleDict(), nn.ModuleDict()
        self.channels = 0
        for name, spec in cond.items():
            if spec.classes is not None and not spec.shape:
                self.vectors[name] = LabelEmbedding(spec.classes, width)
            elif spec.shape and _fits(x, spec):
                self.beside[name] = OrNull(spec.channels, len(spec.shape))
                self.channels += spec.channels
            elif len(spec.shape) <= 1 or len(x.shape) <= 1:
                self.vectors[name] = VectorEmbedding(spec.numel, width)
            else:
                raise ArgumentError(
                    "cond",
                    f"'{name}' of shape {spec.shape} is neither a label, nor a vector, nor does it fit beside a "
                    f"state of shape {x.shape}",
                )

    def vector(self, cond: Condition) -> Tensor | None:
        """Sum of the embedded labels and vectors, shape (B, width); None if there is none."""
        total: Tensor | None = None
        for name, embed in self.vectors.items():
            value = embed(cond[name], cond.mask(name))
            total = value if total is None else total + value
        return total

    def concatenate(self, x: Tensor, cond: Condition) -> Tensor:
        """The state with the tensors that fit beside it, shape (B, C + channels, …)."""
        if not self.beside:
            return x
        return torch.cat([x, *(orn(cond[name], cond.mask(name)).to(x.dtype) for name, orn in self.beside.items())], 1)


def _fits(x: Spec, spec: Spec) -> bool:
    if len(x.shape) <= 1:
        return spec.shape == x.shape
    return len(spec.shape) == len(x.shape) and spec.shape[1:] == x.shape[1:]


def grid_positions(height: int, width: int, reference: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Row and column of every token, in units of the reference grid.

    `p_i = (i + 1/2) R / n - 1/2`: the whole numbers 0 … R-1 at the reference size R, and the same extent at any
    other size n, so that a network sees a larger grid as a finer one.

    Args:
        height: tokens per column.
        width: tokens per row.
        reference: grid of the training, (rows, columns).
        device: of the result.

    Returns:
        Shape (height * width, 2), float32, row by row.
    """
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * (r / n) - 0.5
        for n, r in zip((height, width), reference, strict=True)
    ]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=-1)


def axial_angles(positions: Tensor, count: int, bases: tuple[float, float]) -> Tensor:
    """`p θ^(−k/K)`, k = 0 … K−1, of rows and of columns.

    Args:
        positions: shape (N, 2).
        count: K.
        bases: θ of rows and of columns.

    Returns:
        Shape (N, 2, K).
    """
    k = torch.arange(count, device=positions.device, dtype=positions.dtype) / count
    return positions[..., None] * torch.stack([base**-k for base in bases])


def rotary_table(positions: Tensor, dim: int, bases: tuple[float, float] = (THETA, THETA)) -> Tensor:
    """Cosines and sines of the rotary angles; one half of the pairs turns with the row, one with the column.

    Angle `theta_k = p 100^(-k / (D/4))`, k = 0 … D/4-1, for each axis.
    Source: Su et al. 2021, Eq. 15; Heo et al. 2024 (axial form and base 100 for images).

    Args:
        positions: shape (N, 2).
        dim: D, of one head; a multiple of four.
        bases: in the place of 100, of rows and of columns.

    Returns:
        Shape (2, N, D/2).
    """
    angles = axial_angles(positions, dim // 4, bases).flatten(1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+D/2}) of queries or keys by their angles.

    Args:
        x: shape (B, H, N, D).
        table: shape (2, N, D/2).

    Returns:
        Shape (B, H, N, D), dtype of x.
    """
    cos, sin = table.to(x.dtype).unbind(0)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def position_features(positions: Tensor, width: int, bases: tuple[float, float] = (FAR, FAR)) -> Tensor:
    """Fixed cosines and sines of absolute positions, one half for rows and one for columns.

    Source: Vaswani et al. 2017, section 3.5, along two axes.

    Args:
        positions: shape (N, 2).
        width: of the tokens; a multiple of four.
        bases: θ of rows and of columns.

    Returns:
        Shape (N, width).
    """
    angles = axial_angles(positions, width // 4, bases)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)
