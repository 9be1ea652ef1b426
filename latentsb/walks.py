"""Walks between images: from one to another, and on a sheet between four."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentsb.blends import Blend, Lerp, Slerp, between
from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge, State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.generate import Mode, Progress, begun, blocks, check_shape, complete, decoding, together
from latentsb.randomness import Draws
from latentsb.results import Interpolation, Sheet
from latentsb.solvers.base import SOLVERS, Solver, counting
from latentsb.tensors import Batch, Condition

__all__ = ["blend_of", "interpolate", "interpolate_sheet", "walkable", "walker"]


@torch.no_grad()
def interpolate(
    experiment: Experiment,
    images: Tensor,
    *,
    frames: int = 9,
    mode: Mode = "perceptual",
    blend: Blend | None = None,
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Interpolation:
    """Walk between images 0 and 1, 2 and 3, and so on.

    An `EncodingBridge` mixes z, and makes the x1 of each frame anew from its z; one that infers x1 from the data mixes
    those of the two images on the great circle. All frames of a pair share their noise, so that the ends are what
    `reconstruct` makes of the two images with the seed of the pair. Any other bridge is run along its probability-flow
    ODE to x1, mixed there, and run back.

    Args:
        experiment: with trained weights.
        images: an even number, shape (2P, C, H, W) in [-1, 1].
        frames: per pair, ends included.
        mode: how an `EncodingBridge` decodes; see `Mode`.
        blend: how z, or x1 where there is no z, is mixed; z on the straight line and x1 on the great circle if None.
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
    walks = Walks(experiment, mode, blend, solver, (frames,))
    shown = walks.all(images, cond, seed, batch, progress)
    return Interpolation(shown, images.cpu().reshape(-1, 2, *images.shape[1:]), walks.calls, walks.along)


@torch.no_grad()
def interpolate_sheet(
    experiment: Experiment,
    images: Tensor,
    *,
    rows: int = 5,
    columns: int = 5,
    mode: Mode = "perceptual",
    blend: Blend | None = None,
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Sheet:
    """Fill the sheet between four images: top left, top right, bottom left, bottom right; then the next four.

    The upper and the lower edge are mixed first, then each column between them: bilinear with `Lerp`. All else is as
    in `interpolate`: an edge of the sheet is the interpolation of its two corners, under the same noise.

    Args:
        experiment: with trained weights.
        images: a multiple of four, shape (4P, C, H, W) in [-1, 1].
        rows: of frames, the corners' included.
        columns: of frames, the corners' included.
        mode: as in `interpolate`, like all that follow; sheet p has seed + p.
        blend: see there.
        seed: see there.
        cond: see there; frames keep those of the top left image.
        solver: see there.
        batch: see there.
        progress: called with the number of sheets just finished.

    Raises:
        ArgumentError: if the number of images is no multiple of four, or as in `interpolate`.
        CapabilityError: as in `interpolate`.
    """
    if len(images) % 4 or len(images) == 0:
        raise ArgumentError("images", f"found {len(images)}, expected the four corners of each sheet")
    walks = Walks(experiment, mode, blend, solver, (rows, columns))
    shown = walks.all(images, cond, seed, batch, progress)
    shown = shown.reshape(-1, rows, columns, *shown.shape[2:])
    return Sheet(shown, images.cpu().reshape(-1, 4, *images.shape[1:]), walks.calls, walks.along)


class Walks:
    """Frames between the corners of lines or sheets.

    Args:
        experiment: with trained weights.
        mode: how an `EncodingBridge` decodes.
        blend: of z, or of x1 where there is no z.
        solver: of perceptual draws, in place of the recipe's.
        sizes: frames along each direction; one of a line, two of a sheet.

    Attributes:
        along: the space that is mixed, `z` or `x1`.
        calls: network evaluations per frame, once there are any.

    Raises:
        ArgumentError: if there are less than two frames along a direction.
        CapabilityError: if there is nothing to mix.
    """

    def __init__(
        self, experiment: Experiment, mode: Mode, blend: Blend | None, solver: Solver | None, sizes: tuple[int, ...]
    ) -> None:
        if min(sizes) < 2:
            raise ArgumentError("frames", f"found {min(sizes)}, expected at least the 2 ends")
        if not walkable(experiment.bridge):
            word = BRIDGES.word_of(experiment.bridge)
            raise CapabilityError(f"interpolate needs codes, or an x1 that the data lead to; '{word}' is given its x1")
        self.experiment, self.sizes, self.corners, self.frames = experiment, sizes, 2 ** len(sizes), math.prod(sizes)
        self.solver = walker(experiment.bridge, mode, solver or experiment.solver)
        self.blend = blend_of(experiment.bridge, blend)
        self.along, self.calls = "z" if isinstance(experiment.bridge, EncodingBridge) else "x1", 0

    def all(
        self, images: Tensor, cond: Condition | None, seed: int, batch: int | None, progress: Progress | None
    ) -> Tensor:
        """The frames between all images, shape (P, K, …)."""
        check_shape(self.experiment, images)
        cond = complete(cond or Condition(), self.experiment.bridge, len(images))
        made = []
        for part in blocks(len(images) // self.corners, max(1, (batch or together(images[0].numel())) // self.frames)):
            rows = slice(self.corners * part.start, self.corners * part.stop)
            seeds = range(seed + part.start, seed + part.stop)
            made.append(self.some(images[rows], cond.select(rows), seeds))
            if progress is not None:
                progress(len(seeds))
        return torch.cat(made)

    def some(self, images: Tensor, cond: Condition, seeds: Sequence[int]) -> Tensor:
        """The frames between some images, one seed for each line or sheet."""
        device = self.experiment.device
        images, cond = images.to(device), cond.to(device)
        first = torch.arange(0, len(images), self.corners, device=device)
        kept = cond.select(first.repeat_interleave(self.frames))
        there = [s for s in seeds for _ in range(self.corners)]
        here = Draws.seeds([s for s in seeds for _ in range(self.frames)])
        ends = self.coded if self.along == "z" else self.led
        start = ends(images, cond, Draws.seeds(there), kept, here)
        solved = self.solver.run(self.experiment.bridge, start, here.fork("solve"), "x0")
        self.calls += solved.calls
        made = self.experiment.autoencoder.decode(solved.x).cpu()
        return made.reshape(-1, self.frames, *made.shape[1:])

    def mixed(self, values: Tensor, blend: Blend) -> Tensor:
        """Values of the corners (P M, …) mixed into those of the frames (P K, …)."""
        return between(blend, values.reshape(-1, self.corners, *values.shape[1:]), self.sizes).flatten(0, 1)

    def coded(self, images: Tensor, cond: Condition, there: Draws, kept: Condition, here: Draws) -> State:
        """Where frames start whose codes are mixed."""
        bridge = self.experiment.bridge
        assert isinstance(bridge, EncodingBridge)
        latents = self.experiment.autoencoder.encode(images)
        z = bridge.encode(latents, None, images)["z"]
        mixed = kept.with_(z=self.mixed(z, self.blend))
        with counting(bridge) as count:
            if bridge.inverts:
                inferred = begun(bridge, cond.with_(z=z), latents, there.fork("start"))
                x1 = self.mixed(inferred.x, Slerp())
                state = State(x1, inferred.t, mixed.with_(x1=x1))
            else:
                state = begun(bridge, mixed, None, here.fork("start"))
        self.calls = count.calls
        return state

    def led(self, images: Tensor, cond: Condition, there: Draws, kept: Condition, here: Draws) -> State:
        """Where frames start whose x1 are mixed: the images are led there by the ODE."""
        bridge = self.experiment.bridge
        data = Batch(torch.arange(len(images)), x0=self.experiment.autoencoder.encode(images), cond=cond)
        found = self.solver.run(bridge, bridge.start(data, there.fork("start"), "x1"), there.fork("solve"), "x1")
        self.calls = found.calls
        return State(self.mixed(found.x, self.blend), found.state.t, kept)


def walkable(bridge: Bridge) -> bool:
    """Whether there is something to mix: codes, or ends that the ODE leads to from the data alone."""
    return isinstance(bridge, EncodingBridge) or not (isinstance(bridge, DenoisingBridge) and bridge.pinned)


def walker(bridge: Bridge, mode: Mode, solver: Solver) -> Solver:
    """The solver of an interpolation: of the decoding where there are codes, else of the ODE both ways."""
    return decoding(mode, solver) if isinstance(bridge, EncodingBridge) else SOLVERS["heun"]()


def blend_of(bridge: Bridge, blend: Blend | None) -> Blend:
    """How an interpolation mixes where nobody says: codes on the straight line, noise on the great circle."""
    return blend or (Lerp() if isinstance(bridge, EncodingBridge) else Slerp())
