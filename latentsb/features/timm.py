"""Any network of timm, with weights from a local file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, DataError, nearest
from latentsb.features.base import FEATURES, FeatureNetwork, Features, digest_of, resized
from latentsb.ranges import NonNegativeInt, enforce
from latentsb.weights import ANY, files_of, home, misfit, read

__all__ = ["Timm", "TimmNetwork"]

USUAL = "model.safetensors"


@FEATURES.register("timm")
@dataclass(frozen=True, kw_only=True)
class Timm(Features):
    """Any network of timm by its name, for grey and colour images of any size, from a local file or folder.

    Source: Wightman 2019, PyTorch image models.

    Args:
        model: as timm calls it: `resnet18`.
        path: file, or folder of `model.safetensors`, as the Hugging Face Hub has it; the folder of the model's name
            below `LATENTSB_WEIGHTS` if None.
        untrained: seed of random weights, in place of any file; its distances bear the word.
    """

    model: str
    path: Path | None = None
    untrained: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        enforce(self)
        if self.path is not None and self.untrained is not None:
            raise ArgumentError("untrained", f"random weights are asked for beside those in {self.path}; name one")

    @property
    def file(self) -> Path:
        """Of the weights.

        Raises:
            DataError: if there is none.
        """
        where = self.path or home() / self.model
        try:
            return files_of(where, (USUAL,), (ANY,))[0]
        except DataError as error:
            cure = f"put the weights of timm/{self.model} there, or say where they are: path=…"
            raise DataError(f"found no {USUAL} in {where}; {cure} (untrained=SEED asks for random weights)") from error

    def require(self) -> None:
        """See that timm knows the model, and that the file is there."""
        import timm

        if not timm.is_model(self.model):
            raise ArgumentError("model", f"timm has no '{self.model}'.{nearest(self.model, timm.list_models())}")
        if self.untrained is None:
            _ = self.file

    def load(self) -> TimmNetwork:
        """The network with its weights."""
        self.require()
        network = TimmNetwork(self.model, self.untrained)
        if self.untrained is None:
            network.fill(self.file)
        return network.eval()


class TimmNetwork(FeatureNetwork):
    """A network of timm without its classes; its pooled features.

    Args:
        model: as timm calls it.
        untrained: seed of random weights that are kept, and told by the name.
    """

    def __init__(self, model: str, untrained: int | None = None) -> None:
        import timm

        super().__init__()
        self.name = model if untrained is None else f"untrained {model} (seed {untrained})"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained or 0)
            self.trunk: Any = timm.create_model(model, pretrained=False, num_classes=0)
        known = timm.data.resolve_data_config(model=self.trunk)
        self.size: int = known["input_size"][-1]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(known[name]).reshape(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, shape (B, F)."""
        x = (resized(x, self.size) + 1) / 2
        found: Tensor = self.trunk((x - self.mean) / self.std)
        return found

    def fill(self, path: Path) -> None:
        """Read the weights; those of the classes are passed over.

        Raises:
            DataError: if the file holds the weights of something else.
        """
        heads = self.trunk.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        given = read(path)
        own = self.trunk.state_dict()
        classes = [name for name in given if name not in own and name.startswith(tuple(f"{h}." for h in heads))]
        values = {name: value for name, value in given.items() if name not in classes}
        counts = {name for name in own if name.endswith("num_batches_tracked")}
        if wrong := misfit({k: v for k, v in own.items() if k not in counts or k in values}, values):
            raise DataError(f"{path} does not hold the weights of timm's {self.name}: {wrong}")
        self.trunk.load_state_dict(values, strict=False)
        self.sha256 = digest_of(path)
