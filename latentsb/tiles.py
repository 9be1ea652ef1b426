"""Tiles: large images are encoded and decoded in parts that overlap, so that memory does not grow with the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.ranges import Count, NonNegativeInt, enforce
from latentsb.registry import Registry

__all__ = ["TILINGS", "Span", "Tiles", "Tiling"]

BLOCKS = 8
"""Blocks along a side of what stands for the whole."""
Tiles = Literal["exact", "approximate", "refused"]
"""What tiles are to an autoencoder: exact where a latent depends on pixels within a bounded distance alone, and a
pixel on latents; approximate where a normalisation or an attention over the whole becomes one over a tile; refused
where that is known to spoil the result."""


@dataclass(frozen=True)
class Span:
    """One tile along one side.

    Args:
        first: cell at which it begins.
        last: cell before which it ends.
        before: cells that it shares with its predecessor.
        after: cells that it shares with its successor.
    """

    first: int
    last: int
    before: int = 0
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Square tiles that overlap, blended linearly across the middle half of what two of them share.

    A side of n pixels is cut into `⌈(n − overlap)/(size − overlap)⌉` tiles of equal length, the shortest that cover
    it. In the outer quarters of an overlap one of the two tiles counts alone, the one that is farther from its own
    border: these are context. Across the half between, the weights rise and fall along a line and sum to one. With an
    overlap of at least four times the distance over which an autoencoder looks, tiles are exact everywhere; with less,
    wherever no border of a tile is nearer than that distance.

    Args:
        size: largest side of a tile, in pixels.
        overlap: of neighbours, in pixels, at most half of `size`. Both are rounded down to the autoencoder's factor.

    Raises:
        ArgumentError: if more than half of a tile would be shared.
    """

    size: Count = 352
    overlap: NonNegativeInt = 16

    def __post_init__(self) -> None:
        enforce(self)
        if 2 * self.overlap > self.size:
            raise ArgumentError("overlap", f"must be at most half of size = {self.size}, found {self.overlap}")

    def spans(self, cells: int, factor: int) -> tuple[Span, ...]:
        """The tiles along one side of an image.

        Args:
            cells: length of that side of the latent.
            factor: pixels of a cell.

        Raises:
            ArgumentError: if a tile would not hold two cells and the cells that it shares.
        """
        size, shared = self.size // factor, self.overlap // factor
        if cells <= size:
            return (Span(0, cells),)
        if size - shared < 1:
            raise ArgumentError("size", f"must be at least {factor} + overlap = {factor + self.overlap} here")
        count = -(-(cells - shared) // (size - shared))
        length = -(-(cells + (count - 1) * shared) // count)
        firsts = [round(k * (cells - length) / (count - 1)) for k in range(count)]
        met = [0, *(first + length - following for first, following in pairwise(firsts)), 0]
        return tuple(
            Span(first, first + length, before, after)
            for first, before, after in zip(firsts, met, met[1:], strict=False)
        )

    def splits(self, latent: tuple[int, ...], factor: int) -> bool:
        """Whether a latent (C, h, w) takes more than one tile."""
        return any(side > self.size // factor for side in latent[1:])

    def digest(self, x: Tensor, cells: tuple[int, int]) -> Tensor:
        """A small map that stands for a large one: 8 × 8 blocks of it, evenly spread, about a sixtieth of the whole.

        Args:
            x: shape (B, C, H, W), images or latents.
            cells: sides of the latent.
        """
        for dim, n in ((-2, cells[0]), (-1, cells[1])):
            block, inner = max(1, n // 64), x.shape[dim] // n
            firsts = torch.linspace(0, n - block, min(BLOCKS, n)).round().long() * inner
            places = sorted({int(first) + k for first in firsts for k in range(block * inner)})
            x = x.index_select(dim, torch.tensor(places, device=x.device))
        return x

    def over(self, x: Tensor, act: Callable[[Tensor], Tensor], cells: tuple[int, int], factor: int) -> Tensor:
        """Apply a function to tiles and blend what it returns, in one buffer of the size of the result.

        Args:
            x: shape (B, C, H, W), images or latents.
            act: a tile to its result, both with the same number of cells on their sides.
            cells: sides of the latent.
            factor: pixels of a cell.

        Returns:
            What `act(x)` would, up to what tiles cannot see.
        """
        rows, columns = (self.spans(n, factor) for n in cells)
        if len(rows) == len(columns) == 1:
            return act(x)
        inner, out, outer = x.shape[-2] // cells[0], None, 1
        for row, column in product(rows, columns):
            tile = act(x[..., _of(row, inner), _of(column, inner)])
            if out is None:
                outer = tile.shape[-2] // (row.last - row.first)
                out = tile.new_zeros(*tile.shape[:-2], cells[0] * outer, cells[1] * outer)
            weigh(tile, row, outer, -2)
            weigh(tile, column, outer, -1)
            out[..., _of(row, outer), _of(column, outer)] += tile
        assert out is not None
        return out


def weigh(tile: Tensor, span: Span, scale: int, dim: int) -> None:
    """Multiply a tile, in place, by what its overlaps leave to it along one side."""
    for shared, rising in ((span.before, True), (span.after, False)):
        if shared:
            ramp = ramp_of(shared * scale).to(tile)
            weight = ramp if rising else 1 - ramp
            edge = tile.narrow(dim, 0 if rising else tile.shape[dim] - len(ramp), len(ramp))
            edge *= weight.reshape(-1, *(1,) * (-1 - dim))


def ramp_of(n: int) -> Tensor:
    """Weights of the later tile across an overlap of n: 0 in the first quarter, 1 in the last, a line between."""
    place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (2 * place - 0.5).clamp(0.0, 1.0)


def _of(span: Span, scale: int) -> slice:
    return slice(span.first * scale, span.last * scale)


TILINGS: Registry[Tiling] = Registry("tiling", Tiling, homes=("latentsb.tiles",))
TILINGS.register("blended")(Tiling)
