"""An autoencoder, then a bridge in its latents, then the bridge's prior: three stages of one recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from latentsb.autoencoder import Autoencoder
from latentsb.bridge import Bridge
from latentsb.data.source import Source
from latentsb.laws import Ends, Law
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.tensors import Batch
from latentsb.trainable import Phase, Round, Schedule, Trainable


@dataclass
class Experiment:
    source: Source
    autoencoder: Autoencoder
    bridge: Bridge


def build(
    source: Source, autoencoder: Build[Autoencoder], bridge: Build[Bridge], x1: Law | None, seed: int
) -> Experiment:
    """Positional arguments come from whoever builds: shapes from the data, shapes from the latents."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = autoencoder(source.spec)
        ends = Ends(
            codec.latent, source.x0, x1 or source.x1, source.cond, images=source.spec, two_sided=source.two_sided
        )
        return Experiment(source, codec, bridge(ends))


def train(
    experiment: Experiment,
    stages: tuple[str, ...],
    batches: Callable[[str], Iterable[Batch]],
    update: Callable[[Trainable, Phase, Batch, Draws], Mapping[str, float]],
    begin: Callable[[int], Round],
) -> None:
    """The engine's loop: it knows no method."""
    owners: dict[str, Trainable] = {"autoencoder": experiment.autoencoder, "bridge": experiment.bridge}
    for stage in stages:
        kind, _, part = stage.partition(".")
        owner = owners[kind]
        schedule: Schedule = owner.schedule(part)
        logs: Mapping[str, float] = {}
        round = -1
        for batch in batches(stage):
            if schedule.round(batch.seen) != round:
                round = schedule.round(batch.seen)
                owner.renew(begin(round))
            for phase in schedule.now(batch.seen, logs):
                logs = update(owner, phase, batch, Draws.step(0, phase.name, batch.seen, batch.index))
        if kind == "autoencoder":
            codec = experiment.autoencoder
            codec.fit_normaliser(codec.moments(batch.pixels).mean for batch in batches("latents"))
        owner.fit(lambda: batches("latents"))
