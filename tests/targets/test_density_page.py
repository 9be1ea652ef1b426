"""The page on samplers: its target is one class, its recipe binds and its log Z is right."""

import math
import re
from pathlib import Path

import torch

from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.targets.base import TARGETS

PAGE = (Path(__file__).parents[2] / "docs" / "methods" / "density.md").read_text(encoding="utf-8")


def test_the_target_of_the_page(tmp_path):
    code, text = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("python", "yaml"))
    (tmp_path / "banana.py").write_text(code)
    target = build(Recipe.parse(text, folder=tmp_path)).bridge.target
    assert target.bend == 0.8
    line = torch.linspace(-7, 7, 281, dtype=torch.float64)
    tall = torch.linspace(-8, 48, 1121, dtype=torch.float64)
    mass = target.log_prob(torch.cartesian_prod(line, tall)).exp().sum() * 0.05 * 0.05
    assert math.log(float(mass)) - target.log_z < 1e-6


def test_every_target_is_on_the_page_with_its_log_z():
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([−\d.]+) \|$", PAGE, re.MULTILINE))
    own = {word: TARGETS[word]() for word in TARGETS if TARGETS[word].__module__.startswith("latentsb.")}
    assert rows.keys() == own.keys()
    for word, target in own.items():
        assert abs(float(rows[word].replace("−", "-")) - target.log_z) < 1e-6
