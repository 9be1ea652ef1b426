"""Arrays that are not what they should be, files that change in the middle of a run, and sets too small or unequal."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _broken import Case, everything
from _broken_archives import shard, written
from _broken_images import HIGH, WIDE, Touch, encoded, golden, pixels
from _broken_odd import as_nobody, good, shut
from PIL import Image

from latentsb.data.arrays import Npz
from latentsb.data.folder import Folder
from latentsb.data.pairs import Paired
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.data.subset import split
from latentsb.data.tar import Tar

FILE = Path("in/a.npz")


def arrays() -> Iterator[Case]:
    """Arrays of an `.npz` file."""
    group = "arrays"
    x = np.linspace(-1, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2)

    def case(name: str, *, why: str = "", golden: Any = None, keys: dict[str, Any] | None = None, **held: Any) -> Case:
        def write() -> None:
            np.savez("a.npz", **held)

        return Case(group, name, write, lambda: Npz(path=FILE, **(keys or {})), golden, why)

    bytes_ = pixels()[None]
    yield case("bytes", x0=bytes_, golden=golden(bytes_[0]))
    for kind in (np.float16, np.float32, np.float64, ">f4"):
        yield case(f"numbers of type {np.dtype(kind)}", x0=x.astype(kind), golden=x.astype(kind).astype(np.float64))
    yield case("in the order of Fortran", x0=np.asfortranarray(x), golden=x)
    for value in (np.nan, np.inf, -np.inf):
        bad = x.copy()
        bad[2, 1, 1, 0] = value
        yield case(f"one {value}", x0=bad, why=r"a\.npz: 'x0' is not finite in 1 of 4 samples, the first at 2")
    yield case("too large for 32 bits", x0=x * 1e300, why=r"a\.npz: 'x0' is not finite")
    for kind in (np.int64, np.complex128, bool, "U3", "S3", "datetime64[s]"):
        odd = np.zeros((4, 3, 2, 2), dtype=kind)
        yield case(f"type {np.dtype(kind)}", x0=odd, why=r"a\.npz: 'x0' has type .*, expected")
    records = np.zeros((4, 2), dtype=[("a", "f4"), ("b", "O")])
    for name, odd in (("objects", np.array([Touch(), Touch()], dtype=object)), ("records with objects", records)):
        yield case(name, x0=odd, why=r"a\.npz: array 'x0' cannot be read .*(Object|allow_pickle)")
    for shape in ((), (0,), (4,), (0, 3), (4, 0), (0, 3, 2, 2), (4, 3, 0, 2)):
        yield case(f"shape {shape}", x0=np.zeros(shape, np.float32), why=r"a\.npz: 'x0' has shape .*expected \(N, …\)")
    yield case(
        "no place for channels", x0=np.zeros((4, 5, 6, 7), np.float32), why=r"a\.npz: cannot tell where the channels"
    )
    yield case("another name", y=x, why=r"a\.npz: has no array 'x0'")
    yield case("nothing", why=r"a\.npz: has no array 'x0'.*empty")
    labels = {"labels": "y"}
    for name, odd in (
        ("too few", [0, 1]),
        ("negative", [0, 1, -2, 1]),
        ("broken", [0.5, 1, 2, 3]),
        ("in rows", [[0], [1], [2], [3]]),
    ):
        yield case(
            f"labels, {name}", x0=x, y=np.array(odd), keys=labels, why=r"a\.npz: 'y' (has shape|holds the label -2)"
        )
    attributes = {"attributes": "y"}
    yield case(
        "attributes with NaN", x0=x, y=np.full((4, 2), np.nan), keys=attributes, why=r"a\.npz: 'y' is not finite"
    )
    pairs = {"x1": "z", "paired": True}
    yield case(
        "pairs of unequal number", x0=x, z=x[:3], keys=pairs, why=r"a\.npz: pairs need equal numbers, found 4.*3"
    )
    yield case("ends of other shapes", x0=x, z=x[:, :, :1], keys=pairs, why=r"a\.npz: .*samples of shape")
    yield from raw_arrays(group, x)


def npy(shape: tuple[int, ...], kind: str, body: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An `.npy` file whose header promises a shape."""
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    (np.lib.format.write_array_header_1_0 if version == (1, 0) else np.lib.format.write_array_header_2_0)(
        stream, header
    )
    return stream.getvalue() + body


def zipped(members: list[tuple[str, bytes]], pack: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive, names twice and all."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", pack) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def raw_arrays(group: str, x: np.ndarray) -> Iterator[Case]:
    """Files that no library would write."""
    whole = npy(x.shape, "<f8", x.tobytes())

    def case(name: str, data: bytes, why: str = r"a\.npz: .{6,}", golden: Any = None) -> Case:
        return Case(group, name, lambda: Path("a.npz").write_bytes(data), lambda: Npz(path=FILE), golden, why)

    for name, data in (
        ("nothing", b""),
        ("text", b"text" * 99),
        ("a pickle", pickle.dumps(Touch())),
        ("half of a zip", zipped([("x0.npy", whole)])[:-30]),
    ):
        yield case(f"{name} as .npz", data, r"a\.npz: not a readable")
    yield case("a bare .npy as .npz", whole, r"a\.npz: .*bare array")
    yield case("a member cut off", zipped([("x0.npy", whole[:-9])]))
    yield case("a member without its header", zipped([("x0.npy", whole[60:])]))
    yield case("a member that is a pickle", zipped([("x0.npy", pickle.dumps(Touch()))]))
    yield case("a pickle called x0", zipped([("x0", pickle.dumps(Touch()))]))
    objects = npy((2,), "|O", pickle.dumps([Touch(), Touch()]))
    yield case("a pickle behind a header", zipped([("x0.npy", objects)]), r"a\.npz: .*(Object|allow_pickle)")
    for shape in ((2**31, 2**20), (2**62, 4), (-4, 3), (10**9, 3, 64, 64)):
        yield case(f"a header that promises {shape}", zipped([("x0.npy", npy(shape, "<f8", bytes(64)))]))
    zeros = npy((50_000, 3, 64, 64), "<f4", bytes(0)) + bytes(600 << 20)
    yield case("zeros of 600 MiB, packed", zipped([("x0.npy", zeros)], zipfile.ZIP_DEFLATED))
    yield case("more behind the array", zipped([("x0.npy", whole + bytes(800 << 10))]), golden=x)
    twice = npy(x.shape, "<f8", (x * 0).tobytes())
    yield case("the same name twice", zipped([("x0.npy", whole), ("x0.npy", twice)]), r"a\.npz: .*twice")
    yield case(
        "names that lead out", zipped([("../../x1.npy", twice), ("/etc/x.npy", twice), ("x0.npy", whole)]), "", x
    )
    yield case("a bare .npy that promises much", npy((10**9, 3, 64, 64), "<f8", b""), r"a\.npz: .*bare array")
    packed = bytearray(zipped([("x0.npy", np.random.default_rng(0).bytes(3000))], zipfile.ZIP_DEFLATED))
    packed[60:90] = bytes(30)
    yield case("a packed member that is damaged", bytes(packed), r"a\.npz: array 'x0' cannot be read")
    locked = bytearray(zipped([("x0.npy", whole)]))
    for place in (6, locked.index(b"PK\1\2") + 8):
        locked[place] |= 1
    yield case("an encrypted member", bytes(locked), r"a\.npz: array 'x0' cannot be read .*encrypted")
    flipped = bytearray(zipped([("x0.npy", whole)]))
    flipped[flipped.index(x.tobytes()) + 40] ^= 1
    yield case("one bit changed", bytes(flipped), r"a\.npz: .*(CRC|cannot be read)")


def changes() -> Iterator[Case]:
    """Files that vanish, change or are shut away after the data were checked, as in the middle of a run."""
    group = "changed amid a run"
    other = encoded(pixels()[::-1].copy(), "PNG")

    def folder(
        name: str, change: Callable[[], Any], why: str = r"in/a\.png: ", read: Any = everything, **about: Any
    ) -> Case:
        def use(source: Source) -> np.ndarray:
            len(source)
            change()
            return read(source)  # type: ignore[no-any-return]

        return Case(
            group,
            name,
            lambda: good("a.png"),
            lambda: Folder(path=Path("in"), size=(HIGH, WIDE)),
            why=why,
            use=use,
            **about,
        )

    image = Path("in/a.png")
    yield folder("an image removed", image.unlink, r"in/a\.png: can no longer be read")
    yield folder("an image become text", lambda: image.write_text("text"), r"in/a\.png: was changed")
    yield folder("an image become another", lambda: image.write_bytes(other), r"in/a\.png: was changed")
    yield folder("an image cut off", lambda: os.truncate(image, 99), r"in/a\.png: was changed")
    yield folder("an image become a folder", lambda: (image.unlink(), image.mkdir()))
    yield folder("an image become a pipe", lambda: (image.unlink(), os.mkfifo(image)))
    yield folder("the folder removed", lambda: shutil.rmtree("in"), r"in/a\.png: can no longer be read")
    yield folder("an image written anew, the same", lambda: good("in/a.png"), "", golden=golden(pixels()))

    def shut_image() -> None:
        Path().chmod(0o755)
        os.chdir("in")
        shut("a.png")
        os.chdir("..")
        os.utime(image)

    yield folder("an image shut away", shut_image, r"in/a\.png: can no longer be read", as_nobody)
    yield from changed_shards(group)


def changed_shards(group: str) -> Iterator[Case]:
    """The same of shards and of what is kept of them."""
    images = shard(3)

    def case(name: str, ending: str, change: Callable[[Path], Any], why: str, size: Any = 8) -> Case:
        path = Path("in") / f"a{ending}"

        def use(source: Source) -> np.ndarray:
            len(source)
            change(path)
            return everything(source)

        return Case(
            group,
            name,
            lambda: Path(f"a{ending}").write_bytes(written(images, ending)),
            lambda: Tar(paths=path, size=size),
            why=why,
            use=use,
        )

    big = 96  # pixels of images of this size are not kept: they are read from the shard
    yield case("a shard removed", ".tar", Path.unlink, r"a\.tar: can no longer be read", big)
    yield case("a shard cut off", ".tar", lambda p: os.truncate(p, 700), r"a\.tar: was changed", big)
    yield case(
        "a shard become another",
        ".tar",
        lambda p: p.write_bytes(written(shard(4), ".tar")),
        r"a\.tar: was changed",
        big,
    )
    yield case(
        "a copy of packed images removed",
        ".tar.gz",
        lambda p: [b.unlink() for b in Path("cache").rglob("images.bin")],
        r"images\.bin: can no longer",
        big,
    )

    def flip(_: Path) -> None:
        (copy,) = Path("cache").rglob("images.bin")
        data, stat = bytearray(copy.read_bytes()), copy.stat()
        data[50] ^= 1
        copy.write_bytes(bytes(data))
        os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    yield case("a bit of the copy changed", ".tar.gz", flip, r"images\.bin: is damaged", big)


def sets() -> Iterator[Case]:
    """Sets that are too small, unequal or wrongly labelled."""
    group = "small, unequal, mislabelled"
    x = np.linspace(-1, 1, 3 * 4).reshape(3, 1, 2, 2)

    def three() -> None:
        np.savez("a.npz", x0=x)

    def rows(source: Source) -> np.ndarray:
        found = np.concatenate([Stream(source, 0, 8).batch(seen).x0.numpy() for seen in (0, 8, 16)])  # type: ignore[union-attr]
        return np.sort(found.reshape(24, 4)[:, 0])

    expected = np.sort(np.repeat(x[:, 0, 0, 0], 8))
    yield Case(
        group, "fewer samples than a batch: each equally often", three, lambda: Npz(path=FILE), expected, use=rows
    )
    yield Case(
        group,
        "one sample",
        lambda: np.savez("a.npz", x0=x[:1]),
        lambda: Npz(path=FILE),
        np.repeat(x[0, 0, 0, 0], 24),
        use=rows,
    )
    for held in (3, 4, 1000, 0.99):
        why = r"cannot be held out of the 3 samples.*write"
        yield Case(
            group, f"{held} of three samples held out", three, lambda h=held: split(Npz(path=FILE), h, 0)[0], why=why
        )

    def pairs(name: str, left: list[str], right: list[str], why: str) -> Case:
        def write() -> None:
            for side, names in (("l", left), ("r", right)):
                Path(side).mkdir()
                for file in names:
                    Path(side, file).write_bytes(
                        encoded(Image.new("RGB", (2, 2)), {"jpg": "JPEG"}.get(file[-3:], "PNG"))
                    )

        return Case(
            group,
            name,
            write,
            lambda: Paired(x0=Folder(path=Path("in/l"), size=2), x1=Folder(path=Path("in/r"), size=2)),
            why=why,
        )

    yield pairs(
        "pairs of unequal number", ["a.png", "b.png"], ["a.png"], "1 sample has no partner; the first is 'b' of x0"
    )
    yield pairs("pairs of other names", ["a.png"], ["b.png"], "2 samples have no partner; the first is 'a' of x0")
    yield pairs("two files of one stem", ["a.png", "a.jpg"], ["a.png", "a.jpg"], "two files called 'a'")
    yield pairs("two files of one stem at one end", ["a.png", "a.jpg"], ["a.png"], "two files called 'a'")
    yield pairs("one end without images", ["a.png"], [], "in/r: there is no image")
    labels = {"a.png": encoded(pixels(), "PNG"), "a.cls": b"7"}
    yield Case(
        group,
        "a label beyond the classes",
        lambda: Path("a.tar").write_bytes(written(labels, ".tar")),
        lambda: Tar(paths=Path("in/a.tar"), size=2, labels=True, classes=3),
        why=r"a\.tar/a\.cls is 7, `classes` allows 0 to 2",
    )
    yield Case(
        group,
        "more samples promised",
        lambda: Path("a.tar").write_bytes(written(shard(2), ".tar")),
        lambda: Tar(paths=Path("in/a.tar"), size=2, samples=3),
        why=r"a\.tar: 2 images, .*asks for 3",
    )

    def table(name: str, text: str, why: str) -> Case:
        def write() -> None:
            good("a.png")
            Path("t.csv").write_text(text)

        return Case(
            group,
            name,
            write,
            lambda: Folder(path=Path("in"), size=4, table=Path("in/t.csv"), attributes=("v",)),
            why=why,
            use=lambda s: s.read(np.arange(1)),
        )

    yield table("a table without the sample", "key,v\nb,1\n", r"t\.csv: .*'a'")
    yield table("a table with a sample twice", "key,v\na,1\na,2\n", r"t\.csv.*(twice|two|again)")
    for value in ("nan", "inf", "", "x", "1e999"):
        yield table(f"a table with the value {value!r}", f"key,v\na,{value}\n", r"t\.csv.*(number|finite|empty)")
    yield table("a table without its column", "key,w\na,1\n", r"t\.csv.*'v'")
