"""What the trainer trains: losses, phases and the schedule that says which phase is on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.randomness import Draws
from latentsb.tensors import Batch

__all__ = ["Alternate", "Freeze", "Joint", "Loss", "OnePass", "Phase", "Round", "Schedule", "Trainable"]


@dataclass(frozen=True)
class Loss:
    """A loss per sample, so that means over a global batch do not depend on how it was split.

    Args:
        total: what is minimised, shape (B,).
        terms: named parts for the log, each of shape (B,), detached or not.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """One kind of update.

    Args:
        name: for the log.
        loss: what is minimised.
        trains: prefixes of the parameters' names that this phase updates; `("",)` is all of them. The others get no
            gradient, and neither they nor their running averages move.
        lr: factor on the learning rate.
    """

    name: str
    loss: Callable[[Batch, Draws], Loss]
    trains: tuple[str, ...] = ("",)
    lr: float = 1.0


class Round(ABC):
    """What the engine offers at the beginning of a round, in which a method renews what it keeps (simulated pairs).

    Attributes:
        number: of the round, from 0.
        resumed: training was interrupted inside this round. The method renews as before, with the same weights of
            what the round does not train, but must not apply a second time what changes weights or buffers.
        part: what the stage trains, as `Trainable.schedule` was told.
        size: samples of the data, mirrored ones counted.
        bf16: the stage's networks compute in bf16.
    """

    number: int
    part: str = ""
    size: int = 0
    resumed: bool = False
    bf16: bool = False

    @abstractmethod
    def simulate(
        self, name: str, rows: int, make: Callable[[Batch, Draws], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Make a table of rows in fixed blocks, which processes share, and keep it beside the run.

        Row i is a function of the weights, the seed, the round, the name and i: the same on any number of processes.

        Args:
            name: of the table.
            rows: how many.
            make: from unpaired rows of the data and their draws to named values, each of shape (B, …).

        Returns:
            The whole table on the CPU, each of shape (rows, …), perhaps mapped from a file.
        """


class Schedule(ABC):
    """Which phases are on. A tuple of several phases means several updates per step, in that order.

    `seen` counts the images since the stage began. A decision that depends on `logs` must be kept in the state.
    """

    @abstractmethod
    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """Phases of the step that begins after `seen` images; `logs` holds the last logged means over all rows."""

    def round(self, seen: int) -> int:
        """Number of the round that the step after `seen` images is in; `Trainable.renew` runs when it changes."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """What resume needs besides `seen`, JSON values only; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: if the state has keys that this schedule does not know.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, found {sorted(state)}")


@dataclass(frozen=True)
class OnePass(Schedule):
    """One phase for the whole training."""

    phase: Phase

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """The one phase."""
        return (self.phase,)


@dataclass(frozen=True)
class Joint(Schedule):
    """All phases in every step, one update after the other."""

    phases: tuple[Phase, ...]

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """All of them."""
        return self.phases


@dataclass(frozen=True)
class Alternate(Schedule):
    """One phase at a time, in turn; a new round begins with each turn.

    Args:
        phases: in the order of their turns.
        images: length of a turn.
        renew: length of a round, if there shall be several in a turn; divides `images`.

    Raises:
        ArgumentError: if a length is below 1 or `renew` does not divide `images`.
    """

    phases: tuple[Phase, ...]
    images: int
    renew: int | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ArgumentError("images", f"found {self.images}, expected at least 1")
        if self.renew is not None and (self.renew < 1 or self.images % self.renew):
            raise ArgumentError("renew", f"found {self.renew}, expected a divisor of images = {self.images}")

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """The phase whose turn it is."""
        return (self.phases[seen // self.images % len(self.phases)],)

    def round(self, seen: int) -> int:
        """Rounds since the beginning."""
        return seen // (self.renew or self.images)


@dataclass(frozen=True)
class Freeze(Schedule):
    """One schedule for the first images, another from then on, which no longer trains what is frozen.

    Args:
        after: images of the first schedule, at least 1.
        first: what is trained until then.
        then: what is trained afterwards; it counts its images from there.

    Raises:
        ArgumentError: if `after` is below 1.
    """

    after: int
    first: Schedule
    then: Schedule

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ArgumentError("after", f"found {self.after}, expected at least 1")

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """Phases of the schedule that is on."""
        return self.first.now(seen, logs) if seen < self.after else self.then.now(seen - self.after, logs)

    def round(self, seen: int) -> int:
        """Rounds of both, counted through; the change begins a new one."""
        if seen < self.after:
            return self.first.round(seen)
        return self.first.round(self.after - 1) + 1 + self.then.round(seen - self.after)

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"first": self.first.state_dict(), "then": self.then.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both.

        Raises:
            ValueError: if the state is not one of two schedules.
        """
        if set(state) != {"first", "then"}:
            raise ValueError(f"Freeze keeps the states 'first' and 'then', found {sorted(state)}")
        self.first.load_state_dict(state["first"])
        self.then.load_state_dict(state["then"])


class Trainable(nn.Module, ABC):
    """Anything with a loss: bridges, autoencoders, priors.

    Attributes:
        needs_images: batches must carry pixels beside latents.
    """

    needs_images: bool = False

    @abstractmethod
    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Loss of a batch, per sample."""

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        """Arrange the rows of a step before they are split into micro-batches; by default they stay as they are.

        Called once per step and without gradients, in every process with all of its rows, so that a method may look
        at the whole global batch (`parallel.Rows`). Whoever calls `loss` prepares the batch first.

        Args:
            batch: this process's rows, on the device.
            draws: of the same rows.
        """
        return batch

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if there are none."""
        return next((p.device for p in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def schedule(self, part: str = "") -> Schedule:
        """The phases of a training stage; by default one phase with all parameters.

        Args:
            part: what the stage trains: empty for the whole, `prior` for a stage `{train: bridge.prior}`.

        Raises:
            CapabilityError: if there is no such part to train.
        """
        if part:
            raise CapabilityError(f"{type(self).__name__} has no part '{part}' that is trained by itself")
        return OnePass(Phase("all", self.loss))

    def renew(self, round: Round) -> None:
        """Renew what is kept for a round (simulated pairs, splines); by default nothing is.

        Called in evaluation mode, without gradients and with the averaged weights in place: when a round begins, the
        first one included, and once more for the present round when training resumes.
        """

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Fit closed-form parts to a full pass over the data (buffers only); called at the end of training.

        An autoencoder that has nothing else to train (`Autoencoder.needs_fit`) is fitted before its first use.

        `batches` starts a new pass each time it is called. By default there is nothing to fit.
        """
