"""The latents of a run's training data and of its held-out data: each encoded once.

Those of a pretrained autoencoder lie beside the runs, in `latents/KEY`, where the key tells data and weights apart:
every run that needs the same ones reads them. Where the run trains its autoencoder they lie in its own folder.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from latentsb import parallel
from latentsb.autoencoder import Autoencoder
from latentsb.cache import LARGEST_BATCH, PIXELS_AT_ONCE, LatentCache
from latentsb.data.source import Source
from latentsb.encoding import Progress, ahead, blocks_of
from latentsb.experiment import Experiment
from latentsb.guard import Signals, Stopped
from latentsb.progress import Display
from latentsb.roundtrip import FLOOR, decibel, prove
from latentsb.run import LATENTS, Run
from latentsb.tensors import Batch

__all__ = ["fit_autoencoder", "held_latents_of", "latents_of", "places_of", "prove_latents", "shared_place"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARED = "latents"
"""Beside the runs; what lies there can be removed, and is encoded again when a run needs it."""
QUIET_SECONDS = 30.0
"""Between two lines where there is no terminal."""


def latents_of(folder: Path, experiment: Experiment, signals: Signals | None = None) -> Source:
    """Normalised latents of the training data; every process must call it, and encodes its share.

    Args:
        folder: of the run.
        experiment: its autoencoder and that one's normaliser are fitted here if they were not.
        signals: what asks to stop, within a batch, if anything may.

    Raises:
        Stopped: in every process, if it did; what was encoded is kept.
    """
    _fit(experiment, signals)
    path = _place(folder, LATENTS[0], experiment, experiment.source)
    cached = experiment.autoencoder.cached
    watched = Watched("encoding", signals) if cached else Watched("fitting the normaliser", signals, brief=True)
    return _open_or_build(path, experiment, experiment.source, watched)


def held_latents_of(folder: Path, experiment: Experiment, signals: Signals | None = None) -> Source | None:
    """Latents of the held-out data, normalised as those of the training data; None where none is held out.

    Args:
        folder: of the run.
        experiment: its autoencoder and that one's normaliser are fitted to the training data here if they were not.
        signals: what asks to stop, within a batch, if anything may.

    Raises:
        Stopped: in every process, if it did; what was encoded is kept.
    """
    if experiment.held is None:
        return None
    if experiment.autoencoder.needs_fit or not bool(experiment.autoencoder.fitted):
        latents_of(folder, experiment, signals)
    path = _place(folder, LATENTS[1], experiment, experiment.held)
    return _open_or_build(path, experiment, experiment.held, Watched("encoding held-out", signals))


def fit_autoencoder(autoencoder: Autoencoder, source: Source, progress: Progress | None = None) -> None:
    """Find weights of closed form, once, from everything that will be encoded: both ends, mirror images.

    Args:
        autoencoder: left as it is where nothing in it needs to be fitted.
        source: of images.
        progress: called with images read and images in all, after each batch; what it raises ends the work.
    """
    if not autoencoder.needs_fit or len(source) == 0:
        return
    size = max(1, min(LARGEST_BATCH, PIXELS_AT_ONCE // source.spec.numel))
    total = (len(source) + source.partners) * source.variants

    def batches() -> Iterator[Batch]:
        done = 0
        for variant in range(source.variants):
            for block, items in ahead(source, blocks_of(source, size, variant)):
                yield Batch(torch.arange(len(block)), items.x0.to(autoencoder.device), seen=done)
                done += len(block)
                if progress is not None:
                    progress(done, total)

    with torch.no_grad():
        autoencoder.fit(batches)


class Watched:
    """Shows how far an encoding is (of several processes: this one's share), and ends it where something asks to stop.

    Args:
        title: of the work.
        signals: what asks to stop, if anything may.
        brief: a work that is done before the first line is due is not told.
    """

    def __init__(self, title: str, signals: Signals | None, *, brief: bool = False) -> None:
        self.title, self.signals, self.brief = title, signals, brief
        self.display: Display | None = None
        self.done = self.before = 0

    def __call__(self, done: int, total: int) -> None:
        """Take note of the images that are encoded.

        Raises:
            Stopped: if something asks to stop before the last.
        """
        if self.display is None:
            self.before = 0 if self.brief else done  # what a brief work has done it has done just now
            self.display = Display(self.title, total, done, parallel.is_main(), every=QUIET_SECONDS)
            self.display.progress.start()
            if not self.display.bar and not self.brief:
                gone = f", going on after {done:,}" if done else ""
                self.display.say(f"{self.title} {total:,} images{gone} …")
        self.done = done
        if done > self.before and (self.display.bar or not self.brief or done < total):
            rate = (done - self.before) / (time.monotonic() - self.display.began)
            self.display.note(done, {"images_per_second": rate})
        reason = self.signals.reason() if self.signals is not None and done < total else None
        if reason is not None:
            self.display.say(f"{self.title}: stopped by {reason} {self.lost}{self._longer(reason)}")
            raise Stopped(reason)

    @property
    def lost(self) -> str:
        """What an interruption costs."""
        total = 0 if self.display is None else self.display.total
        kept = "none are kept, the same command begins from the start"
        kept = kept if self.brief else "what is encoded is kept, the same command goes on"
        return f"after {self.done:,} of {total:,} images; {kept}"

    def _longer(self, reason: str) -> str:
        """Where a limit of time ended what keeps nothing, how much it would need: the same limit ends it again."""
        if reason != "time" or self.display is None or not self.brief:
            return ""
        needed = (time.monotonic() - self.display.began) * self.display.total / self.done if self.done else None
        about = "" if needed is None else f" (about {60 * math.ceil(needed / 60)} s for this alone)"
        return f", and the same max_time ends it again: give it a longer one{about}"

    def close(self) -> None:
        """Leave the terminal."""
        if self.display is not None:
            self.display.progress.stop()


def prove_latents(latents: Source, experiment: Experiment, *, going_on: bool) -> None:
    """Test, before a step is made, that the latents are those of the images and the decoder makes images of them.

    The main process tests; the others learn of its failure.

    Args:
        latents: what is trained on; what is not cached needs no test.
        experiment: whose images they are of.
        going_on: some steps are made already: fewer images.

    Raises:
        CacheError: if the cache is wrong; says what was found, what was expected and what to do.
        DataError: if a pretrained autoencoder cannot make these images.
    """
    if not isinstance(latents, LatentCache):
        return

    def act() -> None:
        autoencoder = experiment.autoencoder
        found = prove(latents, experiment.source, autoencoder, fewer=going_on)
        if not going_on and found.own.error > max(found.own.floor, FLOOR):
            logger.warning(
                "the autoencoder leaves %d training images a PSNR of %s, less than their mean image would have (%s): "
                "train it longer",
                len(found.own.errors),
                decibel(found.own.error),
                decibel(found.own.floor),
            )

    parallel.first(act)


def places_of(run: Run) -> list[Path]:
    """Where the latents of a run's training data and held-out data are, if they were encoded."""
    from latentsb.experiment import build

    experiment = run.experiment(device="cpu") if run.checkpoints.latest() is not None else build(run.recipe)
    held = [] if experiment.held is None else [(LATENTS[1], experiment.held)]
    sources = [(LATENTS[0], experiment.source), *held]
    return [_place(run.path, name, experiment, source) for name, source in sources]


def shared_place(runs: Path, experiment: Experiment, source: Source) -> Path:
    """Where the latents of a pretrained autoencoder are, for all runs beside each other."""
    return runs / SHARED / LatentCache.key(source, experiment.autoencoder, experiment.recipe.latents.build())


def _place(folder: Path, name: str, experiment: Experiment, source: Source) -> Path:
    own = folder / name
    trained_here = any(stage.train.startswith("autoencoder") for stage in experiment.recipe.stages)
    if own.exists() or trained_here or not experiment.autoencoder.cached or len(source) == 0:
        return own
    return shared_place(folder.parent, experiment, source)


def _fit(experiment: Experiment, signals: Signals | None) -> None:
    """Fit the autoencoder to the training data in the main process; the others take its weights over."""
    autoencoder = experiment.autoencoder
    if not autoencoder.needs_fit or len(experiment.source) == 0:
        return
    source = experiment.source if experiment.source.pretraining is None else experiment.source.pretraining
    watched = Watched("fitting the autoencoder", signals, brief=True)
    _first(watched, lambda: fit_autoencoder(autoencoder, source, watched))
    autoencoder.load_state_dict(parallel.broadcast({k: v.cpu() for k, v in autoencoder.state_dict().items()}))


def _open_or_build(path: Path, experiment: Experiment, source: Source, watched: Watched) -> Source:
    store = experiment.recipe.latents.build()
    with _told(watched):
        return LatentCache.open_or_build(path, source, experiment.autoencoder, watched, store=store)


@contextmanager
def _told(watched: Watched) -> Iterator[None]:
    """Say what an interruption leaves, and leave the terminal."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if watched.display is not None:
            stop.add_note(f"interrupted: {watched.title} {watched.lost}")
        raise
    finally:
        watched.close()


def _first(watched: Watched, act: Callable[[], T]) -> T | None:
    """Run something watched in the main process; returns its result there, None in the others.

    Raises:
        Stopped: in every process, if something asked to stop.
    """

    def act_or_stop() -> T | Stopped:
        try:
            with _told(watched):
                return act()
        except Stopped as stopped:  # no failure, and the other processes are to know why
            return stopped

    done = parallel.first(act_or_stop)
    reason = parallel.broadcast(done.reason if isinstance(done, Stopped) else None)
    if reason is not None:
        raise Stopped(reason)
    return None if isinstance(done, Stopped) else done
