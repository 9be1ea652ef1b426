"""The command that holds the figures of runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from latentsb.compare import Comparison

__all__ = ["register"]

Rows = list[tuple[str, ...]]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("compare")(compare_)


def compare_(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, two or more.")],
    metrics: Annotated[
        str | None, typer.Option(help="Words, separated by commas; all that were measured, if none.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="table.md or table.json.")] = None,
) -> None:
    """Set stored figures of equal protocol side by side; the others are listed with what differs."""
    from latentsb.cli.console import console, table
    from latentsb.compare import compare
    from latentsb.disk import write_text
    from latentsb.errors import ArgumentError, Problem, RecipeError

    if output is not None and output.suffix not in (".md", ".json"):
        raise RecipeError([Problem("", "--output", f"found the ending '{output.suffix}', expected .md or .json")])
    words = None if metrics is None else [word.strip() for word in metrics.split(",") if word.strip()]
    try:
        found = compare(runs, words)
    except ArgumentError as error:
        key = "RUN" if error.name == "run" else f"--{error.name}"
        raise RecipeError([Problem("", key, str(error).removeprefix(f"{error.name}: "))]) from error
    for title, heads, rows, same in sections(found):
        shown = table(title, *heads)
        for row in rows:
            shown.add_row(
                *(cell.replace("**", "") if "**" not in cell else f"{cell.replace('**', '')} *" for cell in row)
            )
        console().print(shown, markup=False)
        if same:
            console().print(f"equal in all: {_equal(same)}\n", markup=False)
    for line in notes(found, "*"):
        typer.echo(line)
    if output is not None:
        write_text(output, json.dumps(found.json(), indent=1) + "\n" if output.suffix == ".json" else markdown(found))
        typer.echo(f"written to {output}")


def sections(found: Comparison) -> list[tuple[str, tuple[str, ...], Rows, dict[str, float]]]:
    """Title, heads, rows and numbers that are equal in all columns, of each table; the best stands between `**`."""
    about: Rows = [
        (
            run.name,
            run.bridge,
            *("–" if n is None else f"{n:,.0f}" for n in (run.numbers, run.images, run.seconds, run.step)),
        )
        for run in found.runs
    ]
    heads = ("run", "bridge", "weights of the bridge", "images seen", "seconds of training", "step")
    made: list[tuple[str, tuple[str, ...], Rows, dict[str, float]]] = [("", heads, about, {})]
    for one in found.tables:
        count = one.protocol.get("count")
        title = f"{one.metric}, n = {count:,}" if isinstance(count, int) else one.metric
        rows: Rows = []
        for line in one.lines:
            cells = []
            for k, (value, error) in enumerate(zip(line.values, line.errors, strict=True)):
                told = "–" if value is None else f"{value:.4g}" + ("" if error is None else f" ± {error:.1g}")
                cells.append(f"**{told}**" if k == line.best else told)
            arrow = {"lower": " ↓", "higher": " ↑"}.get(line.better, "")
            rows.append((line.name + arrow, *cells))
        made.append((f"{title} (stamp {one.stamp})", ("", *one.columns), rows, dict(one.same)))
    return made


def notes(found: Comparison, mark: str) -> list[str]:
    """What a reader of the tables must know, and what was left out of them."""
    from latentsb.compare import SURE

    told = []
    if found.tables:
        sure = f"better than every other one by more than {SURE:g} standard errors of the difference"
        told.append(f"± one standard error; {mark} {sure}")
    else:
        told.append("there is no figure that two of these runs have in common")
    return told + [f"not compared: {line}" for line in found.apart]


def markdown(found: Comparison) -> str:
    """The tables as Markdown."""
    parts = []
    for title, heads, rows, same in sections(found):
        parts += [f"**{title}**", ""] if title else []
        parts += [_row(heads), _row(["---"] * len(heads)), *map(_row, rows), ""]
        if same:
            parts += [f"Equal in all: {_equal(same)}.", ""]
    return "\n".join([*parts, *(f"{line}  " for line in notes(found, "bold:"))]) + "\n"


def _equal(same: dict[str, float]) -> str:
    return "; ".join(f"{name} {value:.4g}" for name, value in same.items())


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
