"""Autoencoders that are fitted, cut or half frozen, through the command: the same command again, the same bits."""

import logging
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from latentsb.cli import main
from latentsb.data.arrays import Digits
from latentsb.data.subset import split
from latentsb.run import Run

TRAIN = "train: {images: 64, batch: 16, log_every: 16, save_every: 16, preview_every: 1000000, warmup: 0}"
DIT = "bridge: {name: flow, network: {name: dit, patch: 1, width: 16, depth: 1, heads: 2}}"
MLP = "bridge: {name: flow, network: {name: mlp, width: 16, depth: 1}}"
TOKENS = "{name: representation, encoder: test_vit, weights: weights, size: [32, 32], width: 16, depth: 1, heads: 2}"
STAGES = "stages: [{train: autoencoder, images: 48}, {train: bridge}]"
RECIPES = {
    "vector": ("{name: pca, components: 5}", MLP, ""),
    "patches": ("{name: pca, components: 6, patch: 4, normaliser: none}", DIT, ""),
    "patch": ("{name: patch, factor: 4}", DIT, ""),
    "tokens": (TOKENS, DIT, STAGES),
}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`latentsb …` in an empty folder, where weights of a small network lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (tmp_path / "weights").mkdir()
        save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights" / "model.safetensors")

    def run_it(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        err = capsys.readouterr().err
        assert left.value.code == 0, err
        return err

    return run_it


def written(folder, kind):
    autoencoder, bridge, stages = RECIPES[kind]
    text = f"data: digits\nheld_out: 100\nautoencoder: {autoencoder}\n{bridge}\n{TRAIN}\n{stages}\npreview: {{n: 4}}\n"
    (folder / f"{kind}.yaml").write_text(text)
    return f"{kind}.yaml"


@pytest.mark.parametrize("kind", RECIPES)
def test_stopped_and_gone_on_is_as_if_never_stopped(tmp_path, command, digests, kind):
    recipe = written(tmp_path, kind)
    command("train", recipe, "-o", "runs/whole")
    command("train", recipe, "-o", "runs/parts", "train.images=32")
    command("train", recipe, "-o", "runs/parts")
    whole, parts = Run.open("runs/whole"), Run.open("runs/parts")
    assert digests(parts) == digests(whole)
    shutil.rmtree("weights")  # a run holds all that it needs
    images = whole.sample(2).images
    assert images.shape == (2, 1, 8, 8)
    assert torch.isfinite(images).all()


def test_components_are_those_of_the_training_data_and_are_found_once(tmp_path, command, monkeypatch):
    """The eigenvectors of 1,697 digits, none of them held out; what a checkpoint holds is not found again."""
    from latentsb.autoencoders.pca import PCA

    recipe = written(tmp_path, "vector")
    command("train", recipe, "-o", "runs/x", "train.images=32")
    kept = Run.open("runs/x").experiment(device="cpu").autoencoder
    train, held = split(Digits(), 100, 0)
    x = train.read(np.arange(len(train))).x0.flatten(1).double()
    assert (len(x), len(held), int(kept.count)) == (1697, 100, 1697)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    torch.testing.assert_close(kept.variances, values[:5])
    torch.testing.assert_close(kept.mean.double(), x.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.scale.double(), values[:5].sqrt(), rtol=1e-3, atol=0)  # latents lie in float16

    def never(*arguments):
        raise AssertionError("fitted again")

    monkeypatch.setattr(PCA, "fit", never)
    command("train", recipe, "-o", "runs/x")
    assert Run.open("runs/x").checkpoint().state["seen"] == 64


def test_another_run_takes_the_components_over(tmp_path, command, monkeypatch):
    from latentsb.autoencoders.pca import PCA

    command("train", written(tmp_path, "patches"), "-o", "runs/x")
    monkeypatch.setattr(PCA, "fit", lambda *arguments: pytest.fail("fitted again"))
    _, bridge, _ = RECIPES["patches"]
    text = f"data: digits\nautoencoder: {{run: runs/x, part: autoencoder}}\n{bridge}\n{TRAIN}\npreview: {{n: 4}}\n"
    (tmp_path / "other.yaml").write_text(text)
    command("train", "other.yaml", "-o", "runs/y")
    own, other = (Run.open(f"runs/{name}").experiment(device="cpu").autoencoder for name in "xy")
    assert torch.equal(own.components, other.components)


def test_the_encoder_of_a_run_is_the_file(tmp_path, command):
    """Trained two stages long, with averages of the weights: not a bit of the frozen network has moved."""
    command("train", written(tmp_path, "tokens"), "-o", "runs/x")
    held = load_file(tmp_path / "weights" / "model.safetensors")
    run = Run.open("runs/x")
    for weights in ("ema", "model"):
        trunk = run.experiment(weights, device="cpu").autoencoder.trunk.state_dict()
        same = [name for name in trunk if name != "pos_embed"]  # resampled for 32×32
        assert len(same) > 20
        assert all(torch.equal(trunk[name], held[name]) for name in same)
