"""Representations as latents: tokens of a frozen, pretrained network, and a decoder that is trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.errors import ArgumentError, CapabilityError, DataError, nearest
from latentsb.metrics.perceptual import FeatureLoss, Perceptual
from latentsb.networks.attention import Attention
from latentsb.networks.embeddings import grid_positions, position_features, rotary_table
from latentsb.networks.encoder_timm import FAULTS, FILE, create, pretrained
from latentsb.networks.transformer import SwiGLU, unpatchify
from latentsb.normalisers import Channel, Normaliser
from latentsb.process.distances import Absolute
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss, OnePass, Phase, Schedule
from latentsb.weights import ANY, files_of, home

from ._folder import reconstruction

__all__ = ["Representation", "TokenDecoder"]

EPS = 1e-6
"""Of the layer norms, as in the vision transformers whose tokens are taken."""


class Layer(nn.Module):
    """Attention and feed-forward layer, each behind a norm: `x + f(norm(x))`.

    Args:
        width: of the tokens.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=EPS) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width, round(width / 3) * 8)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Tokens (B, N, width) and a rotary table; to tokens."""
        x = x + self.attention(self.norm1(x), rotary)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class TokenDecoder(nn.Module):
    """A transformer from a grid of tokens to the image, one square patch per token.

    Any size of grid is decoded. It begins with an image of zeros.

    Args:
        latent: shape (C, h, w) of the tokens.
        channels: of the image.
        patch: side of a patch.
        width: of the layers; width / heads is a multiple of four.
        depth: number of layers.
        heads: of each attention.
    """

    def __init__(self, latent: Spec, channels: int, patch: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch, self.heads, self.reference = patch, heads, (latent.shape[1], latent.shape[2])
        self.embed = nn.Linear(latent.channels, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.head = nn.Linear(width, channels * patch**2)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, C, h, w) to images (B, channels, h patch, w patch)."""
        grid = (tokens.shape[-2], tokens.shape[-1])
        positions = grid_positions(*grid, self.reference, tokens.device)
        h = self.embed(tokens.flatten(2).mT)
        h = h + position_features(positions, h.shape[-1]).to(h.dtype)
        rotary = rotary_table(positions, h.shape[-1] // self.heads)
        for layer in self.layers:
            h = layer(h, rotary)
        return unpatchify(self.head(self.norm(h)), self.patch, grid)


@AUTOENCODERS.register("representation")
class Representation(Autoencoder):
    """Tokens of a frozen network of timm as latents, and a transformer decoder that is trained here (RAE).

    The latent at a place of the grid is the token of the last block behind a layer norm without scale and shift;
    class and register tokens are left out. Only the decoder is trained, with `|x̂ − x|` (plus P(x̂, x) where
    `perceptual` names one) on latents with noise, `z + σ n` with n ~ N(0, 1) and σ = |N(0, noise²)| per image, so that
    it decodes what a bridge makes, which is never quite a latent of an image.

    Source: Zheng et al. 2025, Diffusion transformers with representation autoencoders.

    Args:
        images: shape of one image, (C, H, W), grey or colour; the grid divides its sides.
        encoder: name of the network in timm, such as `vit_base_patch14_reg4_dinov2`, or with the tag of its weights.
        weights: safetensors of that network, or a folder of them; null: the folder of its name below
            `LATENTSB_WEIGHTS`. Nothing is downloaded.
        size: height and width to which images are resized (bicubic) for the encoder; null: they stay as they are.
        width: of the decoder's layers.
        depth: number of the decoder's layers.
        heads: of each attention of the decoder; width / heads is a multiple of four.
        noise: spread of σ, in units of the latents, whose mean square is 1.
        perceptual: P, a distance in the features of a frozen network; none if null. Its weights are needed to train,
            not to use what was trained.
        normaliser: of the latents.

    Raises:
        ArgumentError: if timm has no such network, it gives no grid for images of this size, the grid does not divide
            the image, or the heads do not fit.
    """

    deterministic = True

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        images: Spec,
        *,
        encoder: str = "vit_base_patch14_reg4_dinov2",
        weights: Path | None = None,
        size: tuple[Count, Count] | None = None,
        width: Count = 512,
        depth: Count = 8,
        heads: Count = 8,
        noise: NonNegative = 0.8,
        perceptual: Perceptual | None = None,
        normaliser: Normaliser = Channel(),
    ) -> None:
        if len(images.shape) != 3 or images.channels not in (1, 3):
            raise ArgumentError("images", f"representation sees grey or colour images, found {images.shape}")
        if width % heads or width // heads % 4:
            raise ArgumentError("heads", f"width / heads must be a multiple of 4, found {width} / {heads}")
        seen = size or (images.shape[1], images.shape[2])
        trunk, latent = _trunk(encoder, seen)
        patch = _patch(images, latent, seen)
        super().__init__(images, latent, normaliser=normaliser)
        self.encoder, self.weights, self.size, self.seen, self.noise = encoder, weights, size, seen, noise
        self.trunk = trunk
        config = cast(Any, trunk).pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).reshape(-1, 1, 1), persistent=False)
        self.decoder = TokenDecoder(latent, images.channels, patch, width=width, depth=depth, heads=heads)
        self.perceptual = None if perceptual is None else FeatureLoss(perceptual)

    def load(self) -> None:
        """Read the encoder's weights, and those of the feature loss.

        Raises:
            DataError: if they are missing, or of another network.
            CapabilityError: if the feature loss reads other images.
        """
        where = self.weights or home() / self.encoder
        try:
            path = files_of(where, (FILE,), (ANY,))[0]
        except DataError as error:
            cure = f"put the weights of timm/{self.encoder} there, or say where they are: autoencoder.weights=…"
            raise DataError(f"representation: found no {FILE} in {where}; {cure}") from error
        self.trunk.load_state_dict(pretrained(self.encoder, self.seen, path).state_dict())
        if self.perceptual is not None:
            self.perceptual.load(self.images.shape)

    def train(self, mode: bool = True) -> Representation:
        """Switch the decoder; the encoder stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    @torch.no_grad()
    def moments(self, images: Tensor) -> Moments:
        """The encoder's tokens, without gradients; there is no posterior."""
        x = images.float()
        if self.size is not None:
            x = F.interpolate(x, size=self.size, mode="bicubic", antialias=True)
        x = ((x + 1) / 2 - self.mean) / self.std  # grey meets three means, and becomes three channels
        tokens = _tokens(self.trunk, x).float().movedim(1, -1)
        return Moments(F.layer_norm(tokens, tokens.shape[-1:], eps=EPS).movedim(-1, 1).contiguous())

    def raw_decode(self, raw: Tensor) -> Tensor:
        """Images of tokens."""
        images: Tensor = self.decoder(raw)
        return images

    def schedule(self, part: str = "") -> Schedule:
        """The decoder alone.

        Raises:
            CapabilityError: if another part is named.
        """
        if part:
            raise CapabilityError(f"Representation has no part '{part}' that is trained by itself")
        return OnePass(Phase("all", self.loss, trains=("decoder",)))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Reconstruction from tokens with noise; the mean of both ends where pixels have two."""
        found = self._terms(batch.data if batch.images is None else batch.images, draws)
        if batch.x1 is not None:
            other = self._terms(batch.x1, draws.fork("x1"))
            found = {name: (value + other[name]) / 2 for name, value in found.items()}
        total = found["distance"] + found.get("perceptual", torch.zeros_like(found["distance"]))
        return Loss(total, {name: value.detach() for name, value in found.items()})

    def _terms(self, images: Tensor, draws: Draws) -> dict[str, Tensor]:
        raw = self.moments(images).mean
        sigma = self.noise * draws.normal("sigma", raw[:, :1, :1, :1]).abs()
        decoded = self.raw_decode(raw + sigma * draws.normal("noise", raw))
        perceptual = {} if self.perceptual is None else {"perceptual": self.perceptual(decoded, images)}
        return perceptual | reconstruction(decoded, images, Absolute())


def _tokens(trunk: nn.Module, x: Tensor) -> Tensor:
    """Features of the last block before its norm, shape (B, C, h, w)."""
    found: list[Tensor] = cast(Any, trunk).forward_intermediates(x, indices=1, intermediates_only=True)
    return found[-1]


def _trunk(name: str, size: tuple[int, int]) -> tuple[nn.Module, Spec]:
    """A frozen network without classes, and the shape of its tokens.

    Raises:
        ArgumentError: see the class.
    """
    import timm

    if not timm.is_model(name):
        raise ArgumentError("encoder", f"timm has no '{name}'.{nearest(name, timm.list_models())}")
    try:
        found = timm.layers.freeze_batch_norm_2d(create(name, size, pretrained=False, num_classes=0))
        with torch.no_grad():
            tokens = _tokens(found.eval(), torch.zeros(1, 3, *size))
    except (*FAULTS, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        told = f"'{name}' gives no tokens for images of {size[0]}x{size[1]} ({reason})"
        raise ArgumentError("encoder", f"{told}; size: … resizes what it sees") from error
    return found.requires_grad_(False), Spec(tuple(tokens.shape[1:]))


def _patch(images: Spec, latent: Spec, seen: tuple[int, int]) -> int:
    """Side of the image's patch for one token.

    Raises:
        ArgumentError: if it is no whole number, or another one in height than in width.
    """
    (_, height, width), (_, rows, columns) = images.shape, latent.shape
    if height % rows or width % columns or height // rows != width // columns:
        told = f"the encoder makes {rows}×{columns} tokens of {seen[0]}×{seen[1]} pixels"
        raise ArgumentError("size", f"{told}, which do not cut {height}×{width} into squares; resize to another size")
    return height // rows
