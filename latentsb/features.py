"""Feature networks: what an image shows, as a vector, and as a class; for distances and for accuracy.

All weights come from local safetensors; nothing is downloaded. A distance in the features of one of these bears the
network's name: only Inception-v3's is called FID.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import Count, enforce
from latentsb.registry import Registry
from latentsb.tensors import Spec
from latentsb.weights import home, misfit, read

__all__ = ["FEATURES", "CifarResNet", "Classifier", "FeatureNetwork", "Features", "MnistLeNet", "ResNet"]


class FeatureNetwork(nn.Module, ABC):
    """A trained network that reads images.

    Attributes:
        name: as it stands before a distance: `CIFAR ResNet-56`.
        images: shape of the images that it reads, in [-1, 1].
        sha256: of its weights' file.
    """

    name: str
    images: Spec
    sha256: str = ""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features of images (B, C, H, W) in [-1, 1], shape (B, F)."""

    def identity(self) -> dict[str, Any]:
        """What a protocol says of it."""
        return {"name": self.name, "sha256": self.sha256}


class Classifier(FeatureNetwork):
    """A feature network with classes.

    Attributes:
        classes: how many.
    """

    classes: int

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Logits of features (B, F), shape (B, classes)."""

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
        """Features, and the likeliest class, of many images; on the CPU.

        Raises:
            ArgumentError: if the images have another shape.
        """
        if tuple(images.shape[1:]) != self.images.shape:
            raise ArgumentError("images", f"{self.name} reads {self.images.shape}, found {tuple(images.shape[1:])}")
        device = next(self.parameters()).device
        features, found = [], []
        for first in range(0, len(images), batch):
            one = self(images[first : first + batch].to(device, torch.float32))
            features.append(one.cpu())
            found.append(self.logits(one).argmax(1).cpu())
        return torch.cat(features), torch.cat(found)


class Features(ABC):
    """Which feature network: a frozen dataclass; `load` gives the network."""

    @abstractmethod
    def require(self) -> None:
        """See that its file is there.

        Raises:
            DataError: if it is not; says what belongs there.
        """

    @abstractmethod
    def load(self) -> FeatureNetwork:
        """The network with its weights, in evaluation mode.

        Raises:
            DataError: if there is no such file, or it holds something else.
        """


FEATURES: Registry[Features] = Registry("features", Features, homes=("latentsb.features",))


def fill(network: FeatureNetwork, path: Path) -> None:
    """Copy weights from a safetensors file; a batch norm's count of batches is not read.

    Raises:
        DataError: if the file holds the weights of something else; names some of what differs.
    """
    values = read(path)
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    if wrong := misfit(own, values):
        raise DataError(f"{path} does not hold the weights of {network.name}: {wrong}")
    network.load_state_dict(values, strict=False)
    network.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


def require_file(path: Path, what: str) -> None:
    """See that a file is there.

    Raises:
        DataError: if it is not.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; put {what} there, or say where it is: path=…")


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


@FEATURES.register("mnist_lenet")
@dataclass(frozen=True, kw_only=True)
class MnistLeNet(Features):
    """LeNet-5 for 28×28 grey digits, from a local folder.

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition; weights by C. Singh.

    Args:
        path: folder of `lenet5.safetensors`; `mnist_lenet` below `LATENTSB_WEIGHTS` if None.
    """

    path: Path | None = None

    @property
    def file(self) -> Path:
        """Of the weights."""
        return (self.path or home() / "mnist_lenet") / "lenet5.safetensors"

    def require(self) -> None:
        """See that the file is there."""
        require_file(self.file, "the weights of the LeNet-5 of csinva/gan-vae-pretrained-pytorch")

    def load(self) -> LeNet:
        """The network with its weights."""
        self.require()
        network = LeNet()
        fill(network, self.file)
        return network.eval()


class LeNet(Classifier):
    """Three convolutions and two linear layers; images are enlarged to 32×32 first."""

    name = "MNIST LeNet-5"
    classes = 10
    images = Spec((1, 28, 28))

    def __init__(self) -> None:
        super().__init__()
        layers = {"c1": nn.Conv2d(1, 6, 5), "c3": nn.Conv2d(6, 16, 5), "c5": nn.Conv2d(16, 120, 5)}
        self.convnet = nn.ModuleDict(layers)
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, 84), "f7": nn.Linear(84, 10)})

    def forward(self, x: Tensor) -> Tensor:
        """The layer before the last, shape (B, 84)."""
        x = F.interpolate((x + 1) / 2, size=(32, 32), mode="bilinear", align_corners=False)
        x = F.max_pool2d(self.convnet["c1"](x).relu(), 2)
        x = F.max_pool2d(self.convnet["c3"](x).relu(), 2)
        x = self.convnet["c5"](x).relu().flatten(1)
        found: Tensor = self.fc["f6"](x).relu()
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        found: Tensor = self.fc["f7"](features)
        return found
