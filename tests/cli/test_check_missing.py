"""`latentsb check` without data and weights: what can be told is told, and then what to put where."""

from __future__ import annotations

import re

import pytest

from latentsb import errors
from latentsb.cli import main

QUICK = ("bridge.network.depth=1", "bridge.encoder.width=8", "bridge.decoder.width=8")


@pytest.fixture
def check(capsys, tmp_path, monkeypatch):
    """Check a recipe in an empty folder without weights; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path / "weights"))

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(("check", *arguments))
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return command


def told(out: str, what: str) -> str:
    """The rest of the line that begins with these words."""
    found = re.search(rf"^ +{re.escape(what)}  +(.+?) *$", out, re.MULTILINE)
    assert found, what
    return found[1]


def test_shapes_parameters_memory_and_disk_are_told_without_data_and_weights(check):
    code, out, err = check("ffhq256", *QUICK)
    assert code == errors.DataError.exit_code
    assert "no such folder" in err
    assert "data/ffhq256" in err
    assert "latentsb fetch sd-vae-ft-mse" in err
    assert "Traceback" not in err
    assert told(out, "one sample") == "3 × 256 × 256"
    assert told(out, "one latent").startswith("4 × 32 × 32 (48 times fewer")
    assert told(out, "samples").startswith("not known")
    assert told(out, "samples held out") == "1,000"
    # 1,000 samples twice, 4 · 32 · 32 numbers of two bytes each
    assert told(out, "latents of 1,000 samples, and their mirror images") == f"{2 * 1000 * 4096 * 2 / 1e6:.1f} MB"
    assert re.search(r"autoencoder +KL +83\.65 M", out)  # as Stable Diffusion's has
    line = re.search(r"^ bridge +130,600,000 +1,020,313 .*$", out, re.MULTILINE)[0]
    assert re.search(r"[\d.]+ MB +[\d.]+ GB on the .*, [\d.]+ GB of it for 128", line)  # a checkpoint; memory


@pytest.mark.slow
def test_the_recipe_itself(check):
    code, out, _ = check("ffhq256")
    assert code == errors.DataError.exit_code
    assert re.search(r"bridge\.network +Transformer +1(29|30)[\d.]* M", out)  # B/2: 130 million
    assert "activations" not in out


def test_held_out_data_that_are_missing_are_told_by_their_own_key(check):
    code, out, err = check("cifar10_flow")
    assert code == errors.DataError.exit_code
    assert re.search(r"train-\*\.tar\.gz.*data\.paths=", err)
    assert re.search(r"held_out.*test-\*\.tar\.gz.*held_out\.paths=", err)
    assert told(out, "condition 'label'") == "one number, 10 classes"


def test_with_everything_there_nothing_is_missing(check):
    code, out, err = check("digits", "held_out=0.1")
    assert (code, err) == (0, "")
    assert told(out, "samples") == "1,617"
    assert told(out, "samples held out") == "180"


def test_more_held_out_than_there_is_is_a_mistake_of_the_recipe(check):
    code, _, err = check("digits", "held_out=1797")
    assert code == 2
    assert "held_out: 1797 cannot be held out of the 1,797 samples" in err
