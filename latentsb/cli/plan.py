"""Commands on mazes: record, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentsb.cli.runs import Backend, DeviceOption, RunPath, Weights, WeightsOption, arguments, bar, load, suggest
from latentsb.errors import Problem, RecipeError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(record)
    app.command()(plan)


def record(
    maze: Annotated[str, typer.Argument(metavar="MAZE", help="umaze, medium or large.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="data/MAZE.npz if none.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of 0.01 each.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Of goals and noise.")] = 0,
) -> None:
    """Record a ball on its way from goal to goal through a maze: data for planners, made offline."""
    import numpy as np

    from latentsb.mazes import record as recorded

    path = output or Path("data") / f"{maze}.npz"
    with arguments(), bar("recording", steps) as advance:
        made = recorded(maze, steps, seed, advance)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **made)
    typer.echo(f"{steps:,} steps, {int(made['goals'])} goals: {path}")


def plan(
    run: RunPath,
    episodes: Annotated[int, typer.Option(min=2, help="Starts and goals, the same for all that is compared.")] = 200,
    calls: Annotated[str, typer.Option(help="Network calls for each plan, separated by commas.")] = "1,4,16",
    seed: Annotated[int, typer.Option(min=0, help="Of the tasks; plan i has seed SEED + i.")] = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
) -> None:
    """Plan, follow the plans in the maze, and tell how many arrive; beside the straight line and the controller."""
    from latentsb.planning import write_evaluation

    counts = numbers(calls)
    opened, experiment = load(run, weights, device, Backend.auto)
    with arguments(), bar("episodes", episodes * (len(counts) + 2)) as advance:
        made = write_evaluation(opened, experiment, calls=counts, episodes=episodes, seed=seed, progress=advance)
    show(made)
    typer.echo(f"picture: {made['picture']}")
    suggest(run, "report")


def numbers(text: str) -> tuple[int, ...]:
    """`1,4,16` as numbers of calls.

    Raises:
        RecipeError: if it is something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise RecipeError([Problem("", "--calls", f"found '{text}', expected whole numbers as in 1,4,16")])
    return tuple(int(part) for part in parts)


def show(made: dict[str, Any]) -> None:
    """Print the table of an evaluation."""
    from latentsb.cli.console import console, table

    heads = {"success": "success", "inside": "points inside walls", "steps": "steps"}
    heads["success beyond the straight line"] = "success beyond the line"
    shown = table("closed loop", "plan", "calls", *heads.values())
    for row in made["rows"]:
        cells = [f"{row[key]['mean']:.3g} ± {row[key]['error']:.2g}" for key in heads]
        shown.add_row(row["plan"], "" if row["calls"] is None else str(row["calls"]), *cells)
    console().print(shown)
