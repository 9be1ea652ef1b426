"""The few file operations that durable writing is made of.

Everything that must survive a power failure goes through a `Disk`, so that a test can record the operations and
replay every state in which a machine may come back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from latentsb.errors import DiskError

__all__ = ["Disk", "alone", "disk_error", "ignore_size_signal", "write_text"]

CHUNK = 1 << 26
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class Disk:
    """A file system, one method per operation; the real one."""

    def mkdir(self, path: Path) -> None:
        """Make one directory; its parent exists."""
        path.mkdir()

    def write(self, path: Path, data: bytes) -> None:
        """Create a file with this content; not yet durable."""
        view = memoryview(data)
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(view), CHUNK):
                part = view[start : start + CHUNK]
                while part:
                    # A write near a limit may be short; the next one then says why.
                    part = part[file.write(part) :]

    def sync(self, path: Path) -> None:
        """Make the content of a file durable."""
        self._sync(path, os.O_RDONLY)

    def sync_dir(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        self._sync(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))

    def _sync(self, path: Path, flags: int) -> None:
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or directory another name."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """Names in a directory, sorted; none if it does not exist."""
        return sorted(os.listdir(path)) if path.is_dir() else []

    def is_dir(self, path: Path) -> bool:
        """Whether this is a directory."""
        return path.is_dir()

    def read(self, path: Path) -> bytes:
        """Content of a file."""
        return path.read_bytes()

    def free(self, path: Path) -> int:
        """Bytes that may still be written beside `path`."""
        return shutil.disk_usage(path).free


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of what is made at `path`; it ends with the process that holds it."""
    import fcntl  # not on every system, and only needed to build

    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def disk_error(error: OSError, path: Path, needed: int) -> DiskError:
    """The user's message for a failed write.

    Args:
        error: what the system said.
        path: what was being written.
        needed: bytes that the whole write takes; 0 where that is not known.
    """
    sizes = [f"{needed:,} bytes are needed"] if needed else []
    if error.errno in FULL:
        with contextlib.suppress(OSError):  # the folder itself may be gone; the first error is what matters
            sizes.append(f"{shutil.disk_usage(path.parent).free:,} bytes are free there")
    reason = os.strerror(error.errno) if error.errno else str(error)
    told = f" ({', '.join(sizes)})" if sizes else ""
    return DiskError(f"cannot write {path}: {reason}{told}; what was saved before is kept")


def ignore_size_signal() -> None:
    """Let a file-size limit arrive as an error of the write instead of ending the process."""
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def write_text(path: Path, text: str, disk: Disk | None = None) -> None:
    """Write a small file durably: beside it, synced, renamed over it.

    Raises:
        DiskError: if it cannot be written; the old file is untouched.
    """
    disk = disk or Disk()
    data = text.encode()
    beside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        disk.write(beside, data)
        disk.sync(beside)
        disk.rename(beside, path)
        disk.sync_dir(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise disk_error(error, path, len(data)) from error
