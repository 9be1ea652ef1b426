"""Files that are looked at once in full, which is remembered for as long as they keep their size and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from latentsb.data.images import Told, with_progress
from latentsb.data.scan import Entry, Finding, cache_folder, content, remember, remembered
from latentsb.errors import DataError

__all__ = ["Known", "known"]


@dataclass(frozen=True)
class Known:
    """Files as they were when they were looked at.

    Args:
        entries: by path.
        sha256: by path.
    """

    entries: Mapping[Path, Entry]
    sha256: Mapping[Path, str]

    def digest(self) -> str:
        """sha256 over the contents of all files in their order."""
        return sha256(repr(list(self.sha256.values())).encode()).hexdigest()

    def contents(self) -> dict[str, str]:
        """sha256 of the files, by path below the folder that all are in."""
        found = {path.absolute(): digest for path, digest in self.sha256.items()}
        folder = os.path.commonpath([path.parent for path in found])
        return {path.relative_to(folder).as_posix(): digest for path, digest in found.items()}

    def require(self) -> None:
        """Raise if a file was changed or removed since."""
        for path, entry in self.entries.items():
            if _entry(path) != entry:
                raise DataError(f"{path}: was changed after it was checked; start again to check it anew")


def _entry(path: Path) -> Entry:
    try:
        found = Entry.of(path.parent, path.name)
    except OSError as error:
        raise DataError(f"{path}: can no longer be read ({error.strerror})") from error
    return Entry(str(path.resolve()), found.size, found.changed)


def known(
    files: Sequence[Path],
    what: str,
    look: Callable[[Sequence[Path], Callable[[int], None]], None] = lambda files, told: None,
) -> Known:
    """Look at files and compute their checksums, or recall that it was done.

    Args:
        files: in their order; repeated ones count once.
        what: beside the files, that which is looked for: other words are other looks.
        look: at those that are new or were changed; raises if they cannot be used. It is given what to call with
            numbers of bytes that are done.

    Raises:
        DataError: if a file cannot be read.
    """
    entries = {path: _entry(path) for path in dict.fromkeys(files)}
    name = sha256(repr([what, *(entry.path for entry in entries.values())]).encode()).hexdigest()[:32]
    index = cache_folder() / f"known-{name}.json"
    before = remembered(index)
    new = [path for path, entry in entries.items() if entry not in before]
    found = with_progress("checking files", lambda told: _look(new, look, told)) if new else {}
    digests = {path: found[path] if path in found else before[entry].sha256 for path, entry in entries.items()}
    if new:
        remember(index, {entry: Finding(digests[path]) for path, entry in entries.items()})
    return Known(entries, digests)


def _look(
    files: Sequence[Path], look: Callable[[Sequence[Path], Callable[[int], None]], None], told: Told | None
) -> dict[Path, str]:
    total, done = sum(path.stat().st_size for path in files), 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if told is not None:
            told(min(done, total), total)

    look(files, progress)
    try:
        return {path: content(path) for path in files}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
