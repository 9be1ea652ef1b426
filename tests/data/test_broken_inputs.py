"""Broken, hostile and odd inputs: each is read rightly, or refused with its place and the reason; none is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
QUICK = 6
"""Of the cuts every how manieth is tried where time is short."""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """The inputs, imported as the command does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import broken_inputs

    yield broken_inputs
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


def failures(broken, cases) -> list[str]:
    found = [broken.judged(case) for case in cases]
    return [f"{o.case.group}: {o.case.name}: {o.told}" for o in found if o.how == "failed"]


@pytest.mark.slow
def test_there_are_a_thousand_and_no_two_of_one_name(broken) -> None:
    names = [(case.group, case.name) for case in broken.cases()]
    assert len(names) == len(set(names)) > 1000
    assert all(case.golden is not None or case.why for case in broken.cases())


@pytest.mark.parametrize("kind", ["something_else", "modes", "folders", "changes", "sets"])
def test_inputs_are_read_rightly_or_refused(broken, kind: str) -> None:
    assert failures(broken, getattr(broken, kind)()) == []


def test_cut_files_are_never_taken_for_whole_ones(broken) -> None:
    assert failures(broken, [*broken.cut()][::QUICK]) == []
    assert failures(broken, [*broken.cuts()][::QUICK]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "cuts", "turned", "shapes", "bombs", "arrays", "hostile"])
def test_all_others(broken, kind: str) -> None:
    assert failures(broken, getattr(broken, kind)()) == []


def test_what_is_wrong_is_seen(broken) -> None:
    # The judge itself: wrong pixels, a silent refusal, something executed, another error than one of ours.
    case = next(broken.modes())
    assert broken.judged(case).how == "decoded"
    spoilt = replace(case, golden=-case.golden)
    assert "pixels differ" in broken.judged(spoilt).told
    refused = replace(case, golden=None, why="anything")
    assert "should have been refused" in broken.judged(refused).told
    touching = replace(case, use=lambda source: Path("canary").write_bytes(b"") or case.golden)
    assert "executed" in broken.judged(touching).told
    raising = replace(case, use=lambda source: 1 / 0)
    assert "ZeroDivisionError" in broken.judged(raising).told


def test_the_command_line_names_them_without_a_traceback(
    broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    with monkeypatch.context() as inside:
        inside.chdir(images)
        for k, case in enumerate(case for case in broken.something_else() if case.golden is None):
            case.write()
            (file,) = Path().glob("a.*")
            file.rename(f"{k:03}{file.suffix}")
    (tmp_path / "my.yaml").write_text(
        "data: {name: folder, path: photos, size: 8}\nbridge: {name: flow, network: {name: mlp, width: 8, depth: 1}}\n"
    )
    told = subprocess.run(
        [sys.executable, "-m", "latentsb", "train", "my.yaml"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    number = len(list(images.iterdir()))
    assert number > 25
    assert told.returncode == 3
    assert f"{number} of {number} images are unreadable" in told.stderr
    assert "Traceback" not in told.stdout + told.stderr
    assert list(tmp_path.rglob("canary")) == []
