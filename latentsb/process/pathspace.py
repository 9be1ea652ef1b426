"""Two processes on the same paths: a controlled one that starts at t = 1, and one that it is compared with.

Samplers of unnormalised densities `ρ = Z p` run a controlled process from a simple law at t = 1 to t = 0,
`x_s = x_t + h (base(x_t, t) + g(t) u(x_t, t)) + g √h ξ` with `s = t − h`, and compare the law of the whole path with
another one whose end at t = 0 has density ρ. For discrete chains with Gaussian kernels the importance weight is

    log w = log ρ(x_0) + Σ_k log B_k − log p_1(x_1) − Σ_k log F_k,

with the kernels F of the controlled chain and B of the other one, and `E w = Z` holds exactly for any control and any
number of steps. Kernels of one step have the same variance, so their determinants cancel. Sums over a grid of the
continuous formula (Girsanov's) have no such property.

Two kinds of comparison: a *noising* chain that runs from x_0 ~ ρ back to t = 1 (DIS; with a learned drift, the general
bridge), and a *reference* chain that runs as the controlled one does, with `ρ/p_ref` at its end (PIS, DDS).

Source: Richter & Berner 2024 (Improved sampling via learned diffusions); Zhang & Chen 2022 (Path integral sampler);
Vargas et al. 2023 (Denoising diffusion samplers).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP, Brownian
from latentsb.randomness import Draws
from latentsb.ranges import Positive, enforce
from latentsb.registry import Registry
from latentsb.tensors import expand_as

__all__ = ["DDS", "DIS", "PIS", "SAMPLERS", "General", "Kernel", "Sampler"]


@dataclass(frozen=True)
class Kernel:
    """One step of the controlled chain, or many: `x_s ~ N(a x_t + b u, q)`.

    Args:
        a: of the state, float64, shape () or (N,).
        b: of the control, in units of g.
        q: variance.
    """

    a: Tensor
    b: Tensor
    q: Tensor

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """`a x + b u`, shape of x."""
        return expand_as(self.a, x) * x + expand_as(self.b, x) * u

    def step(self, k: int) -> Kernel:
        """One of many."""
        return Kernel(self.a[k], self.b[k], self.q[k])


class Sampler(ABC):
    """A pair of processes on paths, but for the control; a frozen dataclass.

    Attributes:
        reference: linear Gaussian process behind both.
        learns_back: the drift of the comparison is learned too.
        from_point: all paths start in one point, where no drift leads back to.
    """

    reference: ScalarReference
    learns_back: ClassVar[bool] = False
    from_point: ClassVar[bool] = False

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient of both processes, float64, shape of t; that of the reference."""
        return _g(self.reference, float(t)) if t.ndim == 0 else self.reference.g(t)

    @abstractmethod
    def begin(self, like: Tensor, draws: Draws) -> Tensor:
        """States at t = 1, of the shape and type of `like`."""

    @abstractmethod
    def log_begin(self, x: Tensor) -> Tensor:
        """Log-density of a state at t = 1, shape (n,); zero where both processes start alike."""

    @abstractmethod
    def log_end(self, x: Tensor) -> Tensor:
        """What is subtracted from `log ρ` at t = 0, shape (n,): log-density of the reference's end, or zero."""

    @abstractmethod
    def prior_score(self, x: Tensor) -> Tensor:
        """`∇ log` of the law that controls may be guided by at t = 1, shape of x; zero where there is none."""

    @abstractmethod
    def base(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift as executed towards t = 0 without control, shape of x."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift towards t = 1 of the comparison without its learned part, for t < 1; shape of x."""

    @abstractmethod
    def kernel(self, t: Tensor, s: Tensor) -> Kernel:
        """Steps of the controlled chain from t to s < t, each float64 of shape () or (N,)."""

    @abstractmethod
    def gap(self, kernel: Kernel, x: Tensor, later: Tensor, v: Tensor | None) -> Tensor:
        """Distance of a step from the mean of the comparison's kernel, shape of x.

        Args:
            kernel: of the step.
            x: where it leads.
            later: where it begins, nearer to t = 1.
            v: learned part of the comparison's drift at x, in units of g; None where there is none.
        """


@lru_cache(maxsize=4096)
def _g(reference: ScalarReference, t: float) -> Tensor:
    """`g(t)`, which chains ask for at the same few times again and again."""
    return reference.g(torch.tensor(t, dtype=torch.float64))


class Noising(Sampler):
    """Compared with a chain that carries ρ to the prior `N(0, 1)`: Euler kernels of `dX = (f X + g v) dt + g dW`."""

    def begin(self, like: Tensor, draws: Draws) -> Tensor:
        """Standard normal."""
        return draws.normal("begin", like)

    def log_begin(self, x: Tensor) -> Tensor:
        """Standard normal."""
        return log_normal(x, 1.0)

    def log_end(self, x: Tensor) -> Tensor:
        """Zero."""
        return x.new_zeros(len(x))

    def prior_score(self, x: Tensor) -> Tensor:
        """`−x`."""
        return -x

    def base(self, x: Tensor, t: Tensor) -> Tensor:
        """`−f x`."""
        return -expand_as(self.reference.f(t), x) * x

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`f x`."""
        return expand_as(self.reference.f(t), x) * x

    def kernel(self, t: Tensor, s: Tensor) -> Kernel:
        """Euler's step, `x + h (−f x + g u)` with variance `g² h`."""
        h, g2 = t - s, self.reference.g2(t)
        return Kernel(1 - h * self.reference.f(t), h * g2.sqrt(), h * g2)

    def gap(self, kernel: Kernel, x: Tensor, later: Tensor, v: Tensor | None) -> Tensor:
        """`x_t − x_s − h (f x_s + g v)` with the coefficients at t, so that both kernels have one variance."""
        out = later - expand_as(2 - kernel.a, x) * x
        return out if v is None else out - expand_as(kernel.b, x) * v


class Referred(Sampler):
    """Compared with the same chain without control, whose kernels are exact, and `ρ/p_ref` at its end."""

    def log_begin(self, x: Tensor) -> Tensor:
        """Zero: both processes start alike."""
        return x.new_zeros(len(x))

    def gap(self, kernel: Kernel, x: Tensor, later: Tensor, v: Tensor | None) -> Tensor:
        """`x_s` less its mean without control."""
        return x - expand_as(kernel.a, x) * later


SAMPLERS: Registry[Sampler] = Registry("sampler", Sampler, homes=("latentsb.process.pathspace",))


@SAMPLERS.register("dis")
@dataclass(frozen=True, kw_only=True)
class DIS(Noising):
    """Time-reversed diffusion sampler: from N(0, 1), against the noising of ρ; optimum `u = g ∇log p_t`.

    The reference must forget where it began, since the control cannot mend a prior that is not its end.

    Source: Berner, Richter & Ullrich 2024 (An optimal control perspective on diffusion-based generative modeling).

    Args:
        reference: noising process; variance-preserving with β from 0.1 at the target to 10 at the prior by default.
    """

    reference: ScalarReference = VP(beta_min=0.1, beta_d=9.9)


@SAMPLERS.register("general")
@dataclass(frozen=True, kw_only=True)
class General(Noising):
    """General bridge between N(0, 1) and ρ: the drift of the noising chain is learned too.

    The optimum is not unique; without a regulariser both drifts may wander along a family of optima.

    Source: Richter & Berner 2024, Sec. 3; Chen et al. 2022 (Likelihood training of Schrödinger bridge).

    Args:
        reference: of both directions; any ends can be joined over it.
    """

    reference: ScalarReference = Brownian()
    learns_back: ClassVar[bool] = True


@SAMPLERS.register("pis")
@dataclass(frozen=True, kw_only=True)
class PIS(Referred):
    """Path integral sampler: Brownian motion from the point 0, controlled to end in the target.

    The reference's end `N(0, total)` must be about as wide as the target: from a narrow one training finds one mode.

    Source: Zhang & Chen 2022 (Path integral sampler).

    Args:
        reference: without drift; `brownian`, `ve` or `varying`.

    Raises:
        ArgumentError: if the reference has a drift, or no noise.
    """

    reference: ScalarReference = Brownian()
    from_point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        enforce(self)
        halves = self.reference.alpha(torch.tensor([0.5, 1.0], dtype=torch.float64))
        if bool((halves != 1).any()):
            raise ArgumentError("reference", "has a drift; 'pis' starts in a point and needs one without")
        if self.reference.total == 0:
            raise ArgumentError("reference", "has no noise")

    def begin(self, like: Tensor, draws: Draws) -> Tensor:
        """Zero."""
        return torch.zeros_like(like)

    def log_end(self, x: Tensor) -> Tensor:
        """Of `N(0, total)`."""
        return log_normal(x, self.reference.total)

    def prior_score(self, x: Tensor) -> Tensor:
        """Zero: a point has none."""
        return torch.zeros_like(x)

    def base(self, x: Tensor, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Back to the point, `−r'/(1 − r) x`."""
        return self.reference.b_f(x, t, torch.zeros_like(x))

    def kernel(self, t: Tensor, s: Tensor) -> Kernel:
        """`x + q/g u` with the exact variance `q = ρ²_t − ρ²_s`; under Brownian motion Euler's step."""
        q = self.reference.rho2(t) - self.reference.rho2(s)
        return Kernel(torch.ones_like(q), q / self.g(t), q)


@SAMPLERS.register("dds")
@dataclass(frozen=True, kw_only=True)
class DDS(Referred):
    """Denoising diffusion sampler: the stationary process of N(0, scale²), controlled, by exponential steps.

    Source: Vargas, Grathwohl & Doucet 2023 (Denoising diffusion samplers).

    Args:
        reference: variance-preserving.
        scale: standard deviation of the stationary law; about as wide as the target.

    Raises:
        ArgumentError: if the reference does not leave N(0, 1) as it is.
    """

    reference: ScalarReference = VP(beta_min=0.1, beta_d=9.9)
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)
        one = torch.ones((), dtype=torch.float64)
        kept = float(self.reference.alpha(one).square() * (1 + self.reference.total))
        if not math.isclose(kept, 1.0, rel_tol=1e-9):
            raise ArgumentError("reference", f"'dds' needs a 'vp': variance 1 becomes {kept:.4g} over this one")

    def g(self, t: Tensor) -> Tensor:
        """`scale √β`."""
        return self.scale * super().g(t)

    def begin(self, like: Tensor, draws: Draws) -> Tensor:
        """`N(0, scale²)`."""
        return self.scale * draws.normal("begin", like)

    def log_end(self, x: Tensor) -> Tensor:
        """`N(0, scale²)`, the stationary law."""
        return log_normal(x, self.scale**2)

    def prior_score(self, x: Tensor) -> Tensor:
        """`−x/scale²`."""
        return -x / self.scale**2

    def base(self, x: Tensor, t: Tensor) -> Tensor:
        """`f x`: a stationary process runs backwards as it runs forwards."""
        return expand_as(self.reference.f(t), x) * x

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`f x`."""
        return expand_as(self.reference.f(t), x) * x

    def kernel(self, t: Tensor, s: Tensor) -> Kernel:
        """`a x + q/g u` with `a = α_t/α_s` and variance `q = scale² (1 − a²)`."""
        a = self.reference.alpha(t) / self.reference.alpha(s)
        q = self.scale**2 * (1 - a.square())
        return Kernel(a, q / self.g(t), q)


def log_normal(x: Tensor, variance: float) -> Tensor:
    """Log-density of `N(0, variance)` in every direction, shape (n,)."""
    d = x[0].numel()
    return -x.flatten(1).square().sum(1) / (2 * variance) - d / 2 * math.log(2 * math.pi * variance)
