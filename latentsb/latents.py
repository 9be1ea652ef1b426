"""The latents of a run's training data and of its held-out data: each encoded once, kept beside the run."""

from __future__ import annotations

from pathlib import Path

from latentsb import parallel
from latentsb.cache import LatentCache
from latentsb.data.source import Source
from latentsb.experiment import Experiment
from latentsb.run import LATENTS

__all__ = ["held_latents_of", "latents_of"]


def latents_of(folder: Path, experiment: Experiment) -> Source:
    """Normalised latents of the training data; the main process encodes, the others then read what it wrote.

    Args:
        folder: of the run.
        experiment: its autoencoder's normaliser is fitted here if it was not.
    """
    return _open_or_build(folder / LATENTS[0], experiment, experiment.source)


def held_latents_of(folder: Path, experiment: Experiment) -> Source | None:
    """Latents of the held-out data, normalised as those of the training data; None where none is held out.

    Args:
        folder: of the run.
        experiment: its autoencoder's normaliser is fitted to the training data here if it was not.
    """
    if experiment.held is None:
        return None
    if not bool(experiment.autoencoder.fitted):
        latents_of(folder, experiment)
    return _open_or_build(folder / LATENTS[1], experiment, experiment.held)


def _open_or_build(path: Path, experiment: Experiment, source: Source) -> Source:
    def act(verify: bool = True) -> Source:
        return LatentCache.open_or_build(path, source, experiment.autoencoder, verify=verify)

    built = parallel.first(act)
    return built if built is not None else act(verify=False)
