"""Paths between paired ends: where the bridge is at t, and what its drifts and score are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentsb.process.coupling import Pair
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.tensors import expand_as

__all__ = ["OneSidedPath", "Path", "PathPoint", "PinnedPath"]


@dataclass(frozen=True)
class PathPoint:
    """A point of a path and the regression targets there, each of shape (B, …).

    Args:
        x: the state.
        b_f: forward drift target.
        b_b: backward drift target, as executed: `x_{t−h} = x_t + h b_b + noise`.
        score: `∇ log p_t(x | ends)`. Nelson: `b_f + b_b = g² score`. NaN where the reference is noiseless, since a
            point mass has none.
    """

    x: Tensor
    b_f: Tensor
    b_b: Tensor
    score: Tensor


class Path(Protocol):
    """A law of x_t given a pair."""

    def at(self, t: Tensor, pair: Pair, draws: Draws) -> PathPoint:
        """Draw the state at times t in (0, 1), shape (B,)."""
        ...


@dataclass(frozen=True)
class PinnedPath:
    """The reference process pinned to both ends.

    Args:
        reference: the process.
    """

    reference: ScalarReference

    def at(self, t: Tensor, pair: Pair, draws: Draws) -> PathPoint:
        """Draw `x ~ N(a x1 + b x0, c)`; the drifts lead to x1 and to x0."""
        marginal, noise = self.reference.pinned(t), draws.normal("path", pair.x0)
        x = marginal.sample(pair.x0, pair.x1, noise)
        score = _score(marginal, noise)
        return PathPoint(x, self.reference.b_f(x, t, pair.x1), self.reference.b_b(x, t, pair.x0), score)


@dataclass(frozen=True)
class OneSidedPath:
    """The reference process started in x0, as in score-based models; x1 plays no part.

    Args:
        reference: the process.
    """

    reference: ScalarReference

    def at(self, t: Tensor, pair: Pair, draws: Draws) -> PathPoint:
        """Draw `x ~ N(α x0, α² ρ²)`; the forward drift is `f x`, the backward one leads to x0."""
        marginal, noise = self.reference.noised(t), draws.normal("path", pair.x0)
        x = marginal.sample(pair.x0, None, noise)
        score = _score(marginal, noise)
        return PathPoint(x, self.reference.b_f(x, t, None), self.reference.b_b(x, t, pair.x0), score)


def _score(marginal: Marginal, noise: Tensor) -> Tensor:
    std = torch.where(marginal.c == 0, torch.nan, marginal.std)
    return -noise / expand_as(std, noise)
