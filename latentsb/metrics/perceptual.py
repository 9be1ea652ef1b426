"""Perceptual distances of two images, each under its own name: LPIPS, and distances in a named network's features."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.features import FeatureNetwork, Features, ImageNetMobileNet
from latentsb.features.base import digest_of, require_file
from latentsb.registry import Registry
from latentsb.weights import home, misfit, read

__all__ = ["PERCEPTUAL", "Distance", "FeatureDistance", "FeatureLoss", "Lpips", "Perceptual", "load", "require"]

BATCH = 64


class Distance(nn.Module, ABC):
    """A distance of images with its weights.

    Attributes:
        name: as it stands above a column.
    """

    name: str

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of images (B, C, H, W) in [-1, 1] from others of the same shape, shape (B,)."""

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """See that it reads images of a shape (C, H, W).

        Raises:
            ArgumentError: if it does not.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a protocol says of it."""

    @torch.no_grad()
    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of many images, float32 of shape (N,), on the CPU."""
        device = next(self.parameters()).device
        pairs = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
        return torch.cat([self(a.to(device).float(), b.to(device).float()).cpu() for a, b in pairs])


class Perceptual(ABC):
    """Which perceptual distance: a frozen dataclass; `load` gives the distance."""

    @abstractmethod
    def require(self) -> None:
        """See that its files are there.

        Raises:
            DataError: if one is not; says what belongs there.
        """

    @abstractmethod
    def load(self) -> Distance:
        """The distance with its weights.

        Raises:
            DataError: if a file is missing or holds something else.
        """


PERCEPTUAL: Registry[Perceptual] = Registry("perceptual", Perceptual, homes=("latentsb.metrics.perceptual",))


def require(perceptual: Perceptual, key: str) -> None:
    """See that a distance's files are there.

    Args:
        perceptual: which.
        key: where it stands among the keys that a user writes, for messages.

    Raises:
        DataError: if one is not; names the key that says where it is.
    """
    try:
        perceptual.require()
    except DataError as error:  # which speaks of its own keys
        raise DataError(re.sub(r"((?:network\.)?path=…)", rf"{key}.\1", str(error))) from error


def load(perceptual: Perceptual, shape: tuple[int, ...], key: str) -> Distance:
    """A distance with its weights.

    Args:
        perceptual: which.
        shape: of an image, (C, H, W).
        key: as in `require`.

    Raises:
        DataError: if a file is missing or holds something else.
        CapabilityError: if it reads other images.
    """
    require(perceptual, key)
    distance = perceptual.load()
    try:
        distance.check(shape)
    except ArgumentError as error:
        raise CapabilityError(f"{key}: {error}") from error
    return distance


class FeatureLoss:
    """A perceptual distance as a loss: frozen, with gradients to the images.

    It is no part of the module that it trains: its weights are not trained, averaged or saved with it.

    Args:
        perceptual: which distance.
        key: where it stands in the recipe, for messages.
    """

    def __init__(self, perceptual: Perceptual, *, key: str = "autoencoder.perceptual") -> None:
        self.perceptual, self.key = perceptual, key
        self._distance: Distance | None = None

    def load(self, shape: tuple[int, ...]) -> Distance:
        """Read the weights, once; see `load`."""
        if self._distance is None:
            self._distance = load(self.perceptual, shape, self.key).eval().requires_grad_(False)
        return self._distance

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of images (B, C, H, W) in [-1, 1], shape (B,), in float32 whatever the training computes in."""
        distance = self.load(tuple(x.shape[1:])).to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = distance(x.float(), y.float())
        return found


@PERCEPTUAL.register("feature_distance")
@dataclass(frozen=True, kw_only=True)
class FeatureDistance(Perceptual):
    """Squared distance of two images' features, each of unit length, in a named network: `|f/|f| − g/|g||²`.

    It is `2 − 2 cos(f, g)`, in [0, 4], of the pooled features: what is shown counts, and less where.

    Args:
        network: of the features; see `latentsb list features`.
    """

    network: Features = ImageNetMobileNet()

    def require(self) -> None:
        """See that the network's file is there."""
        try:
            self.network.require()
        except DataError as error:
            raise DataError(str(error).replace("path=…", "network.path=…")) from error

    def load(self) -> Distance:
        """The distance with the network's weights."""
        return _Unit(self.network.load())


class _Unit(Distance):
    """Squared distance of features of unit length."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network
        self.name = f"{network.name} feature distance"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f, g = (F.normalize(self.network(image), dim=1) for image in (x, y))
        return (f - g).square().sum(1)

    def check(self, shape: tuple[int, ...]) -> None:
        self.network.check(shape)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "network": self.network.identity()}


BACKBONE, HEADS = "alexnet.safetensors", "lpips_v0.1_lin.safetensors"
STAGES = (2, 5, 8, 10, 12)
"""Layers of AlexNet after whose rectifiers its features are compared."""
CHANNELS = (64, 192, 384, 256, 256)
LEAST = 31
"""Pixels of a side: below, nothing is left after AlexNet's second pooling."""


@PERCEPTUAL.register("lpips")
@dataclass(frozen=True, kw_only=True)
class Lpips(Perceptual):
    """LPIPS v0.1 with AlexNet, for grey and colour images of at least 31×31, from a local folder.

    Source: Zhang et al. 2018, The unreasonable effectiveness of deep features as a perceptual metric.

    Args:
        path: folder of `alexnet.safetensors` (torchvision's weights) and `lpips_v0.1_lin.safetensors`; `lpips_lin`
            below `LATENTSB_WEIGHTS` if None.
    """

    path: Path | None = None

    @property
    def folder(self) -> Path:
        """Of both files."""
        return self.path or home() / "lpips_lin"

    def require(self) -> None:
        """See that both files are there."""
        require_file(self.folder / HEADS, "the linear heads of LPIPS v0.1 of richzhang/PerceptualSimilarity")
        require_file(self.folder / BACKBONE, "torchvision's AlexNet (alexnet-owt-7be5be79.pth) written as safetensors")

    def load(self) -> Distance:
        """The distance with its weights."""
        self.require()
        return _AlexNet(self.folder).eval()


class _AlexNet(Distance):
    """`Σ_l mean_{pixels} Σ_c w_lc (f̂_lc − ĝ_lc)²`: unit vectors over the channels of five layers, weighted."""

    name = "LPIPS"

    def __init__(self, folder: Path) -> None:
        from torchvision.models import alexnet

        super().__init__()
        with torch.device("meta"):
            self.trunk: Any = alexnet().features
        values = {name: v for name, v in read(folder / BACKBONE).items() if name.startswith("features.")}
        self._fill(self.trunk, {name.removeprefix("features."): v for name, v in values.items()}, folder / BACKBONE)
        heads = nn.ParameterDict({f"{k}": torch.empty(1, c, 1, 1, device="meta") for k, c in enumerate(CHANNELS)})
        names = {f"alex.lin{k}.model.1.weight": f"{k}" for k in range(len(CHANNELS))}
        found = {names[name]: v for name, v in read(folder / HEADS).items() if name in names}
        self._fill(heads, found, folder / HEADS)
        self.heads = heads
        self.sha256 = [digest_of(folder / name) for name in (BACKBONE, HEADS)]
        for name, value in (("shift", [-0.030, -0.088, -0.188]), ("scale", [0.458, 0.448, 0.450])):
            self.register_buffer(name, torch.tensor(value).reshape(3, 1, 1), persistent=False)
        self.shift: Tensor
        self.scale: Tensor

    def _fill(self, module: nn.Module, values: dict[str, Tensor], path: Path) -> None:
        if wrong := misfit(module.state_dict(), values):
            raise DataError(f"{path} does not hold the weights of LPIPS with AlexNet: {wrong}")
        module.load_state_dict({name: value.float() for name, value in values.items()}, assign=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (((image - self.shift) / self.scale) for image in (x, y))
        total, first = torch.zeros(len(x), device=x.device), 0
        for k, last in enumerate(STAGES):
            layers = self.trunk[first:last]
            a, b, first = layers(a), layers(b), last
            f, g = (h / (h.square().sum(1, keepdim=True) + 1e-8).sqrt() for h in (a, b))
            total = total + (self.heads[f"{k}"] * (f - g).square()).sum(1).mean((1, 2))
        return total

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < LEAST:
            raise ArgumentError("images", f"LPIPS reads grey and colour images from {LEAST}×{LEAST} on, found {shape}")

    def identity(self) -> dict[str, Any]:
        return {"name": "LPIPS v0.1, AlexNet, images in [-1, 1]", "sha256": self.sha256}
