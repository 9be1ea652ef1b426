"""Stores: the numbers in which a cache keeps raw latents, and what they lose.

Latents are kept in blocks of a few samples. What a store makes of a block depends on that block alone, so that
blocks may be written in any order, by any process, and again after a kill.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latentsb.errors import DataError
from latentsb.registry import Registry

__all__ = ["STORES", "Auto", "BFloat16", "Float16", "Float32", "Packed", "Store", "UInt8", "error"]

LEVELS = 255


@dataclass(frozen=True)
class Packed:
    """A block as it is kept.

    Args:
        rows: shape (B, C, …), of the store's type.
        affine: least value and step of each channel, float32 of shape (2, C); None where the store has none.
    """

    rows: np.ndarray
    affine: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Store(ABC):
    """How raw latents are kept; write `dtype`, `pack` and `unpack`.

    Args:
        posterior: keep the standard deviation of the encoder's posterior too; a latent is then sampled each time it
            is drawn.
    """

    posterior: bool = False

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """Of the numbers on disk."""

    @property
    def ranged(self) -> bool:
        """Every block has a range of its own for each channel."""
        return False

    def resolved(self, wanted: torch.dtype) -> Store:
        """This store; `auto` becomes the one of the autoencoder's `latent_dtype`."""
        return self

    @abstractmethod
    def pack(self, raw: Tensor) -> Packed:
        """What is kept of a block of raw latents (B, C, …), float32 on the CPU."""

    @abstractmethod
    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """Raw latents again, float32.

        Args:
            rows: shape (B, C, …), as kept.
            affine: of each row's block, shape (B, 2, C), where the store is `ranged`.
        """

    def kept(self, raw: Tensor) -> tuple[Packed, Tensor]:
        """What is kept of a block, and the latents that will be read from it.

        Raises:
            DataError: if the latents are not finite, or would not be as they are kept.
        """
        packed = self.pack(raw)
        affine = None if packed.affine is None else torch.from_numpy(packed.affine).expand(len(raw), -1, -1)
        found = self.unpack(packed.rows, affine)
        if not (torch.isfinite(found).all() and torch.isfinite(raw).all()):
            worst = float(raw.abs().max())
            raise DataError(f"the autoencoder returned latents up to {worst:g}, which are not finite as {self.dtype}")
        return packed, found


STORES: Registry[Store] = Registry("store", Store, homes=("latentsb.stores",))


@STORES.register("float32")
@dataclass(frozen=True, kw_only=True)
class Float32(Store):
    """Single precision: latents as the autoencoder returns them."""

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def pack(self, raw: Tensor) -> Packed:
        """The latents."""
        return Packed(raw.numpy())

    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """The latents."""
        return torch.from_numpy(rows)


@STORES.register("float16")
@dataclass(frozen=True, kw_only=True)
class Float16(Store):
    """Half precision: 11 bits, a relative error of 2⁻¹¹ at most, up to 65,504."""

    @property
    def dtype(self) -> np.dtype:
        """float16."""
        return np.dtype(np.float16)

    def pack(self, raw: Tensor) -> Packed:
        """Rounded to the nearest."""
        return Packed(raw.half().numpy())

    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """Exactly what is kept."""
        return torch.from_numpy(rows).float()


@STORES.register("bfloat16")
@dataclass(frozen=True, kw_only=True)
class BFloat16(Store):
    """Half precision of 8 bits, a relative error of 2⁻⁸ at most, with the range of single precision.

    On disk stand its bits as 16-bit integers, since `.npy` files know no such type.
    """

    @property
    def dtype(self) -> np.dtype:
        """Of the bits."""
        return np.dtype(np.int16)

    def pack(self, raw: Tensor) -> Packed:
        """Rounded to the nearest."""
        return Packed(raw.bfloat16().view(torch.int16).numpy())

    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """Exactly what is kept."""
        return torch.from_numpy(rows).view(torch.bfloat16).float()


@STORES.register("uint8")
@dataclass(frozen=True, kw_only=True)
class UInt8(Store):
    """One byte: 256 even levels over the range of each channel in a block, an error of half a level at most."""

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def ranged(self) -> bool:
        """Yes."""
        return True

    def pack(self, raw: Tensor) -> Packed:
        """The nearest levels; a channel without range has level 0 and step 0."""
        flat = raw.transpose(0, 1).flatten(1)
        low = flat.amin(1)
        step = ((flat.amax(1).double() - low.double()) / LEVELS).float()
        affine = torch.stack([low, step])
        least, width = (_over(part[None], raw.ndim) for part in affine)
        levels = ((raw - least) / torch.where(width > 0, width, torch.ones_like(width))).round().clamp(0, LEVELS)
        return Packed(levels.nan_to_num().to(torch.uint8).numpy(), affine.numpy())

    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """`least + level · step`."""
        assert affine is not None
        least, step = (_over(affine[:, k], rows.ndim) for k in (0, 1))
        return torch.addcmul(least.expand(rows.shape), torch.from_numpy(rows).float(), step)


def _over(values: Tensor, dimensions: int) -> Tensor:
    """Values (B, C) beside numbers (B, C, …)."""
    return values.reshape(*values.shape, *(1,) * (dimensions - 2))


OF_TYPE: dict[torch.dtype, Store] = {torch.float16: Float16(), torch.bfloat16: BFloat16(), torch.float32: Float32()}


@STORES.register("auto")
@dataclass(frozen=True, kw_only=True)
class Auto(Store):
    """What the autoencoder declares to lose nothing that matters (`latent_dtype`): half precision, or single."""

    def resolved(self, wanted: torch.dtype) -> Store:
        """The store of that type; single precision for a type that no store has."""
        return replace(OF_TYPE.get(wanted, Float32()), posterior=self.posterior)

    @property
    def dtype(self) -> np.dtype:
        """Not known without an autoencoder."""
        raise TypeError("`auto` keeps nothing itself: ask `resolved`")

    def pack(self, raw: Tensor) -> Packed:
        """Not known without an autoencoder."""
        raise TypeError("`auto` keeps nothing itself: ask `resolved`")

    def unpack(self, rows: np.ndarray, affine: Tensor | None = None) -> Tensor:
        """Not known without an autoencoder."""
        raise TypeError("`auto` keeps nothing itself: ask `resolved`")


def error(raw: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """What storing a block loses: largest absolute error and sum of squared errors of each channel, float64 (C,)."""
    apart = (read.double() - raw.double()).transpose(0, 1).flatten(1)
    return apart.abs().amax(1), apart.square().sum(1)
