"""Pairs of clean images and their degradations, made as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentsb.data.degradations import Degradation
from latentsb.data.pixels import PixelRule
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError
from latentsb.randomness import Draws
from latentsb.ranges import NonNegativeInt
from latentsb.tensors import Spec

__all__ = ["Degraded"]


@SOURCES.register("degraded")
class Degraded(Source):
    """Clean images x0 of another source and what a degradation leaves of them, x1: pairs for restoration.

    What is random in a degradation belongs to the sample, by its place in the source: it is degraded alike in every
    epoch, in training and held out, by any number of processes. A mirror image is a sample of its own. Holes bring the
    condition `mask`.

    Source: Liu et al. 2023, I2SB: image-to-image Schrödinger bridge, Sec. 5.

    Args:
        source: of clean images, whose labels and attributes stay.
        degradation: what is done to them; `chain` for several.
        seed: of what is random in it.

    Raises:
        ArgumentError: if samples are no images or cannot be degraded so, or have an x1 already.
    """

    two_sided = True
    paired = True

    def __init__(self, *, source: Source, degradation: Degradation, seed: NonNegativeInt = 0) -> None:
        if len(source.spec.shape) != 3:
            raise ArgumentError("source", f"samples have the shape {source.spec.shape}, expected images (C, H, W)")
        if source.two_sided:
            raise ArgumentError("source", "its samples have an x1 already")
        told = degradation.cond(source.spec)
        twice = sorted(source.cond.keys() & told.keys())
        if twice:
            raise ArgumentError("degradation", f"tells the condition '{twice[0]}', which the images have already")
        self.clean, self.degradation, self.seed = source, degradation, seed
        self.spec, self.variants, self.factors = source.spec, source.variants, source.factors
        self.cond: Mapping[str, Spec] = {**source.cond, **told}
        self.x0 = source.x0

    def __len__(self) -> int:
        return len(self.clean)

    def require(self) -> None:
        """Raise if files of the clean images are missing."""
        self.clean.require()

    def names(self) -> list[str] | None:
        """Those of the clean images."""
        return self.clean.names()

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the clean images."""
        return self.clean.words(name)

    def contents(self) -> Mapping[str, str]:
        """Those of the clean images."""
        return self.clean.contents()

    def problems(self) -> Mapping[str, str]:
        """Those of the clean images."""
        return self.clean.problems()

    def image_rule(self) -> PixelRule:
        """That of the clean images."""
        return self.clean.image_rule()

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read clean images and degrade them as they are, mirrored ones after that."""
        return self._paired(self.clean.read(index, variant), index, variant)

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """The same for clean images of which a part is random; the degradation is not."""
        return self._paired(self.clean.draw(index, variant, draws), index, variant)

    def _paired(self, found: Items, index: np.ndarray, variant: np.ndarray | None) -> Items:
        samples = 2 * np.asarray(index, dtype=np.int64) + (0 if variant is None else variant)
        draws = Draws.seeds(samples.tolist()).fork(f"degraded {self.seed}")
        x1, told = self.degradation.apply(found.x0, draws)
        return Items(found.x0, x1, {**found.cond, **told})

    def fingerprint(self) -> dict[str, Any]:
        """That of the clean images, and what is done to them."""
        return {
            "data": "degraded",
            "source": self.clean.fingerprint(),
            "degradation": self.degradation.identity(),
            "seed": self.seed,
        }
