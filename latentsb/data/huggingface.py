"""Data sets of the Hugging Face library `datasets`, from this machine's disk: nothing is downloaded, no code is run."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from latentsb.data.digests import Known, known
from latentsb.data.images import Images, pixel_rule, with_progress
from latentsb.data.pixels import Fit, UnreadableError
from latentsb.data.scan import cache_folder
from latentsb.data.source import SOURCES
from latentsb.disk import write_text
from latentsb.errors import ArgumentError, DataError, nearest
from latentsb.ranges import Count, Fraction
from latentsb.tensors import Spec

__all__ = ["HuggingFace"]

SAVED, SPLITS = "state.json", "dataset_dict.json"
"""Files by which `save_to_disk` marks its folders."""
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}\.parquet")
LARGEST = float(np.finfo(np.float32).max)


def _library() -> Any:
    """The library `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("data 'huggingface' need the library datasets: pip install 'latentsb[data]'") from error
    datasets.disable_progress_bars()
    return datasets


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """The library asks no server for anything meanwhile."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@SOURCES.register("huggingface")
class HuggingFace(Images):
    """Images of a Hugging Face data set that lies on this machine: `save_to_disk`'s folder, or Parquet files.

    Only local files are read, never a server or a script, and images must lie in the data set itself. Before the first
    use every image is decoded once, which is remembered for as long as the files keep their content. Rows of Parquet
    files are first copied to `$XDG_CACHE_HOME/latentsb/datasets` by the library, since they cannot be read one by one.

    Args:
        path: of the folder that `save_to_disk` wrote, of a folder with Parquet files, or of one such file.
        size: side of the images, or (height, width).
        split: which one, where there are several (of Parquet files: how the names of theirs begin).
        image: column of the images.
        labels: column of the classes: class labels, whole numbers, or words, which are numbered in their order.
        classes: how many there are, or a text file with a name on each line; found in the data if left out.
        attributes: columns that hold numbers.
        fit: images of another size are cut to the largest centred part of the right proportions (`crop`), laid
            whole on black (`pad`), stretched (`stretch`), or are unreadable (`exact`).
        channels: 1 grey, 3 colour, 4 colour and opacity.
        flip: images may be mirrored left-right.
        bad: share of unreadable images that is tolerated; they are left out.
        max_pixels: images whose header promises more pixels are unreadable.

    Raises:
        ArgumentError: if the size or the channels are none that an image can have.
        DataError: if the library is missing; at first use, if the data, the split or a column is not there, or more
            images are unreadable than is tolerated.
    """

    def __init__(
        self,
        *,
        path: Path,
        size: Count | tuple[Count, Count],
        split: str | None = None,
        image: str = "image",
        labels: str | None = None,
        classes: Count | Path | None = None,
        attributes: tuple[str, ...] = (),
        fit: Fit = "crop",
        channels: Count = 3,
        flip: bool = False,
        bad: Fraction = 0.0,
        max_pixels: Count = 64_000_000,
    ) -> None:
        self.root, self.split, self.image, self.column = Path(path), split, image, labels
        if labels is not None and labels in (image, *attributes):
            raise ArgumentError("labels", f"the column '{labels}' is asked for twice")
        super().__init__(
            str(self.root),
            pixel_rule(size, fit, channels, max_pixels),
            flip=flip,
            labels=labels is not None,
            classes=classes,
            table=None,
            attributes=(),
            bad=bad,
        )
        self.attributes = tuple(attributes)
        if attributes:
            self.cond = {**self.cond, "attributes": Spec((len(attributes),))}

    def require(self) -> None:
        """Raise if the data or the library are missing."""
        if not self.root.exists():
            raise DataError(
                f"{self.root}: there is no such folder or file (looked for {self.root.absolute()}); nothing is "
                "downloaded: write it with the library's save_to_disk, or say where it is: "
                f"{self.recipe_key}.path=…"
            )
        _library()

    @cached_property
    def _saved(self) -> bool:
        """The data were written by `save_to_disk`."""
        return any((self.root / name).is_file() for name in (SAVED, SPLITS))

    @cached_property
    def _parquet(self) -> tuple[Path, ...]:
        """Parquet files of the split, in the order of their paths."""
        files = [self.root] if self.root.is_file() else sorted(self.root.rglob("*.parquet"))
        if not files or files[0].suffix != ".parquet":
            raise DataError(
                f"{self.root}: is neither a folder of the library's save_to_disk nor Parquet; images in folders are "
                "data `folder`, which reads their metadata.csv as `table`"
            )
        splits = [(found[1] if (found := SHARD.fullmatch(file.name)) else file.stem) for file in files]
        several = self._chosen(sorted(set(splits)) if any(map(SHARD.fullmatch, (f.name for f in files))) else [])
        return tuple(file for file, split in zip(files, splits, strict=True) if several in ("", split))

    def _chosen(self, splits: list[str]) -> str:
        """The split that is read; empty where there are none."""
        told = f"It has: {', '.join(splits) or 'none'}"
        if self.split is None and len(splits) > 1:
            raise DataError(f"{self.root}: say which split: {self.recipe_key}.split=… {told}")
        if self.split is not None and self.split not in splits:
            raise DataError(f"{self.root}: has no split '{self.split}'.{nearest(self.split, splits)} {told}")
        return self.split or next(iter(splits), "")

    @cached_property
    def _opened(self) -> tuple[Any, Known]:
        """The library's data set, whose images are bytes, and its files."""
        self.require()
        datasets = _library()
        try:
            with _offline(datasets):
                found, files = self._from_disk(datasets) if self._saved else self._from_parquet(datasets)
        except DataError:
            raise
        except Exception as error:  # the library's own, of many kinds
            raise DataError(f"{self.root}: cannot be read as a data set ({error})") from error
        names = found.column_names
        for key, name in (
            ("image", self.image),
            ("labels", self.column),
            *(("attributes", a) for a in self.attributes),
        ):
            if name is not None and name not in names:
                has = f"It has: {', '.join(names)}; set {self.recipe_key}.{key}=…"
                raise DataError(f"{self.root}: has no column '{name}'.{nearest(name, names)} {has}")
        try:
            return found.with_format(None).cast_column(self.image, datasets.Image(decode=False)), files
        except Exception as error:
            raise DataError(f"{self.root}: the column '{self.image}' holds no images ({error})") from error

    def _from_disk(self, datasets: Any) -> tuple[Any, Known]:
        found = datasets.load_from_disk(str(self.root))
        if isinstance(found, dict):
            found = found[self._chosen(sorted(found))]
        elif self.split is not None:
            self._chosen([])
        return found, known([Path(entry["filename"]) for entry in found.cache_files], "huggingface")

    def _from_parquet(self, datasets: Any) -> tuple[Any, Known]:
        files = known(self._parquet, "huggingface")
        place = cache_folder() / "datasets" / files.digest()[:32]
        return datasets.Dataset.from_parquet(list(map(str, self._parquet)), cache_dir=str(place)), files

    @property
    def _rows(self) -> Any:
        return self._opened[0]

    @cached_property
    def checked(self) -> tuple[np.ndarray, dict[str, str]]:
        """Rows whose images decode, and why the others do not, by row; decoded at first use."""
        rows, files = self._opened
        what = repr([files.digest(), self.image, len(rows), self.rule, PIL.__version__])
        note = cache_folder() / f"huggingface-{sha256(what.encode()).hexdigest()[:32]}.json"
        try:
            bad = {str(row): str(why) for row, why in json.loads(note.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            bad = self._decoded(len(rows))
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(bad))
        good = np.array([row for row in range(len(rows)) if str(row) not in bad], dtype=np.int64)
        self._tolerated(len(good), [(f"row {row}", why) for row, why in bad.items()])
        return good, bad

    def _decoded(self, total: int) -> dict[str, str]:
        def fault(row: int) -> str:
            try:
                self._pixels(row)
            except UnreadableError as error:
                return str(error)
            return ""

        def work(told: Any) -> dict[str, str]:
            found = {}
            for row, why in enumerate(self._pool.map(fault, range(total))):
                if why:
                    found[str(row)] = why
                if told is not None:
                    told(row + 1, total)
            return found

        return with_progress("checking images", work)

    def _pixels(self, row: int) -> np.ndarray:
        cell = self._rows[row][self.image]
        data = None if cell is None else cell["bytes"]
        if data is None:
            elsewhere = f"lies in another file ({cell['path']})" if cell and cell["path"] else "is absent"
            raise UnreadableError(f"its image {elsewhere}; only images in the data set itself are read")
        return self.rule.read(io.BytesIO(data))

    def __len__(self) -> int:
        return len(self.checked[0])

    def names(self) -> list[str]:
        """Numbers of the rows, from 0."""
        return list(map(str, self.checked[0].tolist()))

    def contents(self) -> Mapping[str, str]:
        """sha256 of the files of the data set."""
        return self._opened[1].contents()

    def problems(self) -> Mapping[str, str]:
        """Reasons of the unreadable images that are tolerated, by row."""
        return {f"row {row}": why for row, why in self.checked[1].items()}

    def _column(self, name: str) -> list[Any]:
        """Cells of all rows, those of unreadable images included."""
        return list(self._rows.select_columns([name])[:][name])

    @cached_property
    def _words(self) -> list[str]:
        """Class of each row, by its name."""
        assert self.column is not None
        cells = self._column(self.column)
        named = getattr(self._rows.features[self.column], "names", None)
        wrong = next((k for k, cell in enumerate(cells) if not _is_class(cell)), None)
        if wrong is not None:
            raise DataError(f"{self.root}: '{self.column}' of row {wrong} is {cells[wrong]!r}, expected a class")
        return [named[cell] if named else str(int(cell)) if isinstance(cell, int) else cell for cell in cells]

    def _own_classes(self) -> tuple[str, ...]:
        assert self.column is not None
        named = getattr(self._rows.features[self.column], "names", None)
        if named:
            return tuple(named)
        words = set(self._words)
        numbered = all(word.isascii() and word.isdigit() and len(word) < 8 for word in words)
        return tuple(map(str, range(max(map(int, words)) + 1))) if numbered else tuple(sorted(words))

    def _own_labels(self) -> np.ndarray:
        numbers = {name: k for k, name in enumerate(self.classes)}
        unknown = next((word for word in self._words if word not in numbers), None)
        if unknown is not None:
            raise DataError(f"{self.root}: '{self.column}' holds '{unknown}', which is none of the classes")
        found: np.ndarray = np.array([numbers[word] for word in self._words], dtype=np.int64)[self.checked[0]]
        return found

    @cached_property
    def _attributes(self) -> np.ndarray:
        found: np.ndarray = np.stack([self._numbers(name) for name in self.attributes], axis=1)[self.checked[0]]
        return found

    def _numbers(self, name: str) -> np.ndarray:
        cells = self._column(name)
        wrong = next((k for k, cell in enumerate(cells) if not _is_number(cell)), None)
        if wrong is not None:
            raise DataError(f"{self.root}: '{name}' of row {wrong} is {cells[wrong]!r}, expected a number")
        return np.array(cells, dtype=np.float32)

    def _image(self, k: int) -> np.ndarray:
        row = int(self.checked[0][k])
        try:
            return self._pixels(row)
        except UnreadableError as error:
            raise DataError(f"{self.root}: row {row}: {error}") from error

    def _images(self, rows: np.ndarray) -> np.ndarray:
        self._opened[1].require()
        return super()._images(rows)

    def fingerprint(self) -> dict[str, Any]:
        """Files by content, the split, and which columns are taken."""
        told = self._identity("huggingface", self._opened[1].digest())
        columns = {"image": self.image, "labels": self.column, "attributes": list(self.attributes)}
        return {**told, "split": self.split, "columns": columns}


def _is_class(cell: Any) -> bool:
    return (isinstance(cell, int) and cell >= 0) or (isinstance(cell, str) and bool(cell))


def _is_number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and abs(cell) <= LARGEST
