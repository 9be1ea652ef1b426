"""Commands on a run: sample, reconstruct, interpolate, evaluate, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
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

SHOWN = 256
"""Images of the run's data that `reconstruct` takes where no number is given."""


class Mode(StrEnum):
    """How a code is decoded."""

    faithful = "faithful"
    perceptual = "perceptual"


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
Files = Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images; the run's own data if none.")]
Seed = Annotated[int, typer.Option(min=0, help="First seed; sample i has seed SEED + i.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples at a time.")]
ModeOption = Annotated[Mode, typer.Option(help="faithful: the mean, one call; perceptual: a draw.")]
WeightsOption = Annotated[Weights, typer.Option(help="Averaged weights, or those of the last step.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the best that is there if none.")]
AttentionOption = Annotated[Backend, typer.Option(help="What computes attention.")]


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
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free guidance scale; 1 is none.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Folder; inside the run if none.")] = None,
    batch: BatchOption = 256,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Draw samples: one PNG per seed, a grid, and samples.json. Repeat the command to go on after an interruption."""
    from latentsb.outputs import sample_folder

    opened, experiment = load(run, weights, device, attention)
    solver = solver_of(opened, settings)
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


def reconstruct(
    run: RunPath,
    images: Files = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="Images of the run's data; 256 or all, if none.")
    ] = None,
    mode: ModeOption = Mode.faithful,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Encode images to z and decode z alone; the autoencoder's own row stands beside."""
    from latentsb.bridge import EncodingBridge, require
    from latentsb.outputs import inputs_of, write_reconstruction

    opened, experiment = load(run, weights, device, attention)
    require(experiment.bridge, EncodingBridge, "reconstruct")
    with arguments():
        inputs = inputs_of(experiment, images or [], n or min(SHOWN, len(experiment.source)), seed)
        with bar("reconstructing", len(inputs.names)) as advance:
            made = write_reconstruction(opened, experiment, inputs, mode=mode.value, seed=seed, progress=advance)
    show_similarity(made, mode)
    typer.echo(f"picture (originals, autoencoder alone, bridge): {made['picture']}")
    suggest(run, "interpolate", *measures(opened, experiment), "report")


def interpolate(
    run: RunPath,
    images: Files = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Pairs of the run's data.")] = 6,
    frames: Annotated[int, typer.Option(min=2, help="Frames per pair, ends included.")] = 9,
    mode: ModeOption = Mode.perceptual,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Walk between images 1 and 2, 3 and 4, and so on."""
    from latentsb.outputs import inputs_of, write_interpolation

    files = images or []
    if len(files) % 2:
        raise RecipeError([Problem("", "IMAGE", f"found {len(files)}, expected pairs: an even number")])
    opened, experiment = load(run, weights, device, attention)
    with arguments():
        inputs = inputs_of(experiment, files, 2 * n, seed)
        with bar("interpolating", len(inputs.names) // 2) as advance:
            made = write_interpolation(
                opened, experiment, inputs, frames=frames, mode=mode.value, seed=seed, progress=advance
            )
    typer.echo(f"{frames} frames per pair, mixed in {made['along']}, {calls(made['calls'])}")
    typer.echo(f"picture: {made['picture']}")
    suggest(run, *measures(opened, experiment), "report")


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
    from latentsb.generate import walkable

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


def show_similarity(content: Mapping[str, Any], mode: Mode) -> None:
    """Print how like the originals the reconstructions are."""
    from latentsb.cli.console import console, table

    images = any("ssim" in figures for figures in content["figures"].values())
    columns = ("MSE on [0, 1]", "PSNR (dB)", "SSIM") if images else ("MSE",)
    shown = table(f"{content['images']} samples, {mode}, {calls(content['calls'])}", "", *columns)
    for name, figures in content["figures"].items():
        cells = [f"{figures['mse']:.5f}"]
        if images:
            cells += ["equal" if figures["psnr"] is None else f"{figures['psnr']:.2f}", f"{figures['ssim']:.3f}"]
        shown.add_row(name, *cells)
    console().print(shown)


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
