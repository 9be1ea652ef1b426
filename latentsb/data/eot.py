"""Unpaired samples of two laws between which the Schrödinger bridge is known."""

from __future__ import annotations

from latentsb.data.arrays import ArraySource
from latentsb.data.source import SOURCES
from latentsb.oracles.mixtures import MixturePair
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt, Positive

__all__ = ["EotPair"]


@SOURCES.register("eot_pair")
class EotPair(ArraySource):
    """Two laws in D dimensions with a known Schrödinger bridge: x0 standard normal, x1 from a seeded mixture potential.

    Source: Gushchin et al. 2023, Building the bridge of Schrödinger (the construction; the mixtures are our own).

    Args:
        dim: D.
        epsilon: variance of the Brownian reference for which the bridge is known; give the bridge `sigma = √epsilon`.
        n: number of points of each end.
        paired: the i-th x1 is drawn from the true plan given the i-th x0, instead of from its law alone.
        potential: seed of the mixture.
        seed: of the points.
    """

    def __init__(
        self,
        *,
        dim: Count = 2,
        epsilon: Positive = 1.0,
        n: Count = 10000,
        paired: bool = False,
        potential: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self.pair = MixturePair(dim=dim, epsilon=epsilon, seed=potential)
        draws = Draws.block(seed, "eot_pair", 0, n)
        x0, x1 = self.pair.sample_pairs(n, draws)
        if not paired:
            x1 = self.pair.sample_x1(n, draws)
        identity = {"data": "eot_pair", "dim": dim, "epsilon": epsilon, "potential": potential, "seed": seed}
        super().__init__(x0.float(), x1.float(), paired=paired, identity={**identity, "paired": paired})
