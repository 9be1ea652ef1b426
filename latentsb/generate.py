"""What a trained experiment makes: samples, reconstructions, interpolations.

All functions work on contracts; a capability that a bridge lacks is a `CapabilityError` that names the bridges
which have it. Row i of every result depends on its own seed, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge, State, require
from latentsb.data.source import Items, Source
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.guided import Guided
from latentsb.randomness import Draws
from latentsb.results import Interpolation, Reconstruction, Samples
from latentsb.solvers.base import SOLVERS, Solver
from latentsb.tensors import Batch, Condition

__all__ = ["Mode", "interpolate", "reconstruct", "sample", "slerp"]

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
    batch: int = ROWS,
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
        batch: samples at a time; changes results by rounding only.
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
    for rows in blocks(len(seeds), batch):
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
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Encode images to z, and decode z alone.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        mode: see `Mode`.
        seed: of the first row's perceptual draw; row i has seed + i.
        cond: conditions of the rows; what the bridge knows and `cond` lacks is absent.
        solver: of perceptual draws, in place of the recipe's.
        batch: rows at a time; changes results by rounding only; 16 of 3×256×256, at most 256 of smaller ones, if None.
        progress: called with the number of images just finished.

    Raises:
        ArgumentError: if the images have another shape than the data.
        CapabilityError: if the bridge has no encoder.
    """
    bridge = require(experiment.bridge, EncodingBridge, "reconstruct")
    check_shape(experiment, images)
    decoder = decoding(mode, solver or experiment.solver)
    cond = complete(cond or Condition(), bridge, len(images))
    parts: list[Reconstruction] = []
    for rows in blocks(len(images), batch or together(images)):
        held = images[rows].to(experiment.device)
        latents = experiment.autoencoder.encode(held)
        z = bridge.encode(latents, None, held)["z"]
        known = cond.select(rows).to(experiment.device).with_(z=z)
        draws = Draws.seeds(range(seed + rows.start, seed + rows.start + len(held)))
        solved = decoder.run(bridge, endpoint(bridge, known, draws.fork("start")), draws.fork("solve"))
        decode = experiment.autoencoder.decode
        parts.append(Reconstruction(held.cpu(), decode(latents).cpu(), decode(solved.x).cpu(), z.cpu(), solved.calls))
        if progress is not None:
            progress(len(held))

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Reconstruction(whole("originals"), whole("autoencoder"), whole("bridge"), whole("z"), parts[0].calls)


@torch.no_grad()
def interpolate(
    experiment: Experiment,
    images: Tensor,
    *,
    frames: int = 9,
    mode: Mode = "perceptual",
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Interpolation:
    """Walk between images 0 and 1, 2 and 3, and so on.

    An `EncodingBridge` mixes linearly in z, and all frames of a pair share their noise. Any other bridge is run
    along its probability-flow ODE to x1, mixed there on the great circle, and run back.

    Args:
        experiment: with trained weights.
        images: an even number, shape (2P, C, H, W) in [-1, 1].
        frames: per pair, ends included.
        mode: how an `EncodingBridge` decodes; see `Mode`.
        seed: of the noise that frames share; pair p has seed + p.
        cond: conditions of the images; frames keep those of the first of their pair.
        solver: of perceptual draws, in place of the recipe's.
        batch: frames at a time, about; changes results by rounding only; as many as `reconstruct` takes if None.
        progress: called with the number of pairs just finished.

    Raises:
        ArgumentError: if the number of images is odd, frames < 2, or the images have another shape than the data.
        CapabilityError: if the bridge has neither codes nor a probability-flow ODE that leads to x1.
    """
    if len(images) % 2 or len(images) == 0:
        raise ArgumentError("images", f"found {len(images)}, expected pairs: an even number")
    if frames < 2:
        raise ArgumentError("frames", f"found {frames}, expected at least the 2 ends")
    if not walkable(experiment.bridge):
        word = BRIDGES.word_of(experiment.bridge)
        raise CapabilityError(f"interpolate needs codes, or an x1 that the data lead to; '{word}' is given its x1")
    check_shape(experiment, images)
    cond = complete(cond or Condition(), experiment.bridge, len(images))
    travelling = walker(experiment.bridge, mode, solver or experiment.solver)
    walks = []
    for pairs in blocks(len(images) // 2, max(1, (batch or together(images)) // frames)):
        rows = slice(2 * pairs.start, 2 * pairs.stop)
        seeds = range(seed + pairs.start, seed + pairs.stop)
        walks.append(walk(experiment, images[rows], cond.select(rows), frames, seeds, travelling))
        if progress is not None:
            progress(len(seeds))
    shown = torch.cat([found for found, _ in walks])
    along = "z" if isinstance(experiment.bridge, EncodingBridge) else "x1"
    return Interpolation(shown, images.cpu().reshape(-1, 2, *images.shape[1:]), walks[0][1], along)


def walkable(bridge: Bridge) -> bool:
    """Whether there is something to mix: codes, or ends that the ODE leads to from the data alone."""
    return isinstance(bridge, EncodingBridge) or not (isinstance(bridge, DenoisingBridge) and bridge.pinned)


def walk(
    experiment: Experiment, images: Tensor, cond: Condition, frames: int, seeds: Sequence[int], solver: Solver
) -> tuple[Tensor, int]:
    """Frames of some pairs, shape (P, K, …), and calls per frame."""
    images, cond = images.to(experiment.device), cond.to(experiment.device)
    latents = experiment.autoencoder.encode(images)
    weights = torch.linspace(0, 1, frames).to(latents)
    kept = cond.select(torch.arange(0, len(images), 2, device=images.device).repeat_interleave(frames))
    draws = Draws.seeds([s for s in seeds for _ in range(frames)])
    bridge = experiment.bridge
    if isinstance(bridge, EncodingBridge):
        z = bridge.encode(latents, None, images)["z"]
        mixed = torch.lerp(z[0::2, None], z[1::2, None], weights[None, :, None]).flatten(0, 1)
        solved = solver.run(bridge, endpoint(bridge, kept.with_(z=mixed), draws.fork("start")), draws.fork("solve"))
        calls = solved.calls
    else:
        ends = Draws.seeds([s for s in seeds for _ in range(2)])
        data = Batch(torch.arange(len(images)), x0=latents, cond=cond)
        there = solver.run(bridge, bridge.start(data, ends.fork("start"), "x1"), ends.fork("solve"), "x1")
        mixed = slerp(there.x[0::2, None], there.x[1::2, None], weights).flatten(0, 1)
        solved = solver.run(bridge, State(mixed, there.state.t, kept), draws.fork("solve"), "x0")
        calls = there.calls + solved.calls
    made = experiment.autoencoder.decode(solved.x).cpu()
    return made.reshape(-1, frames, *made.shape[1:]), calls


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of whole samples, `(sin((1−w)θ) a + sin(wθ) b) / sin θ` with θ their angle.

    A straight mixture of two independent Gaussian noises has too small a norm; the great circle keeps it.

    Source: Shoemake 1985, Animating rotation with quaternion curves.

    Args:
        a: shape (P, 1, …).
        b: same shape.
        weights: shape (K,), in [0, 1].

    Returns:
        Shape (P, K, …).
    """
    u, v = a.flatten(2), b.flatten(2)
    cosine = torch.nn.functional.cosine_similarity(u, v, dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cosine)
    w = weights[None, :, None]
    mixed: Tensor = (torch.sin((1 - w) * angle) * u + torch.sin(w * angle) * v) / torch.sin(angle)
    return mixed.reshape(*mixed.shape[:2], *a.shape[2:])


def together(images: Tensor) -> int:
    """Images that are computed at a time where nobody says: fewer of large ones, so that progress can be told."""
    return max(1, min(ROWS, NUMBERS // images[0].numel()))


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


def walker(bridge: Bridge, mode: Mode, solver: Solver) -> Solver:
    """The solver of an interpolation: of the decoding where there are codes, else of the ODE both ways."""
    return decoding(mode, solver) if isinstance(bridge, EncodingBridge) else SOLVERS["heun"]()


def endpoint(bridge: EncodingBridge, cond: Condition, draws: Draws) -> State:
    """The state at t = 1 that belongs to a code."""
    return bridge.start(Batch(torch.arange(len(cond["z"])), cond=cond), draws)


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
