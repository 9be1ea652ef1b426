"""TAEF2: the tiny autoencoder of FLUX.2's latents, whose middle is normalised over the whole image."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss
from latentsb.weights import known

from ._tiny import Block, Halves, Pooled, SoftClamp, conv, latent_of, untrained

__all__ = ["TAEF2"]

WORD, CHANNELS, WIDTH, FACTOR = "taef2", 32, 64, 8


@AUTOENCODERS.register(WORD)
class TAEF2(Autoencoder):
    """Tiny pretrained autoencoder, 32 channels at an eighth of the sides, deterministic.

    Its blocks at the lowest resolution are normalised over the whole image, so latents depend on crop and resolution,
    and an image cannot be encoded in tiles.

    Source: Boer Bohan 2026, Tiny AutoEncoder for FLUX.2, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 8.
        weights: a known name, or the path of a folder or file.
        normaliser: of the latents.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
    """

    trained = True

    def __init__(self, images: Spec, *, weights: str | Path = WORD, normaliser: Normaliser = Channel()) -> None:
        super().__init__(images, latent_of(images, CHANNELS, FACTOR, WORD), normaliser=normaliser)
        known(weights, WORD)
        self.weights = weights
        self.model = Halves(_encoder(), _decoder())

    def load(self) -> None:
        """Read the weights."""
        self.model.load(self.weights)

    def moments(self, images: Tensor) -> Moments:
        """The latents; there is no posterior."""
        return Moments(self.model.encode(images))

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of raw latents."""
        return self.model.decode(raw)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """None: it is used as it was published."""
        raise untrained(WORD)


def _encoder() -> nn.Sequential:
    def down(block: type[Block]) -> list[nn.Module]:
        return [conv(WIDTH, WIDTH, stride=2, bias=False), *(block(WIDTH) for _ in range(3))]

    return nn.Sequential(conv(3, WIDTH), Block(WIDTH), *down(Block), *down(Block), *down(Pooled), conv(WIDTH, CHANNELS))


def _decoder() -> nn.Sequential:
    def up(block: type[Block]) -> list[nn.Module]:
        return [*(block(WIDTH) for _ in range(3)), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]

    head = (SoftClamp(), conv(CHANNELS, WIDTH), nn.ReLU())
    return nn.Sequential(*head, *up(Pooled), *up(Block), *up(Block), Block(WIDTH), conv(WIDTH, 3))
