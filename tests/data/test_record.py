"""What a run keeps of its data: it says what has changed, and the run can be used without them."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.cli.checking import report
from latentsb.data import record
from latentsb.data.folder import Folder
from latentsb.data.record import Recorded
from latentsb.errors import CheckpointError, DataError
from latentsb.evaluate import evaluate
from latentsb.experiment import build
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tasks import inputs_of
from latentsb.trainer import Trainer

RECIPE = """
data: {name: folder, path: data, size: 4, channels: 1, labels: true, bad: 0.2}
conditions: [label]
bridge: {name: flow, network: {name: dit, width: 16, depth: 1, heads: 2, patch: 2}}
solver: {name: heun, steps: 2}
train: {images: 16, batch: 8, preview_every: 1_000_000}
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    monkeypatch.chdir(tmp_path)
    for k in range(10):
        paint(f"data/{'ab'[k % 2]}/{k}.png", k)


def paint(path: str, level: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), level, dtype=np.uint8)).save(path)


def train(*overrides: str) -> Run:
    recipe = Recipe.parse(RECIPE, overrides, label="toy")
    run = Run.create(recipe, "run")
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return run


def test_unreadable_images_are_told_and_listed(caplog: pytest.LogCaptureFixture) -> None:
    Path("data/a/2.png").write_text("no picture")
    with caplog.at_level(logging.WARNING):
        train()
    told = next(r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage())
    assert told.startswith("1 of 10 images cannot be read and are left out; first: a/2.png (is no image")
    assert told.endswith("list: run/unreadable.csv")
    with open("run/unreadable.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == ["a/2.png"]
    with open("run/files.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 9


def test_check_tells_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report(Recipe.parse(RECIPE, (), label="toy"))
    assert "left out" not in capsys.readouterr().out
    Path("data/a/2.png").write_text("no picture")
    report(Recipe.parse(RECIPE, (), label="toy"))
    assert "1 of 10 images cannot be read and are left out; first: a/2.png" in " ".join(capsys.readouterr().out.split())


def test_other_data_are_told_by_their_files() -> None:
    train()
    for path in Path("data").rglob("*.png"):
        os.utime(path, ns=(1, 1))
    train("train.images=24")  # the same data
    Path("data/a/0.png").unlink()
    paint("data/b/1.png", 77)
    paint("data/b/z.png", 3)
    paint("data/b/y.png", 3)
    with pytest.raises(CheckpointError) as caught:
        train("train.images=32")
    told = "10 files then, 11 now; 2 added (b/y.png, b/z.png); 1 removed (a/0.png); 1 changed (b/1.png)"
    assert told in str(caught.value)
    Path("run/files.csv").unlink()
    with pytest.raises(CheckpointError, match=r"files: their content has changed; samples: 10 then, 11 now"):
        train("train.images=32")


def test_a_run_is_used_without_its_data() -> None:
    train()
    expected = Run.open("run").sample(3, seed=5).images
    whole = Run.open("run").experiment(device="cpu").source
    assert len(whole) == 10  # read before they are moved
    os.renames("data", "moved/data")
    run = Run.open("run")
    torch.testing.assert_close(run.sample(3, seed=5).images, expected, rtol=0, atol=0)
    source = run.experiment(device="cpu").source
    assert isinstance(source, Recorded)
    assert (source.spec, source.cond, len(source), source.partners) == (whole.spec, whole.cond, len(whole), 0)
    assert source.fingerprint() == whole.fingerprint()
    picture = Path("moved/data/a/4.png")
    torch.testing.assert_close(source.open(picture), whole.open(picture), rtol=0, atol=0)
    with pytest.raises(DataError, match="needs the data that the run was trained on: data: there is no such folder"):
        source.read(np.arange(2))
    with pytest.raises(DataError, match="no such folder"):
        source.draw_x1(np.arange(2), None, Draws.seeds([0, 1]))


def test_relative_data_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    source = Run.open("../run").experiment(device="cpu").source
    assert isinstance(source, Recorded)
    assert isinstance(source.found, Folder)
    assert source.found.root == tmp_path / "data"
    assert len(source.read(np.arange(10)).x0) == 10


def test_data_of_another_form_are_not_taken_for_the_run_s() -> None:
    train()
    paint("data/c/0.png", 1)  # a third class
    source = Run.open("run").experiment(device="cpu").source
    assert source.cond["label"].classes == 2
    with pytest.raises(DataError, match="another form"):
        source.read(np.arange(2))


@pytest.mark.parametrize("held_out", ["3", "{name: folder, path: kept, size: 4, channels: 1, labels: true}"])
def test_data_that_have_changed_are_not_measured(held_out: str) -> None:
    for k in range(4):
        paint(f"kept/{'ab'[k % 2]}/{k}.png", 100 + k)
    train(f"held_out={held_out}")
    before = Run.open("run")
    expected, was = before.sample(3, seed=5).images, before.experiment(device="cpu")
    assert was.held is not None
    seen = was.held.read(np.arange(len(was.held))).x0
    own = held_out != "3"
    place = "kept" if own else "data"
    paint(f"{place}/a/new.png", 50)  # among three of ten and eleven others would be chosen
    run = Run.open("run")
    torch.testing.assert_close(run.sample(3, seed=5).images, expected, rtol=0, atol=0)
    now = run.experiment(device="cpu")
    assert now.held is not None
    assert (len(now.source), len(now.held)) == (len(was.source), len(was.held))
    told = (
        f"have changed: {4 if own else 10} files then, {5 if own else 11} now; 1 added \\(a/new.png\\); put them back"
    )
    with pytest.raises(DataError, match=told):
        now.held.read(np.arange(1))
    with pytest.raises(DataError, match=told):
        evaluate(run, now, ["denoising"], 2)
    if own:
        now.source.read(np.arange(1))  # these are the same
    else:
        with pytest.raises(DataError, match=told):
            inputs_of(now, [], 2, 0)
    Path("run/files.csv").unlink()
    again = Run.open("run").experiment(device="cpu")
    assert again.held is not None
    with pytest.raises(DataError, match="have changed: files: their content has changed; samples: "):
        again.held.read(np.arange(1))
    Path(f"{place}/a/new.png").unlink()
    back = Run.open("run").experiment(device="cpu")
    assert back.held is not None
    torch.testing.assert_close(back.held.read(np.arange(len(back.held))).x0, seen, rtol=0, atol=0)


def test_other_arrays_of_the_same_form_are_not_measured() -> None:
    points = np.random.default_rng(0).standard_normal((20, 2), dtype=np.float32)
    np.savez("points.npz", x0=points)
    train("data={name: npz, path: points.npz}", "conditions=[]", "bridge.network={name: mlp, width: 8, depth: 1}")
    np.savez("points.npz", x0=points + 1)
    source = Run.open("run").experiment(device="cpu").source
    with pytest.raises(DataError, match=r"they have changed: .*their content has changed; put them back"):
        source.read(np.arange(2))


def test_a_run_without_a_record_needs_its_data() -> None:
    train()
    shutil.rmtree("data")
    content = json.loads(Path("run/data.json").read_text())
    for text in ("{", json.dumps({**content, "spec": None})):
        Path("run/data.json").write_text(text)
        with pytest.raises(DataError, match="no such folder"):
            Run.open("run").experiment(device="cpu")
    assert record.left_out(Recorded(content)) == ""
