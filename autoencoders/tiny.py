"""A tiny autoencoder of any shape, from a folder of weights or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Moments
from latentsb.errors import ArgumentError
from latentsb.normalisers import Channel, Normaliser
from latentsb.process.distances import Absolute, Distance
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Loss

from ._folder import Foldered, latent_of, reconstruction

__all__ = ["Small"]

NEW: dict[str, Any] = {
    "latent_channels": 4,
    "encoder_width": 32,
    "decoder_width": 32,
    "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 1),
}
"""The shape of a model that is trained from nothing."""
PUBLISHED = {
    "latent_channels": ("latent_channels", 4),
    "encoder_blocks": ("num_encoder_blocks", (1, 3, 3, 3)),
    "decoder_blocks": ("num_decoder_blocks", (3, 3, 3, 1)),
}
WIDTHS = {"encoder_width": "encoder_block_out_channels", "decoder_width": "decoder_block_out_channels"}


@AUTOENCODERS.register("tiny")
class Small(Foldered):
    """Tiny deterministic autoencoder of any width and depth, diffusers' `AutoencoderTiny`.

    Convolutions and rectifiers alone: nothing is normalised over the image, so a latent sees a bounded
    neighbourhood. The decoder draws latents in by `3 tanh(z / 3)`. The loss is `mean d(x̂ − x)`.

    The published ones of this family are `taesd`, `taef2` and `taesana`.

    Source: Boer Bohan 2023, Tiny AutoEncoder for Stable Diffusion, github.com/madebyollin/taesd.

    Args:
        images: shape of one image, (C, H, W); the sides are multiples of 2^(resolutions − 1).
        weights: a folder with `config.json` and `diffusion_pytorch_model.safetensors`; null to train from nothing.
            With weights, the keys of the shape need not be given, and must not contradict.
        latent_channels: channels of a latent; null: the weights', or 4.
        encoder_width: channels at every resolution; null: the weights', or 32.
        decoder_width: likewise; null: the weights', or 32.
        encoder_blocks: blocks of three convolutions per resolution, from the image's on; each step halves the sides;
            null: the weights', or [1, 1, 1].
        decoder_blocks: per resolution, from the latent's on, as many; null: the weights', or [1, 1, 1].
        distance: d of a pixel's error: `absolute` or `squared`.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap; null: not at all.

    Raises:
        ArgumentError: if blocks and image do not fit, or contradict the weights.
        DataError: if the shape is in a folder that is not complete; says what to put there.
    """

    deterministic = True

    word, kind, shape = "tiny", "AutoencoderTiny", tuple(NEW)
    any_size = True
    tiles = "exact"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path | None = None,
        latent_channels: Count | None = None,
        encoder_width: Count | None = None,
        decoder_width: Count | None = None,
        encoder_blocks: tuple[NonNegativeInt, ...] | None = None,
        decoder_blocks: tuple[NonNegativeInt, ...] | None = None,
        distance: Distance = Absolute(),
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        given = {
            "latent_channels": latent_channels,
            "encoder_width": encoder_width,
            "decoder_width": decoder_width,
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
        }
        shape = self.whole_shape(images, weights, given)
        levels, other = len(shape["encoder_blocks"]), len(shape["decoder_blocks"])
        if not levels or levels != other:
            raise ArgumentError("decoder_blocks", f"found {other} resolutions, the encoder has {levels}")
        latent = latent_of(images, shape["latent_channels"], levels, "encoder_blocks")
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        self.trained, self.weights, self.distance = weights is not None, weights, distance
        self.model = self.build(images.channels, shape)

    @classmethod
    def new(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Three resolutions with one block each; a half whose blocks are not given mirrors the other's."""
        down, up = keys["encoder_blocks"], keys["decoder_blocks"]
        mirrored = {"encoder_blocks": up and up[::-1], "decoder_blocks": down and down[::-1]}
        return NEW | {name: value for name, value in mirrored.items() if value}

    @classmethod
    def shape_in(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys from a `config.json`."""
        shape = {name: config.get(theirs, absent) for name, (theirs, absent) in PUBLISHED.items()}
        widths = {name: (config.get(theirs) or [64])[0] for name, theirs in WIDTHS.items()}
        return {name: tuple(v) if isinstance(v, list) else v for name, v in {**shape, **widths}.items()}

    @classmethod
    def config_of(cls, channels: int, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `AutoencoderTiny`."""
        levels = len(shape["encoder_blocks"])
        return {
            "in_channels": channels,
            "out_channels": channels,
            "act_fn": "relu",
            "upsample_fn": "nearest",
            "upsampling_scaling_factor": 2,
            **{theirs: shape[name] for name, (theirs, _) in PUBLISHED.items()},
            **{theirs: (shape[name],) * levels for name, theirs in WIDTHS.items()},
        }

    def moments(self, images: Tensor) -> Moments:
        """The latents; there is no posterior."""
        return Moments(self.model.encode(images).latents)

    def terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Reconstruction."""
        return reconstruction(self.raw_decode(self.moments(images).mean), images, self.distance)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction; the mean of both ends where pixels have two."""
        found = self.both_ends(batch, draws)
        return Loss(found["distance"], {name: value.detach() for name, value in found.items()})
