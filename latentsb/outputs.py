"""What commands on a run leave behind: samples, and a JSON of the protocol beside."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import latentsb
from latentsb.autoencoder import Autoencoder
from latentsb.disk import disk_error, write_text
from latentsb.errors import DataError
from latentsb.experiment import Experiment
from latentsb.generate import labels_of, partners, sample, together
from latentsb.pictures import from_uint8, save_image, show
from latentsb.registry import describe
from latentsb.resized import is_resized, positions_of
from latentsb.results import ACROSS, SHOWN, Samples
from latentsb.run import Run
from latentsb.solvers.base import Solver

__all__ = ["SampleFolder", "make", "protocol", "sample_folder", "write_json"]

PROTOCOL, TABLE, GRID, PAIRS = "samples.json", "samples.npz", "grid.png", "pairs.png"
FREE = frozenset(("run", "seed", "python"))
"""Facts in which the samples of one folder may differ: the name of the run is where it lies."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of it."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def protocol(run: Run, experiment: Experiment, **facts: Any) -> dict[str, Any]:
    """Everything that a figure or a picture depends on.

    Args:
        run: whose weights were used.
        experiment: as it was loaded.
        facts: of the command itself.
    """
    return {
        "run": run.path.name,
        "step": experiment.step,
        "images_seen": experiment.seen,
        "weights": experiment.weights,
        **facts,
        "latentsb": latentsb.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": experiment.device.type,
    }


@dataclass(frozen=True)
class SampleFolder:
    """Where samples lie.

    Args:
        path: the folder.
        samples: those asked for, shape (N, …), as written (images are quantised to 8 bits).
        fresh: how many were drawn now; the others lay there already.
        protocol: the content of `samples.json`.
        pairs: the picture of x1, sample and x0, where the data has pairs of pictures.
    """

    path: Path
    samples: Tensor = field(repr=False)
    fresh: int
    protocol: dict[str, Any]
    pairs: Path | None = None


def sample_folder(
    run: Run,
    experiment: Experiment,
    n: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    solver: Solver | None = None,
    guidance: float = 1.0,
    label: int | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> SampleFolder:
    """Draw samples `seed … seed + n − 1` into a folder, one PNG each, or all in one `samples.npz`.

    Pictures that lie there already under the same protocol are kept, so an interrupted command goes on where it
    stopped, and a larger n adds to a smaller one. Beside pictures made from pairs of the data lies `pairs.png`, whose
    rows are x1, the sample and x0.

    Raises:
        ArgumentError: if the label is none of the classes.
        DataError: if the folder holds samples of another protocol; names what differs.
        DiskError: if it cannot be written.
    """
    solver = solver or experiment.solver
    batch = batch or together(experiment.autoencoder.images.numel)
    asked = {"solver": describe(solver), "guidance": guidance, "label": label} | shape_of(experiment)
    labels_of(experiment.bridge, (), label)
    folder = folder or run.path / "samples" / folder_name(experiment, asked)
    facts = protocol(run, experiment, **asked, seed=seed)
    agree(folder, facts)
    make(folder)
    write_json(folder / PROTOCOL, previous(folder) | facts)
    held = held_seeds(folder)
    missing = [s for s in range(seed, seed + n) if s not in held]
    pictures = are_pictures(experiment.autoencoder)
    # Pictures are kept as they come, so that a long command can be interrupted; the rest is small and comes at once.
    chunk = batch if pictures else max(1, len(missing))
    how: dict[str, Any] = {"label": label, "solver": solver, "guidance": guidance, "batch": batch, "progress": progress}
    try:
        for first in range(0, len(missing), chunk):
            found = sample(experiment, missing[first : first + chunk], **how)
            facts |= {"calls": found.calls, "notes": list(found.notes)}
            keep(folder, found, pictures)
    except KeyboardInterrupt as stop:
        drawn = len(held_seeds(folder).intersection(range(seed, seed + n)))
        stop.add_note(f"interrupted: {drawn:,} of {n:,} drawn in {folder}; the same command goes on")
        raise
    samples = load_samples(folder, range(seed, seed + n))
    save_picture(samples[:SHOWN] if samples.ndim == 4 else samples, folder / GRID)
    pairs = partners(experiment, range(seed, seed + min(n, ACROSS))) if samples.ndim == 4 else None
    shown = None
    if pairs is not None and pairs.x1 is not None:
        shown = folder / PAIRS
        save_picture(torch.cat([pairs.x1, samples[:ACROSS], pairs.x0]), shown, columns=len(pairs.x0))
    content = previous(folder) | facts | {"count": len(held_seeds(folder))}
    write_json(folder / PROTOCOL, content)
    return SampleFolder(folder, samples, len(missing), content, shown)


def shape_of(experiment: Experiment) -> dict[str, Any]:
    """Size and positions where they are not the trained ones, and tiles where images are decoded in them."""
    autoencoder = experiment.autoencoder
    other = is_resized(experiment)
    in_tiles = autoencoder.tiling is not None and autoencoder.tiling.splits(autoencoder.latent.shape, autoencoder.cell)
    return {
        "size": list(autoencoder.images.shape[1:]) if other else None,
        "positions": describe(positions_of(experiment)) if other else None,
        "tiling": describe(autoencoder.tiling) if in_tiles else None,
    }


def folder_name(experiment: Experiment, asked: Mapping[str, Any]) -> str:
    """A name that differs where protocols do: the step, and whatever is not the run's own way of sampling."""
    name = f"step-{experiment.step:09d}"
    if experiment.weights != "ema":
        name += f"-{experiment.weights}"
    if asked["label"] is not None:
        name += f"-label-{asked['label']}"
    if asked["guidance"] != 1.0:
        name += f"-guidance-{asked['guidance']:g}"
    if asked["size"] is not None:
        name += "-" + "x".join(map(str, asked["size"]))
    if asked["positions"] is not None:
        name += f"-{asked['positions']['name']}"
    if asked["solver"] != describe(experiment.solver):
        text = json.dumps(asked["solver"], sort_keys=True, default=str)
        name += f"-{asked['solver']['name']}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name


def are_pictures(autoencoder: Autoencoder) -> bool:
    """Whether a PNG holds a sample: grey or colour, and opacity only where the numbers are known to be pixels."""
    shape = autoencoder.images.shape
    return len(shape) == 3 and (shape[0] in (1, 3) or (shape[0] == 4 and autoencoder.bounded))


def make(folder: Path) -> None:
    """Make a folder.

    Raises:
        DiskError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder, 0) from error


def save_picture(samples: Tensor, path: Path, columns: int | None = None) -> None:
    """Write the picture of samples, whole or not at all."""
    partial = path.with_name(f".{path.name}")
    try:
        show(samples, columns).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path, 0) from error


def keep(folder: Path, found: Samples, pictures: bool) -> None:
    """Write what was drawn: one PNG per seed, or one table together with those that lay there."""
    path = folder / TABLE
    try:
        if pictures:
            for s, picture in zip(found.seeds, found.images, strict=True):
                path = folder / f"{s:06d}.png"
                save_image(picture, path)
            return
        x, seeds = found.images.numpy(), np.asarray(found.seeds)
        if path.exists():
            with np.load(path, allow_pickle=False) as held:
                x, seeds = np.concatenate([held["x"], x]), np.concatenate([held["seed"], seeds])
        order = np.argsort(seeds)
        partial = folder / f".{TABLE}"
        np.savez(partial, x=x[order], seed=seeds[order])
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path, found.images.nbytes) from error


def held_seeds(folder: Path) -> set[int]:
    """Seeds whose samples lie in the folder."""
    if (folder / TABLE).exists():
        with np.load(folder / TABLE, allow_pickle=False) as held:
            return {int(s) for s in held["seed"]}
    return {int(p.stem) for p in folder.glob("*.png") if p.stem.isdigit()}


def previous(folder: Path) -> dict[str, Any]:
    """The protocol that lies there, or nothing."""
    path = folder / PROTOCOL
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def agree(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to mix samples of two protocols in one folder."""
    asked = json.loads(json.dumps(dict(facts), default=str))
    before = previous(folder)
    hint = "give another folder with --output, or remove that one"
    if not before:
        if folder.exists() and held_seeds(folder):
            raise DataError(f"{folder} holds pictures but no {PROTOCOL} that says what they are; {hint}")
        return
    for key in asked:
        if key not in FREE and before.get(key) != asked[key]:
            raise DataError(
                f"{folder} holds samples of another protocol: {key} was {before.get(key)!r}, now {asked[key]!r}; {hint}"
            )


def load_samples(folder: Path, seeds: range) -> Tensor:
    """Read samples back as they were written, shape (n, …)."""
    if (folder / TABLE).exists():
        with np.load(folder / TABLE, allow_pickle=False) as held:
            asked = (held["seed"] >= seeds.start) & (held["seed"] < seeds.stop)
            return torch.from_numpy(held["x"][asked])
    from PIL import Image

    def read(s: int) -> np.ndarray:
        with Image.open(folder / f"{s:06d}.png") as image:
            pixels = np.asarray(image)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    return torch.stack([from_uint8(read(s)) for s in seeds])
