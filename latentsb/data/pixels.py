"""From an image file to pixels: what is refused, how odd modes are converted, how sizes are made equal.

* Only the formats in `FORMATS` are opened, and only files whose header promises no more than the allowed pixels are
  decoded; both are decided before any pixel is.
* EXIF rotation is applied. Of several frames the first is taken.
* Palettes become colours. CMYK and YCbCr become RGB by Pillow's formula (colour profiles are not applied).
* Transparency is laid over white, unless four channels are asked for: then it is the fourth, and opaque where an
  image has none. Grey from colour is ITU-R 601 luma.
* 16 bits are kept, of grey and, in PNG and TIFF files, of colour. 32-bit integers beyond 16 bits and floating-point
  images are refused unless a range is given: none is known of them.
* Other numbers of channels come from TIFF files and arrays (`.npy`), which have just that many.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from latentsb.data.planes import NPY, TIFF, Planes, UnreadableError, deep_colours, is_deep, of_npy, of_tiff

__all__ = ["ENDINGS", "FORMATS", "Fit", "PixelRule", "UnreadableError"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))

Image.init()  # the formats above may be opened before Pillow has loaded all of them

Fit = Literal["crop", "pad", "stretch", "exact"]
"""How a file of another size becomes the size asked for: the largest centred part of the right proportions; the whole
on black (transparent, where there are four channels); stretched; or not at all."""


PICTURES = (1, 3, 4)
"""Channels that an image of a known format may become."""
LUMA = np.array([19595, 38470, 7471]) / 65536
"""Shares of red, green and blue in grey, as Pillow has them."""


@dataclass(frozen=True)
class PixelRule:
    """What every image of a data set becomes.

    Args:
        height: rows.
        width: columns.
        channels: 1 grey, 3 colour, 4 colour and opacity; others must be those of the file.
        fit: see `Fit`.
        max_pixels: headers that promise more are refused.
        low: value of a file of more than 8 bits, or of an array, that becomes -1; None as its type says.
        high: value that becomes 1.
    """

    height: int
    width: int
    channels: int
    fit: Fit
    max_pixels: int = 64_000_000
    low: float | None = None
    high: float | None = None

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
            with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
                return self._read(file)
        except UnreadableError:
            raise
        except UnidentifiedImageError as error:  # whose message shows an object in memory, or repeats the path
            raise UnreadableError("is no image of a known format") from error
        except Exception as error:  # hostile files raise nearly everything
            raise UnreadableError(f"{type(error).__name__}: {error}") from error

    def _read(self, file: BinaryIO) -> np.ndarray:
        head = file.read(len(NPY))
        file.seek(0)
        if head == NPY:
            return self._placed(of_npy(file, self.channels, self.max_pixels))
        if head[:4] in TIFF and self.channels not in PICTURES:
            return self._placed(of_tiff(file, self.channels, self.max_pixels))
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > self.max_pixels:
                raise UnreadableError(f"{image.width}×{image.height} pixels, more than max_pixels = {self.max_pixels}")
            if self.channels not in PICTURES:
                raise UnreadableError(f"has the channels {image.mode}, expected {self.channels} of them")
            if is_deep(image):
                return self._placed(deep_colours(image, file, self.max_pixels))
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return self._placed(_grey(np.asarray(upright)[None]))
        if self.low is not None:
            raise UnreadableError("has 8 bits, whose range is known; leave `range` out")
        self._check_fit(*upright.size)
        return self._fitted(upright)

    def _check_fit(self, width: int, height: int) -> None:
        if self.fit == "exact" and (width, height) != (self.width, self.height):
            raise UnreadableError(
                f"{width}×{height} pixels (width × height), expected {self.width}×{self.height}; "
                "choose `fit: crop`, `pad` or `stretch`"
            )

    def _fitted(self, image: Image.Image) -> np.ndarray:
        """An image of 8 bits."""
        sized = self._sized(self._colours(image))
        if self.channels != 4 and sized.mode in ("LA", "RGBA"):
            sized = _on_white(sized)
        pixels = np.asarray(sized, dtype=np.float32)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(planes / np.float32(127.5) - np.float32(1.0))

    def _placed(self, found: Planes) -> np.ndarray:
        """Numbers of more than 8 bits, or of an array."""
        _, height, width = found.values.shape
        self._check_fit(width, height)
        low, high = self._limits(found)
        top = np.float32(high - low)
        if (low, high) == (-1.0, 1.0) and found.values.shape == (self.channels, self.height, self.width):
            return np.ascontiguousarray(found.values, dtype=np.float32)  # as they are, not rounded
        planes = found.values.astype(np.float32) - np.float32(low)  # black, with which is padded, is zero
        if found.alpha:
            planes = self._blended(planes, top)
        else:
            planes = self._channels(self._planes_sized(planes, top), top, (width, height))
        return np.ascontiguousarray(planes / (top / np.float32(2)) - np.float32(1.0))

    def _limits(self, found: Planes) -> tuple[float, float]:
        """Values that become -1 and 1; refuses what is not finite or lies beyond."""
        values = found.values
        if not np.isfinite(values).all():
            raise UnreadableError(f"holds {int((~np.isfinite(values)).sum())} numbers that are not finite")
        if self.low is not None and self.high is not None:
            if found.alpha:
                raise UnreadableError("has transparency, which does not go together with `range`")
            limits = (self.low, self.high)
        elif found.limits is None:
            wide = "32-bit integers beyond 16 bits have" if values.dtype.kind in "iu" else "these values have"
            raise UnreadableError(f"{wide} no known range; say `range: [LOW, HIGH]`, the values that become -1 and 1")
        else:
            limits = found.limits
        least, most = float(values.min()), float(values.max())
        if least < limits[0] or most > limits[1]:
            raise UnreadableError(
                f"holds {least:g} to {most:g}, expected {limits[0]:g} to {limits[1]:g}; say `range: [LOW, HIGH]`, the "
                "values that become -1 and 1"
            )
        return limits

    def _planes_sized(self, planes: np.ndarray, top: np.float32) -> np.ndarray:
        """Each channel in the size asked for; the cubic kernel overshoots at edges, and is clipped."""
        if planes.shape[1:] == (self.height, self.width):
            return planes
        sized = [np.asarray(self._sized(Image.fromarray(np.ascontiguousarray(plane)))) for plane in planes]
        return np.stack(sized).clip(np.float32(0.0), top)

    def _channels(self, planes: np.ndarray, top: np.float32, size: tuple[int, int]) -> np.ndarray:
        """The channels asked for, of what was an opaque image of this size."""
        if self.channels not in PICTURES or len(planes) == self.channels:
            return planes
        if self.channels == 1:
            return np.tensordot(LUMA.astype(np.float32), planes, 1)[None]
        if len(planes) == 1:
            planes = np.broadcast_to(planes, (3, *planes.shape[1:]))
        return planes if self.channels == 3 else np.concatenate([planes, self._opaque(size, top)])

    def _blended(self, planes: np.ndarray, top: np.float32) -> np.ndarray:
        """The channels asked for, of an image whose last channel is opacity; colours are weighted by it."""
        size = planes.shape[2], planes.shape[1]
        colours, alpha = planes[:-1], planes[-1:]
        if self.channels == 4 and size == (self.width, self.height):
            return np.concatenate([np.broadcast_to(colours, (3, *colours.shape[1:])), alpha])
        weighted, alpha = self._planes_sized(colours * (alpha / top), top), self._planes_sized(alpha, top)
        if self.channels == 4:
            colours = np.divide(weighted * top, alpha, out=np.zeros_like(weighted), where=alpha > 0).clip(0.0, top)
            return np.concatenate([np.broadcast_to(colours, (3, *colours.shape[1:])), alpha])
        opaque = (weighted + self._opaque(size, top) - alpha).clip(0.0, top)  # white, but for what padding has added
        return opaque if len(opaque) == self.channels else self._channels(opaque, top, size)

    def _colours(self, image: Image.Image) -> Image.Image:
        """An image of 8 bits whose channels are those asked for, transparency still beside them."""
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
        inner, corner = self._inside(image.size)
        canvas = Image.new(image.mode, size)
        canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), corner)
        if "A" in image.mode and self.channels != 4:
            canvas = _opaque_border(canvas, (*corner, corner[0] + inner[0], corner[1] + inner[1]))
        return canvas

    def _inside(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and upper left corner of the whole image inside the frame."""
        share = min(self.width / size[0], self.height / size[1])
        inner = (
            min(self.width, max(1, round(size[0] * share))),
            min(self.height, max(1, round(size[1] * share))),
        )
        return inner, ((self.width - inner[0]) // 2, (self.height - inner[1]) // 2)

    def _opaque(self, size: tuple[int, int], top: np.float32) -> np.ndarray:
        """The opacity of an image of this size without transparency: zero on what padding has added."""
        plane = np.full((1, self.height, self.width), top, dtype=np.float32)
        if self.fit == "pad" and size != (self.width, self.height):
            (wide, high), (left, upper) = self._inside(size)
            plane[:] = 0.0
            plane[:, upper : upper + high, left : left + wide] = top
        return plane


def _grey(values: np.ndarray) -> Planes:
    """One channel of 16 bits, 32 bits that hold no more, or floating-point numbers."""
    if values.dtype.kind == "i" and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)
    return Planes(values, None) if values.dtype.kind == "f" else Planes.of(values)


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
