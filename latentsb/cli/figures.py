"""How figures are printed: the value beside its floors, tables, and what else was counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentsb.cli.console import console, table

if TYPE_CHECKING:
    from latentsb.metrics.base import Measured, Table

__all__ = ["show_figure"]


def show_figure(name: str, figure: Measured) -> None:
    """Print a figure with its floors, its tables and its details."""
    shown = table("", name, "value")
    shown.add_row(figure.of, f"{figure.value:.{figure.digits}f}", style="bold")
    for floor, value in figure.floors.items():
        shown.add_row(floor, f"{value:.{figure.digits}f}")
    for detail, content in figure.details.items():
        if detail not in figure.hidden:
            shown.add_row(detail.replace("_", " "), _told(content), style="dim")
    console().print(shown)
    for content in figure.tables:
        show_table(content)


def show_table(content: Table) -> None:
    """Print a table of numbers."""
    shown = table(content.title, *content.columns)
    for name, values in content.rows:
        shown.add_row(name, *(_cell(value, content.digits) for value in values))
    console().print(shown)


def _told(content: Any) -> str:
    if isinstance(content, Mapping):
        return ", ".join(f"{key}: {value}" for key, value in content.items())
    return f"{content:.3f}" if isinstance(content, float) else str(content)


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
