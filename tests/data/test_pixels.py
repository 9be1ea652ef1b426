"""Golden pixels of odd modes; sizes; and files that are refused with their reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentsb.data.pixels import Fit, PixelRule, UnreadableError

RNG = np.random.default_rng(0)
RGB = RNG.integers(256, size=(4, 6, 3), dtype=np.uint8)


def rule(height: int = 4, width: int = 6, channels: int = 3, fit: Fit = "exact", most: int = 10**6) -> PixelRule:
    return PixelRule(height, width, channels, fit, most)


def levels(x: np.ndarray, top: float = 255.0) -> np.ndarray:
    """From [-1, 1] back to integers, channels last."""
    return np.rint((x.transpose(1, 2, 0).astype(np.float64) + 1) * top / 2).astype(np.int64)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(folder / name, **options)  # type: ignore[arg-type]
    return folder / name


def test_colours_become_minus_one_to_one(tmp_path: Path) -> None:
    x = rule().read(saved(tmp_path, Image.fromarray(RGB)))
    assert (x.dtype, x.shape) == (np.float32, (3, 4, 6))
    np.testing.assert_array_equal(x, RGB.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1))


def test_one_bit_and_grey(tmp_path: Path) -> None:
    bits = Image.fromarray(RGB[..., 0] > 127)
    np.testing.assert_array_equal(
        levels(rule(channels=1).read(saved(tmp_path, bits)))[..., 0], 255 * (RGB[..., 0] > 127)
    )
    grey = saved(tmp_path, Image.fromarray(RGB[..., 0]))
    np.testing.assert_array_equal(levels(rule().read(grey)), RGB[..., :1].repeat(3, 2))


def test_grey_from_colour_is_luma(tmp_path: Path) -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    x = levels(rule(1, 3, channels=1).read(saved(tmp_path, Image.fromarray(primaries))))
    np.testing.assert_array_equal(x[0, :, 0], [76, 150, 29])  # 0.299, 0.587, 0.114 of 255


def test_cmyk(tmp_path: Path) -> None:
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(inks, mode="CMYK"), "a.tif")
    golden = [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0], [255, 255, 255]]
    np.testing.assert_array_equal(levels(rule(1, 5).read(path))[0], golden)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_keep_all_of_them(tmp_path: Path, channels: int) -> None:
    deep = np.array([[0, 1, 255, 32768, 65534, 65535]], dtype=np.uint16)
    x = rule(1, 6, channels).read(saved(tmp_path, Image.fromarray(deep)))
    np.testing.assert_array_equal(
        levels(x, 65535.0)[0, :, : min(channels, 3)], deep[0][:, None].repeat(min(channels, 3), 1)
    )
    if channels == 4:
        assert (x[3] == 1.0).all()


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = saved(tmp_path, image, transparency=1)
    np.testing.assert_array_equal(levels(rule(1, 3).read(path))[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])
    np.testing.assert_array_equal(
        levels(rule(1, 3, 4).read(path))[0], [[255, 0, 0, 255], [0, 255, 0, 0], [0, 0, 255, 255]]
    )
    opaque = saved(tmp_path, image, "b.png")
    np.testing.assert_array_equal(levels(rule(1, 3).read(opaque))[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])


def test_transparency_is_laid_over_white_or_kept(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 51], [9, 9, 9, 0]]], dtype=np.uint8))
    path = saved(tmp_path, image)
    # 51/255 = 1/5 of black over white is 204.
    np.testing.assert_array_equal(levels(rule(1, 3).read(path))[0], [[10, 20, 30], [204] * 3, [255] * 3])
    np.testing.assert_array_equal(levels(rule(1, 3, 4).read(path))[0], np.asarray(image)[0])
    grey = saved(tmp_path, Image.fromarray(np.array([[[0, 51], [100, 255]]], dtype=np.uint8), mode="LA"))
    np.testing.assert_array_equal(levels(rule(1, 2, 1).read(grey))[0, :, 0], [204, 100])
    np.testing.assert_array_equal(levels(rule(1, 2, 3).read(grey))[0], [[204] * 3, [100] * 3])


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
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turned: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    expected = turned(RGB)  # type: ignore[operator]
    np.testing.assert_array_equal(levels(rule(*expected.shape[:2]).read(path)), expected)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("P", (6, 4), k) for k in range(3)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (levels(rule().read(path)) == [10, 20, 30]).all()


def test_crop_takes_the_centre(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    np.testing.assert_array_equal(levels(rule(4, 4, fit="crop").read(path)), RGB[:, 1:5])
    np.testing.assert_array_equal(levels(rule(4, 6, fit="crop").read(path)), RGB)


def test_pad_keeps_all_on_black(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    x = levels(rule(6, 6, fit="pad").read(path))
    np.testing.assert_array_equal(x[1:5], RGB)
    assert (x[[0, 5]] == 0).all()
    np.testing.assert_array_equal(levels(rule(8, 6, fit="pad").read(path))[2:6], RGB)
    np.testing.assert_array_equal(levels(rule(4, 9, fit="pad").read(path))[:, 1:7], RGB)
    alpha = levels(rule(6, 6, 4, fit="pad").read(path))[..., 3]
    assert (alpha[1:5] == 255).all()
    assert (alpha[[0, 5]] == 0).all()
    clear = saved(tmp_path, Image.new("RGBA", (6, 4), (0, 0, 0, 0)), "clear.png")
    x = levels(rule(6, 6, fit="pad").read(clear))
    assert (x[1:5] == 255).all()
    assert (x[[0, 5]] == 0).all()
    deep = saved(tmp_path, Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)), "deep.png")
    x = rule(6, 6, 4, fit="pad").read(deep)
    assert (levels(x, 65535.0)[1:5] == [40000] * 3 + [65535]).all()
    assert (x[:, [0, 5]] == -1.0).all()


def test_exact_refuses_other_sizes_by_width_and_height(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    with pytest.raises(UnreadableError, match=r"6×4 pixels \(width × height\), expected 4×6"):
        rule(6, 4).read(path)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("deep", [False, True])
def test_smaller_images_are_averages(tmp_path: Path, fit: Fit, deep: bool) -> None:
    """Single pixels that alternate become grey; without antialiasing they would stay black or white."""
    board = np.indices((64, 64)).sum(0) % 2
    image = Image.fromarray((board * 65535).astype(np.uint16) if deep else (board * 255).astype(np.uint8))
    x = rule(8, 8, 1, fit).read(saved(tmp_path, image))
    assert np.abs(x[:, 1:-1, 1:-1]).max() < 0.02


def test_extreme_shapes_need_little_memory(tmp_path: Path) -> None:
    for size in ((20_000, 1), (1, 20_000), (1, 1)):
        path = saved(tmp_path, Image.new("RGB", size, (200, 100, 50)))
        for fit in ("crop", "stretch", "pad"):
            x = levels(rule(64, 64, fit=fit).read(path))
            assert (x[31, 31] == [200, 100, 50]).all()


def refused(path: Path, most: int = 10**6) -> str:
    with pytest.raises(UnreadableError) as caught:
        rule(64, 64, fit="crop", most=most).read(path)
    return str(caught.value)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 90}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_truncated_files_are_refused(tmp_path: Path, form: str, options: dict[str, object]) -> None:
    whole = io.BytesIO()
    noise = Image.fromarray(RNG.integers(256, size=(64, 64, 3), dtype=np.uint8))
    noise.save(whole, form, **options)  # type: ignore[arg-type]
    data = whole.getvalue()
    for cut in np.linspace(0, 0.95 * len(data), 17).astype(int):
        (tmp_path / "cut.jpg").write_bytes(data[:cut])
        assert refused(tmp_path / "cut.jpg")


def test_other_content_is_refused(tmp_path: Path) -> None:
    contents = (
        b"",
        b"hello",
        b"<html><body>404</body></html>",
        b"PK\x03\x04" + bytes(40),
        b"\x80\x04." + bytes(30),
        b"%!PS",
    )
    for content in contents:
        (tmp_path / "a.jpg").write_bytes(content)
        assert refused(tmp_path / "a.jpg") == "is no image of a known format"


def test_float_and_wide_integers_are_refused(tmp_path: Path) -> None:
    assert "no known range" in refused(saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "f.tif"))
    wide = np.full((4, 4), 70_000, np.int32)
    assert "beyond 16 bits" in refused(saved(tmp_path, Image.fromarray(wide), "i.tif"))


def png_that_promises(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (14_000, 14_000), (2**31 - 1, 2**31 - 1), (1001, 1000)])
def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_that_promises(width, height))
    tracemalloc.start()
    reason = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert f"{width}×{height} pixels, more than max_pixels = 1000000" in reason or "exceeds limit" in reason
    assert peak < 2**22
