"""Tables of what there is: kinds, parts, shipped recipes."""

from __future__ import annotations

from collections.abc import Iterable
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
    from latentsb.recipe.nodes import Node
    from latentsb.recipe.sources import read, shipped

    def word(node: Node | None) -> str:
        if node is None or isinstance(node.value, dict):
            node = node.value.get("name") if node is not None and isinstance(node.value, dict) else None
        return str(node.value) if node is not None else ""

    shown = table("", "recipe", "what it is", "data", "autoencoder", "bridge")
    for name, path in shipped().items():
        keys = read(path).tree.value
        assert isinstance(keys, dict)
        shown.add_row(name, *(word(keys.get(key)) for key in ("about", "data", "autoencoder", "bridge")))
    console().print(shown, markup=False)
    console().print("next: latentsb copy NAME my.yaml", markup=False)
