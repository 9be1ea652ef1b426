"""Encoding the data before a bridge is trained: it says how far it is, stops within a batch, and goes on from there."""

import os
import re
import signal
from types import SimpleNamespace

import pytest

from latentsb import encoding, latents, progress
from latentsb.guard import Signals, Stopped
from latentsb.latents import Watched
from latentsb.run import Run

CODED = """
data: digits
held_out: 100
autoencoder: {name: kl, widths: [16]}
bridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}
solver: {name: euler, steps: 2}
train: {images: 32, batch: 32, preview_every: 1_000_000}
stages: [{train: autoencoder}, {train: bridge}]
"""


@pytest.fixture
def at_batch(monkeypatch):
    """Do something when a batch is encoded; returns the numbers of the batches that were."""
    encode, seen = encoding._moments, []

    def place(number, act):
        def watched(*arguments):
            seen.append(len(seen))
            if seen[-1] == number:
                act()
            return encode(*arguments)

        monkeypatch.setattr(encoding, "_moments", watched)
        return seen

    return place


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (2, "encoding: stopped by {} after 192 of 1,697 images"),
        (27, "encoding held-out: stopped by {} after 64 of 100 images"),
    ],
)
def test_a_signal_ends_it_within_a_batch(tmp_path, train, digests, losses, at_batch, capsys, name, code, batch, told):
    seen = at_batch(batch, lambda: os.kill(os.getpid(), signal.Signals[name]))
    run, outcome = train(tmp_path / "parts", text=CODED)
    assert (outcome.reason, outcome.exit_code, outcome.step) == (name, code, 1)
    assert len(seen) == batch + 1
    err = capsys.readouterr().err
    assert f"{told.format(name)}; what is encoded is kept, the same command goes on\n" in err
    kept = {p.name for p in run.path.iterdir() if "latents" in p.name and not p.name.endswith(".lock")}
    assert kept == ({"latents", ".latents-held-out.building"} if batch == 27 else {".latents.building"})
    assert run.checkpoint().state["stage"] == 0
    again, outcome = train(tmp_path / "parts", text=CODED)
    assert outcome.reason is None
    assert f"images, going on after {told.split('after ')[1].split()[0]} …\n" in capsys.readouterr().err
    whole, _ = train(tmp_path / "whole", text=CODED)
    assert digests(again) == digests(whole)
    assert losses(again) == losses(whole)


def test_so_does_a_time_limit(tmp_path, train, capsys):
    stages = "stages=[{train: autoencoder}, {train: bridge, max_time: 0.000001}]"
    run, outcome = train(tmp_path / "run", stages, text=CODED)
    assert (outcome.reason, outcome.exit_code) == ("time", 0)
    err = capsys.readouterr().err
    assert "encoding: stopped by time after 0 of 1,697 images" in err
    assert "what is encoded is kept, the same command goes on\n" in err
    assert [p.name for p in run.path.glob(".latents*")] == [".latents.lock"]


def test_a_limit_that_is_too_short_is_told_what_would_do(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    signals = SimpleNamespace(reason=lambda: "time" if clock.now > 70 else None)
    watched = Watched("fitting the normaliser", signals, brief=True)
    watched(0, 2000)
    clock.now = 71.0
    with pytest.raises(Stopped):
        watched(1000, 2000)  # 142 s would do, whole minutes are told
    assert "give it a longer one (about 180 s for this alone)\n" in capsys.readouterr().err


def test_fitting_a_normaliser_is_watched_and_short_ones_are_not_told(tmp_path, train, capsys, monkeypatch):
    text = """
data: {name: gaussian, mean: [0.5], n: 300}
autoencoder: {name: identity, normaliser: channel}
bridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}
train: {images: 16, batch: 16}
"""
    train(tmp_path / "quick", text=text)
    assert "normaliser" not in capsys.readouterr().err
    monkeypatch.setattr(latents, "QUIET_SECONDS", 0.0)
    train(tmp_path / "slow", text=text)
    assert re.findall(r"fitting the normaliser: (\d+) of 300 images", capsys.readouterr().err) == [
        "64",
        "128",
        "192",
        "256",
    ]
    _, outcome = train(tmp_path / "short", "train.max_time=0.000001", text=text)
    assert outcome.reason == "time"
    assert "fitting the normaliser: stopped by time after 64 of 300 images" in capsys.readouterr().err


def test_elsewhere_ctrl_c_says_what_it_costs(tmp_path, train, at_batch):
    run, _ = train(tmp_path / "run", text=CODED)
    experiment = Run.open(run.path).experiment(device="cpu")

    def interrupt():
        raise KeyboardInterrupt

    at_batch(1, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        latents.latents_of(tmp_path, experiment)
    assert caught.value.__notes__ == [
        "interrupted: encoding after 64 of 1,697 images; what is encoded is kept, the same command goes on"
    ]
    assert (tmp_path / ".latents.building").exists()


def test_off_a_terminal_it_tells_the_beginning_a_line_now_and_then_and_the_end(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    watched = Watched("encoding", None)
    watched(0, 2000)
    for done in range(20, 2001, 20):
        clock.now += 4.0  # 5 a second
        watched(done, 2000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "encoding 2,000 images …",
        "encoding: 160 of 2,000 images · 5 img/s · 368 s left",
        "encoding: 320 of 2,000 images · 5 img/s · 336 s left",
    ]
    assert lines[-1] == "encoding: 2,000 of 2,000 images · 5 img/s · 0 s left"
    assert len(lines) == 2 + 2000 // 160


def test_what_is_all_encoded_is_kept_even_where_something_asks_to_stop():
    signals = Signals(max_time=0)
    Watched("encoding", signals)(10, 10)
    with pytest.raises(Stopped):
        Watched("encoding", signals)(9, 10)
