"""Two sources made into one with two ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from latentsb.data.pixels import PixelRule
from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError, DataError
from latentsb.randomness import Draws

__all__ = ["Paired", "Unpaired"]


class TwoSided(Source):
    """A source whose x0 and conditions come from one source, and whose x1 comes from another."""

    two_sided = True

    def __init__(self, x0: Source, x1: Source) -> None:
        if x0.spec.shape != x1.spec.shape:
            raise ArgumentError("x1", f"samples have shape {x1.spec.shape}, those of x0 have {x0.spec.shape}")
        if x0.variants != x1.variants:
            raise ArgumentError("x1", "one end may be mirrored and the other not; set `flip` alike")
        self.near, self.far = x0, x1
        self.spec, self.cond, self.variants = x0.spec, x0.cond, x0.variants

    def __len__(self) -> int:
        return len(self.near)

    def require(self) -> None:
        """Raise if files of either end are missing."""
        self.near.require()
        self.far.require()

    @property
    def partners(self) -> int:
        """Samples of the other end."""
        return len(self.far)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read both ends; beyond the other end's length it begins again."""
        found = self.near.read(index, variant)
        return Items(found.x0, self.far.read(index % len(self.far), variant).x0, found.cond)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Read the other end alone."""
        return self.far.draw(index, variant, draws).x0

    def names(self) -> list[str] | None:
        """Those of the data end."""
        return self.near.names()

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the data end."""
        return self.near.words(name)

    def contents(self) -> Mapping[str, str]:
        """Those of both sources, below `x0/` and `x1/`."""
        return _both(self.near.contents(), self.far.contents())

    def problems(self) -> Mapping[str, str]:
        """Those of both sources, below `x0/` and `x1/`."""
        return _both(self.near.problems(), self.far.problems())

    def image_rule(self) -> PixelRule:
        """That of the data end."""
        return self.near.image_rule()

    def fingerprint(self) -> dict[str, Any]:
        """Those of both sources."""
        return {"paired": self.paired, "x0": self.near.fingerprint(), "x1": self.far.fingerprint()}


def _both(near: Mapping[str, str], far: Mapping[str, str]) -> dict[str, str]:
    return {f"{end}/{name}": value for end, values in (("x0", near), ("x1", far)) for name, value in values.items()}


@SOURCES.register("unpaired")
class Unpaired(TwoSided):
    """Two unrelated data sets, one for each end; their sizes may differ.

    Args:
        x0: data end.
        x1: other end, samples of the same shape.
    """

    def __init__(self, *, x0: Source, x1: Source) -> None:
        super().__init__(x0, x1)


@SOURCES.register("paired")
class Paired(TwoSided):
    """Two data sets of partners, in the order of x0.

    Where both name their samples (folders: the path without its ending; shards: the key), partners have the same name,
    in whatever order; else the i-th x1 is the partner of the i-th x0.

    Args:
        x0: data end.
        x1: partners, samples of the same shape.

    Raises:
        DataError: if the numbers or the names differ; names the first.
    """

    paired = True

    def __init__(self, *, x0: Source, x1: Source) -> None:
        super().__init__(x0, x1)

    def __len__(self) -> int:
        return len(self._partner)

    @property
    def partners(self) -> int:
        """As many as samples."""
        return len(self)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read both ends."""
        partner = self._partner[index]
        found = self.near.read(index, variant)
        return Items(found.x0, self.far.read(partner, variant).x0, found.cond)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Read the partners alone."""
        return super().draw_x1(self._partner[index], variant, draws)

    @cached_property
    def _partner(self) -> np.ndarray:
        """Position in x1 of each sample's partner; numbers and names are compared when the data are first used."""
        self.require()
        left, right = self.near.names(), self.far.names()
        if left is None or right is None:
            if len(self.near) != len(self.far):
                raise DataError(f"pairs need equal numbers, found {len(self.near)} of x0 and {len(self.far)} of x1")
            return np.arange(len(self.near))
        alone = sorted(set(left) ^ set(right))
        if alone:
            end, other = ("x0", "x1") if alone[0] in set(left) else ("x1", "x0")
            number = "1 sample has" if len(alone) == 1 else f"{len(alone):,} samples have"
            raise DataError(f"{number} no partner; the first is '{alone[0]}' of {end}, which {other} lacks")
        for names in (left, right):
            if len(set(names)) < len(names):
                twice = Counter(names).most_common(1)[0][0]
                raise DataError(f"pairs need unique names; found two files called '{twice}' but for the ending")
        place = {name: k for k, name in enumerate(right)}
        return np.array([place[name] for name in left], dtype=np.int64)
