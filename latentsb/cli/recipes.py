"""Commands on recipes and on what they are made of: list, show, check, copy, schema, new, doctor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsb.errors import Error, Problem, RecipeError

if TYPE_CHECKING:
    from latentsb.recipe import Recipe

__all__ = ["Imports", "Overrides", "RecipeName", "load_recipe", "nothing_started", "register"]

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: bridge.z_dim=64, ~train.ema.")
]
Imports = Annotated[
    list[str] | None, typer.Option("--import", metavar="FILE", help="A Python file or module with parts of your own.")
]


class ExistsError(Error):
    """A file stands where a command would write."""

    exit_code = 2


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("list")(list_)
    for command in (show, check, copy, schema, new, doctor):
        app.command()(command)


def load_recipe(recipe: str, overrides: list[str] | None, imports: list[str] | None) -> Recipe:
    """The recipe of a command line.

    Raises:
        RecipeError: with every problem at once.
    """
    from latentsb.recipe import Recipe

    with nothing_started():
        return Recipe.load(recipe, overrides or (), imports or ())


@contextmanager
def nothing_started() -> Iterator[None]:
    """Count the problems of a recipe that a command would have started."""
    try:
        yield
    except RecipeError as error:
        n = len(error.problems)
        error.add_note(f"{n} problem{'s' if n != 1 else ''}; nothing was started.")
        raise


def list_(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help="bridge, network, …, recipes or runs.")] = "",
    imports: Imports = None,
) -> None:
    """List the parts of a kind, the shipped recipes, or the runs; without KIND, the kinds."""
    import latentsb.cli.listing as listing

    if kind in ("recipe", "recipes"):
        listing.recipes()
    elif kind in ("run", "runs"):
        from latentsb.cli.train import list_runs

        list_runs()
    elif kind:
        listing.parts(kind, imports or ())
    else:
        listing.kinds(imports or ())


def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default.")] = False,
    imports: Imports = None,
) -> None:
    """Print a recipe as it is written, or with --resolved (or overrides) as it is understood."""
    from latentsb.recipe.sources import find

    if resolved or overrides or imports:
        typer.echo(load_recipe(recipe, overrides, imports).resolved_text(), nl=False)
    else:
        typer.echo(find(recipe).read_text(encoding="utf-8"), nl=False)


def check(recipe: RecipeName, overrides: Overrides = None, imports: Imports = None) -> None:
    """Check a recipe without training: shapes, parameters, bytes, memory, steps."""
    bound = load_recipe(recipe, overrides, imports)
    from latentsb.cli.checking import report

    with nothing_started():
        report(bound)
    given = [recipe, *(overrides or ()), *(part for target in imports or () for part in ("--import", target))]
    typer.echo(f"next: latentsb train {shlex.join(given)}")


def copy(
    recipe: RecipeName,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="NAME.yaml here if none.")] = None,
) -> None:
    """Copy a recipe, to change it; an existing file is not overwritten."""
    from latentsb.recipe.sources import find

    source = find(recipe)
    target = path if path is not None else Path(source.name)
    target = target / source.name if target.is_dir() else target
    _write(target, renamed(source.read_text(encoding="utf-8"), target.stem))
    typer.echo(f"wrote {target}\nnext: latentsb check {target}\n      latentsb train {target}")


def renamed(text: str, name: str) -> str:
    """The text of a recipe under another name, where it gives one; everything else as it stands.

    Raises:
        RecipeError: if a recipe cannot have this name.
    """
    import json

    from latentsb.recipe.document import NAME
    from latentsb.recipe.nodes import parse_value

    found = re.search(r"^name:[ \t]+(\"[^\"\n]*\"|'[^'\n]*'|[^\s#][^#\n]*?)(?=[ \t]*$|[ \t]+#)", text, re.MULTILINE)
    if found is None:
        return text
    if not NAME.fullmatch(name):
        message = f"'{name}' cannot be a recipe's name: expected letters, digits, '.', '_' and '-' only"
        raise RecipeError([Problem("", "PATH", message)])
    written = name if parse_value(name, "PATH").value == name else json.dumps(name)
    return text[: found.start(1)] + written + text[found.end(1) :]


def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; standard output if none.")] = None,
    imports: Imports = None,
) -> None:
    """Write a JSON Schema of recipes, from which editors complete and check."""
    import json

    from latentsb.recipe.schema import recipe_schema

    text = json.dumps(recipe_schema(imports or ()), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    output.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {output}\nfirst line of a recipe: # yaml-language-server: $schema={output}")


def new(
    kind: Annotated[str, typer.Argument(metavar="bridge", help="What to begin; a bridge is what there is.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A lower-case word; the YAML word of the bridge.")],
) -> None:
    """Begin a bridge of your own: NAME.py with a small working one, and test_NAME.py that holds it to a closed form."""
    from latentsb.cli.scaffold import bridge_files

    files = bridge_files(kind, name)
    for path in files:
        _refuse(Path(path))
    for path, text in files.items():
        _write(Path(path), text)
        typer.echo(f"wrote {path}")
    typer.echo(f"next: pytest test_{name}.py\n      latentsb list bridge --import {name}.py")


def doctor() -> None:
    """Show what this machine has, what is missing, and how to get it."""
    from latentsb.cli.diagnosis import report

    report()


def _refuse(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ExistsError(f"{path} exists already and is not overwritten; give another name")


def _write(path: Path, text: str) -> None:
    _refuse(path)
    if not path.parent.is_dir():
        raise ExistsError(f"there is no folder {path.parent}")
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
