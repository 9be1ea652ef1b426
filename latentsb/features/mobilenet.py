"""MobileNetV2 for the thousand classes of ImageNet, from weights of eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from latentsb.errors import ArgumentError, DataError
from latentsb.features.base import FEATURES, Classifier, Features, digest_of, require_file, resized
from latentsb.ranges import enforce
from latentsb.weights import home, misfit, read

__all__ = ["ImageNetMobileNet", "MobileNetV2"]

FILE = "mobilenet_v2_int8.safetensors"
SIZE = 224
"""Pixels of a side in training."""


@FEATURES.register("mobilenet_v2")
@dataclass(frozen=True, kw_only=True)
class ImageNetMobileNet(Features):
    """MobileNetV2 1.0 for grey and colour images of any size and ImageNet's thousand classes, from a local folder.

    Source: Sandler et al. 2018, MobileNetV2: inverted residuals and linear bottlenecks; weights by google-coral.

    Args:
        path: folder of `mobilenet_v2_int8.safetensors`; `mobilenet_v2_imagenet` below `LATENTSB_WEIGHTS` if None.
        size: pixels of a side that images are brought to, a multiple of 32; 96 takes a fifth of the time of 224, and
            is another network for all figures.
    """

    path: Path | None = None
    size: Annotated[int, Ge(32)] = SIZE

    def __post_init__(self) -> None:
        enforce(self)
        if self.size % 32:
            raise ArgumentError("size", f"must be a multiple of 32, found {self.size}")

    @property
    def file(self) -> Path:
        """Of the weights."""
        return (self.path or home() / "mobilenet_v2_imagenet") / FILE

    def require(self) -> None:
        """See that the file is there."""
        require_file(self.file, "the weights of tf2_mobilenet_v2_1.0_224_ptq of google-coral/test_data")

    def load(self) -> MobileNetV2:
        """The network with its weights."""
        self.require()
        network = MobileNetV2(self.size)
        network.fill(self.file)
        return network.eval()


class Bias(nn.Module):
    """What is left of a batch norm that was folded into the convolution before it.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x + bias`."""
        return x + self.bias[:, None, None]


class MobileNetV2(Classifier):
    """torchvision's network, padded as TensorFlow pads: a stride of two looks beyond the right and lower border only.

    Args:
        size: pixels of a side that images are brought to.
    """

    classes = 1000

    def __init__(self, size: int = SIZE) -> None:
        from torchvision.models import mobilenet_v2

        super().__init__()
        self.size = size
        self.name = "MobileNetV2" if size == SIZE else f"MobileNetV2 at {size} pixels"
        with torch.device("meta"):  # all values come from the file, and none are drawn
            self.trunk: Any = mobilenet_v2(num_classes=self.classes + 1, norm_layer=Bias)
        for module in list(self.trunk.modules()):
            for place, layer in list(module.named_children()):
                if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                    layer.padding = (0, 0)
                    setattr(module, place, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer))

    def forward(self, x: Tensor) -> Tensor:
        """Means of the last stage over the image, shape (B, 1280)."""
        found: Tensor = self.trunk.features(resized(x, self.size)).mean((2, 3))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """Logits in the order of ImageNet, shape (B, 1000); the network's first class is none of them."""
        found: Tensor = self.trunk.classifier(features)[:, 1:]
        return found

    def fill(self, path: Path) -> None:
        """Read the weights: integers, a scale for each output channel, and biases; `w = w_q · scale`.

        Raises:
            DataError: if the file holds the weights of something else.
        """
        layers = [m for m in self.trunk.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        biases = [m for m in self.trunk.modules() if isinstance(m, Bias | nn.Linear)]
        own: dict[str, Tensor] = {}
        for k, layer in enumerate(layers):
            square = layer.weight if layer.weight.ndim == 4 else layer.weight[..., None, None]
            own |= {f"conv{k:02d}.weight_q": square}
            own |= {f"conv{k:02d}.{name}": torch.empty(len(square), device="meta") for name in ("scale", "bias")}
        values = read(path)
        if wrong := misfit(own, values):
            raise DataError(f"{path} does not hold the weights of MobileNetV2: {wrong}")
        for k, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
            whole, scale, shift = (values[f"conv{k:02d}.{name}"] for name in ("weight_q", "scale", "bias"))
            weight = whole.float() * scale[:, None, None, None]
            layer.weight = nn.Parameter(weight.reshape(layer.weight.shape))
            bias.bias = nn.Parameter(shift.clone())
        self.sha256 = digest_of(path)
