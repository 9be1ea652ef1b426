"""Data on a curved sheet, and other data for the autoencoder than for the bridge."""

import numpy as np
import pytest
import torch

from latentsb.data.sheets import Sheet, Square, embed
from latentsb.data.shifted import Shifted
from latentsb.data.subset import split
from latentsb.data.toys import EightGaussians
from latentsb.errors import ArgumentError, RecipeError
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.trainer import Trainer

RECIPE = """
data:
  name: shifted
  target: {name: sheet, dim: 6, source: {name: mixture, n: 120, std: 0.1}}
  pretraining: {name: sheet, dim: 6, source: {name: square, n: 300}}
held_out: 20
autoencoder: {name: mlp, dim: 2, width: 16, depth: 1}
bridge: {name: lsbdm, network: {name: mlp, width: 8, depth: 1}}
solver: {name: posterior, eta: 1.0, steps: 4, grid: karras}
train: {images: 64, batch: 32, save_every: 1_000_000, preview_every: 1_000_000, log_every: 1_000_000, workers: 1}
stages: [{train: autoencoder}, {train: bridge}]
"""


def test_a_square_is_evenly_filled():
    points = Square(half=1.5, n=20_000).read(np.arange(20_000)).x0
    assert float(points.abs().max()) <= 1.5
    assert points.var(0).tolist() == pytest.approx([0.75, 0.75], rel=0.05)


def test_a_sheet_has_the_dimensions_of_what_it_is_made_of():
    """Its tangent at each point is the Jacobian `W1 diag(1 − tanh²) W2`, of rank two."""
    flat = EightGaussians(n=50)
    sheet = Sheet(source=flat, dim=7, hidden=9, seed=3)
    index = np.arange(50)
    found, points = sheet.read(index), flat.read(index).x0.numpy().astype(np.float64)
    assert np.allclose(found.x0.numpy(), embed(points, 7, 9, 3), atol=1e-6)
    assert torch.equal(found.cond["label"], flat.read(index).cond["label"])
    step = 1e-5
    tangent = [(embed(points + step * e, 7, 9, 3) - embed(points - step * e, 7, 9, 3)) / (2 * step) for e in np.eye(2)]
    values = np.linalg.svd(np.stack(tangent, 1), compute_uv=False)
    assert values.shape == (50, 2)
    assert values.min() > 1e-3
    assert sheet.fingerprint() != Sheet(source=flat, dim=7, hidden=9, seed=4).fingerprint()
    assert Sheet(source=flat, dim=7, hidden=9, seed=4).read(index).x0.shape == (50, 7)


def test_samples_are_the_targets_and_subsets_keep_the_other():
    target, before = EightGaussians(n=40), Square(n=90)
    shifted = Shifted(target=target, pretraining=before)
    assert len(shifted) == 40
    assert shifted.pretraining is before
    assert torch.equal(shifted.read(np.arange(5)).x0, target.read(np.arange(5)).x0)
    assert all(part.pretraining is before for part in split(shifted, 8, 0))
    other = Shifted(target=target, pretraining=Square(n=90, seed=1))
    assert shifted.fingerprint() != other.fingerprint()
    with pytest.raises(ArgumentError, match="shape"):
        Shifted(target=target, pretraining=Sheet(source=before, dim=3))


def test_the_autoencoder_sees_the_other_data_and_the_normaliser_the_target(tmp_path, monkeypatch):
    from latentsb import trainer

    asked, seen = Recipe.parse(RECIPE, label="shifted"), []
    data = trainer.Stage._data

    def watched(stage):
        found = data(stage)
        seen.append((stage.session.head, len(found[0])))
        return found

    monkeypatch.setattr(trainer.Stage, "_data", watched)
    run = Run.create(asked, tmp_path / "run")
    try:
        Trainer(run, build(asked), device="cpu").fit()
        assert seen == [("autoencoder", 300), ("bridge", 100)]
        built = run.experiment(device="cpu")
        assert built.source.pretraining is not None
        with torch.no_grad():
            latents = built.autoencoder.encode(built.source.read(np.arange(100)).x0)
        assert torch.allclose(latents.mean(0), torch.zeros(2), atol=1e-3)
        assert torch.allclose(latents.std(0, correction=0), torch.ones(2), atol=1e-3)
        assert built.bridge.origin.fitted
        assert int(built.bridge.origin.law.count) == 100
    finally:
        run.close()


def test_latents_are_no_longer_than_samples():
    with pytest.raises((ArgumentError, RecipeError), match="6 numbers"):
        build(Recipe.parse(RECIPE.replace("dim: 2, width: 16", "dim: 7, width: 16"), label="long"))
