"""An encoding that is killed goes on, and several processes share one: the cache is the same to the byte."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHILD = Path(__file__).with_name("encoding_killed.py")
BLOCK = 16
LINE = 8 + 8 + 4 * 4 * 8 + 2 * 2 * 4 * 8 + 32 + 4
"""Bytes that a journal has for a block: four moments, two errors of two kept moments, for four channels."""
N = 6 * BLOCK - 5
KILLED = -signal.SIGKILL


def photos(folder, n, size=24):
    """JPEGs in two classes."""
    rng = np.random.default_rng(0)
    for k in range(n):
        coarse = rng.integers(0, 255, (3, 3, 3), dtype=np.uint8)
        path = folder / "ab"[k % 2] / f"{k:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def steps(folder, asked):
    """Do the steps in a process of their own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    asked = [{"store": "uint8", **step, "place": str(folder / step["place"])} for step in asked]
    command = [sys.executable, str(CHILD), str(folder / "photos"), json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with all caches, and what came of each step."""
    folder = tmp_path_factory.mktemp("encoded")
    photos(folder / "photos", N)
    asked = [
        {"place": "whole"},
        {"place": "broken", "kill_at": 2},
        {"place": "broken", "kill_at": 3},
        {"place": "broken", "kill_at": 1},
        {"place": "broken", "damage": True},
        {"place": "two", "processes": 2},
        {"place": "half", "kill_at": 2},
        {"place": "half", "processes": 2},
        {"place": "other", "kill_at": 2},
        {"place": "other", "store": "float16"},
    ]
    return folder, steps(folder, asked)


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_cache_that_was_killed_three_times_and_damaged_is_that_of_an_unbroken_one(made):
    folder, (whole, *killed, last, _, _, _, _, _) = made
    assert whole["told"] == [[0, 12, N]]
    assert [step["codes"] for step in killed] == [[KILLED]] * 3
    assert [step["journal"] for step in killed] == [2 * LINE, 5 * LINE, 6 * LINE]
    # Of the first six blocks, the last one of which is short, the second was damaged.
    assert last["told"] == [[5 * BLOCK - 5, 7, N]]
    assert files(folder / "broken") == files(folder / "whole")
    assert not (folder / ".broken.building").exists()


def test_two_processes_encode_what_one_does(made):
    folder, (*_, two, _, half, _, _) = made
    assert (two["codes"], two["told"]) == ([0, 0], [[0, 6, N], [0, 6, N]])
    assert (half["codes"], half["told"]) == ([0, 0], [[2 * BLOCK, 5, N], [2 * BLOCK, 5, N]])
    assert files(folder / "two") == files(folder / "half") == files(folder / "whole")


def test_another_store_does_not_go_on_with_what_is_there(made):
    _, (*_, killed, other) = made
    assert (killed["codes"], other["told"]) == ([KILLED], [[0, 12, N]])


@pytest.mark.slow
def test_a_thousand_photographs_killed_at_any_moment(tmp_path):
    photos(tmp_path / "photos", 1000, size=160)
    (whole,) = steps(tmp_path, [{"place": "whole"}])
    rng, kills = np.random.default_rng(1), 0
    while kills < 3:
        wait = rng.uniform(0.1, 0.5) * whole["seconds"]
        (step,) = steps(tmp_path, [{"place": "broken", "kill_after": wait}])
        assert step["codes"] == [KILLED]
        kills += 0 < step["journal"] < 125 * LINE
        assert not (tmp_path / "broken").exists()
    (last,) = steps(tmp_path, [{"place": "broken"}])
    assert last["told"][0][0] > 0
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
