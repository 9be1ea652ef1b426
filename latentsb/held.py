"""The loss on data that are not trained on: the same samples and the same draws each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from latentsb import parallel
from latentsb.data.source import Source
from latentsb.randomness import Draws, numpy_generator
from latentsb.stages import Session
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Phase

__all__ = ["SAMPLES", "HeldOut"]

SAMPLES = 512
"""Held-out samples of which the loss is told, at most."""


class HeldOut:
    """Measures the held-out loss of a stage.

    Samples and draws are functions of the seed and the stage alone, so that two values differ by their weights only.
    They go through the loss in batches of the stage's size, which the processes share as they share training's.

    Args:
        session: the stage.
        source: of what the stage trains on, held-out.
        images: pixels beside it, where they are needed.
    """

    def __init__(self, session: Session, source: Source, images: Source | None) -> None:
        self.session, self.source, self.images = session, source, images
        seed = session.experiment.recipe.seed
        n = min(SAMPLES, len(source))
        self.size = min(session.settings.batch, n)
        chosen = numpy_generator(seed, "held-out samples").permutation(len(source))
        self.rows = np.sort(chosen[: n // self.size * self.size])  # whole batches: a loss may compare rows

    def measure(self, phases: tuple[Phase, ...]) -> dict[str, float]:
        """Mean losses under the averaged weights, in evaluation mode; every process must call it.

        Training goes on afterwards as if nothing had happened.

        Args:
            phases: whose losses.

        Returns:
            `held_out_loss`, after the name of its phase where that is not `all`.
        """
        device = self.session.experiment.device
        found = {phase.name: torch.zeros(2, dtype=torch.float32, device=device) for phase in phases}
        with self.session.averaged(), torch.no_grad():
            for first, batch in self._batches():
                for phase in phases:
                    found[phase.name] += self._sums(phase, batch, first)
        parallel.sum_flat(list(found.values()))
        means = {name: float(total / count) for name, (total, count) in found.items()}
        return {"held_out_loss" if name == "all" else f"{name}/held_out_loss": mean for name, mean in means.items()}

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """This process's rows of each batch, prepared, and where the batch begins."""
        session = self.session
        world = parallel.world()
        # So few samples that a process would have none: each takes all, which gives the same mean.
        own = parallel.rows(self.size, parallel.rank(), world) if self.size >= world else range(self.size)
        for first in range(0, len(self.rows), self.size):
            rows = self.rows[first + own.start : first + own.stop]
            found = self.source.read(rows)
            pixels = None if self.images is None else self.images.read(rows).x0
            batch = Batch(torch.tensor(own), found.x0, found.x1, Condition(dict(found.cond)), 0, pixels)
            draws = self._draws("batch", first, batch)
            yield first, session.trainable.prepare(batch.to(session.experiment.device), draws)

    def _draws(self, name: str, first: int, batch: Batch) -> Draws:
        purpose = f"{self.session.update.purpose} held out {name}"
        return Draws.step(self.session.experiment.recipe.seed, purpose, first, batch.index)

    def _sums(self, phase: Phase, batch: Batch, first: int) -> Tensor:
        """Sum of the losses of these rows, and their number."""
        session, micro = self.session, self.session.settings.micro_batch or len(batch)
        device = session.experiment.device
        total = torch.zeros(2, dtype=torch.float32, device=device)
        for begin in range(0, len(batch), micro):
            part = batch.select(slice(begin, begin + micro))
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=session.bf16):
                loss = phase.loss(part, self._draws(phase.name, first, part)).total.float()
            total += torch.stack([loss.sum(), loss.new_tensor(float(len(part)))])
        return total
