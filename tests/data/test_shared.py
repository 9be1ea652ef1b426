"""Sources on real data: MNIST's arrays and a folder of photographs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.data.arrays import Npz
from latentsb.data.folder import Folder
from latentsb.data.tar import Tar

pytestmark = pytest.mark.shared
COUNT = 24


def test_mnist_arrays_are_the_file_s_bytes(shared_data: Path) -> None:
    path = shared_data / "data" / "mnist" / "mnist_test.npz"
    source = Npz(path=path, x0="x", labels="y", layout="NHW")
    items = source.read(np.arange(100))
    with np.load(path, allow_pickle=False) as held:
        pixels, classes = torch.from_numpy(held["x"][:100]), torch.from_numpy(held["y"][:100])
    torch.testing.assert_close((items.x0[:, 0] + 1) * 127.5, pixels.float(), atol=1e-4, rtol=0)
    assert torch.equal(items.cond["label"], classes.long())
    assert source.spec.shape == (1, 28, 28)


@pytest.fixture
def photographs(shared_data: Path, tmp_path: Path) -> Path:
    with tarfile.open(shared_data / "data" / "imagenet1k-sample-256" / "train-000000.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith((".jpg", ".jpeg", ".JPEG"))][:COUNT]
        for member in members:
            stream = tar.extractfile(member)
            assert stream is not None
            (tmp_path / Path(member.name).name).write_bytes(stream.read())
    return tmp_path


def test_photographs_come_in_order_and_as_they_are(photographs: Path) -> None:
    source = Folder(path=photographs, size=256, fit="exact", channels=3)
    assert len(source) == COUNT
    read = source.read(np.arange(COUNT)).x0
    for row, path in zip(read, sorted(photographs.iterdir()), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(np.float32)
        torch.testing.assert_close((row + 1) * 127.5, torch.from_numpy(pixels).movedim(2, 0), atol=1e-3, rtol=0)


def test_a_photograph_shrunk_keeps_its_mean(photographs: Path) -> None:
    # An antialiased resize by a whole factor is a weighted mean whose weights sum to one: means agree to the rounding
    # of a byte, whatever the filter, but for its reach beyond the border.
    large = Folder(path=photographs, size=256, fit="exact", channels=3).read(np.arange(COUNT)).x0
    small = Folder(path=photographs, size=64, fit="crop", channels=3).read(np.arange(COUNT)).x0
    torch.testing.assert_close(small.mean((1, 2, 3)), large.mean((1, 2, 3)), atol=0.01, rtol=0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def members(path: Path, count: int) -> dict[str, bytes]:
    """The first members of an archive, by their names."""
    with tarfile.open(path) as tar:
        found = {}
        for _ in range(count):
            member = tar.next()
            stream = tar.extractfile(member)
            found[member.name] = stream.read()
        return found


def same_pixels(source: Tar, found: dict[str, bytes], mode: str) -> None:
    images = [data for name, data in found.items() if name.endswith(".jpg")]
    x0 = source.read(np.arange(len(images))).x0
    for row, data in zip(x0, images, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert(mode)).astype(np.float32)
        expected = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).movedim(2, 0)
        torch.testing.assert_close((row + 1) * 127.5, expected, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("cache")
def test_a_shard_of_cifar10(shared_data: Path) -> None:
    folder = shared_data / "data" / "cifar10"
    source = Tar(paths=folder / "test-*.tar.gz", size=32, fit="exact", labels=True, classes=folder / "classes.txt")
    assert len(source) == 10_000
    labels = source.read(np.arange(10_000)).cond["label"]
    assert torch.bincount(labels).tolist() == [1000] * 10
    # The keys say the class too: test-cat-0123.
    assert [source.classes[k] for k in labels.tolist()] == [name.split("-")[1] for name in source.names()]
    same_pixels(source, members(folder / "test-000000.tar.gz", 40), "RGB")


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_all_of_cifar10(shared_data: Path) -> None:
    folder = shared_data / "data" / "cifar10"
    source = Tar(paths=folder / "train-{000000..000004}.tar.gz", size=32, labels=True, classes=10, samples=50_000)
    labels = source.read(np.arange(len(source))).cond["label"]
    assert torch.bincount(labels).tolist() == [5000] * 10
    # Those of the test images. Images' means vary by 0.12: of 5,000 and 10,000, this is four standard errors.
    mean = (source.read(np.arange(0, 50_000, 10)).x0.mean((0, 2, 3)) + 1) / 2
    torch.testing.assert_close(mean, torch.tensor([0.494, 0.485, 0.450]), atol=0.0085, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_photographs_in_plain_shards(shared_data: Path) -> None:
    folder = shared_data / "data" / "imagenet1k-sample-256"
    source = Tar(paths=folder / "train-*.tar", size=256, fit="exact", labels=True, classes=1000, samples=1000)
    same_pixels(source, members(folder / "train-000000.tar", 2 * COUNT), "RGB")
    assert sorted(source._own_labels().tolist()) == list(range(1000))
    assert list((source.shards[0].folder).glob("*.bin")) == []


@pytest.mark.usefixtures("cache")
def test_faces_and_their_table(shared_data: Path) -> None:
    folder = shared_data / "data" / "faces64"
    keys = {"size": 64, "fit": "exact", "channels": 1, "table": folder / "attributes.csv"}
    held = Tar(paths=folder / "val-*.tar.gz", labels="identity", **keys)
    assert len(held) == 1508
    found = held.read(np.arange(1508))
    assert found.x0.shape == (1508, 1, 64, 64)
    # The keys say the identity too: p1234_0001.
    assert found.cond["label"].tolist() == [int(name[1:5]) for name in held.names()]
    same_pixels(held, members(folder / "val-000000.tar.gz", 20), "L")
    train = Tar(paths=folder / "train-*.tar.gz", labels="identity", **keys)
    assert train.cond["label"] == held.cond["label"]
    assert sum(map(len, train.shards)) == 11_284
