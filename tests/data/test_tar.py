"""Tar shards: bytes, order, labels, numbers; the store is made once and never half."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.data import decoded as kept
from latentsb.data import store
from latentsb.data.archive import Archive
from latentsb.data.pixels import PixelRule
from latentsb.data.store import open_shard
from latentsb.data.tar import Tar
from latentsb.errors import ArgumentError, DataError, DiskError

SIZE = 6


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the archives that are read."""
    members, seen = Archive.members, []

    def told(self: Archive):
        seen.append(self.path.name)
        return members(self)

    monkeypatch.setattr(Archive, "members", told)
    return seen


def picture(seed: int, ending: str = "png", size: int = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "JPEG", "png": "PNG"}[ending])
    return stream.getvalue()


def decoded(data: bytes) -> torch.Tensor:
    """Pixels by Pillow alone, in [-1, 1]."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).float()


def write(path: Path, members: dict[str, bytes]) -> Path:
    """An archive, packed if its name says so."""
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def samples(first: int, last: int, ending: str = "png") -> dict[str, bytes]:
    """Keys fall while numbers rise: their order in the archive is not that of their names."""
    found: dict[str, bytes] = {}
    for k in range(first, last):
        found |= {f"n{99 - k}.cls": b"%d" % (k % 3), f"n{99 - k}.{ending}": picture(k, ending)}
    return found


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_images_are_the_members_in_their_order(packed: str) -> None:
    parts = [samples(0, 5), samples(5, 12, "jpg")]
    for k, part in enumerate(parts):
        write(Path(f"s-{k:03}.tar{packed}"), part)
    source = Tar(paths=(Path(f"s-{{000..001}}.tar{packed}"),), size=SIZE, labels=True, flip=True)
    images = [data for part in parts for name, data in part.items() if not name.endswith(".cls")]
    assert source.names() == [f"n{99 - k}" for k in range(12)]
    index = np.array([11, 0, 7, 7, 3])
    variant = np.array([0, 1, 0, 1, 0])
    found = source.read(index, variant)
    plain = [decoded(images[k]) for k in index]
    expected = torch.stack([x.flip(-1) if v else x for x, v in zip(plain, variant, strict=True)])
    torch.testing.assert_close(found.x0, expected, rtol=0, atol=1e-6)
    assert found.cond["label"].tolist() == (index % 3).tolist()
    assert source.cond["label"].classes == 3
    held = [shard.image(k) for shard in source.shards for k in range(len(shard))]
    assert held == images
    assert source.contents() == {
        f"s-{k:03}.tar{packed}": hashlib.sha256(Path(f"s-{k:03}.tar{packed}").read_bytes()).hexdigest() for k in (0, 1)
    }


def test_patterns_are_sorted_and_missing_files_told() -> None:
    for k in (10, 9, 1):
        write(Path(f"s-{k:02}.tar"), samples(k, k + 1))
    assert Tar(paths=Path("s-*.tar"), size=SIZE).names() == ["n98", "n90", "n89"]
    assert Tar(paths=(Path("s-10.tar"), Path("s-0?.tar")), size=SIZE).names() == ["n89", "n98", "n90"]
    absent = Tar(paths=Path("s-{09..11}.tar"), size=SIZE, labels=True, classes=4)
    assert absent.spec.shape == (3, SIZE, SIZE)
    assert absent.cond["label"].classes == 4
    for use in (len, Tar.names, Tar.require, lambda source: source.read(np.arange(1))):
        with pytest.raises(
            DataError, match=r"^data\.paths: there is no file 's-11.tar' \(looked in .*data\.paths="
        ) as told:
            use(absent)
        assert str(Path.cwd()) in str(told.value)
    with pytest.raises(DataError, match=r"no file matches 'x/\*\.tar'"):
        len(Tar(paths=Path("x/*.tar"), size=SIZE))
    with pytest.raises(DataError, match="named twice"):
        len(Tar(paths=(Path("s-01.tar"), Path("s-*.tar")), size=SIZE))
    with pytest.raises(DataError, match=r"^data\.paths: names no file"):
        len(Tar(paths=(), size=SIZE))


def test_an_archive_is_read_once_until_it_changes(read: list[str]) -> None:
    path = write(Path("a.tar.gz"), samples(0, 3))
    first = Tar(paths=path, size=SIZE).fingerprint()
    assert Tar(paths=path, size=SIZE).fingerprint() == first
    assert Tar(paths=path, size=4).fingerprint() != first  # another rule needs no other store
    assert read == ["a.tar.gz"]
    os.utime(path, ns=(1, 1))
    assert Tar(paths=path, size=SIZE).fingerprint() == first
    shutil.copy(path, "b.tar.gz")
    assert Tar(paths=Path("b.tar.gz"), size=SIZE).fingerprint() == first
    assert len(list(store.stores().glob("*/images.bin"))) == 1
    write(path, samples(0, 4))
    assert Tar(paths=path, size=SIZE).fingerprint() != first
    assert read == ["a.tar.gz", "a.tar.gz", "b.tar.gz", "a.tar.gz"]


def test_a_damaged_store_is_made_anew_or_told(read: list[str]) -> None:
    path = write(Path("a.tar.gz"), samples(0, 3))
    source = Tar(paths=path, size=SIZE)
    expected = source.read(np.arange(3)).x0
    (place,) = (p for p in store.stores().iterdir() if p.is_dir())
    for name in ("index.json", "images.bin"):
        whole = (place / name).read_bytes()
        for damage in (b"", whole[:-1]):
            (place / name).write_bytes(damage)
            torch.testing.assert_close(Tar(paths=path, size=SIZE).read(np.arange(3)).x0, expected, rtol=0, atol=0)
    assert len(read) == 5
    content = json.loads((place / "index.json").read_text())
    content["columns"]["label"] = [2, 2, 2]
    (place / "index.json").write_text(json.dumps(content))
    assert Tar(paths=path, size=SIZE, labels=True).read(np.arange(3)).cond["label"].tolist() == [0, 1, 2]
    data = bytearray((place / "images.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "images.bin").write_bytes(data)
    with pytest.raises(DataError, match="is damaged; remove"):
        Tar(paths=path, size=5).read(np.arange(3))


@pytest.mark.parametrize("small", [0, 10_000])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_that_changes_later(name: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SMALL", small)
    path = write(Path(name), samples(0, 3))
    source = Tar(paths=path, size=SIZE)
    expected = source.read(np.arange(3)).x0
    write(path, samples(3, 6))
    if name.endswith(".gz") or small:  # its images, or their pixels, are in the store
        torch.testing.assert_close(source.read(np.arange(3)).x0, expected, rtol=0, atol=0)
    else:
        with pytest.raises(DataError, match=r"a\.tar: was changed after it was opened"):
            source.read(np.arange(3))
    torch.testing.assert_close(
        Tar(paths=path, size=SIZE).read(np.array([0])).x0[0], decoded(picture(3)), rtol=0, atol=1e-6
    )


def test_pixels_of_small_images_are_kept_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(Path("a.tar.gz"), samples(0, 5, "jpg") | {"bad.cls": b"0", "bad.png": b"no picture"})
    keys = {"paths": path, "size": 4, "bad": 0.5, "labels": True}
    source = Tar(**keys)
    index = np.array([4, 4, 0, 2])
    images = [source.rule.read(io.BytesIO(source.shards[0].image(k))) for k in range(5)]
    expected = torch.from_numpy(np.stack([images[k] for k in index]))
    assert len(source) == 5
    with monkeypatch.context() as patch:
        patch.delattr(PixelRule, "read")
        found = source.read(index).x0
        assert torch.equal(found, expected)
        assert torch.equal(Tar(**keys).read(index).x0, expected)
    (pixels,) = store.stores().glob("*/decoded-*/pixels-00000.npy")
    held = np.load(pixels)
    assert held.dtype == np.uint8
    assert held.shape == (6, 3, 4, 4)
    damaged = bytearray(pixels.read_bytes())
    damaged[-70] ^= 1
    pixels.write_bytes(damaged)
    assert torch.equal(Tar(**keys).read(index).x0, found)
    assert np.array_equal(np.load(pixels), held)


def test_images_of_sixteen_bits_are_not_made_bytes() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000 + 7).save(stream, "PNG")
    source = Tar(paths=write(Path("a.tar.gz"), {"a.png": picture(0, size=4), "deep.png": stream.getvalue()}), size=4)
    expected = torch.arange(16.0).mul(4000).add(7).div(32767.5).sub(1).reshape(4, 4).expand(3, 4, 4)
    torch.testing.assert_close(source.read(np.array([1])).x0[0], expected, rtol=0, atol=1e-6)
    assert list(store.stores().glob("*/decoded-*/*.npy")) == []


def test_a_kill_in_the_middle_leaves_nothing_half() -> None:
    path = write(Path("a.tar.gz"), {f"k{k}.png": picture(k, size=64) for k in range(40)})
    code = (
        "import os\nfrom pathlib import Path\nfrom latentsb.data.store import open_shard\n"
        "done = 0\ndef progress(more):\n    global done\n    done += more\n    if done > 300_000: os._exit(9)\n"
        "open_shard(Path('a.tar.gz'), progress)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert [p.suffix for p in store.stores().iterdir() if p.is_dir()] == [".building"]
    assert len(open_shard(path, lambda more: None)) == 40
    assert [len(p.name) for p in store.stores().iterdir() if p.is_dir()] == [64]

    def stop(more: int) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(store.stores())
    with pytest.raises(KeyboardInterrupt):
        open_shard(path, stop)
    assert [p for p in store.stores().iterdir() if p.is_dir()] == []


def test_a_place_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))
    with pytest.raises(DiskError, match="file/latentsb/tar"):
        len(Tar(paths=write(Path("a.tar.gz"), samples(0, 1)), size=SIZE))


def test_numbers_of_images_and_classes_are_held_to() -> None:
    path = write(Path("a.tar"), samples(0, 6))
    assert len(Tar(paths=path, size=SIZE, samples=6)) == 6
    with pytest.raises(DataError, match=r"6 images, `samples: 7` asks for 7"):
        len(Tar(paths=path, size=SIZE, samples=7))
    for use in (Tar.fingerprint, lambda source: source.read(np.arange(1))):
        with pytest.raises(DataError, match=r"a\.tar/n97\.cls is 2, `classes` allows 0 to 1; .* 3 classes, or correct"):
            use(Tar(paths=path, size=SIZE, labels=True, classes=2))
    Path("names.txt").write_text("ape\nbee\n\ncat\n")
    named = Tar(paths=path, size=SIZE, labels=True, classes=Path("names.txt"))
    assert named.classes == ("ape", "bee", "cat")
    with pytest.raises(DataError, match=r"needs a member KEY\.cls"):
        Tar(paths=write(Path("b.tar"), {"a.png": picture(0)}), size=SIZE, labels=True)
    with pytest.raises(ArgumentError, match="none without `labels`"):
        Tar(paths=path, size=SIZE, classes=3)


def test_unreadable_images_are_tolerated_as_told() -> None:
    broken = samples(0, 4) | {"bad.cls": b"1", "bad.png": b"no picture"}
    path = write(Path("a.tar.gz"), broken)
    with pytest.raises(
        DataError, match=r"1 of 5 images are (.|\n)*a\.tar\.gz/bad\.png: is no image of a known format$"
    ):
        len(Tar(paths=path, size=SIZE))
    source = Tar(paths=path, size=SIZE, bad=0.2, labels=True)
    assert list(source.problems()) == ["a.tar.gz/bad.png"]
    assert source.names() == ["n99", "n98", "n97", "n96"]
    assert source.read(np.arange(4)).cond["label"].tolist() == [0, 1, 2, 0]
    assert list(Tar(paths=path, size=SIZE, bad=0.2).problems()) == ["a.tar.gz/bad.png"]  # remembered


def test_gzip_is_found_by_content_and_plain_archives_are_not_copied() -> None:
    path = write(Path("a.tar"), samples(0, 2))
    Path("b.tar").write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = Tar(paths=path, size=SIZE), Tar(paths=Path("b.tar"), size=SIZE)
    torch.testing.assert_close(plain.read(np.arange(2)).x0, packed.read(np.arange(2)).x0, rtol=0, atol=0)
    assert len(list(store.stores().glob("*/images.bin"))) == 1
