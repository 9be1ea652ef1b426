"""Sprites whose factors are known: a square, an ellipse or a heart, turned, scaled, moved and coloured.

The rules and constants are those of the dSprites data set, found again from its published frames: squares agree with
them pixel by pixel, ellipses and hearts but for their edges. Images are rendered when they are read; nothing is stored.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from latentsb.data.source import SOURCES, Factor, Items, Source
from latentsb.errors import ArgumentError
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, NonNegativeInt
from latentsb.tensors import Spec

__all__ = ["Sprites", "masks"]

FRAME = 64.0
"""Side of the image in the units of the shapes."""
HALF = 9.6
"""Half the side of the square at scale 1."""
LONG, SHORT = HALF * 3**0.25, HALF / 3**0.25
"""Half axes of the ellipse at scale 1; its area is π HALF²."""
REACH = 14.0
"""No point of a shape is farther from its centre."""
FINE = 4
"""Points in each direction of a pixel that is smoothed."""
TOGETHER = 512
"""Images that are rendered at once: more do not stay in the processor's cache."""
SQUARE, ELLIPSE, HEART = range(3)
BLACK, WHITE = 0.0, 255.0


def heart() -> np.ndarray:
    """The heart's outline at scale 1 in its own frame, float64 of shape (128, 2)."""
    t = np.arange(128) * (2 * math.pi / 128)
    across = HALF * np.sin(t) ** 3
    down = -0.66 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 1.5
    return np.stack([across, down], 1)


OUTLINE = heart()


def masks(
    shape: np.ndarray, scale: np.ndarray, angle: np.ndarray, cx: np.ndarray, cy: np.ndarray, side: int
) -> np.ndarray:
    """Which centres of pixels lie inside a shape.

    With `d = (pixel − centre)/scale` and `u = cos(o) d_x − sin(o) d_y`, `v = sin(o) d_x + cos(o) d_y`, the square is
    `max(|u|, |v|) ≤ 9.6`, the ellipse `(u/a)² + (v/b)² ≤ 1`, and the heart the inside of its outline by the even-odd
    rule.

    Args:
        shape: 0 square, 1 ellipse, 2 heart, shape (N,).
        scale: size relative to the largest.
        angle: o, in radians.
        cx: centre in a frame of 64 × 64, rightwards.
        cy: the same, downwards.
        side: pixels along each side, a multiple of 32.

    Returns:
        Bool, shape (N, side, side).
    """
    unit = FRAME / side
    half = round((REACH + unit) / unit)  # of a window that surely holds the shape; all else is background
    left, top = ((np.floor(c / unit) - half).astype(np.int64) for c in (cx, cy))
    x, y = ((first[:, None] + np.arange(2 * half) + 0.5) * unit for first in (left, top))
    window = np.zeros((len(shape), 2 * half, 2 * half), dtype=bool)
    for kind, inside in ((SQUARE, _square), (ELLIPSE, _ellipse), (HEART, _heart)):
        at = np.flatnonzero(shape == kind)
        if len(at):
            dx, dy = ((v[at] - c[at, None]) / scale[at, None] for v, c in ((x, cx), (y, cy)))
            window[at] = inside(dx, dy, angle[at])
    image = np.zeros((len(shape), side, side), dtype=bool)
    for k, (i, j) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        image[k, i : i + 2 * half, j : j + 2 * half] = window[k]
    return image


def _turned(dx: np.ndarray, dy: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u and v at all points of the grids dx (N, W) and dy (N, H), each (N, H, W)."""
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    u = (cos * dx)[:, None, :] - (sin * dy)[:, :, None]
    v = (sin * dx)[:, None, :] + (cos * dy)[:, :, None]
    return u, v


def _square(dx: np.ndarray, dy: np.ndarray, angle: np.ndarray) -> np.ndarray:
    u, v = _turned(dx, dy, angle)
    inside: np.ndarray = (np.abs(u) <= HALF) & (np.abs(v) <= HALF)
    return inside


def _ellipse(dx: np.ndarray, dy: np.ndarray, angle: np.ndarray) -> np.ndarray:
    u, v = _turned(dx, dy, angle)
    u *= 1 / LONG
    v *= 1 / SHORT
    inside: np.ndarray = u * u + v * v <= 1
    return inside


def _heart(dx: np.ndarray, dy: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Even-odd rule along rows: an edge of the outline that crosses a row flips all points to the right of it."""
    n, width, height = len(dx), dx.shape[1], dy.shape[1]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    step = dx[:, 1:2] - dx[:, :1]
    # The outline in units of pixels, its origin at the centre of the window's first pixel; (u, v) is turned back.
    column = (cos * OUTLINE[:, 0] + sin * OUTLINE[:, 1] - dx[:, :1]) / step
    row = (cos * OUTLINE[:, 1] - sin * OUTLINE[:, 0] - dy[:, :1]) / step
    first = np.ceil(row).astype(np.int64)
    last = np.roll(first, -1, axis=1)
    low, crossed = np.minimum(first, last), np.abs(last - first)
    flips = np.zeros(n * height * (width + 1), dtype=np.int64)
    for k in range(int(crossed.max())):
        image, edge = np.nonzero(crossed > k)
        at = low[image, edge] + k
        after = (edge + 1) % len(OUTLINE)
        r0, r1, c0, c1 = (v[image, e] for v in (row, column) for e in (edge, after))
        crossing = np.ceil(c0 + (at - r0) * (c1 - c0) / (r1 - r0)).astype(np.int64)
        flips += np.bincount((image * height + at) * (width + 1) + crossing, minlength=len(flips))
    inside: np.ndarray = flips.reshape(n, height, width + 1).cumsum(2)[:, :, :width] % 2 == 1
    return inside


@SOURCES.register("sprites")
class Sprites(Source):
    """Squares, ellipses and hearts of known colour, shape, scale, orientation and position, rendered as they are read.

    The condition `attributes` holds the values of all factors that vary, and `factors` says what they are: shape
    (1 square, 2 ellipse, 3 heart), scale (6, from .5 to 1), orientation (40, from 0 to 2π, both included), and the two
    positions (32 each, from 0 to 1), before them a background and a colour where there are several. Background and
    colour number k of K have the hue k/K; a background is half as bright, so that no sprite is lost in it.

    Squares repeat every quarter turn and ellipses every half: only hearts tell their orientation.

    Source: Matthey et al. 2017, dSprites (its factors, in its order); Burgess and Kim 2018, 3D Shapes (backgrounds).

    Args:
        size: pixels along each side, a multiple of 32.
        n: samples, chosen without repetition among all images; every image if None, in the order of the factors.
        seed: of this choice.
        colours: of the sprite; one is white.
        backgrounds: colours of the background; one is black. Images are grey where both are one.
        smooth: pixels at an edge take the share of 4 × 4 points inside; else that of their centre, all or nothing.

    Raises:
        ArgumentError: if the size is no multiple of 32, or there are fewer images than samples asked for.
    """

    def __init__(
        self,
        *,
        size: Count = 64,
        n: Count | None = None,
        seed: NonNegativeInt = 0,
        colours: Count = 1,
        backgrounds: Count = 1,
        smooth: bool = False,
    ) -> None:
        if size % 32:
            raise ArgumentError("size", f"found {size}, expected a multiple of 32")
        self.size, self.smooth = size, smooth
        self.all_factors = (
            Factor("background", _hues(backgrounds), categorical=True),
            Factor("colour", _hues(colours), categorical=True),
            Factor("shape", (1.0, 2.0, 3.0), categorical=True),
            Factor("scale", _evenly(0.5, 1, 6)),
            Factor("orientation", _evenly(0, 2 * math.pi, 40)),
            Factor("position x", _evenly(0, 1, 32)),
            Factor("position y", _evenly(0, 1, 32)),
        )
        self.sizes = tuple(len(factor.values) for factor in self.all_factors)
        self.factors = tuple(factor for factor in self.all_factors if len(factor.values) > 1)
        channels = 1 if colours == backgrounds == 1 else 3
        self.colours = _palette(colours, 1.0, WHITE)[:, :channels]
        self.backgrounds = _palette(backgrounds, 0.5, BLACK)[:, :channels]
        self.spec = Spec((channels, size, size))
        self.cond = {"attributes": Spec((len(self.factors),))}
        total, self.seed = math.prod(self.sizes), seed
        if n is not None and n > total:
            raise ArgumentError("n", f"found {n}, but there are {total:,} images")
        self.chosen = None if n is None else numpy_generator(seed, "sprites").choice(total, n, replace=False)

    def __len__(self) -> int:
        return math.prod(self.sizes) if self.chosen is None else len(self.chosen)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Render samples; none is ever mirrored, since an image has one orientation."""
        at = np.asarray(index, dtype=np.int64) if self.chosen is None else self.chosen[index]
        classes = self.classes_of(at)
        pixels = self.render(classes)
        x0 = torch.from_numpy(pixels).float().div_(127.5).sub_(1.0)
        columns = [
            np.array(factor.values)[classes[:, k]]
            for k, factor in enumerate(self.all_factors)
            if factor in self.factors
        ]
        return Items(x0, None, {"attributes": torch.from_numpy(np.stack(columns, 1)).float()})

    def words(self, name: str) -> tuple[str, ...]:
        """Names of the factors that vary."""
        return tuple(factor.name for factor in self.factors) if name == "attributes" else ()

    def index_of(self, classes: np.ndarray) -> np.ndarray:
        """Positions among all images, shape (N,), of classes of the factors, shape (N, F); the last varies fastest."""
        found: np.ndarray = np.ravel_multi_index(tuple(np.asarray(classes).T), self.sizes)
        return found

    def classes_of(self, index: np.ndarray) -> np.ndarray:
        """Classes of all factors, those with a single value included, int64 of shape (N, F), of images by position."""
        return np.stack(np.unravel_index(index, self.sizes), 1)

    def sample(self, n: int, *, fixed: Mapping[str, int] | None = None, seed: int = 0) -> np.ndarray:
        """Classes of n independent images, some factors held at a class, int64 of shape (n, F).

        Raises:
            ArgumentError: if a factor that is to be held does not exist.
        """
        names = [factor.name for factor in self.all_factors]
        drawn: np.ndarray = numpy_generator(seed, "sampled sprites").integers(self.sizes, size=(n, len(names)))
        for name, value in (fixed or {}).items():
            if name not in names:
                raise ArgumentError("fixed", f"no factor is called '{name}'; they are: {', '.join(names)}")
            drawn[:, names.index(name)] = value
        return drawn

    def render(self, classes: np.ndarray) -> np.ndarray:
        """Images of classes of the factors, uint8 of shape (N, C, size, size)."""
        parts = [self._render(classes[first : first + TOGETHER]) for first in range(0, len(classes), TOGETHER)]
        return np.concatenate(parts) if parts else np.zeros((0, *self.spec.shape), np.uint8)

    def _render(self, classes: np.ndarray) -> np.ndarray:
        back, colour, shape, *rest = classes.T
        values = (np.array(f.values)[at] for f, at in zip(self.all_factors[3:], rest, strict=True))
        scale, angle, across, down = values
        side = self.size * (FINE if self.smooth else 1)
        lit = masks(shape, scale, angle, 16 + 32 * across, 16 + 32 * down, side)
        covered = _pooled(lit) if self.smooth else lit.view(np.uint8)
        return _painted(covered, FINE**2 if self.smooth else 1, self.colours[colour], self.backgrounds[back])

    def fingerprint(self) -> dict[str, Any]:
        """The factors, how they are rendered, and which samples are chosen."""
        return {
            "data": "sprites",
            "sizes": list(self.sizes),
            "shape": list(self.spec.shape),
            "smooth": self.smooth,
            "samples": len(self),
            "seed": None if self.chosen is None else self.seed,
        }


def _pooled(lit: np.ndarray) -> np.ndarray:
    """How many of the fine points of each pixel lie inside, uint8."""
    bits = lit.view(np.uint8)
    rows = sum((bits[:, k::FINE] for k in range(1, FINE)), bits[:, ::FINE])
    counts: np.ndarray = sum((rows[:, :, k::FINE] for k in range(1, FINE)), rows[:, :, ::FINE])
    return counts


def _painted(covered: np.ndarray, whole: int, front: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Bytes, shape (N, C, H, W): `covered` of `whole` parts of each pixel in one colour (N, C), the rest in another."""
    shares = np.arange(whole + 1, dtype=np.float32) / whole
    shades = np.rint(behind[:, :, None] + shares * (front - behind)[:, :, None]).astype(np.uint8)
    image = np.empty((len(covered), shades.shape[1], *covered.shape[1:]), np.uint8)
    for k, own in enumerate(shades):
        own.take(covered[k], axis=1, out=image[k])
    return image


def _evenly(first: float, last: float, n: int) -> tuple[float, ...]:
    return tuple(np.linspace(first, last, n).tolist())


def _hues(n: int) -> tuple[float, ...]:
    return tuple(k / n for k in range(n))


def _palette(n: int, brightness: float, alone: float) -> np.ndarray:
    """Colours as bytes, float32 of shape (n, 3): hues at equal distances, or one shade of grey."""
    if n == 1:
        return np.full((1, 3), alone, dtype=np.float32)
    rgb = [colorsys.hsv_to_rgb(hue, 1.0, brightness) for hue in _hues(n)]
    return np.rint(np.array(rgb, dtype=np.float32) * 255)
