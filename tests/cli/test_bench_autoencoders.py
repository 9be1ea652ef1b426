"""The bench of autoencoders: figures by another way, who is measured in full, and what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from latentsb.autoencoder import AUTOENCODERS
from latentsb.bench.autoencoders import NO_WEIGHTS, AutoencoderBench, Images, asked, data_of, known, photographs, rows
from latentsb.data.arrays import ArraySource, Digits
from latentsb.errors import RecipeError
from latentsb.experiment import build
from latentsb.metrics.similarity import mse, psnr
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer
from latentsb.weights import KNOWN

SMALL = "{name: kl, widths: [4, 4], groups: 2, attention: false}"
RECIPE = f"""
data: digits
autoencoder: {SMALL}
bridge: {{name: flow, network: mlp}}
stages: [{{train: autoencoder}}]
train: {{images: 64, batch: 16, lr: 1e-2, ema: {{half_life: 16}}, warmup: 0}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe.parse(RECIPE, label="small")
    run = Run.create(recipe, tmp_path_factory.mktemp("runs") / "small")
    Trainer(run, build(recipe), device="cpu").fit()
    run.close()
    return run.path


def of(*texts, images, n=40, seeds=(0,)):
    told = []
    found = rows(AutoencoderBench(images=n, device="cpu"), [asked(str(t)) for t in texts], images, seeds, told.append)
    return list(found), told


def test_a_run_is_measured_with_its_averaged_weights(run):
    images = data_of("digits", 64)
    [row], told = of(run, images=images)
    assert (told, row.name) == ([], "small")
    x, rest = images.chosen(40, 0)
    codec = Run.open(run).experiment(device="cpu").autoencoder
    with torch.no_grad():
        made = codec.decode(codec.encode(x))
    assert row.mean("psnr") == pytest.approx(psnr(made, x).double().mean().item(), abs=1e-4)
    assert row.error("psnr") == pytest.approx(psnr(made, x).double().std().item() / 40**0.5, rel=1e-4)
    assert row.mean("mse") == pytest.approx(mse(made, x).double().mean().item() / 4, rel=1e-5)
    assert row.mean("bits") > 0
    assert row.mean("bytes") == 2 * codec.latent.numel
    assert min(row.mean("encode"), row.mean("decode")) > 0
    assert len(rest) == len(Digits()) - 40
    raw = Run.open(run).experiment("model", device="cpu").autoencoder
    assert raw.fingerprint() != codec.fingerprint()


def test_closed_forms_are_fitted_to_other_images_than_are_measured():
    """Of images along one line, whose mean is 0: one component keeps all, of the line that it has seen."""
    rng = np.random.default_rng(0)
    along = torch.from_numpy(rng.uniform(-0.1, 0.1, 60)).float()
    line = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    images = Images("line", ArraySource(along[:, None, None, None] * line), None, {})
    [whole, patched], _ = of("{name: pca, components: 1}", "{name: pca, patch: 4, components: 1}", images=images)
    assert whole.mean("mse") < 1e-12
    assert whole.notes["latent"] == "1"
    assert patched.mean("mse") < 1e-12
    assert patched.notes["latent"] == "1×1×1"
    x, rest = images.chosen(40, 0)
    assert (len(x), len(rest)) == (30, 30)
    seen = {round(v, 6) for v in along[rest].tolist()}
    assert not seen & {round(v, 6) for v in (x[:, 0, 3, 3]).tolist()}
    noise = Images("noise", ArraySource(0.1 * torch.from_numpy(rng.normal(size=(400, 1, 4, 4))).float()), None, {})
    [half], _ = of("{name: pca, components: 8}", images=noise, n=200)
    # Of unseen noise of variance 0.01, eight of sixteen directions are lost: 0.005 / 4 on [0, 1].
    assert half.mean("mse") == pytest.approx(0.00125, abs=4 * 0.00125 * (2 / (200 * 8)) ** 0.5)


def test_seeds_choose_images_and_errors_are_over_them(run):
    images = data_of("digits", 64)
    [row], _ = of(run, images=images, seeds=(0, 1, 2))
    [alone], _ = of(run, images=images, seeds=(1,))
    assert row.seeds == (0, 1, 2)
    assert row.figures["psnr"][1] == alone.mean("psnr")
    assert row.error("psnr") == pytest.approx(np.std(row.figures["psnr"], ddof=1) / 3**0.5)


def test_without_weights_only_the_cost_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    images = data_of(None, 16)
    assert len(images.source) == 2 * (427 // 16) * (640 // 16)
    found, told = of("taef2", SMALL, "patch", images=images, n=20)
    missing, untrained, patch = found
    for row, shape in ((missing, "32×2×2"), (untrained, "4×8×8")):
        assert row.notes == {"latent": shape, "psnr": NO_WEIGHTS}
        assert {"encode", "decode", "bytes", "numbers"} == row.figures.keys()
    assert missing.mean("bytes") == 2 * 128
    assert len(told) == 1
    assert "taef2: no weights here: weights 'taef2': found no" in told[0]
    assert patch.mean("mse") == 0
    assert patch.notes["psnr"] == "lossless"
    assert patch.notes["bits"] == "none"


def test_all_words_are_known_and_each_published_name_that_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    words = {candidate.part.name for candidate in known()}
    whole = set(AUTOENCODERS) - {"identity"}
    # A word is left out only where a recipe must say more than the word.
    for word in whole - words:
        with pytest.raises(RecipeError, match="missing key"):
            asked(word)
    names = [candidate.name for candidate in known()]
    assert len(names) == len(set(names))
    assert {"sd-vae-ft-mse", "taesd", "taef2", "patch", "pca, 32 per 8×8"} <= set(names)
    assert "sdxl-vae" not in names
    (tmp_path / "sdxl-vae").mkdir()
    for file in KNOWN["sdxl-vae"].files:
        (tmp_path / "sdxl-vae" / file).touch()
    names = [candidate.name for candidate in known()]
    assert "sdxl-vae" in names
    assert "sd-vae-ft-mse" not in names


def test_tiles_are_those_of_the_photographs():
    from sklearn.datasets import load_sample_images

    first = torch.from_numpy(load_sample_images().images[0].copy()).movedim(2, 0).float() / 127.5 - 1
    tiles = photographs(64)
    assert len(tiles) == 2 * 6 * 10
    torch.testing.assert_close(tiles.read(np.array([11])).x0[0], first[:, 64:128, 64:128])
    with pytest.raises(RecipeError, match="--size: found 428, expected at most a side of the photographs, 427×640"):
        photographs(428)


def test_the_command(commands, tmp_path, run):
    give = commands(tmp_path)
    code, out, _ = give("bench", "autoencoders", "patch", run, "--data", "digits", "-n", "12", "-o", "b.json")
    assert code == 0
    assert "lossless" in out
    content = json.loads((tmp_path / "b.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["patch", "small"]
    assert content["protocol"]["data"]["name"] == "digits"
    assert content["rows"][1]["figures"]["psnr"]["values"][0] > 5
    code, _, err = give("bench", "autoencoders", "taef3")
    assert code == 2
    assert "no autoencoder is called 'taef3'. Did you mean 'taef2'?" in err
    code, _, err = give("bench", "autoencoders", "taef2", "--data", "{name: gaussian, n: 20}")
    assert code == 2
    assert "expected images, found samples of shape (2,)" in err


def test_what_does_not_fit_is_an_error_where_it_was_asked_for(run):
    with pytest.raises(RecipeError, match="60×60; nearest that fit: 56×56 and 64×64"):
        of("taef2", images=data_of(None, 60))
