"""Images that are unusual but legal, and folders in which more lies than images."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _broken import Case, everything
from _broken_images import HIGH, WIDE, chunk, encoded, golden, one, pixels, plainly
from PIL import Image, ImageCms

from latentsb.data.folder import Folder
from latentsb.data.source import Source

NEAR = 1.01 / 127.5
"""Rounding to bytes along the way."""
LOSSY = 6 / 127.5
"""A flat colour through JPEG."""
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
"""What a picture with each EXIF orientation must be turned by to stand upright."""


def modes() -> Iterator[Case]:
    """Modes and depths."""
    group, rgb, grey = "unusual modes and depths", pixels(), pixels(1)[..., 0]
    alpha = np.where(pixels(4)[..., 3:] > 99, 255, 0).astype(np.uint8)
    rgba = np.concatenate([rgb, alpha], 2)
    white = golden(np.where(alpha > 0, rgb, 255))
    yield one(group, "grey PNG as colour", encoded(grey, "PNG"), golden=golden(np.stack([grey] * 3, 2)))
    luma = golden(np.rint(rgb.astype(float) @ [0.299, 0.587, 0.114]))
    yield one(group, "colour PNG as grey", encoded(rgb, "PNG"), channels=1, golden=luma, tolerance=NEAR)
    bits = np.where(grey > 127, 255, 0)
    yield one(group, "one bit", encoded(Image.fromarray(grey > 127), "PNG"), channels=1, golden=golden(bits))
    palette = Image.fromarray(rgb).quantize(17)
    shown = golden(np.asarray(palette.convert("RGB")))
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        yield one(group, f"palette {form}", encoded(palette, form), golden=shown)
    clear = np.asarray(palette) == 3
    behind = np.where(clear[..., None], 255, np.asarray(palette.convert("RGB")))
    for form in ("PNG", "GIF"):
        data = encoded(palette, form, transparency=3)
        yield one(group, f"palette {form} with a transparent colour", data, golden=golden(behind))
    for form, keys in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        yield one(group, f"{form} with opacity, over white", encoded(rgba, form, **keys), golden=white)
        kept = golden(rgba)
        yield one(group, f"{form} with opacity, kept", encoded(rgba, form, **keys), channels=4, golden=kept)
    half = np.full((HIGH, WIDE, 4), (200, 100, 0, 128), np.uint8)
    over = np.rint(np.array([200, 100, 0]) * 128 / 255 + 255 * 127 / 255) * np.ones((HIGH, WIDE, 1))
    yield one(group, "half of an opacity", encoded(half, "PNG"), golden=golden(over), tolerance=NEAR)
    greyed = np.stack([grey, alpha[..., 0]], 2)
    over = np.where(alpha > 0, grey[..., None], 255)
    image = Image.frombytes("LA", (WIDE, HIGH), greyed.tobytes())
    yield one(group, "grey with opacity", encoded(image, "PNG"), channels=1, golden=golden(over))
    cmyk = pixels(4)
    mixed = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    image = Image.frombytes("CMYK", (WIDE, HIGH), cmyk.tobytes())
    yield one(group, "CMYK TIFF", encoded(image, "TIFF"), golden=golden(mixed), tolerance=NEAR)
    flat = Image.new("CMYK", (WIDE, HIGH), (30, 60, 90, 20))
    mixed = (255 - np.array([30, 60, 90])) * (255 - 20) / 255 * np.ones((HIGH, WIDE, 1))
    yield one(group, "CMYK JPEG", encoded(flat, "JPEG", quality=95), golden=golden(mixed), tolerance=LOSSY)
    yield from deep()


def deep() -> Iterator[Case]:
    """More than eight bits."""
    group = "unusual modes and depths"
    wide = (pixels(1)[..., 0].astype(np.uint16) * 251 + 7).astype(np.uint16)
    kept = (wide.astype(np.float64) / 32767.5 - 1)[None, None]
    for form in ("PNG", "TIFF"):
        yield one(group, f"16 bits, grey {form}", encoded(Image.fromarray(wide), form), channels=1, golden=kept)
    rgb = np.stack([wide, wide[::-1], wide[:, ::-1]], 2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    colour = (rgb.astype(np.float64) / 32767.5 - 1).transpose(2, 0, 1)[None]
    yield one(group, "16 bits, colour PNG", data, golden=colour, tolerance=2 / 255)
    data = b"P5 %d %d 65535\n" % (WIDE, HIGH) + wide.astype(">u2").tobytes()
    yield one(group, "16 bits, grey PGM", data, "a.pgm", channels=1, golden=kept)
    yield one(
        group, "32 bits within 16", encoded(Image.fromarray(wide.astype(np.int32)), "TIFF"), channels=1, golden=kept
    )
    beyond = Image.fromarray(wide.astype(np.int32) * 9)
    yield one(group, "32 bits beyond 16", encoded(beyond, "TIFF"), channels=1, why=r"a\.png: .*range")
    for value in (0.5, np.nan, np.inf):
        image = Image.fromarray(np.full((HIGH, WIDE), value, np.float32))
        yield one(
            group, f"floating point, {value}", encoded(image, "TIFF"), channels=1, why=r"a\.png: .*(range|not finite)"
        )


def turned() -> Iterator[Case]:
    """EXIF orientations, which say how a picture is to be turned."""
    group = "turned, animated, very long"
    for k, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x112] = k
        upright = turn(pixels())
        size = upright.shape[:2]
        for form, keys in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})):
            data = encoded(pixels(), form, exif=exif, **keys)
            plain = plainly(encoded(pixels(), form, **keys))[0].transpose(1, 2, 0)
            expected = turn(plain).transpose(2, 0, 1)[None]
            yield one(group, f"{form} with orientation {k}", data, size=size, golden=expected)


def shapes() -> Iterator[Case]:
    """Several frames, and odd sizes."""
    group, rgb = "turned, animated, very long", pixels()
    frames = [Image.fromarray(rgb), Image.fromarray(rgb[::-1]), Image.fromarray(rgb[:, ::-1])]
    for form, keys in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **keys)
        yield one(group, f"{form} of three frames", data, golden=golden(rgb))
    greys = [frame.convert("L") for frame in frames]
    data = encoded(greys[0], "GIF", save_all=True, append_images=greys[1:])
    yield one(group, "GIF of three frames", data, golden=golden(np.asarray(greys[0].convert("RGB"))))
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield one(group, "JPEG of a phone with two pictures (MPO)", data, "a.jpg", golden=plainly(encoded(rgb, "JPEG")))
    flat = np.array([10, 130, 250], np.uint8)
    for high, wide in ((1, 1), (1, 65_000), (65_000, 1), (1, 2), (3, 20_000)):
        for form in ("PNG", "JPEG"):
            data = encoded(np.tile(flat, (high, wide, 1)), form, **({"quality": 95} if form == "JPEG" else {}))
            expected, near = golden(np.tile(flat, (8, 8, 1))), LOSSY if form == "JPEG" else NEAR
            for fit in ("crop", "stretch"):
                name = f"{form} of {wide}×{high}, {fit}"
                yield one(group, name, data, size=8, fit=fit, golden=expected, tolerance=near)
    data = encoded(np.tile(flat, (1, 65_000, 1)), "PNG")
    expected = np.full((1, 3, 8, 8), -1.0)
    expected[..., 3, :] = golden(flat[None, None])[..., 0]
    yield one(group, "PNG of 65000×1, pad", data, size=8, fit="pad", golden=expected, tolerance=NEAR)
    yield one(
        group, "another size than asked for", encoded(rgb, "PNG"), size=8, why=r"a\.png: 24×20 pixels.*expected 8×8"
    )
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield one(group, "with a colour profile", encoded(rgb, "PNG", icc_profile=profile), golden=golden(rgb))
    odd = encoded(rgb, "PNG", icc_profile=b"no profile" * 50)
    yield one(group, "with a broken colour profile", odd, golden=golden(rgb))
    whole = encoded(rgb, "JPEG")
    yield one(group, "JPEG with something behind it", whole + b"more" * 999, golden=plainly(whole))
    header = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, WIDE, -HIGH, 1, 24, 0, 0, 0, 0, 0, 0)
    yield one(group, "BMP from top to bottom", header + rgb[..., ::-1].tobytes(), golden=golden(rgb))
    text = " ".join(map(str, rgb.ravel().tolist())).encode()
    yield one(group, "PPM in words", b"P3 # so\n%d %d\n255\n" % (WIDE, HIGH) + text, golden=golden(rgb))


def folder(group: str, name: str, write: Callable[[], Any], *, size: Any = (HIGH, WIDE), **keys: Any) -> Case:
    """A folder `in`; what is no key of the case is one of the source."""
    about = {key: keys.pop(key) for key in ("golden", "why", "use") if key in keys}
    return Case(group, name, write, lambda: Folder(path=Path("in"), size=size, fit="exact", **keys), **about)


def good(name: str = "good.png") -> None:
    """Write an image of which nothing is to be said."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(encoded(pixels(), "PNG"))


def beside(*steps: Callable[[], Any]) -> Callable[[], None]:
    """Write a good image, and something beside it."""

    def write() -> None:
        good()
        for step in steps:
            step()

    return write


def listen(name: str) -> None:
    """Leave the socket of a server."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)


def as_nobody(source: Source) -> np.ndarray:
    """Read as a user who owns nothing, where this is run by one who may read everything."""
    if os.geteuid():
        return everything(source)
    os.seteuid(65_534)
    try:
        return everything(source)
    finally:
        os.seteuid(0)


def shut(name: str) -> None:
    """Take all rights from a file or folder, in folders that all may enter."""
    for place in ("..", "."):
        Path(place).chmod(0o755)
    Path(name).chmod(0)


def folders() -> Iterator[Case]:
    """Names, links, kinds of files and rights."""
    group, single = "odd folders", golden(pixels())
    two = np.concatenate([single, single])
    for name in (
        "a b.png",
        "ü.png",
        "a\nb.png",
        "\x1b[31m.png",
        os.fsdecode(b"\xff\xfe.png"),
        "x" * 240 + ".png",
        "a.b.PNG",
    ):
        yield folder(group, f"a name like {name[:12]!a}", lambda name=name: good(name), golden=single)
        told = r"1 of 1 images are unreadable.*no image"
        yield folder(group, f"no image, named {name[:12]!a}", lambda name=name: Path(name).write_text("no"), why=told)
    yield folder(group, "names that differ in case", beside(lambda: good("GOOD.png")), golden=two)
    yield folder(group, "names that differ in the ending", beside(lambda: good("good.bmp")), golden=two)
    yield folder(
        group, "hidden files and folders", beside(lambda: good(".a.png"), lambda: good(".b/a.png")), golden=single
    )
    yield folder(group, "a folder called a.png", beside(lambda: Path("a.png").mkdir()), golden=single)
    yield folder(group, "a link to an image", beside(lambda: Path("a.png").symlink_to("good.png")), golden=two)
    yield folder(
        group,
        "a link to nothing",
        beside(lambda: Path("a.png").symlink_to("gone.png")),
        why=r"a\.png: .*(No such|link)",
    )
    yield folder(
        group, "a link to itself", beside(lambda: Path("a.png").symlink_to("a.png")), why=r"a\.png: .*(evels|link)"
    )
    yield folder(group, "a link to its own folder", beside(lambda: Path("loop").symlink_to(".")), golden=single)
    tangle = [
        lambda k=k: (Path(f"d{k}").mkdir(), Path(f"d{k}/up").symlink_to(".."), good(f"d{k}/a.png")) for k in range(9)
    ]
    yield folder(group, "links back and forth", beside(*tangle), golden=np.concatenate([single] * 10))
    for target in ("/dev/zero", "/dev/random", "/dev/null"):
        why = r"a\.png: .*no (regular file|image)"
        yield folder(group, f"a link to {target}", beside(lambda t=target: Path("a.png").symlink_to(t)), why=why)
    yield folder(group, "a pipe", beside(lambda: os.mkfifo("a.png")), why=r"a\.png: .*no regular file")
    yield folder(group, "a socket", beside(lambda: listen("a.png")), why=r"a\.png: .*no regular file")
    why = r"a\.png: .*(denied|rights)"
    yield folder(
        group, "a file without rights", beside(lambda: good("a.png"), lambda: shut("a.png")), use=as_nobody, why=why
    )
    why = r"in/d: .*(denied|rights)"
    yield folder(
        group, "a folder without rights", beside(lambda: good("d/a.png"), lambda: shut("d")), use=as_nobody, why=why
    )
    yield folder(group, "nothing", lambda: None, why="in: there is no image")
    yield folder(group, "hidden files alone", lambda: good(".a.png"), why="in: there is no image")
    yield folder(group, "other files alone", lambda: Path("a.txt").write_text("text"), why="in: there is no image")
    yield folder(group, "no folder", lambda: os.rmdir("../in"), why="in: there is no such folder")
    yield folder(
        group,
        "a file for a folder",
        lambda: (os.rmdir("../in"), Path("../in").write_text("")),
        why="in: there is no such folder",
    )
    labels = {"labels": True}
    yield folder(group, "an empty class", beside(lambda: Path("c").mkdir()), **labels, why=r"in/(good|c).*class")
    classes = [lambda: good("a/1.png"), lambda: Path("b").mkdir()]
    yield folder(
        group,
        "a class without images",
        lambda: [step() for step in classes],
        **labels,
        why=r"in/b: this class has no image",
    )
    more = [lambda: good("a/1.png"), lambda: good("b/1.png")]
    yield folder(
        group,
        "more classes than promised",
        lambda: [step() for step in more],
        **labels,
        classes=1,
        why="in: has 2 classes",
    )
