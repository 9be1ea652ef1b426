"""The page about one's own data: its recipes bind, and shapes are known without the files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

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
    shape = source.spec.shape[1:]
    assert shape in ((32, 32), (64, 64), (256, 256))
    assert shape[0] == recipe.data.arguments.get("size", shape[0])


def test_every_source_but_toys_is_on_the_page() -> None:
    assert len(RECIPES) == 12
    for word in ("folder", "tar", "huggingface", "arrays", "npz", "paired", "unpaired", "degraded", "sprites"):
        assert word in SOURCES
        assert f"`{word}`" in PAGE


@pytest.mark.shared
def test_latents_made_elsewhere_are_decoded_as_the_page_says(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient is encoded by hand, read as data `arrays`, and decoded by the page's own lines."""
    from latentsb import AUTOENCODERS, Spec
    from latentsb.data.mapped import Arrays

    monkeypatch.setenv("LATENTSB_WEIGHTS", str(shared_data / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    x = torch.linspace(-0.8, 0.8, 256).expand(1, 3, 256, 256)
    encoder = AUTOENCODERS["taef2"](Spec((3, 256, 256)), weights="taef2")
    encoder.load()
    with torch.no_grad():
        np.save("x0.npy", encoder.moments(x).mean.numpy())
        read = Arrays(paths=Path("x0.npy"), layout="NCHW").read(np.arange(1)).x0
        folder = Path("runs/x/samples/…")
        folder.mkdir(parents=True)
        np.savez(folder / "samples.npz", x=read.numpy())
        lines = next(text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "raw_decode" in text)
        names: dict[str, torch.Tensor] = {}
        exec(lines, names)
    assert (names["images"] - x).pow(2).mean() < 1e-3  # 36 dB of a range of 2
