"""The KL autoencoder of latent diffusion, from a folder of weights or trained here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr, ssim
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL

__all__ = ["KL", "divergence"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = "config.json"


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """`KL(N(mean, std²) ‖ N(0, 1)) = ½ Σ (mean² + std² − 1 − log std²)`, in nats, shape (B,)."""
    return 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * std.log()).flatten(1).sum(1)


@AUTOENCODERS.register("kl")
class KL(Autoencoder):
    """Convolutional autoencoder with a Gaussian posterior, diffusers' `AutoencoderKL`.

    The loss is `mean |x̂ − x| + kl_weight · KL / (numbers in one image)`: that of latent diffusion without its
    adversary and perceptual network, per pixel. The model's own scaling factor and shift are not applied; the fitted
    normaliser takes their place.

    Source: Rombach et al. 2022, High-resolution image synthesis with latent diffusion models.

    Args:
        images: shape of one image, (C, H, W); the sides are multiples of the factor 2^(len(widths) − 1).
        weights: folder that holds `config.json` and `diffusion_pytorch_model.safetensors`; None to train from
            nothing. The other arguments must then say what that folder's `config.json` says.
        latent_channels: channels of a latent.
        widths: channels of each resolution, from the image's on; each step halves the sides.
        blocks: residual blocks per resolution.
        groups: of the group normalisation; every width is a multiple of it.
        attention: self-attention at the lowest resolution.
        kl_weight: weight of the divergence.
        normaliser: of the latents.

    Raises:
        ArgumentError: if widths, groups and image do not fit, or differ from the folder's.
        DataError: if the folder or the weights are not complete; says what to put there.
    """

    def __init__(
        self,
        images: Spec,
        *,
        weights: Path | None = None,
        latent_channels: Count = 4,
        widths: tuple[Count, ...] = (32, 64),
        blocks: Count = 1,
        groups: Count = 16,
        attention: bool = True,
        kl_weight: NonNegative = 1e-6,
        normaliser: Normaliser = Channel(),
    ) -> None:
        config = {
            "in_channels": images.channels,
            "out_channels": images.channels,
            "latent_channels": latent_channels,
            "block_out_channels": list(widths),
            "layers_per_block": blocks,
            "norm_num_groups": groups,
            "mid_block_add_attention": attention,
        }
        factor = _factor(images, widths, groups)
        _, height, width = images.shape
        super().__init__(images, Spec((latent_channels, height // factor, width // factor)), normaliser=normaliser)
        self.kl_weight, self.trained = kl_weight, weights is not None
        self.model: AutoencoderKL = _new(config) if weights is None else _load(Path(weights), config)

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
            "widths", f"{len(widths)} resolutions divide the sides by {factor}; images have {images.shape[1:]}"
        )
    return int(factor)


def _new(config: dict[str, Any]) -> AutoencoderKL:
    from diffusers.models import AutoencoderKL  # a second of import

    depth = len(config["block_out_channels"])
    return AutoencoderKL(
        **config,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
    )


def _load(folder: Path, wanted: dict[str, Any]) -> AutoencoderKL:
    """The model of a folder, every weight of it found and no weight left over."""
    from diffusers.models import AutoencoderKL

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(
                f"autoencoder weights: {folder / name} is missing; put an AutoencoderKL's {CONFIG} and {WEIGHTS} "
                f"there (the folder `vae` of a latent diffusion model), or leave `weights` out to train one"
            )
    try:
        stored = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise DataError(f"{folder / CONFIG}: not JSON ({error})") from error
    _compare(folder, stored, wanted)
    loaders = logging.getLogger("diffusers.models.modeling_utils")
    level = loaders.level
    loaders.setLevel(logging.ERROR)  # it warns of missing weights; below they are an error
    try:
        model, found = AutoencoderKL.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, torch_dtype=torch.float32
        )
    except Exception as error:
        raise DataError(f"{folder / WEIGHTS}: cannot be loaded ({error})") from error
    finally:
        loaders.setLevel(level)
    wrong = [f"{kind.replace('_', ' ')} {', '.join(map(str, names[:3]))}" for kind, names in found.items() if names]
    if wrong:
        raise DataError(f"{folder / WEIGHTS} does not belong to its {CONFIG}: {'; '.join(wrong)}")
    return model


def _compare(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The folder's config must say what the recipe says."""
    words = {
        "in_channels": "images",
        "latent_channels": "latent_channels",
        "block_out_channels": "widths",
        "layers_per_block": "blocks",
        "norm_num_groups": "groups",
        "mid_block_add_attention": "attention",
    }
    # What the class itself takes where a config leaves a key out.
    absent = {
        "in_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [64],
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
    }
    there = {key: stored.get(key, absent[key]) for key in words}
    differ = [key for key in words if there[key] != wanted[key]]
    if differ:
        told = ", ".join(f"{words[key]}: {json.dumps(there[key])}" for key in differ)
        have = ", ".join(f"{words[key]}: {json.dumps(wanted[key])}" for key in differ)
        raise ArgumentError(words[differ[0]], f"{folder / CONFIG} says {told}; the recipe says {have}")
