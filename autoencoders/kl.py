"""The KL autoencoder of latent diffusion, from a folder of weights or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Moments
from latentsb.errors import ArgumentError
from latentsb.metrics.perceptual import FeatureLoss, Perceptual
from latentsb.normalisers import Channel, Normaliser
from latentsb.process.distances import Absolute, Distance
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative, Positive
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Loss

from ._folder import Foldered, latent_of, reconstruction

__all__ = ["KL", "divergence"]

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


@AUTOENCODERS.register("kl")
class KL(Foldered):
    """Convolutional autoencoder with a Gaussian posterior, diffusers' `AutoencoderKL`.

    The loss is `mean d(x̂ − x) + perceptual_weight · P(x̂, x) + kl_weight · KL / (numbers in one image)`, x̂ decoded
    from a posterior sample: that of latent diffusion without its adversary, per pixel. With `squared` and no P it is
    `kl_weight / (numbers in one image)` times the negative evidence bound of a Gaussian decoder of variance
    `kl_weight / 2`, but for a constant. The model's own scaling factor and shift are not applied; the fitted
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
        distance: d of a pixel's error: `absolute` or `squared`.
        perceptual: P, a distance in the features of a frozen network; none if null. Its weights are needed to train,
            not to use what was trained.
        perceptual_weight: of P; null: 1 where there is one.
        kl_weight: weight of the divergence.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap, normalised in common; null: not at all.

    Raises:
        ArgumentError: if widths, groups and image do not fit, or contradict the weights; if nothing is there that
            `perceptual_weight` weighs.
        DataError: if the shape is in a folder that is not complete; says what to put there.
    """

    word, kind, shape = "kl", "AutoencoderKL", tuple(NEW)
    any_size = True
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
        distance: Distance = Absolute(),
        perceptual: Perceptual | None = None,
        perceptual_weight: Positive | None = None,
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
        shape = self.whole_shape(images, weights, given)
        if not shape["widths"] or any(width % shape["groups"] for width in shape["widths"]):
            raise ArgumentError("widths", f"found {shape['widths']}, expected multiples of groups = {shape['groups']}")
        latent = latent_of(images, shape["latent_channels"], len(shape["widths"]), "widths")
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        self.kl_weight, self.trained, self.weights = kl_weight, weights is not None, weights
        self.distance = distance
        self.perceptual = None if perceptual is None else FeatureLoss(perceptual)
        self.perceptual_weight = _weight_of(perceptual, perceptual_weight)
        self.model = self.build(images.channels, shape)

    @classmethod
    def completed(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The shape: of known weights, of a folder's `config.json`, or of a new model; the weight of a feature loss.

        Raises:
            ArgumentError: if a key contradicts the weights.
        """
        found = super().completed(keys)
        if keys.get("perceptual") is not None and keys["perceptual_weight"] is None:
            found["perceptual_weight"] = 1.0
        return found

    @classmethod
    def new(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Two resolutions, four channels."""
        return NEW

    @classmethod
    def shape_in(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys from a `config.json`."""
        values = {name: config.get(theirs, absent) for name, (theirs, absent) in KEYS.items()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    @classmethod
    def config_of(cls, channels: int, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `AutoencoderKL`."""
        depth = len(shape["widths"])
        return {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * depth,
            "up_block_types": ("UpDecoderBlock2D",) * depth,
            "act_fn": "silu",
            "use_post_quant_conv": shape["quant"],
            **{theirs: shape[name] for name, (theirs, _) in KEYS.items()},
        }

    def load(self) -> None:
        """Read the weights, and those of the feature loss.

        Raises:
            DataError: if the folder or the weights are not complete, or of another shape than the recipe.
            CapabilityError: if the feature loss reads other images.
        """
        if self.perceptual is not None:
            self.perceptual.load(self.images.shape)
        super().load()

    def moments(self, images: Tensor) -> Moments:
        """Mean and standard deviation of the posterior."""
        posterior = self.model.encode(images).latent_dist
        return Moments(posterior.mean, posterior.std)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction from a posterior sample, and divergence; the mean of both ends where pixels have two."""
        found = self.both_ends(batch, draws)
        total = found["distance"] + self.kl_weight * found["kl"] / self.images.numel
        if self.perceptual is not None:
            total = total + self.perceptual_weight * found["perceptual"]
        return Loss(total, {name: value.detach() for name, value in found.items()})

    def terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Reconstruction of a posterior sample, feature loss and divergence."""
        posterior = self.moments(images)
        assert posterior.std is not None
        decoded = self.raw_decode(posterior.mean + posterior.std * draws.normal("posterior", posterior.mean))
        perceptual = {} if self.perceptual is None else {"perceptual": self.perceptual(decoded, images)}
        return perceptual | {
            "kl": divergence(posterior.mean, posterior.std),
            **reconstruction(decoded, images, self.distance),
        }


def _weight_of(perceptual: Perceptual | None, weight: float | None) -> float:
    """Of the feature loss."""
    if perceptual is None and weight is not None:
        raise ArgumentError("perceptual_weight", f"found {weight:g}, but no `perceptual` that it weighs")
    return 1.0 if weight is None else weight
