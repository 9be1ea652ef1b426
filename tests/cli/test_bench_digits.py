"""The digits of `bench kaba`: latents, classifier and distances by scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from latentsb.bench.digits import COMPONENTS, HELD, Digits
from latentsb.bench.toys import ToyBench
from latentsb.experiment import build
from latentsb.recipe import Recipe


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    found = Digits(ToyBench()).floors((0, 1), tmp_path_factory.mktemp("runs"))
    return {row.name: row for row in found}


@pytest.fixture(scope="module")
def truth():
    experiment = build(Recipe.parse(f"data: digits\nheld_out: {HELD}\nbridge: {{name: flow, network: mlp}}", label="x"))
    seen = experiment.source.read(np.arange(len(experiment.source)))
    held = experiment.held.read(np.arange(HELD)).x0
    pca = PCA(COMPONENTS).fit(seen.x0.flatten(1).double().numpy())

    def latents(images):
        return (
            pca.transform(images.flatten(1).double().numpy())
            / (pca.explained_variance_ * (1 - 1 / pca.n_samples_)) ** 0.5
        )

    first, second = latents(seen.x0), latents(held)
    return first, second, LogisticRegression(max_iter=2000).fit(first, seen.cond["label"].numpy())


def test_figures_of_real_digits_are_those_of_other_libraries(rows, truth):
    seen, held, classifier = truth
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:HELD].numpy()
    cost = cdist(seen[order], held, "sqeuclidean")
    expected = cost[linear_sum_assignment(cost)].mean() ** 0.5
    row = rows["images trained on"]
    assert row.figures["w2"][0] == pytest.approx(expected, rel=1e-4)
    sure = (classifier.predict_proba(seen[order]).max(1) > 0.9).mean()
    assert row.figures["recognised"][0] == pytest.approx(sure, abs=2.5 / HELD)


def test_a_normal_law_of_the_same_moments_is_no_digit(rows):
    real, normal = rows["images trained on"], rows["normal law"]
    for key, sign in {"w2": 1, "recognised": -1}.items():
        gaps = [sign * (b - a) for a, b in zip(real.figures[key], normal.figures[key], strict=True)]
        assert min(gaps) > 0.3
    assert rows["normal law"].seeds == (0, 1)


def test_latents_are_white(truth):
    case = Digits(ToyBench())
    latents = case._latents[0].double()
    assert torch.allclose(latents.mean(0), torch.zeros(COMPONENTS).double(), atol=1e-5)
    assert torch.allclose(torch.cov(latents.T, correction=0), torch.eye(COMPONENTS).double(), atol=1e-4)
    # Of each component the sign is a convention.
    assert np.allclose(np.abs(latents.numpy()), np.abs(truth[0]), atol=2e-3)
