"""Rules that say when a part stops learning: at a plateau of its loss, after a fixed time, or never."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentsb.ranges import Count, Fraction, NonNegativeInt, OpenFraction, enforce
from latentsb.registry import Registry
from latentsb.trainable import Phase, Schedule

__all__ = ["FREEZES", "AtPlateau", "Fixed", "FreezeRule", "Never", "Plateau", "Until"]


class Until(Schedule):
    """One schedule up to a number of images, another from then on; the number may still be unknown.

    Rounds: 0 for the first schedule, which has none of its own, and 1, 2, … for those of the second.

    Args:
        first: what is trained until then.
        then: what is trained afterwards; it counts its images from there.
        frozen: the number; None while nobody knows.
    """

    def __init__(self, first: Schedule, then: Schedule, frozen: int | None = None) -> None:
        self.first, self.then, self.frozen = first, then, frozen

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """Phases of the schedule that is on."""
        return self.first.now(seen, logs) if self._early(seen) else self.then.now(seen - self._at, logs)

    def round(self, seen: int) -> int:
        """0 before, from 1 on after."""
        return 0 if self._early(seen) else 1 + self.then.round(seen - self._at)

    def state_dict(self) -> dict[str, Any]:
        """The number."""
        return {"frozen": self.frozen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: if the state is not one of this class.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"{type(self).__name__} keeps {sorted(self.state_dict())}, found {sorted(state)}")
        for name, value in state.items():
            setattr(self, name, value)

    def _early(self, seen: int) -> bool:
        return self.frozen is None or seen < self.frozen

    @property
    def _at(self) -> int:
        assert self.frozen is not None
        return self.frozen


class AtPlateau(Until):
    """`Until` a logged loss no longer falls: `Plateau` says when.

    A look is a new line of the log; the decision holds from the next step on, so that its round can begin first.
    Everything that it depends on is in its state: a resumed run freezes at the same step.

    Args:
        first: what is trained until then.
        then: what is trained afterwards.
        rule: when.
        key: of the loss in the log.
    """

    def __init__(self, first: Schedule, then: Schedule, rule: Plateau, key: str) -> None:
        super().__init__(first, then)
        self.rule, self.key = rule, key
        self.last: float | None = None
        self.averages: list[float] = []

    def now(self, seen: int, logs: Mapping[str, float]) -> tuple[Phase, ...]:
        """Phases of the schedule that is on, after a look at the log where it has a new line."""
        phases = super().now(seen, logs)
        if self.frozen is None:
            value = logs.get(self.key)
            if value is not None and value != self.last:
                self._look(value)
            full = len(self.averages) > self.rule.looks
            flat = full and self.averages[0] - self.averages[-1] < self.rule.threshold * abs(self.averages[0])
            late = self.rule.cap is not None and seen >= self.rule.cap
            if flat or late:
                self.frozen = seen + 1
        return phases

    def _look(self, value: float) -> None:
        past = self.rule.memory
        average = past * self.averages[-1] + (1 - past) * value if self.averages else value
        self.last, self.averages = value, [*self.averages, average][-self.rule.looks - 1 :]

    def state_dict(self) -> dict[str, Any]:
        """The number, the last value seen and the averages that still count."""
        return {**super().state_dict(), "last": self.last, "averages": list(self.averages)}


class FreezeRule(ABC):
    """When to freeze; a frozen dataclass."""

    @abstractmethod
    def schedule(self, first: Schedule, then: Schedule, key: str) -> Schedule:
        """One schedule and then the other.

        Args:
            first: what is trained before; it has no rounds.
            then: what is trained afterwards.
            key: of the loss that tells, in the log.
        """


FREEZES: Registry[FreezeRule] = Registry("freeze", FreezeRule, homes=("latentsb.freezing",))


@FREEZES.register("plateau")
@dataclass(frozen=True, kw_only=True)
class Plateau(FreezeRule):
    """When a running average of the loss has improved by less than a share of itself over the last lines of the log.

    With the values `v_i` of the log and `a_i = memory a_{i−1} + (1 − memory) v_i`, `a_0 = v_0`, it freezes after line
    i if `a_{i−looks} − a_i < threshold |a_{i−looks}|`, or at `cap` images.

    Args:
        threshold: relative improvement.
        looks: lines of the log over which it is measured.
        memory: weight of the past in the average.
        cap: images after which it freezes in any case; None for no such limit.
    """

    threshold: OpenFraction = 0.01
    looks: Count = 5
    memory: Fraction = 0.5
    cap: Count | None = None

    def __post_init__(self) -> None:
        enforce(self)

    def schedule(self, first: Schedule, then: Schedule, key: str) -> Schedule:
        """See the class."""
        return AtPlateau(first, then, self, key)


@FREEZES.register("fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(FreezeRule):
    """After a number of images; 0 for a part that is never trained.

    Args:
        after: images.
    """

    after: NonNegativeInt

    def __post_init__(self) -> None:
        enforce(self)

    def schedule(self, first: Schedule, then: Schedule, key: str) -> Schedule:
        """See the class."""
        return Until(first, then, self.after)


@FREEZES.register("never")
@dataclass(frozen=True, kw_only=True)
class Never(FreezeRule):
    """Never."""

    def schedule(self, first: Schedule, then: Schedule, key: str) -> Schedule:
        """The first one alone."""
        return first
