"""Tensors as pictures: 8-bit files, grids, scatter plots of 2-D samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "from_uint8", "grid", "image_of", "magnitudes", "save_image", "scatter", "show", "to_uint8"]

ENDINGS = (".png", ".jpg", ".webp")
"""Files that a picture can be saved as."""
HEAD = 18
"""Height of what stands above columns, in pixels."""
MATRICES = 64
"""Complex matrices in a picture, at most."""


def to_uint8(images: Tensor) -> np.ndarray:
    """Quantise [-1, 1] to 0 … 255 by rounding, so that `from_uint8` of every level comes back unchanged.

    Args:
        images: shape (…, C, H, W).

    Returns:
        uint8 of shape (…, H, W, C).
    """
    levels = (images.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """0 … 255 of shape (…, H, W, C) to [-1, 1] of shape (…, C, H, W), float32."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).movedim(-1, -3)


def image_of(picture: Tensor) -> Image:
    """One picture (C, H, W) in [-1, 1] as a Pillow image; of two or more than four channels the first is shown grey."""
    from PIL import Image

    if picture.shape[0] not in (1, 3, 4):
        picture = picture[:1]
    pixels = to_uint8(picture)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_image(picture: Tensor, path: Path) -> None:
    """Write one picture as PNG; a file that exists under the name is complete."""
    partial = path.with_name(f".{path.name}.partial")
    image_of(picture).save(partial, format="PNG")
    partial.replace(path)


def grid(pictures: Tensor, columns: int | None = None, scale: int | None = None, heads: Sequence[str] = ()) -> Image:
    """Pictures side by side, row by row, one grey pixel apart.

    Args:
        pictures: shape (B, C, H, W) in [-1, 1].
        columns: pictures in a row; about the square root of B if None.
        scale: whole-number enlargement; if None, small pictures are enlarged to about 64 pixels.
        heads: what stands above each column.
    """
    from PIL import Image, ImageDraw

    n, _, height, width = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, 64 // max(height, width))
    gap = max(1, scale // 2)
    rows = math.ceil(n / columns)
    tile_h, tile_w = height * scale, width * scale
    top = HEAD if heads else 0
    sheet = Image.new("RGB", (columns * (tile_w + gap) - gap, top + rows * (tile_h + gap) - gap), (128, 128, 128))
    if heads:
        sheet.paste((255, 255, 255), (0, 0, sheet.width, top))
    for i, head in enumerate(heads):
        centre = (i * (tile_w + gap) + tile_w / 2, top / 2)
        ImageDraw.Draw(sheet).text(centre, head, fill=(0, 0, 0), anchor="mm", font_size=HEAD * 2 // 3)
    for i, picture in enumerate(pictures):
        tile = image_of(picture).convert("RGB").resize((tile_w, tile_h), Image.Resampling.NEAREST)
        sheet.paste(tile, ((i % columns) * (tile_w + gap), top + (i // columns) * (tile_h + gap)))
    return sheet


def scatter(points: Tensor, beside: Tensor | None = None) -> Image:
    """A scatter plot of samples (B, D), over other points where they are given; a histogram where D is 1.

    Vectors of more than two dimensions are shown by their first two.

    Args:
        points: shape (B, D).
        beside: shape (N, D), drawn in grey below.
    """
    from io import BytesIO

    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(5, 5), dpi=100)
    axes = figure.add_subplot()
    for held, colour in ((beside, "0.75"), (points, "C0")):
        if held is None:
            continue
        shown = held.flatten(1)[:, :2].float().cpu().numpy()
        if shown.shape[1] == 1:
            axes.hist(shown[:, 0], bins=50, density=True, color=colour, alpha=0.7)
        else:
            axes.scatter(shown[:, 0], shown[:, 1], s=4, c=colour)
    if points.flatten(1).shape[1] > 1:
        axes.set_aspect("equal")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def magnitudes(matrices: Tensor) -> Tensor:
    """Magnitudes of complex matrices (B, n, n) as grey pictures (B, 1, n, n): 0 is black, the largest is white."""
    size = matrices.abs().float()
    return (2 * size / size.amax().clamp_min(1e-12) - 1)[:, None]


def show(samples: Tensor, columns: int | None = None, beside: Tensor | None = None, heads: Sequence[str] = ()) -> Image:
    """A grid of images (B, C, H, W) or of magnitudes of complex matrices (B, n, n), a scatter plot of anything else.

    Args:
        samples: to show.
        columns: images in a row.
        beside: of vectors, other points to show in grey below.
        heads: what stands above each column of images.
    """
    if samples.is_complex():
        return grid(magnitudes(samples[:MATRICES]), columns, heads=heads)
    return grid(samples, columns, heads=heads) if samples.ndim == 4 else scatter(samples, beside)
