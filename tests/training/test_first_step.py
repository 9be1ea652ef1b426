"""A folder of photographs, one command, a first step in latents; what the commands tell of the cache on the way."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from latentsb import encoding
from latentsb.autoencoders.kl import KL
from latentsb.cli import main
from latentsb.errors import CacheError
from latentsb.run import Run

TEXT = """
data: {{name: folder, path: {folder}, size: 16, flip: true}}
autoencoder: {{name: kl, widths: [8, 8], groups: 4, attention: false}}
latents: {{name: uint8, posterior: true}}
bridge: {{name: flow, network: {{name: mlp, width: 8, depth: 1}}}}
solver: {{name: euler, steps: 2}}
train: {{images: 32, batch: 16, preview_every: 1_000_000}}
stages: [{{train: autoencoder}}, {{train: bridge}}]
"""


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A recipe over a folder of thirty JPEGs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(30):
        colours = Image.fromarray(rng.integers(0, 255, (2, 2, 3), dtype=np.uint8))
        colours.resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")
    return TEXT.format(folder=folder)


def told(capsys, *arguments):
    """Exit code, output and errors of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


def test_from_photographs_to_a_first_step_and_to_what_the_cache_holds(tmp_path, train, text, capsys):
    run, outcome = train(tmp_path / "run", text=text)
    assert (outcome.reason, outcome.step) == (None, 4)
    manifest = json.loads((run.path / "latents" / "cache.json").read_text())
    assert manifest["made_of"]["dtype"] == "uint8"
    assert {name.split("-000")[0] for name in manifest["files"]} == {
        f"x0-{moment}-{side}{affine}" for moment in ("mean", "std") for side in (0, 1) for affine in ("", "-affine")
    }
    code, out, _ = told(capsys, "cache", "info", run.path)
    shown = re.sub(r"\s+", " ", out)
    worst = max(manifest["lost"]["mean"]["rms"])
    assert code == 0
    assert 0 < worst < 0.02  # 255 steps over some ten standard deviations
    largest = max(manifest["lost"]["mean"]["largest"])
    assert f"error of the mean as kept largest {largest:.2g}, rms {worst:.2g} of" in shown
    for part in ("latents 30 x0, each also mirrored", "uint8, mean and standard deviation", "4 × 8 × 8", "PSNR of 8"):
        assert part in shown
    code, out, _ = told(capsys, "cache", "verify", run.path / "latents")
    assert (code, out.rstrip().endswith("whole")) == (0, True)
    damaged = run.path / "latents" / "x0-std-1-00000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x07")
    code, _, err = told(capsys, "cache", "verify", run.path)
    assert code == CacheError.exit_code
    assert "x0-std-1-00000.npy is absent or was changed; remove the folder to encode again" in err
    code, _, err = told(capsys, "cache", "info", tmp_path / "photos")
    assert (code, "there is no latent cache" in err) == (CacheError.exit_code, True)


def test_a_decoder_that_changes_between_two_starts_stops_the_second_one(tmp_path, train, text, monkeypatch):
    train(tmp_path / "run", text=text)
    decode = KL.raw_decode
    monkeypatch.setattr(KL, "raw_decode", lambda self, raw: 1 + decode(self, raw))
    with pytest.raises(CacheError, match=r"2 images decoded from the latent cache .* the decoder is another one"):
        train(tmp_path / "run", "stages=[{train: autoencoder}, {train: bridge, images: 64}]", text=text)


def test_scaling_twice_stops_before_the_first_step(tmp_path, train, text, monkeypatch):
    moments = encoding._moments
    monkeypatch.setattr(encoding, "_moments", lambda *arguments: [0.18215 * raw for raw in moments(*arguments)])
    with pytest.raises(CacheError, match=r"latents differ by .* remove that folder to encode again"):
        train(tmp_path / "run", text=text)
    assert Run.open(tmp_path / "run").checkpoint().state["stage"] == 0
