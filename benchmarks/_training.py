"""The training loop as the trainer runs it, one step at a time, on data in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from latentsb.data.arrays import ArraySource
from latentsb.data.source import Source
from latentsb.experiment import build
from latentsb.recipe import Recipe
from latentsb.stages import Session
from latentsb.tensors import Batch

FOREVER = 10**9

DBAE = """
seed: 0
data: {{name: gaussian, mean: [0.0], n: 10}}
bridge:
  name: dbae
  z_dim: {z_dim}
  channel: {{name: {channel}}}
  network: {{name: dit, patch: 2, width: {width}, depth: {depth}, heads: {heads}}}
  encoder: {{name: conv, width: 32, blocks: 1}}
  decoder: {{name: conv, width: 32, blocks: 1}}
train: {{images: 1000000000, batch: {batch}, warmup: 1000, precision: {precision}}}
"""


def dbae(shape: tuple[int, ...], precision: str = "fp32", device: str = "cpu", **settings: Any) -> Loop:
    """A DBAE over random latents of a shape.

    Args:
        shape: of one latent.
        precision: fp32 or bf16.
        device: of the modules.
        **settings: z_dim, channel, width, depth, heads, batch.
    """
    text = DBAE.format(precision=precision, **settings)
    samples = torch.randn((256, *shape), generator=torch.Generator().manual_seed(0))
    return Loop(text, ArraySource(samples, identity={"data": "noise"}), device)


class Loop:
    """What `latentsb train` does in each step, without logging, previews and checkpoints.

    Args:
        text: of a recipe with one stage.
        source: of latents; the recipe's own data if None.
        device: of the modules.
    """

    def __init__(self, text: str, source: Source | None = None, device: str = "cpu") -> None:
        experiment = build(Recipe.parse(text, (), label="benchmark"), source=source).to(device)
        self.session = Session(experiment, 0)
        self.source = experiment.source
        self.stream = self.session.stream(self.source, None)
        self.device = torch.device(device)

    def run(self, steps: int) -> float:
        """Train for some steps with data read ahead; returns the share of the time spent waiting for data."""
        session, settings = self.session, self.session.settings
        stop = session.seen + steps * settings.batch
        began = time.perf_counter()
        with self.stream.prefetched(session.seen, stop, max(1, settings.workers)) as batches:
            for batch in batches:
                self.step(batch)
        return batches.waited / (time.perf_counter() - began)

    def step(self, batch: Batch) -> None:
        """One step of the trainer."""
        session = self.session
        session.renew(self.source, None)
        phases = session.schedule.now(session.seen, session.logs)
        flags = session.update.step(batch.to(self.device, non_blocking=True), phases, session.seen, None)
        session.seen += session.settings.batch
        session.step += 1
        session.guard.observe(flags)

    def shares(self, steps: int) -> dict[str, float]:
        """Seconds of processor time of each part of a step, in the mean over some steps."""
        watch: dict[str, float] = {}
        update = self.session.update
        parts: list[tuple[Any, str, str]] = [
            (torch.autograd, "backward", "backward"),
            (update, "_backward", "losses"),
            (update.optimizer, "step", "optimiser"),
            (self.stream, "batch", "data"),
        ]
        if update.ema is not None:
            parts.append((update.ema, "update", "average"))
        with _timed(parts, watch):
            began = time.thread_time()
            for _ in range(steps):
                self.step(self.stream.batch(self.session.seen))
            whole = time.thread_time() - began
        watch["forward"] = watch.pop("losses") - watch["backward"]
        watch["clipping, logs, rest"] = whole - sum(watch.values())
        return {name: seconds / steps for name, seconds in watch.items()} | {"step": whole / steps}


@contextmanager
def _timed(parts: list[tuple[Any, str, str]], watch: dict[str, float]) -> Iterator[None]:
    """Add up the processor time that some functions of some objects take, by label."""

    def wrapped(original: Any, label: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return original(*args, **kwargs)
            finally:
                watch[label] = watch.get(label, 0.0) + time.thread_time() - began

        return call

    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for owner, name, label in parts:
        setattr(owner, name, wrapped(getattr(owner, name), label))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
