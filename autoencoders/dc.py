"""The deep-compression autoencoder for high resolution, from published weights, a folder, or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Moments
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.normalisers import Channel, Normaliser
from latentsb.process.distances import Absolute, Distance
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Loss

from ._folder import Foldered, latent_of, reconstruction

__all__ = ["DC"]

NEW: dict[str, Any] = {
    "latent_channels": 32,
    "widths": (128, 256, 512, 512, 1024, 1024),
    "encoder_blocks": (2, 2, 2, 3, 3, 3),
    "decoder_blocks": (3, 3, 3, 3, 3, 3),
    "attention": 3,
    "head_width": 32,
    "scales": (5,),
    "shuffle": False,
    "batch_norm": False,
}
"""The shape of a model that is trained from nothing: that of `dc-ae-f32c32-sana-1.0`."""
PLAIN = {
    "latent_channels": ("latent_channels", 32),
    "head_width": ("attention_head_dim", 32),
    "encoder_blocks": ("encoder_layers_per_block", (2, 2, 2, 3, 3, 3)),
    "decoder_blocks": ("decoder_layers_per_block", (3, 3, 3, 3, 3, 3)),
}
"""Our keys, diffusers' keys, and what diffusers takes where a config leaves one out."""
SPREAD = ("encoder_block_types", "decoder_block_types", "decoder_norm_types", "decoder_act_fns")
"""Keys of diffusers that may be one value for all resolutions."""
ATTENTION = "EfficientViTBlock"


@AUTOENCODERS.register("dc")
class DC(Foldered):
    """Deep-compression autoencoder, 32 channels at 1/32 of the sides and beyond, diffusers' `AutoencoderDC`.

    Deterministic. Residuals are learnt upon space-to-channel shortcuts; the lowest resolutions see the whole image
    through linear attention. The loss is `mean d(x̂ − x)`. The model's own scaling factor is not applied; the fitted
    normaliser takes its place.

    Source: Chen et al. 2025, Deep compression autoencoder for efficient high-resolution diffusion models.

    Args:
        images: shape of one image, (C, H, W); the sides are multiples of the factor 2^(len(widths) − 1).
        weights: a known name, or a folder with `config.json` and `diffusion_pytorch_model.safetensors`; null to train
            from nothing. With weights, the keys of the shape need not be given, and must not contradict.
        latent_channels: channels of a latent, a divisor of the last width; null: the weights', or 32.
        widths: channels of each resolution, from the image's on; each step halves the sides; null: the weights', or
            [128, 256, 512, 512, 1024, 1024].
        encoder_blocks: per resolution; 0 at the first leaves out work at the full size; null: the weights', or for
            these widths [2, 2, 2, 3, 3, 3] and for others 2 each.
        decoder_blocks: likewise, also from the image's resolution on; null: the weights', or for these widths 3 each
            and for others 2.
        attention: at how many of the lowest resolutions blocks attend; null: the weights', or 3, or as many as there
            are.
        head_width: channels of a head; null: the weights', or 32.
        scales: sides of the convolutions whose outputs attend beside the features themselves; null: the weights', or
            [5].
        shuffle: a step between resolutions moves pixels to channels and back, instead of striding and repeating; null:
            the weights', or false.
        batch_norm: batch normalisation and rectifiers in the decoder's blocks that do not attend, as some published
            ones have it: to be used, not to be trained; null: the weights', or false.
        distance: d of a pixel's error: `absolute` or `squared`.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap, each attending to itself; null: not at
            all.

    Raises:
        ArgumentError: if the keys of the shape do not fit each other or the image, or contradict the weights.
        DataError: if the shape is in a folder that is not complete; says what to put there.
    """

    deterministic = True

    word, kind, shape = "dc", "AutoencoderDC", tuple(NEW)
    any_size = True
    tiles = "approximate"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path | None = "dc-ae-f32c32-sana-1.0",
        latent_channels: Count | None = None,
        widths: tuple[Count, ...] | None = None,
        encoder_blocks: tuple[NonNegativeInt, ...] | None = None,
        decoder_blocks: tuple[NonNegativeInt, ...] | None = None,
        attention: NonNegativeInt | None = None,
        head_width: Count | None = None,
        scales: tuple[Count, ...] | None = None,
        shuffle: bool | None = None,
        batch_norm: bool | None = None,
        distance: Distance = Absolute(),
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        given = {
            "latent_channels": latent_channels,
            "widths": widths,
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
            "attention": attention,
            "head_width": head_width,
            "scales": scales,
            "shuffle": shuffle,
            "batch_norm": batch_norm,
        }
        shape = self.whole_shape(images, weights, given)
        _check(shape)
        latent = latent_of(images, shape["latent_channels"], len(shape["widths"]), "widths")
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        self.trained, self.weights = weights is not None, weights
        self.distance, self.batch_norm = distance, shape["batch_norm"]
        self.model = self.build(images.channels, shape)

    @classmethod
    def new(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The published f32c32; with other widths, two blocks per resolution."""
        widths = keys["widths"]
        if widths is None or tuple(widths) == NEW["widths"]:
            return NEW
        two = (2,) * len(widths)
        return NEW | {"encoder_blocks": two, "decoder_blocks": two, "attention": min(3, len(widths))}

    @classmethod
    def told(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """One value for all resolutions is written as many times as there are, scales where blocks attend alone."""
        found, depth = dict(config), len(config.get("encoder_block_out_channels") or NEW["widths"])
        for name in SPREAD:
            if isinstance(value := found.get(name), str):
                found[name] = [value] * depth
        for half in ("encoder", "decoder"):
            kinds, scales = found.get(f"{half}_block_types"), found.get(f"{half}_qkv_multiscales")
            if kinds and scales:
                pairs = zip(kinds, scales, strict=False)
                found[f"{half}_qkv_multiscales"] = [scale if kind == ATTENTION else () for kind, scale in pairs]
        for name in ("downsample_block_type", "upsample_block_type"):
            if isinstance(value := found.get(name), str):
                found[name] = value.lower()
        return found

    @classmethod
    def shape_in(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys from a `config.json`."""
        shape = {name: config.get(theirs, absent) for name, (theirs, absent) in PLAIN.items()}
        widths = config.get("encoder_block_out_channels") or NEW["widths"]
        scales = config.get("encoder_qkv_multiscales") or [()] * 3 + [(5,)] * 3
        found = shape | {
            "widths": widths,
            "attention": list(config.get("encoder_block_types") or ()).count(ATTENTION),
            "scales": scales[-1],
            "shuffle": config.get("downsample_block_type", "pixel_unshuffle") == "pixel_unshuffle",
            "batch_norm": "batch_norm" in (config.get("decoder_norm_types") or ()),
        }
        return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}

    @classmethod
    def config_of(cls, channels: int, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `AutoencoderDC`."""
        attending = shape["attention"]
        plain = len(shape["widths"]) - attending
        kinds = ("ResBlock",) * plain + (ATTENTION,) * attending
        scales = ((),) * plain + (tuple(shape["scales"]),) * attending
        norm, act = ("batch_norm", "relu") if shape["batch_norm"] else ("rms_norm", "silu")
        return {
            "in_channels": channels,
            "encoder_block_types": kinds,
            "decoder_block_types": kinds,
            "encoder_block_out_channels": shape["widths"],
            "decoder_block_out_channels": shape["widths"],
            "encoder_qkv_multiscales": scales,
            "decoder_qkv_multiscales": scales,
            "decoder_norm_types": (norm,) * plain + ("rms_norm",) * attending,
            "decoder_act_fns": (act,) * plain + ("silu",) * attending,
            "downsample_block_type": "pixel_unshuffle" if shape["shuffle"] else "conv",
            "upsample_block_type": "pixel_shuffle" if shape["shuffle"] else "interpolate",
            "encoder_out_shortcut": True,
            "decoder_in_shortcut": True,
            "decoder_conv_act_fn": "relu",
            **{theirs: shape[name] for name, (theirs, _) in PLAIN.items()},
        }

    def moments(self, images: Tensor) -> Moments:
        """The latents; there is no posterior."""
        return Moments(self.model.encode(images).latent)

    def terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Reconstruction."""
        return reconstruction(self.raw_decode(self.moments(images).mean), images, self.distance)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction; the mean of both ends where pixels have two.

        Raises:
            CapabilityError: if the decoder has batch normalisation, through which images change each other's loss.
        """
        if self.batch_norm:
            message = "is not trained with batch normalisation, since a loss belongs to one image; use weights without"
            raise CapabilityError(f"dc {message} (dc-ae-f32c32-sana-1.0), or batch_norm: false")
        found = self.both_ends(batch, draws)
        return Loss(found["distance"], {name: value.detach() for name, value in found.items()})


def _check(shape: Mapping[str, Any]) -> None:
    """Hold the keys of the shape to each other.

    Raises:
        ArgumentError: naming the key that does not fit.
    """
    widths, channels = shape["widths"], shape["latent_channels"]
    if not widths or widths[-1] % channels:
        raise ArgumentError("widths", f"found {widths}, the last must be a multiple of latent_channels = {channels}")
    for name in ("encoder_blocks", "decoder_blocks"):
        if len(shape[name]) != len(widths):
            raise ArgumentError(name, f"found {len(shape[name])} resolutions, widths has {len(widths)}")
        if 0 in shape[name][1:]:
            raise ArgumentError(name, f"found {shape[name]}; only the first resolution can be without blocks")
        if shape[name] == (0,):
            raise ArgumentError(name, "found (0,), a single resolution needs a block")
    for before, after in pairwise(widths):
        if 4 * before % after or (shape["shuffle"] and after % 4):
            told = ", itself a multiple of 4" if shape["shuffle"] else ""
            raise ArgumentError("widths", f"found {before} before {after}, expected a divisor of {4 * before}{told}")
    attending = widths[len(widths) - shape["attention"] :]
    if shape["attention"] > len(widths):
        raise ArgumentError("attention", f"found {shape['attention']}, there are {len(widths)} resolutions")
    if any(width < shape["head_width"] for width in attending):
        raise ArgumentError("head_width", f"found {shape['head_width']}, a width that attends is {min(attending)}")
