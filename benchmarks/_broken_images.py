"""Image files that are cut, are something else, promise too much, or are unusual but legal."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _broken import CANARY, Case
from PIL import Image

from latentsb.data.folder import Folder

HIGH, WIDE = 20, 24
CUTS = {"JPEG": 50, "JPEG progressive": 50, "PNG": 50, "WebP": 50, "WebP lossless": 25, "GIF": 25, "BMP": 25,
        "TIFF": 25, "TIFF deflate": 25, "TIFF JPEG": 25, "PPM": 25}  # fmt: skip


@cache
def pixels(channels: int = 3, high: int = HIGH, wide: int = WIDE) -> np.ndarray:
    """Bytes (H, W, C) with slopes and edges, no two rows or columns equal."""
    drawn = np.random.default_rng(channels).integers(0, 9, (high, wide, channels))
    found = (np.cumsum(np.cumsum(drawn, 0), 1) % 256).astype(np.uint8)
    found.setflags(write=False)
    return found


def encoded(image: Image.Image | np.ndarray, form: str, **keys: Any) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **keys)
    return stream.getvalue()


def golden(planes: np.ndarray) -> np.ndarray:
    """Bytes (H, W, C) or (H, W) as the one sample that they become."""
    planes = planes[..., None] if planes.ndim == 2 else planes
    return (planes.astype(np.float64) / 127.5 - 1.0).transpose(2, 0, 1)[None]


def plainly(data: bytes) -> np.ndarray:
    """What Pillow alone makes of a file."""
    return golden(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def one(group: str, name: str, data: bytes, file: str = "a.png", **keys: Any) -> Case:
    """A folder that holds one file."""
    about = {key: keys.pop(key) for key in ("golden", "why", "tolerance") if key in keys}
    if about.get("golden") is None and "why" not in about:
        about["why"] = f"1 of 1 images are unreadable.*{file}: .{{6,}}"
    source = {"size": (HIGH, WIDE), "fit": "exact", **keys}
    return Case(group, name, lambda: Path(file).write_bytes(data), lambda: Folder(path=Path("in"), **source), **about)


def wholes() -> dict[str, bytes]:
    """One whole file of each kind."""
    rgb, grey = pixels(), pixels(1)[..., 0]
    return {
        "JPEG": encoded(rgb, "JPEG"),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True),
        "PNG": encoded(rgb, "PNG"),
        "WebP": encoded(rgb, "WEBP"),
        "WebP lossless": encoded(rgb, "WEBP", lossless=True),
        "GIF": encoded(grey, "GIF"),
        "BMP": encoded(rgb, "BMP"),
        "TIFF": encoded(rgb, "TIFF"),
        "TIFF deflate": encoded(rgb, "TIFF", compression="tiff_deflate"),
        "TIFF JPEG": encoded(rgb, "TIFF", compression="jpeg"),
        "PPM": encoded(rgb, "PPM"),
    }


def cut() -> Iterator[Case]:
    """Files cut at evenly spread bytes, the first and the last among them: refused, or every pixel is there."""
    for kind, data in wholes().items():
        whole = plainly(data)
        yield one("cut image files", f"{kind}, whole", data, golden=whole)
        for at in np.unique(np.linspace(0, len(data) - 1, CUTS[kind]).astype(int)).tolist():
            why = r"1 of 1 images are unreadable.*a\.png: .{6,}"
            yield one("cut image files", f"{kind}, {at} of {len(data)} bytes", data[:at], golden=whole, why=why)


def something_else() -> Iterator[Case]:
    """Contents that are no image, or an image of another kind than the name says."""
    group = "something else than the name says"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.png", encoded(pixels(), "PNG"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 20\n(" + CANARY.encode() + b") (w) file closefile\n"
    others = {
        "nothing": b"",
        "one zero": b"\0",
        "zeros": bytes(5000),
        "text": b"This is no picture.\n" * 40,
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>open("canary")</script></svg>',
        "JSON": b'{"error": "quota"}',
        "zip": zipped.getvalue(),
        "gzip": gzip.compress(encoded(pixels(), "PNG")),
        "pickle": pickle.dumps(Touch()),
        "Python": f"open({CANARY!r}, 'w')\n".encode(),
        "shell script": f"#!/bin/sh\ntouch {CANARY}\n".encode(),
        "ELF": b"\x7fELF\x02\x01\x01" + bytes(200),
        "PostScript": postscript,
        "PDF": encoded(pixels(), "PDF"),
        "noise": np.random.default_rng(0).bytes(4000),
        "signature of PNG alone": b"\x89PNG\r\n\x1a\n",
        "signature of JPEG alone": b"\xff\xd8\xff\xe0",
        "signature of WebP alone": b"RIFF\x10\0\0\0WEBPVP8 ",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    }
    for name, data in others.items():
        yield one(group, f"{name} as .jpg", data, "a.jpg")
    for form in ("ICO", "TGA", "PCX", "JPEG2000", "DDS", "SGI", "IM", "AVIF", "EPS"):
        if form in Image.SAVE or form == "AVIF":
            why = r"a\.png: is no image of a known format"
            yield one(group, f"{form} as .png", encoded(pixels(), form), why=why)
    for form, file in (("PNG", "a.jpg"), ("JPEG", "a.PNG"), ("WEBP", "a.bmp"), ("BMP", "a.gif"), ("TIFF", "a.jpeg")):
        data = encoded(pixels(), form)
        yield one(group, f"{form} as {file[1:]}", data, file, golden=plainly(data))


class Touch:
    """What leaves the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (CANARY, "w")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(high: int, wide: int, body: bytes, *more: bytes) -> bytes:
    """A grey PNG file whose header promises a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(tags: dict[int, int], body: bytes = b"") -> bytes:
    """A TIFF file of one directory whose values are 32-bit integers; what stands behind it begins at `8 + …`."""
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4) + body


def bombs() -> Iterator[Case]:
    """Small files that promise, or become, very much: refused by their header, without being decoded."""
    group = "bombs"
    told = r"a\.png: .*(more than max_pixels|DecompressionBombError)"
    for high, wide in ((10_000, 10_000), (14_000, 14_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)):
        yield one(group, f"PNG that promises {wide}×{high}", png(high, wide, b"x"), why=told)
    body = zlib.compress(bytes(10_000 * 10_001), 9)
    yield one(group, f"PNG of 100 million pixels in {len(body) >> 10} KiB", png(10_000, 10_000, body), why=told)
    small = dict.fromkeys(("BMP", "GIF", "JPEG", "WEBP", "PPM"))
    small["BMP"] = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    small["GIF"] = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;"
    jpeg = bytearray(encoded(pixels(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    small["JPEG"] = bytes(jpeg)
    extended = struct.pack("<I", 0) + struct.pack("<I", 16_382)[:3] * 2
    small["WEBP"] = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + extended
    small["PPM"] = b"P6 90000 90000 255\n"
    for form, data in small.items():
        yield one(group, f"{form} that promises thousands of millions of pixels", data)
    yield one(group, "PPM of a number of 5,000 digits", b"P6 " + b"9" * 5000 + b" 1 255\n")
    yield one(group, "TIFF that promises 2^32 pixels", tiff({256: 65_536, 257: 65_536, 258: 8, 259: 1, 262: 1, 273: 8}))
    tile = {256: 24, 257: 20, 258: 8, 259: 1, 262: 1, 277: 1, 322: 2**31 - 16, 323: 2**31 - 16, 324: 8, 325: 2**31}
    yield one(group, "TIFF of one enormous tile", tiff(tile))
    yield one(group, "TIFF of an enormous strip", tiff({**STRIP, 278: 2**32 - 1, 279: 2**32 - 1}, bytes(480)))
    yield one(group, "TIFF whose directory repeats itself", tiff({**STRIP, 330: 8}, bytes(480))[:-484] + b"\x08\0\0\0")
    much = zlib.compress(bytes(200 << 20), 9)
    plain = zlib.compress(bytes((WIDE + 1) * HIGH))
    black = golden(np.zeros((HIGH, WIDE, 3)))
    for kind, name in ((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")):
        data = png(HIGH, WIDE, plain, chunk(kind, name + much))
        why = r"a\.png: .*(too large|MAX_TEXT|corrupt|broken).*"
        yield one(group, f"PNG with 200 MiB in its {kind.decode()}", data, golden=black, why=why)
    behind = zlib.compress(bytes((WIDE + 1) * HIGH + (300 << 20)), 9)
    yield one(
        group, "PNG with 300 MiB behind its last row", png(HIGH, WIDE, behind), golden=black, why=r"a\.png: .{6,}"
    )
    exif = (
        b"Exif\0\0" + b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + struct.pack("<HHII", 0x112, 4, 2**31, 8) * 5000
    )
    data = encoded(pixels(), "JPEG", exif=exif[:65_000])
    yield one(group, "JPEG whose EXIF promises 2^31 rotations", data, golden=plainly(data), why=r"a\.png: .{6,}")
    frames = [Image.fromarray(np.full((HIGH, WIDE), k % 256, np.uint8)) for k in range(2000)]
    data = encoded(frames[7], "GIF", save_all=True, append_images=frames)
    yield one(group, "GIF of 2,001 frames", data, golden=golden(np.full((HIGH, WIDE, 3), 7)))


STRIP = {256: WIDE, 257: HIGH, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 12 * 11, 277: 1}
