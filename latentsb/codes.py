"""Codes of images and of whole data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, require
from latentsb.coding import CodingBridge
from latentsb.data.source import Source
from latentsb.data.subset import Subset
from latentsb.errors import CapabilityError
from latentsb.experiment import Experiment
from latentsb.generate import Progress, blocks, check_shape, together
from latentsb.randomness import Draws

__all__ = ["Codes", "drawable", "encode", "encode_rows", "encode_some", "positions"]


@dataclass(frozen=True)
class Codes:
    """Codes of some samples, on the CPU.

    Args:
        z: shape (B, Z).
        index: positions of the samples in the whole data, int64 of shape (B,).
        cond: labels and attributes of the samples, by name.
        names: of the samples, where they have any.
    """

    z: Tensor
    index: np.ndarray
    cond: Mapping[str, Tensor]
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.z)


@torch.no_grad()
def encode(
    experiment: Experiment,
    images: Tensor,
    *,
    draw: bool = False,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Codes of images.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        draw: from the law of each code, in place of its mean.
        seed: of the first draw; row i has seed + i.
        batch: rows at a time; changes results by rounding only; as many as `reconstruct` takes if None.
        progress: called with the number of images just finished.

    Returns:
        z, shape (B, Z), on the CPU.

    Raises:
        ArgumentError: if the images have another shape than the data.
        CapabilityError: if the bridge has no encoder, or codes without noise are to be drawn.
    """
    bridge = require(experiment.bridge, EncodingBridge, "encode")
    check_shape(experiment, images)
    drawable(bridge, draw)
    made = []
    for rows in blocks(len(images), batch or together(images[0].numel())):
        held = images[rows].to(experiment.device)
        seeds = range(seed + rows.start, seed + rows.stop) if draw else None
        made.append(_codes(bridge, experiment.autoencoder.encode(held), held, seeds))
        if progress is not None:
            progress(len(held))
    return torch.cat(made)


@torch.no_grad()
def encode_rows(
    experiment: Experiment,
    source: Source,
    rows: np.ndarray,
    *,
    latents: Source | None = None,
    draw: bool = False,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Codes]:
    """Codes of samples of a data set with what is known of them, a batch at a time.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        source: the data, as the experiment's.
        rows: positions in it, int64 of shape (N,).
        latents: normalised latents of the same data, where they are kept; else images are encoded.
        draw: from the law of each code, in place of its mean.
        seed: of the draws; a sample of the whole data has seed plus its position there.
        batch: rows at a time; changes results by rounding only; as many as `reconstruct` takes if None.
        progress: called with the number of samples just finished.

    Raises:
        CapabilityError: if the bridge has no encoder, or codes without noise are to be drawn.
    """
    bridge = require(experiment.bridge, EncodingBridge, "encode")
    drawable(bridge, draw)
    places, names = positions(source, rows), source.names()
    needs_images = isinstance(bridge, CodingBridge) and bridge.needs_images
    for part in blocks(len(rows), batch or together(source.spec.numel)):
        at = rows[part]
        if latents is None:
            items = source.read(at)
            images: Tensor | None = (shown := items.x0.to(experiment.device))
            x0 = experiment.autoencoder.encode(shown)
        else:
            items = latents.read(at)
            images = source.read(at).x0.to(experiment.device) if needs_images else None
            x0 = items.x0.to(experiment.device)
        z = _codes(bridge, x0, images, (places[part] + seed).tolist() if draw else None)
        known = None if names is None else tuple(names[k] for k in at.tolist())
        yield Codes(z, places[part], dict(items.cond), known)
        if progress is not None:
            progress(len(at))


def encode_some(
    experiment: Experiment,
    source: Source,
    rows: np.ndarray,
    *,
    latents: Source | None = None,
    progress: Progress | None = None,
) -> Codes:
    """Mean codes of samples of a data set, all at once; see `encode_rows`."""
    parts = list(encode_rows(experiment, source, rows, latents=latents, progress=progress))
    cond = {name: torch.cat([part.cond[name] for part in parts]) for name in parts[0].cond}
    return Codes(torch.cat([part.z for part in parts]), np.concatenate([part.index for part in parts]), cond)


def positions(source: Source, rows: np.ndarray) -> np.ndarray:
    """Positions in the whole data of samples at these positions of a part of them."""
    return source.rows[rows] if isinstance(source, Subset) else np.asarray(rows, dtype=np.int64)


def drawable(bridge: EncodingBridge, draw: bool) -> None:
    """Refuse to draw codes that carry no noise.

    Raises:
        CapabilityError: if they carry none.
    """
    if draw and isinstance(bridge, CodingBridge) and not bridge.channel.noisy:
        raise CapabilityError("draw: these codes carry no noise (bridge.channel: exact); each is its mean")


def _codes(bridge: EncodingBridge, x0: Tensor, images: Tensor | None, seeds: Sequence[int] | None) -> Tensor:
    draws = None if seeds is None else Draws.seeds(seeds).fork("encode")
    return bridge.encode(x0, draws, images)["z"].cpu()
