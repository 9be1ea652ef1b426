"""The picture that shows how training goes: the same seeds and the same images every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge
from latentsb.experiment import Experiment
from latentsb.generate import partners, reconstruct, sample
from latentsb.pictures import show
from latentsb.tensors import Condition, Spec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["preview"]

POINTS = 512
"""Samples in a scatter plot, of which a grid of pictures needs far fewer."""


@torch.no_grad()
def preview(experiment: Experiment, path: Path, *, stage: str) -> bool:
    """Write a preview.

    Of a bridge: samples, between x1 and x0 where the data has pairs, and for one with an encoder images over what it
    and the autoencoder make of them. Of an autoencoder: images over what it makes of them. Vectors become a scatter
    plot. While a prior over codes waits for a stage of its own, there are no samples to show.

    Args:
        experiment: with the weights to show.
        path: of the PNG file.
        stage: what is being trained.

    Returns:
        Whether there was something to show.

    Raises:
        CapabilityError: if the recipe's solver cannot run the bridge.
    """
    settings, spec = experiment.recipe.preview, experiment.source.spec
    if not _shown(spec):
        return False
    if len(experiment.source) == 0:
        return _alone(experiment, path)
    pictures = _pictures(spec)
    n = settings.n if pictures else max(settings.n, POINTS)
    items = experiment.source.read(np.arange(min(n, len(experiment.source))))
    real, seeds = items.x0, range(settings.seed, settings.seed + n)
    if stage == "autoencoder":
        rows = [real, experiment.autoencoder.round_trip(real.to(experiment.device)).cpu()]
    else:
        rows = _of_bridge(experiment, seeds, real if pictures else None, Condition(dict(items.cond)))
    if not rows:
        return False
    _write(show(torch.cat(rows), columns=len(rows[0])) if pictures else show(rows[-1], beside=real), path)
    return True


def _alone(experiment: Experiment, path: Path) -> bool:
    """Samples of a bridge that has no data beside which to show them."""
    settings, spec = experiment.recipe.preview, experiment.source.spec
    n = settings.n if _pictures(spec) else max(settings.n, POINTS)
    _write(show(sample(experiment, range(settings.seed, settings.seed + n)).images), path)
    return True


def _write(picture: Image, path: Path) -> None:
    """Write a picture whole, or not at all."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")
    picture.save(partial, format="PNG")
    partial.replace(path)


def _of_bridge(experiment: Experiment, seeds: range, real: Tensor | None, cond: Condition) -> list[Tensor]:
    """Rows of a bridge's preview; of vectors, which are not reconstructed, `real` is None."""
    bridge, rows = experiment.bridge, []
    if not (isinstance(bridge, EncodingBridge) and bridge.awaits_prior):
        made = sample(experiment, seeds).images
        pairs = None if real is None else partners(experiment, seeds)
        rows = [made] if pairs is None or pairs.x1 is None else [pairs.x1, made, pairs.x0]
    if real is not None and isinstance(bridge, EncodingBridge):
        found = reconstruct(experiment, real, cond=cond)
        rows += [found.originals, found.autoencoder, found.bridge]
    return rows


def _pictures(spec: Spec) -> bool:
    """Images, and complex matrices, which are shown by their magnitudes; all else is points."""
    return len(spec.shape) == 3 or spec.dtype.is_complex


def _shown(spec: Spec) -> bool:
    return _pictures(spec) or (len(spec.shape) == 1 and spec.numel >= 2)
