"""Record, train, plan: from nothing to a table and an animation, through the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentsb.cli import main
from latentsb.cli.plan import numbers
from latentsb.errors import RecipeError

SMALL = "train.images=128 train.batch=32 train.warmup=0 train.log_every=64 train.save_every=128 train.preview_every=128"
SMALL += " bridge.network.width=8 bridge.network.multipliers=[1,2] preview.n=4"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    told = capsys.readouterr()
    assert left.value.code == 0, told.err
    return told.out


def test_from_nothing_to_a_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium_robotics", reason="the simulated maze needs the extra 'planning'")
    monkeypatch.chdir(tmp_path)
    assert "data/medium.npz" in run(capsys, "record", "medium", "--steps", "2000")
    run(capsys, "train", "plan_medium_line", *SMALL.split())
    out = run(capsys, "plan", "runs/plan_medium_line", "--episodes", "6", "--calls", "1,3", "--device", "cpu")
    assert "straight line" in out
    assert "waypoint controller" in out
    stem = Path("runs/plan_medium_line/plans/step-000000004")
    made = json.loads(stem.with_suffix(".json").read_text())
    assert [(row["plan"], row["calls"]) for row in made["rows"]] == [
        ("waypoint controller", None),
        ("straight line", None),
        ("plan", 1),
        ("plan", 3),
    ]
    controller, line, *planned = made["rows"]
    assert controller["success"]["mean"] == 1.0
    assert controller["inside"]["mean"] == 0.0
    for row in (line, *planned):
        wins = np.array(row["episodes"]["success"])
        assert len(wins) == 6
        assert row["success"]["mean"] == pytest.approx(wins.mean())
        gap = wins - np.array(line["episodes"]["success"])
        assert row["success beyond the straight line"]["mean"] == pytest.approx(gap.mean())
        assert row["success beyond the straight line"]["error"] == pytest.approx(gap.std(ddof=1) / 6**0.5)
    with Image.open(stem.with_suffix(".gif")) as picture:
        assert picture.n_frames > 20
    run(capsys, "plan", "runs/plan_medium_line", "--episodes", "6", "--calls", "3", "--device", "cpu")
    again = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert again[1] == line
    assert again[2] == planned[1]  # equal tasks and seeds, whatever else was asked for


def test_calls_are_whole_numbers():
    assert numbers("1, 4,16") == (1, 4, 16)
    for text in ("", "0", "1,,2", "1.5"):
        with pytest.raises(RecipeError, match="--calls"):
            numbers(text)
