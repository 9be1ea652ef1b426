"""Commands on a run: sample, evaluate, report; and what all commands on runs share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsb.errors import ArgumentError, Problem, RecipeError

if TYPE_CHECKING:
    from latentsb.experiment import Experiment
    from latentsb.run import Run

__all__ = ["register"]


class Weights(StrEnum):
    """Which weights are used."""

    ema = "ema"
    model = "model"


class Backend(StrEnum):
    """What computes attention."""

    auto = "auto"
    sdpa = "sdpa"
    xformers = "xformers"
    math = "math"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/digits.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[solver.KEY=VALUE]...", help="Another solver setting.")]
MetricSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[METRIC.KEY=VALUE]...", help="Settings of metrics, or solver.KEY=VALUE.")
]
Seed = Annotated[int, typer.Option(min=0, help="First seed; sample i has seed SEED + i.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples at a time.")]
WeightsOption = Annotated[Weights, typer.Option(help="Averaged weights, or those of the last step.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the best that is there if none.")]
AttentionOption = Annotated[Backend, typer.Option(help="What computes attention.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (sample, evaluate, report):
        app.command()(command)


def sample(
    run: RunPath,
    settings: Settings = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many.")] = 64,
    seed: Seed = 0,
    label: Annotated[int | None, typer.Option(help="Class, for class-conditional runs; all in turn if none.")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale; 1 is none.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Folder; inside the run if none.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Height and width of the images, if not as trained.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Of a dit at another size (latentsb list positions), if not as its recipe says.")
    ] = None,
    tiles: Annotated[
        int | None, typer.Option(min=0, help="Decode in tiles of so many pixels; 0: whole; as the recipe says if none.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples at a time; fewer of large images if none.")] = None,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Draw samples: one PNG per seed, a grid, and samples.json. Repeat the command to go on after an interruption."""
    from latentsb.outputs import sample_folder

    opened, experiment = load(run, weights, device, attention)
    solver = solver_of(opened, settings)
    with arguments():
        shaped(experiment, size, positions, tiles)
    with bar("sampling", n) as advance, arguments():
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
    typer.echo(f"{made.fresh} new samples ({n} asked, {calls(made.protocol['calls'])}) in {made.path}")
    if made.pairs is not None:
        typer.echo(f"pairs (x1, sample, x0 below each other): {made.pairs}")
    typer.echo(f"picture: {made.path / 'grid.png'}")
    suggest(run, *conditional(experiment, label, guidance), *views(experiment), *measures(opened, experiment), "report")


def evaluate(
    run: RunPath,
    settings: MetricSettings = None,
    metrics: Annotated[
        str | None, typer.Option(help="Words, separated by commas (latentsb list metric); those that fit, if none.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Samples, where a metric looks at any.")] = 500,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Measure a run, with floors and baselines beside each figure; `denoising.images=1000` sets a key of a metric."""
    from latentsb.cli.figures import show_figure
    from latentsb.evaluate import evaluate as measure

    words = None if metrics is None else [word.strip() for word in metrics.split(",") if word.strip()]
    given = settings or []
    of_solver = [text for text in given if text.startswith("solver.")]
    own = [text for text in given if text not in of_solver]
    opened, experiment = load(run, weights, device, attention)
    solver = solver_of(opened, of_solver)
    with arguments():
        measured = measure(
            opened, experiment, words, n, settings=own, seed=seed, solver=solver, watch=bar, tell=typer.echo
        )
    for name, figure in measured.items():
        show_figure(name, figure)
    typer.echo(f"stored in {run / 'evaluations'}")
    suggest(run, "report")


def report(
    run: RunPath,
    output: Annotated[Path | None, typer.Option(help="The page; report.html in the run if none.")] = None,
) -> None:
    """Write one self-contained HTML page: recipe, curves, grids, figures."""
    from latentsb.report import write_report
    from latentsb.run import Run

    typer.echo(f"report: {write_report(Run.open(run), output)}")


def shaped(experiment: Experiment, size: str | None, positions: str | None, tiles: int | None) -> None:
    """Bring a loaded experiment to another size, other positions, other tiles, where these are asked for.

    Raises:
        ArgumentError: if one of them does not fit.
    """
    from latentsb.networks.positions import POSITIONS
    from latentsb.resized import resized
    from latentsb.tiles import Tiling

    if size is not None or positions is not None:
        asked = None if size is None else sides_of(size)
        resized(experiment, asked, None if positions is None else POSITIONS[positions]())
    if tiles is not None:
        tiling = Tiling(size=tiles, overlap=min(Tiling().overlap, tiles // 2)) if tiles else None
        experiment.autoencoder.use_tiling(tiling)


def sides_of(text: str) -> tuple[int, int]:
    """`1024` or `768x1024`, height first.

    Raises:
        ArgumentError: if it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ArgumentError("size", f"found '{text}', expected one side as 1024, or height and width as 768x1024")
    return int(sides[0]), int(sides[-1])


def load(path: Path, weights: Weights, device: str | None, attention: Backend) -> tuple[Run, Experiment]:
    """The run and its trained experiment.

    Raises:
        BackendError: if the device or the backend cannot run here.
        CheckpointError: if there is no trained run.
    """
    import torch

    from latentsb.errors import BackendError
    from latentsb.networks.attention import check_backend, set_attention
    from latentsb.run import Run

    opened = Run.open(path)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"the device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    experiment = opened.experiment(weights.value, device)
    check_backend(attention.value, experiment.device, torch.float32)
    for module in experiment.modules.values():
        set_attention(module, attention.value)
    return opened, experiment


def views(experiment: Experiment) -> tuple[str, ...]:
    """What else shows what the bridge does: `reconstruct` or `interpolate`, whichever it is able to."""
    from latentsb.bridge import EncodingBridge
    from latentsb.walks import walkable

    if isinstance(experiment.bridge, EncodingBridge):
        return ("reconstruct",)
    return ("interpolate",) if walkable(experiment.bridge) else ()


def solver_of(run: Run, settings: list[str] | None) -> Any:
    """The run's solver with settings changed, or None where none are."""
    from latentsb.recipe import Recipe

    if not settings:
        return None
    wrong = [s for s in settings if not s.startswith(("solver.", "solver="))]
    if wrong:
        raise RecipeError(
            [Problem(f"override '{s}'", "", "a trained run can change solver.KEY=VALUE only") for s in wrong]
        )
    return Recipe.load(run.path / "resolved.yaml", overrides=tuple(settings)).solver.build()


@contextmanager
def arguments() -> Iterator[None]:
    """Tell a wrong argument as a mistake on the command line."""
    try:
        yield
    except ArgumentError as error:
        message = str(error).removeprefix(f"{error.name}: ")
        raise RecipeError([Problem("", f"--{error.name}", message)]) from error


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, elsewhere a line now and then; what is called with the number just finished."""
    from latentsb.cli.console import Lines, progress

    if not sys.stderr.isatty():
        yield Lines(title, total).advance
        return
    with progress() as shown:
        task = shown.add_task(title, total=total)
        yield lambda done: shown.advance(task, done)


def conditional(experiment: Experiment, label: int | None = None, guidance: float = 1.0) -> tuple[str, ...]:
    """`sample` of one class with guidance, where the bridge knows classes and nobody has asked for that yet."""
    spec = experiment.bridge.ends.cond.get("label")
    known = spec is not None and spec.classes and label is None and guidance == 1.0
    return ("sample RUN --label 0 --guidance 2",) if known else ()


def measures(run: Run, experiment: Experiment) -> tuple[str, ...]:
    """`evaluate`, where a default metric can be computed."""
    from latentsb.evaluate import RunSubject, fitting

    return ("evaluate",) if fitting(RunSubject(run, experiment, 1)) else ()


def following(run: Path, *commands: str) -> str:
    """The next useful commands on a run; RUN in one stands for its folder, which else comes last."""
    told = (c.replace("RUN", str(run)) if "RUN" in c else f"{c} {run}" for c in commands)
    return "next: " + "\n      ".join(f"latentsb {command}" for command in told)


def suggest(run: Path, *commands: str) -> None:
    """Print the next useful commands."""
    typer.echo(following(run, *commands))


def calls(n: int) -> str:
    """`1 network call each`."""
    return f"{n} network call{'s' if n != 1 else ''} each"
