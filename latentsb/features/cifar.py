"""Classifiers of CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError
from latentsb.features.base import FEATURES, Classifier, Features, fill, require_file
from latentsb.ranges import Count, enforce
from latentsb.tensors import Spec
from latentsb.weights import home

__all__ = ["CifarResNet", "ResNet"]


@FEATURES.register("cifar_resnet")
@dataclass(frozen=True, kw_only=True)
class CifarResNet(Features):
    """ResNet for 32×32 colour images and the ten classes of CIFAR-10, from a local folder.

    Source: He et al. 2016, Deep residual learning for image recognition, Sec. 4.2; weights by Y. Idelbayev.

    Args:
        path: folder of `resnet{depth}_fp16.safetensors`; `cifar10_resnet` below `LATENTSB_WEIGHTS` if None.
        depth: 6n + 2 layers.
    """

    path: Path | None = None
    depth: Count = 56

    def __post_init__(self) -> None:
        enforce(self)
        if self.depth % 6 != 2 or self.depth < 8:
            raise ArgumentError("depth", f"must be 6n + 2 such as 20 or 56, found {self.depth}")

    @property
    def file(self) -> Path:
        """Of the weights."""
        return (self.path or home() / "cifar10_resnet") / f"resnet{self.depth}_fp16.safetensors"

    def require(self) -> None:
        """See that the file is there."""
        require_file(self.file, f"the weights of the CIFAR ResNet-{self.depth} of akamaster/pytorch_resnet_cifar10")

    def load(self) -> ResNet:
        """The network with its weights."""
        self.require()
        network = ResNet(self.depth)
        fill(network, self.file)
        return network.eval()


class ResNet(Classifier):
    """He et al.'s ResNet for CIFAR: three stages of n blocks of 16, 32 and 64 channels, shortcuts without weights.

    Args:
        depth: 6n + 2.
    """

    classes = 10
    images = Spec((3, 32, 32))

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.name = f"CIFAR ResNet-{depth}"
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        n = (depth - 2) // 6
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(n)))
        self.layer2 = nn.Sequential(_Block(16, 32), *(_Block(32, 32) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(_Block(32, 64), *(_Block(64, 64) for _ in range(n - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Means of the last stage over the image, shape (B, 64)."""
        x = ((x + 1) / 2 - self.mean) / self.std
        x = self.bn1(self.conv1(x)).relu()
        found: Tensor = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        found: Tensor = self.linear(features)
        return found


class _Block(nn.Module):
    """Two convolutions beside a shortcut, which takes every other pixel and pads channels where the shape changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.stride, self.padding = (2, outside // 4) if outside != inside else (1, 0)
        self.conv1 = nn.Conv2d(inside, outside, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """Half the side and twice the channels, or the same."""
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        s = self.stride
        found: Tensor = (h + F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, self.padding, self.padding))).relu()
        return found
