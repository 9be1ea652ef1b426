"""The page about priors: what it shows are recipes, and the published prior is the published one."""

import math
import re
from pathlib import Path

import pytest
import torch

from latentsb.experiment import build
from latentsb.learned_prior import BridgePrior
from latentsb.process.distances import Absolute
from latentsb.process.preconditioning import Noise
from latentsb.recipe import Recipe
from latentsb.recipe.binding import keys_of

PAGE = (Path(__file__).parents[2] / "docs" / "methods" / "prior.md").read_text(encoding="utf-8")
OWN, PUBLISHED = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_a_stage_of_its_own_binds_and_builds():
    experiment = build(Recipe.parse(OWN, label="page"))
    assert [stage.train for stage in experiment.recipe.stages][1:] == ["bridge", "bridge.prior"]
    assert isinstance(experiment.bridge.prior, BridgePrior)


def test_the_published_prior_is_a_recipe():
    made = build(Recipe.parse(PUBLISHED, label="page")).bridge.prior
    assert round(sum(p.numel() for p in made.parameters()) / 1e6) == 54
    assert isinstance(made.bridge.preconditioning, Noise)
    assert isinstance(made.bridge.distance, Absolute)
    assert float(made.bridge.marginal(torch.tensor(1.0)).b) == pytest.approx(math.exp(-4))


def test_every_key_is_on_the_page():
    rows = re.findall(r"^\| `(\w+)` \| (\S+)", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} >= set(keys_of(BridgePrior))
