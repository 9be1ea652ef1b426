"""What a user sees while a stage trains or data are encoded: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Display", "short"]

QUIET_SECONDS = 10.0


def short(values: Mapping[str, Any]) -> str:
    """`loss 0.123 · 456 img/s · waits for data 2 %`, from a record of the log."""
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4g}")
    parts += [f"{name} {values[name]:.4g}" for name in ("psnr", "ssim") if name in values]
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:,.0f} img/s")
    if "data_wait" in values:
        parts.append(f"waits for data {100 * values['data_wait']:.0f} %")
    return " · ".join(parts)


class Display:
    """Progress of one stage, or of encoding what it needs.

    Args:
        title: of the stage.
        total: images of the stage.
        seen: images already seen.
        shown: False in all processes but the main one.
        console: where to; standard error if None.
        every: seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        seen: int,
        shown: bool,
        console: Console | None = None,
        *,
        every: float = QUIET_SECONDS,
    ) -> None:
        self.title, self.total, self.began_at, self.shown, self.every = title, total, seen, shown, every
        self.console = console or Console(stderr=True, soft_wrap=True)
        self.bar = shown and self.console.is_terminal
        self.began = self.said = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.bar,
        )
        self.task = self.progress.add_task(title, total=total, completed=seen, note="")

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.shown:
            self.console.print(text, markup=False, highlight=False)

    def advance(self, seen: int) -> None:
        """Move the bar."""
        if self.bar:
            self.progress.update(self.task, completed=min(seen, self.total))

    def note(self, seen: int, record: Mapping[str, Any]) -> None:
        """Show a record of the log; off a terminal a line every few seconds, with the time that is left."""
        if self.bar:
            self.progress.update(self.task, completed=min(seen, self.total), note=short(record))
            return
        now = time.monotonic()
        if now - self.said < self.every and seen < self.total:
            return
        self.said = now
        left = (now - self.began) / max(1, seen - self.began_at) * max(0, self.total - seen)
        self.say(
            f"{self.title}: {min(seen, self.total):,} of {self.total:,} images · {short(record)} · {left:,.0f} s left"
        )
