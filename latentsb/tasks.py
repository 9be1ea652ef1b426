"""What commands on images and their codes leave behind: pictures, and a JSON of the protocol beside each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.blends import Blend
from latentsb.bridge import EncodingBridge, require
from latentsb.codefiles import write_codes
from latentsb.codes import Codes, encode, encode_rows
from latentsb.directions import Direction
from latentsb.edits import STRENGTHS, edit, keeps_endpoint
from latentsb.endpoints import EndpointBridge
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.experiment import Experiment
from latentsb.generate import Mode, blocks, decoding, reconstruct, together
from latentsb.latents import held_latents_of, latents_of
from latentsb.metrics.similarity import mse, psnr, ssim
from latentsb.outputs import make, protocol, write_json
from latentsb.pictures import show
from latentsb.randomness import numpy_generator
from latentsb.registry import describe
from latentsb.results import ACROSS, Reconstruction, Result
from latentsb.run import Run
from latentsb.tensors import Condition
from latentsb.walks import blend_of, interpolate, interpolate_sheet, walker

__all__ = [
    "Decoding",
    "Inputs",
    "inputs_of",
    "similarity",
    "write_code_file",
    "write_edits",
    "write_interpolation",
    "write_reconstruction",
]

Decoding = Literal["faithful", "perceptual", "both"]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Inputs:
    """Samples that a command works on.

    Args:
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        cond: their conditions, where the data has any.
        names: of each row, for the protocol.
    """

    images: Tensor
    cond: Condition
    names: tuple[str, ...]


def inputs_of(experiment: Experiment, files: Sequence[Path], n: int, seed: int) -> Inputs:
    """The files, read as the run's data was read; without files n random samples of the run's own data.

    Raises:
        ArgumentError: if the data has fewer samples.
        DataError: if a file cannot be read, or the run's data are no images.
    """
    if files:
        return Inputs(torch.stack(opened_files(experiment, files)), Condition(), tuple(map(str, files)))
    total = len(experiment.source)
    if n > total:
        raise ArgumentError("number", f"found {n}, expected at most {total}: so many samples has the data")
    index = np.sort(numpy_generator(seed, "inputs").choice(total, n, replace=False))
    items = experiment.source.read(index)
    used = {name: value for name, value in items.cond.items() if name in experiment.bridge.ends.cond}
    return Inputs(items.x0, Condition(used), tuple(f"data[{i}]" for i in index))


def opened_files(experiment: Experiment, files: Sequence[Path]) -> list[Tensor]:
    """The files as the run's data; all that cannot be read are told at once."""
    opened, faults = [], []
    for file in files:
        try:
            opened.append(experiment.source.open(file))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(dict.fromkeys(faults)))
    return opened


def write_reconstruction(
    run: Run,
    experiment: Experiment,
    inputs: Inputs,
    *,
    mode: Decoding = "faithful",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write rows of pictures (original, autoencoder alone, bridge) and a JSON with the figures of each.

    Figures are those of `similarity`; the mean image of the inputs stands beside, as the floor that a decoder
    without any code reaches. `both` decodes each code in both ways, the perceptual row below the faithful one.

    Args:
        run: whose weights are used.
        experiment: as it was loaded.
        inputs: to reconstruct.
        mode: a way of decoding, or `both`.
        seed: of the first perceptual draw.
        progress: called with the number of images just finished, of twice as many for `both`.

    Returns:
        The content of the JSON, and `picture`, the path of the picture.
    """
    modes: tuple[Mode, ...] = ("faithful", "perceptual") if mode == "both" else (mode,)
    made = {
        way: reconstruct(experiment, inputs.images, mode=way, seed=seed, cond=inputs.cond, progress=progress)
        for way in modes
    }
    first = made[modes[0]]
    rows = {"autoencoder alone": first.autoencoder}
    rows |= {"bridge" if len(made) == 1 else f"bridge, {way}": found.bridge for way, found in made.items()}
    rows["mean image (floor)"] = first.originals.mean(0, keepdim=True).expand_as(first.originals)
    figures = {name: similarity(first.originals, row) for name, row in rows.items()}
    solvers = {way: describe(decoding(way, experiment.solver)) for way in modes}
    calls = {way: found.calls for way, found in made.items()}
    one = len(modes) == 1
    facts = protocol(run, experiment, mode=mode, seed=seed, solver=solvers[modes[0]] if one else solvers)
    facts |= endpoint_of(experiment) | {"calls": calls[modes[0]] if one else calls}
    facts |= {"images": len(first), "inputs": inputs.names, "figures": figures}
    stem = stem_of(run, experiment, "reconstructions", mode)
    if one:
        first.save(stem.with_suffix(".png"))
    else:
        side_by_side(list(made.values())).save(stem.with_suffix(".png"))
    write_json(stem.with_suffix(".json"), facts)
    return facts | {"picture": stem.with_suffix(".png")}


def side_by_side(found: Sequence[Reconstruction]) -> Any:
    """One picture of several decodings of the same images: originals, autoencoder alone, a row for each decoding."""
    first = found[0]
    if first.originals.ndim != 4:
        return show(torch.cat([made.bridge for made in found]), beside=first.originals)
    rows = [row[:ACROSS] for row in (first.originals, first.autoencoder, *(made.bridge for made in found))]
    return show(torch.cat(rows), columns=len(rows[0]))


def similarity(originals: Tensor, made: Tensor) -> dict[str, float | None]:
    """Mean MSE; of images on [0, 1], with mean PSNR in dB (None if one is equal to its original) and mean SSIM."""
    if originals.ndim != 4:
        return {"mse": float(mse(originals, made).mean())}
    a, b = (originals + 1) / 2, (made + 1) / 2
    decibels = float(psnr(a, b, data_range=1.0).mean())
    return {
        "mse": float(mse(a, b).mean()),
        "psnr": decibels if math.isfinite(decibels) else None,
        "ssim": float(ssim(a, b, data_range=1.0).mean()),
    }


def write_interpolation(
    run: Run,
    experiment: Experiment,
    inputs: Inputs,
    *,
    frames: int = 9,
    grid: tuple[int, int] | None = None,
    mode: Mode = "perceptual",
    blend: Blend | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write one row of frames per pair between its two originals, or a sheet per four, and a JSON of the protocol.

    Args:
        run: whose weights are used.
        experiment: as it was loaded.
        inputs: pairs, or fours.
        frames: per pair.
        grid: rows and columns of a sheet, in place of pairs.
        mode: how codes are decoded.
        blend: see `latentsb.walks.interpolate`.
        seed: of the first pair's noise.
        progress: called with the number of pairs or sheets just finished.

    Returns:
        The content of the JSON, and `picture`, the path of the picture.
    """
    how: dict[str, Any] = {"mode": mode, "blend": blend, "seed": seed, "cond": inputs.cond, "progress": progress}
    if grid is None:
        made: Any = interpolate(experiment, inputs.images, frames=frames, **how)
    else:
        made = interpolate_sheet(experiment, inputs.images, rows=grid[0], columns=grid[1], **how)
    chosen = describe(blend_of(experiment.bridge, blend))
    name = mode if made.along == "z" else made.along
    if chosen != describe(blend_of(experiment.bridge, None)):
        name += f"-{chosen['name']}"
    facts = protocol(run, experiment, along=made.along, mode=mode if made.along == "z" else None, seed=seed)
    facts |= {"blend": chosen, "solver": describe(walker(experiment.bridge, mode, experiment.solver))}
    facts |= endpoint_of(experiment) | {"frames": frames if grid is None else list(grid)}
    facts |= {"calls": made.calls, "inputs": inputs.names}
    return kept(run, experiment, made, "interpolations", name if grid is None else f"{name}-grid", facts)


def write_edits(
    run: Run,
    experiment: Experiment,
    inputs: Inputs,
    direction: Direction,
    *,
    strengths: Sequence[float] = STRENGTHS,
    mode: Mode = "perceptual",
    keep_endpoint: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write one row per image (the original, then a column for each strength) and a JSON of the protocol.

    Args:
        run: whose weights are used.
        experiment: as it was loaded.
        inputs: to edit.
        direction: of the attribute.
        strengths: in standard deviations of the codes along it.
        mode: how codes are decoded.
        keep_endpoint: see `latentsb.edits.edit`.
        seed: of the first perceptual draw.
        progress: called with the number of pictures just finished.

    Returns:
        The content of the JSON, and `picture`, the path of the picture.
    """
    bridge = require(experiment.bridge, EncodingBridge, "edit")
    how: dict[str, Any] = {"mode": mode, "keep_endpoint": keep_endpoint, "seed": seed, "progress": progress}
    made = edit(experiment, inputs.images, direction, strengths=strengths, cond=inputs.cond, **how)
    worth = direction.worth
    facts = protocol(run, experiment, attribute=direction.attribute, rule=describe(direction.rule))
    facts |= {"fitted_on": direction.fitted_on, "worth": None if worth is None else vars(worth)}
    facts |= {"strengths": made.strengths, "mode": mode, "seed": seed}
    facts |= {"x1": "kept" if keeps_endpoint(bridge, keep_endpoint) else "made anew"}
    facts |= endpoint_of(experiment) | {"solver": describe(decoding(mode, experiment.solver)), "calls": made.calls}
    facts |= {"places": [round(p, 3) for p in direction.project(made.z).tolist()], "inputs": inputs.names}
    facts |= {"z_moves_by": direction.step.tolist()}
    words = [direction.attribute, direction_word(direction), mode, *(["kept-x1"] if keep_endpoint else [])]
    name = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
    return kept(run, experiment, made, "edits", name, facts)


def write_code_file(
    run: Run,
    experiment: Experiment,
    files: Sequence[Path],
    *,
    split: Literal["train", "held-out"] = "train",
    output: Path | None = None,
    draw: bool = False,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the codes of files, or of all training or held-out data, into one file, and a JSON of the protocol.

    Args:
        run: whose weights are used.
        experiment: as it was loaded.
        files: images; the data if there are none.
        split: which data.
        output: a `.npz` or `.parquet` file; in `codes/` of the run if None.
        draw: codes from their law, in place of the mean.
        seed: of the draws; see `latentsb.codes.encode_rows`.
        batch: rows at a time; changes results by rounding only.
        progress: called with the number of samples just finished.

    Returns:
        The content of the JSON, `path` of the file, and `beside`, what else is told of each sample.
    """
    what = "files" if files else split
    path = output or run.path / "codes" / f"step-{experiment.step:09d}-{what}{'-drawn' if draw else ''}.npz"
    make(path.parent)
    parts: Iterator[Codes]
    if files:
        total, words = len(files), {}
        parts = of_files(experiment, files, draw=draw, seed=seed, batch=batch, progress=progress)
    else:
        source = experiment.source if split == "train" else experiment.held
        if source is None:
            raise CapabilityError("this run holds out no data")
        latents = latents_of(run.path, experiment) if split == "train" else held_latents_of(run.path, experiment)
        total, words = len(source), {name: source.words(name) for name in source.cond}
        how: dict[str, Any] = {"latents": latents, "draw": draw, "seed": seed, "batch": batch, "progress": progress}
        parts = encode_rows(experiment, source, np.arange(total), **how)
    first = next(parts)
    facts = protocol(run, experiment, data=what, codes="drawn" if draw else "mean", seed=seed if draw else None)
    facts |= {"count": total, "z_dim": first.z.shape[1], "words": words}
    write_codes(path, chain([first], parts), total, words, facts)
    write_json(path.with_name(f"{path.name}.json"), facts)
    beside = [*(["name"] if first.names is not None else []), *first.cond]
    return facts | {"path": path, "beside": beside}


def of_files(
    experiment: Experiment,
    files: Sequence[Path],
    *,
    draw: bool,
    seed: int,
    batch: int | None,
    progress: Progress | None,
) -> Iterator[Codes]:
    """Codes of image files, which are opened a batch at a time."""
    for rows in blocks(len(files), batch or together(experiment.source.spec.numel)):
        images = torch.stack(opened_files(experiment, files[rows]))
        z = encode(experiment, images, draw=draw, seed=seed + rows.start)
        yield Codes(z, np.arange(rows.start, rows.stop), {}, tuple(map(str, files[rows])))
        if progress is not None:
            progress(len(images))


def direction_word(direction: Direction) -> str:
    """The word of the rule by which a direction was found."""
    return str(describe(direction.rule)["name"])


def endpoint_of(experiment: Experiment) -> dict[str, Any]:
    """How x1 is found, where the bridge leaves that open."""
    bridge = experiment.bridge
    return {"endpoint": describe(bridge.chosen)} if isinstance(bridge, EndpointBridge) else {}


def kept(
    run: Run, experiment: Experiment, made: Result, folder: str, name: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write a picture and its protocol; the protocol, and `picture`, the path of the picture."""
    stem = stem_of(run, experiment, folder, name)
    made.save(stem.with_suffix(".png"))
    write_json(stem.with_suffix(".json"), facts)
    return facts | {"picture": stem.with_suffix(".png")}


def stem_of(run: Run, experiment: Experiment, folder: str, name: str) -> Path:
    """Where a picture and its protocol go, without the ending; with the endpoint where the bridge leaves it open."""
    make(run.path / folder)
    bridge = experiment.bridge
    if isinstance(bridge, EndpointBridge):
        name += f"-{describe(bridge.chosen)['name']}"
    return run.path / folder / f"step-{experiment.step:09d}-{name}"
