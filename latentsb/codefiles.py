"""Codes of a data set as one file: NumPy's `.npz`, or Parquet; written as they come, and there when they are whole."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from latentsb.codes import Codes
from latentsb.disk import disk_error
from latentsb.errors import ArgumentError, DataError

__all__ = ["ENDINGS", "check_ending", "write_codes"]

OWN = ("z", "index", "name", "label")
"""Columns of a table beside the attributes."""


def check_ending(path: Path) -> None:
    """Say before anything is computed that a file of this name cannot be written.

    Raises:
        ArgumentError: if the ending is neither of the two.
        DataError: if Parquet is asked for and pyarrow is not installed; says how to install it.
    """
    if path.suffix not in ENDINGS:
        raise ArgumentError("output", f"found the ending '{path.suffix}', expected {' or '.join(ENDINGS)}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'latentsb[data]'; .npz needs nothing more")


def write_codes(
    path: Path, codes: Iterable[Codes], total: int, words: Mapping[str, tuple[str, ...]], facts: Mapping[str, Any]
) -> None:
    """Write codes batch by batch beside the place of the file, and rename it there.

    Args:
        path: of the file, which is replaced; its folder exists.
        codes: in the order of the rows.
        total: how many there are.
        words: names of the columns of `attributes` and of the classes of `label`, where they have any.
        facts: of the protocol, JSON values; they are in the file too.

    Raises:
        ArgumentError: for another ending than `.npz` or `.parquet`.
        DataError: if pyarrow is missing.
        DiskError: if it cannot be written; what lay there is untouched.
    """
    check_ending(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        ENDINGS[path.suffix](total, words, json.dumps(dict(facts), default=str)).write(partial, codes)
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path, 0) from error
    finally:
        partial.unlink(missing_ok=True)


class CodeFile(ABC):
    """A format.

    Args:
        total: rows.
        words: see `write_codes`.
        facts: JSON text.
    """

    def __init__(self, total: int, words: Mapping[str, tuple[str, ...]], facts: str) -> None:
        self.total, self.words, self.facts = total, words, facts

    @abstractmethod
    def write(self, path: Path, codes: Iterable[Codes]) -> None:
        """Write the file."""


class Npz(CodeFile):
    """Arrays `z`, `index`, `name`, `label`, `attributes` with `attributes_words` and `label_words`, `protocol`.

    z goes to the disk as it comes; the rest is small and follows. Nothing in it is pickled.
    """

    def write(self, path: Path, codes: Iterable[Codes]) -> None:
        """See the class."""
        rest: dict[str, list[np.ndarray]] = {}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("z.npy", "w", force_zip64=True) as stream:
                for k, part in enumerate(codes):
                    z = np.ascontiguousarray(part.z.numpy())
                    if k == 0:
                        form = {"descr": z.dtype.str, "fortran_order": False, "shape": (self.total, z.shape[1])}
                        np.lib.format.write_array_header_1_0(stream, form)
                    stream.write(z.tobytes())
                    for name, value in columns(part).items():
                        rest.setdefault(name, []).append(value)
            arrays = {name: np.concatenate(parts) for name, parts in rest.items()}
            arrays |= {f"{name}_words": np.array(words) for name, words in self.words.items() if words}
            arrays["protocol"] = np.array(self.facts)
            for name, value in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, value, allow_pickle=False)


class Parquet(CodeFile):
    """Columns `z` (a list of fixed length), `index`, `name`, `label`, and one for each attribute by its name.

    An attribute without a name is `attribute_0` and so on, one called `label` is `attribute_label`. The protocol and
    the names of the classes are in the metadata of the schema, under `latentsb` and `latentsb.classes`.
    """

    def write(self, path: Path, codes: Iterable[Codes]) -> None:
        """See the class."""
        import pyarrow as pa
        from pyarrow import parquet

        told = {"latentsb": self.facts, "latentsb.classes": json.dumps(self.words.get("label", ()))}
        writer = None
        try:
            for part in codes:
                z = part.z.numpy()
                held: dict[str, Any] = {"z": pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])}
                for name, value in columns(part).items():
                    held |= self.split(value) if name == "attributes" else {name: pa.array(value)}
                table = pa.table(held).replace_schema_metadata(told)
                writer = writer or parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """A column for each attribute."""
        names = self.words.get("attributes") or tuple(f"attribute_{k}" for k in range(values.shape[1]))
        taken = [f"attribute_{name}" if name in OWN else name for name in names]
        return {name: np.ascontiguousarray(values[:, k]) for k, name in enumerate(taken)}


ENDINGS: dict[str, type[CodeFile]] = {".npz": Npz, ".parquet": Parquet}
"""Formats by the ending of the file."""


def columns(part: Codes) -> dict[str, np.ndarray]:
    """What is known of the rows beside their codes."""
    names = {} if part.names is None else {"name": np.array(part.names)}
    return {"index": part.index, **names, **{name: value.numpy() for name, value in part.cond.items()}}
