"""Evaluating runs: settings of metrics, what is drawn and when, what is stored, what may be compared."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from latentsb.errors import CapabilityError, RecipeError
from latentsb.evaluate import RunSubject, evaluate, metrics_of
from latentsb.metrics.base import stamp
from latentsb.report import write_report

FEW = ["denoising.images=40", "denoising.levels=3", "reconstruction.images=30", "retrieval.images=60"]


@pytest.fixture(scope="module")
def held(train, tmp_path_factory):
    """A tiny run that keeps 100 digits from training."""
    return train(tmp_path_factory.mktemp("runs") / "held", "held_out=100", "train.images=128")


def test_settings_are_overrides():
    found = metrics_of(["denoising", "accuracy"], ["accuracy.guidance=[0,2.5]", "accuracy.classifier.depth=20"])
    assert found["accuracy"].guidance == (0, 2.5)
    assert found["accuracy"].classifier.depth == 20
    assert found["denoising"].levels == 12
    other = metrics_of(["accuracy"], ["accuracy.classifier={name: mnist_lenet, path: here}"])
    assert str(other["accuracy"].classifier.file) == "here/lenet5.safetensors"


@pytest.mark.parametrize(
    ("words", "settings", "told"),
    [
        (["denoisin"], [], "no metric is called 'denoisin'. Did you mean 'denoising'"),
        (["denoising"], ["denoising.image=3"], "Did you mean 'images'"),
        (["denoising"], ["denoising.images=none"], "expected an integer >= 1, found 'none'"),
        (["denoising"], ["accuracy.real=3"], "no metric 'accuracy' is asked for. The metrics asked for are: denoising"),
        (["denoising"], ["denoising.lowest=90"], "must be at least lowest = 90"),
        (["accuracy"], ["accuracy.classifier.depth=9"], "6n"),
    ],
)
def test_mistakes_are_told(words, settings, told):
    with pytest.raises(RecipeError) as raised:
        metrics_of(words, settings)
    assert told in str(raised.value)


def test_nothing_is_drawn_that_no_metric_asks_for(held):
    experiment = held.experiment(device="cpu")
    words = ["denoising", "reconstruction", "retrieval"]
    found = evaluate(held, experiment, words, 10, settings=FEW)
    assert not (held.path / "samples").exists() or not list((held.path / "samples").glob("step*"))
    for word in words:
        stored = json.loads((held.path / "evaluations" / f"step-{experiment.step:09d}-{word}.json").read_text())
        assert stored["value"] == found[word].value
        assert stored["protocol"]["measured_on"] == "held-out data"
        assert stored["samples"] == []
        assert stored["tables"][0]["rows"]
        assert len(stored["stamp"]) == 12
    with Image.open(held.path / "evaluations" / f"step-{experiment.step:09d}-denoising.png") as picture:
        assert picture.size[0] > 300
    page = write_report(held).read_text()
    assert "bridge / best Gaussian" in page
    assert "PCA, 4 components" in page


def test_held_out_figures_are_of_held_out_data(held):
    subject = RunSubject(held, held.experiment(device="cpu"), 4)
    assert subject.test is subject.held
    assert (len(subject.train), len(subject.held)) == (1697, 100)
    rows = subject.held.rows(20, 0, "some")
    assert (rows == subject.held.rows(20, 0, "some")).all()
    pixels, latents = subject.held.read(rows).x0, subject.held.read(rows, latents=True).x0
    raw = subject.autoencoder.denormalise(latents)
    torch.testing.assert_close(raw, pixels)  # the autoencoder is the identity
    torch.testing.assert_close(torch.cat(list(subject.held.batches(rows, batch=7))), pixels)


def test_reconstructions_are_those_of_the_command(held):
    from latentsb.generate import reconstruct

    experiment = held.experiment(device="cpu")
    subject = RunSubject(held, experiment, 4)
    items = subject.held.read(subject.held.rows(5, 0, "some"))
    cond = subject.known(items.cond)
    assert list(cond.values) == ["label"]
    ours = subject.reconstruct(items.x0, mode="perceptual", seed=3, cond=cond)
    theirs = reconstruct(experiment, items.x0, mode="perceptual", seed=3, cond=cond)
    assert torch.equal(ours.bridge, theirs.bridge)


def test_samples_are_those_of_the_command_and_their_labels_run_through_the_classes(held):
    subject = RunSubject(held, held.experiment(device="cpu"), 12, seed=5)
    drawn = subject.samples(guidance=2.0)
    assert drawn.labels.tolist() == [s % 10 for s in range(5, 17)]
    folder = held.path / "samples" / drawn.folder
    assert "guidance-2" in drawn.folder
    assert len(list(folder.glob("0*.png"))) == 12
    assert subject.samples(guidance=2.0).images is drawn.images


def test_stamps_are_equal_where_figures_may_be_compared(held):
    experiment = held.experiment(device="cpu")

    def stored(*settings):
        evaluate(held, experiment, ["denoising"], 1, settings=[*FEW[:2], *settings])
        found = (held.path / "evaluations").glob("*-denoising*.json")
        return json.loads(max(found, key=lambda path: path.stat().st_mtime_ns).read_text())

    one, again, other = stored(), stored(), stored("denoising.images=41")
    assert one == again
    assert one["stamp"] != other["stamp"]
    assert stamp("a", {"n": 1}) != stamp("b", {"n": 1})
    assert stamp("a", {"n": 1, "m": 2}) == stamp("a", {"m": 2, "n": 1})


def test_what_a_bridge_cannot_do_is_told_before_anything_is_computed(train, tmp_path):
    flow = "bridge={name: flow, network: {name: mlp, width: 8, depth: 1}}"
    run = train(tmp_path / "flow", flow, "train.images=64")
    for word in ("reconstruction", "retrieval"):
        with pytest.raises(CapabilityError, match=f"'{word}' needs an EncodingBridge; 'flow' is not one"):
            evaluate(run, run.experiment(device="cpu"), [word], 5)
    found = evaluate(run, run.experiment(device="cpu"), ["denoising"], 5, settings=FEW[:2])["denoising"]
    assert found.protocol["measured_on"] == "training data (none are held out)"
    assert found.protocol["denoiser_sees"] == "the noisy latent; conditions: label"
