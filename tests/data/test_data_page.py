"""The page about one's own data: its recipes bind, and shapes are known without the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentsb.data.source import SOURCES
from latentsb.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
BRIDGE = "bridge: {name: flow, network: mlp}\n"


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_bind_and_tell_shapes(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.parse(text if "bridge:" in text else text + BRIDGE, label="page")
    if recipe.data.name == "npz" or "identity" in text:  # shapes are in the file
        return
    source = recipe.data.build()
    asked = recipe.data.arguments["size"] if "size" in recipe.data.arguments else 32
    assert source.spec.shape[1:] == (asked, asked)


def test_every_source_but_toys_is_on_the_page() -> None:
    assert len(RECIPES) == 7
    for word in ("folder", "tar", "npz", "paired", "unpaired", "degraded", "sprites"):
        assert word in SOURCES
        assert f"`{word}`" in PAGE
