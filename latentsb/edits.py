"""Edits: images whose codes are moved along the direction of an attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, State, require
from latentsb.codes import encode_some
from latentsb.data.source import Source
from latentsb.directions import Direction, Ridge, Rule, find, values, worth
from latentsb.errors import ArgumentError, CapabilityError, nearest
from latentsb.experiment import Experiment
from latentsb.generate import Mode, Progress, begun, blocks, check_shape, complete, decoding, together
from latentsb.randomness import Draws, numpy_generator
from latentsb.results import Edits
from latentsb.solvers.base import Solver, counting
from latentsb.tensors import Condition

__all__ = ["LIMIT", "STRENGTHS", "Asked", "asked_of", "direction_of", "edit", "keeps_endpoint"]

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
LIMIT = 20_000
"""Codes that a direction is fitted to, at most; a quarter as many more measure it."""


@torch.no_grad()
def edit(
    experiment: Experiment,
    images: Tensor,
    attribute: Direction | str | int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    mode: Mode = "perceptual",
    keep_endpoint: bool = False,
    seed: int = 0,
    cond: Condition | None = None,
    solver: Solver | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Edits:
    """Move the codes of images along the direction of an attribute, and decode them.

    All strengths of an image share its noise, so that a strength of 0 is what `reconstruct` makes of it, to the bit.
    x1 is made anew from the moved code, as the bridge makes it. It is kept from the image's own code where
    `keep_endpoint` says so (Kim et al. 2025, official code), and always where the bridge infers it from the data:
    inferred under the moved code it would lead back to the image itself.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        images: shape (B, C, H, W) in [-1, 1], or vectors.
        attribute: a direction; or the name or number by which `direction_of` finds one.
        strengths: in standard deviations of the codes along the direction.
        mode: see `latentsb.generate.Mode`.
        keep_endpoint: keep the x1 that belongs to the code before the edit.
        seed: of the first row's perceptual draw; row i has seed + i.
        cond: conditions of the rows; what the bridge knows and `cond` lacks is absent.
        solver: of perceptual draws, in place of the recipe's.
        batch: rows at a time; changes results by rounding only; as many as `reconstruct` takes if None.
        progress: called with the number of pictures just finished, B times the number of strengths in all.

    Raises:
        ArgumentError: if the images have another shape than the data, there are no strengths, or no such attribute.
        CapabilityError: if the bridge has no encoder, or the data neither labels nor attributes.
    """
    bridge = require(experiment.bridge, EncodingBridge, "edit")
    check_shape(experiment, images)
    if len(strengths) == 0:
        raise ArgumentError("strengths", "found none, expected at least one")
    found = attribute if isinstance(attribute, Direction) else direction_of(experiment, attribute)
    decoder, kept = decoding(mode, solver or experiment.solver), keeps_endpoint(bridge, keep_endpoint)
    cond = complete(cond or Condition(), bridge, len(images))
    made, codes, calls = [], [], 0
    for rows in blocks(len(images), batch or together(images[0].numel())):
        held = images[rows].to(experiment.device)
        latents = experiment.autoencoder.encode(held)
        z = bridge.encode(latents, None, held)["z"]
        known = cond.select(rows).to(experiment.device)
        draws = Draws.seeds(range(seed + rows.start, seed + rows.stop))
        begin = partial(begun, bridge, x0=latents, draws=draws.fork("start"))
        columns = []
        moved = [found.move(z, strength) for strength in strengths]
        for x, spent in _decoded(bridge, decoder, begin, known, z, moved, kept, draws):
            calls = spent
            columns.append(experiment.autoencoder.decode(x).cpu())
            if progress is not None:
                progress(len(held))
        made.append(torch.stack(columns, 1))
        codes.append(z.cpu())
    return Edits(images.cpu(), torch.cat(made), torch.cat(codes), tuple(map(float, strengths)), found, calls)


def _decoded(
    bridge: EncodingBridge,
    decoder: Solver,
    begin: Callable[[Condition], State],
    known: Condition,
    z: Tensor,
    moved: Sequence[Tensor],
    kept: bool,
    draws: Draws,
) -> Iterator[tuple[Tensor, int]]:
    """Latents of moved codes and the calls of each; where x1 is kept, one is made from z and serves all of them."""
    with counting(bridge) as first:
        own = begin(known.with_(z=z)) if kept else None
    for code in moved:
        with counting(bridge) as count:
            at = own or begin(known.with_(z=code))
            x = decoder.run(bridge, State(at.x, at.t, at.cond.with_(z=code)), draws.fork("solve")).x
        yield x, first.calls + count.calls


def keeps_endpoint(bridge: EncodingBridge, asked: bool) -> bool:
    """Whether an edit keeps the x1 of the code before it."""
    return asked or bridge.inverts


@torch.no_grad()
def direction_of(
    experiment: Experiment,
    attribute: str | int,
    *,
    rule: Rule = Ridge(),
    limit: int = LIMIT,
    seed: int = 0,
    latents: Source | None = None,
    progress: Progress | None = None,
) -> Direction:
    """Find the direction of an attribute of the data among the mean codes of the training data, and measure it.

    It is measured on held-out data, and where there are none (or none that differ in the attribute) on a fifth of the
    training data that it is then not fitted to.

    Args:
        experiment: with trained weights, whose bridge is an `EncodingBridge`.
        attribute: see `asked_of`.
        rule: how weights are found.
        limit: codes that it is fitted to, at most.
        seed: of their choice.
        latents: normalised latents of the training data, where they are kept; else images are encoded.
        progress: called with the number of codes just finished, `encodings` of them in all.

    Raises:
        ArgumentError: if there is no such attribute, or it is of another sort than the rule needs.
        CapabilityError: if the bridge has no encoder, or the data neither labels nor attributes.
        DataError: if all samples are alike in the attribute, or the data are gone.
    """
    require(experiment.bridge, EncodingBridge, "edit")
    source = experiment.source
    asked = asked_of(source, attribute)
    rows = _chosen(source, limit, seed, "direction")
    train = encode_some(experiment, source, rows, latents=latents, progress=progress)
    y = asked.of(train.cond)
    held = experiment.held
    if held is not None and asked.cond in held.cond:
        other = _chosen(held, limit // 4, seed, "worth of a direction")
        test = encode_some(experiment, held, other, progress=progress)
        target = asked.of(test.cond)
        if values(target) > 1:
            found = find(asked.name, train.z, y, rule)
            return replace(found, worth=worth(found, test.z, target, "held-out data"))
    order = torch.from_numpy(numpy_generator(seed, "fifth of a direction").permutation(len(rows)))
    fifth, rest = order[: len(order) // 5], order[len(order) // 5 :]
    found = find(asked.name, train.z[rest], y[rest], rule)
    if values(y[fifth]) < 2:
        return found
    return replace(found, worth=worth(found, train.z[fifth], y[fifth], "a fifth of the training data, kept from it"))


def _chosen(source: Source, limit: int, seed: int, purpose: str) -> np.ndarray:
    n = len(source)
    return np.arange(n) if n <= limit else np.sort(numpy_generator(seed, purpose).choice(n, limit, replace=False))


@dataclass(frozen=True)
class Asked:
    """An attribute of the data.

    Args:
        name: as it is told.
        cond: `label` or `attributes`.
        number: of the class, or of the column.
    """

    name: str
    cond: str
    number: int

    def of(self, cond: Mapping[str, Tensor]) -> Tensor:
        """Its values: 1 in the class and 0 elsewhere, or the column; float64 of shape (N,)."""
        held = cond[self.cond]
        return (held == self.number).double() if self.cond == "label" else held[:, self.number].double()


def asked_of(source: Source, attribute: str | int) -> Asked:
    """Find what a user means by an attribute.

    Args:
        source: the data, with labels, attributes or both.
        attribute: name of a column of the attributes, else name or number of a class, which is told from the rest;
            where the data have no classes a number is that of a column. `label:3` and `attributes:3` say which.

    Raises:
        ArgumentError: if there is none of that name or number; tells the nearest.
        CapabilityError: if the data have neither labels nor attributes.
    """
    sizes = {"label": source.cond["label"].classes or 0} if "label" in source.cond else {}
    if "attributes" in source.cond:
        sizes["attributes"] = source.cond["attributes"].numel
    if not sizes:
        raise CapabilityError("edit needs data with labels or attributes; those of this run have neither")
    kind, colon, word = str(attribute).partition(":")
    wanted = [kind] if colon and kind in sizes else ["attributes", "label"]
    text = word if colon and kind in sizes else str(attribute)
    names = {kind: source.words(kind) for kind in wanted if kind in sizes}
    for name, words in names.items():
        if text in words:
            return Asked(text, name, words.index(text))
    if text.isascii() and text.isdigit():
        name = "label" if "label" in names else next(iter(names))
        number = int(text)
        if number < sizes[name]:
            return Asked(f"{'class' if name == 'label' else 'attribute'} {number}", name, number)
        raise ArgumentError("attribute", f"found {number}, expected 0 to {sizes[name] - 1}")
    known = [word for words in names.values() for word in words]
    has = f"a number from 0 to {max(sizes.values()) - 1}" if not known else ", ".join(known[:20])
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    raise ArgumentError("attribute", f"found '{text}', expected {has}{more}.{nearest(text, known)}".removesuffix("."))
