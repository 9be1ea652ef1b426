"""Losses that are not finite, full disks, and the other things that go wrong in the middle."""

import errno
import json

import pytest
import torch

from latentsb.disk import Disk
from latentsb.errors import BackendError, DiskError, NonFiniteError, RecipeError
from latentsb.experiment import build
from latentsb.run import Run

QUICK = ("train.log_every=16", "bridge.turn=1000000")


def weights_at(run, step):
    return {k: v for k, v in run.checkpoints.open(step).tensors("model").items() if "forward_net" in k}


def test_one_bad_step_is_skipped_and_leaves_no_trace(tmp_path, train, losses):
    run, outcome = train(tmp_path / "run", *QUICK, "bridge.poison=[64]", "train.save_every=16", "train.keep=30")
    assert outcome.step == 20
    before, after, later = weights_at(run, 4), weights_at(run, 5), weights_at(run, 6)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not all(torch.equal(after[k], later[k]) for k in after)
    optimizer = run.checkpoints.open(6).tensors("optimizer")
    steps = {v.item() for k, v in optimizer.items() if k.startswith("step/forward_net")}
    assert steps == {5.0}, "the moments' correction must not count the skipped step"
    lines = {r["step"]: r for r in losses(run)}
    assert "forward/loss" not in lines[5]
    assert lines[5]["skipped"] == lines[20]["skipped"] == 1
    assert all(torch.isfinite(v).all() for v in run.checkpoint().tensors("ema-power-0.1").values())


def test_too_many_bad_steps_go_back_to_the_checkpoint_and_on_with_new_data(tmp_path, train):
    poison = list(range(128, 128 + 4 * 16, 16))  # steps 9 to 12
    run, outcome = train(tmp_path / "run", *QUICK, f"bridge.poison={poison}", "train.save_every=96")
    assert outcome.step == 20
    assert run.checkpoint().state["guard"] == {"streak": 0, "total": 4, "rollbacks": 1}
    events = [r for r in run.records() if "event" in r]
    assert [(e["event"], e["step"]) for e in events] == [("rolled back", 12)]
    # Back to step 6 after 12 steps, then 8 more: 14 updates are behind the last weights.
    steps = {v.item() for k, v in run.checkpoint().tensors("optimizer").items() if k.startswith("step/forward_net")}
    assert steps == {14.0}


def test_training_that_stays_bad_stops_with_a_report(tmp_path, train):
    poison = list(range(128, 320, 16))
    with pytest.raises(NonFiniteError, match=r"again after going back.*nan_report") as caught:
        train(tmp_path / "run", *QUICK, f"bridge.poison={poison}", "train.save_every=96")
    assert caught.value.exit_code == 8
    (report,) = (tmp_path / "run" / "nan_report").iterdir()
    content = json.loads(report.read_text())
    assert content["step"] == 16
    assert content["weights_not_finite"] == content["batch_not_finite"] == []
    assert Run.open(tmp_path / "run").checkpoint().step == 12, "the last finite checkpoint is still there"


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path, train):
    with pytest.raises(NonFiniteError, match="in 1 steps in a row"):
        train(tmp_path / "run", *QUICK, "bridge.poison=[0]", "train.max_bad=0")


def test_a_full_disk_stops_training_and_the_same_command_goes_on(tmp_path, train, digests, monkeypatch):
    whole, _ = train(tmp_path / "whole")
    write = Disk.write

    def full(self, path, data):
        if "000000020" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path, data)

    monkeypatch.setattr(Disk, "write", full)
    with pytest.raises(DiskError, match=r"step-000000020: No space left.*bytes are needed"):
        train(tmp_path / "run")
    monkeypatch.setattr(Disk, "write", write)
    assert Run.open(tmp_path / "run").checkpoint().step == 10
    run, _ = train(tmp_path / "run")
    assert digests(run) == digests(whole)


def test_a_log_that_cannot_be_written_does_not_stop_training(tmp_path, train, caplog, load):
    run = Run.create(load(), tmp_path / "run")
    run.close()
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    _, outcome = train(tmp_path / "run")
    assert outcome.reason is None
    assert outcome.step == 20
    assert caplog.text.count("training goes on without it") == 1


def test_a_forced_backend_that_cannot_run_is_told_before_training(tmp_path, train):
    with pytest.raises(BackendError, match="xformers"):
        train(tmp_path / "run", "train.attention=xformers")


def test_an_autoencoder_that_nothing_trains_is_told(load):
    text = "data: {name: digits}\nautoencoder: kl\nbridge: {name: flow, network: {name: mlp}}"
    with pytest.raises(RecipeError, match="no stage trains it"):
        build(load(text=text))


def test_the_same_recipe_builds_the_same_weights_and_leaves_torch_alone(load):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = build(load()), build(load())
    other = build(load("seed=4"))
    assert torch.equal(torch.rand(3), expected)
    a, b, c = (e.state_dict() for e in (one, two, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
