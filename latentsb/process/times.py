"""Training times: the laws they are drawn from, and the weights of the loss at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Coefficients
from latentsb.randomness import Draws
from latentsb.ranges import Positive, enforce
from latentsb.registry import Registry

__all__ = [
    "TIMES",
    "WEIGHTS",
    "Levelled",
    "Likelihood",
    "LogNormalSigma",
    "LogUniformSigma",
    "LogitNormal",
    "MinSNR",
    "Plain",
    "TimeDistribution",
    "Timed",
    "Uniform",
    "Unit",
    "Weight",
    "time_of_sigma",
]


SECTIONS, ROUNDS = 16, 15
"""Parts that each round of a search cuts an interval into, and rounds: times to 2^−60 of the span."""

LEAST_SHARE = 1e-6
"""Of a normal law that must lie in the span: with less, it was meant for another process."""


class Timed(Protocol):
    """What has a span of times: every bridge that is trained at random times.

    Attributes:
        t_min: smallest time, above 0.
        t_max: largest time.
    """

    t_min: float
    t_max: float


@runtime_checkable
class Levelled(Timed, Protocol):
    """What has a noise level at each time: denoising bridges."""

    def marginal(self, t: Tensor) -> Marginal:
        """Law of X_t given the ends."""
        ...


class TimeDistribution(ABC):
    """A law of training times; a frozen dataclass. A law with tails is cut to the span, not piled up at its ends."""

    @abstractmethod
    def quantile(self, u: Tensor, bridge: Timed) -> Tensor:
        """The time below which the fraction u of the law lies; u float64 in [0, 1), shape (B,)."""

    @final
    def sample(self, bridge: Timed, draws: Draws) -> Tensor:
        """One time in [t_min, t_max] per row of the draws, float64, on the CPU, shape (B,)."""
        return self.quantile(draws.uniform("time"), bridge)


TIMES: Registry[TimeDistribution] = Registry("times", TimeDistribution, homes=("latentsb.process.times",))


def time_of_sigma(bridge: Levelled, sigma: Tensor) -> Tensor:
    """Times in [t_min, t_max] at which the bridge's `sigma_eff` has given values.

    `sigma_eff` grows with t in every marginal, so one search serves pinned and one-sided bridges and those that bring
    a marginal of their own. It cuts into 16 parts where bisection has two, which takes a quarter of the calls.

    Args:
        bridge: gives the marginal.
        sigma: float64, shape (N,); a value outside the range that sigma_eff takes on [t_min, t_max] gives its end.

    Returns:
        Float64, shape (N,).
    """
    cuts = torch.arange(1, SECTIONS, dtype=torch.float64)[:, None] / SECTIONS
    low, high = torch.full_like(sigma, bridge.t_min), torch.full_like(sigma, bridge.t_max)
    for _ in range(ROUNDS):
        inner = torch.lerp(low, high, cuts)
        levels = bridge.marginal(inner.flatten()).sigma_eff.reshape(inner.shape)
        below = (levels < sigma).sum(0).double()
        low, high = torch.lerp(low, high, below / SECTIONS), torch.lerp(low, high, (below + 1) / SECTIONS)
    return high


def _levels(bridge: Timed) -> Levelled:
    """The bridge, if it has noise levels.

    Raises:
        CapabilityError: if not.
    """
    if isinstance(bridge, Levelled):
        return bridge
    raise CapabilityError(
        f"times by noise level need a denoising bridge, and {type(bridge).__name__} is none; "
        "use 'uniform' or 'logit_normal'"
    )


def _log_sigma_span(bridge: Levelled) -> tuple[Tensor, Tensor]:
    """`ln sigma_eff` at both ends of the span; the second is infinite at a pinned t = 1."""
    low, high = bridge.marginal(_pair(bridge.t_min, bridge.t_max)).sigma_eff.log().unbind()
    return low, high


def _pair(low: float, high: float) -> Tensor:
    return torch.tensor([low, high], dtype=torch.float64)


def _cut_normal(u: Tensor, mean: float, std: float, low: Tensor, high: Tensor) -> Tensor:
    """Quantiles of a normal law cut to [low, high], to rounding.

    Raises:
        ArgumentError: if the law practically lies outside.
    """
    below, above = torch.special.ndtr((low - mean) / std), torch.special.ndtr((high - mean) / std)
    if above - below < LEAST_SHARE:
        raise ArgumentError(
            "mean", f"a normal law around {mean} with std {std} has no share in the span from {low:.3g} to {high:.3g}"
        )
    quantiles: Tensor = mean + std * torch.special.ndtri(below + u * (above - below))
    return quantiles


@TIMES.register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(TimeDistribution):
    """Uniform on (t_min, t_max), as in the official diffusion bridges."""

    def quantile(self, u: Tensor, bridge: Timed) -> Tensor:
        """`t_min + u (t_max − t_min)`."""
        return bridge.t_min + u * (bridge.t_max - bridge.t_min)


@TIMES.register("lognormal_sigma")
@dataclass(frozen=True, kw_only=True)
class LogNormalSigma(TimeDistribution):
    """`ln sigma_eff` is normal.

    Source: Karras et al. 2022, EDM, Table 1; the defaults are for data of standard deviation 0.5.

    Args:
        mean: of `ln sigma_eff`.
        std: of `ln sigma_eff`.
    """

    mean: float = -1.2
    std: Positive = 1.2

    def __post_init__(self) -> None:
        enforce(self)

    def quantile(self, u: Tensor, bridge: Timed) -> Tensor:
        """See the class.

        Raises:
            ArgumentError: if the law practically lies outside the span.
        """
        levelled = _levels(bridge)
        log_sigma = _cut_normal(u, self.mean, self.std, *_log_sigma_span(levelled))
        return time_of_sigma(levelled, log_sigma.exp())


@TIMES.register("loguniform_sigma")
@dataclass(frozen=True, kw_only=True)
class LogUniformSigma(TimeDistribution):
    """`ln sigma_eff` is uniform between two levels, within the span.

    Args:
        sigma_min: smallest noise level.
        sigma_max: largest noise level; a pinned bridge has no largest one of its own.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        enforce(self)
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError("sigma_min", f"must be below sigma_max = {self.sigma_max}, found {self.sigma_min}")

    def quantile(self, u: Tensor, bridge: Timed) -> Tensor:
        """See the class.

        Raises:
            ArgumentError: if no level between the two is in the span.
        """
        levelled = _levels(bridge)
        first, last = _log_sigma_span(levelled)
        bottom, top = _pair(self.sigma_min, self.sigma_max).log()
        low, high = torch.maximum(first, bottom), torch.minimum(last, top)
        if low > high:
            raise ArgumentError(
                "sigma_max",
                f"no level between sigma_min = {self.sigma_min} and sigma_max = {self.sigma_max} is one of this "
                f"process, whose levels run from {first.exp():.3g} to {last.exp():.3g}",
            )
        return time_of_sigma(levelled, (low + u * (high - low)).exp())


@TIMES.register("logit_normal")
@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDistribution):
    """`ln(t/(1 − t))` is normal.

    Source: Esser et al. 2024, Sec. 3.1.

    Args:
        mean: of the logit; positive values prefer times near x1.
        std: of the logit.
    """

    mean: float = 0.0
    std: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def quantile(self, u: Tensor, bridge: Timed) -> Tensor:
        """See the class.

        Raises:
            ArgumentError: if the law practically lies outside the span.
        """
        low, high = _pair(bridge.t_min, bridge.t_max).logit().unbind()
        return _cut_normal(u, self.mean, self.std, low, high).sigmoid().clamp(bridge.t_min, bridge.t_max)


class Weight(ABC):
    """A weight on the squared x0 error at a time; a frozen dataclass."""

    @abstractmethod
    def of(self, t: Tensor, bridge: Levelled, coefficients: Coefficients) -> Tensor:
        """Weights, float64, shape of t; relative to `coefficients.weight` they weigh the network's own error.

        Args:
            t: times in (0, 1), shape (B,) or ().
            bridge: gives the marginal.
            coefficients: of the preconditioning at t.
        """


WEIGHTS: Registry[Weight] = Registry("weight", Weight, homes=("latentsb.process.times",))


@WEIGHTS.register("unit")
@dataclass(frozen=True, kw_only=True)
class Unit(Weight):
    """`1/out²`: every time counts the same in units of the network's target.

    Source: Karras et al. 2022, EDM, Table 1.
    """

    def of(self, t: Tensor, bridge: Levelled, coefficients: Coefficients) -> Tensor:
        """See the class."""
        return coefficients.weight


@WEIGHTS.register("plain")
@dataclass(frozen=True, kw_only=True)
class Plain(Weight):
    """One: the x0 error itself."""

    def of(self, t: Tensor, bridge: Levelled, coefficients: Coefficients) -> Tensor:
        """See the class."""
        return torch.ones_like(coefficients.out)


@WEIGHTS.register("likelihood")
@dataclass(frozen=True, kw_only=True)
class Likelihood(Weight):
    """`−dSNR/dt = g² b²/c²`: half its integral bounds the likelihood and the information in the code.

    Source: Song et al. 2021, "Maximum likelihood training of score-based diffusion models"; Kingma et al. 2021.
    """

    def of(self, t: Tensor, bridge: Levelled, coefficients: Coefficients) -> Tensor:
        """See the class."""
        t = t.to(torch.float64)
        slope: Tensor = torch.func.jvp(lambda time: bridge.marginal(time).snr, (t,), (torch.ones_like(t),))[1]
        return -slope


@WEIGHTS.register("min_snr")
@dataclass(frozen=True, kw_only=True)
class MinSNR(Weight):
    """`min(SNR, γ)` with `SNR = 1/sigma_eff²`.

    Source: Hang et al. 2023, Sec. 3.4.

    Args:
        gamma: largest weight.
    """

    gamma: Positive = 5.0

    def __post_init__(self) -> None:
        enforce(self)

    def of(self, t: Tensor, bridge: Levelled, coefficients: Coefficients) -> Tensor:
        """See the class."""
        return bridge.marginal(t).snr.clamp(max=self.gamma)
