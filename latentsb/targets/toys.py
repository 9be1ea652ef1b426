"""The targets that samplers are compared on, with their exact constants.

One-dimensional integrals without a closed form are taken by the trapezoidal rule in float64, to twelve digits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.ranges import Count, Positive, enforce
from latentsb.targets.base import TARGETS, Target, log_integral
from latentsb.tensors import Condition

__all__ = ["DoubleWell", "Funnel", "GaussianTarget", "ManyWell", "ManyWell50", "MixtureTarget", "Rings"]

POINTS = 20_001
"""Of a quadrature grid."""


@TARGETS.register("gmm")
@dataclass(frozen=True, kw_only=True)
class MixtureTarget(Target):
    """Nine equal round Gaussians on the square grid {-5, 0, 5}²: separated modes, log Z = 0.

    Source: Richter & Berner 2024 (Improved sampling via learned diffusions), App. on targets.

    Args:
        distance: of neighbouring modes.
        variance: of each mode in every direction.
    """

    distance: Positive = 5.0
    variance: Positive = 0.3
    shape = (2,)
    log_z = 0.0
    mode_mass = (1 / 9,) * 9

    def __post_init__(self) -> None:
        enforce(self)

    @cached_property
    def centres(self) -> Tensor:
        """Shape (9, 2), float64."""
        line = (-self.distance, 0.0, self.distance)
        return torch.tensor(list(itertools.product(line, line)), dtype=torch.float64)

    @property
    def std(self) -> tuple[float, ...]:
        """`√(variance + 2/3 distance²)` in both directions."""
        return (math.sqrt(self.variance + 2 * self.distance**2 / 3),) * 2

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Normalised log-density, shape (B,)."""
        return self.diffused(x, 1.0, 0.0)

    def diffused(self, x: Tensor, alpha: Tensor | float, noise: Tensor | float) -> Tensor:
        """Log-density of `α X + √noise ε`, shape (B,): a mixture again."""
        off = x[..., None, :] - alpha * self.centres.to(x)
        variance = torch.as_tensor(alpha**2 * self.variance + noise).to(x)
        density = -off.square().sum(-1) / (2 * variance) - torch.log(2 * math.pi * variance)
        return torch.logsumexp(density, -1) - math.log(len(self.centres))

    def mode_of(self, x: Tensor) -> Tensor:
        """The nearest centre."""
        return (x[:, None] - self.centres.to(x)).square().sum(2).argmin(1)


@TARGETS.register("funnel")
@dataclass(frozen=True, kw_only=True)
class Funnel(Target):
    """Neal's funnel: `x_1 ~ N(0, spread²)`, the others `N(0, e^{x_1})` given it; log Z = 0.

    Source: Neal 2003 (Slice sampling), Sec. 8, with the usual spread 3 in ten dimensions.

    Args:
        dim: at least 2.
        spread: standard deviation of x_1.
    """

    dim: Count = 10
    spread: Positive = 3.0
    log_z = 0.0

    def __post_init__(self) -> None:
        enforce(self)
        if self.dim < 2:
            raise ArgumentError("dim", f"found {self.dim}, expected at least 2")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(dim,)`."""
        return (self.dim,)

    @property
    def std(self) -> tuple[float, ...]:
        """`spread`, and `√E e^{x_1} = e^{spread²/4}` for the others."""
        return (self.spread, *(math.exp(self.spread**2 / 4),) * (self.dim - 1))

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Normalised log-density, shape (B,)."""
        first, rest = x[:, 0], x[:, 1:]
        neck = -first.square() / (2 * self.spread**2) - math.log(self.spread)
        mouth = -rest.square().sum(1) * torch.exp(-first) / 2 - first * (rest.shape[1] / 2)
        return neck + mouth - self.dim / 2 * math.log(2 * math.pi)


@TARGETS.register("mw")
@dataclass(frozen=True, kw_only=True)
class ManyWell(Target):
    """Double wells `−(x_i² − delta)²` in the first dimensions and standard normal others: 2^wells modes.

    Source: Wu, Köhler & Noé 2020 (Stochastic normalizing flows); Richter & Berner 2024.

    Args:
        dim: in all.
        wells: dimensions with a double well, at most 12.
        delta: squared distance of a well from zero.
    """

    dim: Count = 5
    wells: Count = 5
    delta: Positive = 4.0

    def __post_init__(self) -> None:
        enforce(self)
        if not self.wells <= min(self.dim, 12):
            raise ArgumentError("wells", f"found {self.wells}, expected at most dim = {self.dim}, and at most 12")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(dim,)`."""
        return (self.dim,)

    @cached_property
    def _well(self) -> tuple[float, float]:
        """Log-integral of one double well, and its standard deviation."""
        edge = math.sqrt(self.delta) + 8.0
        x = torch.linspace(-edge, edge, POINTS, dtype=torch.float64)
        values, spacing = -(x.square() - self.delta).square(), 2 * edge / (POINTS - 1)
        mass = log_integral(values, spacing)
        second = float(((values - mass).exp() * x.square()).sum() * spacing)
        return mass, math.sqrt(second)

    @property
    def log_z(self) -> float:
        """`wells · log ∫ e^{−(x² − delta)²} + (dim − wells)/2 · log 2π`."""
        return self.wells * self._well[0] + (self.dim - self.wells) / 2 * math.log(2 * math.pi)

    @property
    def std(self) -> tuple[float, ...]:
        """Of a well, and one."""
        return (self._well[1],) * self.wells + (1.0,) * (self.dim - self.wells)

    @property
    def mode_mass(self) -> tuple[float, ...]:
        """Equal, since each well is symmetric."""
        modes = 1 << self.wells
        return (1 / modes,) * modes

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density up to `log_z`, shape (B,)."""
        wells, rest = x[:, : self.wells], x[:, self.wells :]
        return -(wells.square() - self.delta).square().sum(1) - rest.square().sum(1) / 2

    def mode_of(self, x: Tensor) -> Tensor:
        """The signs of the double wells, as a number."""
        bits = 2 ** torch.arange(self.wells, device=x.device)
        return ((x[:, : self.wells] > 0) * bits).sum(1)


@TARGETS.register("mw_50d")
@dataclass(frozen=True, kw_only=True)
class ManyWell50(ManyWell):
    """Five double wells with delta = 2 in fifty dimensions: log Z = 42.817243.

    Source: Richter & Berner 2024.

    Args:
        dim: in all.
        wells: dimensions with a double well, at most 12.
        delta: squared distance of a well from zero.
    """

    dim: Count = 50
    delta: Positive = 2.0


@TARGETS.register("dw_shift")
@dataclass(frozen=True, kw_only=True)
class DoubleWell(Target):
    """One double well `−((x − shift)² − delta)²` away from zero.

    Source: Richter & Berner 2024, official code.

    Args:
        shift: of the middle.
        delta: squared distance of a well from the middle.
    """

    shift: float = 1.5
    delta: Positive = 2.0
    shape = (1,)
    mode_mass = (0.5, 0.5)

    def __post_init__(self) -> None:
        enforce(self)

    @property
    def log_z(self) -> float:
        """`log ∫ e^{−(x² − delta)²}`."""
        return ManyWell(dim=1, wells=1, delta=self.delta).log_z

    @property
    def std(self) -> tuple[float, ...]:
        """Of the well."""
        return ManyWell(dim=1, wells=1, delta=self.delta).std

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density up to `log_z`, shape (B,)."""
        return -((x[:, 0] - self.shift).square() - self.delta).square()

    def mode_of(self, x: Tensor) -> Tensor:
        """On which side of the middle."""
        return (x[:, 0] > self.shift).long()


@TARGETS.register("rings")
@dataclass(frozen=True, kw_only=True)
class Rings(Target):
    """Thin rings in the plane, `−sharpness · min_k (|x| − r_k)²`.

    Source: Richter & Berner 2024, official code.

    Args:
        radii: ascending.
        sharpness: of the rings.
    """

    radii: tuple[Positive, ...] = (1.0, 3.0, 5.0)
    sharpness: Positive = 100.0
    shape = (2,)

    def __post_init__(self) -> None:
        enforce(self)
        if not self.radii or list(self.radii) != sorted(set(self.radii)):
            raise ArgumentError("radii", f"found {list(self.radii)}, expected ascending numbers")

    @cached_property
    def _rings(self) -> tuple[float, tuple[float, ...], float]:
        """`log Z`, the mass of each ring, and `E |x|²`."""
        edge = self.radii[-1] + 12 / math.sqrt(self.sharpness)
        # Fine against the width of a ring, since the density has a kink between two of them and at the origin.
        r = torch.linspace(0, edge, 40 * POINTS, dtype=torch.float64)[1:]
        spacing = float(r[0])
        values = self._log_radial(r) + r.log() + math.log(2 * math.pi)
        log_z = log_integral(values, spacing)
        density = (values - log_z).exp() * spacing
        nearest = (r[:, None] - torch.tensor(self.radii, dtype=r.dtype)).abs().argmin(1)
        masses = torch.zeros(len(self.radii), dtype=r.dtype).index_add_(0, nearest, density)
        return log_z, tuple(masses.tolist()), float((density * r.square()).sum())

    def _log_radial(self, r: Tensor) -> Tensor:
        gaps = r[..., None] - torch.tensor(self.radii, dtype=r.dtype, device=r.device)
        return -self.sharpness * gaps.square().amin(-1)

    @property
    def log_z(self) -> float:
        """`log 2π ∫ r e^{−sharpness min_k (r − r_k)²} dr`."""
        return self._rings[0]

    @property
    def std(self) -> tuple[float, ...]:
        """`√(E |x|²/2)` in both directions."""
        return (math.sqrt(self._rings[2] / 2),) * 2

    @property
    def mode_mass(self) -> tuple[float, ...]:
        """Of each ring, about proportional to its radius."""
        return self._rings[1]

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density up to `log_z`, shape (B,)."""
        # Smooth at the origin too, where a norm has no derivative.
        return self._log_radial((x.square().sum(1) + 1e-12).sqrt())

    def mode_of(self, x: Tensor) -> Tensor:
        """The nearest ring."""
        radius = x.square().sum(1).sqrt()
        return (radius[:, None] - torch.tensor(self.radii, dtype=x.dtype, device=x.device)).abs().argmin(1)


@TARGETS.register("gauss_shift")
@dataclass(frozen=True, kw_only=True)
class GaussianTarget(Target):
    """A round Gaussian away from zero: the target whose optimal controls are known in closed form.

    Source: Richter & Berner 2024, official code.

    Args:
        dim: of the target.
        mean: in every direction.
        sigma: standard deviation in every direction.
        scale: that the density is multiplied by, which is Z.
    """

    dim: Count = 1
    mean: float = 3.0
    sigma: Positive = 1.0
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(dim,)`."""
        return (self.dim,)

    @property
    def log_z(self) -> float:
        """`log scale`."""
        return math.log(self.scale)

    @property
    def std(self) -> tuple[float, ...]:
        """`sigma`."""
        return (self.sigma,) * self.dim

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density up to `log_z`, shape (B,)."""
        constant = self.dim * math.log(self.sigma * math.sqrt(2 * math.pi))
        return self.log_z - (x - self.mean).square().sum(1) / (2 * self.sigma**2) - constant
