"""Data with other data beside them, on which the autoencoder is pre-trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentsb.data.pixels import PixelRule
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError
from latentsb.randomness import Draws

__all__ = ["Shifted"]


@SOURCES.register("shifted")
class Shifted(Source):
    """Data of one source; stages that train the autoencoder see another one, of a law that may be shifted.

    The latents, their normaliser and the bridge are of the target alone, and what is held out is held out of it.

    Source: Jiao et al. 2024, Latent Schrödinger bridge diffusion model for generative learning: pre-training.

    Args:
        target: what is to be generated.
        pretraining: what the autoencoder is trained on, perhaps much more of it.

    Raises:
        ArgumentError: if samples of the two differ in shape.
    """

    def __init__(self, *, target: Source, pretraining: Source) -> None:
        if pretraining.spec.shape != target.spec.shape:
            told = f"samples have shape {pretraining.spec.shape}, those of the target have {target.spec.shape}"
            raise ArgumentError("pretraining", told)
        self.target, self.before, self.pretraining = target, pretraining, pretraining
        self.spec, self.cond, self.variants = target.spec, target.cond, target.variants
        self.factors, self.two_sided, self.paired = target.factors, target.two_sided, target.paired
        self.x0, self.x1 = target.x0, target.x1

    def __len__(self) -> int:
        return len(self.target)

    def require(self) -> None:
        """Raise if files of either are missing."""
        self.target.require()
        self.before.require()

    @property
    def partners(self) -> int:
        """Those of the target."""
        return self.target.partners

    def names(self) -> list[str] | None:
        """Those of the target."""
        return self.target.names()

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the target."""
        return self.target.words(name)

    def contents(self) -> Mapping[str, str]:
        """Those of the target."""
        return self.target.contents()

    def problems(self) -> Mapping[str, str]:
        """Those of the target."""
        return self.target.problems()

    def image_rule(self) -> PixelRule:
        """That of the target."""
        return self.target.image_rule()

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read samples of the target."""
        return self.target.read(index, variant)

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """The same for samples of which a part is random."""
        return self.target.draw(index, variant, draws)

    def fingerprint(self) -> dict[str, Any]:
        """Those of both."""
        return {"data": "shifted", "target": self.target.fingerprint(), "pretraining": self.before.fingerprint()}
