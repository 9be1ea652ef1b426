"""The full check of a shard's images, done once and remembered, and the pixels of small images, kept as they come.

To open a small image takes many times longer than to gather its pixels, and those of 64×64 are not many more bytes than
the file: images of up to `SMALL` numbers are therefore kept decoded, as bytes, beside the shard's index. Bytes become
numbers in [-1, 1] by the very operations of `latentsb.data.pixels`. Each image is compared when it is kept; where one
differs (16 bits), the shard's images are decoded anew each time.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from latentsb.data.pixels import PixelRule, UnreadableError
from latentsb.data.store import Shard
from latentsb.disk import Disk, alone, disk_error
from latentsb.errors import DiskError
from latentsb.shards import Shards, ShardWriter, damaged, rows_per_shard

__all__ = ["Decoded", "decoded", "numbers"]

SMALL = 64 * 64 * 3
"""Numbers of an image up to which its pixels are kept."""
NOTE = "checked.json"
BYTE = np.dtype(np.uint8)
PIXELS = "pixels"
TOGETHER = 256
"""Images that are decoded before they are written."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What decoding a shard's images has shown.

    Args:
        bad: reasons of those that do not decode, by name.
        pixels: bytes of all images, zeros for those that do not decode; None where they are not kept.
    """

    bad: Mapping[str, str]
    pixels: Shards | None


def numbers(pixels: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1], by the operations that `PixelRule` makes them with."""
    scaled: np.ndarray = pixels / np.float32(127.5) - np.float32(1.0)
    return scaled


def decoded(shard: Shard, rule: PixelRule, pool: Executor, progress: Callable[[int], None]) -> Decoded:
    """Decode all images of a shard, or recall that it was done.

    Args:
        shard: of which images are decoded.
        rule: what they become.
        pool: that decodes.
        progress: called with numbers of images as they are done.

    Raises:
        DataError: if the shard can no longer be read.
        DiskError: if what was found cannot be written.
    """
    what = json.dumps([asdict(rule), PIL.__version__])  # another version may decode in another way
    place = shard.folder / f"decoded-{sha256(what.encode()).hexdigest()[:16]}"
    found = _opened(place, shard, rule)
    if found is not None:
        progress(len(shard))
        return found
    try:
        with alone(place):
            found = _opened(place, shard, rule)  # by another process, which this one has waited for
            if found is None:
                _build(place, shard, rule, pool, progress)
                found = _opened(place, shard, rule)
    except OSError as error:
        raise disk_error(error, place, 0) from error
    if found is None:
        raise DiskError(f"{place}: what was just written there cannot be read")
    return found


def _opened(place: Path, shard: Shard, rule: PixelRule) -> Decoded | None:
    """What is kept at this place, if it is there and whole."""
    try:
        note: dict[str, Any] = json.loads((place / NOTE).read_text(encoding="utf-8"))
        bad = {str(name): str(why) for name, why in note["bad"].items()}
        if not note["files"]:
            return Decoded(bad, None)
        if damaged(place, note["files"]):
            return None
        shape = (rule.channels, rule.height, rule.width)
        return Decoded(bad, Shards(place, PIXELS, len(shard), shape, BYTE, rows_per_shard(shape, BYTE)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build(place: Path, shard: Shard, rule: PixelRule, pool: Executor, progress: Callable[[int], None]) -> None:
    """Decode all images, and write what was found beside its place before it gets its name."""
    disk, shape, beside = Disk(), (rule.channels, rule.height, rule.width), place.with_name(f".{place.name}.building")
    if beside.exists():  # left by a process that was killed: whoever builds holds the lock
        shutil.rmtree(beside)
    disk.mkdir(beside)
    writer = ShardWriter(beside, PIXELS, len(shard), shape, BYTE)
    bad: dict[str, str] = {}
    keeps = int(np.prod(shape)) <= SMALL
    try:
        for first in range(0, len(shard), TOGETHER):
            numbered = range(first, min(first + TOGETHER, len(shard)))
            found = list(pool.map(lambda k: _decode(shard, k, rule), numbered))
            bad |= {shard.names[k]: why for k, why in zip(numbered, found, strict=True) if isinstance(why, str)}
            rows = _bytes(found, shape) if keeps else None
            keeps = rows is not None
            if rows is not None:
                writer.write(rows)
            progress(len(found))
        writer.close()
        for name in disk.names(beside) if not keeps else ():
            disk.unlink(beside / name)
        disk.write(beside / NOTE, json.dumps({"bad": bad, "files": writer.digests if keeps else {}}).encode())
        disk.sync(beside / NOTE)
        disk.sync_dir(beside)
        shutil.rmtree(place, ignore_errors=True)  # what was there is damaged
        disk.rename(beside, place)
        disk.sync_dir(place.parent)
    finally:
        writer.close()
        shutil.rmtree(beside, ignore_errors=True)


def _decode(shard: Shard, k: int, rule: PixelRule) -> np.ndarray | str:
    """One image in [-1, 1], or why it cannot be used."""
    data = shard.image(k)  # an error here is not the image's
    try:
        return rule.read(io.BytesIO(data))
    except UnreadableError as error:
        return str(error)


def _bytes(found: Sequence[np.ndarray | str], shape: tuple[int, ...]) -> np.ndarray | None:
    """Images as bytes, None if one of them is more than bytes."""
    rows = np.zeros((len(found), *shape), BYTE)
    for row, image in zip(rows, found, strict=True):
        if isinstance(image, str):
            continue
        row[...] = np.rint((image + np.float32(1.0)) * np.float32(127.5))
        if not np.array_equal(numbers(row), image):
            return None
    return rows
