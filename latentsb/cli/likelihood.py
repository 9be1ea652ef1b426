"""The command that measures the likelihood of held-out data under a run's bridge."""

from __future__ import annotations

from typing import Annotated

import typer

from latentsb.cli.runs import (
    AttentionOption,
    Backend,
    DeviceOption,
    MetricSettings,
    RunPath,
    Weights,
    WeightsOption,
    arguments,
    bar,
    load,
    suggest,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(likelihood)


def likelihood(
    run: RunPath,
    settings: MetricSettings = None,
    n: Annotated[int, typer.Option("-n", "--number", min=2, help="Held-out samples; all if fewer are there.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples and of all noise.")] = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Log-likelihood of held-out data in nats and bits per dimension, beside a Gaussian; likelihood.KEY=VALUE."""
    from latentsb.cli.figures import show_figure
    from latentsb.evaluate import evaluate, metrics_of

    own = [f"likelihood.images={n}", f"likelihood.seed={seed}", *(settings or [])]
    metrics_of(["likelihood"], own)
    opened, experiment = load(run, weights, device, attention)
    with arguments():
        measured = evaluate(opened, experiment, ["likelihood"], n, settings=own, watch=bar, tell=typer.echo)
    show_figure("likelihood", measured["likelihood"])
    typer.echo(f"stored in {run / 'evaluations'}")
    suggest(run, "report")
