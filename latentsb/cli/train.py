"""The command `train`, and the table of runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsb.cli.recipes import Imports, Overrides, RecipeName, load_recipe, nothing_started
from latentsb.errors import Error

if TYPE_CHECKING:
    import torch

    from latentsb.experiment import Experiment
    from latentsb.recipe import Recipe
    from latentsb.run import Run

__all__ = ["list_runs", "register"]

RUNS = Path("runs")
# Seconds that the other processes stay: torchrun ends the first one, told or not, as soon as any other has left.
TELLING = 5.0


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(train)


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    imports: Imports = None,
    run: Annotated[Path | None, typer.Option("-o", "--run", help="Run folder; runs/NAME if none.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show what would be done; write nothing.")
    ] = False,
) -> None:
    """Train a recipe; the same command again goes on where it was stopped.

    Several processes: torchrun --nproc_per_node 2 -m latentsb train RECIPE
    """
    import logging

    with told_once():
        bound = load_recipe(recipe, overrides, imports)
    path = run or RUNS / bound.name
    if dry_run:
        from latentsb.cli.checking import report

        with nothing_started():
            report(bound)
        typer.echo(f"the run would be {path}; nothing was written")
        return
    from latentsb import parallel
    from latentsb.run import Run
    from latentsb.trainer import Trainer, start_processes

    device = start_processes()
    level = logging.INFO if parallel.is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    main = parallel.is_main()
    try:
        with told_once():
            with nothing_started():
                experiment = checked(bound, path, device)
            opened = Run.create(bound, path)
        try:
            outcome = Trainer(opened, experiment, device).fit()
        except Exception:
            opened.discard()
            raise
        finally:
            opened.close()
    finally:
        parallel.leave()
    if main and outcome.reason is None:
        typer.echo(ending(opened, experiment))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


@contextmanager
def told_once() -> Iterator[None]:
    """Of the processes that `torchrun` started on a machine, let the first alone tell what is wrong for all."""
    try:
        yield
    except Error as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(TELLING)
            raise typer.Exit(error.exit_code) from None
        raise


def checked(recipe: Recipe, path: Path, device: torch.device) -> Experiment:
    """The experiment, built and checked before a folder is made for it.

    Borrowed and pretrained weights are not read where the run has its own: what they came from may be gone.
    """
    from latentsb.checkpoint import Checkpoints
    from latentsb.experiment import build
    from latentsb.stages import check_settings

    elsewhere = recipe.autoencoder.arguments.get("weights") is not None
    elsewhere |= any(part.from_run for section in recipe.parts.values() for part in section.walk())
    resumed = elsewhere and Checkpoints(path / "checkpoints").latest() is not None
    experiment = build(recipe, weights=not resumed)
    for stage in recipe.stages:
        check_settings(stage.settings, device)
    return experiment


def ending(run: Run, experiment: Experiment) -> str:
    """Where things are, and what can be done with them."""
    from latentsb.bridge import EncodingBridge
    from latentsb.cli.runs import conditional, following, measures

    checkpoint = run.checkpoint()
    lines = [f"trained: {run.path} (step {checkpoint.step:,}, {checkpoint.state['seconds']:,.0f} s)"]
    previews = sorted((run.path / "samples").glob("preview-*.png"))
    if previews:
        lines.append(f"pictures: {previews[-1]} (the first one: {previews[0]})")
    codes = ("reconstruct", "interpolate") if isinstance(experiment.bridge, EncodingBridge) else ()
    commands = ("sample RUN -n 64", *conditional(experiment), *codes, *measures(run, experiment), "report")
    return "\n".join([*lines, following(run.path, *commands)])


def list_runs(folder: Path = RUNS) -> None:
    """Print the runs in a folder, with how far each one is; nothing of them is executed."""
    from latentsb.cli.console import console, count, table
    from latentsb.run import last_record, runs_in

    found = runs_in(folder)
    if not found:
        typer.echo(f"no runs in {folder}; next: latentsb list recipes")
        return
    shown = table("", "run", "stage", "images", "loss", "checkpoints")
    for path in found:
        last = last_record(path)
        steps = len(list((path / "checkpoints").glob("step-*")))
        loss = next((v for k, v in last.items() if k.split("/")[-1] == "loss"), None)
        shown.add_row(
            str(path),
            str(last.get("stage", "")),
            count(int(last.get("images", 0))),
            "" if loss is None else f"{loss:.4g}",
            str(steps),
        )
    console().print(shown)
