"""Paths of many files at once: glob patterns and ranges of numbers."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentsb.errors import DataError

__all__ = ["expand", "matches"]

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST = 1_000_000
"""Files that one range may name."""


def matches(pattern: Path) -> list[Path]:
    """Files that one pattern names, those of a glob pattern sorted; a name without pattern is itself, if it is there.

    Args:
        pattern: path in which `*`, `?`, `[…]` and `**` stand for names and `{000..042}` for numbers of that width.
    """
    return [path for _, found in _parts(pattern) for path in found]


def expand(patterns: Sequence[Path], key: str) -> tuple[Path, ...]:
    """All files that patterns name, in the order of the patterns.

    Args:
        patterns: see `matches`.
        key: dotted path in the recipe, which messages name.

    Raises:
        DataError: if a pattern names no file, a number of a range has none, or a file is named twice.
    """
    files: list[Path] = []
    for pattern in patterns:
        for name, found in _parts(pattern):
            if not found:
                what = "no file matches" if glob.has_magic(name) else "there is no file"
                raise DataError(
                    f"{key}: {what} '{name}' (looked in {Path(name).absolute().parent}); put it there, or say where "
                    f"it is: {key}=…"
                )
            files += found
    twice = next((path for path in files if files.count(path) > 1), None) if len(set(files)) < len(files) else None
    if twice is not None:
        raise DataError(f"{key}: {twice} is named twice")
    if not files:
        raise DataError(f"{key}: names no file")
    return tuple(files)


def _parts(pattern: Path) -> Iterator[tuple[str, list[Path]]]:
    """Names without ranges, and the files that each names."""
    if pattern.is_file():
        yield str(pattern), [pattern]
        return
    for name in _numbered(str(pattern)):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        yield name, [Path(file) for file in found if Path(file).is_file()]


def _numbered(text: str) -> Iterator[str]:
    found = RANGE.search(text)
    if found is None:
        yield text
        return
    first, last = int(found[1]), int(found[2])
    if last - first >= MOST:
        raise DataError(f"the range {found[0]} names {last - first + 1:,} files, more than {MOST:,}")
    for number in range(first, last + 1):
        yield from _numbered(f"{text[: found.start()]}{number:0{len(found[1])}}{text[found.end() :]}")
