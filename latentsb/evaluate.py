"""Figures of a run: metrics on fresh or earlier samples, with floors and protocol, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latentsb.experiment import Experiment
from latentsb.metrics.base import METRICS, Measured, Subject
from latentsb.outputs import protocol, sample_folder, write_json
from latentsb.registry import describe
from latentsb.run import Run

__all__ = ["evaluate"]

REAL = 10_000
"""Real samples that a figure is held against; all of a smaller data set."""


def evaluate(
    run: Run,
    experiment: Experiment,
    metrics: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Measured]:
    """Measure n samples of a run.

    Samples are those of `latentsb sample` with the same seed; the ones that lie there are not drawn again. The
    figures go to `evaluations/step-….json` in the run folder.

    Raises:
        UnknownPartError: if a metric does not exist.
        CapabilityError: if the data lacks what a metric needs.
    """
    chosen = {name: METRICS[name]() for name in metrics}
    drawn = sample_folder(run, experiment, n, seed=seed, progress=progress)
    index = np.arange(min(len(experiment.source), REAL))
    items = experiment.source.read(index)
    subject = Subject(drawn.samples, items.x0, items.cond.get("label"))
    measured = {name: metric.measure(subject) for name, metric in chosen.items()}
    content: dict[str, Any] = {name: {**vars(m), "metric": describe(chosen[name])} for name, m in measured.items()}
    folder = run.path / "evaluations"
    folder.mkdir(exist_ok=True)
    facts = protocol(run, experiment, samples=drawn.protocol, metrics=content)
    write_json(folder / f"step-{experiment.step:09d}.json", facts)
    return measured
