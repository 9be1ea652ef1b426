"""Positions of tokens on a grid of another size than the trained one.

A transformer knows where a token is from angles `p θ^(−k/K)`, k = 0 … K−1, of its row and of its column. What p and θ
become on a grid of n places where R were trained is decided here; at n = R every choice is the same, `p = 0 … R−1`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.networks.embeddings import grid_positions
from latentsb.registry import Registry

__all__ = ["POSITIONS", "Extended", "Interpolated", "NTKScaled", "Positions"]


@dataclass(frozen=True, kw_only=True)
class Positions(ABC):
    """How positions continue beyond the trained grid."""

    @abstractmethod
    def places(self, grid: tuple[int, int], trained: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Row and column of every token.

        Args:
            grid: rows and columns of tokens.
            trained: the same, in training.
            device: of the result.

        Returns:
            Shape (rows · columns, 2), float32, row by row.
        """

    def bases(self, theta: float, count: int, grid: tuple[int, int], trained: tuple[int, int]) -> tuple[float, float]:
        """θ of rows and of columns; that of training by default.

        Args:
            theta: of training.
            count: K, frequencies of one axis.
            grid: rows and columns of tokens.
            trained: the same, in training.
        """
        return theta, theta


POSITIONS: Registry[Positions] = Registry("positions", Positions, homes=("latentsb.networks.positions",))


@POSITIONS.register("interpolated")
@dataclass(frozen=True, kw_only=True)
class Interpolated(Positions):
    """The trained extent in other steps, `p_i = (i + 1/2) R/n − 1/2`: a larger image shows the same in more detail.

    No position is farther than half a step beyond the outermost trained one; neighbours are nearer to each other than
    they ever were in training.

    Source: Chen et al. 2023, Extending context window of large language models via positional interpolation, Eq. 4.
    """

    def places(self, grid: tuple[int, int], trained: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Places within the trained extent."""
        return grid_positions(*grid, trained, device)


@POSITIONS.register("extended")
@dataclass(frozen=True, kw_only=True)
class Extended(Positions):
    """The trained steps over a wider extent, `p_i = i − (n − R)/2`: a larger image shows more of the same.

    Attention between near tokens is just that of training, which suits textures; far ones are at distances never seen.

    Source: Su et al. 2021, RoFormer, Eq. 15, continued.
    """

    def places(self, grid: tuple[int, int], trained: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Places in steps of one, the trained ones in the middle."""
        axes = [
            torch.arange(n, device=device, dtype=torch.float32) - (n - r) / 2
            for n, r in zip(grid, trained, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)


@POSITIONS.register("ntk")
@dataclass(frozen=True, kw_only=True)
class NTKScaled(Positions):
    """Near tokens as in training, far ones within the trained range: `p_i = i` and `θ' = θ (n/R)^(K/(K−1))`.

    The fastest angle (k = 0) turns by one radian from token to token, as in training; the slowest (k = K − 1) becomes
    `p θ^(−(K−1)/K) R/n`, that of `interpolated`; those between change gradually.

    Source: Peng et al. 2024, YaRN: efficient context window extension of large language models, Sec. 3.1 ("NTK-aware").
    """

    def places(self, grid: tuple[int, int], trained: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Places in steps of one, from 0."""
        return grid_positions(*grid, grid, device)

    def bases(self, theta: float, count: int, grid: tuple[int, int], trained: tuple[int, int]) -> tuple[float, float]:
        """`θ (n/R)^(K/(K−1))`, of each axis; θ where K = 1."""
        power = count / (count - 1) if count > 1 else 0.0
        rows, columns = (theta * (n / r) ** power for n, r in zip(grid, trained, strict=True))
        return rows, columns
