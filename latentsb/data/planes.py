"""Pixels that Pillow cannot hold: arrays of NumPy, TIFF files of many channels, colours of 16 bits.

Arrays are `(H, W)`, `(H, W, C)` or `(C, H, W)`. TIFF files are read by tifffile (the first series; pages of one series
are channels), 16-bit colours in PNG files by torchvision. Sizes that a header promises are compared before anything of
the content is read, and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

__all__ = ["NPY", "TIFF", "Planes", "UnreadableError", "deep_colours", "is_deep", "of_npy", "of_tiff"]

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 0x0112
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, :, ::-1],
    3: lambda a: a[:, ::-1, ::-1],
    4: lambda a: a[:, ::-1],
    5: lambda a: a.swapaxes(1, 2),
    6: lambda a: np.rot90(a, -1, (1, 2)),
    7: lambda a: a[:, ::-1, ::-1].swapaxes(1, 2),
    8: lambda a: np.rot90(a, 1, (1, 2)),
}
"""What each EXIF orientation but the first asks for, of arrays (C, H, W)."""
RANGES = {"u1": (0.0, 255.0), "u2": (0.0, 65535.0), "f2": (-1.0, 1.0), "f4": (-1.0, 1.0), "f8": (-1.0, 1.0)}
"""Values that become -1 and 1, by type, where no other range is asked for."""


class UnreadableError(Exception):
    """An image that cannot be used, and why."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Channels of an image as numbers.

    Args:
        values: shape (C, H, W).
        limits: values that become -1 and 1 by their type; None where the type says nothing of them.
        alpha: the last channel is opacity.
    """

    values: np.ndarray
    limits: tuple[float, float] | None
    alpha: bool = False

    @classmethod
    def of(cls, values: np.ndarray, *, alpha: bool = False) -> Planes:
        """Channels whose range follows from their type."""
        return cls(values, RANGES.get(values.dtype.str[1:]), alpha)


def of_npy(file: BinaryIO, channels: int, most: int) -> Planes:
    """One image from a `.npy` file.

    Args:
        file: at its beginning.
        channels: expected, by which the axis of channels is found.
        most: pixels that the header may promise.

    Raises:
        UnreadableError: if it holds no numbers or another form.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.kind not in "iuf":
        raise UnreadableError(f"holds values of type {dtype}, expected numbers")
    _check_size(shape, channels, most)
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    return Planes.of(_channels_first(values, channels))


def _channels_first(values: np.ndarray, channels: int) -> np.ndarray:
    if values.ndim == 2:
        values = values[None]
    elif values.ndim != 3:
        raise UnreadableError(f"has shape {values.shape}, expected (H, W), (H, W, C) or (C, H, W)")
    elif (values.shape[0] == channels) and (values.shape[2] == channels):
        raise UnreadableError(
            f"cannot tell where its {channels} channels stand in shape {values.shape}; data `arrays` have a `layout`"
        )
    elif values.shape[2] == channels:
        values = values.transpose(2, 0, 1)
    if len(values) != channels:
        raise UnreadableError(f"has shape {values.shape}, expected {channels} channels")
    return values


def _check_size(shape: tuple[int, ...], channels: int, most: int) -> None:
    numbers = int(np.prod(shape, dtype=np.float64))
    if numbers > most * channels:
        told = "×".join(map(str, shape))
        raise UnreadableError(f"{told} numbers, more than max_pixels = {most} in {channels} channels")
    if numbers == 0:
        raise UnreadableError(f"has shape {shape}, and no pixel")


def of_tiff(file: BinaryIO, channels: int, most: int) -> Planes:
    """Channels of a TIFF file, samples of a pixel or pages.

    Args:
        file: at its beginning.
        channels: expected.
        most: pixels that the header may promise.

    Raises:
        UnreadableError: if it has other channels, or tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableError("TIFF files of this form need tifffile: pip install 'latentsb[data]'") from error
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        axes, shape = series.axes, series.shape
        beside = [k for k, axis in enumerate(axes) if axis not in "YX"]
        if axes.count("Y") != 1 or axes.count("X") != 1 or len(beside) > 1:
            raise UnreadableError(f"has axes {axes} of shape {shape}, expected rows, columns and channels")
        found = shape[beside[0]] if beside else 1
        if found != channels:
            raise UnreadableError(f"has {found} channels, expected {channels}")
        _check_size(shape, channels, most)
        values = np.asarray(series.asarray())
        tag = series.keyframe.tags.get(ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
    values = np.moveaxis(values, beside[0], 0) if beside else values[None]
    if axes.index("X") < axes.index("Y"):
        values = values.swapaxes(1, 2)
    if values.dtype.kind not in "iuf":
        raise UnreadableError(f"holds values of type {values.dtype}, expected numbers")
    upright = _upright(values, orientation)
    return Planes(upright, None) if values.dtype.kind == "f" else Planes.of(upright)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has colours of 16 bits, of which Pillow would keep eight."""
    tiles: Any = getattr(image, "tile", None)
    if image.mode.startswith(("I", "F")) or not tiles:
        return False
    told = tiles[0][3]
    listed = told if isinstance(told, tuple) else (told,)
    if image.format == "PPM":
        return len(listed) > 1 and isinstance(listed[1], int) and listed[1] > 255
    return isinstance(listed[0], str) and ";16" in listed[0]


def deep_colours(image: Image.Image, file: BinaryIO, most: int) -> Planes:
    """Colours of 16 bits from a PNG or TIFF file.

    Args:
        image: the same file, opened by Pillow, whose pixels are not read.
        file: of the image.
        most: pixels that the header may promise.

    Raises:
        UnreadableError: if it is of another format, or what reads it is not installed.
    """
    orientation = int(image.getexif().get(ORIENTATION, 1))
    file.seek(0)
    if image.format == "TIFF":
        found = of_tiff(file, 4 if image.mode == "RGBA" else 3, most)  # which stands upright already
        return Planes.of(found.values, alpha=image.mode == "RGBA")
    if image.format != "PNG" or "transparency" in image.info:
        raise UnreadableError("colours of 16 bits are read from PNG (without a transparent colour) and TIFF files only")
    values = _deep_png(file.read())
    return Planes.of(_upright(values, orientation), alpha=len(values) in (2, 4))


def _deep_png(data: bytes) -> np.ndarray:
    """Values of a PNG file, of which Pillow would keep eight bits, shape (C, H, W)."""
    import torch

    try:
        from torchvision.io import decode_png
    except (ImportError, RuntimeError) as error:
        told = f"colours of 16 bits in PNG files need torchvision's decode_png ({error}); TIFF files do not"
        raise UnreadableError(told) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that another library may do it in time
        found: np.ndarray = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy()
    return found


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    return UPRIGHT[orientation](values) if orientation in UPRIGHT else values
