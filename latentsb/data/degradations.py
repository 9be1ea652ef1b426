"""Degradations of clean images, for paired restoration: x1 is what is left of x0.

Each is a small part of its own. What is random in one belongs to the sample (its index and whether it is mirrored), so
that an image is degraded alike in every epoch and by any number of processes. Linear degradations stay linear: nothing
is clipped, so that a cubic kernel or noise may lead a little beyond [-1, 1]; JPEG alone rounds to bytes and clips.

They are the tasks of Liu et al. 2023, I2SB: super-resolution from pooled pixels or by a cubic kernel, uniform
and Gaussian blur (Kawar et al. 2022, DDRM), JPEG of quality 5 and 10, a hole in the centre and free-form holes (Saharia
et al. 2022, Palette).
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from latentsb.errors import ArgumentError
from latentsb.randomness import Draws
from latentsb.ranges import Count, Positive, enforce
from latentsb.registry import Registry, describe
from latentsb.tensors import Spec

__all__ = [
    "DEGRADATIONS",
    "JPEG",
    "Bicubic",
    "Blur",
    "Chain",
    "Degradation",
    "Noise",
    "Pool",
    "UniformBlur",
]

Quality = Annotated[int, Ge(1), Le(100)]
Degraded = tuple[Tensor, Mapping[str, Tensor]]
"""The degraded images, and what is told beside them."""


@dataclass(frozen=True, kw_only=True)
class Degradation(ABC):
    """What is done to a clean image."""

    def __post_init__(self) -> None:
        enforce(self)

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """Conditions that are told beside images of this form; none by default.

        Args:
            spec: of the clean images, (C, H, W).

        Raises:
            ArgumentError: if such images cannot be degraded.
        """
        return {}

    def identity(self) -> Any:
        """The part as a recipe would write it, JSON values."""
        return describe(self)

    @abstractmethod
    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Degrade images.

        Args:
            x0: clean images in [-1, 1], float, shape (B, C, H, W).
            draws: of these samples; the same samples always bring the same.

        Returns:
            Images of the same shape and type, and the conditions that `cond` promises.
        """


DEGRADATIONS: Registry[Degradation] = Registry("degradation", Degradation, homes=("latentsb.data.holes",))


def _divisible(spec: Spec, factor: int) -> dict[str, Spec]:
    height, width = spec.shape[1:]
    if height % factor or width % factor:
        raise ArgumentError("degradation", f"`factor: {factor}` does not divide images of {height}×{width}")
    return {}


def _enlarged(small: Tensor, factor: int) -> Tensor:
    return small.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


@DEGRADATIONS.register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(Degradation):
    """A lower resolution: each block of pixels takes its mean.

    Source: Kawar et al. 2022, Denoising diffusion restoration models, Sec. 5; `sr4x-pool` of I2SB.

    Args:
        factor: side of a block, pixels.
    """

    factor: Count = 4

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """None; the factor must divide both sides."""
        return _divisible(spec, self.factor)

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Means of blocks, repeated over them: a projection."""
        return _enlarged(F.avg_pool2d(x0, self.factor), self.factor), {}


@DEGRADATIONS.register("bicubic")
@dataclass(frozen=True, kw_only=True)
class Bicubic(Degradation):
    """A lower resolution by an antialiased cubic kernel (a = -1/2), each of its pixels repeated over a block.

    Within two blocks of the border the kernel is cut off and normalised again, as Pillow's is.

    Source: Keys 1981, Cubic convolution interpolation; `sr4x-bicubic` of I2SB, which mirrors the image at its border.

    Args:
        factor: side of a block, pixels.
    """

    factor: Count = 4

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """None; the factor must divide both sides."""
        return _divisible(spec, self.factor)

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Filter, take one pixel of each block, repeat it."""
        size = [x0.shape[-2] // self.factor, x0.shape[-1] // self.factor]
        small = F.interpolate(x0, size, mode="bicubic", antialias=True, align_corners=False)
        return _enlarged(small, self.factor), {}


@DEGRADATIONS.register("blur")
@dataclass(frozen=True, kw_only=True)
class Blur(Degradation):
    """Gaussian blur whose kernel is cut off and sums to one; the image is mirrored at its border.

        k_j ∝ exp(-j² / (2 std²)),  |j| ≤ radius, along rows and along columns

    Source: Kawar et al. 2022, Denoising diffusion restoration models, Sec. 5; the defaults are `blur-gauss` of I2SB.

    Args:
        std: of the Gaussian, pixels.
        radius: pixels to each side that the kernel covers.
    """

    std: Positive = 10.0
    radius: Count = 2

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Filter rows and columns."""
        from scipy.ndimage import gaussian_filter1d

        found = x0.numpy()
        for axis in (-2, -1):
            found = gaussian_filter1d(found, self.std, axis=axis, mode="reflect", radius=self.radius)
        return torch.from_numpy(found), {}


@DEGRADATIONS.register("uniform_blur")
@dataclass(frozen=True, kw_only=True)
class UniformBlur(Degradation):
    """The mean of a square around each pixel; the image is mirrored at its border.

    Source: Kawar et al. 2022, Denoising diffusion restoration models, Sec. 5; the default is `blur-uni` of I2SB.

    Args:
        radius: pixels to each side.
    """

    radius: Count = 4

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Filter rows and columns."""
        from scipy.ndimage import uniform_filter1d

        found = x0.numpy()
        for axis in (-2, -1):
            found = uniform_filter1d(found, 2 * self.radius + 1, axis=axis, mode="reflect")
        return torch.from_numpy(found), {}


@DEGRADATIONS.register("jpeg")
@dataclass(frozen=True, kw_only=True)
class JPEG(Degradation):
    """What a JPEG file of low quality keeps, colours at half the resolution.

    Source: Saharia et al. 2022, Palette, Sec. 4; `jpeg-5` and `jpeg-10` of I2SB.

    Args:
        quality: by the scale of the Independent JPEG Group, 1 to 100.
    """

    quality: Quality = 10

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """None; images must be grey or of three colours.

        Raises:
            ArgumentError: for other channels.
        """
        if spec.channels not in (1, 3):
            raise ArgumentError("degradation", f"JPEG keeps 1 or 3 channels, the images have {spec.channels}")
        return {}

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Round to bytes, write and read each image by Pillow."""
        pixels = ((x0.double() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        read = np.stack([self._kept(image) for image in pixels])
        return (torch.from_numpy(read).permute(0, 3, 1, 2).contiguous().to(x0.dtype) / 127.5 - 1.0), {}

    def _kept(self, image: np.ndarray) -> np.ndarray:
        """One image (H, W, C) of bytes, after it was a file."""
        file = io.BytesIO()
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "JPEG", quality=self.quality)
        with Image.open(file) as found:
            return np.asarray(found).reshape(image.shape)


@DEGRADATIONS.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise(Degradation):
    """Additive Gaussian noise, the same for a sample whenever it is read.

    Args:
        std: in units of [-1, 1].
    """

    std: Positive = 0.1

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """`x0 + std ε`."""
        return x0 + self.std * draws.normal("noise", x0), {}


@DEGRADATIONS.register("chain")
@dataclass(frozen=True, kw_only=True)
class Chain(Degradation):
    """Several degradations, one after the other.

    Args:
        steps: in their order.

    Raises:
        ArgumentError: if there is none; where they are used, if two tell the same condition.
    """

    steps: tuple[Degradation, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ArgumentError("steps", "found none, expected at least one")

    def cond(self, spec: Spec) -> dict[str, Spec]:
        """Those of all steps.

        Raises:
            ArgumentError: if two tell the same condition.
        """
        told: dict[str, Spec] = {}
        for step in self.steps:
            more = step.cond(spec)
            if told.keys() & more.keys():
                raise ArgumentError("degradation", f"two steps tell the condition '{min(told.keys() & more.keys())}'")
            told |= more
        return told

    def identity(self) -> Any:
        """Those of the steps."""
        return {"name": "chain", "steps": [step.identity() for step in self.steps]}

    def apply(self, x0: Tensor, draws: Draws) -> Degraded:
        """Degrade what the step before has left; each has draws of its own."""
        cond: dict[str, Tensor] = {}
        for k, step in enumerate(self.steps):
            x0, told = step.apply(x0, draws.fork(str(k)))
            cond |= told
        return x0, cond
