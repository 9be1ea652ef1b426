"""The benchmarks run, in their smallest setting, and their arithmetic is right; nothing is timed here."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.bridges.flow import Flow
from latentsb.randomness import Draws
from latentsb.tensors import Batch
from latentsb.tiles import Tiling

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = (
    "attention",
    "encoding",
    "information",
    "loader",
    "optimiser",
    "sampling",
    "startup",
    "tiles",
    "toy_step",
    "train_step",
)


@pytest.fixture
def load(monkeypatch):
    """A benchmark by name, imported as its command would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_in_its_smallest_setting(load, name, tmp_path):
    report = load(name).measure(True)
    values = [row["value"] for row in report.rows]
    assert report.name == name
    assert np.isfinite(values).all()
    assert any(row["met"] is not None for row in report.rows)  # at least one figure has a target
    kept = json.loads(report.write(tmp_path).read_text())
    assert [row["what"] for row in kept["rows"]] == [row["what"] for row in report.rows]
    assert str(Path.home()) not in json.dumps(kept)


def test_the_gpu_command_runs_on_the_cpu_and_tells_failures(load):
    report = load("gpu").measure("cpu", minutes=5, quick=True)
    told = {row["what"]: row["value"] for row in report.rows}
    assert "needs 'cuda'" in told["attention 16×8: xformers"] or "need 'cuda'" in told["attention 16×8: xformers"]
    assert told["attention 16×8: auto: error of output and gradients"] < 1e-5
    assert told["one evaluation of tiny, one sample"] > 0  # the last section still ran


def test_the_gpu_command_names_what_it_had_no_time_for(load):
    report = load("gpu").measure("cpu", minutes=0, quick=True)
    assert [row["what"] for row in report.rows] == list(load("gpu").SECTIONS)
    assert {row["value"] for row in report.rows} == {"skipped: no time was left"}


def test_rivals_take_turns_and_each_is_first_equally_often(load):
    called = []
    rivals = {name: lambda n=name: called.append(n) for name in "ab"}
    ticks = iter(range(1000))
    seconds = load("_harness").alternate(rivals, repeats=4, warmup=2, clock=lambda: next(ticks))
    assert [called[i] for i in range(0, len(called), 2)] == list("ababab")
    assert seconds == {"a": [1] * 4, "b": [1] * 4}


def test_a_ratio_is_taken_turn_by_turn(load):
    drift = np.linspace(1, 5, 21)  # a machine that becomes slower and slower changes no ratio
    found = load("_harness").ratio(list(3 * drift), list(2 * drift))
    assert found.median == pytest.approx(1.5)
    assert found.low == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5)


def test_a_target_is_missed_only_by_the_whole_interval(load):
    harness = load("_harness")
    report = harness.Report("x", "y")
    for high, met in ((1.0, False), (1.2, True)):
        report.add(f"{high}", harness.Estimate(0.9, 0.8, high), at_least=1.1)
        assert report.rows[-1]["met"] is met
    for low, met in ((1.0, True), (1.2, False)):
        report.add(f"{low}", harness.Estimate(1.3, low, 1.4), at_most=1.1)
        assert report.rows[-1]["met"] is met


def test_work_is_counted_as_matrix_products_are(load):
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert load("_harness").flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_parts_of_a_step_add_up_to_it(load):
    loop = load("_training").dbae((2, 4, 4), z_dim=2, channel="exact", width=8, depth=1, heads=2, batch=2)
    found = loop.shares(2)
    whole = found.pop("step")
    assert sum(found.values()) == pytest.approx(whole)
    assert set(found) == {"forward", "backward", "optimiser", "average", "data", "clipping, logs, rest"}
    assert all(seconds >= 0 for seconds in found.values())
    assert loop.session.step == 2


def test_a_seam_error_is_that_of_the_worst_border(load):
    tiles = load("tiles")
    assert tiles.TILING == Tiling()  # what is measured is what a user gets
    tiling = Tiling(size=32, overlap=8)
    columns = tiling.spans(16, 4)
    assert [(s.first, s.last) for s in columns] == [(0, 7), (4, 11), (9, 16)]
    off = torch.zeros(1, 3, 64, 64)
    off[..., 27:29] = torch.tensor([-0.1, 0.3])  # on both sides of the border at cell 7, in every row
    # Two of the eight columns within a cell of it; in rows, which share the cuts, two of 64.
    assert tiles.seam_error(off, tiling, (16, 16), 4) == pytest.approx(0.4 / 8)
    inside = torch.zeros(1, 3, 64, 64)
    inside[..., 6:10, 6:10] = 1  # far from every border
    assert tiles.seam_error(inside, tiling, (16, 16), 4) == 0


def test_the_bare_loop_has_the_trainers_loss(load, monkeypatch):
    # With the trainer's own times and noise, the plain loss of the toy benchmark is the bridge's.
    toy = load("toy_step")
    for make in (
        lambda: toy.Loop(toy.MOONS),
        lambda: toy.dbae((2, 4, 4), z_dim=2, channel="exact", width=8, depth=1, heads=2, batch=4),
    ):
        bridge = make().session.experiment.bridge
        with torch.no_grad():
            for parameter in bridge.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
        x0 = torch.randn(4, *bridge.ends.spec.shape, generator=torch.Generator().manual_seed(0))
        draws = Draws.step(0, "loss", 0, range(4))
        noise = draws.normal("x1" if isinstance(bridge, Flow) else "noise", x0)
        monkeypatch.setattr(torch, "rand", lambda n, dtype, draws=draws: draws.uniform("time"))
        monkeypatch.setattr(torch, "randn_like", lambda like, noise=noise: noise)
        with torch.no_grad():
            wanted = bridge.loss(Batch(torch.arange(4), x0), draws).total.mean()
            assert float(toy._bare_loss(bridge, x0)) == pytest.approx(float(wanted), rel=1e-5)
