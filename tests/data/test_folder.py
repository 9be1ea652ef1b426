"""Folders: order, classes, the check that is done once, and what happens when files are bad or change."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.data.folder import Folder
from latentsb.data.pairs import Paired, Unpaired
from latentsb.data.pixels import PixelRule
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError, DataError


@pytest.fixture(autouse=True)
def _index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded."""
    decode, seen = PixelRule.read, []

    def read(self: PixelRule, path: Path) -> np.ndarray:
        seen.append(path.name)
        return decode(self, path)

    monkeypatch.setattr(PixelRule, "read", read)
    return seen


def made(root: Path, names: tuple[str, ...]) -> Path:
    """Images whose grey level is their place in `names`, but for a white last column."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4), k, dtype=np.uint8)
        pixels[:, -1] = 255
        Image.fromarray(pixels).save(root / name)
    return root


def levels(x: torch.Tensor) -> list[int]:
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def test_order_is_that_of_the_paths_and_other_files_are_left_out(tmp_path: Path) -> None:
    root = made(tmp_path / "d", ("b/2.png", "a.png", "b/10.PNG", ".hidden.png", ".git/x.png"))
    (root / "notes.txt").write_text("hello")
    source = Folder(path=root, size=4, channels=1)
    assert source.names() == ["a", "b/10", "b/2"]
    assert levels(source.read(np.arange(3)).x0) == [1, 2, 0]


def test_labels_are_the_first_sub_folders(tmp_path: Path) -> None:
    root = made(tmp_path / "d", ("dog/x/1.png", "cat/1.png", "dog/2.png"))
    source = Folder(path=root, size=(4, 4), channels=3, labels=True)
    assert source.cond["label"].classes == 2
    assert source.classes == ("cat", "dog")
    assert source.read(np.array([2, 0, 1])).cond["label"].tolist() == [1, 0, 1]
    (root / "eel").mkdir()
    with pytest.raises(DataError, match="eel: this class has no image"):
        len(Folder(path=root, size=4, labels=True))
    (root / "eel").rmdir()
    made(root, ("loose.png",))
    with pytest.raises(DataError, match=r"loose\.png: lies in no class"):
        len(Folder(path=root, size=4, labels=True))


def test_flip_is_an_exact_mirror(tmp_path: Path) -> None:
    source = Folder(path=made(tmp_path / "d", ("a.png", "b.png")), size=4, channels=3, flip=True)
    plain, mirrored = source.read(np.arange(2)).x0, source.read(np.arange(2), np.array([0, 1])).x0
    torch.testing.assert_close(mirrored[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(mirrored[1], plain[1].flip(-1), rtol=0, atol=0)
    assert Stream(source, 0, 5).batch(0).data.shape == (5, 3, 4, 4)


def test_bad_images_are_named_and_stop_or_not_as_told(tmp_path: Path) -> None:
    root = made(tmp_path / "d", tuple(f"{k}.png" for k in range(8)))
    (root / "3.png").write_text("no picture")
    (root / "5.png").write_bytes((root / "5.png").read_bytes()[:50])
    with pytest.raises(DataError) as caught:
        len(Folder(path=root, size=4, bad=0.2))
    told = str(caught.value)
    assert "2 of 8 images are unreadable" in told
    assert "3.png: is no image of a known format" in told
    assert "5.png:" in told
    source = Folder(path=root, size=4, bad=0.25)
    assert source.names() == ["0", "1", "2", "4", "6", "7"]
    assert list(source.problems()) == ["3.png", "5.png"]
    assert source.problems()["3.png"] == "is no image of a known format"
    pair = Unpaired(x0=source, x1=source)
    assert list(pair.problems()) == ["x0/3.png", "x0/5.png", "x1/3.png", "x1/5.png"]


def test_check_is_done_once_until_a_file_changes(tmp_path: Path, reads: list[str]) -> None:
    root = made(tmp_path / "d", ("a.png", "b.png"))
    assert len(Folder(path=root, size=4)) == 2
    first = Folder(path=root, size=4).fingerprint()
    assert sorted(reads) == ["a.png", "b.png"]
    assert len(Folder(path=root, size=4)) == 2
    assert len(reads) == 2
    assert len(Folder(path=root, size=8)) == 2  # another rule
    assert len(reads) == 4
    os.utime(root / "b.png", ns=(1, 1))
    assert Folder(path=root, size=4).fingerprint() == first  # touched
    assert reads[4:] == ["b.png"]
    made(root, ("c.png", "c.png", "b.png"))
    (root / "c.png").unlink()
    assert Folder(path=root, size=4).fingerprint() != first  # painted over
    assert reads[5:] == ["b.png"]
    for index in (tmp_path / "index").rglob("*.json"):
        index.write_text("{")
    assert len(Folder(path=root, size=4)) == 2  # a damaged index is made anew
    assert len(reads) == 8


def test_data_are_what_the_files_hold_wherever_they_lie(tmp_path: Path) -> None:
    root = made(tmp_path / "d", ("a.png", "b/c.png"))
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)  # without times
    first, second = Folder(path=root, size=4), Folder(path=copy, size=4)
    assert first.fingerprint() == second.fingerprint()
    assert first.contents() == {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("a.png", "b/c.png")
    }
    (copy / "a.png").rename(copy / "d.png")
    assert Folder(path=copy, size=4).fingerprint() != first.fingerprint()


def test_unwritable_index_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(Folder(path=made(tmp_path / "d", ("a.png",)), size=4)) == 1


def test_files_that_change_or_vanish_later_are_named(tmp_path: Path) -> None:
    root = made(tmp_path / "d", ("a.png", "b.png"))
    source = Folder(path=root, size=4)
    assert len(source) == 2
    os.utime(root / "a.png", ns=(1, 1))
    assert levels(source.read(np.array([0])).x0) == [0]
    (root / "a.png").write_bytes((root / "b.png").read_bytes())
    (root / "b.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: was changed after it was checked"):
        source.read(np.array([0]))
    with pytest.raises(DataError, match=r"b\.png: can no longer be read"):
        source.read(np.array([1]))


def test_absent_and_empty_folders(tmp_path: Path) -> None:
    absent = Folder(path=tmp_path / "none", size=4)
    assert absent.spec.shape == (3, 4, 4)
    for use in (len, Folder.names, Folder.require, lambda source: source.read(np.arange(1))):
        with pytest.raises(
            DataError, match=r"no such folder .*put the images there, or say where they are: data\.path="
        ):
            use(absent)
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="d: there is no image in it"):
        len(Folder(path=tmp_path / "d", size=4))
    with pytest.raises(DataError, match="one sub-folder for each class"):
        Folder(path=tmp_path / "d", size=4, labels=True)
    with pytest.raises(ArgumentError, match="size"):
        Folder(path=tmp_path / "d", size=(0, 4))


def test_fingerprint_tells_transforms_apart(tmp_path: Path) -> None:
    root = made(tmp_path / "d", ("a.png",))
    variants = [
        Folder(path=root, size=4),
        Folder(path=root, size=8),
        Folder(path=root, size=4, fit="pad"),
        Folder(path=root, size=4, channels=1),
        Folder(path=root, size=4, flip=True),
    ]
    assert len({str(source.fingerprint()) for source in variants}) == len(variants)


def test_pairs_of_folders_are_matched_by_name(tmp_path: Path) -> None:
    left = Folder(path=made(tmp_path / "l", ("a.png", "b.png", "c.png")), size=4)
    right = Folder(path=made(tmp_path / "r", ("a.bmp", "b.png", "c.png")), size=4)
    pairs = Paired(x0=left, x1=right)
    found = pairs.read(np.array([2, 1]))
    assert found.x1 is not None
    assert levels(found.x0) == levels(found.x1) == [2, 1]
    other = Folder(path=made(tmp_path / "o", ("a.png", "b.png", "d.png")), size=4)
    with pytest.raises(DataError, match=r"2 samples have no partner; the first is 'c' of x0"):
        len(Paired(x0=left, x1=other))
    twice = Folder(path=made(tmp_path / "t", ("a.png", "a.bmp", "b.png", "c.png")), size=4)
    with pytest.raises(DataError, match="unique names; found two files called 'a'"):
        len(Paired(x0=twice, x1=left))
