"""The contract of autoencoders: images in, normalised latents out.

Raw latents exist only inside an autoencoder and in the cache; everything outside sees normalised ones. A
pretrained model's own scale and shift are therefore never applied: the normaliser, fitted on a full pass over the
training data in float64 and stored with the autoencoder, takes their place.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.normalisers import Channel, Normaliser, Statistics
from latentsb.norms import sharing
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Spec
from latentsb.tiles import Tiles, Tiling
from latentsb.trainable import Trainable

__all__ = ["AUTOENCODERS", "Autoencoder", "Moments", "sizes_near"]


@dataclass(frozen=True)
class Moments:
    """Raw posterior of an encoder.

    Args:
        mean: shape (B, *latent.shape), not normalised.
        std: same shape, or None for a deterministic encoder.
    """

    mean: Tensor
    std: Tensor | None = None


class Autoencoder(Trainable):
    """Maps images to latents and back; write `latent`, `moments` and `raw_decode`.

    Constructors take the image's shape first, which the builder gives: `__init__(self, images: Spec, *, …)`, and
    hand the recipe's normaliser on.

    Attributes:
        images: shape of one image.
        latent: shape of one latent.
        normaliser: how latents are normalised.
        trained: weights come from a file or from nowhere (identity), so no training stage is needed before use.
        deterministic: there is never a posterior to sample from, so that a recipe which asks for one is refused.
        latent_dtype: what the cache may store latents in without loss that matters.
        bounded: decoded images are clamped to [-1, 1].
        is_identity: raw latents are the samples themselves, so that nothing is gained by caching them.
        cached: raw latents are kept on disk; without, they are computed from the samples as these are read, on the CPU
            and without weights, because that costs less than reading them.
        any_size: its weights do not depend on the sides of an image, so that it takes other ones than it was built for.
        tiles: what tiles are to it; a class for which they are not refused takes the key `tiling` and hands it on.
        untiled: why tiles are refused, where they are.
        tiling: how large images are cut into tiles, outside of training; None: not at all.
    """

    needs_images = True

    images: Spec
    latent: Spec
    trained: bool = False
    deterministic: bool = False
    latent_dtype: torch.dtype = torch.float16
    bounded: bool = True
    is_identity: bool = False
    cached: bool = True
    any_size: bool = False
    tiles: Tiles = "refused"
    untiled: str = "nothing would be gained"
    tiling: Tiling | None = None

    def __init__(
        self,
        images: Spec,
        latent: Spec,
        *,
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        self.images, self.latent, self.normaliser = images, latent, normaliser
        self.use_tiling(tiling)
        per_channel = (latent.shape[0], *(1,) * (len(latent.shape) - 1))
        self.register_buffer("shift", torch.zeros(per_channel))
        self.register_buffer("scale", torch.ones(per_channel))
        self.register_buffer("fitted", torch.tensor(not normaliser.fits))
        self.shift: Tensor
        self.scale: Tensor
        self.fitted: Tensor

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of the recipe that were left null and follow from others, so that `resolved.yaml` says what was used.

        The shape of named weights, for example. What cannot be known here (a folder is gone) is left out. Nothing by
        default.

        Args:
            keys: every key of the class, defaults included.

        Raises:
            ArgumentError: if keys contradict each other.
        """
        return {}

    def load(self) -> None:
        """Read the pretrained weights that the recipe names; called once, on the CPU, before anything else is.

        Not called where all weights are overwritten anyway (another run's, a checkpoint's), nor where only shapes are
        asked for: a constructor needs no weights. Nothing by default.

        Raises:
            DataError: if they are missing or do not fit; says what to put where.
        """

    @property
    def needs_fit(self) -> bool:
        """Weights of closed form are still to be found by `fit`, which the engine calls before the first encoding.

        The answer follows from the buffers alone, so that another run's weights and a checkpoint's make it false.
        `fit` sees every image that will be encoded: both ends and mirror images, each as the x0 of some batch.
        """
        return False

    @abstractmethod
    def moments(self, images: Tensor) -> Moments:
        """Raw latents of images (B, C, H, W) in [-1, 1]."""

    @abstractmethod
    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1], of raw latents."""

    @final
    def use_tiling(self, tiling: Tiling | None) -> None:
        """From now on encode and decode in these tiles; as a whole if None.

        Raises:
            ArgumentError: if they are refused.
        """
        if tiling is not None and self.tiles == "refused":
            raise ArgumentError("tiling", f"'{AUTOENCODERS.word_of(self)}' does not work in tiles: {self.untiled}")
        self.tiling = tiling

    @property
    def cell(self) -> int:
        """Pixels of a side that make one of the latent's; 1 where these are no images."""
        return self.images.shape[1] // self.latent.shape[1] if len(self.images.shape) == 3 else 1

    @final
    def posterior(self, images: Tensor) -> Moments:
        """`moments`, in tiles where these are asked for: what is to be called outside of training."""
        if self.tiling is None:
            return self.moments(images)
        wide = False

        def act(tile: Tensor) -> Tensor:
            nonlocal wide
            found = self.moments(tile)
            wide = found.std is not None
            return found.mean if found.std is None else torch.cat([found.mean, found.std], 1)

        found = self._in_tiles(images, act, (images.shape[-2] // self.cell, images.shape[-1] // self.cell))
        return Moments(*found.chunk(2, 1)) if wide else Moments(found)

    def _in_tiles(self, x: Tensor, act: Callable[[Tensor], Tensor], cells: tuple[int, int]) -> Tensor:
        """Apply to tiles, or to the whole where it is one tile; group norms have statistics in common.

        Tiles that are normalised each by itself differ in brightness and contrast; with the statistics of a small map
        that stands for the whole they fit each other.
        """
        assert self.tiling is not None
        tiling = self.tiling
        if not tiling.splits((0, *cells), self.cell):
            return act(x)
        with sharing(self, lambda: act(tiling.digest(x, cells))):
            return tiling.over(x, act, cells, self.cell)

    @final
    def encode(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Normalised latents; the posterior mean without draws, a posterior sample with them."""
        found = self.posterior(images)
        raw = found.mean
        if draws is not None and found.std is not None:
            raw = raw + found.std * draws.normal("posterior", raw)
        return self.normalise(raw)

    @final
    def decode(self, latents: Tensor) -> Tensor:
        """Images of normalised latents, clamped to [-1, 1] where the autoencoder is `bounded`."""
        raw = self.denormalise(latents)
        if self.tiling is None:
            images = self.raw_decode(raw)
        else:
            images = self._in_tiles(raw, self.raw_decode, (raw.shape[-2], raw.shape[-1]))
        return images.clamp(-1.0, 1.0) if self.bounded else images

    @final
    def round_trip(self, images: Tensor) -> Tensor:
        """`decode(encode(images))`, without gradients: what the autoencoder itself loses."""
        with torch.no_grad():
            return self.decode(self.encode(images))

    @final
    def normalise(self, raw: Tensor) -> Tensor:
        """`(raw − shift) / scale`."""
        return (raw - self.shift.to(raw.dtype)) / self.scale.to(raw.dtype)

    @final
    def denormalise(self, latents: Tensor) -> Tensor:
        """`latents · scale + shift`."""
        return latents * self.scale.to(latents.dtype) + self.shift.to(latents.dtype)

    @final
    def fit_normaliser(self, raws: Iterable[Tensor]) -> None:
        """Fit the normaliser over a full pass of raw latents (B, *latent.shape), in float64."""
        if self.normaliser.fits:
            self.use_statistics(Statistics.over(raws))

    @final
    def use_statistics(self, found: Statistics) -> None:
        """Fit the normaliser to statistics that are already known, from a latent cache for example."""
        shift, scale = self.normaliser.affine(found)
        self.shift.copy_(shift.reshape(self.shift.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.fitted.fill_(True)

    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and bytes of the weights, so that a latent cache knows what wrote it.

        Tiles count where they change latents; the normaliser is left out, since caches hold raw latents.
        """
        digest = hashlib.sha256(type(self).__qualname__.encode())
        if self.tiling is not None and self.tiling.splits(self.latent.shape, self.cell):
            digest.update(f"\n{self.tiling}\n".encode())
        for name, value in sorted(self.state_dict().items()):
            if name not in ("shift", "scale", "fitted"):
                digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def sizes_near(images: Spec, factor: int) -> str:
    """A size that a factor does not divide, and the nearest that it does: `60×60; nearest that fit: 56×56 and 64×64`.

    Args:
        images: shape of one image, (C, H, W).
        factor: of each side, ≥ 1.
    """
    sides = images.shape[1:]
    below = [side // factor * factor for side in sides]
    above = [-(-side // factor) * factor for side in sides]
    fits = [below, above] if min(below) else [above]
    found, *near = ("×".join(map(str, size)) for size in (sides, *fits))
    return f"{found}; nearest that fit: {' and '.join(near)}"


AUTOENCODERS: Registry[Autoencoder] = Registry("autoencoder", Autoencoder)
