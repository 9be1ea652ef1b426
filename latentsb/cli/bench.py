"""The commands of `latentsb bench`: methods beside exact answers with seeds and floors, and autoencoders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsb.cli.runs import DeviceOption
from latentsb.errors import Problem, RecipeError, nearest

if TYPE_CHECKING:
    from latentsb.bench.arms import Method
    from latentsb.bench.tables import Column, Row

__all__ = ["register"]

ALL = "all"
"""Every registered autoencoder."""
QUICK = 20
"""By how much `--quick` divides the budget and the samples."""

MethodsOption = Annotated[
    str | None, typer.Option(help="Words, separated by commas; all of the bench, if none. 'none' for floors alone.")
]
RecipeOption = Annotated[
    list[Path] | None,
    typer.Option("--recipe", help="A method of your own: YAML with `bridge:`; $SIGMA, $NETWORK, … stand for numbers."),
]
SeedsOption = Annotated[str, typer.Option(help="Such as 1-5 or 0,3.")]
ImagesOption = Annotated[int | None, typer.Option(min=1, help="Training images of every method.")]
QuickOption = Annotated[bool, typer.Option("--quick", help=f"A look: images, points and samples divided by {QUICK}.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where arms are kept; what is there is not trained again.")]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="A .json file.")]
SigmaOption = Annotated[float, typer.Option(help="Of the Brownian reference; epsilon is its square.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Of every simulation.")]
WidthOption = Annotated[int, typer.Option(min=1, help="Of the networks.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    bench = typer.Typer(
        help="Methods beside exact answers: gaussian, eot, toys2d, kaba, epsilon, density; autoencoders side by side.",
        no_args_is_help=True,
    )
    for command in (gaussian, eot, toys2d, kaba, epsilon, density, autoencoders):
        bench.command()(command)
    app.add_typer(bench, name="bench")


def gaussian(
    methods: MethodsOption = None,
    recipe: RecipeOption = None,
    dims: Annotated[str, typer.Option(help="Dimensions.")] = "5,20,50",
    seeds: SeedsOption = "1-5",
    images: ImagesOption = None,
    sigma: SigmaOption = 1.0,
    steps: StepsOption = 20,
    width: WidthOption = 256,
    quick: QuickOption = False,
    runs: RunsOption = Path("runs/bench/gaussian"),
    output: OutputOption = None,
) -> None:
    """Two normal laws: KL over time with full and with diagonal covariance, and the covariance of the ends."""
    from latentsb.bench.arms import chosen
    from latentsb.bench.gaussian import ABOUT, COLUMNS, GaussianBench, rows
    from latentsb.bench.methods import METHODS

    setting = GaussianBench(sigma=positive("--sigma", sigma), steps=steps, width=width)
    setting = sized(setting, images, quick, "points", "samples")
    picked = chosen(METHODS, split(methods), recipe or ())
    made = rows(setting, picked, whole("--dims", dims), whole("--seeds", seeds, least=0), runs)
    show(made, COLUMNS, ABOUT, asdict(setting), output)


def eot(
    methods: MethodsOption = None,
    recipe: RecipeOption = None,
    dims: Annotated[str, typer.Option(help="Dimensions.")] = "2,16,64",
    epsilon: Annotated[str, typer.Option(help="Of the plans.")] = "0.1,1,10",
    seeds: SeedsOption = "1-3",
    images: ImagesOption = None,
    inputs: Annotated[int, typer.Option(min=2, help="Test states x0.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Of x1 for each of them.")] = 1000,
    steps: StepsOption = 50,
    width: WidthOption = 256,
    potential: Annotated[int, typer.Option(min=0, help="Seed of the mixture.")] = 0,
    quick: QuickOption = False,
    runs: RunsOption = Path("runs/bench/eot"),
    output: OutputOption = None,
) -> None:
    """Mixtures with a known entropic plan: unexplained variance of x1 given x0, and of x1, in per cent."""
    from latentsb.bench.arms import chosen
    from latentsb.bench.eot import ABOUT, COLUMNS, EotBench, rows
    from latentsb.bench.methods import METHODS

    setting = EotBench(potential=potential, steps=steps, inputs=inputs, samples=samples, width=width)
    setting = sized(setting, images, quick, "points", "inputs")
    picked = chosen(METHODS, split(methods), recipe or ())
    problems = whole("--dims", dims), numbers("--epsilon", epsilon)
    show(
        rows(setting, picked, *problems, whole("--seeds", seeds, least=0), runs),
        COLUMNS,
        ABOUT,
        asdict(setting),
        output,
    )


def toys2d(
    methods: MethodsOption = None,
    recipe: RecipeOption = None,
    problems: Annotated[str | None, typer.Option(help="SOURCE-TARGET, such as gaussian-moons; four, if none.")] = None,
    seeds: SeedsOption = "1-3",
    images: ImagesOption = None,
    sigma: SigmaOption = 1.0,
    steps: StepsOption = 50,
    width: WidthOption = 256,
    quick: QuickOption = False,
    runs: RunsOption = Path("runs/bench/toys2d"),
    output: OutputOption = None,
) -> None:
    """Laws in the plane: W2, energy, error of the drift against the bridge on a grid, and a picture of trajectories."""
    from latentsb.bench.arms import chosen
    from latentsb.bench.methods import METHODS
    from latentsb.bench.plane import LAWS
    from latentsb.bench.toys import ABOUT, COLUMNS, PROBLEMS, ToyBench, rows

    setting = ToyBench(sigma=positive("--sigma", sigma), steps=steps, width=width)
    setting = sized(setting, images, quick, "points", "samples")
    asked = split(problems) or PROBLEMS
    known = [f"{source}-{target}" for source in LAWS for target in LAWS if source != target]
    for problem in asked:
        one_of("--problems", problem, known)
    picked = chosen(METHODS, split(methods), recipe or ())
    made = rows(setting, picked, asked, whole("--seeds", seeds, least=0), runs)
    show(made, COLUMNS, ABOUT, asdict(setting), output)
    picture(runs, asked, picked)


def kaba(
    methods: MethodsOption = None,
    recipe: RecipeOption = None,
    laws: Annotated[str, typer.Option(help="Of x0: moons, swissroll, eight_gaussians, digits (latents).")] = "moons",
    seeds: SeedsOption = "1-3",
    images: ImagesOption = None,
    sigma: SigmaOption = 1.0,
    steps: StepsOption = 20,
    width: WidthOption = 128,
    quick: QuickOption = False,
    runs: RunsOption = Path("runs/bench/kaba"),
    output: OutputOption = None,
) -> None:
    """SB-VAE with an encoder trained until its loss is flat, throughout, or not at all: quality and time."""
    from latentsb.bench import instance
    from latentsb.bench.arms import chosen
    from latentsb.bench.kaba import ABOUT, COLUMNS, LAWS_OF_X0, METHODS, rows
    from latentsb.bench.toys import ToyBench

    setting = ToyBench(sigma=positive("--sigma", sigma), steps=steps, width=width, images=1_000_000)
    setting = sized(setting, images, quick, "points", "samples")
    asked = split(laws) or []
    for law in asked:
        one_of("--laws", law, LAWS_OF_X0)
    picked = chosen(METHODS, split(methods), recipe or ())
    made = rows(setting, picked, asked, whole("--seeds", seeds, least=0), runs)
    known = instance.rows()
    show(chain(known, made), (*instance.COLUMNS, *COLUMNS), ABOUT, asdict(setting), output)
    picture(runs, asked, picked)


def epsilon(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A .png of exact trajectories too.")] = None,
    values: Annotated[str, typer.Option("--epsilon", help="Of the picture's columns.")] = "0.1,0.3,1,3",
) -> None:
    """What an epsilon does: the correlation of the ends between standard normal laws, and exact trajectories."""
    from latentsb.bench.epsilon import ABOUT, COLUMNS, draw, rows

    columns = numbers("--epsilon", values)
    if output is not None and output.suffix != ".png":
        raise RecipeError([Problem("", "--output", f"found the ending '{output.suffix}', expected .png")])
    show(iter(rows()), COLUMNS, ABOUT, {}, None)
    if output is not None:
        typer.echo(f"picture: {draw(output, columns)}")


def autoencoders(
    autoencoder: Annotated[
        list[str] | None,
        typer.Argument(help="Words, fragments such as '{name: kl, weights: ./vae}', folders of runs; 'all', if none."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A recipe, or a fragment such as digits; two photographs in tiles, if none.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels of a side of these tiles.")] = 64,
    images: Annotated[int, typer.Option("-n", "--images", min=2, help="That are encoded and decoded.")] = 50,
    seeds: SeedsOption = "0",
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    device: DeviceOption = None,
    output: OutputOption = None,
) -> None:
    """Autoencoders on real images: what they keep, what their latents are like, what they cost."""
    from latentsb.bench.autoencoders import ABOUT, KEPT, LATENTS, AutoencoderBench, asked, data_of, known, rows

    whole_seeds = whole("--seeds", seeds, least=0)
    found = data_of(data, size)
    chosen = [c for text in autoencoder or [ALL] for c in (known() if text == ALL else [asked(text)])]
    setting = AutoencoderBench(images=images, batch=batch, device=device)
    made = rows(setting, chosen, found, whole_seeds, lambda line: typer.echo(line, err=True))
    show(made, KEPT, ABOUT, {**asdict(setting), "data": found.identity}, output, LATENTS)


def density(
    methods: MethodsOption = None,
    recipe: RecipeOption = None,
    targets: Annotated[str | None, typer.Option(help="Words of targets; gmm, funnel, mw and mw_50d, if none.")] = None,
    seeds: SeedsOption = "1-3",
    images: ImagesOption = None,
    steps: StepsOption = 50,
    width: WidthOption = 64,
    quick: QuickOption = False,
    runs: RunsOption = Path("runs/bench/density"),
    output: OutputOption = None,
) -> None:
    """Densities without data: DIS and PIS by two divergences, log Z and modes beside the exact ones."""
    from latentsb.bench.arms import chosen
    from latentsb.bench.density import ABOUT, COLUMNS, METHODS, PROBLEMS, DensityBench, rows
    from latentsb.targets.base import TARGETS

    setting = sized(DensityBench(steps=steps, width=width), images, quick, "samples")
    asked = split(targets) or list(PROBLEMS)
    for target in asked:
        one_of("--targets", target, TARGETS.names())
    picked = chosen(METHODS, split(methods), recipe or ())
    made = rows(setting, picked, asked, whole("--seeds", seeds, least=0), runs)
    show(made, COLUMNS, ABOUT, asdict(setting), output)


def show(
    rows: Iterator[Row],
    columns: Sequence[Column],
    about: str,
    protocol: dict[str, Any],
    output: Path | None,
    *more: Sequence[Column],
) -> None:
    """Print a table for each problem as soon as its rows are there; write all of them so far after each row.

    With `more` columns the same rows are printed again with those.
    """
    from latentsb.bench.tables import contents
    from latentsb.outputs import write_json

    if output is not None and output.suffix != ".json":
        raise RecipeError([Problem("", "--output", f"found the ending '{output.suffix}', expected .json")])
    done: list[Row] = []
    typer.echo(about)
    for row in rows:
        if done and done[-1].case != row.case:
            print_case([r for r in done if r.case == done[-1].case], columns, *more)
        done.append(row)
        typer.echo(f"{row.case}: {row.name} done", err=True)
        if output is not None:
            write_json(output, contents(about, protocol, done))
    if done:
        print_case([r for r in done if r.case == done[-1].case], columns, *more)
    if output is not None:
        typer.echo(f"written to {output}")


def print_case(rows: Sequence[Row], *tables: Sequence[Column]) -> None:
    """A table for each set of columns: mean ± standard error over seeds."""
    for columns in tables:
        print_table([row for row in rows if any(c.key in {*row.figures, *row.notes} for c in columns)], columns)


def print_table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """One table."""
    from latentsb.cli.console import console, table

    if not rows:
        return
    used = [column for column in columns if any(column.key in {*row.figures, *row.notes} for row in rows)]
    counts = sorted({len(row.seeds) for row in rows if row.seeds})
    seeds = "" if not counts else ", 1 seed" if counts[-1] == 1 else f", {counts[-1]} seeds, mean ± standard error"
    shown = table(f"{rows[0].case}{seeds}", "", *(column.head for column in used))
    shown.columns[0].no_wrap = True
    for row in rows:
        shown.add_row(row.name, *(column.cell(row) for column in used))
    console().print(shown, markup=False)


def picture(runs: Path, problems: Sequence[str], methods: Sequence[Method]) -> None:
    """Draw kept trajectories of the first seeds, a panel for each method, the exact ones first."""
    from latentsb.bench.pictures import of_folders

    for problem in problems:
        places = {"exact": sorted(runs.glob(f"floors/{problem}/exact-seed*"))}
        places |= {m.name: sorted(runs.glob(f"{m.name}-{problem}-seed*"), key=newest) for m in methods}
        folders = {name: found[-1] if name != "exact" else found[0] for name, found in places.items() if found}
        drawn = of_folders(folders, runs / f"{problem}.png", columns=4)
        if drawn is not None:
            typer.echo(f"picture: {drawn}")


def newest(path: Path) -> float:
    """When a folder was last changed."""
    return path.stat().st_mtime


def sized(setting: Any, images: int | None, quick: bool, *divided: str) -> Any:
    """The setting with another budget; with `quick` a small one, but where a number of images is given."""
    from dataclasses import replace

    if quick:
        setting = replace(setting, **{name: max(2, getattr(setting, name) // QUICK) for name in ("images", *divided)})
    return setting if images is None else replace(setting, images=images)


def split(text: str | None) -> list[str] | None:
    """Words between commas; none at all for 'none'."""
    if text is None:
        return None
    return [] if text.strip() == "none" else [word.strip() for word in text.split(",") if word.strip()]


def whole(option: str, text: str, least: int = 1) -> list[int]:
    """Whole numbers between commas, and ranges such as 1-5."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise RecipeError([Problem("", option, f"found '{text}', expected whole numbers, such as 1-5 or 2,16")])
        found += range(int(first), int(last or first) + 1)
    if not found or min(found) < least:
        raise RecipeError([Problem("", option, f"found '{text}', expected whole numbers from {least} on")])
    return list(dict.fromkeys(found))


def numbers(option: str, text: str) -> list[float]:
    """Positive numbers between commas."""
    try:
        found = [positive(option, float(part)) for part in text.split(",")]
    except ValueError:
        message = f"found '{text}', expected positive numbers, such as 0.1,1"
        raise RecipeError([Problem("", option, message)]) from None
    return list(dict.fromkeys(found))


def positive(option: str, value: float) -> float:
    """A finite number above zero."""
    if not math.isfinite(value) or value <= 0:
        raise RecipeError([Problem("", option, f"found {value:g}, expected a number above 0")])
    return value


def one_of(option: str, word: str, known: Sequence[str]) -> None:
    """Refuse an unknown word."""
    if word not in known:
        raise RecipeError([Problem("", option, f"found '{word}'.{nearest(word, known)} Known: {', '.join(known)}")])
