"""Kinds of parts: the modules whose import brings every registry, and what is known about a part from its class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsb.errors import Problem, RecipeError
from latentsb.recipe.annotations import expected, found, members, plain, slot_of
from latentsb.recipe.binding import MISSING, Key, keys_of, part_of
from latentsb.recipe.imports import Import, load_import
from latentsb.registry import REGISTRIES, Registry, registry_of

__all__ = ["CONTRACTS", "About", "about", "contracts", "registries"]

CONTRACTS = (
    "latentsb.data.source",
    "latentsb.data.degradations",
    "latentsb.autoencoder",
    "latentsb.bridge",
    "latentsb.solvers.base",
    "latentsb.networks.base",
    "latentsb.networks.positions",
    "latentsb.process.reference",
    "latentsb.process.coupling",
    "latentsb.process.preconditioning",
    "latentsb.process.statecost",
    "latentsb.process.times",
    "latentsb.process.distances",
    "latentsb.process.reversal",
    "latentsb.laws",
    "latentsb.channels",
    "latentsb.prior",
    "latentsb.origins",
    "latentsb.guesses",
    "latentsb.divergence",
    "latentsb.freezing",
    "latentsb.normalisers",
    "latentsb.stores",
    "latentsb.tiles",
    "latentsb.blends",
    "latentsb.endpoints",
    "latentsb.directions",
    "latentsb.metrics.base",
    "latentsb.features",
    "latentsb.metrics.perceptual",
)


def contracts() -> None:
    """Import the contracts, each of which brings its registry."""
    for module in CONTRACTS:
        importlib.import_module(module)


def registries(imports: Iterable[str | Path] = ()) -> dict[str, Registry[Any]]:
    """All kinds of parts.

    Args:
        imports: files and modules with further parts.

    Raises:
        RecipeError: if one of them cannot be imported.
    """
    contracts()
    problems: list[Problem] = []
    for entry in imports:
        try:
            load_import(Import.of(str(entry), Path(), f"--import {entry}"))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return dict(REGISTRIES)


@dataclass(frozen=True)
class About:
    """What a part's class says about itself.

    Args:
        name: its word.
        line: first line of its docstring.
        source: the paper, from the line that begins `Source:`; may be empty.
        signature: the keys with their defaults, or with what they expect.
        where: module of the class.
    """

    name: str
    line: str
    source: str
    signature: str
    where: str


def about(registry: Registry[Any], name: str) -> About:
    """Describe a part; importing it is part of that."""
    cls = registry[name]
    text = inspect.getdoc(cls) if "__doc__" in vars(cls) else ""
    paragraphs = [" ".join(block.split()) for block in (text or "").split("\n\n")]
    source = next((block.removeprefix("Source:").strip() for block in paragraphs if block.startswith("Source:")), "")
    signature = ", ".join(_shown(key, entry) for key, entry in keys_of(cls).items())
    return About(name, paragraphs[0] if paragraphs else "", source, signature, cls.__module__)


def _shown(name: str, key: Key) -> str:
    slots = [slot for member in members(key.annotation) if (slot := slot_of(member)) is not None]
    if key.default is MISSING:
        registry = registry_of(slots[0][0]) if slots else None
        return f"{name}: {registry.kind if registry else expected(key.annotation)}"
    value = part_of(key.default, *slots[0]) if slots and key.default is not None else key.default
    word = getattr(value, "name", None)
    return f"{name}={word if slots and word else found(plain(value))}"
