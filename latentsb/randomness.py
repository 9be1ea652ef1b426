"""Randomness that belongs to samples, not to processes.

Every draw is a function of `(seed, purpose, position, name, row)`. Any number of processes and any split into
micro-batches therefore draw the same numbers, and a resumed run needs no saved generator state.

On the CPU the bits come from numpy's Philox, keyed by the 128-bit hash of those labels (torch's CPU generator
keeps 32 bits of its seed, so 65,000 seeds would already share streams). On an accelerator they come from its own
64-bit generator: equal there for any number of processes, but not equal to the CPU's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws", "numpy_generator"]

BLOCK = 32
"""Rows that share one stream: a process draws only the blocks that it has rows in."""


def key_of(*labels: int | str) -> int:
    """128 bits that depend on every label, and on its type and place."""
    text = "\x1f".join(f"{type(label).__name__}:{label}" for label in labels)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class _Key(np.random.bit_generator.ISeedSequence):
    """A key, in the form in which a bit generator asks for its seed.

    `Philox(key=…)` gives the same stream, but draws the system's entropy first and throws it away: three times slower.
    """

    def __init__(self, key: int) -> None:
        self.words = np.frombuffer(key.to_bytes(16, "little"), dtype="<u8")

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """The two words of the key, which is what Philox asks for."""
        assert n_words == len(self.words)
        return self.words


def numpy_generator(*labels: int | str) -> np.random.Generator:
    """A generator whose stream is a function of the labels, for orders and host-side choices."""
    key: Any = _Key(key_of(*labels))  # numpy takes it, but its annotations know no other type than its own
    return np.random.Generator(np.random.Philox(key))


@dataclass(frozen=True)
class _Stream:
    """Where a row's numbers come from: `key` names a stream, `offset` the row inside it."""

    key: tuple[int | str, ...]
    offsets: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Draws:
    """Source of random numbers for the rows of one batch.

    Build one with `Draws.step` (training), `Draws.seeds` (sampling) or `Draws.block` (simulated pairs). The same
    name gives the same numbers: code that draws repeatedly forks (`draws.fork("step 3")`).

    Args:
        streams: which streams serve which rows.
        size: number of rows B.
        path: names of the forks taken so far.
    """

    streams: tuple[_Stream, ...]
    size: int
    path: tuple[str, ...] = field(default=())

    @classmethod
    def step(cls, seed: int, purpose: str, seen: int, rows: Sequence[int] | Tensor) -> Draws:
        """Draws of one training step.

        Args:
            seed: of the run.
            purpose: what they serve, such as `loss`.
            seen: images of the whole run before this step.
            rows: positions of this process's rows in the global batch.
        """
        places = tuple(rows.tolist() if isinstance(rows, Tensor) else map(int, rows))
        streams = tuple(_Stream((seed, purpose, seen, block), offsets, at) for block, offsets, at in _blocks(places))
        return cls(streams, len(places))

    @classmethod
    def seeds(cls, seeds: Sequence[int] | Tensor) -> Draws:
        """Draws for generated samples: row i depends on `seeds[i]` alone."""
        values = [int(s) for s in seeds]
        return cls(tuple(_Stream(("sample", s), (0,), (i,)) for i, s in enumerate(values)), len(values))

    @classmethod
    def block(cls, seed: int, purpose: str, k: int, size: int) -> Draws:
        """Draws of the k-th fixed block of `size` simulated samples."""
        return cls.step(seed, purpose, k, range(size))

    def fork(self, name: str) -> Draws:
        """Independent draws for the same rows."""
        return Draws(self.streams, self.size, (*self.path, name))

    def select(self, rows: range) -> Draws:
        """Draws of consecutive rows, numbered from zero again: the numbers that these rows have among all."""
        streams = []
        for stream in self.streams:
            if stream.rows[-1] < rows.start or stream.rows[0] >= rows.stop:
                continue
            kept = [(o, r - rows.start) for o, r in zip(stream.offsets, stream.rows, strict=True) if r in rows]
            if kept:
                streams.append(_Stream(stream.key, *zip(*kept, strict=True)))
        return Draws(tuple(streams), len(rows), self.path)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like`, shape (B, …).

        Raises:
            ValueError: if `like` does not have B rows.
        """
        if len(like) != self.size:
            raise ValueError(f"these draws serve {self.size} rows, got a tensor of {len(like)}")
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        if like.device.type == "cpu":
            kind = np.float64 if wide == torch.float64 else np.float32

            def host(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
                return torch.from_numpy(rng.standard_normal(shape, dtype=kind))

            return self._rows(name, like.shape[1:], wide, like.device, host).to(like.dtype)
        return self._device_normal(name, like, wide).to(like.dtype)

    def uniform(self, name: str) -> Tensor:
        """Uniform numbers in [0, 1), float64, on the CPU, shape (B,)."""
        return self._rows(
            name, (), torch.float64, torch.device("cpu"), lambda rng, shape: torch.from_numpy(rng.random(shape))
        )

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform integers in [0, high), int64, on the CPU, shape (B,)."""
        return self._rows(
            name,
            (),
            torch.int64,
            torch.device("cpu"),
            lambda rng, shape: torch.from_numpy(rng.integers(high, size=shape)),
        )

    def _rows(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        draw: Callable[[np.random.Generator, tuple[int, ...]], Tensor],
    ) -> Tensor:
        out = torch.empty((self.size, *shape), dtype=dtype, device=device)
        for stream in self.streams:
            rng = numpy_generator(*stream.key, *self.path, name)
            # numpy fills in order, so a prefix of a block is the same whatever its length.
            drawn = draw(rng, (max(stream.offsets) + 1, *shape))
            out[_places(stream.rows)] = drawn[_places(stream.offsets)]
        return out

    def _device_normal(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty(like.shape, dtype=dtype, device=like.device)
        for stream in self.streams:
            rng = torch.Generator(device=like.device)
            rng.manual_seed(key_of(*stream.key, *self.path, name) & (2**63 - 1))
            # A device generator is not prefix-stable, so a block is always drawn whole.
            length = BLOCK if len(stream.key) == 4 else 1
            drawn = torch.randn((length, *like.shape[1:]), generator=rng, dtype=dtype, device=like.device)
            if stream.offsets[0] == 0 and _contiguous(stream.offsets) and _contiguous(stream.rows):
                out[stream.rows[0] : stream.rows[-1] + 1] = drawn[: len(stream.offsets)]
            else:
                index = torch.tensor([stream.rows, stream.offsets]).to(like.device, non_blocking=True)
                out[index[0]] = drawn[index[1]]
        return out


@lru_cache(maxsize=16)
def _blocks(places: tuple[int, ...]) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    """The blocks of rows that a process has a part in: number, places inside it, positions among the rows."""
    blocks: dict[int, list[int]] = {}
    for local, place in enumerate(places):
        blocks.setdefault(place // BLOCK, []).append(local)
    return tuple((block, tuple(places[i] % BLOCK for i in local), tuple(local)) for block, local in blocks.items())


def _places(rows: tuple[int, ...]) -> slice | list[int]:
    """An index of these rows; a slice where they follow each other, which is faster."""
    return slice(rows[0], rows[-1] + 1) if _contiguous(rows) else list(rows)


def _contiguous(rows: tuple[int, ...]) -> bool:
    return rows == tuple(range(rows[0], rows[0] + len(rows)))
