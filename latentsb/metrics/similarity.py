"""How like two images are: mean squared error, PSNR and SSIM, one number per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mse", "psnr", "ssim"]

WINDOW = 11
SIGMA = 1.5


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error.

    Args:
        x: shape (B, …).
        y: same shape.

    Returns:
        Shape (B,), float32 or wider.
    """
    x, y = _alike(x, y)
    return (x - y).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels, `10 log10(data_range² / mse)`; infinite for equal images.

    Args:
        x: shape (B, …).
        y: same shape.
        data_range: largest minus smallest possible value: 2 on [-1, 1].

    Returns:
        Shape (B,).
    """
    return 10.0 * torch.log10(data_range**2 / mse(x, y))


def ssim(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Structural similarity, `(2μxμy + c1)(2σxy + c2) / ((μx² + μy² + c1)(σx² + σy² + c2))`, averaged.

    The window is a Gaussian of σ = 1.5 on 11×11 pixels; the average is over all pixels of the image, which is
    reflected at its borders, as in torchmetrics (Wang et al. average only where the window lies inside the image).
    `c1` and `c2` are `(0.01 data_range)²` and `(0.03 data_range)²`. A side of n < 6 pixels cannot be reflected by
    five: there the window is the 2n − 1 pixels that can be, with the same σ, renormalised.

    Source: Wang et al. 2004, Image quality assessment: from error visibility to structural similarity.

    Args:
        x: shape (B, C, H, W).
        y: same shape.
        data_range: largest minus smallest possible value: 2 on [-1, 1].

    Returns:
        Shape (B,), in [-1, 1].

    Raises:
        ValueError: if the images are not of four dimensions, or of different shapes, or the channels come last: such
            a mistake would pass unseen, and give another and larger figure.
    """
    x, y = _alike(x, y)
    if x.ndim != 4 or (x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4):
        raise ValueError(f"ssim compares images of shape (B, C, H, W), found {tuple(x.shape)}")
    b, c = x.shape[:2]
    maps = torch.stack([x, y, x * x, y * y, x * y]).reshape(5 * b * c, 1, *x.shape[2:])
    rows, columns = (_window(side, maps) for side in x.shape[2:])
    up, left = len(rows) // 2, len(columns) // 2
    maps = F.pad(maps, (left, left, up, up), mode="reflect")
    blurred = F.conv2d(F.conv2d(maps, rows.reshape(1, 1, -1, 1)), columns.reshape(1, 1, 1, -1))
    mx, my, xx, yy, xy = blurred.reshape(5, b, -1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # Rounding may make a variance slightly negative.
    vx, vy, cov = (xx - mx * mx).clamp(min=0), (yy - my * my).clamp(min=0), xy - mx * my
    found: Tensor = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return found.mean(1)


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape:
        raise ValueError(f"images of different shapes: {tuple(x.shape)} and {tuple(y.shape)}")
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return x.to(wide), y.to(wide)


def _window(side: int, like: Tensor) -> Tensor:
    width = min(WINDOW, 2 * side - 1)
    place = torch.arange(width, dtype=torch.float64) - width // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    return (weights / weights.sum()).to(like)
