"""`latentsb check` without data and weights: what can be told is told, and then what to put where."""

from __future__ import annotations

import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from latentsb import errors
from latentsb.cli import main
from latentsb.networks import attention

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


def test_latents_of_both_ends_are_counted(check, tmp_path):
    for name in ("x0", "x1"):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        np.save(tmp_path / "pairs" / f"{name}.npy", np.zeros((10, 3, 8, 12), np.float32))
    (tmp_path / "r.yaml").write_text(
        "data: {name: arrays, paths: pairs, x1: x1, paired: true}\n"
        "autoencoder: {name: kl, widths: [4, 8], groups: 4, blocks: 1}\n"
        "bridge: {name: flow, network: mlp}\n"
        "stages: [{train: autoencoder}, {train: bridge}]\n"
    )
    code, out, _ = check("r.yaml")
    assert code == 0
    assert told(out, "latents of all samples") == f"{2 * 10 * (4 * 4 * 6) * 2 / 1e3:.2f} kB"  # two bytes a number
    assert told(out, "latents of 1,000 samples, both ends") == f"{2 * 1000 * (4 * 4 * 6) * 2 / 1e3:.0f} kB"


def test_what_fits_a_gpu():
    """Of nine tenths, what stays whatever is trained at once comes off first."""
    from latentsb.cli.checking import _fitting

    assert _fitting(1e9, 2e9) == "24 GB 10, 80 GB 35, 141 GB 62"
    assert _fitting(70e9, 3e9) == "24 GB none, 80 GB none, 141 GB 18"


@pytest.mark.parametrize(("ema", "kept"), [("", 1), ("train: {ema: null}\n", 0)])
def test_a_checkpoint_and_what_training_holds_besides_activations(check, tmp_path, monkeypatch, ema, kept):
    """Weights, two moments, an average if there is one; training holds gradients too. Four bytes each."""
    monkeypatch.setattr("latentsb.cli.checking.WIDEST", 0)
    (tmp_path / "r.yaml").write_text(f"data: digits\nbridge: {{name: flow, network: {{name: mlp, width: 400}}}}\n{ema}")
    code, out, _ = check("r.yaml")
    assert code == 0
    from latentsb.experiment import build
    from latentsb.recipe import Recipe

    numbers = sum(p.numel() for p in build(Recipe.load("r.yaml")).bridge.parameters())
    checkpoint, memory = re.search(r"([\d.]+) MB +([\d.]+) MB and activations", out).groups()
    assert float(checkpoint) == pytest.approx(4e-6 * (3 + kept) * numbers, rel=6e-3)
    assert float(memory) == pytest.approx(4e-6 * (4 + kept) * numbers, rel=6e-3)


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
    assert "override 'held_out=1797': held_out: 1797 cannot be held out of the 1,797 samples" in err
    assert "(held_out=179), a share (held_out=0.1) or none (~held_out)" in err


def test_none_held_out_is_not_a_number(check):
    code, _, err = check("digits", "held_out=0")
    assert code == 2
    assert "to hold none out: ~held_out" in err


@pytest.fixture
def pictures(tmp_path):
    """A recipe of four pictures in a folder, and of the same in a shard, with a table beside."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for k in range(4):
            path = tmp_path / "photos" / f"{k}.png"
            Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
            label = tmp_path / f"{k}.cls"
            label.write_text("12" if k == 2 else "3")
            shard.add(path, path.name)
            shard.add(label, label.name)
    (tmp_path / "table.csv").write_text("key,gender,kind\n" + "".join(f"{k},f,{k}\n" for k in range(3)))
    (tmp_path / "words.csv").write_text("key,gender\n" + "".join(f"{k},f\n" for k in range(4)))
    network = "network: {name: mlp, width: 8, depth: 1}"
    end = f"bridge: {{name: flow, {network}}}\ntrain: {{images: 8, batch: 4}}\n"
    (tmp_path / "photos.yaml").write_text(f"data: {{name: folder, path: photos, size: 8}}\n{end}")
    (tmp_path / "shard.yaml").write_text(f"data: {{name: tar, paths: shard.tar, size: 8}}\n{end}")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("shard.yaml", "data.labels=true", "data.classes=10"), "12"),
        (("photos.yaml", "data.table=table.csv", "data.labels=kind", "data.classes=4"), "no row for 1 of 4 samples"),
        (("photos.yaml", "data.table=words.csv", "data.attributes=[gender]"), "expected a number"),
        (("shard.yaml", "data.samples=1000"), "4 images"),
        (("photos.yaml", "held_out={name: tar, paths: none.tar, size: 8}"), "none.tar"),
    ],
)
def test_what_training_refuses_is_refused(check, pictures, asked, told):
    code, out, err = check(*asked)
    assert code == errors.DataError.exit_code
    name = asked[0].removesuffix(".yaml")
    what = "the held-out data" if "held_out" in asked[1] else "the data"
    assert err.splitlines()[0] == f"{name}: all keys are right, but {what} cannot be used:"
    assert told in err
    assert "no problems" not in out
    assert "one sample" in out
    with pytest.raises(SystemExit) as left:
        main(("train", *asked))
    assert left.value.code == errors.DataError.exit_code


def test_what_is_at_fault_is_named_and_the_rest_is_told(check, pictures):
    code, out, err = check("photos.yaml", "autoencoder={name: kl, weights: photos}")
    assert code == errors.DataError.exit_code
    assert "all keys are right, but the autoencoder's weights cannot be used:" in err
    assert told(out, "samples") == "4"
    code, out, err = check("photos.yaml", "data.table=words.csv", "data.labels=gendre")
    assert code == errors.DataError.exit_code
    assert "Did you mean 'gender'" in err
    assert "without the data" not in out + err


def test_the_next_command_trains_the_same(check, pictures):
    code, out, _ = check("photos.yaml", "held_out={name: folder, path: photos, size: 8}", "train.images=4")
    assert code == 0
    last = "next: latentsb train photos.yaml 'held_out={name: folder, path: photos, size: 8}' train.images=4"
    assert out.splitlines()[-1] == last


def test_the_backend_of_attention_is_told_once_the_data_are_ready(check, pictures, caplog):
    caplog.set_level("INFO")
    attention._log_once.cache_clear()
    attention._decide.cache_clear()
    network = "bridge.network={name: dit, patch: 4, width: 16, depth: 1, heads: 2}"
    for more, told in (("data.path=nowhere", 0), ("train.images=4", 1)):
        with pytest.raises(SystemExit) as left:
            main(("train", "photos.yaml", network, more, "-o", f"runs/{told}"))
        assert bool(left.value.code) == (not told)
        assert sum(message.startswith("attention: ") for message in caplog.messages) == told
