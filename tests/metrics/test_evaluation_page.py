"""The page about figures: it names every metric, and its example is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from latentsb.evaluate import metrics_of
from latentsb.metrics.base import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_metric_is_on_the_page():
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == METRICS.names()


def test_the_commands_are_understood():
    commands = re.findall(r"^latentsb evaluate \S+ --metrics (\S+)(?: -n \d+)? ?(.*)$", PAGE, re.MULTILINE)
    assert commands
    for words, settings in commands:
        found = metrics_of(words.split(","), shlex.split(settings))
        assert list(found) == words.split(",")


def test_the_example_is_a_metric(parts, tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "brightness.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METRICS, "_classes", dict(METRICS._classes))
    __import__("brightness")
    metric = metrics_of(["brightness"], ["brightness.real=50"])["brightness"]
    real = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    found = metric.measure(parts.Stand(real, samples=torch.full((3, 2), 0.25)))
    assert found.value == 0.25
    assert found.floors["real"] == pytest.approx(float(real.mean()))
