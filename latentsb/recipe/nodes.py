"""YAML text to a tree of nodes that know where they stand.

PyYAML's parser does the reading; the values follow YAML 1.2's core schema with a recipe's needs in mind: `1e-4` is
a number, `yes` and `1:30` are texts, `64_000_000` is an integer. What a reader could take in two ways (duplicate
keys, tags, `<<`, leading zeros, keys that are not texts, numbers that are not finite) is a problem with its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from latentsb.errors import Problem, RecipeError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "Node", "Scalar", "dump", "parse", "parse_value"]

Scalar = str | int | float | bool | None

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 20_000  # after aliases are expanded

NAMED: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None}
WORDS: dict[str, bool | None] = {
    form: value for word, value in NAMED.items() for form in (word, word.capitalize(), word.upper())
} | {"": None}
INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)")
NUMBER = re.compile(r"[-+]?(?:[0-9](?:_?[0-9])*\.?|(?:[0-9](?:_?[0-9])*)?\.[0-9](?:_?[0-9])*)(?:[eE][-+]?[0-9]+)?")
AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[-+]?0[oOxXbB][0-9a-fA-F_]+")
NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)
# What YAML forbids in a stream, and the byte order mark, which editors leave and readers disagree about.
FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Node:
    """A value of a recipe and where it stands.

    Args:
        value: a scalar, a list of nodes, or a dictionary of nodes.
        where: place of the value, `file:line:column` or `override 'key=value'`.
        key: place of its key where it has one, else that of the value.
        size: nodes in this tree.
        depth: levels below this one.
    """

    value: Scalar | list[Node] | dict[str, Node]
    where: str
    key: str = ""
    size: int = field(default=1, compare=False)
    depth: int = field(default=0, compare=False)

    @property
    def place(self) -> str:
        """Where the key stands, or the value where there is no key."""
        return self.key or self.where

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def parse(text: str | bytes, source: str) -> Node:
    """Read a YAML document.

    Args:
        text: the document; bytes are UTF-8.
        source: the name that stands before line and column in messages.

    Raises:
        RecipeError: with every problem that could be found; a syntax error ends the search.
    """
    return _Reader(source).read(text)


def parse_value(text: str, where: str) -> Node:
    """Read the value of an override: one YAML value, every part of which stands at `where`.

    Raises:
        RecipeError: as `parse`, with `where` in place of line and column.
    """
    try:
        return _moved(_Reader("").read(text), where)
    except RecipeError as error:
        raise RecipeError(replace(problem, where=where) for problem in error.problems) from None


def _moved(node: Node, where: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {name: _moved(child, where) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, where) for child in value]
    return replace(node, value=value, where=where, key=where)


class _Reader:
    """Builds nodes from PyYAML's events, so that limits hold before anything is expanded."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node | None] = {}
        self.events: Iterator[Event] = iter(())
        self.count = 0

    def read(self, text: str | bytes) -> Node:
        text = self.decoded(text)
        try:
            self.events = yaml.parse(text, Loader=yaml.SafeLoader)
            next(self.events), next(self.events)
            root = self.node(next(self.events), 0)
            next(self.events)
            if not isinstance(next(self.events), StreamEndEvent):
                self.fail(f"{self.source}:1:1", "a recipe is one document; this file holds several ('---')")
        except StopIteration:
            self.fail(f"{self.source}:1:1", "the file holds no value")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.fail(self.at(mark) if mark else f"{self.source}:1:1", _syntax(error))
        except yaml.YAMLError as error:
            self.fail(f"{self.source}:1:1", " ".join(str(error).split()))
        if self.problems:
            raise RecipeError(self.problems)
        return root

    def decoded(self, text: str | bytes) -> str:
        if len(text) > MAX_BYTES:
            self.fail(f"{self.source}:1:1", f"the file has {len(text):,} bytes; a recipe has at most {MAX_BYTES:,}")
        decoded = self.utf8(text) if isinstance(text, bytes) else text
        bad = FORBIDDEN.search(decoded)
        if bad:
            name = "a byte order mark" if bad.group() == "\ufeff" else f"the character U+{ord(bad.group()):04X}"
            self.fail(self.place_in(decoded[: bad.start()]), f"{name} may not stand in a recipe; delete it")
        return decoded

    def utf8(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(self.place_in(text[: error.start].decode("utf-8", "replace")), "not UTF-8 text")

    def place_in(self, before: str) -> str:
        line = before.count("\n")
        return f"{self.source}:{line + 1}:{len(before) - (before.rfind(chr(10)) + 1) + 1}"

    def at(self, mark: Any) -> str:
        return f"{self.source}:{mark.line + 1}:{mark.column + 1}"

    def fail(self, where: str, message: str) -> NoReturn:
        raise RecipeError([*self.problems, Problem(where, "", message)])

    def tell(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, "", message))

    def node(self, event: Event, depth: int) -> Node:
        where = self.at(event.start_mark)
        if depth > MAX_DEPTH:
            self.fail(where, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, AliasEvent):
            node = self.alias(event, where, depth)
        else:
            anchor = getattr(event, "anchor", None)
            if anchor:
                self.anchors[anchor] = None  # not complete yet: an alias inside it would never end
            node = self.fresh(event, where, depth)
            if anchor:
                self.anchors[anchor] = node
        return node

    def fresh(self, event: Event, where: str, depth: int) -> Node:
        self.grow(1, where)
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.tell(where, _tag(tag))
        if isinstance(event, MappingStartEvent):
            return self.mapping(where, depth)
        if isinstance(event, SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self.events), SequenceEndEvent):
                items.append(self.node(inner, depth + 1))
            return _sized(items, where, items)
        assert isinstance(event, ScalarEvent)
        self.printable(event.value, where)
        plain = event.implicit[0] and not event.style
        return Node(self.scalar(event.value, where) if plain else event.value, where)

    def alias(self, event: AliasEvent, where: str, depth: int) -> Node:
        name = str(event.anchor)
        if name not in self.anchors:
            self.fail(where, f"no value is called '&{name}' above this place")
        known = self.anchors[name]
        if known is None:
            self.fail(where, f"'*{name}' stands inside the value that it repeats")
        if depth + known.depth > MAX_DEPTH:
            self.fail(where, f"nested more than {MAX_DEPTH} levels deep")
        self.grow(known.size, where)
        return replace(known, where=where)

    def grow(self, nodes: int, where: str) -> None:
        self.count += nodes
        if self.count > MAX_NODES:
            self.fail(where, f"more than {MAX_NODES:,} values, repeated ones (*alias) counted each time")

    def mapping(self, where: str, depth: int) -> Node:
        children: dict[str, Node] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            place = self.at(event.start_mark)
            name = self.key(event, place, depth)
            child = replace(self.node(next(self.events), depth + 1), key=place)
            if name is None:
                continue
            if name in children:
                self.tell(place, f"the key '{name}' stands here for the second time (first at {children[name].place})")
            children.setdefault(name, child)
        return _sized(children, where, list(children.values()))

    def key(self, event: Event, place: str, depth: int) -> str | None:
        if not isinstance(event, ScalarEvent):
            self.node(event, depth + 1)
            self.tell(place, "a key must be a text")
            return None
        if event.tag is not None:
            self.tell(place, _tag(event.tag))
            return None
        name = event.value
        self.printable(name, place)
        if not event.style:
            if name == "<<":
                self.tell(place, "'<<' may not stand in a recipe; use 'extends:' or write the keys out")
                return None
            before = len(self.problems)
            value = self.scalar(name, place)
            if len(self.problems) > before:
                return None
            if not isinstance(value, str):
                self.tell(place, f"a key must be a text, found {name or 'nothing'}")
                return None
        return name

    def printable(self, text: str, where: str) -> None:
        bad = FORBIDDEN.search(text)  # by an escape in double quotes
        if bad:
            self.tell(where, f"the character U+{ord(bad.group()):04X} may not stand in a recipe, not even escaped")

    def scalar(self, text: str, where: str) -> Scalar:
        if text in WORDS:
            return WORDS[text]
        if AMBIGUOUS.fullmatch(text):
            self.tell(where, f"'{text}' is a number to some readers and octal or a text to others; write it in decimal")
        elif NOT_FINITE.fullmatch(text):
            self.tell(where, f"numbers must be finite, found {text}")
        elif INTEGER.fullmatch(text):
            if len(text) > 18:
                self.tell(where, f"the integer {text[:12]}… is too large")
                return 0
            return int(text)
        elif NUMBER.fullmatch(text):
            if not math.isfinite(number := float(text)):
                self.tell(where, f"numbers must be finite, {text[:20]} is too large")
                return 0.0
            return number
        return text


def _sized(value: list[Node] | dict[str, Node], where: str, children: list[Node]) -> Node:
    size = 1 + sum(child.size for child in children)
    depth = 1 + max((child.depth for child in children), default=0)
    return Node(value, where, size=size, depth=depth)


def _tag(tag: str) -> str:
    return f"tags such as '{tag.replace('tag:yaml.org,2002:', '!!')}' may not stand in a recipe"


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "cannot be read")
    if "\\t" in problem:
        return "a tab stands where YAML wants spaces"
    context = f" {error.context}" if error.context and error.problem else ""
    return f"not YAML: {problem}{context}"


class _Dumper(yaml.SafeDumper):
    """Writes texts so that `parse` reads them back as texts."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a repeated value out each time."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    plain = _Reader("").scalar(value, "") if value else None
    quoted = '"' if plain != value or AMBIGUOUS.fullmatch(value) or NOT_FINITE.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quoted)


def _list(dumper: yaml.SafeDumper, value: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
    short = not any(isinstance(item, (dict, list, tuple)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)


def dump(value: Mapping[str, Any]) -> str:
    """YAML text of JSON values, which `parse` reads back as the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
