"""DSBM in the engine: interrupted in every turn, on two processes, and from a recipe."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer
from latentsb.update import Update

RECIPE = """
name: {name}
seed: 3
data:
  name: unpaired
  x0: {{name: gaussian, mean: [-1.0], n: 100, seed: 1}}
  x1: {{name: gaussian, mean: [1.0], n: 80, seed: 2}}
bridge:
  name: dsbm
  coupling: {coupling}
  network: {{name: mlp, width: 16, depth: 1, dropout: 0.1}}
  simulation: {{name: euler_maruyama, steps: 3, noiseless_last: false}}
  images: 64
  renew: 32
  pairs: 300
  {more}
train: {{images: 352, batch: 16, log_every: 48, save_every: 80, preview_every: 1000000, warmup: 100}}
"""
SETTINGS = {
    "imf": ("independent", ""),
    "ipf": ("reference", "continuing: false"),
    "plan": ("{name: static, rows: 90}", ""),
}
VARY = {"seconds", "images_per_second", "data_wait", "memory"}


def text(kind: str) -> str:
    coupling, more = SETTINGS[kind]
    return RECIPE.format(name=kind, coupling=coupling, more=more)


def train(path: Path, kind: str, recipe_text: str = "") -> Run:
    recipe = Recipe.parse(recipe_text or text(kind), (), label="toy")
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return run


def told(run: Run) -> list[dict]:
    """The log without what depends on the machine."""
    return [{k: v for k, v in record.items() if k not in VARY} for record in run.records()]


def stopping(monkeypatch, place: int, how) -> None:
    """Do something once, before the step that begins after so many images."""
    step, done = Update.step, []

    def interrupted(self, batch, phases, seen, asked):
        if seen == place and not done:
            done.append(seen)
            how()
        return step(self, batch, phases, seen, asked)

    monkeypatch.setattr(Update, "step", interrupted)


def die() -> None:
    raise KeyboardInterrupt


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted trainings."""
    runs = {}

    def of(kind: str) -> Run:
        if kind not in runs:
            runs[kind] = train(tmp_path_factory.mktemp("whole") / kind, kind)
        return runs[kind]

    return of


# Turns begin at 0, 64, 128, 192, … (the first coupling's included), tables every 32; checkpoints are made every 80.
@pytest.mark.parametrize("kind", ["imf", "ipf", "plan"])
@pytest.mark.parametrize(("place", "how"), [(32, stop), (144, stop), (128, die), (256, stop), (288, die)])
def test_a_training_that_is_interrupted_anywhere_ends_with_the_same_bits(
    tmp_path, whole, monkeypatch, kind, place, how
):
    expected = whole(kind)
    stopping(monkeypatch, place, how)
    if how is die:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", kind)
        assert Run.open(tmp_path / "run").checkpoint().state["seen"] == place - 48  # lies in the middle of a round
    else:
        train(tmp_path / "run", kind)
        assert Run.open(tmp_path / "run").checkpoint().state["seen"] == place + 16
    run = train(tmp_path / "run", kind)
    assert dict(run.checkpoint().sha256) == dict(expected.checkpoint().sha256)
    assert told(run) == told(expected)


def test_the_kinds_differ_and_both_drifts_have_learned(whole):
    digests = {whole(kind).checkpoint().sha256["model"] for kind in SETTINGS}
    assert len(digests) == 3
    weights = whole("imf").checkpoint().tensors("model")
    for end in ("x0", "x1"):
        assert weights[f"bridge.networks.{end}.head.weight"].abs().max() > 0


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """Tables are made in blocks that do not know which process makes them; sums of gradients differ in rounding."""
    recipe = text("imf").replace("dropout: 0.1", "dropout: 0.0")
    (tmp_path / "imf.yaml").write_text(recipe)
    alone = train(tmp_path / "alone", "imf", recipe)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[1] / "training" / "distributed.py"
    both = tmp_path / "both"
    both.mkdir()
    subprocess.run([*command, str(script), str(both), str(tmp_path / "imf.yaml")], check=True, capture_output=True)
    found, expected = (run.checkpoint().tensors("model") for run in (Run.open(both / "imf"), alone))
    assert len(told(alone)) == len(told(Run.open(both / "imf")))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
