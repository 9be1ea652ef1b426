"""Pairs of folders and shards, up to their latents."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.cache import LatentCache
from latentsb.data.stream import Stream
from latentsb.errors import DataError
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

NAMES = ("b", "d/c", "a", "e")


class Mean(Autoencoder):
    """One latent, the mean of the image."""

    def __init__(self, images: Spec) -> None:
        super().__init__(images, Spec((1, 1, 1)))
        self.weight = torch.nn.Parameter(torch.ones(()))

    def moments(self, images: Tensor) -> Moments:
        return Moments(self.weight * images.mean((1, 2, 3), keepdim=True), None)

    def raw_decode(self, raw: Tensor) -> Tensor:
        return raw.expand(-1, *self.images.shape)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return Loss(torch.zeros(len(batch)))


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The x0 called NAMES[k] is of grey level 10 k, and its partner of 10 k + 100."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for end, base, ending in (("sharp", 0, "png"), ("blurred", 100, "bmp")):
        for k, name in enumerate(NAMES):
            path = Path(end, name).with_suffix("." + ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), base + 10 * k).save(path)
        with tarfile.open(f"{end}.tar.gz", "w:gz") as tar:
            for name in sorted(NAMES):
                tar.add(f"{end}/{name}.{ending}", f"{name}.{ending}")


def recipe(near: str, far: str) -> Recipe:
    def part(end: str, word: str) -> str:
        where = f"path: {end}" if word == "folder" else f"paths: {end}*.tar.gz"
        return f"{{name: {word}, {where}, size: 4, channels: 1, flip: true}}"

    text = f"data:\n  name: paired\n  x0: {part('sharp', near)}\n  x1: {part('blurred', far)}\n"
    bridge = "bridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}\n"
    return Recipe.parse(text + bridge, label="pairs")


@pytest.mark.parametrize(("near", "far"), [("folder", "folder"), ("tar", "tar"), ("folder", "tar"), ("tar", "folder")])
def test_partners_stay_together_up_to_their_latents(near: str, far: str) -> None:
    source = recipe(near, far).data.build()
    assert sorted(source.names() or ()) == sorted(NAMES)
    cache = LatentCache.open_or_build(Path("latents"), source, Mean(source.spec))
    assert cache.paired
    scale = 255.0 / 20.0  # latents are means in [-1, 1]: this is the distance of ten grey levels
    half = scale * 2.0**-11  # they are stored in half precision, which rounds numbers up to 1 by so much
    assert isinstance(cache, LatentCache)
    batch = Stream(cache, seed=3, batch=8, aligned=True).batch(0)
    assert batch.x0 is not None
    assert batch.x1 is not None
    raw0, raw1 = (x / cache.inverse + cache.shift for x in (batch.x0, batch.x1))
    level = ((raw0.flatten() + 1) * scale).round()
    torch.testing.assert_close(((raw0.flatten() + 1) * scale), level, rtol=0, atol=half)
    assert sorted(level.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close((raw1 - raw0).flatten() * scale, torch.full((8,), 10.0), rtol=0, atol=2 * half)


def test_partners_in_another_order_are_matched_by_name_or_refused() -> None:
    with tarfile.open("blurred.tar.gz", "w:gz") as tar:
        for name in NAMES:  # not in the order of the names
            tar.add(f"blurred/{name}.bmp", f"{name}.bmp")
    source = recipe("folder", "tar").data.build()
    found = source.read(np.arange(4))
    assert found.x1 is not None
    torch.testing.assert_close((found.x1 - found.x0)[:, 0, 0, 0] * 127.5, torch.full((4,), 100.0), rtol=0, atol=1e-3)
    with tarfile.open("blurred.tar.gz", "w:gz") as tar:
        tar.add("blurred/a.bmp", "a.bmp")
    with pytest.raises(DataError, match="3 samples have no partner; the first is 'b' of x0"):
        len(recipe("tar", "tar").data.build())
    for file in ("sharp.tar.gz", "blurred.tar.gz"):
        Path(file).unlink()
    absent = recipe("tar", "tar").data.build()
    assert absent.spec.shape == (1, 4, 4)
    for use in (len, type(absent).require):
        with pytest.raises(DataError, match=r"^data\.x0\.paths: no file matches 'sharp\*\.tar\.gz'.*data\.x0\.paths=…"):
            use(absent)


def test_absent_folders_are_told_by_their_own_keys() -> None:
    held = {"name": "folder", "size": 4, "path": "nowhere"}
    bridge = "bridge: {name: flow, network: mlp}"
    made = Recipe.parse(f"data: digits\n{bridge}\nheld_out: {{name: paired, x0: {held}, x1: {held}}}", label="test")
    with pytest.raises(DataError, match=r"^nowhere: there is no such folder .*: held_out\.x0\.path=…$"):
        len(made.held_out.build())
