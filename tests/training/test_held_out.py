"""Held-out data: never trained on, the same loss each time, and no trace of the measurement in what is trained."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb import parallel
from latentsb.data.arrays import ArraySource
from latentsb.data.pairs import Unpaired
from latentsb.data.source import Items
from latentsb.data.stream import Stream
from latentsb.data.subset import Subset, split, whole
from latentsb.errors import CheckpointError, RecipeError
from latentsb.experiment import build
from latentsb.held import HeldOut
from latentsb.latents import held_latents_of, latents_of
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.report import write_report
from latentsb.run import Run
from latentsb.stages import Session

FLOW = """
seed: 3
data: {name: gaussian, mean: [0.5], n: 100}
held_out: 20
bridge: {name: flow, network: {name: mlp, width: 16, depth: 1}}
train: {images: 320, batch: 16, log_every: 48, save_every: 160, preview_every: 64, warmup: 100}
"""


def held_losses(run: Run) -> dict[int, float]:
    return {r["images"]: r["held_out_loss"] for r in run.records() if "held_out_loss" in r}


def numbered(n: int, *, two: bool = False, paired: bool = False) -> ArraySource:
    """Samples that are their own positions; other ends are 1000 further."""
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return ArraySource(x, x + 1000 if two else None, {"label": torch.arange(n)}, classes=n, paired=paired)


@pytest.mark.parametrize(("asked", "held"), [(1, 1), (20, 20), (0.25, 25), (0.001, 1), (99, 99)])
def test_a_split_is_a_partition(asked, held):
    train, kept = split(numbered(100), asked, seed=4)
    assert (len(train), len(kept)) == (100 - held, held)
    assert sorted([*train.rows, *kept.rows]) == list(range(100))
    found = kept.read(np.arange(held))
    assert found.x0[:, 0].tolist() == found.cond["label"].tolist() == kept.rows.tolist()


def test_held_out_samples_are_never_mirrored():
    source = numbered(10)
    source.variants = 2
    assert [part.variants for part in split(source, 3, seed=0)] == [2, 1]


def test_a_split_belongs_to_the_seed():
    rows = [split(numbered(100), 20, seed)[1].rows.tolist() for seed in (4, 4, 5)]
    assert rows[0] == rows[1] != rows[2]
    prints = [split(numbered(100), 20, seed)[1].fingerprint() for seed in (4, 4, 5)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("asked", [100, 2000])
def test_something_must_be_left_to_train_on(asked):
    train, _ = split(numbered(100), asked, seed=0)
    assert train.spec.shape == (1,)  # the form is known before anything is read
    with pytest.raises(RecipeError, match=r"held_out: \d+ cannot be held out of the 100 samples"):
        len(train)


def test_an_epoch_of_training_is_every_sample_that_is_not_held_out():
    train, kept = split(numbered(100, two=True), 25, seed=1)
    stream = Stream(train, seed=1, batch=25)
    read = torch.cat([stream.batch(seen).x0[:, 0] for seen in range(0, 75, 25)]).tolist()
    assert sorted(read) == train.rows.tolist()
    assert not set(read) & set(kept.rows)


def test_partners_stay_partners_and_unrelated_ends_are_split_each():
    train, kept = split(numbered(40, two=True, paired=True), 10, seed=1)
    found = kept.read(np.arange(10))
    assert (found.x1 - found.x0 == 1000).all()
    train, kept = split(Unpaired(x0=numbered(40), x1=numbered(60)), 10, seed=1)
    assert (train.partners, kept.partners) == (50, 10)
    assert sorted([*train.others, *kept.others]) == list(range(60))
    shown = train.read(np.arange(30)).x1[:, 0].tolist()
    stream = Stream(train, seed=1, batch=50)
    assert set(shown) | set(stream.batch(0).x1[:, 0].tolist()) == set(train.others)
    fewer, _ = split(Unpaired(x0=numbered(60), x1=numbered(40)), 10, seed=1)
    assert fewer.read(np.arange(50)).x1[:, 0].tolist() == [*fewer.others, *fewer.others[:20]]


def test_the_loss_is_that_of_the_held_out_data(tmp_path, train):
    # The network's last layer begins at zero and hardly moves: the loss is |x1 − x0|² with x1 ~ N(0, 1), whose mean
    # over the fixed 512 samples is E x0² + 1, with the standard error √((4 E x0² + 2) / 512).
    other = "held_out={name: gaussian, mean: [3.0], n: 1000, seed: 7}"
    run, _ = train(tmp_path / "run", other, "train.lr=1e-9", "train.images=64", text=FLOW)
    experiment = build(Recipe.parse(FLOW, [other], label="toy"))
    chosen = HeldOut(Session(experiment, 0), experiment.held, None).rows
    square = experiment.held.samples[chosen].square().mean().item()
    assert len(chosen) == 512
    assert held_losses(run)[64] == pytest.approx(square + 1, abs=4 * ((4 * square + 2) / 512) ** 0.5)
    assert square == pytest.approx(10, abs=1)


def test_the_loss_is_that_of_the_averaged_weights_row_by_row(tmp_path, train):
    run, _ = train(tmp_path / "run", "train.micro_batch=5", text=FLOW)
    losses = held_losses(run)
    assert list(losses) == [64, 128, 192, 256, 320]
    experiment = run.experiment(device="cpu")
    assert experiment.weights == "ema"
    session = Session(experiment, 0)
    session.ema = None  # the weights are the average
    held = HeldOut(session, experiment.held, None)
    assert len(set(held.rows.tolist())) == len(held.rows) == 16
    [(first, batch)] = held._batches()
    phase = session.schedule.now(0, {})[0]
    alone = [held._sums(phase, batch.select(slice(k, k + 1)), first)[0].item() for k in range(16)]
    assert losses[320] == pytest.approx(np.mean(alone), rel=1e-5)


def test_the_ends_of_a_whole_batch_are_coupled_before_the_loss():
    # An untrained network's last layer is zero, so the loss is |x1 − x0|². On a line the plan of least cost joins the
    # sorted ends of a batch; unrelated ends of one law are 2 apart on average.
    near, far = (f"{{name: gaussian, mean: [0.0], n: 200, seed: {seed}}}" for seed in (1, 2))
    changes = [
        f"data={{name: unpaired, x0: {near}, x1: {far}}}",
        "held_out=64",
        "bridge.coupling=minibatch_ot",
        "train.micro_batch=5",
    ]
    experiment = build(Recipe.parse(FLOW, changes, label="toy"))
    session = Session(experiment, 0)
    held = HeldOut(session, experiment.held, None)
    found = experiment.held.read(held.rows)
    x0, x1 = (end.reshape(4, 16).double() for end in (found.x0, found.x1))
    expected = (x0.sort(1).values - x1.sort(1).values).square().mean().item()
    assert expected < (x0 - x1).square().mean().item() / 4
    losses = held.measure(session.schedule.now(0, {}))
    assert losses == {"held_out_loss": pytest.approx(expected, rel=1e-5)}


def test_measuring_leaves_no_trace_and_an_interruption_none_in_the_log(tmp_path, train, digests, losses):
    often, _ = train(tmp_path / "often", "train.preview_every=16", text=FLOW)
    seldom, _ = train(tmp_path / "seldom", "train.preview_every=1_000_000", text=FLOW)
    assert digests(often) == digests(seldom)
    assert len(held_losses(often)) == 20
    assert len(held_losses(seldom)) == 1
    assert held_losses(often)[320] == held_losses(seldom)[320]
    train(tmp_path / "parts", "train.images=128", text=FLOW)
    parts, _ = train(tmp_path / "parts", text=FLOW)
    whole_run, _ = train(tmp_path / "whole", text=FLOW)
    assert held_losses(parts) == held_losses(whole_run)


def test_nothing_is_lost_where_measuring_fails(tmp_path, train, digests, losses, monkeypatch):
    def broken(held, phases):
        raise RuntimeError("measuring failed")

    with monkeypatch.context() as patched:
        patched.setattr(HeldOut, "measure", broken)
        with pytest.raises(RuntimeError, match="measuring failed"):
            train(tmp_path / "parts", text=FLOW)
    assert Run.open(tmp_path / "parts").checkpoint().state["seen"] == 64  # the first to be measured
    parts, _ = train(tmp_path / "parts", text=FLOW)
    whole, _ = train(tmp_path / "whole", text=FLOW)
    assert digests(parts) == digests(whole)


def test_an_alternating_schedule_tells_the_phase_that_was_on(tmp_path, train, recipe_text):
    run, _ = train(tmp_path / "run", "held_out=0.2", "train.preview_every=16", text=recipe_text)
    names = {k for r in run.records() for k in r if k.endswith("held_out_loss")}
    phases = {k.rpartition("/")[0] for r in run.records() for k in r if k.rpartition("/")[2] == "loss"}
    assert {name.rpartition("/")[0] for name in names} == phases != {""}


@pytest.mark.parametrize("world", [2, 3, 16, 40])
def test_processes_share_the_rows_and_find_the_same_mean(monkeypatch, world):
    experiment = build(Recipe.parse(FLOW, label="toy"))
    session = Session(experiment, 0)
    phases = session.schedule.now(0, {})
    alone = HeldOut(session, experiment.held, None).measure(phases)["held_out_loss"]
    shares = []
    monkeypatch.setattr(parallel, "world", lambda: world)
    monkeypatch.setattr(parallel, "sum_flat", lambda tensors: shares.append(tensors[0].clone()))
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        HeldOut(session, experiment.held, None).measure(phases)
    total, count = sum(shares).tolist()
    assert total / count == pytest.approx(alone, rel=1e-5)
    assert count == (16 if world <= 16 else 16 * world)


@pytest.mark.parametrize("first", [latents_of, held_latents_of])
def test_the_normaliser_knows_the_training_data_alone(tmp_path, first):
    text = "data: digits\nheld_out: 300\nautoencoder: {name: identity, normaliser: global}\n"
    text += "bridge: {name: flow, network: {name: mlp, width: 16}}\n"
    experiment = build(Recipe.parse(text, label="toy"))
    first(tmp_path, experiment)
    pixels = experiment.source.source.samples.double()
    mean = pixels[experiment.source.rows].mean().item()
    assert experiment.autoencoder.shift.flatten()[0].item() == pytest.approx(mean, rel=1e-6)
    assert abs(mean - pixels.mean().item()) > 1e-4
    held = held_latents_of(tmp_path, experiment)
    raw = experiment.held.read(np.arange(5)).x0
    assert torch.equal(held.read(np.arange(5)).x0, experiment.autoencoder.normalise(raw))


def test_a_run_keeps_its_choice(tmp_path, train):
    run, _ = train(tmp_path / "run", "train.images=16", text=FLOW)
    for other in ("held_out=21", "held_out=0.2", "~held_out", "held_out={name: gaussian, mean: [0.5]}"):
        with pytest.raises(CheckpointError, match="held_out"):
            train(tmp_path / "run", "train.images=32", other, text=FLOW)
    opened = Run.open(run.path).experiment(device="cpu")
    assert (len(opened.source), len(opened.held)) == (80, 20)
    assert whole(opened.source) is whole(opened.held)


FOLDERS = """
data: {name: folder, path: data, size: 4, channels: 1, flip: true}
held_out: {name: folder, path: test, size: 4, channels: 1}
bridge: {name: flow, network: {name: mlp, width: 16, depth: 1}}
solver: {name: heun, steps: 2}
train: {images: 16, batch: 8, log_every: 8, preview_every: 8}
"""


def test_other_data_are_recorded_and_may_go_afterwards(tmp_path, monkeypatch, train):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    monkeypatch.chdir(tmp_path)
    for name, n in (("data", 10), ("test", 4)):
        (tmp_path / name).mkdir()
        for k in range(n):
            Image.fromarray(np.full((4, 4), 10 * k, dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    run, _ = train(tmp_path / "run", text=FOLDERS)
    record = json.loads((run.path / "data.json").read_text())
    assert (record["samples"], record["held_out"]["samples"]) == (10, 4)
    with (run.path / "files.csv").open() as stream:
        files = [row["path"] for row in csv.DictReader(stream)]
    assert files == [f"{k}.png" for k in range(10)] + [f"held_out/{k}.png" for k in range(4)]
    assert "dots: on held-out data" in write_report(run).read_text()
    Image.fromarray(np.full((4, 4), 99, dtype=np.uint8)).save(tmp_path / "test" / "0.png")
    with pytest.raises(CheckpointError, match=r"1 changed \(held_out/0.png\)"):
        train(tmp_path / "run", "train.images=24", text=FOLDERS)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(tmp_path / "test")
    gone = Run.open(run.path).experiment(device="cpu")
    assert (len(gone.source), len(gone.held)) == (10, 4)


@pytest.mark.parametrize(
    ("held", "told"),
    [("{name: folder, path: test, size: 5, channels: 1}", "shape"), ("{name: gaussian}", "shape")],
)
def test_other_data_must_be_of_the_same_form(held, told):
    with pytest.raises(RecipeError, match=f"held_out: held-out data must be of the data's form; {told}"):
        build(Recipe.parse(FOLDERS, [f"held_out={held}"], label="toy"))


def test_a_subset_reads_like_its_source():
    source = numbered(10, two=True, paired=True)
    part = Subset(source, [7, 2])
    assert (len(part), part.partners, part.names()) == (2, 2, None)
    assert part.read(np.array([1, 0])).x0[:, 0].tolist() == [2, 7]
    assert part.draw_x1(np.array([0]), None, None)[0].item() == 1007
    assert (part.contents(), part.problems()) == ({}, {})


class Fresh(ArraySource):
    """Both ends are new standard normal numbers with every draw."""

    def draw(self, index, variant, draws):
        return Items(draws.normal("sample", self.samples[index]), self.draw_x1(index, variant, draws))

    def draw_x1(self, index, variant, draws):
        return draws.normal("sample", self.samples[index])


def test_unrelated_ends_of_a_subset_are_drawn_apart():
    part = Subset(Fresh(torch.zeros(4000, 1), torch.zeros(4000, 1)), range(2000))
    found = part.draw(np.arange(2000), None, Draws.seeds(range(2000)))
    # The mean product of independent standard normal numbers has a standard error of 1/√2000.
    assert abs((found.x0 * found.x1).mean().item()) < 4 / 2000**0.5
    assert found.x1.square().mean().item() == pytest.approx(1, abs=4 * (2 / 2000) ** 0.5)
