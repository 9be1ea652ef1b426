"""What can go wrong, as types, each with the exit code that the command line returns.

Nothing here imports torch: a mistake in a recipe must be told in a fraction of a second.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "ArgumentError",
    "BackendError",
    "CacheError",
    "CapabilityError",
    "CheckpointError",
    "DataError",
    "DiskError",
    "Error",
    "LockedError",
    "NonFiniteError",
    "Problem",
    "RecipeError",
    "nearest",
]


class Error(Exception):
    """A user's mistake or an outside failure, told in one clear line and without a traceback.

    Names of files may hold anything: what cannot be printed, or would command a terminal, is told by its escape.
    """

    exit_code = 1

    def __str__(self) -> str:
        told = super().__str__()
        return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in told)


@dataclass(frozen=True)
class Problem:
    """One mistake and where it stands.

    Args:
        where: `file:line:column`, or `override 'key=value'`.
        key: dotted path of the key, such as `bridge.reference.beta_min`; may be empty.
        message: what was found, what was expected, and the nearest right word where there is one.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        head = f"{self.where}: " if self.where else ""
        return f"{head}{self.key}: {self.message}" if self.key else f"{head}{self.message}"


class RecipeError(Error):
    """All problems of a recipe at once.

    Args:
        problems: in the order of their place in the file.
    """

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ArgumentError(ValueError):
    """A constructor's argument has a value that it cannot have.

    The builder of recipes maps it back to the key; in Python it is a plain `ValueError`.

    Args:
        name: the argument's name.
        message: what was found and what was expected.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name, self.message = name, message
        super().__init__(f"{name}: {message}")


class DataError(Error):
    """Data that is missing, unreadable or of the wrong form; names the path and the reason."""

    exit_code = 3


class CacheError(Error):
    """A latent cache that does not belong to this recipe or is damaged; names the field that differs, or the files."""

    exit_code = 4


class CheckpointError(Error):
    """A checkpoint or run that is missing, damaged or of another recipe; names what differs."""

    exit_code = 5


class DiskError(Error):
    """A write failed (disk full, file-size limit, read-only folder); what was valid before still is."""

    exit_code = 6


class CapabilityError(Error):
    """A command needs a capability that this part does not have; names the parts that have it."""

    exit_code = 7


class NonFiniteError(Error):
    """Losses or gradients were not finite more often than the guard allows."""

    exit_code = 8


class BackendError(Error):
    """A backend that was asked for by name cannot run here; says why and how to get it."""

    exit_code = 9


class LockedError(Error):
    """Another process trains in this run folder; names its pid and host."""

    exit_code = 75


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
