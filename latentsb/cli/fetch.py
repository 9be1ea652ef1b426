"""The command that brings published weights to this machine; the only one that ever downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("fetch")(fetch_)


def fetch_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which weights; all that are known, if none.")] = "",
    origin: Annotated[
        str | None, typer.Option("--from", metavar="FOLDER|URL", help="In place of the Hugging Face Hub.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is known, and what is here.")] = False,
) -> None:
    """Load published weights of an autoencoder, check them, and put them where recipes look for them."""
    if list_ or not name:
        _list()
        return
    from latentsb.cli.console import console, size
    from latentsb.fetch import fetch, here
    from latentsb.weights import KNOWN

    known = KNOWN.get(name)
    if origin is None and known is not None and here(name) is None:
        console(stderr=True).print(f"{name}: about {size(known.size)} from huggingface.co/{known.repo}", markup=False)
    made = fetch(name, origin)
    known = KNOWN[name]
    state = "" if made.fresh else "already "
    typer.echo(f"{name}: {size(made.size)}, {state}in {made.path}")
    typer.echo(f"licence: {known.licence}, as huggingface.co/{known.repo} states it")
    typer.echo(f"next: autoencoder: {{name: {known.autoencoder}, weights: {name}}} in a recipe")
    typer.echo(f"      latentsb check RECIPE 'autoencoder={{name: {known.autoencoder}, weights: {name}}}'")


def _list() -> None:
    from latentsb.cli.console import console, size, table
    from latentsb.fetch import here
    from latentsb.weights import ENVIRONMENT, KNOWN, home

    shown = table("", "name", "what it is", "autoencoder", "size", "licence", "here")
    for name, known in KNOWN.items():
        found: Path | None = here(name)
        row = (name, known.about, known.autoencoder, size(known.size), known.licence)
        shown.add_row(*row, "yes" if found else "no")
    console().print(shown, markup=False)
    console().print(f"place: {home()} ({ENVIRONMENT})\nnext: latentsb fetch NAME", markup=False)
