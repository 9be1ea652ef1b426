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
