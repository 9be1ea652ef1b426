"""`compare`: only equal stamps meet, only clear differences are marked."""

from __future__ import annotations

import json
import math
import re

import pytest

from latentsb.cli import main
from latentsb.cli.compare import markdown
from latentsb.compare import best, compare
from latentsb.errors import ArgumentError, CheckpointError
from latentsb.recipe import Recipe
from latentsb.run import Run

RECIPE = "data: digits\nbridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}\n"


def figure(value=1.0, error=0.1, *, stamp="a" * 12, step=10, metric=None, tables=(), **more):
    return {
        "value": value,
        "error": error,
        "better": "lower",
        "of": "samples",
        "stamp": stamp,
        "step": step,
        "weights": "ema",
        "seed": 0,
        "metric": {"name": "frechet", **(metric or {})},
        "protocol": {"count": 100, "network": {"name": "N", "sha256": "0"}},
        "data": "d",
        "tables": list(tables),
        **more,
    }


@pytest.fixture
def project(tmp_path):
    """Make runs with given figures."""

    def make(**runs):
        for name, figures in runs.items():
            run = Run.create(Recipe.parse(RECIPE, (), label=name), tmp_path / name)
            run.close()
            folder = tmp_path / name / "evaluations"
            folder.mkdir()
            for k, facts in enumerate(figures):
                (folder / f"{k}.json").write_text(json.dumps(facts))
        return [tmp_path / name for name in runs]

    return make


def test_the_best_is_called_so_only_where_it_is_clear():
    assert best([1.0, 1.3, 2.0], [0.1, 0.1, 0.1], "lower") == 0  # 0.3 > 2 · 0.141
    assert best([1.0, 1.28, 2.0], [0.1, 0.1, 0.1], "lower") is None
    assert best([1.0, 1.3, 2.0], [0.1, 0.1, 0.1], "higher") == 2
    assert best([1.0, 1.3, 2.0], [0.1, 0.1, 0.1], "") is None
    assert best([1.0, 9.0], [0.1, None], "higher") is None
    assert best([None, 9.0, 1.0], [None, 0.1, 0.1], "higher") == 1
    assert best([None, 9.0], [None, 0.1], "higher") is None


def test_equal_stamps_meet_and_the_newest_step_stands(project):
    folders = project(
        a=[figure(5.0, step=10), figure(1.0, step=20)],
        b=[figure(2.0, step=5), figure(7.0, 0.1, stamp="other")],
    )
    found = compare(folders)
    [table] = found.tables
    assert table.columns == ("a", "b")
    [line] = table.lines
    assert (line.values, line.errors, line.best) == ((1.0, 2.0), (0.1, 0.1), 0)
    assert [run.name for run in found.runs] == ["a", "b"]
    assert found.runs[0].bridge == "flow"
    assert found.runs[0].numbers is None
    assert found.apart == ()


def test_unequal_stamps_are_listed_with_what_differs(project):
    other = {"count": 500, "network": {"name": "N", "sha256": "1"}}
    folders = project(
        a=[figure()],
        b=[figure(3.0)],
        c=[figure(0.1, stamp="x", protocol=other)],
        d=[figure(0.1, stamp="y", data="e")],
        e=[],
    )
    found = compare(folders)
    [table] = found.tables
    assert table.columns == ("a", "b")
    assert found.apart == (
        "frechet: c is of another protocol than a: count is 500, not 100; network.sha256 is 1, not 0",
        "frechet: d is of another protocol than a: the data are others",
        "frechet: e has no such figure; latentsb evaluate e --metrics frechet",
    )
    alone = compare([folders[0], folders[2]])
    assert alone.tables == ()
    assert len(alone.apart) == 1


def test_two_figures_of_one_run_are_told_apart(project):
    folders = project(
        a=[figure(1.0, metric={"endpoint": "zero"}), figure(2.0, metric={"endpoint": "random"})],
        b=[figure(3.0)],
    )
    [table] = compare(folders).tables
    assert table.columns == ("a (endpoint: zero)", "a (endpoint: random)", "b")
    assert table.lines[0].values == (1.0, 2.0, 3.0)


def test_tables_are_compared_cell_by_cell_and_floors_are_told_once(project):
    def table(mse, ssim):
        rows = [["bridge", [mse, 0.01, ssim, 100]], ["mean image", [0.5, 0.02, None, 100]]]
        return {
            "columns": ["", "MSE", "± SE", "SSIM", "images"],
            "rows": rows,
            "better": {"MSE": "lower"},
            "title": "t",
        }

    folders = project(
        a=[figure(0.1, 0.01, tables=[table(0.1, 0.8)])], b=[figure(0.2, 0.01, tables=[table(0.2, math.nan)])]
    )
    [found] = compare(folders).tables
    assert [(line.name, line.values, line.best) for line in found.lines] == [
        ("samples", (0.1, 0.2), 0),
        ("bridge: SSIM", (0.8, None), None),
    ]
    assert found.same == {"mean image: MSE": 0.5, "bridge: images": 100.0, "mean image: images": 100.0}
    text = markdown(compare(folders))
    assert "| samples ↓ | **0.1 ± 0.01** | 0.2 ± 0.01 |" in text
    assert "| bridge: SSIM | 0.8 | – |" in text
    assert "Equal in all: bridge: images 100; mean image: MSE 0.5" in text


def test_what_cannot_be_compared_is_told(project, tmp_path):
    folders = project(a=[figure()], b=[figure()])
    with pytest.raises(ArgumentError, match="at least two"):
        compare(folders[:1])
    with pytest.raises(ArgumentError, match="named twice"):
        compare([folders[0], folders[0]])
    with pytest.raises(ArgumentError, match=r"no run has figures of 'frechett'\. Did you mean 'frechet'"):
        compare(folders, ["frechett"])
    with pytest.raises(CheckpointError, match="is no run"):
        compare([folders[0], tmp_path / "c"])


def test_the_command_writes_tables(project, tmp_path, capsys, monkeypatch):
    folders = project(a=[figure(1.0)], b=[figure(2.0)])
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["compare", *map(str, arguments)])
        return int(left.value.code or 0), *capsys.readouterr()

    code, out, _ = command(*folders, "-o", "table.md")
    assert code == 0
    assert re.search(r"samples ↓ +1 ± 0.1 \* +2 ± 0.1", out)
    assert (tmp_path / "table.md").read_text().count("| samples ↓ | **1 ± 0.1** | 2 ± 0.1 |") == 1
    code, _, _ = command(*folders, "--metrics", "frechet", "-o", "table.json")
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["tables"][0]["lines"][0]["values"] == [1.0, 2.0]
    assert stored["tables"][0]["protocol"]["count"] == 100
    code, _, told = command(*folders, "-o", "table.txt")
    assert (code, "expected .md or .json" in told) == (2, True)
    code, _, told = command(folders[0])
    assert (code, told) == (2, "RUN: found 1, expected at least two to compare\n")
