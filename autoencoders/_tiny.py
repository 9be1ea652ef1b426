"""What the tiny autoencoders of the TAESD family share: their blocks, their use, how their published files are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from latentsb.autoencoder import Autoencoder, Moments, sizes_near
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.normalisers import Normaliser
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Loss
from latentsb.weights import ANY, MODEL, PAIR, files_of, fill, known, read

__all__ = ["Block", "Halves", "Pooled", "SoftClamp", "Tiny", "channels_of", "conv", "down", "entry", "tensors_of", "up"]

ACCEPTED = (PAIR, (MODEL,), (ANY,))


def conv(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3×3 convolution."""
    return nn.Conv2d(before, after, 3, stride, 1, bias=bias)


class SoftClamp(nn.Module):
    """`3 tanh(z / 3)`: latents beyond ±3 are drawn in."""

    def forward(self, z: Tensor) -> Tensor:
        """The clamped latents."""
        return torch.tanh(z / 3) * 3


class Block(nn.Module):
    """`relu(f(x) + x)` with three convolutions in `f`.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        branch: Tensor = self.conv(x)
        return (branch + x).relu()


class Pooled(Block):
    """A block whose input first gains a branch that is normalised over the whole image, and so sees all of it.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        wide = 4 * width
        self.pool = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return super().forward(x + self.pool(x))


def down(block: type[Block] = Block) -> list[nn.Module]:
    """Half the sides, then three blocks of 64 channels."""
    return [conv(64, 64, stride=2, bias=False), *(block(64) for _ in range(3))]


def entry(channels: int, width: int = 64) -> list[nn.Module]:
    """Where a decoder begins: the clamp, and a convolution of the latents."""
    return [SoftClamp(), conv(channels, width), nn.ReLU()]


def up(block: type[Block] = Block, width: int = 64, after: int = 64) -> list[nn.Module]:
    """Three blocks, then twice the sides."""
    return [*(block(width) for _ in range(3)), nn.Upsample(scale_factor=2), conv(width, after, bias=False)]


class Halves(nn.Module):
    """An encoder and a decoder whose images are in [0, 1], seen from outside as in [-1, 1].

    Args:
        encoder: images to latents.
        decoder: latents to images; its first layer is the clamp.
    """

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [-1, 1]."""
        latents: Tensor = self.encoder((images + 1) / 2)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Images, about [-1, 1], of latents."""
        images: Tensor = self.decoder(latents)
        return images * 2 - 1

    def load(self, weights: str | Path, word: str) -> None:
        """Read published weights.

        Args:
            weights: a known name; a folder with `*_encoder.safetensors` and `*_decoder.safetensors`, or with one file
                of both; or that file.
            word: of the autoencoder, for messages.

        Raises:
            DataError: if they are not there, or belong to another layout.
        """
        values, where = tensors_of(weights, word)
        fill(self, values, where)


class Tiny(Autoencoder):
    """A tiny pretrained autoencoder; write its two halves.

    Args:
        images: shape of one image, (3, H, W).
        model: the halves.
        channels: of the latent.
        weights: a known name, or the path of a folder or file.
        normaliser: of the latents.
        tiling: how large images are cut into tiles; null: not at all.

    Attributes:
        word: of the recipe.
        factor: of the sides, image over latent.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
    """

    trained = deterministic = True
    any_size = True
    word: ClassVar[str]
    factor: ClassVar[int]

    def __init__(
        self,
        images: Spec,
        model: Halves,
        *,
        channels: int,
        weights: str | Path,
        normaliser: Normaliser,
        tiling: Tiling | None = None,
    ) -> None:
        latent = latent_of(images, channels, self.factor, self.word)
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        known(weights, self.word)
        self.weights, self.model = weights, model

    def load(self) -> None:
        """Read the weights."""
        self.model.load(self.weights, self.word)

    def moments(self, images: Tensor) -> Moments:
        """The latents; there is no posterior."""
        return Moments(self.model.encode(images))

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of raw latents."""
        return self.model.decode(raw)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """None: it is used as it was published.

        Raises:
            CapabilityError: always.
        """
        message = "is pretrained and is not trained here; an autoencoder that can be trained is kl"
        raise CapabilityError(f"{self.word} {message}")


def tensors_of(weights: str | Path, word: str) -> tuple[dict[str, Tensor], Path]:
    """All tensors of published weights, named `encoder.0.weight` … as in `Halves`, and where they were found.

    Two namings are in use: the layers' places in each half, and diffusers', whose decoder does not count the clamp.
    """
    paths = files_of(weights, *ACCEPTED, owner=word)
    if len(paths) == 1:
        return dict(_renamed(read(paths[0]))), paths[0]
    halves = {
        f"{half}.{name}": v
        for half, path in zip(("encoder", "decoder"), paths, strict=True)
        for name, v in read(path).items()
    }
    return dict(_renamed(halves)), paths[0].parent


def _renamed(values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        half, *rest = name.split(".")
        if len(rest) > 1 and rest[0] == "layers" and rest[1].isdecimal():
            rest = [str(int(rest[1]) + (half == "decoder")), *rest[2:]]
        yield ".".join([half, *rest]), value


def channels_of(weights: str | Path, word: str) -> int:
    """Channels of the latents that published weights are for.

    Raises:
        DataError: if there are no such weights.
    """
    values, where = tensors_of(weights, word)
    first = values.get("decoder.1.weight")
    if first is None or first.ndim != 4:
        raise DataError(f"{where} does not fit: decoder.1.weight is missing")
    return first.shape[1]


def latent_of(images: Spec, channels: int, factor: int, word: str) -> Spec:
    """Shape of a latent.

    Raises:
        ArgumentError: if these are no RGB images, or their sides do not divide.
    """
    if len(images.shape) != 3 or images.channels != 3:
        cure = "; for grey images write channels: 3 in the data" if len(images.shape) == 3 else ""
        raise ArgumentError("images", f"{word} needs images (3, H, W), found samples of shape {images.shape}{cure}")
    if any(side % factor for side in images.shape[1:]):
        raise ArgumentError("images", f"{word} divides the sides by {factor}; images have {sizes_near(images, factor)}")
    return Spec((channels, *(side // factor for side in images.shape[1:])))
