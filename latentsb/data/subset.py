"""Some samples of a source, and the two parts of a source that is split into training and held-out data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
from torch import Tensor

from latentsb.data.pixels import PixelRule
from latentsb.data.source import Items, Source
from latentsb.errors import DataError, Problem, RecipeError
from latentsb.randomness import Draws, numpy_generator

__all__ = ["Subset", "split", "whole"]

Rows = Sequence[int] | np.ndarray


class Subset(Source):
    """Some samples of a source, in the order of their positions there.

    The files behind the data are those of the whole source: any of them may decide which samples are chosen.

    Args:
        source: that is chosen from.
        rows: positions in it, or a function that tells them when they are first asked for, so that a source can be
            described whose data is absent.
        others: positions of the other ends, where these are unrelated to the samples; all if None.
    """

    def __init__(
        self, source: Source, rows: Rows | Callable[[], Rows], others: Rows | Callable[[], Rows] | None = None
    ) -> None:
        self.source, self._asked, self._others_asked = source, rows, others
        self.spec, self.cond, self.variants = source.spec, source.cond, source.variants
        self.factors = source.factors
        self.two_sided, self.paired = source.two_sided, source.paired
        self.x0, self.x1 = source.x0, source.x1
        self.pretraining = source.pretraining

    @cached_property
    def rows(self) -> np.ndarray:
        """Positions of the samples in the source, int64."""
        return _positions(self._asked)

    @cached_property
    def others(self) -> np.ndarray:
        """Positions of the other ends in the source, int64; those of the samples where the ends are paired."""
        if self.paired:
            return self.rows
        if self._others_asked is None:
            return np.arange(self.source.partners)
        return _positions(self._others_asked)

    def __len__(self) -> int:
        return len(self.rows)

    def require(self) -> None:
        """Raise if files of the whole source are missing."""
        self.source.require()

    @property
    def partners(self) -> int:
        """How many x1 there are."""
        return len(self.others) if self.two_sided else 0

    def names(self) -> list[str] | None:
        """Those of the samples that are chosen."""
        known = self.source.names()
        return None if known is None else [known[row] for row in self.rows.tolist()]

    def words(self, name: str) -> tuple[str, ...]:
        """Those of the whole source."""
        return self.source.words(name)

    def contents(self) -> Mapping[str, str]:
        """Those of the whole source."""
        return self.source.contents()

    def problems(self) -> Mapping[str, str]:
        """Those of the whole source."""
        return self.source.problems()

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Read samples that are chosen; unrelated other ends begin again where there are fewer of them."""
        return self._with_x1(self.source.read(self.rows[index], variant), index, variant, Draws.seeds(index.tolist()))

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """The same for samples of which a part is random."""
        return self._with_x1(self.source.draw(self.rows[index], variant, draws), index, variant, draws)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Read other ends that are chosen."""
        if not self.two_sided:
            raise DataError("these data have no x1")
        return self.source.draw_x1(self.others[index], variant, draws)

    def _with_x1(self, found: Items, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """The items with an x1 that is chosen too, where it is no partner of the x0."""
        if found.x1 is None or self.paired:
            return found
        return Items(found.x0, self.draw_x1(index % self.partners, variant, draws.fork("x1")), found.cond)

    def image_rule(self) -> PixelRule:
        """That of the source."""
        return self.source.image_rule()

    def fingerprint(self) -> dict[str, Any]:
        """That of the source, with a digest of the positions."""
        digest = hashlib.sha256(self.rows.tobytes())
        if self.two_sided:
            digest.update(self.others.tobytes())
        return {**self.source.fingerprint(), "subset": digest.hexdigest()}


def _positions(asked: Rows | Callable[[], Rows]) -> np.ndarray:
    return np.asarray(asked() if callable(asked) else asked, dtype=np.int64)


def whole(source: Source) -> Source:
    """The source that a subset is chosen from; another source as it is."""
    return source.source if isinstance(source, Subset) else source


def split(source: Source, held_out: float, seed: int, *, place: str = "") -> tuple[Subset, Subset]:
    """Split a source into what is trained on and what is held out.

    Which samples are held out is a function of the seed and their number alone. Of two unrelated ends as many are held
    out of each. Nothing is read before a part is used.

    Args:
        source: of all samples.
        held_out: how many are held out: a number from 1 on, or a share in (0, 1), of which at least one.
        seed: of the run.
        place: where the recipe says how many, for the message.

    Returns:
        The two parts; held-out samples are never mirrored.

    Raises:
        RecipeError: when a part is first used, if nothing would be left to train on.
    """

    @cache
    def parts(end: str) -> tuple[np.ndarray, np.ndarray]:
        n = source.partners if end else len(source)
        k = int(held_out) if held_out >= 1 else max(1, round(held_out * n))
        if k >= n:
            raise RecipeError([Problem(place, "held_out", _too_many(held_out, n, end))])
        order = numpy_generator(seed, f"held out{end}").permutation(n)
        return np.sort(order[k:]), np.sort(order[:k])

    def part(number: int) -> Subset:
        return Subset(source, lambda: parts("")[number], lambda: parts(" of x1")[number])

    train, held = part(0), part(1)
    held.variants = 1
    return train, held


def _too_many(held_out: float, n: int, end: str) -> str:
    if n == 0:
        return "the data have no samples of which some could be held out; leave it out with ~held_out"
    fewer = f"write fewer (held_out={max(1, n // 10)}), a share (held_out=0.1) or none (~held_out)"
    few = "write none (~held_out)" if n == 1 else fewer
    return f"{held_out:g} cannot be held out of the {n:,} samples{end}; at least one must be left to train on: {few}"
