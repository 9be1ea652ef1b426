"""What a trained experiment makes: samples and reconstructions.

All functions work on contracts; a capability that a bridge lacks is a `CapabilityError` that names the bridges
which have it. Row i of every result depends on its own seed, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import Bridge, EncodingBridge, State, require
from latentsb.data.source import Items, Source
from latentsb.endpoints import Endpoint, EndpointBridge
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.guided import Guided
from latentsb.randomness import Draws
from latentsb.results import Reconstruction, Samples
from latentsb.solvers.base import SOLVERS, Solver, counting
from latentsb.tensors import Batch, Condition

__all__ = ["Mode", "decoding", "reconstruct", "sample"]

Progress = Callable[[int], None]
Mode = Literal["faithful", "perceptual"]
"""`faithful` is `E[x0 | z]` in one call, the best decoder in mean squared error; `perceptual` is a draw from
`p(x0 | z)`, sharp, and of twice that error where the bridge is exact."""
ROWS = 256
"""Rows that are computed at a time; changes results by rounding only."""
NUMBERS = 16 * 3 * 256**2
"""Numbers in the images of as many rows as are computed between two words on how far it is."""


@torch.no_grad()
def sample(
    experiment: Experiment,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    cond: Condition | None = None,
    solver: Solver | None = None,
    guidance: float = 1.0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Draw one sample per seed.

    A bridge between two data sets starts from the sample `seed mod size` of the other end, of the held-out data where
    there are any.

    Args:
        experiment: with trained weights.
        seeds: one per sample; equal seeds and conditions give equal samples.
        label: class of all samples; None draws classes evenly (`seed mod classes`) where the bridge has them.
        cond: conditions, one row per seed, in place of a label; what the bridge knows and `cond` lacks is absent.
        solver: another solver than the recipe's.
        guidance: classifier-free guidance scale; 1 is none.
        batch: samples at a time; changes results by rounding only; 16 of 3×256×256, at most 256 of smaller ones, if
            None.
        progress: called with the number of samples just finished.

    Raises:
        ArgumentError: if the label is none of the classes, or nothing is asked for.
        CapabilityError: if a label or guidance is asked of a bridge without conditions.
    """
    if len(seeds) == 0:
        raise ArgumentError("n", "found 0, expected at least one sample")
    solver = solver or experiment.solver
    bridge: Bridge = experiment.bridge
    start = starts(experiment, seeds)
    known = start.cond if label is None else start.cond.without("label")
    given = {**labels_of(bridge, seeds, label).values, **known.values, **(cond.values if cond else {})}
    whole = complete(Condition(given, cond.present if cond else {}), bridge, len(seeds))
    if guidance != 1.0:
        bridge = Guided(bridge, scale=guidance)
    parts: list[Samples] = []
    for rows in blocks(len(seeds), batch or together(experiment.autoencoder.images.numel)):
        chosen = tuple(seeds[rows])
        draws = Draws.seeds(chosen)
        x1 = None if start.x1 is None else start.x1[rows]
        asked = Batch(torch.arange(len(chosen)), x1=x1, cond=whole.select(rows)).to(experiment.device)
        if asked.x1 is not None:
            asked = Batch(asked.index, x1=experiment.autoencoder.encode(asked.x1), cond=asked.cond)
        solved = solver.run(bridge, bridge.start(asked, draws.fork("start")), draws.fork("solve"))
        images = experiment.autoencoder.decode(solved.x)
        parts.append(Samples(images.cpu(), solved.x.cpu(), chosen, whole.select(rows), solved.calls))
        if progress is not None:
            progress(len(chosen))
    return Samples(
        torch.cat([p.images for p in parts]),
        torch.cat([p.latents for p in parts]),
        tuple(seeds),
        whole,
        parts[0].calls,
        notes_of(experiment.bridge),
    )


@torch.no_grad()
def reconstruct(
    experiment: Experiment,
    images: Tensor,
    *,
    mode: Mode = "faithful",
    endpoint: Endpoint | None = None,
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Encode images to z, and decode z: alone, unless the bridge infers its x1 from the data too (`inverts`).

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        mode: see `Mode`.
        endpoint: another way to x1 than the bridge's own, of an `EndpointBridge`.
        seed: of the first row's perceptual draw; row i has seed + i.
        cond: conditions of the rows; what the bridge knows and `cond` lacks is absent.
        solver: of perceptual draws, in place of the recipe's.
        batch: rows at a time; changes results by rounding only; 16 of 3×256×256, at most 256 of smaller ones, if None.
        progress: called with the number of images just finished.

    Raises:
        ArgumentError: if the images have another shape than the data.
        CapabilityError: if the bridge has no encoder, or its code determines x1 and another one is asked for.
    """
    bridge = require(experiment.bridge, EncodingBridge, "reconstruct")
    if endpoint is not None:
        bridge = require(bridge, EndpointBridge, "another endpoint").choosing(endpoint)
    check_shape(experiment, images)
    decoder = decoding(mode, solver or experiment.solver)
    cond = complete(cond or Condition(), bridge, len(images))
    parts: list[Reconstruction] = []
    for rows in blocks(len(images), batch or together(images[0].numel())):
        held = images[rows].to(experiment.device)
        latents = experiment.autoencoder.encode(held)
        z = bridge.encode(latents, None, held)["z"]
        known = cond.select(rows).to(experiment.device).with_(z=z)
        draws = Draws.seeds(range(seed + rows.start, seed + rows.start + len(held)))
        with counting(bridge) as count:
            x = decoder.run(bridge, begun(bridge, known, latents, draws.fork("start")), draws.fork("solve")).x
        decode = experiment.autoencoder.decode
        parts.append(Reconstruction(held.cpu(), decode(latents).cpu(), decode(x).cpu(), z.cpu(), count.calls))
        if progress is not None:
            progress(len(held))

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Reconstruction(whole("originals"), whole("autoencoder"), whole("bridge"), whole("z"), parts[0].calls)


def together(numbers: int) -> int:
    """Images of so many numbers that are computed at a time where nobody says: few of large ones, to tell progress."""
    return max(1, min(ROWS, NUMBERS // numbers))


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover n."""
    return (slice(first, min(first + size, n)) for first in range(0, n, max(1, size)))


def decoding(mode: Mode, solver: Solver) -> Solver:
    """The solver of a way of decoding.

    Raises:
        ArgumentError: for another word.
    """
    if mode not in ("faithful", "perceptual"):
        raise ArgumentError("mode", f"found '{mode}', expected 'faithful' or 'perceptual'")
    return SOLVERS["denoise"]() if mode == "faithful" else solver


def begun(bridge: EncodingBridge, cond: Condition, x0: Tensor | None, draws: Draws) -> State:
    """The state at t = 1 that belongs to a code; x0 plays a part only where the bridge infers x1 from the data."""
    known = x0 if bridge.inverts else None
    return bridge.start(Batch(torch.arange(len(cond["z"])), x0=known, cond=cond), draws)


def starts(experiment: Experiment, seeds: Sequence[int]) -> Batch:
    """What the data brings for new samples: the other ends, and the conditions of their partners."""
    index, source = torch.arange(len(seeds)), other_ends(experiment)
    if not source.two_sided:
        return Batch(index)
    found = partners(experiment, seeds)
    if found is None:
        return Batch(index, x1=source.draw_x1(np.array([s % source.partners for s in seeds]), None, Draws.seeds(seeds)))
    known = {name: value for name, value in found.cond.items() if name in experiment.bridge.ends.cond}
    return Batch(index, x1=found.x1, cond=Condition(known))


def partners(experiment: Experiment, seeds: Sequence[int]) -> Items | None:
    """The pairs of the data whose x1 the samples of these seeds start from; None where the data has no pairs."""
    source = other_ends(experiment)
    if not source.paired:
        return None
    return source.read(np.array([s % source.partners for s in seeds]))


def other_ends(experiment: Experiment) -> Source:
    """Where samples start from if the data has two ends: held-out data, or what was trained on if nothing is kept."""
    return experiment.source if experiment.held is None else experiment.held


def labels_of(bridge: Bridge, seeds: Sequence[int], label: int | None) -> Condition:
    """The label asked for; else `seed mod classes` where there are classes; nothing else can be guessed.

    Raises:
        ArgumentError: if the label is none of the classes.
        CapabilityError: if a label is asked of a bridge without labels.
    """
    spec = bridge.ends.cond.get("label")
    if spec is None:
        if label is not None:
            raise CapabilityError("label: this bridge was trained without labels")
        return Condition()
    classes = spec.classes or 0
    if label is None:
        return Condition({"label": torch.tensor([s % classes for s in seeds])} if classes else {})
    if not 0 <= label < classes:
        raise ArgumentError("label", f"found {label}, expected 0 to {classes - 1}")
    return Condition({"label": torch.full((len(seeds),), label)})


def complete(cond: Condition, bridge: Bridge, n: int) -> Condition:
    """The conditions that the bridge knows, n rows; those that `cond` lacks are marked absent.

    Raises:
        ArgumentError: if a condition has another number of rows.
    """
    for name, spec in bridge.ends.cond.items():
        if name not in cond:
            cond = cond.with_(**{name: spec.zeros(n)}).drop(name)
        elif len(cond[name]) != n:
            raise ArgumentError("cond", f"'{name}' has {len(cond[name])} rows, expected {n}")
    return cond


def check_shape(experiment: Experiment, images: Tensor) -> None:
    """Compare images with the data that the autoencoder was made for.

    Raises:
        ArgumentError: if they have another shape.
    """
    expected = experiment.autoencoder.images.shape
    if tuple(images.shape[1:]) != expected or len(images) == 0:
        raise ArgumentError(
            "images", f"found shape {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))})"
        )


def notes_of(bridge: Bridge) -> tuple[str, ...]:
    """What the bridge wants said beside its samples."""
    note = getattr(bridge, "prior_description", None)
    return (str(note),) if note else ()
