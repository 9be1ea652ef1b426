"""Backbones of the library timm as encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError, DataError, nearest
from latentsb.networks.base import ENCODERS, Encoder
from latentsb.networks.convolution import group_norm
from latentsb.ranges import Count
from latentsb.tensors import Spec
from latentsb.weights import read

__all__ = ["FAULTS", "FILE", "TimmEncoder", "create", "pretrained"]

FILE = "model.safetensors"
"""What the Hugging Face Hub calls the weights of a backbone."""
FAULTS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError)
"""What the library's backbones raise where a size does not fit."""


@ENCODERS.register("timm")
class TimmEncoder(Encoder):
    """Any backbone of the library timm, with its pooled features through one linear layer.

    A new backbone takes any number of channels, latents or pixels as they are. A pretrained one sees images, so the
    bridge needs `encodes_images: true`: pixels in [-1, 1] are brought to the mean and spread that its weights were
    trained with, and grey ones are repeated over its three channels.

    Codes must not depend on which samples share a batch, nor on whether the model is being trained. A new backbone
    therefore has group norms in the place of batch norms, and a pretrained one keeps statistics and scales of its
    batch norms as they are in the weights.

    Source: Wightman 2019, PyTorch image models.

    Args:
        x: shape (C, H, W) of the input.
        dim: length of the code.
        backbone: a name of the library, such as `resnet18`, or with the tag of its weights, `resnet18.a1_in1k`.
        weights: safetensors of that name and tag, or a folder with `model.safetensors`; nothing is downloaded.
        side: the input is resized (bicubic) to so many pixels in height and width; it stays as it is if None.

    Raises:
        ArgumentError: if there is no such backbone, it cannot take this size, normalises over batches in a way that
            cannot be replaced, or pretrained weights are to see something else than grey or colour images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, x: Spec, dim: int, *, backbone: str = "resnet18", weights: Path | None = None, side: Count | None = None
    ) -> None:
        super().__init__(x, dim)
        if len(x.shape) != 3:
            raise ArgumentError("x", f"'timm' encodes (C, H, W), found {x.shape}; 'dense' takes any shape")
        if weights is not None and x.channels not in (1, 3):
            raise ArgumentError("weights", f"pretrained backbones see grey or colour images, found {x.shape}")
        self.name, self.weights, self.sees_images = backbone, weights, weights is not None
        self.side = None if side is None else (side, side)
        channels = x.channels if weights is None else 3
        size = self.side or (x.shape[1], x.shape[2])
        self.backbone, features = _fitting(backbone, channels, size, pretrained=weights is not None)
        # Values of the weights' own training; a loaded run has them from its recipe.
        config = cast(Any, self.backbone).pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).reshape(-1, 1, 1), persistent=False)
        self.head = nn.Linear(features, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, H, W) to (B, dim)."""
        h = x.to(self.head.weight.dtype)
        if self.side is not None:
            h = F.interpolate(h, size=self.side, mode="bicubic", antialias=True)
        if self.weights is not None:
            h = ((h + 1) / 2 - self.mean) / self.std
        return cast(Tensor, self.head(self.backbone(h))).to(x.dtype)

    def load(self) -> None:
        """Read the pretrained weights.

        Raises:
            DataError: if they are missing, or of another backbone.
        """
        if self.weights is None:
            return
        path = self.weights / FILE if self.weights.is_dir() else self.weights
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; put the weights of timm's '{self.name}' there")
        _, height, width = self.x_spec.shape
        found = pretrained(self.name, self.side or (height, width), path)
        self.backbone.load_state_dict(found.state_dict())


def pretrained(name: str, size: tuple[int, int], path: Path) -> nn.Module:
    """A backbone without classes, with the weights of a file, its batch norms as they are there.

    Args:
        name: of the library.
        size: height and width of its images; positions are resampled by the library.
        path: of safetensors.

    Raises:
        DataError: if the file holds something else.
    """
    import timm

    values = read(path)
    # With as many classes as it was trained with, the library wants every tensor, and no other.
    try:
        found = create(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": values})
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not hold the weights of timm's '{name}': {reason}") from error
    cast(Any, found).reset_classifier(0)
    return cast(nn.Module, timm.layers.freeze_batch_norm_2d(found))


def create(name: str, size: tuple[int, int], **settings: Any) -> nn.Module:
    """A backbone of the library for images of this size, told it where it must know."""
    import timm

    try:
        return cast(nn.Module, timm.create_model(name, img_size=size, **settings))
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return cast(nn.Module, timm.create_model(name, **settings))


def _fitting(name: str, channels: int, size: tuple[int, int], *, pretrained: bool) -> tuple[nn.Module, int]:
    """A backbone without classes and without statistics of batches, and the number of its features.

    Raises:
        ArgumentError: see the class.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise ArgumentError("backbone", f"timm has no '{name}'.{nearest(name, known)}")
    try:
        found = create(name, size, pretrained=False, in_chans=channels, num_classes=0)
        found = timm.layers.freeze_batch_norm_2d(found) if pretrained else _by_groups(found)
        with torch.no_grad():
            features = found.eval()(torch.zeros(1, channels, *size))
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(
            "backbone", f"'{name}' cannot take {channels}x{size[0]}x{size[1]} ({reason}); side: … resizes the input"
        ) from error
    if features.ndim != 2:
        raise ArgumentError("backbone", f"'{name}' has no pooled features, found shape {tuple(features.shape[1:])}")
    left = next((k for k, m in found.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
    if left is not None:
        raise ArgumentError("backbone", f"'{name}' normalises over batches at '{left}', and codes must not")
    return found.train(), features.shape[1]


def _by_groups(module: nn.Module) -> nn.Module:
    """The module with group norms in the place of batch norms; scales and activations stay."""
    from timm.layers import BatchNormAct2d, GroupNormAct

    if isinstance(module, nn.BatchNorm2d):
        fresh = group_norm(module.num_features)
        if isinstance(module, BatchNormAct2d):
            fresh = GroupNormAct(module.num_features, fresh.num_groups, eps=fresh.eps, apply_act=False)
            fresh.drop, fresh.act = module.drop, module.act
        if module.affine:
            fresh.weight, fresh.bias = module.weight, module.bias
        return fresh
    for name, child in module.named_children():
        setattr(module, name, _by_groups(child))
    return module
