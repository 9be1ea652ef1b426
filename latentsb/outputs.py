"""What commands on a run leave behind: folders of pictures, grids, and a JSON of the protocol beside each."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import latentsb
from latentsb.errors import DataError
from latentsb.experiment import Experiment
from latentsb.generate import Samples, interpolate, reconstruct, sample
from latentsb.metrics.similarity import mse, psnr, ssim
from latentsb.pictures import from_uint8, save_image, show
from latentsb.randomness import numpy_generator
from latentsb.registry import describe
from latentsb.run import Run
from latentsb.solvers.base import Solver
from latentsb.tensors import Condition

__all__ = [
    "Inputs",
    "SampleFolder",
    "inputs_of",
    "protocol",
    "sample_folder",
    "write_interpolation",
    "write_json",
    "write_reconstruction",
]

SHOWN = 64


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(partial, path)


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
        "device": str(experiment.device),
    }


@dataclass(frozen=True)
class SampleFolder:
    """Where samples lie.

    Args:
        path: the folder.
        samples: all of them, shape (N, …), as written (images are quantised to 8 bits).
        fresh: how many were drawn now; the others lay there already.
        protocol: the content of `samples.json`.
    """

    path: Path
    samples: Tensor
    fresh: int
    protocol: dict[str, Any]


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
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> SampleFolder:
    """Draw samples `seed … seed + n − 1` into a folder, one PNG each (vectors: one `samples.npz`).

    Pictures that lie there already under the same protocol are kept, so an interrupted command goes on where it
    stopped, and a larger n adds to a smaller one.

    Raises:
        DataError: if the folder holds samples of another protocol; names what differs.
    """
    solver = solver or experiment.solver
    facts = protocol(run, experiment, solver=describe(solver), guidance=guidance, label=label, seed=seed)
    folder = folder or run.path / "samples" / f"step-{experiment.step:09d}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    agree(folder / "samples.json", facts)
    pictures = len(experiment.autoencoder.images.shape) == 3
    held_already = held_seeds(folder)
    missing = [s for s in range(seed, seed + n) if s not in held_already]
    # Pictures are kept as they come, so that a long command can be interrupted; vectors are small and come at once.
    chunk = batch if pictures else max(1, len(missing))
    for first in range(0, len(missing), chunk):
        seeds = missing[first : first + chunk]
        cond = None if label is None else Condition({"label": torch.full((len(seeds),), label)})
        found = sample(experiment, seeds, cond=cond, solver=solver, guidance=guidance, batch=batch, progress=progress)
        facts |= {"calls": found.calls, "notes": list(found.notes)}
        write_json(folder / "samples.json", facts)
        keep(folder, found, pictures)
    held = load_samples(folder, seed, n)
    show(held[:SHOWN]).save(folder / "grid.png")
    facts = previous(folder / "samples.json") | facts | {"count": len(held_seeds(folder))}
    write_json(folder / "samples.json", facts)
    return SampleFolder(folder, held, len(missing), facts)


def keep(folder: Path, found: Samples, pictures: bool) -> None:
    """Write what was drawn: one PNG per seed, or one table of vectors with those that lay there."""
    if pictures:
        for s, picture in zip(found.seeds, found.images, strict=True):
            save_image(picture, folder / f"{s:06d}.png")
        return
    path, partial = folder / "samples.npz", folder / ".samples.npz"
    x, seeds = found.images.numpy(), np.asarray(found.seeds)
    if path.exists():
        with np.load(path, allow_pickle=False) as held:
            x, seeds = np.concatenate([held["x"], x]), np.concatenate([held["seed"], seeds])
    order = np.argsort(seeds)
    np.savez(partial, x=x[order], seed=seeds[order])
    os.replace(partial, path)


def held_seeds(folder: Path) -> set[int]:
    """Seeds whose samples lie in the folder."""
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz", allow_pickle=False) as held:
            return {int(s) for s in held["seed"]}
    return {int(p.stem) for p in folder.glob("*.png") if p.stem.isdigit()}


def previous(path: Path) -> dict[str, Any]:
    """The protocol that lies there, or nothing."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def agree(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to mix samples of two protocols in one folder."""
    asked = json.loads(json.dumps(dict(facts), default=str))
    before = previous(path)
    differing = [k for k, v in asked.items() if before and k != "seed" and before.get(k) != v]
    if differing:
        key = differing[0]
        raise DataError(
            f"{path.parent} holds samples of another protocol: {key} was {before.get(key)!r}, now {asked[key]!r}. "
            "Give another folder with --output, or remove that one."
        )


def load_samples(folder: Path, seed: int, n: int) -> Tensor:
    """Read samples back as they were written, shape (n, …)."""
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz", allow_pickle=False) as held:
            asked = (held["seed"] >= seed) & (held["seed"] < seed + n)
            return torch.from_numpy(held["x"][asked])
    from PIL import Image

    def read(s: int) -> np.ndarray:
        pixels = np.asarray(Image.open(folder / f"{s:06d}.png"))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    return torch.stack([from_uint8(read(s)) for s in range(seed, seed + n)])


@dataclass(frozen=True)
class Inputs:
    """Images that a command works on.

    Args:
        images: shape (B, C, H, W) in [-1, 1].
        cond: their conditions, where the data has any.
        names: of each row, for the protocol.
    """

    images: Tensor
    cond: Condition
    names: tuple[str, ...]


def inputs_of(experiment: Experiment, files: Sequence[Path], n: int, seed: int) -> Inputs:
    """The files, read as the run's data was read; without files n samples of the run's own data.

    Raises:
        DataError: if a file cannot be read, or the run's data are not images of one form.
    """
    if files:
        opened = [experiment.source.open(f) for f in files]
        return Inputs(torch.stack(opened), Condition(), tuple(map(str, files)))
    total = len(experiment.source)
    if n > total:
        raise DataError(f"the data has {total} samples, {n} were asked for")
    index = np.sort(numpy_generator(seed, "inputs").choice(total, n, replace=False))
    items = experiment.source.read(index)
    used = {name: value for name, value in items.cond.items() if name in experiment.bridge.ends.cond}
    return Inputs(items.x0, Condition(used), tuple(f"data[{i}]" for i in index))


def write_reconstruction(run: Run, experiment: Experiment, inputs: Inputs, mode: str, seed: int) -> dict[str, Any]:
    """Three rows of pictures (original, autoencoder alone, bridge) and a JSON with MSE, PSNR and SSIM of each.

    Figures are means over images in [0, 1]; MSE of the mean image of the inputs stands beside as the floor that a
    decoder without any code reaches.
    """
    made = reconstruct(experiment, inputs.images, mode=mode, seed=seed, cond=inputs.cond)
    mean_image = made.originals.mean(0, keepdim=True).expand_as(made.originals)
    rows = {"autoencoder alone": made.autoencoder, "bridge": made.bridge, "mean image (floor)": mean_image}
    figures = {name: similarity(made.originals, row) for name, row in rows.items()}
    folder = run.path / "reconstructions"
    folder.mkdir(exist_ok=True)
    stem = f"step-{experiment.step:09d}-{mode}"
    shown = torch.cat([made.originals[:12], made.autoencoder[:12], made.bridge[:12]])
    show(shown, columns=min(12, len(inputs.names))).save(folder / f"{stem}.png")
    facts = protocol(
        run, experiment, mode=mode, seed=seed, calls=made.calls, images=len(inputs.names), inputs=inputs.names[:64]
    )
    content = facts | {"figures": figures, "picture": str(folder / f"{stem}.png")}
    write_json(folder / f"{stem}.json", content)
    return content


def similarity(originals: Tensor, made: Tensor) -> dict[str, float]:
    """Mean MSE on [0, 1], PSNR in dB and, for images, SSIM."""
    a, b = (originals + 1) / 2, (made + 1) / 2
    figures = {"mse": float(mse(a, b).mean()), "psnr": float(psnr(a, b, data_range=1.0).mean())}
    if originals.ndim == 4:
        figures["ssim"] = float(ssim(a, b, data_range=1.0).mean())
    return figures


def write_interpolation(
    run: Run, experiment: Experiment, inputs: Inputs, frames: int, mode: str, seed: int
) -> dict[str, Any]:
    """One row of frames per pair between its two originals, and a JSON of the protocol."""
    made = interpolate(experiment, inputs.images, frames=frames, mode=mode, seed=seed, cond=inputs.cond)
    folder = run.path / "interpolations"
    folder.mkdir(exist_ok=True)
    stem = f"step-{experiment.step:09d}-{mode}"
    rows = torch.cat([made.ends[:, :1], made.frames, made.ends[:, 1:]], dim=1)
    show(rows.flatten(0, 1), columns=frames + 2).save(folder / f"{stem}.png")
    facts = protocol(run, experiment, mode=mode, seed=seed, calls=made.calls, along=made.along, frames=frames)
    content = facts | {"inputs": inputs.names, "picture": str(folder / f"{stem}.png")}
    write_json(folder / f"{stem}.json", content)
    return content
