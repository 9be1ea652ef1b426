"""Windows of a series: order in time, parts that share no future, units of the earlier part, bad files."""

import numpy as np
import pytest
import torch

from latentsb.data.series import NINO, Series
from latentsb.errors import ArgumentError, DataError


def months() -> np.ndarray:
    rows = [line.split(",") for line in NINO.read_text().splitlines()[1:]]
    return np.array([[float(cell) for cell in row[1:]] for row in rows]).reshape(-1)


def test_windows_follow_each_other_and_the_parts_share_no_future():
    series, values = Series(), months()
    later, first = Series(later=True), 12 * (1995 - 1950)
    assert len(values) == 12 * 61
    assert len(series) == first - 36 + 1
    assert len(later) == len(values) - first - 12 + 1
    items = series.read(np.arange(len(series)))
    whole = torch.cat([items.cond["history"], items.x0], 1).double() * series.std + series.mean
    assert torch.allclose(whole[5], torch.from_numpy(values[5:41]), atol=1e-4)
    assert torch.allclose(whole[-1, -1], torch.tensor(values[first - 1]), atol=1e-4)
    start = later.read(np.arange(1))
    assert float(start.x0[0, 0]) * later.std + later.mean == pytest.approx(values[first], abs=1e-4)
    assert float(start.cond["history"][0, -1]) * later.std + later.mean == pytest.approx(values[first - 1], abs=1e-4)
    assert (later.mean, later.std) == (series.mean, series.std) == (values[:first].mean(), values[:first].std())


def test_the_table_is_warm_in_march_and_cool_in_september_every_year():
    table = months().reshape(-1, 12)
    assert ((table[:, 1:4].mean(1) - table[:, 7:10].mean(1)) > 1.5).all()
    assert np.abs(np.diff(months())).max() < 3.2


def test_bad_files_and_splits_are_told(tmp_path):
    with pytest.raises(ArgumentError, match="no window"):
        Series(split=1951)
    with pytest.raises(DataError, match="expected a header"):
        Series(path=tmp_path / "none.csv")
    (tmp_path / "gap.csv").write_text("year\n1,1,2,3,4,5,6,7,8,9,10,11,12\n3,1,2,3,4,5,6,7,8,9,10,11,12\n")
    with pytest.raises(DataError, match="consecutive"):
        Series(path=tmp_path / "gap.csv")
