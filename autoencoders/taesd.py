"""The TAESD family at an eighth of the sides: tiny autoencoders of Stable Diffusion's and FLUX.1's latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError, DataError
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss
from latentsb.weights import known

from ._tiny import Block, Halves, SoftClamp, channels_of, conv, latent_of, untrained

__all__ = ["TAESD"]

WORD, WIDTH, FACTOR = "taesd", 64, 8


@AUTOENCODERS.register(WORD)
class TAESD(Autoencoder):
    """Tiny pretrained autoencoder, 4 or 16 channels at an eighth of the sides, deterministic.

    Nothing in it is normalised over the image, so a latent sees a bounded neighbourhood.

    Source: Boer Bohan 2023, Tiny AutoEncoder for Stable Diffusion, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 8.
        weights: a known name (`taesd`, `taesdxl`, `taesd3`, `taef1`), or the path of a folder or file.
        latent_channels: of the latent; null: as the weights have them.
        normaliser: of the latents.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
        DataError: if the number of channels can only be had from weights that are not there.
    """

    trained = True
    tileable = True

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path = WORD,
        latent_channels: Count | None = None,
        normaliser: Normaliser = Channel(),
    ) -> None:
        keys = {"weights": weights, "latent_channels": latent_channels}
        channels = {**keys, **self.completed(keys)}["latent_channels"] or channels_of(weights)
        super().__init__(images, latent_of(images, channels, FACTOR, WORD), normaliser=normaliser)
        self.weights = weights
        self.model = Halves(_encoder(channels), _decoder(channels))

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The number of channels, where the weights say it.

        Raises:
            ArgumentError: if the weights have another one.
        """
        weights, asked = keys["weights"], keys["latent_channels"]
        found = known(weights, WORD)
        try:
            channels = found.shape["latent_channels"] if found is not None else channels_of(weights)
        except DataError:
            return {}
        if asked not in (None, channels):
            raise ArgumentError(
                "latent_channels", f"found {asked}; the weights '{weights}' have {channels} (leave it out)"
            )
        return {"latent_channels": channels}

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


def _encoder(channels: int) -> nn.Sequential:
    def down() -> list[nn.Module]:
        return [conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH) for _ in range(3))]

    return nn.Sequential(conv(3, WIDTH), Block(WIDTH), *down(), *down(), *down(), conv(WIDTH, channels))


def _decoder(channels: int) -> nn.Sequential:
    def up() -> list[nn.Module]:
        return [*(Block(WIDTH) for _ in range(3)), nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]

    head = (SoftClamp(), conv(channels, WIDTH), nn.ReLU())
    return nn.Sequential(*head, *up(), *up(), *up(), Block(WIDTH), conv(WIDTH, 3))
