"""kill -9 at random times, inside saves and while resuming; then the same command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentsb.run import Run

HERE = Path(__file__).parent


def survive(tmp_path, recipe_text, losses, digests, trials, seed):
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(recipe_text.replace("images: 320", "images: 1600") + "\n")
    text = recipe.read_text().replace("name: alternating,", "name: alternating, pause: 0.002,")
    recipe.write_text(text)
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(recipe), str(tmp_path), str(trials), str(seed)],
        capture_output=True,
        text=True,
        check=True,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == trials
    whole = Run.open(tmp_path / "whole")
    for number, report in enumerate(reports):
        assert report["code"] == 0, report
        run = Run.open(tmp_path / f"trial-{number}")
        assert digests(run) == digests(whole), report
        assert losses(run) == losses(whole), report
    return {kind: sum(r["kills"][kind] for r in reports) for kind in reports[0]["kills"]}


def test_three_killed_runs_end_as_the_unbroken_one(tmp_path, recipe_text, losses, digests):
    kills = survive(tmp_path, recipe_text, losses, digests, 3, seed=1)
    assert min(kills.values()) >= 1, kills


@pytest.mark.slow
def test_twenty_killed_runs_end_as_the_unbroken_one(tmp_path, recipe_text, losses, digests):
    kills = survive(tmp_path, recipe_text, losses, digests, 20, seed=2)
    assert sum(kills.values()) >= 50, kills
