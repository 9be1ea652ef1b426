"""The latents of a run's training data and of its held-out data: each encoded once.

Those of a pretrained autoencoder lie beside the runs, in `latents/KEY`, where the key tells data and weights apart:
every run that needs the same ones reads them. Where the run trains its autoencoder they lie in its own folder.
"""

from __future__ import annotations

import time
from pathlib import Path

from latentsb import parallel
from latentsb.cache import LatentCache
from latentsb.data.source import Source
from latentsb.experiment import Experiment
from latentsb.guard import Signals, Stopped
from latentsb.progress import Display
from latentsb.run import LATENTS

__all__ = ["held_latents_of", "latents_of"]

SHARED = "latents"
"""Beside the runs; what lies there can be removed, and is encoded again when a run needs it."""
QUIET_SECONDS = 30.0
"""Between two lines where there is no terminal."""


def latents_of(folder: Path, experiment: Experiment, signals: Signals | None = None) -> Source:
    """Normalised latents of the training data; the main process encodes, the others then read what it wrote.

    Args:
        folder: of the run.
        experiment: its autoencoder's normaliser is fitted here if it was not.
        signals: what asks to stop, within a batch, if anything may.

    Raises:
        Stopped: in every process, if it did; nothing that was encoded is kept.
    """
    path = _place(folder, LATENTS[0], experiment, experiment.source)
    return _open_or_build(path, experiment, experiment.source, Watched("encoding", signals))


def held_latents_of(folder: Path, experiment: Experiment, signals: Signals | None = None) -> Source | None:
    """Latents of the held-out data, normalised as those of the training data; None where none is held out.

    Args:
        folder: of the run.
        experiment: its autoencoder's normaliser is fitted to the training data here if it was not.
        signals: what asks to stop, within a batch, if anything may.

    Raises:
        Stopped: in every process, if it did; nothing that was encoded is kept.
    """
    if experiment.held is None:
        return None
    if not bool(experiment.autoencoder.fitted):
        latents_of(folder, experiment, signals)
    path = _place(folder, LATENTS[1], experiment, experiment.held)
    return _open_or_build(path, experiment, experiment.held, Watched("encoding held-out", signals))


class Watched:
    """Shows how far an encoding is, and ends it where something asks to stop.

    Args:
        title: of the work.
        signals: what asks to stop, if anything may.
    """

    def __init__(self, title: str, signals: Signals | None) -> None:
        self.title, self.signals = title, signals
        self.display: Display | None = None
        self.done = 0

    def __call__(self, done: int, total: int) -> None:
        """Take note of the images that are encoded.

        Raises:
            Stopped: if something asks to stop before the last.
        """
        if self.display is None:
            self.display = Display(self.title, total, 0, parallel.is_main(), every=QUIET_SECONDS)
            self.display.progress.start()
            if not self.display.bar:
                self.display.say(f"{self.title} {total:,} images …")
        self.done = done
        if done:
            self.display.note(done, {"images_per_second": done / (time.monotonic() - self.display.began)})
        reason = self.signals.reason() if self.signals is not None and done < total else None
        if reason is not None:
            self.display.say(f"{self.title}: stopped by {reason} {self.lost}")
            raise Stopped(reason)

    @property
    def lost(self) -> str:
        """What an interruption costs."""
        total = 0 if self.display is None else self.display.total
        return f"after {self.done:,} of {total:,} images; none are kept, the same command encodes from the start"

    def close(self) -> None:
        """Leave the terminal."""
        if self.display is not None:
            self.display.progress.stop()


def _place(folder: Path, name: str, experiment: Experiment, source: Source) -> Path:
    own = folder / name
    trained_here = any(stage.train.startswith("autoencoder") for stage in experiment.recipe.stages)
    if own.exists() or trained_here or experiment.autoencoder.is_identity or len(source) == 0:
        return own
    return folder.parent / SHARED / LatentCache.key(source, experiment.autoencoder)


def _open_or_build(path: Path, experiment: Experiment, source: Source, watched: Watched) -> Source:
    def act(verify: bool = True) -> Source:
        return LatentCache.open_or_build(path, source, experiment.autoencoder, watched, verify=verify)

    def act_or_stop() -> Source | Stopped:
        try:
            return act()
        except Stopped as stopped:  # no failure, and the other processes are to know why
            return stopped
        except KeyboardInterrupt as stop:
            if watched.display is not None:
                stop.add_note(f"interrupted: {watched.title} {watched.lost}")
            raise
        finally:
            watched.close()

    built = parallel.first(act_or_stop)
    reason = parallel.broadcast(built.reason if isinstance(built, Stopped) else None)
    if reason is not None:
        raise Stopped(reason)
    return built if isinstance(built, Source) else act(verify=False)
