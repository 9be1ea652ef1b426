"""Training: all stages of a recipe, one after the other, with nothing to lose when it is interrupted."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import latentsb
from latentsb import parallel
from latentsb.data import record
from latentsb.data.source import Source
from latentsb.disk import ignore_size_signal, write_text
from latentsb.errors import CapabilityError, CheckpointError, NonFiniteError
from latentsb.experiment import Experiment
from latentsb.guard import EXIT_CODES, Signals, Stopped
from latentsb.held import HeldOut
from latentsb.latents import held_latents_of, latents_of, prove_latents
from latentsb.progress import Display
from latentsb.run import Run
from latentsb.stages import Session, check_settings, fingerprint
from latentsb.tensors import Batch
from latentsb.tracking import Tracker
from latentsb.trainable import Phase

__all__ = ["Outcome", "Trainer", "start_processes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Args:
        reason: None when every stage is done; else `SIGTERM`, `SIGINT` or `time`.
        step: optimiser steps of the run.
    """

    reason: str | None
    step: int

    @property
    def exit_code(self) -> int:
        """What the command returns: 143 and 130 after a signal, else 0."""
        return 0 if self.reason is None else EXIT_CODES[self.reason]


class Trainer:
    """Trains the stages of a run; the same call again resumes.

    Args:
        run: locked for training in the main process.
        experiment: of the run's recipe, as built; it is moved to the device and trained in place.
        device: of this process; chosen by accelerate if None.
    """

    def __init__(self, run: Run, experiment: Experiment, device: torch.device | str | None = None) -> None:
        self.run, self.experiment = run, experiment.to(device or start_processes())

    def fit(self) -> Outcome:
        """Train until every stage is done, or something asks to stop.

        Raises:
            CheckpointError: if a checkpoint does not belong to this recipe or these data.
            NonFiniteError: if training diverges even after going back to a checkpoint.
            DiskError: if a checkpoint cannot be written.
        """
        device = self.experiment.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return self._fit()

    def _fit(self) -> Outcome:
        ignore_size_signal()
        recipe = self.experiment.recipe
        parallel.agree({"recipe": recipe.hash, "code": code_hash(), "data": _hash(fingerprint(self.experiment))})
        parallel.first(self.run.checkpoints.clean)
        with Signals(recipe.train.max_time) as signals:
            session = self._resume()
            while True:
                reason = Stage(self.run, session, signals).train()
                if reason is not None or session.is_last:
                    return Outcome(reason, session.step)
                session = Session(session.experiment, session.number + 1, session.step, session.seconds)

    def _resume(self) -> Session:
        checkpoint = self.run.checkpoints.latest()
        for path, why in self.run.checkpoints.passed_over if parallel.is_main() else ():
            logger.warning("%s is damaged (%s)", path, why)
        if checkpoint is None:
            parallel.first(lambda: self.run.rewind_log(-1))
            parallel.first(self._record)
            return Session(self.experiment, 0)
        number = checkpoint.state.get("stage", 0)
        if not 0 <= number < len(self.experiment.recipe.stages):
            raise CheckpointError(f"{checkpoint.path} is of stage {number}, which this recipe does not have")
        parallel.first(lambda: record.same_files(self.run.path, self.experiment.source, self.experiment.held))
        session = Session(self.experiment, number)
        session.load(checkpoint)
        parallel.first(self._record)
        parallel.first(lambda: self.run.rewind_log(session.step))
        parallel.first(lambda: logger.info("resuming from %s", checkpoint.path))
        return session

    def _record(self) -> None:
        experiment = self.experiment
        record.keep(self.run.path, experiment.recipe, experiment.source, experiment.held)


class Stage:
    """The loop over one stage.

    Args:
        run: where it is kept.
        session: what is trained.
        signals: what asks to stop.
    """

    def __init__(self, run: Run, session: Session, signals: Signals) -> None:
        self.run, self.session, self.signals = run, session, signals
        self.settings = session.settings
        self.saved = session.step if session.seen else -1
        self.blind = False
        self.held: HeldOut | None = None
        self.phases: tuple[Phase, ...] = ()

    def train(self) -> str | None:
        """Train the stage; returns why it stopped early, or None when it is done."""
        session, settings = self.session, self.settings
        if session.finished and (not session.is_last or session.seen >= settings.images):
            if session.is_last and parallel.is_main():
                logger.info("nothing is left to train; a larger train.images goes on from here")
            return None
        session.finished = False
        self.run.checkpoints.keep = settings.keep
        if "max_time" in session.stage.changes:
            self.signals.limit(settings.max_time)
        try:
            self.source, self.images = self._data()
            held = self._held_data()
        except Stopped as stopped:
            return stopped.reason
        if session.attends:
            check_settings(settings, session.experiment.device, told=True)
        self.held = HeldOut(session, *held) if held is not None else None
        tracker = Tracker(self.run, session, enabled=parallel.is_main())
        display = Display(session.title, settings.images, session.seen, parallel.is_main())
        with display, tracker:
            self.display, self.tracker = display, tracker
            if session.seen:
                display.say(f"{session.title}: going on after {session.seen:,} images (step {session.step:,})")
            if session.seen == 0:
                self._preview()
            reason = self._loop()
            if session.seen >= settings.images:
                self._finish(preview=reason is None)
            else:
                self._save()
            if reason is not None:
                display.say(f"{session.title}: stopped by {reason} at step {session.step:,}; the same command goes on")
        return reason

    def _loop(self) -> str | None:
        session, settings = self.session, self.settings
        stream = session.stream(self.source, self.images)
        self.tracker.start()
        with stream.prefetched(session.seen, settings.images, max(1, settings.workers)) as batches:
            for batch in batches:
                before = session.seen
                self._step(batch)
                self.tracker.waited = batches.waited
                if session.guard.exhausted:
                    self._roll_back(batch)
                if _crossed(settings.log_every, before, session.seen) or session.seen >= settings.images:
                    self._log()
                # Before anything may stop here, so that the log does not depend on it.
                if _crossed(settings.preview_every, before, session.seen) or session.seen >= settings.images:
                    with self._keeping():
                        self._measure()
                reason = self._asked()
                if reason is not None:
                    return reason
                if _crossed(settings.preview_every, before, session.seen) and session.seen < settings.images:
                    with self._keeping():
                        self._preview()
                if _crossed(settings.save_every, before, session.seen) and session.seen < settings.images:
                    self._save()
                self.display.advance(session.seen)
        return None

    def _step(self, batch: Batch) -> None:
        session = self.session
        session.renew(self.source, self.images)
        self.phases = session.schedule.now(session.seen, session.logs)
        asked = self.signals.reason() if parallel.world() > 1 else None
        flags = session.update.step(
            batch.to(session.experiment.device, non_blocking=True), self.phases, session.seen, asked
        )
        session.seen += self.settings.batch
        session.step += 1
        session.guard.observe(flags)

    def _asked(self) -> str | None:
        """Why to stop; several processes know it from the flags that they exchanged, and so all at the same step."""
        return self.signals.reason() if parallel.world() == 1 else self.session.guard.reason

    def _log(self) -> None:
        session = self.session
        means = session.update.means()
        session.logs.update(means)
        self.display.note(session.seen, self.tracker.record(means))

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Save what was trained if something beside training fails, such as a picture."""
        try:
            yield
        except Exception:
            if parallel.world() == 1:  # of several processes the others may not have failed, and would wait
                self._save()
            raise

    def _measure(self) -> None:
        """Log the held-out loss of what the last step trained."""
        if self.held is not None:
            with self.tracker.aside():
                self.tracker.measured(self.held.measure(self.phases))

    def _save(self) -> None:
        session = self.session
        session.guard.flush()
        if session.step == self.saved:
            return
        session.seconds = self.tracker.seconds()
        with self.tracker.aside():
            files = session.tensors() if parallel.is_main() else {}
            parallel.first(lambda: self.run.checkpoints.save(session.step, files, session.state()))
        self.saved = session.step

    def _finish(self, *, preview: bool) -> None:
        session = self.session
        if not session.is_last:
            session.adopt_average()
        session.fit(self.source, self.images)
        session.finished = True
        if preview:
            self._preview()
        self.saved = -1
        self._save()

    def _roll_back(self, batch: Batch) -> None:
        """Go back to the weights of the newest checkpoint, once, and on with the data that come next."""
        session = self.session
        checkpoint = self.run.checkpoints.latest()
        usable = checkpoint is not None and checkpoint.state["stage"] == session.number
        self.tracker.event("rolled back" if usable else "not finite", bad=session.guard.total)
        if session.guard.rollbacks or checkpoint is None or not usable:
            report = self.run.path / "nan_report" / f"step-{session.step:09d}.json"
            parallel.first(lambda: self._report(report, batch))
            raise NonFiniteError(
                f"{session.title}: losses or gradients were not finite in {session.guard.streak} steps in a row"
                f"{' again after going back to a checkpoint' if session.guard.rollbacks else ''}; see {report}. "
                "A lower train.lr, a longer train.warmup or train.precision=fp32 may help."
            )
        session.load_weights(checkpoint)
        session.guard.rollbacks += 1
        session.guard.streak = 0
        self.display.say(
            f"{session.title}: not finite; back to the weights of {checkpoint.path.name}, on with new data"
        )

    def _report(self, path: Path, batch: Batch) -> None:
        session = self.session
        path.parent.mkdir(exist_ok=True)
        found = {"x0": batch.x0, "x1": batch.x1, "images": batch.images, **batch.cond.values}
        content = {
            "stage": session.stage.train,
            "step": session.step,
            "images": session.seen,
            "bad_steps": session.guard.total,
            "last_means": session.logs,
            "weights_not_finite": session.non_finite(),
            "batch_not_finite": [k for k, v in found.items() if v is not None and not torch.isfinite(v).all()],
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    def _preview(self) -> None:
        if not parallel.is_main() or self.blind:
            return
        from latentsb.previews import preview

        session = self.session
        path = self.run.path / "samples" / f"preview-{session.number}-{session.stage.train}-{session.seen:012d}.png"
        with self.tracker.aside(), session.shown(self.source, self.images) as experiment:
            try:
                preview(experiment, path, stage=session.stage.train)
            except OSError as error:
                logger.warning("cannot write %s: %s; training goes on without it", path, error)
            except CapabilityError as error:
                logger.warning("no previews: %s", error)
                self.blind = True

    def _data(self) -> tuple[Source, Source | None]:
        """What the stage trains on, and the pixels beside it where it needs them."""
        session = self.session
        pixels = session.experiment.source
        if session.head == "autoencoder":
            return pixels if pixels.pretraining is None else pixels.pretraining, None
        latents = latents_of(self.run.path, session.experiment, self.signals)
        prove_latents(latents, session.experiment, going_on=session.seen > 0)
        return latents, pixels if session.trainable.needs_images else None

    def _held_data(self) -> tuple[Source, Source | None] | None:
        """The same of the held-out data."""
        session = self.session
        pixels = session.experiment.held
        if pixels is None or session.head == "autoencoder":
            return None if pixels is None else (pixels, None)
        latents = held_latents_of(self.run.path, session.experiment, self.signals)
        assert latents is not None
        return latents, pixels if session.trainable.needs_images else None


def start_processes() -> torch.device:
    """Join the other processes where `torchrun` started several; returns this one's device."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Optimisers import this. Imported once a group exists, it holds on to the group (in default arguments), whose
        # threads then outlive `parallel.leave` and now and then abort the interpreter's end.
        importlib.import_module("torch._dynamo")
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def code_hash() -> str:
    """sha256 over the source of latentsb, so that processes can see that they run the same."""
    digest = hashlib.sha256()
    root = Path(latentsb.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _crossed(every: int, before: int, after: int) -> bool:
    return before // every != after // every
