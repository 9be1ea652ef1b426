"""The KL autoencoder of latent diffusion, from a folder of weights or trained here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments, sizes_near
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr, ssim
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Loss
from latentsb.weights import CONFIG, MODEL, files_of, fill, known, place

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL

__all__ = ["KL", "divergence"]

WORD = "kl"
NEW: dict[str, Any] = {
    "latent_channels": 4,
    "widths": (32, 64),
    "blocks": 1,
    "groups": 16,
    "attention": True,
    "quant": True,
}
"""The shape of a model that is trained from nothing."""
KEYS = {
    "latent_channels": ("latent_channels", 4),
    "widths": ("block_out_channels", [64]),
    "blocks": ("layers_per_block", 1),
    "groups": ("norm_num_groups", 32),
    "attention": ("mid_block_add_attention", True),
    "quant": ("use_quant_conv", True),
}
"""Our keys, diffusers' keys, and what diffusers takes where a config leaves one out."""


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """`KL(N(mean, std²) ‖ N(0, 1)) = ½ Σ (mean² + std² − 1 − log std²)`, in nats, shape (B,)."""
    return 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * std.log()).flatten(1).sum(1)


@AUTOENCODERS.register(WORD)
class KL(Autoencoder):
    """Convolutional autoencoder with a Gaussian posterior, diffusers' `AutoencoderKL`.

    The loss is `mean |x̂ − x| + kl_weight · KL / (numbers in one image)`: that of latent diffusion without its
    adversary and perceptual network, per pixel. The model's own scaling factor and shift are not applied; the fitted
    normaliser takes their place.

    Source: Rombach et al. 2022, High-resolution image synthesis with latent diffusion models.

    Args:
        images: shape of one image, (C, H, W); the sides are multiples of the factor 2^(len(widths) − 1).
        weights: a known name, or a folder with `config.json` and `diffusion_pytorch_model.safetensors`; null to train
            from nothing. With weights, the keys of the shape need not be given, and must not contradict.
        latent_channels: channels of a latent; null: the weights', or 4.
        widths: channels of each resolution, from the image's on; each step halves the sides; null: the weights', or
            [32, 64].
        blocks: residual blocks per resolution; null: the weights', or 1.
        groups: of the group normalisation; every width is a multiple of it; null: the weights', or 16.
        attention: self-attention at the lowest resolution; null: the weights', or true.
        quant: 1×1 convolutions on both sides of the latent; null: the weights', or true.
        kl_weight: weight of the divergence.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap, each normalised alone; null: not at all.

    Raises:
        ArgumentError: if widths, groups and image do not fit, or contradict the weights.
        DataError: if the shape is in a folder that is not complete; says what to put there.
    """

    tiles = "approximate"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path | None = None,
        latent_channels: Count | None = None,
        widths: tuple[Count, ...] | None = None,
        blocks: Count | None = None,
        groups: Count | None = None,
        attention: bool | None = None,
        quant: bool | None = None,
        kl_weight: NonNegative = 1e-6,
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        given = {
            "latent_channels": latent_channels,
            "widths": widths,
            "blocks": blocks,
            "groups": groups,
            "attention": attention,
            "quant": quant,
        }
        shape = {**given, **self.completed({"weights": weights, **given})}
        if None in shape.values() and weights is not None:
            files_of(_folder(weights), (CONFIG, MODEL), owner=WORD)
        factor = _factor(images, shape["widths"], shape["groups"])
        channels = images.channels if weights is None else _shape_of(weights).get("channels", images.channels)
        if channels != images.channels:
            told = f"the weights are for images of {channels} channels, found {images.channels}"
            raise ArgumentError("images", f"{told}; write channels: {channels} in the data")
        _, height, width = images.shape
        latent = Spec((shape["latent_channels"], height // factor, width // factor))
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        self.kl_weight, self.trained, self.weights = kl_weight, weights is not None, weights
        self.model: AutoencoderKL = _new(images.channels, shape)

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The shape: of known weights, of a folder's `config.json`, or of a new model.

        Raises:
            ArgumentError: if a key contradicts the weights.
        """
        weights = keys["weights"]
        if weights is None:
            return {name: value for name, value in NEW.items() if keys[name] is None}
        found = _shape_of(weights)
        shape = {name: found[name] for name in NEW if name in found}
        for name, value in shape.items():
            if keys[name] not in (None, value):
                told = [json.dumps(v) for v in (keys[name], value)]
                raise ArgumentError(name, f"found {told[0]}; the weights '{weights}' have {told[1]} (leave it out)")
        return {name: value for name, value in shape.items() if keys[name] is None}

    def load(self) -> None:
        """Read the weights.

        Raises:
            DataError: if the folder or the weights are not complete, or of another shape than the recipe.
        """
        if self.weights is None:
            return
        folder = files_of(_folder(self.weights), (CONFIG, MODEL), owner=WORD)[0].parent
        fill(self.model, _load(folder).state_dict(), folder / MODEL)

    def moments(self, images: Tensor) -> Moments:
        """Mean and standard deviation of the posterior."""
        posterior = self.model.encode(images).latent_dist
        return Moments(posterior.mean, posterior.std)

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of raw latents."""
        decoded: Tensor = self.model.decode(raw).sample
        return decoded

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction from a posterior sample, and divergence; the mean of both ends where pixels have two."""
        found = self._terms(batch.data if batch.images is None else batch.images, draws)
        if batch.x1 is not None:
            other = self._terms(batch.x1, draws.fork("x1"))
            found = {name: (value + other[name]) / 2 for name, value in found.items()}
        total = found["l1"] + self.kl_weight * found["kl"] / self.images.numel
        return Loss(total, {name: value.detach() for name, value in found.items()})

    def _terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        posterior = self.moments(images)
        assert posterior.std is not None
        decoded = self.raw_decode(posterior.mean + posterior.std * draws.normal("posterior", posterior.mean))
        seen = decoded.detach().clamp(-1.0, 1.0)
        return {
            "l1": (decoded - images).abs().flatten(1).mean(1),
            "kl": divergence(posterior.mean, posterior.std),
            "psnr": psnr(seen, images),
            "ssim": ssim(seen, images),
        }


def _factor(images: Spec, widths: tuple[int, ...], groups: int) -> int:
    """How many pixels of a side make one of the latent's."""
    if len(images.shape) != 3:
        raise ArgumentError("images", f"kl needs images (C, H, W), found samples of shape {images.shape}")
    if not widths or any(width % groups for width in widths):
        raise ArgumentError("widths", f"found {widths}, expected multiples of groups = {groups}")
    factor = 2 ** (len(widths) - 1)
    if any(side % factor for side in images.shape[1:]):
        raise ArgumentError(
            "widths",
            f"{len(widths)} resolutions divide the sides by {factor}; images have {sizes_near(images, factor)}",
        )
    return int(factor)


def _new(channels: int, shape: Mapping[str, Any]) -> AutoencoderKL:
    from diffusers.models import AutoencoderKL  # a second of import

    depth = len(shape["widths"])
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        use_post_quant_conv=shape["quant"],
        **{theirs: shape[name] for name, (theirs, _) in KEYS.items()},
    )


def _config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`.

    Raises:
        DataError: if it is none, or of a model that this class cannot hold.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    ours = {
        "_class_name": {"AutoencoderKL"},
        "act_fn": {"silu"},
        "down_block_types": {"DownEncoderBlock2D"},
        "up_block_types": {"UpDecoderBlock2D"},
        "use_post_quant_conv": {config.get("use_quant_conv", True)},
    }
    for name, allowed in ours.items():
        value = config.get(name)
        if value is not None and not allowed.issuperset(value if isinstance(value, list) else [value]):
            raise DataError(f"{path}: kl cannot hold {name}: {json.dumps(value)}")
    return config


def _folder(weights: str | Path) -> str | Path:
    """The folder of weights of which the file itself is named; others as they are."""
    where = place(weights)
    return where.parent if where.is_file() else weights


def _shape_of(weights: str | Path) -> dict[str, Any]:
    """Our keys of the weights' shape, and `channels` of an image; empty for a folder that is not there (any more)."""
    found = known(weights, WORD)
    if found is not None:
        return {"channels": 3, **found.shape}
    folder = place(_folder(weights))
    if not (folder / CONFIG).is_file():
        return {}
    config = _config(folder)
    values = {name: config.get(theirs, absent) for name, (theirs, absent) in KEYS.items()}
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {"channels": config.get("in_channels", 3), **shape}


def _load(folder: Path) -> AutoencoderKL:
    """The model of a folder, every weight of it found and no weight left over; older names are understood."""
    from diffusers.models import AutoencoderKL

    loaders = logging.getLogger("diffusers.models.modeling_utils")
    level = loaders.level
    loaders.setLevel(logging.ERROR)  # it warns of missing weights; below they are an error
    try:
        model, found = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
        )
    except Exception as error:
        raise DataError(f"{folder / MODEL}: cannot be loaded ({error})") from error
    finally:
        loaders.setLevel(level)
    wrong = [f"{kind.replace('_', ' ')} {', '.join(map(str, names[:3]))}" for kind, names in found.items() if names]
    if wrong:
        raise DataError(f"{folder / MODEL} does not belong to its {CONFIG}: {'; '.join(wrong)}")
    return model
