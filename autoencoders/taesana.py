"""The TAESD family at a thirty-second of the sides: the tiny autoencoder of Sana's latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss
from latentsb.weights import known

from ._tiny import Block, Halves, SoftClamp, conv, latent_of, untrained

__all__ = ["TAESana"]

WORD, CHANNELS, FACTOR = "taesana", 32, 32


@AUTOENCODERS.register(WORD)
class TAESana(Autoencoder):
    """Tiny pretrained autoencoder, 32 channels at a thirty-second of the sides, deterministic.

    Nothing in it is normalised over the image, so a latent sees a bounded neighbourhood.

    Source: Boer Bohan 2025, Tiny AutoEncoder for Sana, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 32.
        weights: path of a folder or file, as safetensors.
        normaliser: of the latents.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
    """

    trained = True
    tileable = True

    def __init__(self, images: Spec, *, weights: str | Path, normaliser: Normaliser = Channel()) -> None:
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
    def down() -> list[nn.Module]:
        return [conv(64, 64, stride=2, bias=False), *(Block(64) for _ in range(3))]

    head = (conv(3, 32, stride=2), nn.ReLU(), conv(32, 64, stride=2), nn.ReLU(), Block(64))
    return nn.Sequential(*head, *down(), *down(), *down(), conv(64, CHANNELS))


def _decoder() -> nn.Sequential:
    def up(width: int, after: int) -> list[nn.Module]:
        return [*(Block(width) for _ in range(3)), nn.Upsample(scale_factor=2), conv(width, after, bias=False)]

    head = (SoftClamp(), conv(CHANNELS, 256), nn.ReLU())
    stages = (*up(256, 128), *up(128, 64), *up(64, 64), *up(64, 64), *up(64, 64))
    return nn.Sequential(*head, *stages, Block(64), conv(64, 3))
