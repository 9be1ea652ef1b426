"""The page about recipes: its example is a recipe, and its table of keys is the code's."""

from __future__ import annotations

import re
from pathlib import Path

from latentsb.recipe import Recipe
from latentsb.recipe.binding import keys_of
from latentsb.recipe.document import SECTIONS
from latentsb.recipe.sections import TrainSettings

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_example_binds_and_builds():
    from latentsb.experiment import build

    text = re.search(r"```yaml\n(about:.*?)```", PAGE, re.DOTALL)[1]
    recipe = Recipe.parse(text, label="example")
    assert recipe.stages[0].settings.warmup == 20_000
    assert recipe.train.max_time == 7200
    assert build(recipe).bridge.z_dim == recipe.bridge.arguments["z_dim"] == 32


def test_every_key_of_train_and_every_section_is_on_the_page():
    rows = dict(re.findall(r"^\| `(\w+)` \| `[^`]*` \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == {name: key.about for name, key in keys_of(TrainSettings).items()}
    for section in SECTIONS:
        assert f"`{section}`" in PAGE
