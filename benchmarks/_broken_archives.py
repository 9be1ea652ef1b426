"""Tar shards that are cut anywhere, or whose members are traps."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _broken import CANARY, Case
from _broken_images import Touch, encoded, golden, pixels

from latentsb.data.tar import Tar

SIDE = 8
PLAIN, PACKED = 200, 100
"""Random bytes at which archives are cut."""
Member = tuple[tarfile.TarInfo, bytes]


@cache
def images(n: int) -> tuple[np.ndarray, ...]:
    """Small pictures, no two alike."""
    return tuple(np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for k in range(n))


def shard(n: int) -> dict[str, bytes]:
    """Members of a shard of n images."""
    return {f"{k:04}.png": encoded(image, "PNG") for k, image in enumerate(images(n))}


def expected(n: int) -> np.ndarray:
    """What a shard of n images holds."""
    return np.concatenate([golden(image) for image in images(n)])


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    """A member with any header."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for key, value in fields.items():
        setattr(header, key, value)
    return header, data


def archive(members: list[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of members, as they are said to be."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for header, data in members:
            tar.addfile(header, io.BytesIO(data) if data else None)
    return stream.getvalue()


def written(members: Mapping[str, bytes], ending: str = ".tar") -> bytes:
    """A plain or packed archive."""
    whole = archive([member(name, data) for name, data in members.items()])
    return gzip.compress(whole, mtime=0) if ending.endswith("gz") else whole


def tar(group: str, name: str, data: bytes, ending: str = ".tar", **about: Any) -> Case:
    """One shard."""
    path, keys = Path("in") / f"a{ending}", {"size": SIDE, **about.pop("keys", {})}
    if about.get("golden") is None and "why" not in about:
        about["why"] = r"a\.tar(\.gz)?: .{6,}"
    return Case(group, name, lambda: Path(path.name).write_bytes(data), lambda: Tar(paths=path, **keys), **about)


def cuts() -> Iterator[Case]:
    """Cut at random bytes: refused, or, where only the zeros at the end are lost, every image is there."""
    rng = np.random.default_rng(0)
    for ending, number in ((".tar", PLAIN), (".tar.gz", PACKED)):
        whole, group = written(shard(12), ending), f"{ending} cut at a random byte"
        yield tar(group, "whole", whole, ending, golden=expected(12))
        content = len(whole.rstrip(b"\0")) + 512 if ending == ".tar" else len(whole)  # up to the zeros at the end
        for at in sorted(rng.choice(content, number, replace=False).tolist()):
            about = {"golden": expected(12), "why": r"a\.tar(\.gz)?: .*(not a whole tar archive|cut off)"}
            yield tar(group, f"{at} of {len(whole)}", whole[:at], ending, **about)


def hostile() -> Iterator[Case]:
    """Members and headers that are traps."""
    group, dot = "hostile archives", encoded(images(1)[0], "PNG")
    first, single = member("0000.png", dot), expected(1)

    def case(name: str, *more: Member, ending: str = ".tar", **about: Any) -> Case:
        data = archive([first, *more])
        return tar(group, name, gzip.compress(data) if ending == ".tar.gz" else data, ending, **about)

    for name in ("../a.png", "/etc/a.png", "a/../../b.png", "..\\..\\a.png/../b.png", "./../a.png", "\\etc\\a.png"):
        yield case(f"a member called {name}", member(name, dot), why="leads out of the archive|control")
    links = {"a soft link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE}
    for name, kind in links.items():
        for target in ("/etc/passwd", "0000.png", "../../secret.png"):
            yield case(f"{name} to {target}", member("a.png", type=kind, linkname=target), why=r"'a\.png' is a link")
    odd = {
        "a device": tarfile.CHRTYPE,
        "a disk": tarfile.BLKTYPE,
        "a pipe": tarfile.FIFOTYPE,
        "a sparse file": tarfile.CONTTYPE,
    }
    for name, kind in odd.items():
        about = {"golden": np.concatenate([single] * 2)} if kind == tarfile.CONTTYPE else {}
        data = dot if kind == tarfile.CONTTYPE else b""
        yield case(f"{name} called a.png", member("a.png", data, type=kind), why="no regular file", **about)
    sparse = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.png",
        "GNU.sparse.realsize": "10737418240",
    }
    yield case("a sparse file of 10 GiB", member("x.png", b"1\n0\n1\n".ljust(512, b"\0"), pax_headers=sparse))
    older = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "10737418240", "GNU.sparse.numblocks": "1"}
    yield case("a sparse file of the older kind", member("a.png", b"x" * 512, pax_headers=older))
    yield case(
        "a link, then a file behind it",
        member("d", type=tarfile.SYMTYPE, linkname="/tmp"),
        member("d/a.png", dot),
        golden=np.concatenate([single] * 2),
    )
    yield case("an image twice", first, why="'0000' has two images")
    yield case("an image in two endings", member("0000.jpg", dot), why="'0000' has two images")
    yield case("names that differ in case", member("0000.PNG", dot), why="'0000' has two images")
    yield case(
        "keys that differ in case", member("A.png", dot), member("a.png", dot), golden=np.concatenate([single] * 3)
    )
    for name in ("a\n.png", "\x1b[2J.png"):
        yield case(f"a name like {name!r}", member(name, dot), why="control characters")
    yield case("a name that ends before its ending", member("a\0.png", dot), golden=single)  # 'a' is no image
    touch = pickle.dumps(Touch())
    for name in ("__init__.pyd", "0000.pyd", "0000.pkl", "0000.pth", "0000.pickle", "0000.py", "conftest.py", "a.so"):
        yield case(f"beside a member {name}", member(name, touch), golden=single)
    yield case("a pickle called a.png", member("a.png", touch), why=r"a\.png: is no image")
    yield case(
        "a script called a.cls",
        member("0000.cls", f"__import__('os').system('touch {CANARY}')".encode()),
        why="expected the number of a class",
    )
    for label in (b"", b"-1", b"1.5", b"9" * 5000, "٣".encode(), b"1\n2", b"\xff", b"nan"):
        yield case(f"a label {label[:6]!r}", member("0000.cls", label), why="expected the number of a class")
    yield from promises(group, first, dot)


def promises(group: str, first: Member, dot: bytes) -> Iterator[Case]:
    """Headers that promise what is not there, and archives that unpack to very much."""
    head = archive([first]).rstrip(b"\0")
    head = head.ljust(-(-len(head) // 512) * 512, b"\0")
    for size in (1 << 30, 1 << 40, (1 << 60), -512, -(1 << 40)):
        header, _ = member("a.png")
        header.size = size
        yield tar(group, f"a member that promises {size} bytes", head + header.tobuf(tarfile.GNU_FORMAT) + dot)
    for size in ("1099511627776", "-512", "0x10", "9" * 5000, "nan", ""):
        extended = member("a.png", dot, pax_headers={"size": size})
        why = r"a\.tar: .{6,}"
        both = np.concatenate([expected(1)] * 2)
        yield tar(
            group,
            f"an extended header that promises {size[:20]} bytes",
            archive([first, extended]),
            why=why,
            golden=both,
        )
    for key, value in (
        ("path", "../../a.png"),
        ("path", "/etc/a.png"),
        ("linkpath", "/etc/passwd"),
        ("hdrcharset", "BINARY"),
        ("mtime", "nan"),
        ("uid", "-1"),
    ):
        extended = member("a.png", dot, pax_headers={key: value})
        both = np.concatenate([expected(1)] * 2) if key != "path" else None
        why = r"a\.tar: .{6,}" if key == "path" else ""
        yield tar(group, f"an extended header with {key} {value}", archive([first, extended]), why=why, golden=both)
    zeros = bytes(300 << 20)
    for name in ("a.png", "a.txt"):
        packed = gzip.compress(archive([first, member(name, zeros)]), 1)
        yield tar(group, f"300 MiB of zeros as {name}, packed", packed, ".tar.gz", why="promises 314,572,800 bytes")
    extended, _ = member("a.png", pax_headers={"size": str(len(zeros))})
    block = extended.tobuf(tarfile.PAX_FORMAT)
    yield tar(
        group,
        "300 MiB of zeros by an extended header, packed",
        gzip.compress(head + block + zeros, 1),
        ".tar.gz",
        why="promises 314,572,800 bytes",
    )
    yield tar(
        group,
        "300 MiB of zeros behind the end, packed",
        gzip.compress(archive([first]) + zeros, 1),
        ".tar.gz",
        why="zeros behind its end",
    )
    many = archive([first, *(member(f"{k}.txt") for k in range(20_000))])
    yield tar(group, "20,000 empty members", many, golden=expected(1))
    long = member("n" * 2_000_000 + ".png", dot)
    yield tar(group, "a name of two million letters", archive([first, long]))
    deep = member("d/" * 2000 + "a.png", dot)
    yield tar(group, "a path of 2,000 folders", archive([first, deep]), golden=np.concatenate([expected(1)] * 2))
    for name, data in others(first).items():
        yield tar(group, f"{name} as .tar", data)
    yield from places(group)


def others(first: Member) -> dict[str, bytes]:
    """What is no archive."""
    whole = archive([first])
    broken = bytearray(whole)
    broken[5] ^= 64
    return {
        "nothing": b"",
        "text": b"text" * 999,
        "zeros": bytes(10_240),
        "an image": encoded(pixels(), "PNG"),
        "a pickle": pickle.dumps(Touch()),
        "a broken header": bytes(broken),
        "two archives in one": whole + whole,
        "no image": archive([member("a.txt", b"x")]),
        "folders alone": archive([member("d", type=tarfile.DIRTYPE)]),
        "gzip in gzip": gzip.compress(gzip.compress(whole)),
        "gzip and more": gzip.compress(whole) + b"more",
        "gzip with a wrong checksum": gzip.compress(whole)[:-8] + b"\0" * 8,
    }


def places(group: str) -> Iterator[Case]:
    """Paths that other readers take for commands or addresses."""
    for place in (
        f"pipe:touch {CANARY}",
        "file:///etc/passwd",
        "https://example.org/a.tar",
        "s3://b/a.tar",
        f"$(touch {CANARY}).tar",
        f"|touch {CANARY}",
        "-",
    ):
        why = "there is no file|no file matches"
        yield Case(group, f"the path {place}", lambda: None, lambda p=place: Tar(paths=Path(p), size=SIDE), why=why)
    yield Case(
        group,
        "a folder for a shard",
        lambda: Path("a.tar").mkdir(),
        lambda: Tar(paths=Path("in/a.tar"), size=SIDE),
        why=r"a\.tar",
    )


Trap = Callable[[], Iterator[Case]]
