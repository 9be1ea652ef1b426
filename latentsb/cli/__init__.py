"""The command line: each file here adds its commands; whatever a command needs is imported when it runs."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from latentsb.allocator import keep_freed_memory
from latentsb.errors import Error

__all__ = ["app", "main"]

WORDING = {
    r"Input should be greater than or equal to (\S+)$": r"expected ≥ \1",
    r"Input should be a valid integer\b.*": "expected a whole number",
    r"Input should be a valid number\b.*": "expected a number",
    r"Value error, ": "",
    r"('[^']*') is not one of (.*?)\.$": r"found \1, expected one of \2",
}
"""What the parser says of a value, and how a recipe's mistakes are told."""
COMMANDS = (
    "latentsb.cli.recipes",
    "latentsb.cli.train",
    "latentsb.cli.runs",
    "latentsb.cli.tasks",
    "latentsb.cli.translate",
    "latentsb.cli.likelihood",
    "latentsb.cli.plan",
    "latentsb.cli.compare",
    "latentsb.cli.caching",
    "latentsb.cli.bench",
    "latentsb.cli.fetch",
)

EXAMPLES = """[bold]To begin[/bold]

latentsb list recipes

latentsb copy digits my.yaml

latentsb check my.yaml bridge.z_dim=32

latentsb train my.yaml

latentsb sample runs/my -n 64

latentsb report runs/my

Every command that takes a recipe also takes overrides (key=value, ~key) and --import my_bridge.py."""


class Commands(TyperGroup):
    """The commands; an interruption of any is told in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run what was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _interrupted(stop)
            raise typer.Exit(130) from stop


def app() -> typer.Typer:
    """The commands, with their help; importing torch is left to the commands that need it."""
    commands = typer.Typer(
        name="latentsb",
        cls=Commands,
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
    given = None if arguments is None else list(arguments)
    keep_freed_memory()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells that it builds a cache
    try:
        code = app()(args=given, prog_name="latentsb", standalone_mode=False)
    except Error as error:
        from latentsb.cli.console import tell

        tell(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        _interrupted(stop)
        sys.exit(130)
    except typer.Abort:
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        from latentsb.cli.console import visible

        print(visible(_line(error.format_message())), file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _line(message: str) -> str:
    """A mistake of the command line, as the parser tells it, in the words of all other mistakes."""
    text = " ".join(message.split())
    for found, told in WORDING.items():
        text = re.sub(found, told, text)
    return text[:1].lower() + text[1:]


def _interrupted(stop: KeyboardInterrupt) -> None:
    """Say what an interruption leaves, or that there was one."""
    for line in getattr(stop, "__notes__", ()) or ("interrupted",):
        print(line, file=sys.stderr)


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
