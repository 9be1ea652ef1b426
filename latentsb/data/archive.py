"""Members of a tar archive, read once from front to back; nothing in it is trusted.

Only members with the ending of an image, or `.cls`, are read; they are data under a key and never become paths. What
would make such a member something else than a regular file (a link, a device, a sparse file), or its name a place
outside (`..`, an absolute path), is refused, as are headers that promise more than `LARGEST`, and archives that do not
end as archives do.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from latentsb.data.pixels import ENDINGS
from latentsb.errors import DataError

__all__ = ["LABEL", "Archive", "Member", "is_packed"]

LABEL = ".cls"
LARGEST = 1 << 28
"""Bytes of one member; what promises more is no image but a trap."""
HEADERS = 1 << 20
"""Bytes of a long name or of other extended headers."""
BEHIND = 1 << 24
"""Zeros with which an archive may be filled up."""
CHUNK = 1 << 20
BUFFER = 1 << 14  # each read moves what is left of it


@dataclass(frozen=True)
class Member:
    """An image or label of an archive.

    Args:
        key: path without its endings, which begin at the first dot of the file name.
        ending: lower case, with its dot.
        offset: of its content in the archive, unpacked.
        data: its content.
    """

    key: str
    ending: str
    offset: int
    data: bytes


def is_packed(path: Path) -> bool:
    """Whether an archive is packed by gzip, so that no part of it can be read alone."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


class _Hashed:
    """A file that is read once, whose checksum and length are known at its end."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], None]) -> None:
        self.file, self.progress, self.sha256 = file, progress, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        found = self.file.read(size)
        self.sha256.update(found)
        self.progress(len(found))
        return found


class _Header(tarfile.TarInfo):
    """Headers that say what is wrong with them, where tarfile takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            found = super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the zeros with which an archive ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut off or damaged at byte {tarfile_.offset:,} ({error})") from error
        _limited(found, LARGEST)  # an extended header may have promised another size
        return found

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        plain = header.type in tarfile.SUPPORTED_TYPES and header.type not in EXTENDED
        _limited(header, LARGEST if plain else HEADERS)
        return header


def _limited(header: tarfile.TarInfo, limit: int) -> None:
    if not 0 <= header.size <= limit:
        raise tarfile.ReadError(f"{header.name!r} promises {header.size:,} bytes, expected 0 to {limit:,}")


EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


@dataclass
class Archive:
    """One archive.

    Args:
        path: of the file.
        progress: called with the numbers of bytes of the file as they are read.
        endings: of the members that are images.

    Attributes:
        sha256: of the file, once all members were read.
        others: how many members have other endings, by ending.
    """

    path: Path
    progress: Callable[[int], None] = lambda done: None
    endings: Collection[str] = ENDINGS
    sha256: str = ""
    others: Counter[str] = field(default_factory=Counter)

    def members(self) -> Iterator[Member]:
        """Images and labels in their order.

        Raises:
            DataError: if the archive is damaged, cut off or holds what is refused; names the member.
        """
        try:
            with self.path.open("rb") as file:
                raw = _Hashed(file, self.progress)
                source: Any = gzip.GzipFile(fileobj=raw) if is_packed(self.path) else raw  # type: ignore[call-overload]
                with tarfile.open(fileobj=source, mode="r|", tarinfo=_Header, bufsize=BUFFER) as tar:
                    yield from self._read(tar)
                    self._end(tar.fileobj)
                self.sha256 = raw.sha256.hexdigest()
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{self.path}: not a whole tar archive ({error})") from error

    def _read(self, tar: tarfile.TarFile) -> Iterator[Member]:
        for header in tar:
            key, ending = _split(header.name)
            if header.isdir():
                continue
            if not key or (ending not in self.endings and ending != LABEL):
                self.others[ending if key else "hidden"] += 1
                continue
            why = _refused(header)
            if why:
                raise DataError(f"{self.path}: member {header.name!r} {why}")
            content = tar.extractfile(header)
            assert content is not None
            yield Member(key, ending, header.offset_data, content.read())

    def _end(self, rest: Any) -> None:
        """Read to the end, where the checksum of a packed stream is compared; behind the members are only zeros."""
        for _ in range(BEHIND // CHUNK):
            found = rest.read(CHUNK)
            if not found:
                return
            if any(found):
                raise tarfile.ReadError("there is more behind its end; were several archives put together?")
        raise tarfile.ReadError(f"more than {BEHIND:,} zeros behind its end")


def _refused(header: tarfile.TarInfo) -> str:
    if not header.isreg() or header.issparse():
        kind = "a link" if header.issym() or header.islnk() else "no regular file"
        return f"is {kind}; images and labels must be plain files"
    if header.name.startswith(("/", "\\")) or ".." in header.name.split("/"):
        return "has a name that leads out of the archive"
    if not header.name.isprintable():  # bytes that are no UTF-8 are not printable either
        return "has a name with control characters or of no known encoding"
    return ""


def _split(name: str) -> tuple[str, str]:
    """Key and ending: `a/b.seg.png` is `a/b` and `.seg.png`; hidden files have no key."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.partition(".")
    return (folder + slash + stem if stem else "", (dot + ending).lower())
