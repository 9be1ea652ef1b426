"""The full check of a folder of images, done once and remembered."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from latentsb.data.pixels import ENDINGS, PixelRule, UnreadableError
from latentsb.errors import DataError

__all__ = ["Entry", "Scan", "listing", "scan"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One file: its path relative to the folder, with forward slashes, its size and its time of change."""

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, root: Path, path: str) -> Entry:
        """The file as it is now.

        Raises:
            OSError: if it is not there.
        """
        stat = (root / path).stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Args:
        good: images that decode, in the order of their paths.
        bad: path and reason of those that do not.
    """

    good: tuple[Entry, ...]
    bad: tuple[tuple[str, str], ...]

    def digest(self) -> str:
        """sha256 over the usable files' paths, sizes and times."""
        return digest(self.good)

    def write_bad(self, path: Path) -> None:
        """Write path and reason of every unreadable image as csv."""
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "reason"), *self.bad])


def digest(entries: tuple[Entry, ...]) -> str:
    """sha256 over paths, sizes and times."""
    text = json.dumps([(e.path, e.size, e.changed) for e in entries], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def listing(root: Path) -> tuple[Entry, ...]:
    """All files with an image's ending below a folder, ordered by path; hidden files and folders are left out.

    Raises:
        DataError: if there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    return tuple(Entry.of(root, path) for path in sorted(_paths(root)))


def _paths(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in ENDINGS:
                yield (Path(folder) / name).relative_to(root).as_posix()


def scan(root: Path, rule: PixelRule, progress: Callable[[int, int], None] | None = None) -> Scan:
    """Decode every image once; a folder whose files have not changed since is not decoded again.

    What was found is kept in `$XDG_CACHE_HOME/latentsb` (`~/.cache/latentsb`), by folder and rule.

    Args:
        root: of the images.
        rule: what they become.
        progress: called with images done and images in all.
    """
    entries = listing(root)
    key = hashlib.sha256(json.dumps([str(root.resolve()), asdict(rule)]).encode()).hexdigest()[:32]
    index = _index_folder() / f"scan-{key}.json"
    now = digest(entries)
    bad = _remembered(index, now)
    if bad is None:
        bad = tuple(_check(root, rule, entries, progress))
        _remember(index, now, bad)
    broken = {path for path, _ in bad}
    return Scan(tuple(e for e in entries if e.path not in broken), bad)


def _check(
    root: Path, rule: PixelRule, entries: tuple[Entry, ...], progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, str]]:
    def reason(entry: Entry) -> str | None:
        try:
            rule.read(root / entry.path)
        except UnreadableError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter's lock
        for done, (entry, why) in enumerate(zip(entries, pool.map(reason, entries), strict=True), 1):
            if why is not None:
                yield entry.path, why
            if progress is not None:
                progress(done, len(entries))


def _index_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentsb"


def _remembered(index: Path, now: str) -> tuple[tuple[str, str], ...] | None:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        if found["listing"] == now:
            return tuple((str(path), str(why)) for path, why in found["bad"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: the folder is checked again
    return None


def _remember(index: Path, now: str, bad: tuple[tuple[str, str], ...]) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=index.parent, prefix=index.stem, delete=False, encoding="utf-8"
        ) as stream:
            json.dump({"listing": now, "bad": bad}, stream)
        os.replace(stream.name, index)
    except OSError as error:
        log.warning("the check of the images cannot be remembered in %s (%s)", index, error)
