"""A learned prior in training: in a stage of its own, beside the encoder, and interrupted in either."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.errors import CapabilityError, RecipeError
from latentsb.experiment import build
from latentsb.generate import sample
from latentsb.run import Run
from latentsb.update import Update

BASE = """
seed: 3
data: {name: gaussian, mean: [0.5, -1.0], n: 600}
bridge:
  name: dbae
  z_dim: 2
  channel: {name: fixed, limit: 3, sigma: 0.2}
  network: {name: mlp, width: 16, depth: 1}
  encoder: {name: dense, width: 16}
  decoder: {name: dense, width: 16}
  prior:
    name: bridge
    bridge: {name: flow, network: {name: mlp_skip, width: 16, depth: 2}}
    solver: {name: dpmpp, steps: 5}
    MORE
solver: {name: dpmpp, steps: 4}
train: {images: 320, batch: 32, log_every: 96, save_every: 160, preview_every: 1_000_000, warmup: 100}
"""
APART = BASE.replace("    MORE\n", "") + "stages: [{train: bridge}, {train: bridge.prior, images: 640}]\n"
JOINT = BASE.replace("MORE", "joint: true\n    renew: 140\n    weight: 0.1")


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C in one step: of those that train `what`, the one after `seen` images."""
    step = Update.step

    def at(what, seen):
        def interrupted(self, batch, phases, now, asked):
            if now == seen and self.purpose.endswith(what):
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, batch, phases, now, asked)

        monkeypatch.setattr(Update, "step", interrupted)

    yield at
    monkeypatch.undo()


def weights(run, prefix=""):
    found = run.checkpoint().tensors("model")
    return {k: v for k, v in found.items() if k.startswith(prefix)}


def test_nothing_but_the_prior_moves_and_each_sample_is_encoded_once(tmp_path, train):
    rows = []

    def watched(trainer):
        encoder = trainer.experiment.bridge.encoder
        encoder.register_forward_hook(lambda layer, given, out: rows.append((len(out), layer.training)))

    first, _ = train(tmp_path / "run", text=APART.replace(", {train: bridge.prior, images: 640}", ""))
    alone = weights(first)
    both, outcome = train(tmp_path / "both", text=APART, before=watched)
    assert outcome.step == 30
    # Ten training steps, then blocks of 256 for the 600 codes: none of the prior's twenty steps encodes.
    assert [n for n, _ in rows] == [32] * 10 + [256] * 3
    assert [training for _, training in rows] == [True] * 10 + [False] * 3
    # The second stage builds on the averaged weights of the first, and leaves them as they are, to the bit.
    averaged = first.checkpoint().tensors("ema-power-0.1")
    after = weights(both)
    assert after.keys() == alone.keys()
    still = {k for k in averaged if not k.startswith("bridge.prior.")}
    assert all(torch.equal(after[k], averaged[k]) for k in still)
    assert any("encoder" in k for k in still)
    moved = {k for k in averaged.keys() - still if not torch.equal(after[k], averaged[k])}
    assert {"bridge.prior.mean", "bridge.prior.std", "bridge.prior.count"} < moved
    assert int(after["bridge.prior.count"]) == 600
    assert int(averaged["bridge.prior.count"]) == 0


@pytest.mark.parametrize(
    ("text", "what", "places"), [(APART, "bridge.prior", (0, 352)), (JOINT, "bridge", (96, 128, 160))]
)
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path, train, interrupt, losses, digests, text, what, places):
    """Joint: statistics are renewed after 0, 160 and 288 images; 160 is a step after which that round goes on."""
    whole, _ = train(tmp_path / "whole", text=text)
    for place in places:
        interrupt(what, place)
        _, outcome = train(tmp_path / str(place), text=text)
        assert outcome.reason == "SIGINT"
        interrupt(what, -1)
        again, outcome = train(tmp_path / str(place), text=text)
        assert outcome.reason is None
        assert digests(again) == digests(whole)
        assert losses(again) == losses(whole)


def test_a_joint_training_renews_its_statistics_in_rounds(tmp_path, train):
    kept = []

    def watched(trainer):
        prior = trainer.experiment.bridge.prior
        normalise = prior.normalise
        prior.normalise = lambda *given: kept.append(given[0].clone()) or normalise(*given)

    run, _ = train(tmp_path / "run", text=JOINT, before=watched)
    assert len(kept) == 3
    assert not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(weights(run)["bridge.prior.mean"], kept[2], rtol=0, atol=0)
    # The average and the model are normalised alike.
    average = run.checkpoint().tensors("ema-power-0.1")
    assert torch.equal(average["bridge.prior.std"], weights(run)["bridge.prior.std"])
    line = run.records()[-1]
    assert {"prior", "prior_nats", "prior_bits", "rate_bits"} <= line.keys()
    assert line["prior_bits"] * math.log(2) == pytest.approx(line["prior_nats"], rel=1e-5)
    # The bound of what the code says beyond the prior cannot be below what the noise leaves of it to be said: nothing.
    assert line["prior_nats"] > 0


def test_samples_come_from_the_trained_prior_and_from_no_other(tmp_path, train, load):
    run, _ = train(tmp_path / "run", text=APART)
    found = sample(Run.open(run.path).experiment(device="cpu"), range(5))
    assert found.calls == 4  # of the bridge; the prior's own five are not among them
    assert found.notes == ("z is drawn from a prior (a 'flow') that was learned on 600 encodings",)
    experiment = build(load(text=APART))
    with pytest.raises(CapabilityError, match=r"has not been trained; add a stage \{train: bridge\.prior\}"):
        sample(experiment, range(5))


def test_a_stage_without_anything_to_train_is_a_mistake_of_the_recipe(load):
    recipe = load("bridge.prior=gaussian", text=APART)
    with pytest.raises(RecipeError, match=r"stages\.1\.train.*'gaussian' is fitted"):
        build(recipe)
    with pytest.raises(RecipeError, match=r"stages\.1\.train.*no part 'encoder'"):
        build(load("stages=[{train: bridge}, {train: bridge.encoder}]", text=APART))


def test_the_held_out_loss_is_that_of_held_out_codes(tmp_path, train):
    run, _ = train(tmp_path / "run", "held_out=100", "train.preview_every=320", text=APART)
    told = [r["held_out_loss"] for r in run.records() if "held_out_loss" in r]
    assert len(told) >= 3
    assert 0.2 < told[-1] < 3


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, load, train):
    files, runs = [], {}
    for name, text in (("apart", APART), ("joint", JOINT)):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{text}")
        files.append(str(tmp_path / f"{name}.yaml"))
        runs[name], _ = train(tmp_path / f"{name}-alone", text=text)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29577"]
    subprocess.run([*command, str(here / "distributed.py"), str(tmp_path), *files], check=True, capture_output=True)
    for name, run in runs.items():
        both = Run.open(tmp_path / name)
        one, two = ([r["loss"] for r in found.records() if "loss" in r] for found in (run, both))
        assert len(one) >= 4
        np.testing.assert_allclose(two, one, rtol=1e-4)
