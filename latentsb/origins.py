"""Origins: what stands in for the law of the latents where a trajectory must start from `law * N(0, σ²)`.

A latent Schrödinger bridge starts from the data's own law, convolved with a Gaussian. That law is known by samples
only; an origin is fitted to them at the end of training, and σ ξ is added to its draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from latentsb.errors import CapabilityError
from latentsb.laws import FittedGaussian, Sampled
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.registry import Registry
from latentsb.tensors import Batch, Condition, Spec

__all__ = ["ORIGINS", "EmpiricalOrigin", "GaussianOrigin", "Origin"]


class Origin(nn.Module, Sampled, ABC):
    """A law of latents that is found in a pass over them; what was found lies in buffers.

    Args:
        spec: shape of a latent.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether latents have been seen."""

    @abstractmethod
    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Find the law; each call of `batches` begins a pass over the latents, as x0."""

    def require(self) -> None:
        """Refuse to be drawn from before anything is known.

        Raises:
            CapabilityError: before `fit`.
        """
        if not self.fitted:
            raise CapabilityError("where trajectories start is fitted to the latents at the end of training")


ORIGINS: Registry[Origin] = Registry("origin", Origin, homes=("latentsb.origins",))


@ORIGINS.register("gaussian")
class GaussianOrigin(Origin):
    """The Gaussian with the mean and the full covariance of the latents; no data are needed to sample.

    Of a Gaussian law it is exact. Of another, an error `e` of the start's variance in a direction of variance s² is
    `e (s²/(s² + σ²))²` at the end, and an error of its mean is multiplied by `s²/(s² + σ²)`. Takes `8 D²` bytes.

    Source: closed form.

    Args:
        spec: shape of a latent, of D numbers.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.law = FittedGaussian(spec.numel)

    @property
    def fitted(self) -> bool:
        """Whether latents have been seen."""
        return self.law.fitted

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Mean and covariance, in one pass."""
        self.law.fit(batch.data.flatten(1) for batch in batches())

    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw from the Gaussian, shape (n, *spec.shape), float32 on the CPU.

        Raises:
            CapabilityError: before `fit`.
        """
        self.require()
        return self.law.sample(n, draws).reshape(n, *self.spec.shape)


@ORIGINS.register("empirical")
class EmpiricalOrigin(Origin):
    """Latents of the training data themselves, drawn again: exact for the empirical law, whatever it is.

    Where σ is not larger than the distance of neighbours this comes near to copying the data. The kept latents lie in
    the checkpoint.

    Source: closed form.

    Args:
        spec: shape of a latent.
        keep: latents that are kept; of more, evenly spaced ones in the order of the data.
    """

    kept: Tensor
    count: Tensor

    def __init__(self, spec: Spec, *, keep: Count = 4096) -> None:
        super().__init__(spec)
        self.register_buffer("kept", torch.zeros(keep, *spec.shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def fitted(self) -> bool:
        """Whether latents have been seen."""
        return int(self.count) > 0

    @property
    def latents(self) -> Tensor:
        """Those that are kept, shape (N, *spec.shape)."""
        return self.kept[: int(self.count)]

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Keep latents, in two passes: one counts."""
        total = sum(len(batch.data) for batch in batches())
        size = min(total, len(self.kept))
        chosen = torch.arange(size) * total // max(size, 1)
        seen = 0
        for batch in batches():
            inside = (chosen >= seen) & (chosen < seen + len(batch.data))
            rows = batch.data[(chosen[inside] - seen).to(batch.data.device)]
            self.kept[inside.nonzero()[:, 0].to(self.kept.device)] = rows.to(self.kept)
            seen += len(batch.data)
        self.count.fill_(size)

    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw from what is kept, with repetition, shape (n, *spec.shape), float32 on the CPU.

        Raises:
            CapabilityError: before `fit`.
        """
        self.require()
        return self.latents.cpu()[draws.integers("row", int(self.count))]
