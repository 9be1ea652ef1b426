"""What the sections of the GPU benchmark share: where they run, how they are timed, and how a failure is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from _harness import Report


@dataclass(frozen=True)
class Place:
    """Where and how large.

    Args:
        device: cuda or cpu.
        quick: tiny sizes.
        deadline: of the whole command, by the monotonic clock.
    """

    device: str
    quick: bool
    deadline: float

    @property
    def late(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self.deadline

    def milliseconds(self, call: Callable[[], object], repeats: int = 10) -> float:
        """Median of repeated calls after a warm-up: by the device's own events, or processor time on the CPU."""
        for _ in range(1 if self.quick else 3):
            call()
        found = [self._once(call) for _ in range(2 if self.quick else repeats)]
        return sorted(found)[len(found) // 2]

    def _once(self, call: Callable[[], object]) -> float:
        if self.device != "cuda":
            began = time.process_time()
            call()
            return 1e3 * (time.process_time() - began)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))

    def peak(self, call: Callable[[], object]) -> float:
        """MiB that a call takes at most on the card; 0 on the CPU."""
        if self.device != "cuda":
            call()
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20


def say(report: Report, what: str, found: object) -> None:
    """Note words in place of a figure."""
    row = {"what": what, "value": str(found)[:200], "interval": None, "unit": ""}
    report.rows.append(row | {"at_least": None, "at_most": None, "met": None})


def guarded(report: Report, place: Place, what: str, section: Callable[[], None]) -> None:
    """Run a part; a failure and a lack of time are told in the table, and the rest goes on."""
    if place.late:
        say(report, what, "skipped: no time was left")
        return
    try:
        section()
    except Exception as error:  # whatever a driver, a kernel or a compiler can come up with
        say(report, what, f"failed: {type(error).__name__}: {error}".splitlines()[0])
        if place.device == "cuda":
            torch.cuda.empty_cache()
