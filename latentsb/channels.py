"""Channels of codes: what stands between an encoder's output and z, and how much it lets through.

The rate of a noisy channel is `KL(q(z|x0) ‖ N(0, 1))`, summed over the numbers of the code, in nats. Averaged over the
data it bounds the information in the code from above: `I(x0; z) ≤ E rate` (Alemi et al. 2018, Fixing a broken ELBO).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.randomness import Draws
from latentsb.ranges import NonNegative, Positive, enforce
from latentsb.registry import Registry

__all__ = ["CHANNELS", "Channel", "Clamped", "CodeLaw", "Exact", "Fixed", "soft_clamp"]


def soft_clamp(value: Tensor, limit: float) -> Tensor:
    """`limit tanh(value / limit)`: the identity near zero, within ±limit everywhere."""
    return limit * torch.tanh(value / limit)


@dataclass(frozen=True)
class CodeLaw:
    """Law of z given a sample: `N(mean, diag sigma²)`, or a point.

    Args:
        mean: shape (B, Z).
        sigma: shape (B, Z); None for a point.
    """

    mean: Tensor
    sigma: Tensor | None = None

    def draw(self, draws: Draws | None) -> Tensor:
        """`mean + sigma ε`, shape (B, Z); the mean without draws."""
        if self.sigma is None or draws is None:
            return self.mean
        return self.mean + self.sigma * draws.normal("code", self.mean)

    def rate(self) -> Tensor:
        """`KL(N(mean, sigma²) ‖ N(0, 1)) = (mean² + sigma² − 1)/2 − ln sigma` of each number, nats, shape (B, Z).

        Raises:
            ValueError: of a point, whose rate is infinite.
        """
        if self.sigma is None:
            raise ValueError("a code without noise has no finite rate")
        return (self.mean.square() + self.sigma.square() - 1) / 2 - self.sigma.log()

    def entropy(self) -> Tensor:
        """Differential entropy, `Σ ln sigma + Z/2 ln 2πe`, nats, shape (B,).

        Raises:
            ValueError: of a point, whose entropy is minus infinity.
        """
        if self.sigma is None:
            raise ValueError("a code without noise has no finite entropy")
        return self.sigma.log().sum(1) + self.mean.shape[1] / 2 * math.log(2 * math.pi * math.e)


class Channel(ABC):
    """From an encoder's output to the law of z; a frozen dataclass.

    Attributes:
        noisy: whether z carries noise; `law` then gives a sigma.
    """

    noisy: bool = False

    @abstractmethod
    def outputs(self, z_dim: int) -> int:
        """Numbers that the encoder must give for a code of `z_dim`."""

    @abstractmethod
    def law(self, out: Tensor) -> CodeLaw:
        """Law of z given the encoder's output of shape (B, outputs)."""

    @property
    def capacity(self) -> float:
        """Bits that one number of the code can carry at most; infinite where nothing bounds them."""
        return math.inf

    def charge(self, law: CodeLaw) -> Tensor | None:
        """What the rate costs in the loss, nats, shape (B,); None where it is free."""
        return None


CHANNELS: Registry[Channel] = Registry("channel", Channel, homes=("latentsb.channels",))


@CHANNELS.register("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(Channel):
    """z is the encoder's output; nothing bounds what it carries.

    Source: Kim et al. 2025, Diffusion bridge autoencoders (the deterministic variant).
    """

    def outputs(self, z_dim: int) -> int:
        """One number each."""
        return z_dim

    def law(self, out: Tensor) -> CodeLaw:
        """A point."""
        return CodeLaw(out)


@dataclass(frozen=True, kw_only=True)
class Rated(Channel):
    """A noisy channel whose rate may be charged: `beta Σ_j max(KL_j, free_bits ln 2)`.

    Source: Higgins et al. 2017, beta-VAE, Eq. 4; Kingma et al. 2016, Improved variational inference with inverse
    autoregressive flow, Eq. 15 (free bits; here of each number and sample, so that no batch enters).

    Args:
        beta: price of a nat.
        free_bits: bits that each number of the code may carry at no additional cost.
    """

    noisy = True
    beta: NonNegative = 0.0
    free_bits: NonNegative = 0.0

    def __post_init__(self) -> None:
        enforce(self)

    def charge(self, law: CodeLaw) -> Tensor | None:
        """See the class; None for a `beta` of zero."""
        if self.beta == 0:
            return None
        return self.beta * law.rate().clamp(min=self.free_bits * math.log(2)).sum(1)


@CHANNELS.register("clamped")
@dataclass(frozen=True, kw_only=True)
class Clamped(Rated):
    """`z = μ + σ ε` with `μ = 5 tanh(m/5)`, `σ = exp(5 tanh(l/5)) + 0.01`, `(m, l)` the encoder's output.

    The published stochastic code, in which limits and floor stand in place of a charged rate: at most
    `log2(1 + 25/σ²)/2 = 8.22` bits per number if all have the smallest σ.

    Source: Kim et al. 2025, Diffusion bridge autoencoders; official code.

    Args:
        beta: price of a nat of the rate; free as published.
        free_bits: bits that each number of the code may carry at no additional cost.
        limit: size that the mean and the log of the spread cannot exceed.
        floor: added to the spread.
    """

    limit: Positive = 5.0
    floor: Positive = 0.01

    def outputs(self, z_dim: int) -> int:
        """Mean and log spread."""
        return 2 * z_dim

    def law(self, out: Tensor) -> CodeLaw:
        """See the class."""
        m, log_sigma = out.chunk(2, dim=1)
        return CodeLaw(soft_clamp(m, self.limit), soft_clamp(log_sigma, self.limit).exp() + self.floor)

    @property
    def capacity(self) -> float:
        """The largest `log2(limit² + E σ²)/2 − E log2 σ` over all laws of σ, 10.3 by default.

        z can tell of σ, too, where that differs between samples. Its entropy is at most a Gaussian's of its variance,
        and of all σ with one mean square a mixture of both extremes has the least mean logarithm.
        """
        least, most = (math.exp(s) + self.floor for s in (-self.limit, self.limit))
        power, span, nats = self.limit**2 + least**2, most**2 - least**2, 2 * math.log(most / least)
        share = min(1.0, max(0.0, 1 / nats - power / span))  # of the largest σ, where the slope is zero
        return ((math.log(power + share * span) - share * nats) / 2 - math.log(least)) / math.log(2)


@CHANNELS.register("fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(Rated):
    """`z = μ + sigma ε` with `μ = limit tanh(m/limit)`: noise of one size, hence a capacity that the recipe sets.

    Source: Shannon 1949, Communication in the presence of noise, Theorem 2.

    Args:
        beta: price of a nat of the rate.
        free_bits: bits that each number of the code may carry at no additional cost.
        limit: size that the mean cannot exceed.
        sigma: of the noise; 0.1 with a limit of 1 leaves 3.3 bits per number.
    """

    limit: Positive = 1.0
    sigma: Positive = 0.1

    def outputs(self, z_dim: int) -> int:
        """The mean."""
        return z_dim

    def law(self, out: Tensor) -> CodeLaw:
        """See the class."""
        mean = soft_clamp(out, self.limit)
        return CodeLaw(mean, torch.full_like(mean, self.sigma))

    @property
    def capacity(self) -> float:
        """`log2(1 + limit²/sigma²)/2`."""
        return math.log2(1 + (self.limit / self.sigma) ** 2) / 2
