"""Pretrained weights in recipes: names and paths, what resolved.yaml says, and that a run needs them once."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentsb.autoencoder import AUTOENCODERS
from latentsb.autoencoders.kl import KL
from latentsb.autoencoders.taef2 import TAEF2
from latentsb.errors import DataError, RecipeError
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Spec
from latentsb.trainer import Trainer
from latentsb.weights import KNOWN, files_of, home, place, read

DIGITS = """
seed: 3
data: digits
bridge: {name: flow, network: {name: dit, patch: 2, width: 16, depth: 1, heads: 1}}
train: {images: 32, batch: 16, warmup: 0, preview_every: 1000000}
"""
PHOTOGRAPHS = """
data: {name: folder, path: nowhere, size: 256, channels: 3}
bridge: {name: flow, network: {name: dit, patch: 2, width: 16, depth: 1, heads: 1}}
train: {images: 32, batch: 16, warmup: 0}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small KL autoencoder as diffusers saves it; of random weights, which a run would rightly refuse."""
    monkeypatch.setattr("latentsb.roundtrip.FLOOR", math.inf)
    torch.manual_seed(0)
    path = tmp_path / "vae"
    KL(Spec((1, 8, 8)), widths=(8, 16), groups=4, latent_channels=3).model.save_pretrained(path)
    return path


def test_place_of_names_and_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    assert home() == tmp_path
    assert place("taef2") == tmp_path / "taef2"
    assert place("./taef2") == place(Path("taef2")) == Path("taef2")
    monkeypatch.setenv("LATENTSB_WEIGHTS", "")
    assert home() == Path.home() / ".cache" / "latentsb" / "weights"


def test_missing_weights_name_files_place_and_both_cures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    message = (
        rf"weights 'sd-vae-ft-mse': found no config.json and diffusion_pytorch_model.safetensors in "
        rf"{tmp_path}/sd-vae-ft-mse; run 'latentsb fetch sd-vae-ft-mse', or put them there"
    )
    with pytest.raises(DataError, match=message):
        files_of("sd-vae-ft-mse", KNOWN["sd-vae-ft-mse"].files)
    with pytest.raises(DataError, match=r"in \S*taef3; .* Did you mean 'taef2'\?"):
        files_of("taef3", ("*.safetensors",))
    for name in ("a_encoder.safetensors", "b_encoder.safetensors", "a_decoder.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"may be a_encoder.safetensors or b_encoder.safetensors; keep one"):
        files_of(tmp_path, ("*_encoder.safetensors", "*_decoder.safetensors"))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "taef2.pth")
    with pytest.raises(DataError, match="only safetensors are read, no pickles"):
        read(tmp_path / "taef2.pth")


@pytest.mark.parametrize(
    ("autoencoder", "shape", "keys"),
    [
        (
            "{name: kl, weights: sd-vae-ft-mse}",
            (4, 32, 32),
            {"widths": [128, 256, 512, 512], "blocks": 2, "groups": 32},
        ),
        ("taesd", (4, 32, 32), {"latent_channels": 4}),
        ("{name: taesd, weights: taef1}", (16, 32, 32), {"latent_channels": 16}),
        ("taef2", (32, 32, 32), {"weights": "taef2"}),
    ],
)
def test_shapes_are_known_without_weights_and_resolved(
    autoencoder: str, shape: tuple[int, ...], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    recipe = Recipe.parse(f"{PHOTOGRAPHS}\nautoencoder: {autoencoder}", label="test")
    resolved = recipe.resolved()["autoencoder"]
    assert {name: resolved[name] for name in keys} == keys
    again = Recipe.parse(recipe.resolved_text(), label="resolved")
    assert again.resolved() == recipe.resolved()
    with torch.device("meta"):
        assert recipe.autoencoder.build(Spec((3, 256, 256))).latent.shape == shape


def test_weights_are_read_where_they_are_needed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    recipe = Recipe.parse(f"{PHOTOGRAPHS}\nautoencoder: taef2", label="test")
    assert build(recipe, weights=False).autoencoder.latent.shape == (32, 32, 32)
    with pytest.raises(DataError, match="latentsb fetch taef2"):
        build(recipe)


def test_contradictions_stand_at_their_key(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"test:\d+:\d+: autoencoder\.blocks: found 1; the weights 'sd-vae-ft-mse'"):
        Recipe.parse(f"{PHOTOGRAPHS}\nautoencoder: {{name: kl, weights: sd-vae-ft-mse, blocks: 1}}", label="test")
    with pytest.raises(RecipeError, match=r"test:\d+:\d+: autoencoder\.weights: 'taesd' belongs to 'taesd', not to"):
        Recipe.parse(f"{PHOTOGRAPHS}\nautoencoder: {{name: kl, weights: taesd}}", label="test")
    recipe = Recipe.parse(f"{DIGITS}\nautoencoder: {{name: taef2}}", label="test")
    with pytest.raises(RecipeError, match="for grey images write channels: 3 in the data"):
        build(recipe)


def test_a_run_outlives_the_folder_of_its_weights(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.parse(f"{DIGITS}\nautoencoder: {{name: kl, weights: {folder}}}", label="test")
    assert recipe.resolved()["autoencoder"]["widths"] == [8, 16]
    run = Run.create(recipe, tmp_path / "run")
    experiment = build(recipe)
    stored = experiment.autoencoder.fingerprint()
    assert stored != build(recipe, weights=False).autoencoder.fingerprint()
    Trainer(run, experiment, device="cpu").fit()
    run.close()
    before = Run.open(tmp_path / "run").sample(2)
    shutil.rmtree(folder)
    opened = Run.open(tmp_path / "run")
    assert opened.experiment().autoencoder.fingerprint() == stored
    assert torch.equal(opened.sample(2).images, before.images)
    with pytest.raises(DataError, match="vae"):
        build(opened.recipe)
    from latentsb.cli.train import checked

    assert checked(opened.recipe, tmp_path / "run", torch.device("cpu")).autoencoder.latent.shape == (3, 4, 4)


def test_weights_of_a_run_s_autoencoder_come_from_the_run(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe.parse(f"{DIGITS}\nautoencoder: {{name: kl, weights: {folder}}}", label="test")
    run = Run.create(recipe, tmp_path / "run")
    experiment = build(recipe)
    with torch.no_grad():
        next(iter(experiment.autoencoder.parameters())).add_(1.0)
    Trainer(run, experiment, device="cpu").fit()
    run.close()
    shutil.rmtree(folder)
    borrowed = f"{DIGITS}\nautoencoder: {{run: {tmp_path / 'run'}, part: autoencoder}}"
    found = build(Recipe.parse(borrowed, label="test")).autoencoder
    assert found.fingerprint() == experiment.autoencoder.fingerprint()


def test_another_folder_than_known_weights_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    (tmp_path / "taef2").mkdir()
    save_file({"encoder.0.weight": torch.zeros(1)}, tmp_path / "taef2" / "taef2.safetensors")
    with pytest.raises(
        DataError, match=r"taef2\.safetensors does not fit: encoder\.0\.bias is missing; .* and \d+ more"
    ):
        TAEF2(Spec((3, 64, 64))).load()


def test_the_page_names_every_autoencoder_and_its_lines_bind() -> None:
    page = (Path(__file__).parents[1] / "docs" / "autoencoders.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in AUTOENCODERS.names())
    lines = page.split("```yaml\n")[1].split("```")[0].splitlines()
    assert len(lines) > 6
    for line in lines:
        if "run:" not in line:
            Recipe.parse(f"{PHOTOGRAPHS}\n{line}", label="page")
