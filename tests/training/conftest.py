"""A tiny training, in this process: two networks that take turns on points of the line, of which no picture is made."""

from pathlib import Path

import pytest

from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer

HERE = Path(__file__).parent
RECIPE = f"""
imports: [{HERE / "alternating.py"}]
seed: 3
data: {{name: gaussian, mean: [0.5], n: 100}}
bridge: {{name: alternating, network: {{name: mlp, width: 16, depth: 1, dropout: 0.1}}}}
train: {{images: 320, batch: 16, log_every: 48, save_every: 160, preview_every: 1000000, warmup: 100}}
"""


@pytest.fixture
def recipe_text():
    return RECIPE


@pytest.fixture
def load():
    return lambda *overrides, text=RECIPE: Recipe.parse(text, overrides, label="toy")


@pytest.fixture
def train(load):
    """Train at a path with overrides; returns the run and how it ended."""

    def run_it(path, *overrides, text=RECIPE, before=None):
        recipe = load(*overrides, text=text)
        run = Run.create(recipe, path)
        try:
            trainer = Trainer(run, build(recipe), device="cpu")
            if before is not None:
                before(trainer)
            return run, trainer.fit()
        finally:
            run.close()

    return run_it


VARY = {"seconds", "images_per_second", "data_wait", "memory"}


@pytest.fixture
def losses():
    """The log without what depends on the machine."""
    return lambda run: [{k: v for k, v in r.items() if k not in VARY} for r in run.records()]


@pytest.fixture
def digests():
    """sha256 of each file of the newest checkpoint."""
    return lambda run: dict(run.checkpoint().sha256)
