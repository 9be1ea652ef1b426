"""One stage of a training: the objects that it needs, and its whole state in a checkpoint."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentsb import parallel
from latentsb.checkpoint import Checkpoint
from latentsb.data.record import same_data
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.ema import Average, Ema, HalfLife, PowerFunction
from latentsb.errors import CheckpointError
from latentsb.experiment import Experiment, part_of
from latentsb.guard import LAG, Guard
from latentsb.identity import identity
from latentsb.latents import latents_of
from latentsb.networks.attention import check_backend, set_attention
from latentsb.networks.base import Network
from latentsb.recipe import Stage, TrainSettings
from latentsb.rounds import Renewal
from latentsb.tensors import Batch, Condition
from latentsb.trainable import Trainable
from latentsb.update import Update

__all__ = ["Session", "average_of", "check_settings", "fingerprint", "fit_parts", "passes_of"]

logger = logging.getLogger(__name__)
KEYS = frozenset(
    {
        "stage",
        "step",
        "seen",
        "finished",
        "fitted",
        "guard",
        "schedule",
        "round",
        "logs",
        "ema_seen",
        "seconds",
        "recipe",
        "data",
    }
)
FIT_BATCH = 256
FIT_SOME = 4096


def average_of(settings: TrainSettings) -> tuple[Average, ...]:
    """The average that a stage asks for."""
    if settings.ema is None:
        return ()
    if settings.ema.half_life is not None:
        return (HalfLife(images=settings.ema.half_life),)
    assert settings.ema.power is not None
    return (PowerFunction(width=settings.ema.power),)


def short(settings: TrainSettings, device: torch.device) -> bool:
    """Whether a stage computes in bf16 on a device."""
    if settings.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bf16"


def check_settings(settings: TrainSettings, device: torch.device, *, told: bool = False) -> None:
    """Find out, before anything is written, whether a stage can run on a device; with `told` log what it will use.

    Raises:
        BackendError: if its attention cannot.
    """
    check_backend(settings.attention, device, torch.bfloat16 if short(settings, device) else torch.float32, told=told)


class Session:
    """A stage in progress.

    Args:
        experiment: on its device.
        number: of the stage, from 0.
        step: optimiser steps of the run before this stage.

    Attributes:
        seen: images of this stage.
        step: optimiser steps of the run.
        seconds: trained in all stages, over all starts.
        fitted: `Trainable.fit` has run.
        logs: the last logged means.
        round: number of the schedule's round; -1 before the first.
        begun: the round's `renew` has run in this process.
        attends: some network of it has attention whose backend can be chosen.
    """

    def __init__(self, experiment: Experiment, number: int, step: int = 0, seconds: float = 0.0) -> None:
        self.experiment, self.number, self.step, self.seconds = experiment, number, step, seconds
        self.stage: Stage = experiment.recipe.stages[number]
        self.settings = self.stage.settings
        self.seen, self.fitted, self.finished = 0, False, False
        self.logs: dict[str, float] = {}
        self.round, self.begun = -1, False
        self.head = self.stage.train.partition(".")[0]
        self.trainable, self.part = experiment.trainable(self.stage.train)
        self.schedule = self.trainable.schedule(self.part)
        self.bf16 = short(self.settings, experiment.device)
        check_settings(self.settings, experiment.device)
        self.attends = self._prepare()
        averages = average_of(self.settings)
        self.ema = Ema(self.trainable, averages) if averages else None
        self.update = Update(
            self.trainable,
            self.settings,
            seed=experiment.recipe.seed,
            purpose=f"stage {number} {self.stage.train}",
            ema=self.ema,
            bf16=self.bf16,
        )
        self.guard = Guard(self.settings.max_bad, lag=LAG if experiment.device.type == "cuda" else 0)

    @property
    def title(self) -> str:
        """`autoencoder`, or `2 bridge.prior` where there are several stages."""
        several = len(self.experiment.recipe.stages) > 1
        return f"stage {self.number + 1} {self.stage.train}" if several else self.stage.train

    @property
    def is_last(self) -> bool:
        """Whether no stage follows."""
        return self.number == len(self.experiment.recipe.stages) - 1

    def _prepare(self) -> bool:
        """Switches of the networks, everything that is not trained frozen; tells whether there is attention to set."""
        for module in self.experiment.modules.values():
            module.eval()
            module.requires_grad_(False)
        part_of(self.trainable, self.part).train()
        found = sum(set_attention(module, self.settings.attention) for module in self.experiment.modules.values())
        networks = [m for m in self.trainable.modules() if isinstance(m, Network)]
        if self.settings.checkpointing:
            _switch(networks, "gradient_checkpointing_", "train.checkpointing")
        if self.settings.compile:
            _switch(networks, "compile_blocks", "train.compile")
        if self.settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
            torch.use_deterministic_algorithms(True)
        return found > 0

    def stream(self, source: Source, images: Source | None) -> Stream:
        """This process's rows of the stage's batches."""
        rows = parallel.rows(self.settings.batch, parallel.rank(), parallel.world())
        kind = PinnedStream if self.experiment.device.type == "cuda" else Stream
        aligned = bool(getattr(self.trainable, "aligned", False))
        return kind(source, self.experiment.recipe.seed, self.settings.batch, rows, aligned, images)

    def fit(self, source: Source, images: Source | None) -> None:
        """Fit closed-form parts to the data, for the raw weights and for each average.

        Args:
            source: of what the stage trains on.
            images: pixels beside it, where they are needed.
        """
        if fits(self.trainable):
            batches = passes_of(source, images, self.experiment.device)
            for average in self.ema.averages if self.ema else ():
                assert self.ema is not None
                with self.ema.applied(average.label):
                    self.trainable.fit(batches)
                    self.ema.keep(average.label)
            self.trainable.fit(batches)
        self.fitted = True

    @contextmanager
    def shown(self, source: Source, images: Source | None) -> Iterator[Experiment]:
        """The experiment as it would be sampled from now: averaged weights, closed-form parts fitted to some data.

        Training goes on afterwards as if nothing had happened.
        """
        with self.averaged(), torch.no_grad():
            if fits(self.trainable):
                self.trainable.fit(passes_of(source, images, self.experiment.device, limit=FIT_SOME))
            yield replace(self.experiment, step=self.step, seen=self.seen, weights="ema" if self.ema else "model")

    def renew(self, source: Source, images: Source | None) -> None:
        """Begin the schedule's present round, where it is not begun: averaged weights in place, nothing trained.

        What the method itself changes (numbers in buffers and weights) stays; everything else is as before.

        Args:
            source: of what the stage trains on.
            images: pixels beside it, where they are needed.
        """
        number = self.schedule.round(self.seen)
        if number == self.round and self.begun:
            return
        renewal = Renewal(
            number,
            resumed=number == self.round,
            part=self.part,
            source=source,
            images=images,
            seed=self.experiment.recipe.seed,
            purpose=self.update.purpose,
            device=self.experiment.device,
            bf16=self.bf16,
        )
        self.round, self.begun = number, True
        if type(self.trainable).renew is Trainable.renew:
            return
        with self.averaged() as before, torch.no_grad():
            placed = {k: v.clone() for k, v in self.trainable.state_dict().items()}
            self.trainable.renew(renewal)
            for name, value in self.trainable.state_dict().items():
                changed = value != placed[name]
                if changed.any():
                    before[name] = torch.where(changed, value, before[name])
                    for held in (values[name] for values in self.ema.values.values()) if self.ema else ():
                        held.copy_(torch.where(changed.to(held.device), value.to(held), held))

    @contextmanager
    def averaged(self) -> Iterator[dict[str, Tensor]]:
        """Averaged weights and evaluation mode; yields what is put back afterwards."""
        before = {k: v.clone() for k, v in self.trainable.state_dict().items()}
        modes = {name: module.training for name, module in self.trainable.named_modules()}
        self.trainable.eval()
        self.adopt_average()
        try:
            yield before
        finally:
            self.trainable.load_state_dict(before)
            for name, module in self.trainable.named_modules():
                module.training = modes[name]

    def state(self) -> dict[str, Any]:
        """Everything but tensors that resuming needs."""
        return {
            "stage": self.number,
            "step": self.step,
            "seen": self.seen,
            "finished": self.finished,
            "fitted": self.fitted,
            "guard": self.guard.state_dict(),
            "schedule": self.schedule.state_dict(),
            "round": self.round,
            "logs": self.logs,
            "ema_seen": self.ema.seen if self.ema else {},
            "seconds": self.seconds,
            "recipe": identity(self.experiment.recipe),
            "data": fingerprint(self.experiment),
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Files of a checkpoint, on the CPU."""
        files = {"model": self.experiment.state_dict(), "optimizer": self.update.tensors()}
        for average in self.ema.averages if self.ema else ():
            assert self.ema is not None
            files[average.label] = {f"{self.head}.{k}": v for k, v in self.ema.state(average.label).items()}
        return {name: {k: v.detach().cpu().contiguous() for k, v in values.items()} for name, values in files.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore everything.

        Raises:
            CheckpointError: if it lacks a key or has an unknown one, or belongs to other data or another stage.
        """
        state = checkpoint.state
        if wrong := KEYS ^ state.keys():
            raise CheckpointError(f"{checkpoint.path}: state.json: {', '.join(sorted(wrong))} missing or unknown")
        if state["recipe"] != identity(self.experiment.recipe):
            raise CheckpointError(f"{checkpoint.path} belongs to another recipe: it was copied here from another run")
        same_data(checkpoint.path, state["data"], fingerprint(self.experiment))
        self.load_weights(checkpoint)
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self.finished, self.fitted, self.logs = state["finished"], state["fitted"], dict(state["logs"])
        self.guard.load_state_dict(state["guard"])
        self.schedule.load_state_dict(state["schedule"])
        self.round = state["round"]

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Restore weights, averages and optimiser, but not the place in the data."""
        wanted = {"model", "optimizer", *(a.label for a in (self.ema.averages if self.ema else ()))}
        if wrong := wanted ^ set(checkpoint.files):
            raise CheckpointError(f"{checkpoint.path}: {', '.join(sorted(wrong))} missing or unknown")
        self.experiment.load_state_dict(checkpoint.tensors("model"))
        self.update.load(checkpoint.tensors("optimizer"))
        for average in self.ema.averages if self.ema else ():
            assert self.ema is not None
            values = checkpoint.tensors(average.label)
            self.ema.load(average.label, {k.removeprefix(f"{self.head}."): v for k, v in values.items()})
        if self.ema is not None:
            self.ema.seen = dict(checkpoint.state["ema_seen"])

    def adopt_average(self) -> None:
        """Make the averaged weights the model's, for the stages that build on this one."""
        if self.ema is not None:
            self.trainable.load_state_dict(self.ema.state(self.ema.averages[0].label))

    def non_finite(self) -> list[str]:
        """Names of weights that are not finite; waits for the device."""
        return [name for name, p in self.trainable.named_parameters() if not torch.isfinite(p).all()]


def fits(trainable: Trainable) -> bool:
    """Whether there are closed-form parts to fit."""
    return type(trainable).fit is not Trainable.fit


def fit_parts(experiment: Experiment, folder: Path) -> None:
    """Fit the closed-form parts of a bridge whose training was interrupted, so that it can be sampled from.

    Args:
        experiment: with trained weights.
        folder: of its run.
    """
    bridge = experiment.bridge
    if fits(bridge):
        logger.warning("training is not finished: closed-form parts are fitted to the data now")
        images = experiment.source if bridge.needs_images else None
        with torch.no_grad():
            bridge.fit(passes_of(latents_of(folder, experiment), images, experiment.device, FIT_SOME))


def passes_of(
    source: Source, images: Source | None, device: torch.device, limit: int | None = None
) -> Callable[[], Iterable[Batch]]:
    """What `Trainable.fit` asks for: each call begins a pass over the samples in their own order.

    Args:
        source: of the samples.
        images: pixels beside it, where they are needed.
        device: of the batches.
        limit: samples of a pass; all if None.
    """
    n = len(source) if limit is None else min(limit, len(source))

    def batches() -> Iterator[Batch]:
        for first in range(0, n, FIT_BATCH):
            index = np.arange(first, min(first + FIT_BATCH, n))
            found = source.read(index)
            pixels = None if images is None else images.read(index).x0
            batch = Batch(torch.arange(len(index)), found.x0, found.x1, Condition(dict(found.cond)), first, pixels)
            yield batch.to(device)

    return batches


class PinnedStream(Stream):
    """A stream whose batches can travel to an accelerator without the host waiting for them."""

    def batch(self, seen: int) -> Batch:
        """The batch, in page-locked memory."""
        found = super().batch(seen)

        def pin(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.pin_memory()

        cond = Condition({k: v.pin_memory() for k, v in found.cond.values.items()}, found.cond.present)
        return Batch(found.index, pin(found.x0), pin(found.x1), cond, found.seen, pin(found.images))


def _switch(networks: Iterable[nn.Module], method: str, key: str) -> None:
    """Call a switch of the networks that have it."""
    having = [network for network in networks if hasattr(network, method)]
    for network in having:
        getattr(network, method)()
    if not having:
        logger.warning("%s has no effect here: no network of this stage can do it", key)


def fingerprint(experiment: Experiment) -> dict[str, Any]:
    """What identifies the data that are trained on and those that are held out, as JSON gives it back."""
    held = {} if experiment.held is None else experiment.held.fingerprint()
    found: dict[str, Any] = {**experiment.source.fingerprint(), **{f"held_out.{k}": v for k, v in held.items()}}
    return dict(json.loads(json.dumps(found)))
