"""The full check of a folder of images, done once and remembered."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from latentsb.data.pixels import ENDINGS, PixelRule, UnreadableError
from latentsb.errors import DataError

__all__ = ["Entry", "Finding", "Scan", "cache_folder", "content", "listing", "remember", "remembered", "scan"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One file as it lies there: its path relative to the folder, with forward slashes, its size and time of change.

    Equal entries are taken for equal contents, so that a file is read only once; what *identifies* data is content.
    """

    path: str
    size: int
    changed: int

    @classmethod
    def of(cls, root: Path, path: str) -> Entry:
        """The file as it is now.

        Raises:
            OSError: if it is not there, or is a folder, a device, a pipe or a socket.
        """
        stat = (root / path).stat()
        if not S_ISREG(stat.st_mode):  # a device has no end, and whoever opens a pipe waits for a writer
            raise OSError(errno.EINVAL, "is no regular file", str(root / path))
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Finding:
    """What reading a file has shown.

    Args:
        sha256: of its content; empty where it could not be read at all.
        why: it is no image; empty for an image.
    """

    sha256: str
    why: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Args:
        good: images that decode, in the order of their paths.
        bad: path and reason of those that do not.
        contents: sha256 of each image that decodes, by path.
    """

    good: tuple[Entry, ...]
    bad: tuple[tuple[str, str], ...]
    contents: Mapping[str, str]

    def digest(self) -> str:
        """sha256 over the usable files' paths and contents."""
        return hashlib.sha256(json.dumps(sorted(self.contents.items()), ensure_ascii=True).encode()).hexdigest()


def listing(root: Path, endings: Sequence[str] = ()) -> tuple[Entry, ...]:
    """All files with an image's ending below a folder, ordered by path; hidden files and folders are left out.

    Links are followed, but to a folder that one is in. A file that cannot be looked at has the size -1.

    Args:
        root: of the images.
        endings: lower case, in place of those of images.

    Raises:
        DataError: if there is no such folder, or one in it cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    return tuple(_entry(root, path) for path in sorted(_paths(root, tuple(endings) or tuple(ENDINGS))))


def _entry(root: Path, path: str) -> Entry:
    try:
        return Entry.of(root, path)
    except OSError:
        return Entry(path, -1, 0)  # why is told when it is read


def _paths(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    above: dict[str, tuple[tuple[int, int], ...]] = {str(root): ()}  # the folders that each one is in
    for folder, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        inside = (*above.pop(folder), _identity(folder))
        shown = [(name, os.path.join(folder, name)) for name in folders if not name.startswith(".")]
        folders[:] = [name for name, path in shown if _identity(path) not in inside]
        above.update((os.path.join(folder, name), inside) for name in folders)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(endings):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _identity(folder: str) -> tuple[int, int]:
    try:
        stat = os.stat(folder)
    except OSError as error:
        _unreadable(error)
    return stat.st_dev, stat.st_ino


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def scan(
    root: Path,
    rule: PixelRule,
    progress: Callable[[int, int], None] | None = None,
    endings: Sequence[str] = (),
) -> Scan:
    """Read and decode every image once; a file that has not changed since is not read again.

    What was found is kept in `$XDG_CACHE_HOME/latentsb` (`~/.cache/latentsb`), by folder and rule.

    Args:
        root: of the images.
        rule: what they become.
        progress: called with images done and images in all.
        endings: of the files, see `listing`.
    """
    entries = listing(root, endings)
    what = [str(root.resolve()), asdict(rule), *endings]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    index = cache_folder() / f"scan-{key}.json"
    known = remembered(index)
    new = [entry for entry in entries if entry not in known]
    if new:
        known |= _check(root, rule, new, progress)
        remember(index, {entry: known[entry] for entry in entries if known[entry].sha256})
    found = [(entry, known[entry]) for entry in entries]
    return Scan(
        tuple(entry for entry, finding in found if not finding.why),
        tuple((entry.path, finding.why) for entry, finding in found if finding.why),
        {entry.path: finding.sha256 for entry, finding in found if not finding.why},
    )


def content(path: Path) -> str:
    """sha256 of a file.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(
    root: Path, rule: PixelRule, entries: Sequence[Entry], progress: Callable[[int, int], None] | None
) -> dict[Entry, Finding]:
    def finding(entry: Entry) -> Finding:
        path, digest = root / entry.path, ""
        try:
            Entry.of(root, entry.path)  # before it is opened
            digest = content(path)
            rule.read(path)
        except OSError as error:
            return Finding(digest, error.strerror or type(error).__name__)
        except UnreadableError as error:
            return Finding(digest, str(error))
        return Finding(digest)

    found = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter's lock
        for done, (entry, result) in enumerate(zip(entries, pool.map(finding, entries), strict=True), 1):
            found[entry] = result
            if progress is not None:
                progress(done, len(entries))
    return found


def cache_folder() -> Path:
    """Where what is known of files is kept: `$XDG_CACHE_HOME/latentsb`, or `~/.cache/latentsb`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentsb"


def remembered(index: Path) -> dict[Entry, Finding]:
    """What was found when files were last read; nothing if the index is absent or damaged."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["files"]
        return {
            Entry(str(path), int(size), int(changed)): Finding(str(digest), str(why))
            for path, size, changed, digest, why in files
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # absent or damaged: the folder is checked again


def remember(index: Path, found: Mapping[Entry, Finding]) -> None:
    """Write an index beside its place and rename it; a folder that cannot be written is a warning."""
    files = [(*astuple(entry), *astuple(finding)) for entry, finding in found.items()]
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=index.parent, prefix=index.stem, delete=False, encoding="utf-8"
        ) as stream:
            json.dump({"files": files}, stream)
        os.replace(stream.name, index)
    except OSError as error:
        log.warning("the check of the images cannot be remembered in %s (%s)", index, error)
