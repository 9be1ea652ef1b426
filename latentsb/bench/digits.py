"""The handwritten digits in the plane of their sixteen principal components, for a bench of generative bridges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bench.arms import measured
from latentsb.bench.methods import TRAIN
from latentsb.bench.tables import Row, over_seeds
from latentsb.bench.toys import ToyBench, codes_of, energy, paths_of, wasserstein
from latentsb.experiment import Experiment, build
from latentsb.oracles import Normal
from latentsb.oracles.metrics import gaussian_kl
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.tensors import Batch

__all__ = ["COMPONENTS", "Digits"]

COMPONENTS = 16
"""They hold 85 % of the pixels' variance."""
HELD = 797
"""Of the 1,797 images: those that samples are compared with."""
SURE = 0.9
"""The probability from which on a digit counts as recognised."""
LATENTS = f"""
data: {{name: digits}}
held_out: {HELD}
autoencoder: {{name: pca, components: {COMPONENTS}}}
"""


class Digits:
    """Latents of 8×8 digits: sixteen principal components, each of mean 0 and standard deviation 1.

    Args:
        bench: the setting; of its numbers that of the points is the data's own.
    """

    name, base = "digits", LATENTS + TRAIN

    def __init__(self, bench: ToyBench) -> None:
        self.bench = bench

    def values(self, seed: int) -> dict[str, Any]:
        """What the words of the recipes stand for."""
        return self.bench.words(COMPONENTS)

    @torch.no_grad()
    def figures(self, experiment: Experiment, seed: int, folder: Path) -> dict[str, float | None]:
        """Of a trained bridge: as many samples as there are held-out images."""
        bridge, solver = experiment.bridge, experiment.solver
        x1 = Draws.block(seed, "bench source", 0, HELD).normal("x1", torch.empty(HELD, COMPONENTS))
        states = paths_of(bridge, solver, x1, seed)
        return {
            **self._quality(states[-1].x),
            "prior": gaussian_kl(codes_of(bridge, solver, self._held, seed), Normal.isotropic(COMPONENTS)),
            "energy": energy(bridge, states),
        }

    def floors(self, seeds: Sequence[int], runs: Path) -> Iterator[Row]:
        """Images that were trained on, and the normal law of their first two moments, a generator without a network."""

        def real(seed: int) -> Mapping[str, float | None]:
            rows = torch.randperm(len(self._seen), generator=torch.Generator().manual_seed(seed))[:HELD]
            return self._quality(self._seen[rows])

        def normal(seed: int) -> Mapping[str, float | None]:
            return self._quality(Normal.fitted(self._seen.double()).sample(HELD, Draws.block(seed, "bench", 0, HELD)))

        for name, make in {"images trained on": real, "normal law": normal}.items():
            place = runs / "floors" / self.name / name.replace(" ", "-")
            found = {seed: measured(place / f"seed{seed}.json", {"held": HELD}, partial(make, seed)) for seed in seeds}
            yield over_seeds(self.name, name, found)

    def _quality(self, latents: Tensor) -> dict[str, float | None]:
        """W2 from the held-out latents, and the share that a linear classifier of the others is sure of."""
        sure = self._classifier.predict_proba(latents.double().numpy()).max(axis=1) > SURE
        return {"w2": wasserstein(latents.float(), self._held), "recognised": float(sure.mean())}

    @property
    def _seen(self) -> Tensor:
        return self._latents[0]

    @property
    def _held(self) -> Tensor:
        return self._latents[1]

    @cached_property
    def _classifier(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=2000).fit(self._seen.double().numpy(), self._latents[2])

    @cached_property
    def _latents(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """Of the images to train on and of those held out, and the labels of the first."""
        experiment = build(Recipe.parse(f"{LATENTS}bridge: {{name: flow, network: mlp}}", label=self.name))
        assert experiment.held is not None
        seen = experiment.source.read(np.arange(len(experiment.source)))
        held = experiment.held.read(np.arange(len(experiment.held)))
        autoencoder = experiment.autoencoder
        autoencoder.fit(lambda: [Batch(torch.arange(len(seen.x0)), x0=seen.x0)])
        autoencoder.fit_normaliser([autoencoder.moments(seen.x0).mean])
        first, second = (autoencoder.encode(images) for images in (seen.x0, held.x0))
        return first, second, seen.cond["label"].numpy()
