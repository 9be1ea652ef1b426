"""Images in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from latentsb.data.images import Images, Told, checked_endings, pixel_rule, with_progress
from latentsb.data.pixels import Fit, UnreadableError
from latentsb.data.scan import Entry, Scan, content, scan
from latentsb.data.source import SOURCES
from latentsb.errors import DataError
from latentsb.ranges import Count, Fraction

__all__ = ["Folder"]


@SOURCES.register("folder")
class Folder(Images):
    """Images of a folder and its sub-folders, in the order of their paths; also arrays, and images of any channels.

    Before the first use every image is decoded once, which is remembered for as long as a file keeps its size and
    time. Conversions of odd modes are written in `latentsb.data.pixels`.

    Args:
        path: of the folder.
        size: side of the images, or (height, width).
        fit: images of another size are cut to the largest centred part of the right proportions (`crop`), laid
            whole on black (`pad`), stretched (`stretch`), or are unreadable (`exact`).
        channels: 1 grey, 3 colour, 4 colour and opacity; any other number that TIFF files and arrays have.
        flip: images may be mirrored left-right.
        labels: true where the first sub-folder is the class, or the name of a column of the table.
        classes: how many there are, or a text file with a name on each line in the order of their numbers; found in
            the data, in the order of their names, if left out.
        table: CSV file with a column `key` that holds paths without their endings.
        attributes: columns of the table that hold numbers.
        bad: share of unreadable images that is tolerated; they are left out.
        max_pixels: images whose header promises more pixels are unreadable.
        endings: of the files that are read, such as `.npy` or `.x0.png`, which names are told without; those of images
            if left out.
        range: values of arrays, and of images of more than 8 bits, that become -1 and 1; else those of their type.

    Raises:
        ArgumentError: if the size, the range or the endings are none that can be, or columns have no table.
        DataError: if classes are to be found and there is no such folder or table; at first use, if it does not exist,
            has no images or more unreadable ones than is tolerated, which are named with their reasons.
    """

    path_key: str = "path"

    def __init__(
        self,
        *,
        path: Path,
        size: Count | tuple[Count, Count],
        fit: Fit = "crop",
        channels: Count = 3,
        flip: bool = False,
        labels: bool | str = False,
        classes: Count | Path | None = None,
        table: Path | None = None,
        attributes: tuple[str, ...] = (),
        bad: Fraction = 0.0,
        max_pixels: Count = 64_000_000,
        endings: tuple[str, ...] = (),
        range: tuple[float, float] | None = None,
    ) -> None:
        self.root, self.endings = Path(path), checked_endings(endings)
        super().__init__(
            str(self.root),
            pixel_rule(size, fit, channels, max_pixels, range),
            flip=flip,
            labels=labels,
            classes=classes,
            table=table,
            attributes=attributes,
            bad=bad,
        )

    def require(self) -> None:
        """Raise if the folder is missing."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: there is no such folder (looked for {self.root.absolute()}); put the images there, or "
                f"say where they are: {self.recipe_key}.{self.path_key}=…"
            )

    def _own_classes(self) -> tuple[str, ...]:
        self.require()
        found = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not found:
            raise DataError(f"{self.root}: `labels: true` needs one sub-folder for each class, there is none")
        return tuple(found)

    @cached_property
    def scanned(self) -> Scan:
        """What the folder holds; checked at first use."""
        self.require()
        found = self.check()
        if not found.good and not found.bad:
            raise DataError(f"{self.root}: there is no image in it{self._others()}")
        self._tolerated(len(found.good), found.bad)
        if self.labels is True:
            self._check_classes(found)
        return found

    def check(self) -> Scan:
        """Decode all images or recall that it was done; tolerates any number of unreadable ones."""
        return with_progress(f"checking images of {self.root.name}", self._scan)

    def _scan(self, told: Told | None) -> Scan:
        return scan(self.root, self.rule, told, self.endings)

    def _check_classes(self, found: Scan) -> None:
        loose = next((entry.path for entry in found.good if "/" not in entry.path), None)
        if loose is not None:
            raise DataError(f"{self.root / loose}: lies in no class; with `labels: true` images lie in sub-folders")
        held = {entry.path.split("/")[0] for entry in found.good}
        empty, unknown = set(self._own_classes()) - held, held - set(self.classes)
        if empty:
            raise DataError(f"{self.root / min(empty)}: this class has no image; remove the folder or fill it")
        if unknown:
            raise DataError(f"{self.root / min(unknown)}: is none of the classes that `classes` names")

    def __len__(self) -> int:
        return len(self.scanned.good)

    def names(self) -> list[str]:
        """Paths without their endings."""
        return [self._name(entry.path) for entry in self.scanned.good]

    def _name(self, path: str) -> str:
        ending = next((ending for ending in self.endings if path.lower().endswith(ending)), None)
        return str(PurePosixPath(path).with_suffix("")) if ending is None else path[: -len(ending)]

    def _others(self) -> str:
        """What lies there instead of images, and how to read it."""
        found = Counter(path.suffix.lower() for path in self.root.rglob("*") if path.is_file())
        arrays = found[".npy"]
        hint = f"; it has {arrays:,} files of '.npy', which are read with endings=[.npy]" if arrays else ""
        asked = f" of the endings {', '.join(self.endings)}" if self.endings else ""
        return asked + ("" if ".npy" in self.endings else hint)

    def contents(self) -> Mapping[str, str]:
        """sha256 of the images, by path."""
        return self.scanned.contents

    def problems(self) -> Mapping[str, str]:
        """Reasons of the unreadable images that are tolerated, by path."""
        return dict(self.scanned.bad)

    def _own_labels(self) -> np.ndarray:
        numbers = {name: k for k, name in enumerate(self.classes)}
        return np.array([numbers[entry.path.split("/")[0]] for entry in self.scanned.good], dtype=np.int64)

    def _image(self, k: int) -> np.ndarray:
        entry = self.scanned.good[k]
        path = self.root / entry.path
        try:
            if Entry.of(self.root, entry.path) != entry and content(path) != self.scanned.contents[entry.path]:
                raise DataError(f"{path}: was changed after it was checked; start again to check it anew")
            return self.rule.read(path)
        except OSError as error:
            raise DataError(f"{path}: can no longer be read ({error.strerror})") from error
        except UnreadableError as error:
            raise DataError(f"{path}: {error}") from error

    def fingerprint(self) -> dict[str, Any]:
        """Files by path and content, and what they become."""
        told = self._identity("folder", self.scanned.digest())
        return {**told, "endings": list(self.endings)} if self.endings else told
