"""The command line: each file here adds its commands; whatever a command needs is imported when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from latentsb.errors import Error

__all__ = ["app", "main"]

COMMANDS = ("latentsb.cli.recipes", "latentsb.cli.train", "latentsb.cli.runs")

EXAMPLES = """[bold]To begin[/bold]

latentsb list recipes

latentsb copy digits my.yaml

latentsb check my.yaml bridge.z_dim=32

latentsb train my.yaml

latentsb sample runs/my -n 64

latentsb report runs/my

Every command that takes a recipe also takes overrides (key=value, ~key) and --import my_bridge.py."""


def app() -> typer.Typer:
    """The commands, with their help; importing torch is left to the commands that need it."""
    commands = typer.Typer(
        name="latentsb",
        no_args_is_help=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=EXAMPLES,
    )
    commands.callback(invoke_without_command=True)(_top)
    for module in COMMANDS:
        import_module(module).register(commands)
    return commands


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code.

    Args:
        arguments: without the program's name; those of the process if None.
    """
    try:
        app()(args=None if arguments is None else list(arguments), prog_name="latentsb")
    except Error as error:
        from latentsb.cli.console import tell

        tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Generative bridges in latent space: autoencoder, bridge and solver mixed by a YAML recipe."""
    if version:
        from latentsb import __version__

        typer.echo(f"latentsb {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
