"""Encoding a whole data set into a latent cache: beside its place, durable, then renamed.

Images are read ahead by several threads while others are encoded. Several processes encode a share of the blocks each.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb import parallel, roundtrip
from latentsb.autoencoder import Autoencoder
from latentsb.building import Block, Building, Plan
from latentsb.data.source import Items, Source
from latentsb.disk import Disk, alone, disk_error
from latentsb.errors import CacheError, DiskError
from latentsb.normalisers import Statistics
from latentsb.randomness import Draws
from latentsb.stores import STORES, Store, error

__all__ = ["Progress", "ahead", "blocks_of", "build", "made_of"]

Progress = Callable[[int, int], None]
READERS = 4
"""Blocks that are read at the same time, each by the data's own threads."""
AHEAD_BYTES = 1 << 28
"""Of images that are read ahead, unless two blocks are more."""


def made_of(source: Source, autoencoder: Autoencoder, store: Store) -> dict[str, Any]:
    """All that a cache's content depends on, JSON values."""
    kept = store.resolved(autoencoder.latent_dtype)
    values = {
        "autoencoder": type(autoencoder).__qualname__,
        "weights": autoencoder.fingerprint(),
        "latent": list(autoencoder.latent.shape),
        "dtype": STORES.word_of(kept),
        "std": kept.posterior,
        "variants": source.variants,
        "data": source.fingerprint(),
    }
    fixed: dict[str, Any] = json.loads(json.dumps(values))
    return fixed


def plan_of(source: Source, autoencoder: Autoencoder, store: Store, batch: int) -> Plan:
    """What the cache of a source will hold."""
    counts = {"x0": len(source)} | ({"x1": source.partners} if source.two_sided else {})
    kept, made = store.resolved(autoencoder.latent_dtype), made_of(source, autoencoder, store)
    return Plan(made, counts, source.variants, batch, autoencoder.latent, kept, dict(source.cond))


def blocks_of(source: Source, batch: int, variant: int = 0) -> list[Block]:
    """Both ends of a source in blocks, mirrored or not."""
    found: list[Block] = []
    for end, count in (("x0", len(source)), ("x1", source.partners)):
        for place, first in enumerate(range(0, count, batch)):
            found.append(Block(len(found), end, variant, first, min(first + batch, count), place))
    return found


def ahead(source: Source, blocks: Sequence[Block], readers: int = READERS) -> Generator[tuple[Block, Items]]:
    """Blocks with their images (as x0 of the items) and conditions, in their order; the next are read meanwhile.

    Args:
        source: whose `read` several threads may call.
        blocks: to read.
        readers: blocks that are read at the same time.
    """
    largest = max((len(block) for block in blocks), default=1) * source.spec.numel * 4
    depth = max(2, min(2 * readers, AHEAD_BYTES // largest))
    waiting: deque[tuple[Block, Future[Items]]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read ahead")
    try:
        for block in blocks:
            waiting.append((block, pool.submit(_read, source, block)))
            if len(waiting) >= depth:
                first, items = waiting.popleft()
                yield first, items.result()
        while waiting:
            first, items = waiting.popleft()
            yield first, items.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: Source, block: Block) -> Items:
    index, mirrored = block.index, np.full(len(block), block.variant)
    if block.end == "x0":
        return source.read(index, mirrored)
    return Items(source.draw_x1(index, mirrored, Draws.seeds(index.tolist())))


def build(
    path: Path, source: Source, autoencoder: Autoencoder, store: Store, progress: Progress | None, batch: int
) -> bool:
    """Make the cache at a path if there is none; every process must call it, and encodes its share.

    What is done stays when it is broken off, and the next call goes on from there.

    Args:
        path: of the cache.
        source: of images.
        autoencoder: that encodes them.
        store: in which their latents are kept.
        progress: called with images done and in all: of those that this process encodes, and those that were there.
        batch: images encoded at once.

    Returns:
        Whether it was made here; False where another run has made it meanwhile.
    """
    plan = plan_of(source, autoencoder, store, batch)
    made = Building(path.with_name(f".{path.name}.building"), plan, parallel.rank())
    with contextlib.ExitStack() as held:
        missing = parallel.broadcast(parallel.first(lambda: _begin(path, made, held)))
        if missing is None:
            return False
        share = parallel.rows(len(missing), parallel.rank(), parallel.world())
        blocks = [plan.blocks[missing[k]] for k in share]
        kept = plan.total - sum(len(plan.blocks[k]) for k in missing)
        try:
            with _encoding(autoencoder):
                parallel.together(lambda: _encode(path, made, blocks, source, autoencoder, progress, kept))
                parallel.first(lambda: _finish(path, made, source, autoencoder))
        except BaseException:
            if parallel.is_main():
                made.discard()
            raise
    return True


def _begin(path: Path, made: Building, held: contextlib.ExitStack) -> list[int] | None:
    """Numbers of the missing blocks; None where the cache is there. The lock is held until all is done."""
    with _writing(path, made.plan.needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone(path))
        if path.exists():
            return None
        needed, free = made.plan.needed, Disk().free(path.parent)
        if not made.folder.exists() and free < needed * 1.02:
            raise DiskError(f"the latent cache {path} takes {needed:,} bytes, {free:,} are free there")
        return made.begin()


@contextlib.contextmanager
def _encoding(autoencoder: Autoencoder) -> Iterator[None]:
    """In evaluation mode."""
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        yield
    finally:
        autoencoder.train(was_training)


def _encode(
    path: Path,
    made: Building,
    blocks: Sequence[Block],
    source: Source,
    autoencoder: Autoencoder,
    progress: Progress | None,
    kept: int,
) -> None:
    """Encode blocks; what is done when something stops it stays."""
    done, total = kept, kept + sum(len(block) for block in blocks)
    if progress is not None and blocks:
        progress(done, total)
    with _writing(path, made.plan.needed), contextlib.closing(ahead(source, blocks)) as found:
        try:
            for block, items in found:
                raws = _moments(autoencoder, items.x0, made.plan.store.posterior)
                stored = [made.plan.store.kept(raw) for raw in raws]
                losses = [error(raw, read) for raw, (_, read) in zip(raws, stored, strict=True)]
                made.put(block, [packed for packed, _ in stored], items.cond, Statistics.of(*raws), losses)
                done += len(block)
                if progress is not None:
                    progress(done, total)
        finally:
            made.commit()


def _moments(autoencoder: Autoencoder, images: Tensor, posterior: bool) -> list[Tensor]:
    """Mean, and standard deviation where it is asked for, float32 on the CPU."""
    with torch.no_grad():
        found = autoencoder.posterior(images.to(autoencoder.shift.device))
    if not posterior:
        return [found.mean.float().cpu()]
    if found.std is None:
        word = type(autoencoder).__name__
        raise CacheError(f"{word} has no posterior to sample from; leave `posterior` out of `latents`")
    return [found.mean.float().cpu(), found.std.float().cpu()]


def _finish(path: Path, made: Building, source: Source, autoencoder: Autoencoder) -> None:
    with _writing(path, made.plan.needed):
        manifest: dict[str, Any] = {}
        if not made.finished:
            contents = made.contents()
            index = roundtrip.chosen(source)
            raw = made.read(index, roundtrip.sides(source, index))
            kept = roundtrip.kept(source, autoencoder, index, raw)
            manifest = {**made.plan.json(), "rows": made.rows, **contents, "round_trip": kept.json()}
        made.finish(manifest, path)


@contextlib.contextmanager
def _writing(path: Path, needed: int) -> Iterator[None]:
    """Tell a failed write in the user's words."""
    try:
        yield
    except OSError as failure:
        raise disk_error(failure, path, needed) from failure
