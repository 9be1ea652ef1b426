"""From an image file to pixels: what is refused, how odd modes are converted, how sizes are made equal.

* Only the formats in `FORMATS` are opened, and only files whose header promises no more than the allowed pixels are
  decoded; both are decided before any pixel is.
* EXIF rotation is applied. Of several frames the first is taken.
* Palettes become colours. CMYK and YCbCr become RGB by Pillow's formula (colour profiles are not applied).
* Transparency is laid over white, unless four channels are asked for: then it is the fourth, and opaque where an
  image has none. Grey from colour is ITU-R 601 luma.
* Single-channel images of 16 bits keep all of them. 32-bit integers beyond 16 bits and floating-point images are
  refused: they have no range that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["ENDINGS", "FORMATS", "Fit", "PixelRule", "UnreadableError"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))

Image.init()  # the formats above may be opened before Pillow has loaded all of them

Fit = Literal["crop", "pad", "stretch", "exact"]
"""How a file of another size becomes the size asked for: the largest centred part of the right proportions; the whole
on black (transparent, where there are four channels); stretched; or not at all."""


class UnreadableError(Exception):
    """An image that cannot be used, and why."""


@dataclass(frozen=True)
class PixelRule:
    """What every image of a data set becomes.

    Args:
        height: rows.
        width: columns.
        channels: 1, 3 or 4.
        fit: see `Fit`.
        max_pixels: headers that promise more are refused.
    """

    height: int
    width: int
    channels: int
    fit: Fit
    max_pixels: int = 64_000_000

    def read(self, path: Path | BinaryIO) -> np.ndarray:
        """Decode one file.

        Args:
            path: of the file, or the file itself, open for reading bytes.

        Returns:
            float32 in [-1, 1], shape (C, H, W).

        Raises:
            UnreadableError: with the reason, whatever it is that Pillow stumbles over.
        """
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > self.max_pixels:
                    raise UnreadableError(
                        f"{image.width}×{image.height} pixels, more than max_pixels = {self.max_pixels}"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image)
            if self.fit == "exact" and upright.size != (self.width, self.height):
                raise UnreadableError(
                    f"{upright.width}×{upright.height} pixels (width × height), expected {self.width}×{self.height}; "
                    "choose `fit: crop`, `pad` or `stretch`"
                )
            return self._fitted(upright)
        except UnreadableError:
            raise
        except UnidentifiedImageError as error:  # whose message shows an object in memory, or repeats the path
            raise UnreadableError("is no image of a known format") from error
        except Exception as error:  # hostile files raise nearly everything
            raise UnreadableError(f"{type(error).__name__}: {error}") from error

    def _fitted(self, image: Image.Image) -> np.ndarray:
        deep = image.mode.startswith("I")
        sized = self._sized(_deep(image) if deep else self._colours(image))
        top = 65535.0 if deep else 255.0
        if not deep and self.channels != 4 and sized.mode in ("LA", "RGBA"):
            sized = _on_white(sized)
        pixels = np.asarray(sized, dtype=np.float32)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if deep:  # the cubic kernel overshoots at edges; bytes are clipped by Pillow
            planes = np.broadcast_to(planes.clip(0.0, top), (min(self.channels, 3), self.height, self.width))
            if self.channels == 4:
                planes = np.concatenate([planes, self._opaque(image, top)])
        return np.ascontiguousarray(planes / np.float32(top / 2) - np.float32(1.0))

    def _colours(self, image: Image.Image) -> Image.Image:
        """An image of 8 bits whose channels are those asked for, transparency still beside them."""
        if image.mode == "F":
            raise UnreadableError("floating-point pixels have no known range")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return image.convert("LA") if self.channels == 1 else image
        return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[self.channels])

    def _sized(self, image: Image.Image) -> Image.Image:
        """The size asked for, by an antialiased cubic kernel; untouched where it fits already."""
        size = (self.width, self.height)
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, Image.Resampling.BICUBIC)
        if self.fit == "crop":
            share = min(image.width / self.width, image.height / self.height)
            wide, high = self.width * share, self.height * share
            left, upper = (image.width - wide) / 2, (image.height - high) / 2
            return image.resize(size, Image.Resampling.BICUBIC, box=(left, upper, left + wide, upper + high))
        inner, corner = self._inside(image)
        canvas = Image.new(image.mode, size)
        canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
        if "A" in image.mode and self.channels != 4:
            canvas = _opaque_border(canvas, (*corner, corner[0] + inner[0], corner[1] + inner[1]))
        return canvas

    def _inside(self, image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and upper left corner of the whole image inside the frame."""
        share = min(self.width / image.width, self.height / image.height)
        inner = (
            min(self.width, max(1, round(image.width * share))),
            min(self.height, max(1, round(image.height * share))),
        )
        return inner, ((self.width - inner[0]) // 2, (self.height - inner[1]) // 2)

    def _opaque(self, image: Image.Image, top: float) -> np.ndarray:
        """The fourth channel of an image without transparency: zero on what padding has added."""
        plane = np.full((1, self.height, self.width), top, dtype=np.float32)
        if self.fit == "pad" and image.size != (self.width, self.height):
            (wide, high), (left, upper) = self._inside(image)
            plane[:] = 0.0
            plane[:, upper : upper + high, left : left + wide] = top
        return plane


def _deep(image: Image.Image) -> Image.Image:
    """16 bits as floating point, which Pillow can resize."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableError("32-bit integers beyond 16 bits have no known range")
    return Image.fromarray(values.astype(np.float32))


def _on_white(image: Image.Image) -> Image.Image:
    """Transparency laid over white."""
    mode = image.mode[:-1]
    white = Image.new(mode, image.size, "white")
    white.paste(image.convert(mode), mask=image.getchannel("A"))
    return white


def _opaque_border(canvas: Image.Image, inner: tuple[int, int, int, int]) -> Image.Image:
    """Make what padding has added opaque, so that it stays black when transparency is laid over white."""
    alpha = Image.new("L", canvas.size, 255)
    alpha.paste(canvas.getchannel("A").crop(inner), inner[:2])
    canvas.putalpha(alpha)
    return canvas
