"""Tables of what there is: kinds, parts, shipped recipes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from latentsb.cli.console import console, table
from latentsb.errors import Problem, RecipeError, nearest

__all__ = ["kinds", "parts", "recipes"]


def kinds(imports: Iterable[str | Path]) -> None:
    """Print the kinds of parts and the words of each."""
    from latentsb.recipe.kinds import registries

    shown = table("", "kind", "words")
    for kind, registry in registries(imports).items():
        shown.add_row(kind, ", ".join(registry.names()))
    shown.add_row("recipes", "recipes that come with latentsb")
    shown.add_row("runs", "what has been trained")
    console().print(shown, markup=False)
    console().print("next: latentsb list bridge", markup=False)


def parts(kind: str, imports: Iterable[str | Path]) -> None:
    """Print name, one line, source and signature of every part of a kind.

    Raises:
        RecipeError: if there is no such kind.
    """
    from latentsb.recipe.kinds import about, registries

    known = registries(imports)
    word = kind if kind in known else kind.removesuffix("s")
    if word not in known:
        words = [*known, "recipes", "runs"]
        message = f"there is no kind of part called '{kind}'.{nearest(kind, words)} Kinds: {', '.join(words)}"
        raise RecipeError([Problem("", "", message)])
    shown = table("", word, "what it is", "keys")
    for name in known[word].names():
        try:
            part = about(known[word], name)
        except ImportError as error:
            shown.add_row(name, f"cannot be imported: {error}", "")
            continue
        line = f"{part.line}\nSource: {part.source}" if part.source else part.line
        own = "" if part.where.startswith("latentsb.") else f"\n({part.where})"
        shown.add_row(name, line + own, part.signature)
    console().print(shown, markup=False)


def recipes() -> None:
    """Print the recipes that come with latentsb."""
    from latentsb.recipe.sources import shipped

    shown = table("", "recipe", "what it is", "data", "autoencoder", "bridge")
    for name, path in shipped().items():
        shown.add_row(name, *_summary(path))
    console().print(shown, markup=False)
    console().print("next: latentsb copy NAME my.yaml", markup=False)


def _summary(path: Path) -> list[str]:
    """A recipe's `about`, or the comment that it begins with; then the words of its parts."""
    from latentsb.recipe.sources import read

    tree = read(path).tree.plain()
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(takewhile(bool, (line.removeprefix("#").strip() for line in lines)))
    parts = (tree.get(section, "") for section in ("data", "autoencoder", "bridge"))
    return [tree.get("about", comment), *(part["name"] if isinstance(part, dict) else str(part) for part in parts)]
