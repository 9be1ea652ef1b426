"""Trained runs of several kinds, and commands on them."""

from __future__ import annotations

import pytest

from latentsb.cli import main
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer

NETWORK = "network: {name: mlp, width: 16, depth: 1}"
TRAIN = "train: {images: 128, batch: 64, preview_every: 1000000, save_every: 1000000}"
RECIPES = {
    "coded": f"""
data: digits
bridge:
  name: dbae
  z_dim: 4
  {NETWORK}
  encoder: {{name: dense, width: 16, depth: 1}}
  decoder: {{name: dense, width: 16, depth: 1}}
solver: {{name: dpmpp, steps: 3}}
{TRAIN}
""",
    "classes": f"""
data: digits
conditions: [label]
bridge: {{name: flow, {NETWORK}}}
solver: {{name: heun, steps: 2}}
{TRAIN}
""",
    "pairs": f"""
data:
  name: paired
  x0: {{name: moons, n: 200}}
  x1: {{name: moons, n: 200, std: 0.3}}
bridge: {{name: ddbm, {NETWORK}}}
solver: {{name: dpmpp, steps: 2}}
{TRAIN}
""",
    "pictures": f"""
data: {{name: paired, x0: digits, x1: digits}}
conditions: [label]
bridge: {{name: ddbm, {NETWORK}}}
solver: {{name: dpmpp, steps: 2}}
{TRAIN}
""",
    "points": f"""
data: {{name: gaussian, n: 200}}
bridge: {{name: flow, {NETWORK}}}
solver: {{name: heun, steps: 2}}
{TRAIN}
""",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a trained run of each recipe."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in RECIPES.items():
        recipe = Recipe.parse(text, (), label=name)
        run = Run.create(recipe, folder / "runs" / name)
        Trainer(run, build(recipe), device="cpu").fit()
        run.close()
    return folder


@pytest.fixture
def commands(capsys, monkeypatch):
    """From a folder to a way of giving commands there: exit code, standard output, standard error."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def give(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    def at(folder):
        monkeypatch.chdir(folder)
        return give

    return at


@pytest.fixture
def command(runs, commands):
    """Give a command in the folder of the trained runs."""
    return commands(runs)
