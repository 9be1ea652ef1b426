"""Contracts of networks, encoders and endpoint decoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from latentsb.networks.positions import Positions
from latentsb.registry import Registry
from latentsb.tensors import Condition, Spec

__all__ = ["DECODERS", "ENCODERS", "NETWORKS", "Decoder", "Encoder", "Network"]


class Network(nn.Module, ABC):
    """A function of a state, a time and conditions.

    The shape of a condition decides how it enters: a label (`classes`) by an embedding table, a vector by the
    adaptive norm, a tensor with the state's spatial shape by concatenation of channels. Where a condition is
    absent, a learned null stands in.

    Args:
        x: shape of the state.
        cond: shapes of the conditions that this network shall use, by name.
        out: shape of the prediction; that of x if None.

    Attributes:
        stride: it takes states of any sides that are multiples of this; None: of the sides alone that it was made for,
            as a layer over all places or a learned table of positions has it.
        positions: how its positions continue at another size; None where it has none.
    """

    stride: int | None = None
    positions: Positions | None = None

    def __init__(self, x: Spec, cond: Mapping[str, Spec] | None = None, out: Spec | None = None) -> None:
        super().__init__()
        self.x_spec, self.cond_spec, self.out_spec = x, dict(cond or {}), out or x
        self.calls = 0
        self.register_forward_pre_hook(_count)

    @property
    def uses(self) -> frozenset[str]:
        """Names of the conditions that this network reads."""
        return frozenset(self.cond_spec)

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict.

        Args:
            x: shape (B, *x.shape).
            t: the bridge's time feature (ln(sigma)/4 or t itself), float, shape (B,) or ().
            cond: must hold every name in `uses`.

        Returns:
            Shape (B, *out.shape).
        """


def _count(module: nn.Module, args: object) -> None:
    assert isinstance(module, Network)
    module.calls += 1


class Encoder(nn.Module, ABC):
    """Maps a latent or an image to a vector; z of an encoding bridge.

    Args:
        x: shape of the input.
        dim: length of the output.

    Attributes:
        sees_images: its input must be pixels in [-1, 1], as that of pretrained weights.
    """

    sees_images: bool = False

    def __init__(self, x: Spec, dim: int) -> None:
        super().__init__()
        self.x_spec, self.dim = x, dim

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, *x.shape) to (B, dim)."""

    def load(self) -> None:
        """Read the pretrained weights that the recipe names; called once, on the CPU, where a run begins.

        Not called where all weights are overwritten anyway, nor where only shapes are asked for. Nothing by default.

        Raises:
            DataError: if they are missing or do not fit; says what to put where.
        """


class Decoder(nn.Module, ABC):
    """Maps a code to a tensor of the latent's shape; the endpoint x1 of an encoding bridge.

    Args:
        dim: length of the code.
        out: shape of the output.
    """

    def __init__(self, dim: int, out: Spec) -> None:
        super().__init__()
        self.dim, self.out_spec = dim, out

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Shape (B, dim) to (B, *out.shape); unbounded."""


NETWORKS: Registry[Network] = Registry(
    "network",
    Network,
    homes=(
        "latentsb.networks.transformer",
        "latentsb.networks.unet",
        "latentsb.networks.mlp",
        "latentsb.networks.skips",
        "latentsb.networks.temporal",
    ),
)
ENCODERS: Registry[Encoder] = Registry(
    "encoder",
    Encoder,
    homes=("latentsb.networks.encoder", "latentsb.networks.encoder_timm", "latentsb.networks.encoder_unet"),
)
DECODERS: Registry[Decoder] = Registry("decoder", Decoder, homes=("latentsb.networks.decoder",))
