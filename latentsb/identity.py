"""Whether a run folder belongs to a recipe: what decides a run's numbers, and what may change between two starts."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from latentsb.errors import CheckpointError
from latentsb.recipe import Recipe

__all__ = ["IMPORTS", "check_imports", "compare", "compare_imports", "identity"]

IMPORTS = "imports"
# Keys that may change between two starts of a run: they decide how long it goes on and what is seen of it.
FREE = re.compile(
    r"(train|stages\.\d+)\.(images|max_time|log_every|save_every|preview_every|keep|workers|max_bad)|preview(\..*)?|stages"
)


def identity(recipe: Recipe) -> str:
    """sha256 of what decides a run's numbers: the resolved recipe without the keys that may change between starts."""
    kept = {key: value for key, value in recipe.resolved().items() if key not in ("name", "about", "imports")}
    if recipe.held_out is None:  # a run that was begun before there was this key goes on
        del kept["held_out"]
    if kept["latents"] == {"name": "auto", "posterior": False}:  # so does one that was begun before this one
        del kept["latents"]
    stages = [{"train": s.train, **s.settings.model_dump(mode="json")} for s in recipe.stages]
    kept.update(stages=stages, imports=dict(recipe.hashes))
    essence = {k: v for k, v in kept.items() if k not in ("train", "preview")}
    for i, stage in enumerate(stages):
        essence["stages"][i] = {k: v for k, v in stage.items() if not FREE.fullmatch(f"stages.{i}.{k}")}
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()


def compare(folder: Path, recipe: Recipe, stored: Recipe) -> None:
    """Compare what is asked with what a run was begun with.

    Args:
        folder: of the run.
        recipe: what is asked.
        stored: the run's own.

    Raises:
        CheckpointError: if they differ in what decides the numbers; names the keys.
    """
    differing = {k: v for k, v in recipe.differences(stored).items() if not FREE.fullmatch(k)}
    kept, ours = stored.stages, recipe.stages
    if len(kept) != len(ours) or any(a.train != b.train for a, b in zip(kept, ours, strict=False)):
        differing["stages"] = ([s.train for s in ours], [s.train for s in kept])
    else:
        for i, (own, old) in enumerate(zip(ours, kept, strict=True)):
            new, was = own.settings.model_dump(), old.settings.model_dump()
            keys = (f"stages.{i}.{k}" for k in new if new[k] != was[k] and f"train.{k}" not in differing)
            for key in keys:
                name = key.rpartition(".")[2]
                if not FREE.fullmatch(key):
                    differing[key] = (new[name], was[name])
    if differing:
        told = "; ".join(f"{key}: asked {ours!r}, trained with {was!r}" for key, (ours, was) in differing.items())
        raise CheckpointError(
            f"{folder} was trained with another recipe ({told}); change it back, or name another folder with -o"
        )


def compare_imports(folder: Path, recipe: Recipe) -> None:
    """Compare the files that a recipe imports with those that a run was begun with.

    Raises:
        CheckpointError: if one was changed.
    """
    listed = folder / IMPORTS / "sha256.json"
    hashes = json.loads(listed.read_text()) if listed.is_file() else {}
    changed = sorted(name for name, digest in recipe.hashes.items() if hashes.get(name, digest) != digest)
    if changed:
        raise CheckpointError(
            f"{', '.join(changed)}: the imported file has changed since {folder} began; "
            "change it back, or begin another run folder with -o"
        )


def check_imports(folder: Path) -> None:
    """Compare the stored imports with their hashes.

    Raises:
        CheckpointError: if one is missing or was changed.
    """
    listed = folder / IMPORTS / "sha256.json"
    for name, digest in (json.loads(listed.read_text()) if listed.exists() else {}).items():
        path = folder / IMPORTS / name
        if name.endswith(".py") and (not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest):
            raise CheckpointError(f"{path} is not the file that the run was trained with")
