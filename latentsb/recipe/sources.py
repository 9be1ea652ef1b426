"""Where recipes come from: files, shipped names, and the chain of `extends`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import latentsb
from latentsb.errors import Problem, RecipeError, nearest
from latentsb.recipe.annotations import found
from latentsb.recipe.imports import Import
from latentsb.recipe.merge import merge
from latentsb.recipe.nodes import Node, parse

__all__ = ["Source", "find", "node_in_run", "read", "shipped"]

MAX_CHAIN = 8


@dataclass(frozen=True)
class Source:
    """A recipe read and merged with what it extends.

    Args:
        tree: the merged nodes, without `extends` and `imports`.
        text: the file as given.
        name: the file's name without its ending.
        imports: of the whole chain, the farthest parent's first.
    """

    tree: Node
    text: str
    name: str
    imports: tuple[Import, ...]


def shipped() -> dict[str, Path]:
    """The recipes that come with latentsb, by name."""
    folder = Path(latentsb.__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(recipe: str | Path, folder: Path | None = None, where: str = "") -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Args:
        recipe: what ends in .yaml or .yml or holds a slash is a path; anything else is a name.
        folder: what a relative path is relative to; the working directory if None.
        where: place that asks for it.

    Raises:
        RecipeError: if there is no such file or name.
    """
    text = str(recipe)
    if isinstance(recipe, Path) or text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        path = path if folder is None else folder / path
        if path.is_file():
            return path
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise RecipeError([Problem(where, "", f"the recipe {path} {what}")])
    known = shipped()
    if text in known:
        return known[text]
    message = f"no shipped recipe is called '{text}'.{nearest(text, known)} Known: {', '.join(known) or 'none'};"
    raise RecipeError([Problem(where, "", f"{message} a file of your own ends in .yaml")])


def read(path: Path) -> Source:
    """Read a recipe's file and everything that it extends.

    Raises:
        RecipeError: if a file is missing, cannot be read, or extends itself.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecipeError([Problem("", "", f"the recipe {path} cannot be read: {error.strerror}")]) from None
    return read_text(text, str(path), path.parent, path.stem, (path,))


def read_text(text: bytes | str, label: str, folder: Path, name: str, chain: Sequence[Path] = ()) -> Source:
    """The same for a text; relative paths in it are relative to `folder`."""
    tree = parse(text, label)
    if not isinstance(tree.value, dict):
        raise RecipeError([Problem(tree.where, "", f"a recipe is a mapping of sections, found {found(tree.plain())}")])
    keys = dict(tree.value)
    parent, brought = keys.pop("extends", None), keys.pop("imports", None)
    tree = Node(keys, tree.where)
    imports = _imports(brought, folder)
    if parent is not None:
        above = _parent(parent, folder, chain)
        tree, imports = merge(above.tree, tree), above.imports + imports
    decoded = text if isinstance(text, str) else text.decode("utf-8")
    return Source(tree, decoded, name, tuple({entry.target: entry for entry in imports}.values()))


def _parent(node: Node, folder: Path, chain: Sequence[Path]) -> Source:
    if not isinstance(node.value, str):
        message = f"expected a file or the name of a shipped recipe, found {found(node.plain())}"
        raise RecipeError([Problem(node.place, "extends", message)])
    path = find(node.value, folder, node.place)
    if any(path.samefile(above) for above in chain):
        circle = " -> ".join(str(p) for p in (*chain, path))
        raise RecipeError([Problem(node.place, "extends", f"the recipes extend each other in a circle: {circle}")])
    if len(chain) >= MAX_CHAIN:
        raise RecipeError([Problem(node.place, "extends", f"more than {MAX_CHAIN} recipes extend one another")])
    above = read_text(path.read_bytes(), str(path), path.parent, path.stem, (*chain, path))
    keys = dict(above.tree.value) if isinstance(above.tree.value, dict) else {}
    keys.pop("name", None)  # a child has its own name
    return Source(Node(keys, above.tree.where), above.text, above.name, above.imports)


def _imports(node: Node | None, folder: Path) -> tuple[Import, ...]:
    if node is None or node.value is None:
        return ()
    items = node.value if isinstance(node.value, list) else [node]
    problems = [
        Problem(item.where, "imports", f"expected a list of files or modules, found {found(item.plain())}")
        for item in items
        if not isinstance(item.value, str) or not item.value
    ]
    if problems:
        raise RecipeError(problems)
    return tuple(Import.of(str(item.value), folder, item.where) for item in items)


def node_in_run(run: str, part: str) -> tuple[str, Node]:
    """The node of a part in the resolved recipe of a run.

    Args:
        run: the run's folder.
        part: dotted path; what is not found at the top is looked for under `bridge`.

    Returns:
        The dotted path from the top, and the node.

    Raises:
        RecipeError: if there is no such run or part.
    """
    path = Path(run).expanduser() / "resolved.yaml"
    if not path.is_file():
        raise RecipeError([Problem("", "", f"there is no run at {run} (no {path})")])
    root = read(path).tree
    for path_in in (part, f"bridge.{part}"):
        node: Node | None = root
        for name in path_in.split("."):
            node = node.value.get(name) if node is not None and isinstance(node.value, dict) else None
        if node is not None and (
            isinstance(node.value, str) or (isinstance(node.value, dict) and "name" in node.value)
        ):
            return path_in, node
    raise RecipeError([Problem("", "", f"the recipe of {run} has no part '{part}'")])
