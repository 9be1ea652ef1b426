"""The page "first run" says what is there, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

from latentsb.outputs import sample_folder
from latentsb.report import write_report
from latentsb.tasks import inputs_of, write_interpolation, write_reconstruction

PAGE = (Path(__file__).parents[2] / "docs" / "first-run.md").read_text()


def test_the_python_of_the_page_runs(tiny, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(tiny.path)
    names: dict = {}
    exec(code, names)
    assert names["made"].images.shape == (16, 1, 8, 8)
    assert names["walk"].frames.shape == (2, 9, 1, 8, 8)
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "grid.png", "samples.npz", "walk.png"}


def test_every_file_of_a_run_is_in_the_table(tiny):
    experiment = tiny.experiment(device="cpu")
    sample_folder(tiny, experiment, 1)
    inputs = inputs_of(experiment, [], 2, 0)
    write_reconstruction(tiny, experiment, inputs)
    write_interpolation(tiny, experiment, inputs)
    write_report(tiny)
    table = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    told = {name.split("/")[0] for name in re.findall(r"`([^`]+)`", table)}
    held = {path.name for path in tiny.path.iterdir() if not path.name.startswith(".")}
    assert held <= told, held - told
