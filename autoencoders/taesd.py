"""The TAESD family at an eighth of the sides: tiny autoencoders of Stable Diffusion's and FLUX.1's latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from latentsb.autoencoder import AUTOENCODERS
from latentsb.errors import ArgumentError, DataError
from latentsb.normalisers import Channel, Normaliser
from latentsb.ranges import Count
from latentsb.tensors import Spec
from latentsb.tiles import Tiling
from latentsb.weights import known

from ._tiny import Block, Halves, Tiny, channels_of, conv, down, entry, up

__all__ = ["TAESD"]


@AUTOENCODERS.register("taesd")
class TAESD(Tiny):
    """Tiny pretrained autoencoder, 4 or 16 channels at an eighth of the sides, deterministic.

    Nothing in it is normalised over the image, so a latent sees a bounded neighbourhood.

    Source: Boer Bohan 2023, Tiny AutoEncoder for Stable Diffusion, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 8.
        weights: a known name (`taesd`, `taesdxl`, `taesd3`, `taef1`), or the path of a folder or file.
        latent_channels: of the latent; null: as the weights have them.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap; null: not at all.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
        DataError: if the number of channels can only be had from weights that are not there.
    """

    word, factor = "taesd", 8
    tiles = "exact"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path = "taesd",
        latent_channels: Count | None = None,
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        keys = {"weights": weights, "latent_channels": latent_channels}
        channels = {**keys, **self.completed(keys)}["latent_channels"] or channels_of(weights, self.word)
        model = Halves(_encoder(channels), _decoder(channels))
        super().__init__(images, model, channels=channels, weights=weights, normaliser=normaliser, tiling=tiling)

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The number of channels, where the weights say it.

        Raises:
            ArgumentError: if the weights have another one.
        """
        weights, asked = keys["weights"], keys["latent_channels"]
        found = known(weights, cls.word)
        try:
            channels = found.shape["latent_channels"] if found is not None else channels_of(weights, cls.word)
        except DataError:
            return {}
        if asked not in (None, channels):
            raise ArgumentError(
                "latent_channels", f"found {asked}; the weights '{weights}' have {channels} (leave it out)"
            )
        return {"latent_channels": channels}


def _encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(conv(3, 64), Block(64), *down(), *down(), *down(), conv(64, channels))


def _decoder(channels: int) -> nn.Sequential:
    return nn.Sequential(*entry(channels), *up(), *up(), *up(), Block(64), conv(64, 3))
