"""What all commands print with: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from latentsb.errors import Error, RecipeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

__all__ = ["Lines", "console", "count", "progress", "size", "table", "tell", "visible"]

QUIET_SECONDS = 5.0


def console(*, stderr: bool = False) -> Console:
    """A console that wraps at the terminal's width; 120 columns where there is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False)


def table(title: str, *columns: str) -> Table:
    """An empty table; text in it is shown as it is, not as markup."""
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def progress() -> Progress:
    """A progress bar on standard error that vanishes when it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console(stderr=True), transient=True)


class Lines:
    """Progress off a terminal: a line on standard error every few seconds.

    Args:
        title: of the work.
        total: of what is counted.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.began = self.said = time.monotonic()

    def advance(self, done: int) -> None:
        """Count; say so if the last line is old."""
        self.done += done
        now = time.monotonic()
        if now - self.said < QUIET_SECONDS or self.done >= self.total:
            return
        self.said = now
        left = (now - self.began) / self.done * (self.total - self.done)
        print(f"{self.title}: {self.done:,} of {self.total:,} · {left:,.0f} s left", file=sys.stderr, flush=True)


def tell(error: Error) -> None:
    """Print an error on standard error: one clear line, or one per problem of a recipe."""
    lines = [str(error)] if not isinstance(error, RecipeError) else [str(problem) for problem in error.problems]
    for line in lines:
        print(visible(line), file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(visible(note), file=sys.stderr)


def visible(text: str) -> str:
    """The text with control characters escaped, so that a file's name cannot drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def size(numbers: float) -> str:
    """Bytes for people: `3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if numbers < 1000:
            return f"{numbers:.0f} {unit}" if unit == "B" else f"{numbers:.3g} {unit}"
        numbers /= 1000
    return f"{numbers:.3g} TB"


def count(numbers: int) -> str:
    """A count for people: `12.4 M`."""
    if numbers < 10_000:
        return str(numbers)
    return f"{numbers / 1e3:.3g} k" if numbers < 1e6 else f"{numbers / 1e6:.4g} M"
