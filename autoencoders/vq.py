"""The vector-quantised autoencoder, from a folder of weights or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from latentsb.autoencoder import AUTOENCODERS, Moments
from latentsb.errors import ArgumentError
from latentsb.normalisers import Channel, Normaliser
from latentsb.process.distances import Absolute, Distance
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative
from latentsb.tensors import Batch, Spec
from latentsb.tiles import Tiling
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule

from ._folder import Foldered, latent_of, reconstruction

__all__ = ["VQ", "perplexity"]

NEW: dict[str, Any] = {
    "latent_channels": 4,
    "code_channels": 4,
    "codes": 512,
    "widths": (32, 64),
    "blocks": 1,
    "groups": 16,
    "attention": True,
}
"""The shape of a model that is trained from nothing."""
KEYS = {
    "latent_channels": ("latent_channels", 3),
    "code_channels": ("vq_embed_dim", None),
    "codes": ("num_vq_embeddings", 256),
    "widths": ("block_out_channels", [64]),
    "blocks": ("layers_per_block", 1),
    "groups": ("norm_num_groups", 32),
    "attention": ("mid_block_add_attention", True),
}
"""Our keys, diffusers' keys, and what diffusers takes where a config leaves one out."""
ROWS, LOOKS, AT_ONCE = 256, 16, 16
"""Images in which unused codes are looked for, latents of them per code at least where there are so many, images that
are encoded at once."""


def perplexity(counts: Tensor) -> Tensor:
    """`exp(−Σ_k p_k log p_k)` with `p = counts / Σ counts`: how many codes are in use, as if all were equally often.

    Args:
        counts: how often each code was taken, shape (…, K), at least one of them positive.

    Returns:
        Between 1 and K, shape (…), float64.
    """
    share = counts.double() / counts.double().sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy.exp()


@AUTOENCODERS.register("vq")
class VQ(Foldered):
    """Autoencoder with a codebook, diffusers' `VQModel`; deterministic.

    Raw latents are the encoder's, *before* quantisation: continuous, so that a bridge has a density to learn. The
    decoder begins with the quantiser, `e(z) = argmin_k |z − e_k|`, which takes generated latents to the codebook as
    well: an error that leaves a latent nearest to the same code leaves no trace. The loss is
    `mean d(x̂ − x) + mean (sg[z] − e(z))² + commitment · mean (z − sg[e(z)])²`, x̂ decoded from e(z), whose gradient
    goes straight through to z (`sg` is without gradient). Terms that only tell: `perplexity` of the codes within one
    image, and `codes`, how many different ones it has.

    A codebook that is left to itself collapses to few codes. So, when training begins and then every `revive` images,
    codes to which no latent that is looked at (16 per code or more, where 256 images have them) is nearest are moved to
    some of these.

    Latents are cached in float32, since rounding can take one across the border between two codes.

    Source: van den Oord et al. 2017, Neural discrete representation learning, equation 3; Rombach et al. 2022,
    High-resolution image synthesis with latent diffusion models, section 3.1 (the quantiser in the decoder); Dhariwal
    et al. 2020, Jukebox (unused codes begin anew).

    Args:
        images: shape of one image, (C, H, W); the sides are multiples of the factor 2^(len(widths) − 1).
        weights: a folder with `config.json` and `diffusion_pytorch_model.safetensors`; null to train from nothing.
            With weights, the keys of the shape need not be given, and must not contradict.
        latent_channels: channels on the network's side of the quantiser; null: the weights', or 4.
        code_channels: of a code, and so of a latent; null: the weights', or 4.
        codes: size of the codebook; null: the weights', or 512.
        widths: channels of each resolution, from the image's on; each step halves the sides; null: the weights', or
            [32, 64].
        blocks: residual blocks per resolution; null: the weights', or 1.
        groups: of the group normalisation; every width is a multiple of it; null: the weights', or 16.
        attention: self-attention at the lowest resolution; null: the weights', or true.
        distance: d of a pixel's error: `absolute` or `squared`.
        commitment: weight that draws the encoder's latents to their codes.
        revive: images after which unused codes begin anew; null: they never do.
        normaliser: of the latents.
        tiling: how large images are encoded and decoded in tiles that overlap, each normalised alone; null: not at all.

    Raises:
        ArgumentError: if widths, groups and image do not fit, or contradict the weights.
        DataError: if the shape is in a folder that is not complete; says what to put there.
    """

    deterministic = True

    word, kind, shape = "vq", "VQModel", tuple(NEW)
    latent_dtype = torch.float32
    any_size = True
    tiles = "approximate"

    def __init__(
        self,
        images: Spec,
        *,
        weights: str | Path | None = None,
        latent_channels: Count | None = None,
        code_channels: Count | None = None,
        codes: Count | None = None,
        widths: tuple[Count, ...] | None = None,
        blocks: Count | None = None,
        groups: Count | None = None,
        attention: bool | None = None,
        distance: Distance = Absolute(),
        commitment: NonNegative = 0.25,
        revive: Count | None = 50_000,
        normaliser: Normaliser = Channel(),
        tiling: Tiling | None = None,
    ) -> None:
        given = {
            "latent_channels": latent_channels,
            "code_channels": code_channels,
            "codes": codes,
            "widths": widths,
            "blocks": blocks,
            "groups": groups,
            "attention": attention,
        }
        shape = self.whole_shape(images, weights, given)
        if not shape["widths"] or any(width % shape["groups"] for width in shape["widths"]):
            raise ArgumentError("widths", f"found {shape['widths']}, expected multiples of groups = {shape['groups']}")
        latent = latent_of(images, shape["code_channels"], len(shape["widths"]), "widths")
        super().__init__(images, latent, normaliser=normaliser, tiling=tiling)
        self.trained, self.weights = weights is not None, weights
        self.distance, self.commitment, self.revive = distance, commitment, revive
        self.model = self.build(images.channels, shape)

    @classmethod
    def new(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Two resolutions, 512 codes of four channels."""
        return NEW

    @classmethod
    def told(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Without a number of its own, a code has the channels of the latent; the look-up by index is not used."""
        kept = {name: value for name, value in config.items() if name != "lookup_from_codebook"}
        if kept.get("vq_embed_dim") is None:
            kept["vq_embed_dim"] = config.get("latent_channels", KEYS["latent_channels"][1])
        return kept

    @classmethod
    def shape_in(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our keys from a `config.json`."""
        values = {name: config.get(theirs, absent) for name, (theirs, absent) in KEYS.items()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    @classmethod
    def config_of(cls, channels: int, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `VQModel`."""
        depth = len(shape["widths"])
        return {
            "in_channels": channels,
            "out_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * depth,
            "up_block_types": ("UpDecoderBlock2D",) * depth,
            "act_fn": "silu",
            "norm_type": "group",
            **{theirs: shape[name] for name, (theirs, _) in KEYS.items()},
        }

    def moments(self, images: Tensor) -> Moments:
        """The latents before quantisation; there is no posterior."""
        return Moments(self.model.encode(images).latents)

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of raw latents, which are quantised first."""
        decoded: Tensor = self.model.decode(raw).sample
        return decoded

    def quantise(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes of raw latents.

        Args:
            raw: shape (B, *latent.shape).

        Returns:
            The codes, same shape, with the gradient of a copy of `raw`; and their numbers, shape (B, h, w).
        """
        taken, _, (_, _, index) = self.model.quantize(raw)
        return taken, index.reshape(len(raw), *raw.shape[2:])

    def terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Reconstruction, distances to the codes, and use of the codebook within each image."""
        raw = self.moments(images).mean
        taken, index = self.quantise(raw)
        nearest = self.model.quantize.embedding(index).permute(0, 3, 1, 2)
        counts = one_hot(index.flatten(1), self.model.quantize.n_e).sum(1)
        return {
            **reconstruction(self._decode_taken(taken), images, self.distance),
            "codebook": (raw.detach() - nearest).square().flatten(1).mean(1),
            "commitment": (raw - nearest.detach()).square().flatten(1).mean(1),
            "perplexity": perplexity(counts).to(raw.dtype),
            "codes": (counts > 0).sum(1).to(raw.dtype),
        }

    def _decode_taken(self, taken: Tensor) -> Tensor:
        decoded: Tensor = self.model.decode(taken, force_not_quantize=True).sample
        return decoded

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction and both distances to the codes; the mean of both ends where pixels have two."""
        found = self.both_ends(batch, draws)
        total = found["distance"] + found["codebook"] + self.commitment * found["commitment"]
        return Loss(total, {name: value.detach() for name, value in found.items()})

    def schedule(self, part: str = "") -> Schedule:
        """One phase, whose rounds are those of `revive`."""
        if part or self.revive is None:
            return super().schedule(part)
        return Alternate((Phase("all", self.loss),), images=self.revive)

    def renew(self, round: Round) -> None:
        """Move codes that are not in use to latents of the data."""
        if self.revive is None or round.resumed:
            return
        positions, codes = self.latent.numel // self.latent.shape[0], self.model.quantize.n_e
        few = torch.linspace(0, positions - 1, min(positions, -(-LOOKS * codes // ROWS)), device=self.device).long()

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            images = batch.data if batch.images is None else batch.images
            raws = [self.moments(part).mean for part in torch.split(images, AT_ONCE)]
            index = torch.cat([self.quantise(raw)[1] for raw in raws])
            return {"raw": torch.cat(raws).flatten(2)[..., few].transpose(1, 2), "index": index.flatten(1)[:, few]}

        table = round.simulate("codes", ROWS, make)
        self.move_unused(table["raw"].flatten(0, 1), table["index"].flatten())

    @torch.no_grad()
    def move_unused(self, latents: Tensor, index: Tensor) -> int:
        """Move codes that no latent takes to latents, evenly spaced in their order.

        Args:
            latents: raw, shape (n, code_channels).
            index: of each one's nearest code, shape (n,).

        Returns:
            How many codes were moved.
        """
        book = self.model.quantize.embedding.weight
        unused = torch.bincount(index, minlength=len(book)) == 0
        count = int(unused.sum())
        chosen = torch.linspace(0, len(latents) - 1, count).long()
        book[unused.to(book.device)] = latents[chosen].to(book)
        return count
