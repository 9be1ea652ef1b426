"""Archives that nobody should trust: what is refused, with the member's name, and what is passed over."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentsb.data import archive
from latentsb.data.tar import Tar
from latentsb.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def dot() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), 7, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def member(name: str, data: bytes | None = None, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    content = dot() if data is None else data
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for key, value in fields.items():
        setattr(header, key, value)
    return header, content if header.isreg() else b""


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for header, content in members:
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def source(content: bytes, *, labels: bool = False) -> Tar:
    Path("a.tar").write_bytes(content)
    return Tar(paths=Path("a.tar"), size=2, labels=labels)


REFUSED = [
    ("/etc/a.png", {}, "'/etc/a.png' has a name that leads out"),
    ("a/../../b.png", {}, "leads out of the archive"),
    ("../b.cls", {"data": b"1"}, "leads out of the archive"),
    ("b.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "'b.png' is a link"),
    ("b.png", {"type": tarfile.LNKTYPE, "linkname": "good.png", "size": 0}, "'b.png' is a link"),
    ("b.jpg", {"type": tarfile.CHRTYPE, "size": 0}, "is no regular file"),
    ("b.jpg", {"type": tarfile.FIFOTYPE, "size": 0}, "is no regular file"),
    ("b\n.png", {}, "control characters"),
    ("good.jpg", {}, "the key 'good' has two images"),
    ("good.png", {}, "the key 'good' has two images"),
    ("good.cls", {"data": b"one"}, r"'good\.cls' holds 'one', expected the number of a class"),
    ("good.cls", {"data": b"-1"}, "expected the number of a class"),
    ("good.cls", {"data": b""}, "expected the number of a class"),
    ("good.cls", {"data": b"9" * 5000}, "expected the number of a class"),
    ("b.cls", {"data": b"1"}, "1 key has a label but no image, such as 'b'"),
]


@pytest.mark.parametrize(("name", "fields", "why"), REFUSED)
def test_members_that_are_refused(name: str, fields: dict, why: str) -> None:
    with pytest.raises(DataError, match=why) as told:
        len(source(packed(member("good.png"), member(name, **fields))))
    assert "a.tar" in str(told.value)


def test_images_without_a_label_and_labels_twice() -> None:
    labelled = (member("good.png"), member("good.cls", b"1"))
    with pytest.raises(DataError, match="1 key has an image but no label, such as 'b'"):
        len(source(packed(*labelled, member("b.png"))))
    with pytest.raises(DataError, match="'good' has two labels"):
        len(source(packed(*labelled, member("good.cls", b"1"))))


def test_a_key_in_two_archives() -> None:
    for name in ("a.tar", "b.tar"):
        Path(name).write_bytes(packed(member("same.png")))
    with pytest.raises(DataError, match=r"b\.tar: the key 'same' is also in a\.tar"):
        len(Tar(paths=Path("?.tar"), size=2))


def test_what_is_harmless_is_passed_over_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    members = [
        member("./d", type=tarfile.DIRTYPE, size=0),
        member("./d/one.PNG"),
        member("d/two.x.png"),
        member("../three.json", b"{}"),
        member("d/._one.png", b"no picture"),
        member("link.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0),
        member("ü/" + "long" * 60 + ".png"),
    ]
    found = source(packed(*members))
    with caplog.at_level(logging.WARNING):
        assert found.names() == ["d/one", "ü/" + "long" * 60]
        len(found)
    (told,) = [record.getMessage() for record in caplog.records]
    for what in ("1 of '.x.png'", "1 of '.json'", "1 of 'hidden'", "1 of '.txt'"):
        assert what in told
    assert sorted(p.name for p in Path().iterdir()) == ["a.tar", "cache"]
    with pytest.raises(DataError, match=r"holds no image; .*passed over: 2 of '\.txt'"):
        len(source(packed(member("a.txt"), member("b.txt"))))


def damaged() -> dict[str, tuple[bytes, str]]:
    # A name of 120 letters needs an extended header: a long name.
    whole = packed(member("one.png"), member("two.png"), member("n" * 120 + ".png"))
    blocks = len(whole) // 512
    broken = bytearray(whole)
    broken[2 * 512 + 5] ^= 64  # the header of the second member
    end = max(k for k in range(blocks) if any(whole[512 * k : 512 * (k + 1)])) + 1
    empty = packed(member("a.png"))
    return {
        "nothing": (b"", "not a whole tar archive"),
        "no archive": (b"hello" * 1000, "not a whole tar archive"),
        "in a header": (whole[: 2 * 512 + 100], "not a whole tar archive"),
        "in a member": (whole[: 3 * 512 + 10], "not a whole tar archive"),
        "between members": (whole[: 2 * 512], "cut off or damaged at byte 1,024"),
        "without its end": (whole[: end * 512], "cut off or damaged"),
        "a broken header": (bytes(broken), "cut off or damaged at byte 1,024"),
        "two together": (whole + empty, "more behind its end"),
    }


@pytest.mark.parametrize("what", damaged())
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_archives_that_are_not_whole(what: str, pack: Callable[[bytes], bytes]) -> None:
    content, why = damaged()[what]
    with pytest.raises(DataError, match=why):
        len(source(pack(content)))


def test_packed_streams_that_are_not_whole() -> None:
    content = gzip.compress(packed(*(member(f"{k}.png") for k in range(50))))
    assert len(source(content)) == 50
    flipped = bytearray(content)
    flipped[-6] ^= 1  # its checksum
    for bad in (content[:-4], content[: len(content) // 2], content + b"more", bytes(flipped)):
        with pytest.raises(DataError, match="not a whole tar archive"):
            len(source(bad))


def test_headers_that_promise_too_much_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 1 << 20)
    bomb = gzip.compress(packed(member("good.png"), member("big.png", bytes(2 << 20))))
    assert len(bomb) < 10_000
    with pytest.raises(DataError, match=r"'big\.png' promises 2,097,152 bytes"):
        len(source(bomb))
    header, _ = member("a", b"")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(DataError, match="promises 1,099,511,627,776 bytes, expected 0 to 1,048,576"):
        len(source(packed(member("good.png")).rstrip(b"\0").ljust(1024, b"\0") + header.tobuf(tarfile.GNU_FORMAT)))
    header.type, header.size = tarfile.REGTYPE, -512
    with pytest.raises(DataError, match="not a whole tar archive"):
        len(source(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    monkeypatch.setattr(archive, "BEHIND", 1 << 20)
    with pytest.raises(DataError, match="zeros behind its end"):
        len(source(gzip.compress(packed(member("good.png")) + bytes(3 << 20))))
