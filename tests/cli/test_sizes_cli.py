"""Commands at other sizes than squares, and at another size than the trained one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = """
data: {name: arrays, paths: [x.npy]}
bridge: {name: flow, network: {name: dit, width: 16, depth: 1, heads: 2, patch: 2}}
solver: {name: euler, steps: 2}
train: {images: 8, batch: 4, warmup: 4, preview_every: 8}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With images of 8×12 and a recipe."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-1, 1, (8, 3, 8, 12)).astype(np.float32))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_sampling_at_another_size(folder, commands):
    give = commands(folder)
    assert give("train", "r.yaml", "-o", "run")[0] == 0
    assert give("sample", "run", "-n", "2", "--size", "16x8", "--positions", "ntk", "--device", "cpu")[0] == 0
    (made,) = (folder / "run" / "samples").glob("*-16x8-ntk")
    assert Image.open(made / "000000.png").size == (8, 16)
    facts = json.loads((made / "samples.json").read_text())
    assert (facts["size"], facts["positions"]) == ([16, 8], {"name": "ntk"})
    assert give("sample", "run", "-n", "2", "--device", "cpu")[0] == 0
    plain = made.with_name(made.name.removesuffix("-16x8-ntk"))
    assert Image.open(plain / "000000.png").size == (12, 8)
    code, _, told = give("sample", "run", "--size", "16by8")
    assert code == 2
    assert "--size: found '16by8', expected one side as 1024" in told
    code, _, told = give("sample", "run", "--tiles", "64")
    assert code == 2
    assert "'identity' does not work in tiles" in told
