"""Grids: at which times a solver stops."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.times import time_of_sigma
from latentsb.ranges import Fraction, NonNegative, OpenFraction, Positive, PositiveFraction, enforce
from latentsb.solvers.base import GRIDS, Grid, denoising, noisy

__all__ = ["Asinh", "Karras", "KarrasTime", "LogUniform", "Natural", "Power", "SigmaGrid", "Symmetric", "Uniform"]


def karras(first: float, last: float, points: int, rho: float) -> Tensor:
    """`points` values from first to last, evenly spaced in `value^(1/rho)`; Karras et al. 2022, Eq. 5."""
    ramp = torch.linspace(first ** (1 / rho), last ** (1 / rho), points, dtype=torch.float64)
    values = ramp**rho
    values[0], values[-1] = first, last if points > 1 else first
    return values


def in_order(points: Tensor, towards: End) -> Tensor:
    """Falling positive times in the order of travel: with 0 behind them towards x0, reversed towards x1."""
    return torch.cat([points, points.new_zeros(1)]) if towards == "x0" else points.flip(0)


@GRIDS.register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(Grid):
    """Even steps in t, from 1 to 0; fits every bridge.

    Where noise changes steeply in t (the pinned end of a bridge, `ρ ∝ t` of VE) even steps are a poor choice: the
    first or the last of them jumps over most levels.

    Args:
        margin: distance kept from a pinned t = 1, where the drift is singular; without effect where the state at
            t = 1 carries noise, and for bridges that are not denoising ones.
        last: smallest positive time of a denoising bridge, reached by even steps before the step to 0; 0 for
            steps that are even down to t = 0. Towards x1 the bridge's own t_min takes the place of a 0.
    """

    margin: OpenFraction = 1e-4
    last: Fraction = 0.0

    def __post_init__(self) -> None:
        enforce(self)

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """`1 − i/steps` for plain bridges; see the fields for denoising ones."""
        if not isinstance(bridge, DenoisingBridge):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            return times if towards == "x0" else times.flip(0)
        pinned = bool(bridge.marginal(torch.ones((), dtype=torch.float64)).c == 0)
        first = min(bridge.t_max, 1 - self.margin) if pinned else bridge.t_max
        if towards == "x0" and self.last == 0:
            return torch.linspace(first, 0, steps + 1, dtype=torch.float64)
        points = steps if towards == "x0" else steps + 1
        return in_order(torch.linspace(first, self.last or bridge.t_min, points, dtype=torch.float64), towards)


@GRIDS.register("symmetric")
@dataclass(frozen=True, kw_only=True)
class Symmetric(Grid):
    """Steps that grow linearly up to the middle and shrink again, with the ends of `uniform`.

    Under Brownian motion it is the schedule of step sizes γ of Schrödinger bridges by chains: from γ_min to γ_max and
    back, `2 γ = g² h`.

    Source: De Bortoli et al. 2021, Diffusion Schrödinger bridge, official code.

    Args:
        ratio: of the smallest step to the largest, `γ_min/γ_max`; 1 is `uniform`.
    """

    ratio: PositiveFraction = 0.1

    def __post_init__(self) -> None:
        enforce(self)

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """Of N steps, the k-th and the k-th last are `ratio + (1 − ratio) k / ⌊(N − 1)/2⌋` of the largest, k from 0."""
        place = torch.arange(steps, dtype=torch.float64)
        inner = torch.minimum(place, steps - 1 - place) / max(1, (steps - 1) // 2)
        sizes = self.ratio + (1 - self.ratio) * inner
        passed = torch.cat([sizes.new_zeros(1), sizes.cumsum(0) / sizes.sum()])
        ends = Uniform().times(bridge, steps, towards)[[0, -1]]
        times = ends[0] + passed * (ends[1] - ends[0])
        times[-1] = ends[1]
        return times


@GRIDS.register("power")
@dataclass(frozen=True, kw_only=True)
class Power(Grid):
    """Times `(1 − i/steps)^exponent` between the ends of `uniform`: steps that shrink towards t = 0, for every bridge.

    Source: Karras et al. 2022 (EDM), Eq. 5, in t instead of sigma.

    Args:
        exponent: 1 is `uniform`; larger values crowd the steps near t = 0.
    """

    exponent: Positive = 2.0

    def __post_init__(self) -> None:
        enforce(self)

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """From the one end of `uniform` to the other."""
        ends = Uniform().times(bridge, steps, towards)[[0, -1]]
        late, early = (ends[0], ends[1]) if towards == "x0" else (ends[1], ends[0])
        falling = early + (late - early) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** self.exponent
        return falling if towards == "x0" else falling.flip(0)


@GRIDS.register("karras_time")
@dataclass(frozen=True, kw_only=True)
class KarrasTime(Grid):
    """Even steps in `t^(1/rho)` from `1 − margin` to t_min; the grid of the official DDBM sampler.

    Source: Karras et al. 2022 (Eq. 5), as used by Zhou et al. 2024 (Denoising diffusion bridge models).

    Args:
        rho: larger values crowd the steps near t = 0.
        margin: distance of the first time from t = 1.
        zero: append t = 0, so that the last step is an Euler step from t_min; without it a trajectory towards x0
            stops at t_min.
    """

    rho: Positive = 7.0
    margin: NonNegative = 1e-4
    zero: bool = True

    def __post_init__(self) -> None:
        enforce(self)

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """Needs a denoising bridge, for its t_min and t_max."""
        bridge = denoising(bridge, "grid 'karras_time'")
        appended = self.zero and towards == "x0"
        points = karras(min(bridge.t_max, 1 - self.margin), bridge.t_min, steps if appended else steps + 1, self.rho)
        if towards == "x0":
            return in_order(points, towards) if appended else points
        return in_order(points, towards)


class SigmaGrid(Grid):
    """A grid of the noise per unit of signal, `sigma_eff = sqrt(c) / b`.

    Where the bridge's own largest sigma_eff is below `sigma_max`, or its smallest above `sigma_min`, the grid keeps
    inside the bridge's range.

    Attributes:
        sigma_max: at the first time; sigma_eff is infinite at a pinned t = 1.
        sigma_min: at the last positive time.
    """

    sigma_max: float
    sigma_min: float

    @abstractmethod
    def spacing(self, first: float, last: float, points: int) -> Tensor:
        """`points` falling values from first to last, float64."""

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """Times at which sigma_eff has the values of `spacing`; needs a denoising bridge."""
        bridge = denoising(bridge, f"grid '{GRIDS.word_of(self)}'")
        ends = torch.tensor([bridge.t_max, bridge.t_min], dtype=torch.float64)
        largest, smallest = (float(s) for s in bridge.marginal(ends).sigma_eff)
        clipped = largest <= self.sigma_max
        first = largest if clipped else self.sigma_max
        last = max(smallest, self.sigma_min)
        if last >= first:
            raise CapabilityError(
                f"grid '{GRIDS.word_of(self)}' has levels {self.sigma_min:g} to {self.sigma_max:g} of sigma_eff, this "
                f"bridge has {smallest:g} to {largest:g}: they do not overlap"
            )
        points = steps if towards == "x0" else steps + 1
        times = time_of_sigma(bridge, self.spacing(first, last, points))
        if clipped:
            times[0] = bridge.t_max
        return in_order(times, towards)

    def __post_init__(self) -> None:
        enforce(self)
        if self.sigma_min >= self.sigma_max:
            raise ArgumentError("sigma_min", f"must be below sigma_max = {self.sigma_max:g}, found {self.sigma_min:g}")


@GRIDS.register("loguniform")
@dataclass(frozen=True, kw_only=True)
class LogUniform(SigmaGrid):
    """Even steps in the logarithm of sigma_eff; the best grid for multistep exponential solvers.

    Source: Lu et al. 2022 (DPM-Solver, uniform log-SNR).
    """

    sigma_max: Positive = 80.0
    sigma_min: Positive = 0.003

    def spacing(self, first: float, last: float, points: int) -> Tensor:
        """Geometric progression."""
        return torch.linspace(math.log(first), math.log(last), points, dtype=torch.float64).exp()


@GRIDS.register("karras")
@dataclass(frozen=True, kw_only=True)
class Karras(SigmaGrid):
    """Even steps in `sigma_eff^(1/rho)`.

    Source: Karras et al. 2022 (EDM), Eq. 5.
    """

    sigma_max: Positive = 80.0
    sigma_min: Positive = 0.002
    rho: Positive = 7.0

    def spacing(self, first: float, last: float, points: int) -> Tensor:
        """The EDM progression."""
        return karras(first, last, points, self.rho)


@GRIDS.register("asinh")
@dataclass(frozen=True, kw_only=True)
class Asinh(SigmaGrid):
    """Even steps in `asinh(sigma_eff/scale)` down to 0: even in the logarithm above the scale, in sigma_eff below it.

    In `u = asinh(sigma_eff/s)` the probability-flow ODE of a Gaussian of mean m and standard deviation s has the
    solution `y − m ∝ sqrt(sigma_eff² + s²) ∝ cosh u`, that is `(y − m)'' = y − m`: the same curvature, relative to
    y − m, at every level. Even steps in the logarithm go on below s, where nothing bends any more. Of data with many
    scales the finest decides, since wider ones are smooth on its clock too. The last positive level is one step above
    0, about `scale ln(2 sigma_max/scale)/steps`, and nears 0 with more steps, so that no error stays.

    Args:
        sigma_max: at the first time.
        sigma_min: bound below which no positive level lies; the bridge's own at t_min is another.
        scale: half the standard deviation of the finest detail that is to be right. Gaussians of standard deviation
            0.05 to 1 get their spread to 2.5 % from 16 calls of `unipc` and `dpmpp` with the default.
    """

    sigma_max: Positive = 80.0
    sigma_min: NonNegative = 0.0
    scale: Positive = 0.02

    def spacing(self, first: float, last: float, points: int) -> Tensor:
        """`scale sinh(u_1 (1 − i/points))`, ending at `last` where that is larger."""
        top = math.asinh(first / self.scale)
        low = max(math.asinh(last / self.scale), top / points)
        return self.scale * torch.linspace(top, low, points, dtype=torch.float64).sinh()


@GRIDS.register("natural")
@dataclass(frozen=True, kw_only=True)
class Natural(Grid):
    """`loguniform` for denoising bridges with noise, `uniform` for all others."""

    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """Those of the grid that suits the bridge."""
        return (LogUniform() if noisy(bridge) else Uniform()).times(bridge, steps, towards)
