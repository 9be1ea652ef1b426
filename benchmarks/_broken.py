"""What a broken or odd input is, and how it is judged."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentsb.data.source import Source
from latentsb.errors import ArgumentError, Error

SECONDS = 60
"""After which a case has hung."""
GROWTH = 192 << 20
"""Bytes by which one case may let the process grow."""
CANARY = "canary"
"""A file that appears in the current folder if anything of an input is executed."""

Golden = np.ndarray | Callable[[], np.ndarray] | None


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        group: of the table.
        name: in the group.
        write: puts files into an empty folder, which is the current one.
        open: the source that a recipe would name.
        golden: x0 of all samples, float of shape (N, C, H, W), that must be read; None if the input must be refused.
        why: pattern of the message, which must name the place and the reason; empty if it must be read. With both a
            golden value and a pattern, either will do, but nothing else.
        use: what is done with the source; all samples are read if None.
        tolerance: of x0, 0 for exact.
    """

    group: str
    name: str
    write: Callable[[], object]
    open: Callable[[], Source]
    golden: Golden = None
    why: str = ""
    use: Callable[[Source], Any] | None = None
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `decoded`, `refused` or `failed`, and what was told."""

    case: Case
    how: str
    told: str


def everything(source: Source) -> np.ndarray:
    """x0 of all samples."""
    return source.read(np.arange(len(source))).x0.numpy()


def judged(case: Case) -> Outcome:
    """Try a case in a folder of its own."""
    before, began = _peak(again=True), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)), _alarm():
        how, told = _tried(case)
        if list(Path(folder).rglob(CANARY)):
            how, told = "failed", f"something was executed; {told}"
    if _peak() - before > GROWTH:
        how, told = "failed", f"took {(_peak() - before) >> 20} MiB; {told}"
    if time.monotonic() - began > SECONDS:
        how, told = "failed", f"took {time.monotonic() - began:.0f} s; {told}"
    return Outcome(case, how, told)


def _tried(case: Case) -> tuple[str, str]:
    Path("in").mkdir()
    os.chdir("in")
    case.write()
    os.chdir("..")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = (case.use or everything)(case.open())
    except (Error, ArgumentError) as error:
        return _refused(case, str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "failed", "".join(traceback.format_exception_only(error)).strip()
    if case.golden is None:
        return "failed", f"was read, and should have been refused: {case.why}"
    expected = case.golden() if callable(case.golden) else case.golden
    if found.shape != expected.shape:
        return "failed", f"shape {found.shape}, expected {expected.shape}"
    error = float(np.abs(found - expected).max())
    return ("decoded", "") if error <= case.tolerance else ("failed", f"pixels differ by {error:.3g}")


def _refused(case: Case, told: str) -> tuple[str, str]:
    try:
        told.encode()
    except UnicodeEncodeError:
        return "failed", f"a message that cannot be printed: {told!a}"
    if not case.why:
        return "failed", f"refused, and should have been read: {told}"
    if not re.search(case.why, told, re.DOTALL):
        return "failed", f"expected {case.why!r}, was told: {told}"
    return "refused", told


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, cache = Path.cwd(), os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("XDG_CACHE_HOME")
        if cache is not None:
            os.environ["XDG_CACHE_HOME"] = cache


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"hung for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _peak(*, again: bool = False) -> int:
    """Bytes that the process has held at most, on Linux since it was last asked to begin again."""
    with contextlib.suppress(OSError):
        if again:
            Path("/proc/self/clear_refs").write_text("5")
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if told:
            return int(told[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
