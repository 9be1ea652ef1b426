"""A recipe that asks a deterministic encoder for its posterior is refused before anything starts."""

from __future__ import annotations

import pytest
import torch

from latentsb.autoencoder import AUTOENCODERS
from latentsb.errors import RecipeError
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.tensors import Spec

RECIPE = """data: digits
autoencoder: {AUTOENCODER}
latents: {posterior: true}
bridge: {name: flow, network: mlp}
stages: [{train: autoencoder}, {train: bridge}]
"""


def test_the_posterior_of_none_is_refused_where_the_recipe_asks_for_it():
    with pytest.raises(RecipeError) as found:
        build(Recipe.parse(RECIPE.replace("{AUTOENCODER}", "mlp"), label="r"))
    [problem] = [p for p in found.value.problems if p.key == "latents"]
    assert "'mlp' has no posterior" in problem.message
    assert problem.where.endswith(":3:1")


def test_a_gaussian_encoder_is_asked_for_its_posterior():
    kl = "{name: kl, widths: [8, 16], groups: 4}"
    assert not build(Recipe.parse(RECIPE.replace("{AUTOENCODER}", kl), label="r")).autoencoder.deterministic


@pytest.mark.parametrize("name", ["identity", "patch", "mlp", "tiny", "vq"])
def test_the_deterministic_ones_have_no_spread(name):
    keys = {
        "patch": {"factor": 2},
        "tiny": {"encoder_width": 8, "decoder_width": 8},
        "vq": {"widths": (16, 16), "codes": 8},
    }
    with torch.random.fork_rng():
        codec = AUTOENCODERS[name](Spec((3, 8, 8)), **keys.get(name, {}))
    assert codec.deterministic
    assert codec.moments(torch.zeros(2, 3, 8, 8)).std is None
