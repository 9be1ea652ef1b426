"""The values that cross rooms: shapes, conditions and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

__all__ = ["Batch", "Condition", "Spec", "expand_as"]


@dataclass(frozen=True)
class Spec:
    """Shape and type of one sample: a latent, an image, a vector, a condition.

    Args:
        shape: without the batch dimension; `(C, H, W)` for images and latents, `(D,)` for vectors, `()` for labels.
        dtype: of the tensor.
        classes: for labels only: how many values the integer may take.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    classes: int | None = None

    @property
    def numel(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Length of the first dimension; every channel is a latent channel, none is 'the image'."""
        return self.shape[0]

    def zeros(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """A batch of `n` zeros of this shape and type."""
        return torch.zeros((n, *self.shape), dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Condition:
    """Named values that a network may be conditioned on, and for which rows each is present.

    The names are fixed across the project: `label`, `attributes`, `image`, `z`, `x1`, `known`, `mask`, `history`.
    An absent value keeps its tensor (so shapes stay static); networks replace it by a learned null where
    `present` is false. This is what classifier-free dropout and guidance are made of.

    Args:
        values: each of shape (B, …).
        present: for each name, bool of shape (B,); a name without an entry is present everywhere.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def get(self, name: str) -> Tensor | None:
        """The value called `name`, or None."""
        return self.values.get(name)

    def mask(self, name: str) -> Tensor:
        """Rows in which `name` is present, bool of shape (B,)."""
        known = self.present.get(name)
        if known is not None:
            return known
        value = self.values[name]
        return torch.ones(len(value), dtype=torch.bool, device=value.device)

    def drop(self, name: str, rows: Tensor | None = None) -> Condition:
        """Mark `name` absent in `rows` (bool, shape (B,)); in all rows if None. Unknown names are ignored."""
        if name not in self.values:
            return self
        kept = self.mask(name)
        kept = torch.zeros_like(kept) if rows is None else kept & ~rows.to(kept.device)
        return replace(self, present={**self.present, name: kept})

    def with_(self, **values: Tensor) -> Condition:
        """A copy with these values added or replaced, present in every row."""
        present = {k: v for k, v in self.present.items() if k not in values}
        return Condition({**self.values, **values}, present)

    def without(self, *names: str) -> Condition:
        """A copy in which these names do not exist."""
        return Condition(
            {k: v for k, v in self.values.items() if k not in names},
            {k: v for k, v in self.present.items() if k not in names},
        )

    def select(self, rows: Tensor | slice) -> Condition:
        """The condition of some rows."""
        return Condition({k: v[rows] for k, v in self.values.items()}, {k: v[rows] for k, v in self.present.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Condition:
        """The same condition on another device."""
        return Condition(
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.values.items()},
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.present.items()},
        )


@dataclass(frozen=True)
class Batch:
    """Samples on their way into a loss or out of a start.

    Args:
        index: row numbers in the global batch (training) or sample seeds' positions (sampling), shape (B,), int64.
            Random draws belong to these rows, whatever the number of processes.
        x0: data end, normalised latents, shape (B, *spec.shape), or None where there is no data.
        x1: other end where the data has one, else None.
        cond: conditions of the same rows.
        seen: images of the global run before this batch.
        images: pixels in [-1, 1] of shape (B, C, H, W), where a part declares that it needs them.
    """

    index: Tensor
    x0: Tensor | None = None
    x1: Tensor | None = None
    cond: Condition = field(default_factory=Condition)
    seen: int = 0
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def data(self) -> Tensor:
        """`x0`, where a part cannot work without it.

        Raises:
            ValueError: if the batch has no data end.
        """
        if self.x0 is None:
            raise ValueError("this batch has no data end x0")
        return self.x0

    @property
    def pixels(self) -> Tensor:
        """`images`, where a part cannot work without them.

        Raises:
            ValueError: if the batch has no images.
        """
        if self.images is None:
            raise ValueError("this batch has no images")
        return self.images

    def select(self, rows: Tensor | slice) -> Batch:
        """Some rows of the batch."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        return Batch(self.index[rows], cut(self.x0), cut(self.x1), self.cond.select(rows), self.seen, cut(self.images))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; `index` stays where it is, since draws are planned on the host."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        return Batch(
            self.index,
            move(self.x0),
            move(self.x1),
            self.cond.to(device, non_blocking),
            self.seen,
            move(self.images),
        )


def expand_as(value: Tensor, like: Tensor) -> Tensor:
    """Give per-sample values of shape (B,) or () trailing dimensions so that they multiply `like`, in its dtype."""
    value = value.to(device=like.device, dtype=like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value
