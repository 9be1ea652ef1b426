"""JSON Schema of recipes, from which editors complete keys and mark mistakes while one types.

It is written from the same signatures that bind a recipe. Keys that `latentsb check` would miss are not required
here: a recipe that extends another gives only what it changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from latentsb.recipe.annotations import Wrong, adapter, bare, holds_part, members, plain, slot_of
from latentsb.recipe.binding import MISSING, Key, keys_of, part_of
from latentsb.recipe.document import PARTS
from latentsb.recipe.kinds import about, registries
from latentsb.recipe.sections import Preview, Seed, TrainSettings
from latentsb.registry import Registry, registry_of

__all__ = ["recipe_schema"]

Schema = dict[str, Any]
TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
FROM_RUN: Schema = {
    "type": "object",
    "description": "a trained part of a run",
    "properties": {
        "run": {"type": "string"},
        "part": {"type": "string"},
        "weights": {"enum": ["ema", "model"]},
    },
    "required": ["run", "part"],
    "additionalProperties": False,
}


def recipe_schema(imports: Iterable[str | Path] = ()) -> Schema:
    """The schema of a whole recipe with every part that is known.

    Args:
        imports: files and modules with further parts.

    Raises:
        RecipeError: if one of them cannot be imported.
    """
    kinds = registries(imports)
    train = _section(TrainSettings)
    stage = {**train, "properties": {"train": {"type": "string"}, **train["properties"]}, "required": ["train"]}
    properties: Schema = {
        "extends": {"type": "string", "description": "a file, or a shipped recipe, whose keys stand below these"},
        "imports": {**TEXTS, "description": "files, relative to this one, or modules with parts of your own"},
        "name": {"type": "string", "description": "of the experiment; the file's name if none"},
        "about": {"type": "string", "description": "one line for `latentsb list recipes`"},
        "seed": {**adapter(Seed).json_schema(), "default": 0},
        **{kind: {"$ref": f"#/$defs/{kind}"} for kind in PARTS},
        "latents": {"$ref": "#/$defs/store", "description": "how the cache keeps latents"},
        "conditions": {**TEXTS, "description": "conditions of the data that the bridge is given; none by default"},
        "held_out": {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"$ref": "#/$defs/data"}, {"type": "null"}],
            "description": "samples kept from training: how many, which share, or other data; none by default",
        },
        "train": train,
        "stages": {"type": "array", "items": stage, "minItems": 1},
        "preview": _section(Preview),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "latentsb recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {kind: _kind(registry) for kind, registry in kinds.items()},
    }


def _section(model: type[BaseModel]) -> Schema:
    return {
        "type": "object",
        "properties": {name: _key(key) for name, key in keys_of(model).items()},
        "additionalProperties": False,
    }


def _kind(registry: Registry[Any]) -> Schema:
    words: list[str] = []
    forms: list[Schema] = []
    for name in registry.names():
        try:
            cls = registry[name]
        except ImportError:  # a part whose optional dependency is missing cannot be described
            continue
        words.append(name)
        keys = {key: _key(entry) for key, entry in keys_of(cls).items()}
        form = {"type": "object", "description": about(registry, name).line, "additionalProperties": False}
        # Weights from a run may stand beside any part's own keys.
        origin = FROM_RUN["properties"]
        forms.append({**form, "properties": {"name": {"const": name}, **origin, "from": FROM_RUN, **keys}})
    return {"anyOf": [{"enum": words}, *forms, FROM_RUN]}


def _key(key: Key) -> Schema:
    schema = _annotation(key.annotation)
    if key.about:
        schema = {**schema, "description": key.about}
    if key.default is MISSING:
        return schema
    slots = [slot for member in members(key.annotation) if (slot := slot_of(member)) is not None]
    value = part_of(key.default, *slots[0]) if slots and key.default is not None else key.default
    try:
        return {**schema, "default": plain(value)}
    except TypeError:  # a third party's default that no recipe can hold; the binder tells whoever uses that part
        return schema


def _annotation(annotation: Any) -> Schema:
    if not holds_part(annotation):
        try:
            return adapter(annotation).json_schema()
        except Wrong:
            return {}
    options = [_member(bare(member)) for member in members(annotation)]
    return options[0] if len(options) == 1 else {"anyOf": options}


def _member(annotation: Any) -> Schema:
    if annotation is type(None):
        return {"type": "null"}
    slot = slot_of(annotation)
    if slot is not None:
        registry = registry_of(slot[0])
        return {"$ref": f"#/$defs/{registry.kind}"} if registry is not None else {}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _section(annotation)
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return {"type": "object", "additionalProperties": _annotation(args[1])}
    return {"type": "array", "items": _annotation(args[0])} if args else {}
