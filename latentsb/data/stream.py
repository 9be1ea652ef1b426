"""The stream: which samples stand in which row of which batch.

Order is a function of `(seed, images seen)` alone. A resumed run therefore needs no state of its loader, and the
rows of any number of processes, put together, are the batch of one process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.data.source import Items, Source
from latentsb.errors import ArgumentError, DataError
from latentsb.randomness import Draws, numpy_generator
from latentsb.tensors import Batch, Condition

__all__ = ["Prefetched", "Stream"]


@lru_cache(maxsize=8)
def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """Order of the n samples in one epoch, read-only."""
    order = numpy_generator(seed, purpose, epoch).permutation(n)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=8)
def coins(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """A fair coin for each place of one epoch, read-only."""
    sides = numpy_generator(seed, purpose, epoch).integers(2, size=n, dtype=np.int8)
    sides.setflags(write=False)
    return sides


class Stream:
    """Batches of a source as a pure function of the images seen.

    Sample `k` of the run (k = images seen + row) is place `k mod n` of epoch `k // n`, and every epoch is a
    permutation of the n samples: batches run over the ends of epochs, none is short and no sample is dropped.
    Of a source that is a law without samples, batches bring rows only.

    Mirroring is a fair coin for each place of each epoch, where the source allows it.

    Args:
        source: what is read.
        seed: of the run.
        batch: rows of the global batch, ≥ 1.
        rows: this process's rows of the global batch; all by default.
        aligned: deliver each x0 with its partner (True) or with an x1 that is ordered independently (False);
            has no effect where the source has no x1.
        images: a source of pixels with the same samples, for parts that need them (it may be `source` itself).

    Raises:
        DataError: if the source is empty, or is asked for partners that it does not have.
        ArgumentError: if a row lies outside of the batch.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batch: int,
        rows: Sequence[int] | None = None,
        aligned: bool = False,
        images: Source | None = None,
    ) -> None:
        if batch < 1:
            raise ArgumentError("batch", f"found {batch}, expected at least 1")
        self.rows = np.arange(batch) if rows is None else np.asarray(rows, dtype=np.int64)
        if self.rows.size == 0 or self.rows.min() < 0 or self.rows.max() >= batch:
            raise ArgumentError("rows", f"found {self.rows.tolist()}, expected rows of a batch of {batch}")
        self._rows = tuple(self.rows.tolist())
        self._span = min(self._rows), max(self._rows)
        if len(source) == 0 and source.x0 is None:
            raise DataError(f"the data '{type(source).__name__}' are empty: no batch can be made of them")
        if aligned and source.two_sided and not source.paired:
            raise DataError(
                f"the data '{type(source).__name__}' have no pairs, and the coupling asks for the partner of each x0; "
                "take a coupling of unrelated ends, or data of pairs"
            )
        if images is not None and len(images) != len(source):
            raise DataError(f"pixels and latents are of different data: {len(images)} and {len(source)} samples")
        self.source, self.seed, self.size, self.aligned, self.images = source, seed, batch, aligned, images

    @property
    def epoch_images(self) -> int:
        """Images in one epoch."""
        return len(self.source)

    def batch(self, seen: int) -> Batch:
        """This process's rows of the batch that begins after `seen` images of the whole run."""
        if len(self.source) == 0:
            return Batch(torch.from_numpy(self.rows), seen=seen)
        index, variant = self._places("", seen, len(self.source))
        draws = Draws.step(self.seed, "read", seen, self._rows)
        found = self.source.draw(index, variant, draws)
        x1 = found.x1
        if self.source.two_sided and not self.aligned:
            x1 = self.source.draw_x1(*self._places(" of x1", seen, self.source.partners), draws.fork("x1"))
        return _batch(found, torch.from_numpy(self.rows), x1, seen, self._pixels(found, index, variant))

    def _pixels(self, found: Items, index: np.ndarray, variant: np.ndarray | None) -> Tensor | None:
        if self.images is None or self.images is self.source:
            return None if self.images is None else found.x0
        return self.images.read(index, variant).x0

    def _places(self, end: str, seen: int, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Positions in the source, and mirroring, of this process's rows."""
        position = seen + self.rows
        first, last = ((seen + row) // n for row in self._span)
        index = np.empty(len(position), dtype=np.int64)
        variant = np.zeros(len(position), dtype=np.int64) if self.source.variants == 2 else None
        for epoch in range(first, last + 1):
            at: Any = slice(None) if first == last else position // n == epoch
            index[at] = permutation(self.seed, f"order{end}", epoch, n)[position[at] % n]
            if variant is not None:
                variant[at] = coins(self.seed, f"flip{end}", epoch, n)[position[at] % n]
        return index, variant

    def prefetched(self, start: int, stop: int, depth: int = 2) -> Prefetched:
        """Iterate over the batches from `start` to `stop` images, read ahead in one background thread.

        Args:
            start: images seen before the first batch.
            stop: images seen at which to end; the last batch begins before it.
            depth: batches that may wait, ≥ 1.
        """
        return Prefetched(self, range(start, stop, self.size), depth)

    def passes(self, batch: int) -> Iterator[Batch]:
        """One pass over all samples in their own order, unmirrored; the last batch may be short."""
        for first in range(0, len(self.source), batch):
            index = np.arange(first, min(first + batch, len(self.source)))
            found = self.source.read(index)
            yield _batch(found, torch.from_numpy(index), found.x1, 0, self._pixels(found, index, None))


def _batch(found: Items, rows: Tensor, x1: Tensor | None, seen: int, pixels: Tensor | None) -> Batch:
    return Batch(rows, found.x0, x1, Condition(dict(found.cond)), seen, pixels)


class Prefetched(Iterator[Batch]):
    """Batches that a background thread reads ahead; a context manager that always ends its thread.

    Attributes:
        waited: seconds for which the consumer has waited for data, in all.
    """

    def __init__(self, stream: Stream, places: range, depth: int) -> None:
        if depth < 1:
            raise ArgumentError("depth", f"found {depth}, expected at least 1")
        self.waited = 0.0
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
        self._closing = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(stream, places), name="data", daemon=True)
        self._thread.start()

    def _read(self, stream: Stream, places: range) -> None:
        try:
            for seen in places:
                if not self._put(stream.batch(seen)):
                    return
            self._put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> Batch:
        if self._ended:
            raise StopIteration
        began = time.perf_counter()
        item = self._ready.get()
        self.waited += time.perf_counter() - began
        if isinstance(item, Batch):
            return item
        self.close()
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """End the thread; batches that were read ahead are dropped."""
        self._ended = True
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
