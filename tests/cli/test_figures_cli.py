"""`latentsb evaluate` and `likelihood`: what is measured, what they print and where it is kept."""

from __future__ import annotations

import json
import re

import pytest


def newest(folder):
    """The figure that was stored last."""
    return max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("coded", "recognised (10 classes of samples of 64 numbers), reconstruction (the bridge has codes)"),
        ("points", "denoising (the bridge denoises)"),
    ],
)
def test_metrics_that_nobody_named_are_those_that_fit(command, name, metrics):
    code, out, _ = command("evaluate", f"runs/{name}", "-n", "20", "--seed", "3")
    assert code == 0
    assert f"metrics: {metrics}\n" in out


def test_figures_of_unequal_protocols_lie_beside_each_other(command, runs):
    folder = runs / "runs/points/evaluations"

    def stored():
        return {p.name: json.loads(p.read_text())["metric"]["images"] for p in folder.glob("*-likelihood*.json")}

    def measure(n):
        return command("likelihood", "runs/points", "-n", n, "likelihood.rtol=0.1", "likelihood.atol=0.1")

    assert measure(8)[0] == 0
    first = stored()
    assert first == {"step-000000002-likelihood.json": 8}
    _, out, _ = measure(6)
    (other,) = stored().keys() - first.keys()
    assert re.fullmatch(r"step-000000002-likelihood-[0-9a-f]{8}\.json", other)
    assert stored() == first | {other: 6}
    assert f"is in runs/points/evaluations/{other}" in out
    for n in (8, 6):  # the same again: in its own place
        measure(n)
        assert stored() == first | {other: 6}
    command("report", "runs/points")
    page = (runs / "runs/points/report.html").read_text()
    assert "n = 8</h3>" in page
    assert "n = 6</h3>" in page


def test_the_floor_of_vectors_speaks_of_no_pixels(command, runs):
    command("evaluate", "runs/pairs", "-n", "20", "--seed", "9", "--metrics", "recognised")
    assert set(json.loads(newest(runs / "runs/pairs/evaluations").read_text())["floors"]) == {
        "real, held out",
        "Gaussian of the samples",
        "noise",
    }


def test_evaluate_and_report(command, runs):
    code, out, _ = command("evaluate", "runs/coded", "-n", "30", "--metrics", "recognised", "--seed", "1")
    assert code == 0
    stored = json.loads(newest(runs / "runs/coded/evaluations").read_text())
    for name, value in stored["floors"].items():
        assert re.search(rf"{name} +{value:.3f}", out)
    assert re.search(rf"samples +{stored['value']:.3f}", out)
    code, out, _ = command("report", "runs/coded")
    assert (code, out) == (0, "report: runs/coded/report.html\n")
    assert "recognised" in (runs / "runs/coded/report.html").read_text()


def test_evaluate_says_what_it_adds_to_the_samples(command):
    seed = ("--seed", "7000")
    command("sample", "runs/classes", "-n", "3", *seed)
    _, out, _ = command("evaluate", "runs/classes", "-n", "40", *seed)
    assert re.search(r"^drew 37 more samples into runs/classes/samples/step-000000002$", out, re.MULTILINE)
