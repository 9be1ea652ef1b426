"""The latents of a run's training data and of its held-out data: each encoded once.

Those of a pretrained autoencoder lie beside the runs, in `latents/KEY`, where the key tells data and weights apart:
every run that needs the same ones reads them. Where the run trains its autoencoder they lie in its own folder.
"""

from __future__ import annotations

import math
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
    fits = experiment.autoencoder.is_identity
    watched = Watched("fitting the normaliser", signals, brief=True) if fits else Watched("encoding", signals)
    return _open_or_build(path, experiment, experiment.source, watched)


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
        brief: a work that is done before the first line is due is not told.
    """

    def __init__(self, title: str, signals: Signals | None, *, brief: bool = False) -> None:
        self.title, self.signals, self.brief = title, signals, brief
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
            if not self.display.bar and not self.brief:
                self.display.say(f"{self.title} {total:,} images …")
        self.done = done
        if done and (self.display.bar or not self.brief or done < total):
            self.display.note(done, {"images_per_second": done / (time.monotonic() - self.display.began)})
        reason = self.signals.reason() if self.signals is not None and done < total else None
        if reason is not None:
            self.display.say(f"{self.title}: stopped by {reason} {self.lost}{self._longer(reason)}")
            raise Stopped(reason)

    @property
    def lost(self) -> str:
        """What an interruption costs."""
        total = 0 if self.display is None else self.display.total
        again = "begins" if self.brief else "encodes"
        return f"after {self.done:,} of {total:,} images; none are kept, the same command {again} from the start"

    def _longer(self, reason: str) -> str:
        """Where a limit of time ended it, how much it would need: the same limit ends it again."""
        if reason != "time" or self.display is None:
            return ""
        needed = (time.monotonic() - self.display.began) * self.display.total / self.done if self.done else None
        about = "" if needed is None else f" (about {60 * math.ceil(needed / 60)} s for this alone)"
        return f", and the same max_time ends it again: give it a longer one{about}"

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
    def act(first: bool = True) -> Source:
        # The other processes are neither shown nor stopped here: the first one goes on, and waits for them.
        progress = watched if first else None
        return LatentCache.open_or_build(path, source, experiment.autoencoder, progress, verify=first)

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
    return built if isinstance(built, Source) else act(first=False)
