"""Decisions that every process takes together: steps that were not finite, and requests to stop.

A step on an accelerator must not wait for the host. The flags of a step are therefore read `LAG` steps later there,
when its work is done anyway; on the CPU they are read at once. Skipping itself needs no decision: the fused optimiser
leaves weights and moments as they are where the step's flag is set.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

__all__ = ["REASONS", "Guard", "Signals", "Stopped"]

LAG = 2
REASONS = ("SIGTERM", "SIGINT", "time")
EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "time": 0}


class Stopped(Exception):
    """Ends a work between steps, of which nothing is kept.

    Args:
        reason: of `REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Signals:
    """Turns SIGTERM and Ctrl-C into a request that the loop reads; a second Ctrl-C ends the process at once.

    Args:
        max_time: seconds after which `time` is requested; None for never.
    """

    def __init__(self, max_time: float | None = None) -> None:
        self.deadline = float("inf")
        self.limit(max_time)
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def limit(self, max_time: float | None) -> None:
        """Request `time` after so many seconds from now, unless an earlier limit stands; None changes nothing."""
        if max_time is not None:
            self.deadline = min(self.deadline, time.monotonic() + max_time)

    def reason(self) -> str | None:
        """What asks to stop, of `REASONS`, or None."""
        if self.asked is None and time.monotonic() >= self.deadline:
            self.asked = "time"
        return self.asked

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # only the main thread may; elsewhere the caller's handlers stay
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == "SIGINT":
            os._exit(EXIT_CODES["SIGINT"])
        self.asked = signal.Signals(number).name


@dataclass
class Guard:
    """Counts steps that were skipped because a loss or a gradient was not finite.

    Args:
        max_bad: consecutive bad steps that are skipped without more ado.
        lag: steps after which flags are read.

    Attributes:
        streak: consecutive bad steps up to the last one that was read.
        total: bad steps of the stage.
        rollbacks: how often weights went back to a checkpoint in the stage.
        reason: why to stop, if any process was asked to.
    """

    max_bad: int
    lag: int = 0
    streak: int = 0
    total: int = 0
    rollbacks: int = 0
    reason: str | None = None

    def __post_init__(self) -> None:
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def observe(self, flags: Tensor) -> None:
        """Take the flags of a step, already summed over the processes: bad, then one for each of `REASONS`."""
        event = None
        if flags.device.type == "cuda":
            place = flags.device
            flags = flags.to("cpu", non_blocking=True)
            event = torch.cuda.current_stream(place).record_event()
        self._waiting.append((flags, event))
        while len(self._waiting) > self.lag:
            self._read()

    def flush(self) -> None:
        """Read everything that waits; waits for the device."""
        while self._waiting:
            self._read()

    @property
    def exhausted(self) -> bool:
        """Whether more steps in a row were bad than may be skipped."""
        return self.streak > self.max_bad

    def _read(self) -> None:
        flags, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        bad, *asked = flags.tolist()
        self.streak = self.streak + 1 if bad else 0
        self.total += bool(bad)
        self.reason = self.reason or next((r for r, flag in zip(REASONS, asked, strict=True) if flag), None)

    def state_dict(self) -> dict[str, int]:
        """Counters, for a checkpoint."""
        return {"streak": self.streak, "total": self.total, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counters."""
        self.streak, self.total, self.rollbacks = state["streak"], state["total"], state["rollbacks"]
