"""Rounds: what a method is offered when it renews the pairs that it trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from latentsb import parallel
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.randomness import Draws
from latentsb.tensors import Batch
from latentsb.trainable import Round

__all__ = ["BLOCK", "Renewal"]

BLOCK = 256
"""Rows of a simulated block; fixed, since a row's draws belong to its block."""


class Renewal(Round):
    """A round of a stage.

    Block k of a table is made by process `k mod world`, from rows of the data that no other block or round has seen
    at that place, and then sent to the others. Nothing is stored: when training resumes, the same weights make the
    same table again.

    Args:
        number: of the round, from 0.
        resumed: training was interrupted inside this round.
        part: what the stage trains.
        source: of the data.
        images: pixels beside it, where they are needed.
        seed: of the run.
        purpose: names the stage's draws.
        device: on which rows are made.
        bf16: the stage's networks compute in bf16.
    """

    def __init__(
        self,
        number: int,
        *,
        resumed: bool,
        part: str = "",
        source: Source,
        images: Source | None = None,
        seed: int,
        purpose: str,
        device: torch.device,
        bf16: bool = False,
    ) -> None:
        self.number, self.resumed, self.part, self.size = number, resumed, part, len(source) * source.variants
        self.source, self.images, self.seed, self.purpose, self.device = source, images, seed, purpose, device
        self.bf16 = bf16

    def simulate(
        self, name: str, rows: int, make: Callable[[Batch, Draws], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Make a table; see `Round.simulate`."""
        stream = Stream(self.source, self.seed, BLOCK, images=self.images)
        count = -(-rows // BLOCK)
        blocks: list[Mapping[str, Tensor] | None] = [None] * count
        for k in range(parallel.rank(), count, parallel.world()):
            place = self.number * count + k
            batch = stream.batch(place * BLOCK).to(self.device)
            draws = Draws.block(self.seed, f"{self.purpose} {name}", place, BLOCK)
            blocks[k] = {key: value.detach().cpu() for key, value in make(batch, draws).items()}
        made = parallel.collect(blocks)
        return {key: torch.cat([block[key] for block in made])[:rows] for key in made[0]}
