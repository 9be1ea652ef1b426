"""The command that leads samples of one data set to the other."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from latentsb.cli.runs import (
    AttentionOption,
    Backend,
    BatchOption,
    DeviceOption,
    RunPath,
    Seed,
    Weights,
    WeightsOption,
    arguments,
    bar,
    calls,
    load,
    measures,
    solver_of,
    suggest,
)

__all__ = ["register"]

SHOWN = 12
"""Samples of the run's data that are translated where nothing is named."""


class Towards(StrEnum):
    """The end to reach."""

    x0 = "x0"
    x1 = "x1"


class Mode(StrEnum):
    """With the noise of the bridge, or along its probability-flow ODE."""

    sde = "sde"
    ode = "ode"


KINDS = {
    Mode.sde: ("euler_maruyama", "posterior", "posterior2"),
    Mode.ode: ("euler", "heun", "adaptive", "dpmpp", "unipc"),
}
"""Solvers of each mode; the first is taken where the run's own is of the other kind."""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(translate)


def translate(
    run: RunPath,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER|FILE|solver.KEY=VALUE]...",
            help="Images, folders of images, .npy or .npz; the run's own data if none. Also solver settings.",
        ),
    ] = None,
    towards: Annotated[
        Towards | None,
        typer.Option(help="x0 (from samples of x1) or x1; if none, away from the folder named, else x0."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="sde: with noise; ode: without; the run's solver if none.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Samples of the run's own data.")] = SHOWN,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; inside the run if none.")] = None,
    seed: Seed = 0,
    batch: BatchOption = 256,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Lead samples of one data set along the bridge to the other: x1 (the source) towards x0 (the target), or back."""
    import torch

    from latentsb.translate import direction, files_in, named_end, open_samples, own_samples, write_translation

    settings = [text for text in inputs or [] if text.startswith(("solver.", "solver="))]
    paths = [Path(text) for text in inputs or [] if text not in settings]
    opened, experiment = load(run, weights, device, attention)
    departure = None if towards is not None or not paths else named_end(experiment, paths)
    asked: Any = None if towards is None else towards.value
    end = direction(experiment.bridge, asked if departure is None else across(departure))
    solver = solver_of(opened, [*switch(opened.recipe.solver, mode), *settings])
    with arguments():
        if paths:
            samples, names = open_samples(experiment, files_in(paths))
        else:
            found = list(own_samples(experiment, across(end), n))
            samples, names = torch.stack([row for row, _ in found]), tuple(name for _, name in found)
        how: dict[str, Any] = {"towards": end, "solver": solver, "output": output, "seed": seed, "batch": batch}
        with bar("translating", len(samples)) as advance:
            made = write_translation(opened, experiment, samples, names, progress=advance, **how)
    told = f"{made['count']} samples of {across(end)} led towards {end}"
    typer.echo(f"{told} by '{made['solver']['name']}', {calls(made['calls'])}, in {made['path']}")
    typer.echo(f"mean squared distance to the input: {made['mse_to_input']:.4g}")
    typer.echo(f"picture (source above result): {made['path'] / 'grid.png'}")
    suggest(run, *measures(opened, experiment), "report")


def across(end: str) -> Any:
    """The other end."""
    return "x1" if end == "x0" else "x0"


def switch(solver: Any, mode: Mode | None) -> tuple[str, ...]:
    """The override that makes the run's solver one of the mode asked for, with as many steps."""
    if mode is None or solver.name in KINDS[mode]:
        return ()
    steps = solver.arguments.get("steps")
    return (f"solver={{name: {KINDS[mode][0]}{'' if steps is None else f', steps: {steps}'}}}",)
