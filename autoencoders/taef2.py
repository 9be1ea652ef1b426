"""TAEF2: the tiny autoencoder of FLUX.2's latents, whose middle is normalised over the whole image."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from latentsb.autoencoder import AUTOENCODERS
from latentsb.normalisers import Channel, Normaliser
from latentsb.tensors import Spec
from latentsb.tiles import Tiling

from ._tiny import Block, Halves, Pooled, Tiny, conv, down, entry, up

__all__ = ["TAEF2"]

CHANNELS = 32


@AUTOENCODERS.register("taef2")
class TAEF2(Tiny):
    """Tiny pretrained autoencoder, 32 channels at an eighth of the sides, deterministic.

    Its blocks at the lowest resolution are normalised over the whole image, so latents depend on crop and resolution,
    and an image cannot be encoded in tiles.

    Source: Boer Bohan 2026, Tiny AutoEncoder for FLUX.2, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (3, H, W); the sides are multiples of 8.
        weights: a known name, or the path of a folder or file.
        normaliser: of the latents.
        tiling: null; all else is refused.

    Raises:
        ArgumentError: if images are not of this form, or the weights belong to another autoencoder.
    """

    word, factor = "taef2", 8
    untiled = "it normalises over the whole image, so that tiles differ from each other in brightness and contrast"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path = "taef2",
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        model = Halves(_encoder(), _decoder())
        super().__init__(images, model, channels=CHANNELS, weights=weights, normaliser=normaliser, tiling=tiling)


def _encoder() -> nn.Sequential:
    return nn.Sequential(conv(3, 64), Block(64), *down(), *down(), *down(Pooled), conv(64, CHANNELS))


def _decoder() -> nn.Sequential:
    return nn.Sequential(*entry(CHANNELS), *up(Pooled), *up(), *up(), Block(64), conv(64, 3))
