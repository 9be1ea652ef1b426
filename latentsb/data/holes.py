"""Degradations that lose a part of the image: holes, to be painted in."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentsb.data.degradations import DEGRADATIONS, Degradation, Degraded
from latentsb.errors import ArgumentError
from latentsb.randomness import Draws, numpy_generator
from latentsb.ranges import Fraction, NonNegative, OpenFraction, PositiveFraction
from latentsb.tensors import Spec

__all__ = ["Centre", "FreeForm", "freeform"]


@dataclass(frozen=True, kw_only=True)
class _Hole(Degradation):
    """A part of the image that is lost: what stands there is `fill + noise ε`.

    The condition `mask`, shape (1, H, W), is 1 where the image is known and 0 in the hole.
    """

    fill: float = 1.0
    noise: NonNegative = 0.0

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """The mask."""
        return {"mask": Spec((1, *spec.shape[1:]))}

    @abstractmethod
    def known(self, x0: Tensor, draws: Draws) -> Tensor:
        """Which pixels are known, bool of shape (B, 1, H, W)."""

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """`mask x0 + (1 - mask) (fill + noise ε)`."""
        known = self.known(x0, draws)
        hole = torch.full_like(x0, self.fill)
        if self.noise:
            hole += self.noise * draws.normal("hole", x0)
        return torch.where(known, x0, hole), {"mask": known.to(x0.dtype)}


@DEGRADATIONS.register("centre")
@dataclass(frozen=True, kw_only=True)
class Centre(_Hole):
    """A rectangular hole in the centre, of the image's proportions, to be painted in.

    Source: Saharia et al. 2022, Palette, Sec. 4; the defaults are `inpaint-center` of I2SB, a white hole.

    Args:
        side: of the hole, as a share of the image's side; sides are rounded to pixels.
        fill: value in the hole.
        noise: standard deviation of noise on it.
    """

    side: PositiveFraction = 0.5

    def known(self, x0: Tensor, draws: Draws) -> Tensor:
        """All but the hole, which begins half of the rest away from the upper left corner, rounded down."""
        height, width = x0.shape[-2:]
        high, wide = round(self.side * height), round(self.side * width)
        top, left = (height - high) // 2, (width - wide) // 2
        known = torch.ones((len(x0), 1, height, width), dtype=torch.bool)
        known[..., top : top + high, left : left + wide] = False
        return known


@DEGRADATIONS.register("freeform")
@dataclass(frozen=True, kw_only=True)
class FreeForm(_Hole):
    """Holes as of a brush that is drawn over the image, another for each sample, to be painted in.

    The hole's number of pixels is uniform over the whole numbers from `least` to `most` of the image.

    Source: Yu et al. 2019, Free-form image inpainting with gated convolution, Sec. 3.3; `inpaint-freeform1020` (and
    `2030`) of I2SB, which reads its masks of 10 to 20 % from a file.

    Args:
        least: share of the image that is lost at least.
        most: and at most.
        brush: its diameter, as a share of the image's shorter side, one pixel at least.
        fill: value in the hole.
        noise: standard deviation of noise on it.

    Raises:
        ArgumentError: if the least is more than the most.
    """

    least: Fraction = 0.1
    most: Fraction = 0.2
    brush: OpenFraction = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise ArgumentError("least", f"is {self.least:g}, more than `most: {self.most:g}`")

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """The mask.

        Raises:
            ArgumentError: if no whole number of pixels lies between the shares.
        """
        low, high = self._pixels(math.prod(spec.shape[1:]))
        if low > high:
            raise ArgumentError(
                "degradation",
                f"no number of pixels is {self.least:g} to {self.most:g} of {spec.shape[1]}×{spec.shape[2]}",
            )
        return super().cond(spec)

    def _pixels(self, total: int) -> tuple[int, int]:
        return math.ceil(self.least * total - 1e-9), math.floor(self.most * total + 1e-9)

    def known(self, x0: Tensor, draws: Draws) -> Tensor:
        """All but what the brush has touched."""
        height, width = x0.shape[-2:]
        low, high = self._pixels(height * width)
        radius = max(1.0, self.brush * min(height, width)) / 2
        seeds = draws.integers("strokes", 2**62).tolist()
        holes = [freeform(height, width, low, high, radius, numpy_generator(seed, "strokes")) for seed in seeds]
        return ~torch.from_numpy(np.stack(holes)[:, None])


STROKE = 8
"""Straight parts of a stroke at most."""
LONGEST = 0.25
"""Length of one, as a share of the image's longer side."""
TURN = 2 * math.pi / 5
"""By which the direction changes at most between them."""


def freeform(height: int, width: int, low: int, high: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels that a brush touches on random strokes, bool of shape (height, width).

    A stroke begins anywhere, in any direction, and turns at the end of each straight part. Strokes follow each other
    until the number of pixels that was drawn beforehand is reached; of what the brush touched last, the pixels that lie
    nearest to where it stood are taken.

    Args:
        height: rows.
        width: columns.
        low: pixels at least.
        high: pixels at most.
        radius: of the brush, pixels, ≥ 1/2.
        rng: from which the hole follows.
    """
    wanted, count = int(rng.integers(low, high + 1)), 0
    hole = np.zeros((height, width), dtype=bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    while count < wanted:
        y, x, angle = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, 2 * math.pi)
        for _ in range(int(rng.integers(1, STROKE + 1))):
            length = rng.uniform(0, LONGEST * max(height, width))
            for way in np.linspace(0, length, max(2, math.ceil(2 * length / radius))):
                far = np.square(rows + 0.5 - y - way * math.sin(angle)) + np.square(
                    columns + 0.5 - x - way * math.cos(angle)
                )
                new = np.flatnonzero((far <= radius**2) & ~hole)
                new = new[np.argsort(far.flat[new], kind="stable")][: wanted - count]
                hole.flat[new] = True
                count += len(new)
            y, x = y + length * math.sin(angle), x + length * math.cos(angle)
            angle += rng.uniform(-TURN, TURN)
    return hole
