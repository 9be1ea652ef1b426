"""Images of a tar archive by number: an index, made once, of where each one lies.

A plain archive is read in place. From a packed one nothing can be read alone, so its images are copied, as they are
encoded, into one file beside the index: they are a fraction of their pixels' size, and one copy serves every size and
fit. Both lie in `$XDG_CACHE_HOME/latentsb/tar`, in a folder that is named by the archive's sha256.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np

from latentsb.data.archive import LABEL, Archive, is_packed
from latentsb.data.pixels import ENDINGS
from latentsb.data.scan import Entry, Finding, cache_folder, remember, remembered
from latentsb.disk import Disk, alone, disk_error
from latentsb.errors import DataError, DiskError

__all__ = ["Shard", "open_shard", "stores"]

FORMAT = 1
INDEX, DATA = "index.json", "images.bin"
MAPPED = 256
"""Files that are mapped at once: each holds a file descriptor."""


def stores() -> Path:
    """Folder of all stores."""
    return cache_folder() / "tar"


@dataclass(frozen=True, eq=False)
class Shard:
    """The images of one archive.

    Args:
        path: of the archive.
        sha256: of the archive.
        folder: of the store.
        file: in which the images lie: in the store, or the archive itself.
        entry: that file as it was when it was opened.
        names: keys with endings, in the order of the archive.
        keys: the same without endings.
        labels: class numbers, where the archive has them.
        offset: of each image, bytes.
        size: of each image, bytes.
        crc: CRC-32 of each image.
        others: how many members were passed over, by ending.
    """

    path: Path
    sha256: str
    folder: Path
    file: Path
    entry: Entry
    names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: np.ndarray | None
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    others: dict[str, int]

    def __len__(self) -> int:
        return len(self.names)

    def image(self, k: int) -> bytes:
        """The k-th image as it is encoded.

        Raises:
            DataError: if it is no longer what was indexed.
        """
        first = int(self.offset[k])
        try:
            if _entry(self.file) != self.entry:
                raise DataError(f"{self.file}: was changed after it was opened; start again to read it anew")
            found = _mapped(self.file, self.entry)[first : first + int(self.size[k])].tobytes()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}: can no longer be read ({error})") from error
        if zlib.crc32(found) != int(self.crc[k]):
            raise DataError(f"{self.file}: is damaged; remove {self.folder} so that it is made anew")
        return found


def _entry(file: Path) -> Entry:
    return Entry.of(file.parent, file.name)


@lru_cache(maxsize=MAPPED)
def _mapped(file: Path, entry: Entry) -> np.ndarray:
    """A file as it was at that time; the map of a file that was replaced since is another."""
    return np.memmap(file, dtype=np.uint8, mode="r")


def open_shard(path: Path, progress: Callable[[int], None], endings: tuple[str, ...] = ()) -> Shard:
    """The images of an archive, which is read if it is new or was changed.

    Args:
        path: of the archive.
        progress: called with numbers of bytes of the archive as they are done.
        endings: of the members that are images, in place of all that are known.

    Raises:
        DataError: if the archive is refused, see `latentsb.data.archive`; if keys or labels are amiss.
        DiskError: if the store cannot be written.
    """
    try:
        entry, packed = _entry(path), is_packed(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    known_as = stores() / f"{sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    known = remembered(known_as).get(entry)
    found = None if known is None else _opened(path, known.sha256, endings)
    if found is not None:
        progress(entry.size)
        return found
    try:
        stores().mkdir(parents=True, exist_ok=True)
        with alone(known_as):
            known = remembered(known_as).get(entry)  # by another process, which this one has waited for
            found = None if known is None else _opened(path, known.sha256, endings)
            beside, archive = stores() / f".{known_as.stem}.building", Archive(path, progress, endings or ENDINGS)
            digest = found.sha256 if found else _build(archive, packed, beside, endings)
            if _entry(path) != entry:
                raise DataError(f"{path}: was changed while it was read")
            remember(known_as, {entry: Finding(digest)})
    except OSError as error:
        raise disk_error(error, stores(), 0) from error
    found = _opened(path, digest, endings)
    if found is None:
        raise DiskError(f"{stores()}: what was just written there cannot be read")
    return found


def _index(folder: Path) -> dict[str, Any] | None:
    """Content of a store's index; None where the store is not whole."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        columns = index["columns"]
        whole = index["format"] == FORMAT and index["sha256"] == _digest(columns)
        if not whole or (index["packed"] and (folder / DATA).stat().st_size != sum(columns["size"])):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index


def _store(digest: str, endings: tuple[str, ...]) -> Path:
    """Folder of the store of an archive, of all its images or of those with some endings."""
    return stores() / (f"{digest}-{sha256(json.dumps(endings).encode()).hexdigest()[:8]}" if endings else digest)


def _opened(path: Path, digest: str, endings: tuple[str, ...]) -> Shard | None:
    """The shard whose store is there and whole, else None."""
    folder = _store(digest, endings)
    index = _index(folder)
    if index is None:
        return None
    columns, file = index["columns"], folder / DATA if index["packed"] else path
    labels = columns["label"]
    return Shard(
        path=path,
        sha256=digest,
        folder=folder,
        file=file,
        entry=_entry(file),
        names=tuple(key + ending for key, ending in zip(columns["key"], columns["ending"], strict=True)),
        keys=tuple(columns["key"]),
        labels=None if labels is None else np.array(labels, dtype=np.int64),
        offset=np.array(columns["offset"], dtype=np.int64),
        size=np.array(columns["size"], dtype=np.int64),
        crc=np.array(columns["crc"], dtype=np.int64),
        others=index["others"],
    )


def _digest(columns: Any) -> str:
    return sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()


def _build(archive: Archive, packed: bool, beside: Path, endings: tuple[str, ...]) -> str:
    """Write the store of an archive beside its place, then give it its name, the archive's sha256."""
    disk = Disk()
    if beside.exists():  # left by a process that was killed: whoever builds holds the lock
        shutil.rmtree(beside)
    disk.mkdir(beside)
    try:
        if packed:
            with (beside / DATA).open("wb") as data:
                columns = _columns(archive, data)
            disk.sync(beside / DATA)
        else:
            columns = _columns(archive, None)
        index = {"format": FORMAT, "packed": packed, "others": archive.others, "columns": columns}
        disk.write(beside / INDEX, json.dumps({**index, "sha256": _digest(columns)}).encode())
        disk.sync(beside / INDEX)
        disk.sync_dir(beside)
        place = _store(archive.sha256, endings)
        with alone(place):
            if _index(place) is None:  # else the same archive is known under another name
                shutil.rmtree(place, ignore_errors=True)
                disk.rename(beside, place)
                disk.sync_dir(place.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return archive.sha256


def _columns(archive: Archive, data: IO[bytes] | None) -> dict[str, Any]:
    """Index of an archive; its images are written one after the other into `data`, if given."""
    keys: list[str] = []
    endings: list[str] = []
    rows: list[tuple[int, int, int]] = []
    labels: dict[str, int] = {}
    seen: set[str] = set()
    written = 0
    for member in archive.members():
        if member.ending == LABEL:
            if member.key in labels:
                raise DataError(f"{archive.path}: the key '{member.key}' has two labels")
            labels[member.key] = _label(archive.path, member.key, member.data)
            continue
        if member.key in seen:
            raise DataError(f"{archive.path}: the key '{member.key}' has two images")
        seen.add(member.key)
        keys.append(member.key)
        endings.append(member.ending)
        rows.append((member.offset if data is None else written, len(member.data), zlib.crc32(member.data)))
        if data is not None:
            data.write(member.data)
            written += len(member.data)
    _partners(archive, seen, labels)
    offset, size, crc = zip(*rows, strict=True)
    label = [labels[key] for key in keys] if labels else None
    return {"key": keys, "ending": endings, "offset": offset, "size": size, "crc": crc, "label": label}


def _partners(archive: Archive, images: set[str], labels: dict[str, int]) -> None:
    if not images:
        others = ", ".join(f"{count} of '{ending}'" for ending, count in archive.others.most_common(5))
        raise DataError(
            f"{archive.path}: holds no image; its members are named KEY.jpg (or another image's ending) and KEY.cls, "
            f"and a KEY has no dot{f'; passed over: {others}, which can be read with `endings`' if others else ''}"
        )
    for single, told in (
        (labels.keys() - images, "a label but no image"),
        (images - labels.keys() if labels else set(), "an image but no label"),
    ):
        if single:
            number = "1 key has" if len(single) == 1 else f"{len(single):,} keys have"
            raise DataError(f"{archive.path}: {number} {told}, such as '{min(single)}'")


def _label(path: Path, key: str, data: bytes) -> int:
    text = data.strip()
    if not text.isdigit() or len(text) > 9:
        told = data[:20].decode(errors="replace")
        raise DataError(f"{path}: '{key}{LABEL}' holds {told!r}, expected the number of a class")
    return int(text)
