"""Windows of a time series: what comes next is the sample, what went before its condition `history`."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import torch

from latentsb.data.arrays import ArraySource
from latentsb.data.source import SOURCES
from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import Count

__all__ = ["Series"]

NINO = Path(__file__).with_name("nino12.csv")


@SOURCES.register("series")
class Series(ArraySource):
    """Windows of a monthly series: `future` values as sample, `history` values before them as a condition.

    Values are divided into a mean and a standard deviation of the years before `split`, whichever part is asked for.
    The series that ships is the sea surface temperature in °C of the region Niño 1+2 (0-10° S, 80-90° W), January 1950
    to December 2010. Windows of `later` have their whole future from `split` on, those of `earlier` end before it.

    Source: NOAA National Weather Service, data set ERSST.V3B, index Niño 1+2; in the public domain. The numbers are
    those of the data set `elnino` in statsmodels.

    Args:
        path: CSV with a header, a year and twelve values in each row; the series that ships if None.
        history: values of the condition.
        future: values of a sample.
        split: first year of the later part; it must lie inside the series.
        later: the windows from `split` on, else those before.

    Raises:
        DataError: if the file cannot be read as such a table without gaps.
        ArgumentError: if a part has no window.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        history: Count = 24,
        future: Count = 12,
        split: int = 1995,
        later: bool = False,
    ) -> None:
        file = NINO if path is None else Path(path)
        years, values = _table(file)
        first = 12 * (split - years[0])
        length = history + future
        starts = range(max(0, first - history), len(values) - length + 1) if later else range(first - length + 1)
        if not 0 < first < len(values) or len(starts) == 0:
            raise ArgumentError("split", f"no window of {length} months in this part of {years[0]}-{years[-1]}")
        self.mean, self.std = float(values[:first].mean()), float(values[:first].std())
        windows = np.stack([values[k : k + length] for k in starts])
        scaled = torch.from_numpy(((windows - self.mean) / self.std).astype(np.float32))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        own = {"data": "series", "sha256": digest, "history": history, "future": future, "split": split, "later": later}
        super().__init__(scaled[:, history:], cond={"history": scaled[:, :history]}, identity=own)


def _table(path: Path) -> tuple[list[int], np.ndarray]:
    """Years and monthly values.

    Raises:
        DataError: if the file is no table of consecutive years with twelve numbers each.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))[1:]
        years = [int(row[0]) for row in rows]
        values = np.array([[float(cell) for cell in row[1:]] for row in rows])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: expected a header and rows of a year and twelve numbers ({error})") from error
    if not years or values.shape[1:] != (12,) or years != list(range(years[0], years[0] + len(years))):
        raise DataError(f"{path}: expected consecutive years with twelve numbers each")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: has values that are not finite")
    return years, values.reshape(-1)
