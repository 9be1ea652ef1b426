"""The command `train`: what it prints, what it returns, what it leaves."""

import json
import logging

import pytest
import torch

from latentsb.cli import main
from latentsb.run import Run, load_run

DIGITS = """
data: digits
autoencoder: {name: kl, widths: [16]}
bridge: {name: flow, network: {name: dit, width: 16, depth: 1, heads: 1}}
solver: {name: euler, steps: 2}
train: {images: 64, batch: 32, log_every: 32, save_every: 64, preview_every: 64}
preview: {n: 4}
stages: [{train: autoencoder, images: 32}, {train: bridge}]
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def run_it(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        found = capsys.readouterr()
        return left.value.code, found.out, found.err

    return run_it


def test_two_stages_from_one_command_and_what_comes_next(tmp_path, call, caplog):
    (tmp_path / "small.yaml").write_text(DIGITS)
    code, out, _ = call("list", "runs")
    assert (code, "no runs" in out) == (0, True)
    code, out, _ = call("train", "small.yaml", "--dry-run")
    assert code == 0
    assert "nothing was written" in out
    assert not (tmp_path / "runs").exists()

    code, out, err = call("train", "small.yaml", "seed=1")
    assert code == 0, err
    assert "latentsb sample runs/small" in out
    assert "latentsb report runs/small" in out
    assert "reconstruct" not in out, "flow has no encoder"
    run = Run.open("runs/small")
    assert (run.path / "recipe.yaml").read_text() == DIGITS
    assert [r["stage"] for r in run.records()] == ["autoencoder", "bridge", "bridge"]
    previews = sorted(p.name for p in (run.path / "samples").iterdir())
    assert previews == [
        f"preview-{stage}-{seen:012d}.png"
        for stage, places in (("0-autoencoder", (0, 32)), ("1-bridge", (0, 64)))
        for seen in places
    ]
    autoencoder = run.experiment(device="cpu").autoencoder
    assert bool(autoencoder.fitted)
    assert list((run.path / "tensorboard").iterdir())

    with caplog.at_level(logging.INFO):
        code, _, _ = call("train", "small.yaml", "seed=1")
    assert code == 0
    assert "nothing is left to train" in caplog.text
    code, out, _ = call("list", "runs")
    assert code == 0
    assert "runs/small" in out
    code, _, err = call("train", "small.yaml", "seed=2")
    assert code == 5
    assert "seed: asked 2, trained with 1" in err
    assert "Traceback" not in err


def test_a_mistake_starts_nothing(tmp_path, call):
    (tmp_path / "bad.yaml").write_text(DIGITS.replace("batch: 32", "bach: 32"))
    code, _, err = call("train", "bad.yaml")
    assert code == 2
    assert "Did you mean 'batch'?" in err
    assert not (tmp_path / "runs").exists()


def test_a_part_comes_from_another_run(tmp_path, train, load):
    first, _ = train(tmp_path / "first", "train.images=64")
    borrowed = f"{{run: {first.path}, part: bridge.network}}"
    with pytest.raises(Exception, match="network"):
        # This bridge builds two networks from one key, so there is no part of that name to fill.
        train(tmp_path / "second", f"bridge.network={borrowed}")


def test_borrowed_weights_are_those_of_the_run(tmp_path, train, load):
    flow = "bridge={name: flow, network: {name: mlp, width: 16, depth: 1}}"
    first, _ = train(tmp_path / "first", flow, "train.images=64")
    second = f"bridge={{name: flow, dropout: 0.5, network: {{run: {first.path}, part: bridge.network}}}}"
    from latentsb.experiment import build

    ours = build(load(second)).bridge.state_dict()
    theirs = first.experiment(device="cpu").bridge.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    run, outcome = train(tmp_path / "second", second, "train.images=32")
    assert outcome.reason is None
    assert run.checkpoint().step == 2


def test_bf16_and_recomputed_activations_train(tmp_path, train):
    text = """
seed: 1
data: digits
bridge: {name: flow, network: {name: dit, width: 16, depth: 2, heads: 1}}
train: {images: 64, batch: 16, log_every: 16, lr: 1e-3, warmup: 0}
"""
    settings = ("preview.n=1", "solver={name: euler, steps: 1}")
    plain, _ = train(tmp_path / "plain", *settings, text=text)
    again, _ = train(tmp_path / "again", *settings, "train.checkpointing=true", text=text)
    assert plain.checkpoint().sha256["model"] == again.checkpoint().sha256["model"]
    half, _ = train(tmp_path / "half", *settings, "train.precision=bf16", text=text)
    assert {v.dtype for v in half.checkpoint().tensors("model").values() if v.is_floating_point()} == {torch.float32}
    losses = [[r["loss"] for r in run.records()] for run in (plain, half)]
    # bfloat16 keeps 8 bits: a mean over 16 x 64 squared errors of size one is right to about 2^-8.
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=2**-7, atol=0)
    assert losses[0] != losses[1]


def test_a_run_is_opened_and_sampled_from_python(tmp_path, train):
    flow = "bridge={name: flow, network: {name: mlp, width: 16, depth: 1}}"
    run, _ = train(tmp_path / "run", flow, "train.images=64")
    opened = load_run(run.path)
    eight, four = opened.sample(8, seed=3), opened.sample(4, seed=7)
    torch.testing.assert_close(eight.images[4:], four.images)
    assert json.loads((run.path / "log.jsonl").read_text().splitlines()[-1])["images"] == 64


KL = """
data: digits
autoencoder: {name: kl, widths: [16]}
bridge: {name: flow, network: {name: dit, width: 16, depth: 1, heads: 1}}
solver: {name: euler, steps: 2}
train: {images: 32, batch: 32, log_every: 32, preview_every: 1000000}
preview: {n: 1}
"""


def test_a_borrowed_autoencoder_is_used_resumed_and_outlives_its_run(tmp_path, call):
    (tmp_path / "first.yaml").write_text(KL + "stages: [{train: autoencoder}]\n")
    (tmp_path / "second.yaml").write_text(
        KL.replace("{name: kl, widths: [16]}", "{run: runs/first, part: autoencoder}")
    )
    assert call("train", "first.yaml")[0] == 0
    assert call("train", "second.yaml")[0] == 0
    first, second = (load_run(f"runs/{name}").experiment(device="cpu") for name in ("first", "second"))
    theirs = first.autoencoder.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in second.autoencoder.model.state_dict().items())
    assert call("train", "second.yaml", "train.images=64")[0] == 0, "it goes on"
    (tmp_path / "runs/first").rename(tmp_path / "gone")
    code, _, err = call("sample", "runs/second", "-n", "2", "--device", "cpu")
    assert code == 0, err
    assert call("report", "runs/second")[0] == 0
    code, _, err = call("train", "runs/second/resolved.yaml", "train.images=96")
    assert code == 0, err
    assert load_run("runs/second").checkpoint().step == 3


def test_a_failed_start_leaves_nothing_and_the_corrected_command_works(tmp_path, call):
    (tmp_path / "r.yaml").write_text(KL.replace("{name: kl, widths: [16]}", "identity"))
    for wrong, code in (("data={name: folder, path: nowhere, size: 8}", 3), ("train.attention=xformers", 9)):
        assert call("train", "r.yaml", wrong)[0] == code
        assert not (tmp_path / "runs/r").exists()
    assert call("train", "r.yaml")[0] == 0


def test_a_folder_in_which_nothing_was_trained_is_taken_up_by_another_recipe(tmp_path, call, caplog):
    (tmp_path / "r.yaml").write_text(KL.replace("{name: kl, widths: [16]}", "identity"))
    code, _, err = call("train", "r.yaml", "train.lr=1e30", "train.clip=null", "train.warmup=0", "train.images=640")
    assert code == 8, err
    assert list((tmp_path / "runs/r/nan_report").iterdir()), "the report that the message names is kept"
    with caplog.at_level(logging.INFO):
        code, _, err = call("train", "r.yaml", "seed=5")
    assert code == 0, err
    assert "runs/r holds nothing trained yet: it begins anew" in caplog.text
    run = Run.open("runs/r")
    assert run.recipe.seed == 5
    assert [r["step"] for r in run.records()] == [1]
    assert not (run.path / "nan_report").exists()
    code, _, err = call("train", "r.yaml", "seed=6")
    assert (code, "name another folder with -o" in err) == (5, True)


def test_a_changed_import_is_refused_and_named(tmp_path, call, recipe_text):
    source = next(line for line in recipe_text.splitlines() if line.startswith("imports")).split("[")[1].rstrip("]")
    part = tmp_path / "part.py"
    part.write_text(open(source).read().replace('register("alternating")', 'register("changing")'))
    text = recipe_text.replace(source, "part.py").replace("name: alternating", "name: changing")
    (tmp_path / "r.yaml").write_text(text.replace("images: 320", "images: 16"))
    assert call("train", "r.yaml")[0] == 0
    from latentsb.bridge import BRIDGES

    BRIDGES._classes.pop("changing")  # another start is another process
    part.write_text(part.read_text() + "\n# changed\n")
    code, _, err = call("train", "r.yaml")
    BRIDGES._classes.pop("changing", None)
    assert code == 5
    assert err.startswith("part.py: the imported file has changed since runs/r began; change it back, or begin another")
    assert err.rstrip().endswith("-o")


def test_a_run_folder_that_is_a_file_is_told(tmp_path, call):
    (tmp_path / "r.yaml").write_text(KL.replace("{name: kl, widths: [16]}", "identity"))
    code, _, err = call("train", "r.yaml", "-o", "r.yaml")
    assert code == 5
    assert err == "r.yaml is a file; a run needs a folder: -o FOLDER\n"
    code, _, err = call("train", "r.yaml", "-o", "r.yaml/run")
    assert code == 6
    assert "bytes" not in err


@pytest.mark.parametrize("wrong", ["train.bach=3", "bridge.network.heads=5"])
def test_a_mistake_is_told_by_the_first_process_alone(tmp_path, call, monkeypatch, wrong):
    (tmp_path / "r.yaml").write_text(KL.replace("{name: kl, widths: [16]}", "identity"))
    code, _, err = call("train", "r.yaml", wrong)
    assert code == 2
    assert err.splitlines()[-1] == "1 problem; nothing was started."
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("latentsb.cli.train.TELLING", 0.0)
    monkeypatch.setattr("latentsb.trainer.start_processes", lambda: torch.device("cpu"))
    assert call("train", "r.yaml", wrong) == (2, "", "")
