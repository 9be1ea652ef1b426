"""Codes of samples as metrics ask for them, and the codes that need no training, which stand beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge
from latentsb.coding import CodingBridge
from latentsb.metrics.linear import Components
from latentsb.randomness import Draws, numpy_generator
from latentsb.tensors import Condition

if TYPE_CHECKING:
    from latentsb.metrics.base import Data, Subject

__all__ = ["DRAWN", "MEAN", "PROJECTION", "UNTRAINED", "Coder", "coders", "codes_of", "noisy"]

Coder = Callable[["Data", np.ndarray], Tensor]
"""Codes of rows of the data, float32 on the CPU, shape (N, K)."""

MEAN, DRAWN, UNTRAINED, PROJECTION = "z", "z, drawn", "untrained encoder", "random projection"


@torch.no_grad()
def codes_of(
    bridge: EncodingBridge,
    data: Data,
    rows: np.ndarray,
    *,
    draws: Draws | None = None,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Condition]:
    """Encode rows of the data; the bridge is in evaluation mode meanwhile.

    Args:
        bridge: with an encoder, on its device.
        data: whose latents are encoded, or whose pixels, where the encoder sees those.
        rows: positions in the data, shape (N,).
        draws: of these rows; mean codes without them.
        batch: rows at a time.
        progress: called with the number of rows that are done at each batch.

    Returns:
        z, float32 of shape (N, Z), and all conditions that the data have for these rows, both on the CPU.
    """
    was, codes, known = bridge.training, [], []
    bridge.eval()
    try:
        for first in range(0, len(rows), batch):
            chosen = rows[first : first + batch]
            items = data.read(chosen)
            x0 = data.read(chosen, latents=True).x0.to(bridge.device)
            seen = items.x0.to(bridge.device) if bridge.needs_images else None
            own = None if draws is None else draws.select(range(first, first + len(chosen)))
            codes.append(bridge.encode(x0, own, seen)["z"].float().cpu())
            known.append(items.cond)
            if progress is not None:
                progress(len(chosen))
    finally:
        bridge.train(was)
    return torch.cat(codes), Condition({name: torch.cat([c[name] for c in known]) for name in known[0]})


def noisy(bridge: EncodingBridge) -> bool:
    """Whether drawn codes differ from mean codes."""
    return isinstance(bridge, CodingBridge) and bridge.channel.noisy


def coders(
    subject: Subject, bridge: EncodingBridge, *, fitted_on: int, seed: int, batch: int, drawn: bool
) -> dict[str, Coder]:
    """The codes of a bridge, and codes of the same length that nobody has learned.

    These are principal components of the pixels, a random projection of them, and, where the subject can build it, the
    code of the same architecture with the weights that training began with.

    Args:
        subject: that is measured.
        bridge: its bridge.
        fitted_on: training samples, at most, that the components are fitted to.
        seed: of the draws, of the projection and of the fit.
        batch: rows at a time.
        drawn: ask for drawn codes beside mean ones, where they differ.

    Returns:
        By name, the bridge's own first.
    """

    def encoded(title: str, by: EncodingBridge, *, drawn: bool = False) -> Coder:
        def code(data: Data, rows: np.ndarray) -> Tensor:
            draws = Draws.step(seed, f"codes of {data.name}", 0, rows.tolist()) if drawn else None
            with subject.watch(f"encoding: {title}", len(rows)) as advance:
                return codes_of(by, data, rows, draws=draws, batch=batch, progress=advance)[0]

        return code

    def linear(encode: Callable[[Tensor], Tensor]) -> Coder:
        def code(data: Data, rows: np.ndarray) -> Tensor:
            parts = (rows[first : first + batch] for first in range(0, len(rows), batch))
            return torch.cat([encode(data.read(part).x0) for part in parts])

        return code

    components = Components.fit(subject.train, bridge.z_dim, fitted_on, seed)
    shape = (subject.train.source.spec.numel, bridge.z_dim)
    random = numpy_generator(seed, "random projection").standard_normal(shape, dtype=np.float32)
    matrix = torch.from_numpy(random / np.sqrt(np.float32(shape[0])))
    found = {MEAN: encoded(MEAN, bridge)}
    if drawn and noisy(bridge):
        found[DRAWN] = encoded(DRAWN, bridge, drawn=True)
    found[f"PCA, {len(components.directions)} components"] = linear(components.encode)
    fresh = subject.untrained()
    if isinstance(fresh, EncodingBridge):
        found[UNTRAINED] = encoded(UNTRAINED, fresh)
    found[PROJECTION] = linear(lambda x: x.flatten(1).float() @ matrix)
    return found
