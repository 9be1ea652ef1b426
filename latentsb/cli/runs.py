"""Commands on a run: sample, reconstruct, interpolate, evaluate, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsb.errors import DataError, RecipeError

if TYPE_CHECKING:
    from latentsb.experiment import Experiment
    from latentsb.run import Run

__all__ = ["register"]

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/digits.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[solver.KEY=VALUE]...", help="Another solver setting.")]
Files = Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images; the run's own data if none.")]
Seed = Annotated[int, typer.Option(help="First seed; sample i has seed SEED + i.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples at a time.")]


class Mode(StrEnum):
    """How a code is decoded."""

    faithful = "faithful"
    perceptual = "perceptual"


class Weights(StrEnum):
    """Which weights are used."""

    ema = "ema"
    model = "model"


WeightsOption = Annotated[Weights, typer.Option(help="Averaged weights, or those of the last step.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (sample, reconstruct, interpolate, evaluate, report):
        app.command()(command)


def sample(
    run: RunPath,
    settings: Settings = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many.")] = 64,
    seed: Seed = 0,
    label: Annotated[int | None, typer.Option(help="Class, for class-conditional runs; all in turn if none.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Folder; inside the run if none.")] = None,
    batch: Batch = 256,
    weights: WeightsOption = Weights.ema,
) -> None:
    """Draw samples: one PNG per seed, a grid, and samples.json. Repeat the command to go on after an interruption."""
    from latentsb.outputs import sample_folder

    opened, experiment = load(run, weights)
    solver = solver_of(opened, settings)
    with bar("sampling", n) as advance:
        made = sample_folder(
            opened,
            experiment,
            n,
            seed=seed,
            folder=output,
            solver=solver,
            guidance=guidance,
            label=label,
            batch=batch,
            progress=advance,
        )
    for note in made.protocol.get("notes", []):
        typer.echo(f"note: {note}")
    calls = made.protocol.get("calls")
    typer.echo(f"{made.fresh} new samples ({n} asked, {calls} network calls each) in {made.path}")
    typer.echo(f"picture: {made.path / 'grid.png'}")
    suggest(f"latentsb evaluate {run}", f"latentsb report {run}")


def reconstruct(
    run: RunPath,
    images: Files = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Images of the run's data.")] = 256,
    mode: Annotated[Mode, typer.Option(help="faithful: the mean, one call; perceptual: a draw.")] = Mode.faithful,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
) -> None:
    """Encode images to z and decode z alone; the autoencoder's own row stands beside."""
    from latentsb.outputs import inputs_of, write_reconstruction

    opened, experiment = load(run, weights)
    content = write_reconstruction(opened, experiment, inputs_of(experiment, images or [], n, seed), mode, seed)
    from rich.console import Console
    from rich.table import Table

    table = Table("", "MSE on [0, 1]", "PSNR (dB)", "SSIM", title=f"{content['images']} images, {mode}")
    for name, figures in content["figures"].items():
        shown = f"{figures['ssim']:.3f}" if "ssim" in figures else ""
        table.add_row(name, f"{figures['mse']:.5f}", f"{figures['psnr']:.2f}", shown)
    Console().print(table)
    typer.echo(f"picture (originals, autoencoder alone, bridge): {content['picture']}")
    suggest(f"latentsb interpolate {run}", f"latentsb report {run}")


def interpolate(
    run: RunPath,
    images: Files = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Pairs of the run's data.")] = 6,
    frames: Annotated[int, typer.Option(min=2, help="Frames per pair, ends included.")] = 9,
    mode: Annotated[Mode, typer.Option(help="How frames are decoded.")] = Mode.perceptual,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
) -> None:
    """Walk between pairs of images."""
    from latentsb.outputs import inputs_of, write_interpolation

    files = images or []
    if len(files) % 2:
        raise DataError(f"interpolate walks between pairs: an even number of images is needed, got {len(files)}")
    opened, experiment = load(run, weights)
    inputs = inputs_of(experiment, files, 2 * n, seed)
    content = write_interpolation(opened, experiment, inputs, frames, mode, seed)
    typer.echo(f"{frames} frames per pair, mixed in {content['along']}, {content['calls']} network calls each")
    typer.echo(f"picture: {content['picture']}")
    suggest(f"latentsb report {run}")


def evaluate(
    run: RunPath,
    metrics: Annotated[str, typer.Option(help="Words, separated by commas; see latentsb list metric.")] = "recognised",
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Samples.")] = 500,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
) -> None:
    """Measure samples, with floors and baselines beside each figure."""
    from rich.console import Console
    from rich.table import Table

    from latentsb.evaluate import evaluate as measure

    opened, experiment = load(run, weights)
    with bar("sampling", n) as advance:
        measured = measure(opened, experiment, metrics.split(","), n, seed=seed, progress=advance)
    for name, figure in measured.items():
        table = Table(name, "value", title=f"{run}, {n} samples")
        table.add_row("samples", f"{figure.value:.3f}", style="bold")
        for floor, value in figure.floors.items():
            table.add_row(floor, f"{value:.3f}")
        for detail, content in figure.details.items():
            table.add_row(detail, str(content), style="dim")
        Console().print(table)
    suggest(f"latentsb report {run}")


def report(
    run: RunPath,
    output: Annotated[Path | None, typer.Option(help="The page; report.html in the run if none.")] = None,
) -> None:
    """Write one self-contained HTML page: recipe, curves, grids, figures."""
    from latentsb.report import write_report
    from latentsb.run import Run

    typer.echo(f"report: {write_report(Run.open(run), output)}")


def load(path: Path, weights: Weights) -> tuple[Run, Experiment]:
    """The run and its trained experiment."""
    from latentsb.run import Run

    opened = Run.open(path)
    return opened, opened.experiment(weights=str(weights))


def solver_of(run: Run, settings: list[str] | None) -> Any:
    """The run's solver with settings changed, or None where none are."""
    from latentsb.errors import Problem
    from latentsb.recipe import Recipe

    if not settings:
        return None
    wrong = [s for s in settings if not s.startswith("solver.")]
    if wrong:
        raise RecipeError(
            [Problem(f"override '{s}'", "", "only solver.… can be changed on a trained run") for s in wrong]
        )
    return Recipe.load(run.path / "resolved.yaml", overrides=tuple(settings)).solver.build()


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; what is called with the number just finished."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def suggest(*commands: str) -> None:
    """Print the next useful commands."""
    typer.echo("next: " + "\n      ".join(commands))
