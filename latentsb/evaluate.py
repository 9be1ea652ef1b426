"""Figures of a run: metrics on fresh or earlier samples, with floors and protocol, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from latentsb.experiment import Experiment
from latentsb.metrics.base import METRICS, Measured, Subject
from latentsb.outputs import make, protocol, sample_folder, write_json
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
    tell: Callable[[str], None] | None = None,
) -> dict[str, Measured]:
    """Measure n samples of a run.

    Samples are those of `latentsb sample` with the same seed; the ones that lie there are not drawn again. Each
    metric's figure goes to `evaluations/step-…-METRIC.json` in the run folder.

    Args:
        run: to measure.
        experiment: its trained parts.
        metrics: words; see `latentsb list metric`.
        n: samples.
        seed: of the first.
        progress: called with the number of samples just drawn.
        tell: called with a line on the samples that were drawn.

    Raises:
        UnknownPartError: if a metric does not exist.
        CapabilityError: if the data lacks what a metric needs.
    """
    chosen = {name: METRICS[name]() for name in metrics}
    items = experiment.source.read(np.arange(min(len(experiment.source), REAL)))
    labels = items.cond.get("label")
    for metric in chosen.values():
        metric.require(labels=labels is not None)
    drawn = sample_folder(run, experiment, n, seed=seed, progress=progress)
    if tell is not None and drawn.fresh:
        more = " more" if drawn.fresh < n else ""
        tell(f"drew {drawn.fresh:,}{more} sample{'s' if drawn.fresh > 1 else ''} into {drawn.path}")
    subject = Subject(drawn.samples, items.x0, labels)
    folder = run.path / "evaluations"
    make(folder)
    measured = {}
    for name, metric in chosen.items():
        found = measured[name] = metric.measure(subject)
        facts = protocol(run, experiment, metric=describe(metric), count=n, seed=seed, real=len(items.x0))
        facts |= {**vars(found), "samples": drawn.path.name}
        write_json(folder / f"step-{experiment.step:09d}-{name}.json", facts)
    return measured
