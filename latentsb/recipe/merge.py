"""Recipes on top of recipes: `extends`, and overrides from the command line.

Mappings merge key by key and lists replace. A part keeps its keys as long as its `name` stays: a child (or an
override) that gives another `name` replaces the part. The short form `reference: vp` means `{name: vp}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from latentsb.errors import Problem, RecipeError, nearest
from latentsb.recipe.nodes import Node, parse_value

__all__ = ["merge", "override"]


def merge(parent: Node, child: Node, *, root: bool = True) -> Node:
    """The child's keys over the parent's; every node keeps its own place.

    Args:
        parent: the recipe that is extended.
        child: the recipe that extends it.
        root: the top level, whose `name` is the recipe's own and replaces nothing.
    """
    above, below = _keys(parent, child), _keys(child, parent)
    if above is None or below is None or (not root and _replaces(above, below)):
        return child
    merged = dict(above)
    for name, node in below.items():
        merged[name] = merge(above[name], node, root=False) if name in above else node
    return Node(merged, child.where, child.key)


def _keys(node: Node, other: Node) -> dict[str, Node] | None:
    if isinstance(node.value, dict):
        return node.value
    if isinstance(node.value, str) and isinstance(other.value, dict):
        return {"name": replace(node, key=node.place)}
    return None


def _replaces(above: dict[str, Node], below: dict[str, Node]) -> bool:
    if "run" in below and "run" in above and "name" not in below:
        return "part" in below  # another run alone keeps which part of it
    if "run" in below or ("run" in above and "name" in below):
        return True
    return "name" in below and "name" in above and below["name"].value != above["name"].value


def override(tree: Node, overrides: Sequence[str]) -> Node:
    """Apply `a.b=value` and `~a.b`, in their order.

    Args:
        tree: the merged recipe.
        overrides: `key=value`, split at the first `=`, the value in YAML; a number as a key counts in a list from 0.

    Raises:
        RecipeError: with every override that is not of that form or has no place to go.
    """
    problems: list[Problem] = []
    for text in overrides:
        where = f"override '{text}'"
        delete = text.startswith("~")
        key, equals, value = text.removeprefix("~").partition("=")
        names = key.strip().split(".")
        try:
            if not all(names) or any(name != name.strip() for name in names):
                raise _problem(where, "", "expected key=value or ~key, the key being words joined by dots")
            if delete and equals:
                raise _problem(where, key, "~key deletes a key and takes no value")
            if delete:
                tree = _delete(tree, names, key, where)
            elif not equals:
                raise _problem(where, key, "expected key=value")
            elif not value.strip():
                raise _problem(where, key, f"no value after '='; write {key}=null for none")
            else:
                tree = _put(tree, names, parse_value(value, where), where, key)
        except RecipeError as error:
            problems += [replace(p, key=p.key or key) for p in error.problems]
    if problems:
        raise RecipeError(problems)
    return tree


def _problem(where: str, key: str, message: str) -> RecipeError:
    return RecipeError([Problem(where, key, message)])


def _put(node: Node, names: list[str], value: Node, where: str, key: str) -> Node:
    """`node` with `value` at the path `names`, by the rules of `merge`."""
    root = len(names) == key.count(".") + 1
    if not names:
        return merge(node, value, root=False)
    if isinstance(node.value, list):
        index = _index(node.value, names[0], where, key)
        items = list(node.value)
        items[index] = _put(items[index], names[1:], value, where, key)
        return replace(node, value=items)
    if isinstance(node.value, (dict, str)):
        known = _keys(node, Node({}, where)) or {}
        if names[0] in known and len(names) > 1:
            return replace(node, value=known | {names[0]: _put(known[names[0]], names[1:], value, where, key)})
        return merge(node, _nested(names, value, where), root=root)
    if node.value is None:
        return _nested(names, value, where)
    raise _problem(where, key, f"'{_above(key, names)}' is {node.value}, which has no keys")


def _nested(names: list[str], value: Node, where: str) -> Node:
    for name in reversed(names):
        value = Node({name: replace(value, key=where)}, where, where)
    return value


def _delete(node: Node, names: list[str], key: str, where: str) -> Node:
    if isinstance(node.value, list):
        index = _index(node.value, names[0], where, key)
        items = list(node.value)
        items[index : index + 1] = [_delete(items[index], names[1:], key, where)] if names[1:] else []
        return replace(node, value=items)
    keys = _keys(node, Node({}, where)) or {}
    if names[0] not in keys:
        raise _problem(where, key, f"there is no key '{_above(key, names[1:])}' to delete.{nearest(names[0], keys)}")
    rest = {name: child for name, child in keys.items() if name != names[0]}
    if names[1:]:
        return replace(node, value=keys | {names[0]: _delete(keys[names[0]], names[1:], key, where)})
    return replace(node, value=rest)


def _index(items: list[Node], name: str, where: str, key: str) -> int:
    if not name.isascii() or not name.isdigit() or len(name) > 6 or int(name) >= len(items):
        raise _problem(where, key, f"'{name}' counts in a list of {len(items)}; expected a number from 0 below that")
    return int(name)


def _above(key: str, rest: list[str]) -> str:
    names = key.split(".")
    return ".".join(names[: len(names) - len(rest)])
