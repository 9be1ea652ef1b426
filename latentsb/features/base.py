"""The contract of feature networks: images to vectors, and, where a network has classes, to classes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError, DataError
from latentsb.registry import Registry
from latentsb.tensors import Spec
from latentsb.weights import misfit, read

__all__ = ["FEATURES", "Classifier", "FeatureNetwork", "Features", "digest_of", "fill", "require_file", "resized"]

BATCH = 128
"""Images at a time."""


class FeatureNetwork(nn.Module, ABC):
    """A trained network that reads images.

    Attributes:
        name: as it stands before a distance: `CIFAR ResNet-56`.
        images: shape of the images that it reads, in [-1, 1]; None where it reads grey and colour images of any size.
        sha256: of its weights' file.
    """

    name: str
    images: Spec | None = None
    sha256: str = ""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features of images (B, C, H, W) in [-1, 1], shape (B, F)."""

    @property
    def frechet_name(self) -> str:
        """What a Fréchet distance in these features is called."""
        return f"{self.name} Fréchet distance"

    @property
    def kernel_name(self) -> str:
        """What a kernel distance in these features is called."""
        return f"{self.name} kernel distance"

    def identity(self) -> dict[str, Any]:
        """What a protocol says of it."""
        return {"name": self.name, "sha256": self.sha256}

    def check(self, shape: tuple[int, ...]) -> None:
        """See that it reads images of a shape (C, H, W).

        Raises:
            ArgumentError: if it does not.
        """
        if self.images is None:
            if len(shape) != 3 or shape[0] not in (1, 3):
                raise ArgumentError("images", f"{self.name} reads grey and colour images (C, H, W), found {shape}")
        elif shape != self.images.shape:
            raise ArgumentError("images", f"{self.name} reads {self.images.shape}, found {shape}")

    @torch.no_grad()
    def features_of(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """Features of many images.

        Args:
            images: shape (N, C, H, W) in [-1, 1], on any device.
            batch: images at a time.

        Returns:
            float32 of shape (N, F), on the CPU.

        Raises:
            ArgumentError: if the images have another shape.
        """
        self.check(tuple(images.shape[1:]))
        device = next(self.parameters()).device
        parts = torch.split(images, batch)
        return torch.cat([self(part.to(device, torch.float32)).float().cpu() for part in parts])


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
    def read(self, images: Tensor, batch: int = BATCH) -> tuple[Tensor, Tensor]:
        """Features, and the likeliest class, of many images; on the CPU.

        Raises:
            ArgumentError: if the images have another shape.
        """
        features = self.features_of(images, batch)
        device = next(self.parameters()).device
        found = [self.logits(part.to(device)).argmax(1).cpu() for part in torch.split(features, batch)]
        return features, torch.cat(found)


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


HOMES = ("cifar", "digits", "inception", "mobilenet", "timm")
FEATURES: Registry[Features] = Registry(
    "features", Features, homes=tuple(f"latentsb.features.{home}" for home in HOMES)
)


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
    network.sha256 = digest_of(path)


def require_file(path: Path, what: str) -> None:
    """See that a file is there.

    Raises:
        DataError: if it is not.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; put {what} there, or say where it is: path=…")


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resized(x: Tensor, size: int) -> Tensor:
    """Images of any size as colour images of `size` × `size`: bilinear, smoothed before they are made smaller.

    Args:
        x: shape (B, 1 or 3, H, W).
        size: pixels of a side.

    Returns:
        Shape (B, 3, size, size).
    """
    x = x.expand(-1, 3, -1, -1)
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
