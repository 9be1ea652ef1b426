"""What generating returns: tensors that know their picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from latentsb.directions import Direction
from latentsb.errors import ArgumentError
from latentsb.pictures import ENDINGS, show
from latentsb.tensors import Condition

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Edits", "Interpolation", "Reconstruction", "Result", "Samples", "Sheet"]

ACROSS = 12
"""Images in a row of a picture of reconstructions."""
SHOWN = 64
"""Images in a picture of samples."""


class Result(ABC):
    """Something generated, on the CPU."""

    def __repr__(self) -> str:
        """Shapes in place of numbers."""
        told = (f"{f.name}={_brief(getattr(self, f.name))}" for f in fields(cast(Any, self)))
        return f"{type(self).__name__}({', '.join(told)})"

    @abstractmethod
    def picture(self) -> Image:
        """The picture that people would look for: a grid of images, a plot of vectors."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that was generated, by name."""

    def save(self, path: str | Path) -> Path:
        """Write the picture (`.png`, `.jpg`, `.webp`) or, unrounded, all tensors (`.npz`).

        Args:
            path: of the file; its folder is made if need be.

        Raises:
            ArgumentError: for another ending.
        """
        path = Path(path)
        if path.suffix not in (".npz", *ENDINGS):
            raise ArgumentError("path", f"found the ending '{path.suffix}', expected .npz, {', '.join(ENDINGS)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {name: value.numpy() for name, value in self.tensors().items()}
            np.savez(path, **arrays)
        else:
            self.picture().save(path)
        return path


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{' × '.join(map(str, value.shape))}>"
    if isinstance(value, Condition):
        return f"<{', '.join(value.values)}>" if value.values else "none"
    if isinstance(value, tuple) and len(value) > 3 and all(isinstance(v, int) for v in value):
        return f"({value[0]}, …, {value[-1]})"
    return repr(value)


@dataclass(frozen=True, repr=False)
class Samples(Result):
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

    def __len__(self) -> int:
        return len(self.seeds)

    def picture(self) -> Image:
        """A grid of the first images; of vectors all points."""
        return show(self.images[:SHOWN] if self.images.ndim == 4 else self.images)

    def tensors(self) -> dict[str, Tensor]:
        """`images`, `latents`, `seeds` and the conditions."""
        held = {"images": self.images, "latents": self.latents, "seeds": torch.tensor(self.seeds)}
        return held | dict(self.cond.values)


@dataclass(frozen=True, repr=False)
class Reconstruction(Result):
    """Originals, what the autoencoder alone makes of them, and what the bridge makes of their code.

    Args:
        originals: shape (B, C, H, W) in [-1, 1].
        autoencoder: same shape; the loss of detail here is not the bridge's.
        bridge: same shape.
        z: codes, shape (B, Z).
        calls: network evaluations per image.
    """

    originals: Tensor
    autoencoder: Tensor
    bridge: Tensor
    z: Tensor
    calls: int

    def __len__(self) -> int:
        return len(self.originals)

    def picture(self) -> Image:
        """Three rows: originals, autoencoder alone, bridge; of vectors the bridge's points over the originals."""
        if self.originals.ndim != 4:
            return show(self.bridge, beside=self.originals)
        rows = [row[:ACROSS] for row in (self.originals, self.autoencoder, self.bridge)]
        return show(torch.cat(rows), columns=len(rows[0]))

    def tensors(self) -> dict[str, Tensor]:
        """`originals`, `autoencoder`, `bridge`, `z`."""
        return {name: getattr(self, name) for name in ("originals", "autoencoder", "bridge", "z")}


@dataclass(frozen=True, repr=False)
class Interpolation(Result):
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

    def __len__(self) -> int:
        return len(self.frames)

    def picture(self) -> Image:
        """One row per pair, its frames between the two originals; of vectors the frames over the originals."""
        if self.frames.ndim != 5:
            return show(self.frames.flatten(0, 1), beside=self.ends.flatten(0, 1))
        rows = torch.cat([self.ends[:, :1], self.frames, self.ends[:, 1:]], dim=1)
        return show(rows.flatten(0, 1), columns=rows.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """`frames`, `ends`."""
        return {"frames": self.frames, "ends": self.ends}


@dataclass(frozen=True, repr=False)
class Sheet(Result):
    """Frames on sheets between four images each.

    Args:
        frames: shape (P, R, K, C, H, W): P sheets of R rows and K columns; the corners are the images' reconstructions.
        corners: the originals, shape (P, 4, C, H, W): top left, top right, bottom left, bottom right.
        calls: network evaluations per frame.
        along: the space that is mixed, `z` or `x1`.
    """

    frames: Tensor
    corners: Tensor
    calls: int
    along: str

    def __len__(self) -> int:
        return len(self.frames)

    def picture(self) -> Image:
        """The sheets, one below the other, the originals beside their corners; of vectors the frames over them."""
        if self.frames.ndim != 6:
            return show(self.frames.flatten(0, 2), beside=self.corners.flatten(0, 1))
        sides = torch.zeros_like(self.frames[:, :, :2])  # the grey that pictures stand on
        sides[:, 0], sides[:, -1] = self.corners[:, :2], self.corners[:, 2:]
        rows = torch.cat([sides[:, :, :1], self.frames, sides[:, :, 1:]], dim=2)
        return show(rows.flatten(0, 2), columns=rows.shape[2])

    def tensors(self) -> dict[str, Tensor]:
        """`frames`, `corners`."""
        return {"frames": self.frames, "corners": self.corners}


@dataclass(frozen=True, repr=False)
class Edits(Result):
    """Images whose codes were moved along the direction of an attribute.

    Args:
        originals: shape (B, C, H, W) in [-1, 1].
        edited: shape (B, S, C, H, W), a column for each strength; that of strength 0 is the reconstruction.
        z: the codes before, shape (B, Z).
        strengths: in standard deviations of the codes along the direction, in the order of the columns.
        direction: along which they were moved.
        calls: network evaluations per picture.
    """

    originals: Tensor
    edited: Tensor
    z: Tensor
    strengths: tuple[float, ...]
    direction: Direction
    calls: int

    def __len__(self) -> int:
        return len(self.originals)

    def picture(self) -> Image:
        """One row per image: the original and the strengths; of vectors the edited points over the originals."""
        if self.originals.ndim != 4:
            return show(self.edited.flatten(0, 1), beside=self.originals)
        rows = torch.cat([self.originals[:, None], self.edited], dim=1)
        heads = ("original", *(f"{s:+g}" if s else "0" for s in self.strengths))
        return show(rows.flatten(0, 1), columns=rows.shape[1], heads=heads)

    def tensors(self) -> dict[str, Tensor]:
        """`originals`, `edited`, `z`, `strengths`, and `step`, by which a strength of 1 changes z."""
        held = {name: getattr(self, name) for name in ("originals", "edited", "z")}
        return held | {"strengths": torch.tensor(self.strengths), "step": self.direction.step}
