"""Golden pixels beyond what Pillow holds: 16-bit colours, arrays, many channels, given ranges; and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentsb.data.folder import Folder
from latentsb.data.pixels import Fit, PixelRule, UnreadableError
from latentsb.errors import ArgumentError, DataError

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def rule(height: int = 4, width: int = 6, channels: int = 3, fit: Fit = "exact", **keys: float) -> PixelRule:
    return PixelRule(height, width, channels, fit, 10**6, **keys)  # type: ignore[arg-type]


def levels(x: np.ndarray, low: float = 0.0, high: float = 65535.0) -> np.ndarray:
    """From [-1, 1] back to numbers, channels first."""
    return (x.astype(np.float64) + 1) * (high - low) / 2 + low


def png(values: np.ndarray) -> bytes:
    """A PNG file of 16 bits, shape (H, W, C)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep(form: str, values: np.ndarray) -> io.BytesIO:
    if form == "png":
        return io.BytesIO(png(values))
    file = io.BytesIO()
    extra = {"extrasamples": ["unassalpha"]} if values.shape[2] == 4 else {}
    tifffile.imwrite(file, values, photometric="rgb", **extra)
    file.seek(0)
    return file


def npy(values: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, values)
    file.seek(0)
    return file


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_colours_of_sixteen_bits_keep_all_of_them(form: str) -> None:
    colours = RNG.integers(65536, size=(4, 6, 3)).astype(np.uint16)
    x = rule().read(deep(form, colours))
    assert (x.dtype, x.shape) == (np.float32, (3, 4, 6))
    np.testing.assert_array_equal(np.rint(levels(x)).astype(int), colours.transpose(2, 0, 1))
    luma = colours @ (np.array([19595, 38470, 7471]) / 65536)
    np.testing.assert_allclose(levels(rule(channels=1).read(deep(form, colours)))[0], luma, atol=0.02)
    kept = levels(rule(channels=4).read(deep(form, colours)))
    np.testing.assert_array_equal(np.rint(kept).astype(int), [*colours.transpose(2, 0, 1), np.full((4, 6), 65535)])


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_transparency_of_sixteen_bits_is_laid_over_white_or_kept(form: str) -> None:
    pixels = np.array([[[10, 2000, 30000, 65535], [0, 0, 0, 13107], [9, 9, 9, 0]]], dtype=np.uint16)
    x = levels(rule(1, 3).read(deep(form, pixels)))
    # 13107/65535 = 1/5 of black over white is 4/5 of 65535.
    np.testing.assert_allclose(x[:, 0].T, [[10, 2000, 30000], [52428] * 3, [65535] * 3], atol=0.02)
    np.testing.assert_allclose(levels(rule(1, 3, 4).read(deep(form, pixels)))[:, 0].T, pixels[0], atol=0.02)
    padded = levels(rule(3, 3, 3, "pad").read(deep(form, pixels)))
    np.testing.assert_allclose(padded[:, 1].T, x[:, 0].T, atol=0.02)
    assert (padded[:, [0, 2]] == 0).all()  # black, not white


def test_hidden_colours_do_not_bleed_into_smaller_images() -> None:
    """Half is opaque grey, half is green that cannot be seen: over white only grey and white remain."""
    pixels = np.zeros((8, 8, 4), np.uint16)
    pixels[:, ::2] = [30000, 30000, 30000, 65535]
    pixels[:, 1::2] = [0, 65535, 0, 0]
    x = levels(rule(4, 2, 3, "stretch").read(deep("png", pixels)))
    np.testing.assert_allclose(x[0], x[1], atol=0.05)
    whole = levels(rule(4, 2, 4, "stretch").read(deep("png", pixels)))
    np.testing.assert_allclose(whole[:3], 30000, atol=1.0)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
@pytest.mark.parametrize("channels", [3, 5])
def test_orientation_is_applied_to_deep_and_to_many_channels(orientation: int, turned: object, channels: int) -> None:
    values = RNG.integers(65536, size=(4, 6, channels)).astype(np.uint16)
    file = io.BytesIO()
    form = {"photometric": "rgb"} if channels == 3 else {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(file, values, extratags=[(0x0112, "H", 1, orientation, True)], **form)
    file.seek(0)
    expected = turned(values)  # type: ignore[operator]
    x = rule(*expected.shape[:2], channels).read(file)
    np.testing.assert_array_equal(np.rint(levels(x)).astype(int), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255.0), (np.uint16, 65535.0)])
@pytest.mark.parametrize("form", ["pixels", "planes", "pages", "last", "first"])
def test_any_number_of_channels(dtype: type, top: float, form: str) -> None:
    values = RNG.integers(top + 1, size=(4, 6, 7)).astype(dtype)
    first = np.ascontiguousarray(values.transpose(2, 0, 1))
    file = io.BytesIO()
    if form == "pixels":
        tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")
    elif form == "planes":
        tifffile.imwrite(file, first, photometric="minisblack", planarconfig="separate")
    elif form == "pages":
        tifffile.imwrite(file, first, photometric="minisblack")
    file.seek(0)
    file = npy(values if form == "last" else first) if form in ("last", "first") else file
    x = rule(channels=7).read(file)
    np.testing.assert_array_equal(np.rint(levels(x, 0, top)).astype(int), first)


def test_floats_of_arrays_are_taken_as_they_are() -> None:
    values = RNG.uniform(-1, 1, (5, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(rule(channels=5).read(npy(values)), values)
    np.testing.assert_array_equal(rule(channels=1).read(npy(values[0])), values[:1])
    np.testing.assert_allclose(rule(6, 6, 5, "pad").read(npy(values))[:, 1:5], values, atol=2e-7)
    assert (rule(6, 6, 5, "pad").read(npy(values))[:, [0, 5]] == -1).all()
    np.testing.assert_allclose(rule(4, 4, 5, "crop").read(npy(values)), values[:, :, 1:5], atol=2e-7)


def test_a_range_is_what_becomes_minus_one_and_one() -> None:
    values = np.array([[-1000, 0, 500, 3000]], dtype=np.int16)
    given = rule(1, 4, 1, low=-1000.0, high=3000.0)
    np.testing.assert_allclose(given.read(npy(values))[0, 0], [-1, -0.5, -0.25, 1], atol=1e-7)
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 1000, 4000]], np.uint16)).save(file, "PNG")
    np.testing.assert_allclose(rule(1, 3, 3, low=0.0, high=4000.0).read(file)[:, 0], [[-1, -0.5, 1]] * 3, atol=1e-7)
    file = io.BytesIO()
    Image.fromarray(np.array([[0.0, 0.25, 1.0]], np.float32)).save(file, "TIFF")
    np.testing.assert_allclose(rule(1, 3, 1, low=0.0, high=1.0).read(file)[0, 0], [-1, -0.5, 1], atol=1e-7)


NAN = np.zeros((4, 6), np.float32)
NAN[1, 1] = np.nan
REFUSED = [
    (NAN, 1, "holds 1 numbers that are not finite"),
    (np.full((4, 6), 1.5), 1, r"holds 1.5 to 1.5, expected -1 to 1; say `range"),
    (np.zeros((4, 6), np.int16), 1, r"no known range; say `range"),
    (np.zeros((4, 6), bool), 1, "holds values of type bool"),
    (np.zeros((4, 6), complex), 1, "holds values of type complex128"),
    (np.zeros((4, 6, 2), np.uint8), 3, "expected 3 channels"),
    (np.zeros((2, 4, 6, 3), np.uint8), 3, r"expected \(H, W\)"),
    (np.zeros((4, 6, 4), np.uint8), 4, "cannot tell where its 4 channels stand"),
    (np.zeros((0, 6), np.uint8), 1, "no pixel"),
    (np.zeros((2000, 2000), np.uint8), 1, "more than max_pixels"),
]


@pytest.mark.parametrize(("values", "channels", "why"), REFUSED)
def test_arrays_that_are_refused(values: np.ndarray, channels: int, why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        rule(channels=channels).read(npy(values))


def test_objects_and_cut_arrays_are_refused_unread() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableError, match="type object"):
        rule(channels=1).read(io.BytesIO(file.getvalue()))
    whole = npy(np.zeros((4, 6), np.uint8)).getvalue()
    for cut in (7, 20, len(whole) - 1):
        with pytest.raises(UnreadableError):
            rule(channels=1).read(io.BytesIO(whole[:cut]))


def test_other_channels_need_files_that_have_them() -> None:
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "PNG")
    with pytest.raises(UnreadableError, match="has the channels RGB, expected 5"):
        rule(channels=5).read(file)
    with pytest.raises(UnreadableError, match="has 8 bits, whose range is known"):
        rule(low=0.0, high=1.0).read(file)
    wide = io.BytesIO(b"P6 2 1 65535\n" + bytes(12))
    with pytest.raises(UnreadableError, match=r"from PNG .* and TIFF files only"):
        rule(1, 2).read(wide)


def test_a_folder_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values = RNG.integers(10_000, size=(3, 6, 8, 8)).astype(np.uint16)
    for k, each in enumerate(values):
        np.save(tmp_path / f"{k}.npy", each)
    with pytest.raises(DataError, match=r"no image in it; it has 3 files of '\.npy', .*endings=\[\.npy\]"):
        len(Folder(path=tmp_path, size=8, channels=6))
    source = Folder(path=tmp_path, size=8, channels=6, endings=(".npy",), range=(0.0, 10_000.0))
    assert source.spec.shape == (6, 8, 8)
    assert source.names() == ["0", "1", "2"]
    np.testing.assert_allclose(levels(source.read(np.arange(3)).x0.numpy(), 0, 10_000), values, atol=2e-3)
    other = Folder(path=tmp_path, size=8, channels=6, endings=(".npy",), range=(0.0, 20_000.0))
    assert other.fingerprint() != source.fingerprint()
    for wrong in ({"range": (1.0, 1.0)}, {"endings": ("npy",)}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            Folder(path=tmp_path, size=8, **wrong)  # type: ignore[arg-type]
