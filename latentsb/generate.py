"""What a trained experiment makes: samples, reconstructions, interpolations.

All functions work on contracts; a capability that a bridge lacks is a `CapabilityError` that names the bridges
which have it. Row i of every result depends on its own seed, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge, State
from latentsb.errors import CapabilityError
from latentsb.experiment import Experiment
from latentsb.guided import Guided
from latentsb.randomness import Draws
from latentsb.solvers.base import SOLVERS, Solver
from latentsb.tensors import Batch, Condition

__all__ = ["Interpolation", "Reconstruction", "Samples", "interpolate", "reconstruct", "sample", "solver_for"]

B = TypeVar("B", bound=Bridge)
Progress = Callable[[int], None]
FAITHFUL = "faithful"
PERCEPTUAL = "perceptual"


@dataclass(frozen=True)
class Samples:
    """Generated samples.

    Args:
        images: shape (B, C, H, W) in [-1, 1], or vectors (B, D).
        latents: shape (B, *latent.shape), normalised.
        seeds: seed of each row.
        cond: conditions that the rows were drawn under.
        calls: network evaluations per sample.
        notes: what a reader of the samples must know (which prior over z was used, for example).
    """

    images: Tensor
    latents: Tensor
    seeds: tuple[int, ...]
    cond: Condition
    calls: int
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Reconstruction:
    """Originals, what the autoencoder alone makes of them, and what the bridge makes of their code.

    Args:
        originals: shape (B, C, H, W) in [-1, 1].
        autoencoder: same shape; the loss of detail here is not the bridge's.
        bridge: same shape.
        calls: network evaluations per image.
    """

    originals: Tensor
    autoencoder: Tensor
    bridge: Tensor
    calls: int


@dataclass(frozen=True)
class Interpolation:
    """Frames between two ends.

    Args:
        frames: shape (P, K, C, H, W): P pairs, K frames each; the first and last are the ends' reconstructions.
        ends: the originals, shape (P, 2, C, H, W).
        calls: network evaluations per frame.
        along: the space in which the frames are evenly spaced, `z` or `x1`.
    """

    frames: Tensor
    ends: Tensor
    calls: int
    along: str


def require(bridge: Bridge, kind: type[B], purpose: str) -> B:
    """The bridge, if it is of the kind that `purpose` needs.

    Raises:
        CapabilityError: naming the bridges that are of that kind.
    """
    if isinstance(bridge, kind):
        return bridge
    able = [word for word in BRIDGES.names() if issubclass(BRIDGES[word], kind)]
    raise CapabilityError(
        f"{purpose} needs an {kind.__name__}; '{BRIDGES.word_of(bridge)}' is not one. These are: {', '.join(able)}"
    )


def solver_for(mode: str, experiment: Experiment) -> Solver:
    """The solver of a way of decoding: one call for the mean (`faithful`), the recipe's solver for a sample.

    Raises:
        ValueError: for another word.
    """
    if mode == FAITHFUL:
        return SOLVERS["denoise"]()
    if mode == PERCEPTUAL:
        return experiment.solver
    raise ValueError(f"mode must be '{FAITHFUL}' or '{PERCEPTUAL}', got '{mode}'")


@torch.no_grad()
def sample(
    experiment: Experiment,
    seeds: Sequence[int],
    *,
    cond: Condition | None = None,
    solver: Solver | None = None,
    guidance: float = 1.0,
    batch: int = 256,
    progress: Progress | None = None,
) -> Samples:
    """Draw one sample per seed.

    Args:
        experiment: with trained weights.
        seeds: one per sample; equal seeds and conditions give equal samples.
        cond: conditions, one row per seed; None draws labels evenly (`seed mod classes`) where the bridge has them.
        solver: another solver than the recipe's.
        guidance: classifier-free guidance scale; 1 is none.
        batch: samples at a time; changes results by rounding only.
        progress: called with the number of samples just finished.

    Raises:
        CapabilityError: if guidance is asked of a bridge that cannot be guided.
    """
    bridge, solver = experiment.bridge, solver or experiment.solver
    cond = even_labels(experiment, seeds) if cond is None else cond
    guided: Bridge = bridge
    if guidance != 1.0:
        guided = Guided(require(bridge, DenoisingBridge, "guidance"), scale=guidance)
    device = experiment.device
    parts: list[Samples] = []
    for first in range(0, len(seeds), batch):
        rows = slice(first, first + batch)
        chosen = list(seeds[rows])
        draws = Draws.seeds(chosen)
        asked = Batch(torch.arange(len(chosen)), cond=cond.select(rows)).to(device)
        state = guided.start(asked, draws.fork("start"))
        solved = solver.run(guided, state, draws.fork("solve"))
        images = pixels(experiment, solved.x)
        parts.append(Samples(images.cpu(), solved.x.cpu(), tuple(chosen), asked.cond.to("cpu"), solved.calls))
        if progress is not None:
            progress(len(chosen))
    return Samples(
        torch.cat([p.images for p in parts]),
        torch.cat([p.latents for p in parts]),
        tuple(seeds),
        cond,
        parts[0].calls,
        notes_of(bridge),
    )


@torch.no_grad()
def reconstruct(
    experiment: Experiment, images: Tensor, *, mode: str = FAITHFUL, seed: int = 0, cond: Condition | None = None
) -> Reconstruction:
    """Encode images to z, and decode z alone.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        mode: `faithful` is `E[x0 | z]` in one call (the best decoder in mean squared error); `perceptual` is a
            draw from `p(x0 | z)`, whose mean squared error is about twice as large.
        seed: of the perceptual draws.
        cond: conditions of the rows, where the bridge has any.

    Raises:
        CapabilityError: if the bridge has no encoder.
    """
    bridge = require(experiment.bridge, EncodingBridge, "reconstruct")
    images = images.to(experiment.device)
    latents = experiment.autoencoder.encode(images)
    code = with_code(bridge, latents, images, (cond or Condition()).to(experiment.device))
    draws = Draws.seeds(range(seed, seed + len(images)))
    state = endpoint_state(bridge, code, draws.fork("start"))
    solved = solver_for(mode, experiment).run(bridge, state, draws.fork("solve"))
    return Reconstruction(
        images.cpu(),
        pixels(experiment, latents).cpu(),
        pixels(experiment, solved.x).cpu(),
        solved.calls,
    )


@torch.no_grad()
def interpolate(
    experiment: Experiment,
    images: Tensor,
    *,
    frames: int = 9,
    mode: str = PERCEPTUAL,
    seed: int = 0,
    cond: Condition | None = None,
) -> Interpolation:
    """Walk between images 0 and 1, 2 and 3, and so on.

    An `EncodingBridge` mixes linearly in z, and all frames of a pair share their noise. Any other bridge is run
    along its probability-flow ODE to x1, mixed there on the great circle, and run back.

    Args:
        experiment: with trained weights.
        images: an even number, shape (2P, C, H, W) in [-1, 1].
        frames: per pair, ends included.
        mode: how an `EncodingBridge` decodes.
        seed: of the noise that frames share.
        cond: conditions of the images; frames keep those of the first of their pair.

    Raises:
        ValueError: if the number of images is odd or frames < 2.
    """
    if len(images) % 2 or frames < 2:
        raise ValueError(f"interpolation needs pairs of images and at least 2 frames, got {len(images)} and {frames}")
    images = images.to(experiment.device)
    pairs, weights = len(images) // 2, torch.linspace(0, 1, frames).to(images)
    latents = experiment.autoencoder.encode(images)
    cond = (cond or Condition()).to(experiment.device)
    kept = cond.select(torch.arange(0, len(images), 2).repeat_interleave(frames))
    draws = Draws.seeds([seed + p for p in range(pairs) for _ in range(frames)])
    bridge = experiment.bridge
    if isinstance(bridge, EncodingBridge):
        z = with_code(bridge, latents, images, cond)["z"]
        mixed = torch.lerp(z[0::2, None], z[1::2, None], weights[None, :, None]).flatten(0, 1)
        state = endpoint_state(bridge, kept.with_(z=mixed), draws.fork("start"))
        solved = solver_for(mode, experiment).run(bridge, state, draws.fork("solve"))
        x, calls, along = solved.x, solved.calls, "z"
    else:
        ode: Solver = SOLVERS["heun"]()
        asked = Batch(torch.arange(len(images)), x0=latents, cond=cond)
        there = ode.run(bridge, bridge.start(asked, Draws.seeds(range(len(images))), "x1"), draws, "x1")
        mixed = slerp(there.x[0::2, None], there.x[1::2, None], weights).flatten(0, 1)
        back = ode.run(bridge, State(mixed, there.state.t, kept), draws, "x0")
        x, calls, along = back.x, back.calls, "x1"
    shown = pixels(experiment, x).cpu()
    return Interpolation(shown.unflatten(0, (pairs, frames)), images.cpu().unflatten(0, (pairs, 2)), calls, along)


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of whole samples, shape (P, 1, …) each, weights (K,); gives (P, K, …).

    A straight mixture of two independent Gaussian noises has too small a norm; the great circle keeps it.
    """
    u, v = a.flatten(2), b.flatten(2)
    cosine = torch.nn.functional.cosine_similarity(u, v, dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cosine)
    w = weights[None, :, None]
    mixed = (torch.sin((1 - w) * angle) * u + torch.sin(w * angle) * v) / torch.sin(angle)
    return mixed.unflatten(2, a.shape[2:])


def with_code(bridge: EncodingBridge, latents: Tensor, images: Tensor, cond: Condition) -> Condition:
    """`cond` with the mean code z of the data."""
    return cond.with_(z=bridge.encode(latents, None, images)["z"])


def endpoint_state(bridge: EncodingBridge, cond: Condition, draws: Draws) -> State:
    """The state at t = 1 that belongs to a code."""
    return bridge.start(Batch(torch.arange(len(cond["z"])), cond=cond), draws)


def pixels(experiment: Experiment, latents: Tensor) -> Tensor:
    """Decoded latents, images clamped to [-1, 1]."""
    decoded = experiment.autoencoder.decode(latents)
    return decoded.clamp(-1, 1) if decoded.ndim == 4 else decoded


def even_labels(experiment: Experiment, seeds: Sequence[int]) -> Condition:
    """Labels `seed mod classes` where the bridge is conditioned on labels; nothing else can be guessed."""
    label = experiment.bridge.ends.cond.get("label")
    if label is None or label.classes is None:
        return Condition()
    return Condition({"label": torch.tensor([s % label.classes for s in seeds])})


def notes_of(bridge: Bridge) -> tuple[str, ...]:
    """What the bridge wants said beside its samples."""
    note = getattr(bridge, "prior_description", None)
    return (str(note),) if note else ()
