"""The recipes for images, shrunk, on made-up images in the form that each one asks for."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from latentsb.autoencoder import AUTOENCODERS
from latentsb.bridge import EncodingBridge
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.recipe.sources import shipped
from latentsb.run import Run
from latentsb.tensors import Spec
from latentsb.trainer import Trainer

SMALL = "bridge.network.width=16 bridge.network.depth=1 bridge.network.heads=2 solver.steps=2 preview.n=2".split()
SMALL += "train.batch=8 train.log_every=8 train.save_every=16 train.preview_every=32 train.warmup=0".split()
CODES = "bridge.z_dim=4 bridge.encoder={name: conv, width: 8, blocks: 1}".split(" ", 1)
CODES += ["bridge.decoder={name: conv, width: 8, blocks: 1}"]
LATENTS = ["autoencoder.weights=vae", "held_out=2"]
TINY = ["autoencoder.weights=tiny", "train.precision=fp32"]
# Recipe, side of its images, shape of its latents, what shrinks it, numbers of training and held-out images made below.
RECIPES = {
    "ffhq256": (256, (4, 32, 32), [*CODES, *LATENTS], 6, 2),
    "ffhq256_flow": (256, (4, 32, 32), LATENTS, 6, 2),
    "cifar10_flow": (32, (32, 4, 4), TINY, 24, 8),
    "cifar10_dbae": (32, (32, 4, 4), [*CODES, *TINY], 24, 8),
    "faces64_dbae": (64, (3, 64, 64), CODES, 11, 1),
}


def picture(k: int, side: int) -> bytes:
    rng = np.random.default_rng(k)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((side, side)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for k in numbers:
            for name, content in ((f"{k:05d}.png", picture(k, 32)), (f"{k:05d}.cls", str(k % 10).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def folder(path: Path, sides: list[int]) -> None:
    path.mkdir(parents=True)
    for k, side in enumerate(sides):
        (path / f"{k}.png").write_bytes(picture(k, side))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `data` as the recipes name it, and weights of a small autoencoder in place of a large one."""
    from diffusers.models import AutoencoderKL

    root = tmp_path_factory.mktemp("place")
    shard(root / "data/cifar10/train-000000.tar.gz", range(12))
    shard(root / "data/cifar10/train-000001.tar.gz", range(12, 24))
    shard(root / "data/cifar10/test-000000.tar.gz", range(24, 32))
    folder(root / "data/ffhq256", [256] * 6 + [300] * 2)
    folder(root / "data/faces64/someone", [64] * 10 + [70] * 2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    tiny = AUTOENCODERS["taef2"](Spec((3, 32, 32)))
    (root / "tiny").mkdir()
    save_file(tiny.model.state_dict(), root / "tiny" / "taef2.safetensors")
    AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **blocks).save_pretrained(root / "vae")
    return root


def train(name: str, path: str, *overrides: str) -> Run:
    recipe = Recipe.load(name, overrides)
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return run


def test_every_recipe_has_a_line_about_it_and_one_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert RECIPES.keys() <= shipped().keys()
    for name in shipped():
        assert f"| `{name}` |" in page
        assert Recipe.load(name).about


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_resumes_samples_and_reconstructs(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    monkeypatch.setattr("latentsb.roundtrip.FLOOR", math.inf)  # random weights would rightly be refused
    side, latent, overrides, n, held = RECIPES[name]
    whole = train(name, str(tmp_path / "whole"), *SMALL, *overrides, "train.images=32")
    train(name, str(tmp_path / "parts"), *SMALL, *overrides, "train.images=16")
    parts = train(name, str(tmp_path / "parts"), *SMALL, *overrides, "train.images=32")
    assert dict(parts.checkpoint().sha256) == dict(whole.checkpoint().sha256)
    logged = [r["held_out_loss"] for r in whole.records() if "held_out_loss" in r]
    assert len(logged) == 1
    assert 0 < logged[0] < 100
    shared = [path for path in tmp_path.glob("latents/*") if path.is_dir()]
    assert len(shared) == (0 if latent == (3, side, side) else 2)  # training and held-out, once for both runs
    assert not (whole.path / "latents").exists()
    run = Run.open(whole.path)
    experiment = run.experiment(device="cpu")
    assert (len(experiment.source), len(experiment.held)) == (n, held)
    assert experiment.autoencoder.latent.shape == latent
    assert experiment.source.variants == 2
    assert experiment.held.variants == 1
    assert run.sample(2, seed=0).images.shape == (2, 3, side, side)
    if name == "cifar10_flow":
        items = experiment.held.read(np.arange(8))
        assert items.cond["label"].tolist() == [k % 10 for k in range(24, 32)]
        assert run.sample(1, seed=0, label=3, guidance=2.0).images.isfinite().all()
    if issubclass(run.recipe.bridge.cls, EncodingBridge):
        found = run.reconstruct(experiment.held.read(np.arange(1)).x0)
        assert found.bridge.shape == (1, 3, side, side)
        assert found.bridge.isfinite().all()


@pytest.mark.parametrize(
    "given", [["autoencoder={name: taef2, weights: x}"], ["autoencoder.name=taef2", "autoencoder.weights=x"]]
)
def test_another_autoencoder_replaces_the_pretrained_one(given):
    recipe = Recipe.load("ffhq256", [*SMALL, *CODES, *given])
    assert recipe.autoencoder.name == "taef2"
    assert build(recipe, weights=False).autoencoder.latent.shape == (32, 32, 32)


def test_our_autoencoder_trains_and_a_bridge_lives_in_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    run = train("cifar10_kl", str(tmp_path / "own"), *SMALL, "train.images=16")
    codec = Run.open(run.path).experiment(device="cpu").autoencoder
    assert codec.latent.shape == (8, 8, 8)
    taken = Recipe.load("cifar10_flow", [*SMALL, f"autoencoder={{run: {run.path}, part: autoencoder}}"])
    assert build(taken).autoencoder.fingerprint() == codec.fingerprint()
