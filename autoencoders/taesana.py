"""The TAESD family at a thirty-second of the sides: the tiny autoencoder of Sana's latents."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from latentsb.autoencoder import AUTOENCODERS
from latentsb.normalisers import Channel, Normaliser
from latentsb.tensors import Spec
from latentsb.tiles import Tiling

from ._tiny import Block, Halves, Tiny, conv, down, entry, up

__all__ = ["TAESana"]

CHANNELS = 32


@AUTOENCODERS.register("taesana")
class TAESana(Tiny):
    """Tiny pretrained autoencoder, 32 channels at a thirty-second of the sides, deterministic.

    Nothing in it is normalised over the image, so a latent sees a bounded neighbourhood.

    Source: Boer Bohan 2025, Tiny AutoEncoder for Sana, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 32.
        weights: path of a folder or file, as safetensors.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap; null: not at all.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
    """

    word, factor = "taesana", 32
    tiles = "exact"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path,
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        model = Halves(_encoder(), _decoder())
        super().__init__(images, model, channels=CHANNELS, weights=weights, normaliser=normaliser, tiling=tiling)


def _encoder() -> nn.Sequential:
    head = (conv(3, 32, stride=2), nn.ReLU(), conv(32, 64, stride=2), nn.ReLU(), Block(64))
    return nn.Sequential(*head, *down(), *down(), *down(), conv(64, CHANNELS))


def _decoder() -> nn.Sequential:
    head = (*entry(CHANNELS, 256), *up(width=256, after=128), *up(width=128))
    return nn.Sequential(*head, *up(), *up(), *up(), Block(64), conv(64, 3))
