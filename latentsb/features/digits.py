"""A classifier of handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.features.base import FEATURES, Classifier, Features, fill, require_file
from latentsb.tensors import Spec
from latentsb.weights import home

__all__ = ["LeNet", "MnistLeNet"]


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
