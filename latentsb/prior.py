"""Priors: laws of the codes, from which new samples begin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from latentsb.errors import CapabilityError
from latentsb.laws import FittedGaussian
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Condition, Spec
from latentsb.trainable import Loss

__all__ = ["PRIORS", "GaussianPrior", "LearnedPrior", "Prior"]


class Prior(nn.Module, ABC):
    """A law of codes, fitted or trained.

    Args:
        code: shape of a code.
        cond: conditions that codes come with (label, attributes).
    """

    def __init__(self, code: Spec, cond: dict[str, Spec]) -> None:
        super().__init__()
        self.code, self.cond_spec = code, dict(cond)

    @abstractmethod
    def sample(self, cond: Condition, draws: Draws) -> Tensor:
        """One code per row of the draws, shape (B, Z), on the prior's device.

        Raises:
            CapabilityError: before it is fitted.
        """

    @abstractmethod
    def fit(self, codes: Iterable[Tensor]) -> None:
        """Fit what is in closed form to a pass of codes, each of shape (B, Z)."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What new codes are drawn from, for the reader of samples."""


class LearnedPrior(Prior):
    """A prior with weights: trained on the codes of a frozen encoder in a stage of its own, or beside the encoder.

    Attributes:
        joint: it is trained in the stage of the bridge; its own loss does not move the encoder.
        renew: images between two looks at the statistics of the codes, in a joint training.
        weight: of `L_PR = E[−ln p(z) − H(q(z | x0))]` in the bridge's loss, which moves encoder and prior.
    """

    joint: bool = False
    renew: int
    weight: float = 0.0

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether training has begun, so that codes can be drawn."""

    @abstractmethod
    def normalise(self, mean: Tensor, std: Tensor, count: int) -> None:
        """Keep the statistics of the training codes.

        Args:
            mean: of each number, shape (Z,).
            std: its standard deviation, shape (Z,).
            count: codes behind them.
        """

    @abstractmethod
    def loss(self, z: Tensor, cond: Condition, draws: Draws) -> Loss:
        """Training loss of codes of shape (B, Z) and their conditions, per sample."""

    @abstractmethod
    def nats(self, z: Tensor, cond: Condition, draws: Draws) -> Tensor:
        """Unbiased estimate of an upper bound of `−ln p(z | cond)`, differentiable in z and the weights, shape (B,)."""

    def fit(self, codes: Iterable[Tensor]) -> None:
        """Nothing: it is trained."""


PRIORS: Registry[Prior] = Registry("prior", Prior, homes=("latentsb.prior", "latentsb.learned_prior"))


@PRIORS.register("gaussian")
class GaussianPrior(Prior):
    """The Gaussian with the mean and the full covariance of the training codes.

    Source: closed form.

    Args:
        code: shape of a code.
        cond: conditions that codes come with; they have no effect here.
    """

    def __init__(self, code: Spec, cond: dict[str, Spec]) -> None:
        super().__init__(code, cond)
        self.codes = FittedGaussian(code.numel)

    def sample(self, cond: Condition, draws: Draws) -> Tensor:
        """Codes of the Gaussian."""
        if not self.codes.fitted:
            raise CapabilityError(
                "no prior over z has been fitted yet: train to the end of the stage, or give codes by encoding data"
            )
        return self.codes.sample(draws.size, draws).to(self.codes.mean.device, self.code.dtype)

    def fit(self, codes: Iterable[Tensor]) -> None:
        """Mean and covariance."""
        self.codes.fit(codes)

    @property
    def description(self) -> str:
        """How many codes stand behind it."""
        if not self.codes.fitted:
            return "no prior over z has been fitted yet"
        return f"z is drawn from the Gaussian fitted to {int(self.codes.count)} encodings; no prior over z was learned"
