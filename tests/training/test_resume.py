"""Resuming: the same command again gives the same bits, or refuses."""

import json
import logging
import os
import re
import signal
from importlib.metadata import version

import pytest
import torch

from latentsb.errors import CheckpointError, LockedError
from latentsb.run import Run


def test_longer_training_is_the_long_training(tmp_path, train, losses, digests):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", "train.images=160")
    parts, outcome = train(tmp_path / "parts")
    assert outcome.step == 20
    assert outcome.reason is None
    assert digests(whole).keys() == {"model", "optimizer", "ema-power-0.1"}
    assert digests(parts) == digests(whole)
    # The shorter training ends with a line of its own, so the line after it is the mean of fewer steps.
    by_step = {r["step"]: r for r in losses(parts)}
    assert by_step.keys() == {3, 6, 9, 10, 12, 15, 18, 20}
    assert all(by_step[r["step"]] == r for r in losses(whole) if r["step"] != 12)


@pytest.mark.parametrize("place", [0, 16, 112, 304])
def test_sigterm_saves_at_that_very_step_and_nothing_changes(tmp_path, train, losses, digests, place):
    whole, _ = train(tmp_path / "whole", f"bridge.terminate={10**9}")
    parts, outcome = train(tmp_path / "parts", f"bridge.terminate={place}")
    assert outcome.reason == "SIGTERM"
    assert outcome.exit_code == 143
    assert outcome.step == place // 16 + 1 == parts.checkpoint().step
    assert parts.checkpoint().state["seen"] == place + 16
    # The signal comes from the bridge, whose recipe may not change: the second start passes the place.
    again, outcome = train(tmp_path / "parts", f"bridge.terminate={place}")
    assert outcome.reason is None
    assert digests(again) == digests(whole)
    assert losses(again) == losses(whole)


def test_ctrl_c_and_time_leave_in_the_same_way(tmp_path, train, monkeypatch):
    from latentsb.update import Update

    step = Update.step

    def interrupted(self, batch, phases, seen, asked):
        if seen == 48:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, phases, seen, asked)

    monkeypatch.setattr(Update, "step", interrupted)
    run, outcome = train(tmp_path / "a")
    assert (outcome.reason, outcome.exit_code, run.checkpoint().step) == ("SIGINT", 130, 4)
    monkeypatch.setattr(Update, "step", step)
    run, outcome = train(tmp_path / "b", "train.max_time=0.000001")
    assert (outcome.reason, outcome.exit_code, run.checkpoint().step) == ("time", 0, 1)
    run, outcome = train(tmp_path / "c", "stages=[{train: bridge, max_time: 0.000001, keep: 3}]")
    assert (outcome.reason, run.checkpoint().step) == ("time", 1)
    run, _ = train(tmp_path / "c", "stages=[{train: bridge, save_every: 64, keep: 3}]")
    assert run.checkpoints.steps() == [12, 16, 20]


def test_a_second_ctrl_c_ends_the_process_at_once(monkeypatch):
    from latentsb.guard import Signals

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.reason() == "SIGINT"
        assert ended == []
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [130]


def test_a_damaged_checkpoint_is_walked_past_and_the_end_is_the_same(tmp_path, train, digests, losses, caplog):
    whole, _ = train(tmp_path / "whole")
    parts, _ = train(tmp_path / "parts", "train.images=240")
    newest = parts.checkpoint().path / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again, _ = train(tmp_path / "parts")
    assert re.search(r"step-000000015 is damaged.*model\.safetensors", caplog.text)
    assert digests(again) == digests(whole)
    assert losses(again) == losses(whole)


def test_a_log_that_is_older_than_every_checkpoint_is_begun_anew(tmp_path, train, losses, monkeypatch):
    whole, _ = train(tmp_path / "whole")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("latentsb.trainer.Stage._save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run")
    assert [r["step"] for r in Run.open(tmp_path / "run").records()] == [3, 6, 9]
    run, _ = train(tmp_path / "run")
    assert losses(run) == losses(whole)


def test_a_changed_recipe_is_refused_and_the_keys_are_named(tmp_path, train):
    run, _ = train(tmp_path / "run", "train.images=32")
    before = run.checkpoint().sha256
    with pytest.raises(CheckpointError, match=r"train\.lr: asked 0\.001, trained with 0\.0003.*-o"):
        train(tmp_path / "run", "train.images=32", "train.lr=1e-3", "bridge.network.width=32")
    with pytest.raises(CheckpointError, match=r"bridge\.network\.width: asked 32, trained with 16"):
        train(tmp_path / "run", "train.images=32", "train.lr=1e-3", "bridge.network.width=32")
    with pytest.raises(CheckpointError, match="stages"):
        train(tmp_path / "run", "train.images=32", "stages=[{train: bridge}, {train: bridge}]")
    assert run.checkpoint().sha256 == before
    _, outcome = train(tmp_path / "run", "train.images=48", "train.log_every=16", "preview.n=4")
    assert outcome.step == 3


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, train):
    other, _ = train(tmp_path / "other", "train.images=32", "train.lr=1e-3")
    mine, _ = train(tmp_path / "mine", "train.images=16")
    other.checkpoint().path.rename(mine.path / "checkpoints" / "step-000000002")
    with pytest.raises(CheckpointError, match="another recipe"):
        train(tmp_path / "mine", "train.images=32")


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_missing_and_unknown_keys_of_the_state_are_errors(tmp_path, train, fault):
    run, _ = train(tmp_path / "run", "train.images=16")
    newest = run.checkpoint()
    state = dict(newest.state)
    if fault == "missing":
        del state["guard"]
    else:
        state["more"] = 1
    files = {name: newest.tensors(name) for name in newest.files}
    run.checkpoints.save(newest.step + 1, files, state)
    with pytest.raises(CheckpointError, match="missing or unknown"):
        train(tmp_path / "run", "train.images=48")


def test_two_trainers_cannot_share_a_folder(tmp_path, train, load):
    first = Run.create(load(), tmp_path / "run")
    with pytest.raises(LockedError, match=rf"pid {os.getpid()} on \S+") as caught:
        Run.create(load(), tmp_path / "run")
    assert caught.value.exit_code == 75
    Run.open(tmp_path / "run")
    first.close()
    train(tmp_path / "run", "train.images=16")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path, load):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no run.*holiday\.jpg"):
        Run.create(load(), tmp_path)


def test_a_run_keeps_what_it_was_asked_and_its_imports(tmp_path, train, load, recipe_text):
    run, _ = train(tmp_path / "run", "train.images=16")
    assert (run.path / "recipe.yaml").read_text() == recipe_text
    reopened = Run.open(run.path)
    assert reopened.recipe.differences(load("train.images=16")) == {}
    assert reopened.recipe.imports == (run.path / "imports" / "alternating.py",)
    assert json.loads((run.path / "environment.json").read_text())["versions"]["torch"] == version("torch")
    (run.path / "imports" / "alternating.py").write_text("raise SystemExit")
    with pytest.raises(CheckpointError, match=r"alternating\.py"):
        Run.open(run.path)


def test_trained_weights_come_back_averaged_or_not(tmp_path, train):
    run, _ = train(tmp_path / "run")
    averaged, raw = Run.open(run.path).experiment(device="cpu"), run.experiment(weights="model", device="cpu")
    checkpoint = run.checkpoint()
    for experiment, name in ((averaged, "ema-power-0.1"), (raw, "model")):
        stored = checkpoint.tensors(name)
        found = {f"bridge.{k}": v for k, v in experiment.bridge.state_dict().items()}
        assert all(torch.equal(found[k], stored[k]) for k in found)
        assert not experiment.bridge.training
        assert experiment.step == 20
    pairs = zip(averaged.bridge.parameters(), raw.bridge.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(CheckpointError, match=r"no weights 'ema-7'.*ema-power-0\.1"):
        run.experiment(weights="ema-7")


@pytest.mark.parametrize("place", [48, 64, 80])
def test_simulated_pairs_are_renewed_each_round_and_again_when_resuming(tmp_path, train, digests, losses, place):
    settings = ("bridge.table=300", "bridge.turn=64", "train.images=256")
    bridges = []
    keep = lambda trainer: bridges.append(trainer.experiment.bridge)  # noqa: E731
    whole, _ = train(tmp_path / "whole", *settings, f"bridge.terminate={10**9}", before=keep)
    train(tmp_path / "parts", *settings, f"bridge.terminate={place}", before=keep)
    parts, _ = train(tmp_path / "parts", *settings, f"bridge.terminate={place}", before=keep)
    assert bridges[0].rounds == [(0, False), (1, False), (2, False), (3, False)]
    at = (place + 16) // 64  # the step at `place` was still done
    first, *others = bridges[2].rounds
    assert first == (at, (place + 16) % 64 != 0)
    assert others == [(n, False) for n in range(at + 1, 4)]
    assert digests(parts) == digests(whole)
    assert losses(parts) == losses(whole)
    plain, _ = train(tmp_path / "plain", *settings[1:])
    assert digests(plain)["model"] != digests(whole)["model"]
