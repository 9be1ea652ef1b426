"""Inception-v3 as the Fréchet Inception distance knows it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from latentsb.errors import BackendError, DataError
from latentsb.features.base import FEATURES, FeatureNetwork, Features, digest_of, require_file
from latentsb.weights import home, read

__all__ = ["Inception", "InceptionV3"]

STEM = "weights-inception-2015-12-05-6726825d"
"""Of the file that torch-fidelity publishes."""


@FEATURES.register("inception")
@dataclass(frozen=True, kw_only=True)
class Inception(Features):
    """Inception-v3 of torch-fidelity, whose Fréchet distance is called FID, from a local file.

    Source: Heusel et al. 2017, GANs trained by a two time-scale update rule; port by Obukhov et al. 2020.

    Args:
        path: folder of `weights-inception-2015-12-05-6726825d.safetensors`; `inception` below `LATENTSB_WEIGHTS` if
            None.
    """

    path: Path | None = None

    @property
    def file(self) -> Path:
        """Of the weights."""
        return (self.path or home() / "inception") / f"{STEM}.safetensors"

    def require(self) -> None:
        """See that the library and the file are there."""
        if find_spec("torch_fidelity") is None:
            raise BackendError("Inception-v3 needs torch-fidelity, which is not installed: pip install torch-fidelity")
        require_file(self.file, f"the content of torch-fidelity's {STEM}.pth, written as safetensors,")

    def load(self) -> InceptionV3:
        """The network with its weights."""
        self.require()
        return InceptionV3(self.file).eval()


class InceptionV3(FeatureNetwork):
    """torch-fidelity's network: images of eight bits, enlarged as TensorFlow 1 does it.

    Args:
        path: of the weights.

    Raises:
        DataError: if the file holds the weights of something else.
    """

    name = "Inception-v3"

    def __init__(self, path: Path) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        # The library takes a pickle only: it is given one that was made here, of tensors that were read safely.
        pickled = io.BytesIO()
        torch.save(read(path), pickled)
        pickled.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):
                self.trunk: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], pickled)
        except RuntimeError as error:
            raise DataError(
                f"{path} does not hold the weights of {self.name}: {str(error).splitlines()[-1]}"
            ) from error
        self.sha256 = digest_of(path)

    @property
    def frechet_name(self) -> str:
        """`FID`."""
        return "FID"

    @property
    def kernel_name(self) -> str:
        """`KID`."""
        return "KID"

    def forward(self, x: Tensor) -> Tensor:
        """Features before the classes, shape (B, 2048)."""
        levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        found: Tensor = self.trunk(levels.expand(-1, 3, -1, -1))[0]
        return found
