"""Reference processes: the linear Gaussian process that a bridge is a bridge of.

`dX = f(t) X dt + g(t) dW` on t in [0, 1]. Every coefficient of a scalar reference follows from two functions,
`alpha(t) = exp ∫ f` and the clock `r(t) = ρ²_t / ρ²_1` with `ρ²_t = ∫ g²/α²` (Zheng et al. 2024, DBIM).
Concrete references stand in `latentsb.process.references`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.process.marginal import Marginal
from latentsb.registry import Registry
from latentsb.tensors import expand_as

__all__ = ["REFERENCES", "LinearGaussian", "Reference", "ScalarReference"]

BISECTIONS = 90
"""Halvings of [0, 1]: times as small as 1e-15 come out to twelve digits."""


@dataclass(frozen=True)
class LinearGaussian:
    """The law of a later state given an earlier one: `X_t | X_s ~ N(Phi X_s + m, Q)`.

    Args:
        Phi: scalar, diagonal or matrix; shape (B,), (B, D) or (B, D, D).
        m: shift of the mean, of the shape that Phi gives.
        Q: variance or covariance of the same form as Phi.
    """

    Phi: Tensor
    m: Tensor
    Q: Tensor


class Reference(ABC):
    """A linear Gaussian process; `transition` and `g` are what a general one must provide."""

    @abstractmethod
    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        """The law of X_t given X_s for s <= t in [0, 1], float64, shape (B,)."""

    @abstractmethod
    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient at t, shape (B,)."""


class ScalarReference(Reference):
    """A reference with the same scalar coefficients in every dimension.

    Subclasses are frozen dataclasses that write `alpha`, `clock` and `total` (and may write `time_of_clock` in closed
    form); everything else is derived here in float64, with derivatives by forward-mode differentiation.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """`exp ∫_0^t f`, with alpha(0) = 1; t float64 in [0, 1]."""

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """`ρ²_t / ρ²_1`, increasing from 0 to 1."""

    @property
    @abstractmethod
    def total(self) -> float:
        """`ρ²_1`; zero is the noiseless interpolant of flow matching."""

    @property
    def epsilon(self) -> float:
        """Entropic regularisation of the Schrödinger bridge over this reference, `α_1 ρ²_1`.

        The endpoint coupling is `exp(⟨x0, x1⟩ / epsilon)` times a function of each end. A Brownian reference has
        `∫ g²`, a Sinkhorn solver with cost `|x − y|²/2` takes the same number.
        """
        return float(self.alpha(torch.ones((), dtype=torch.float64))) * self.total

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`f(t) = d ln α/dt` and the rate of the clock `dr/dt`, each of the shape of t."""
        t = t.to(torch.float64)

        def both(time: Tensor) -> tuple[Tensor, Tensor]:
            return self.alpha(time).log(), self.clock(time)

        with torch.inference_mode(False):  # there torch 2.11 returns zero derivatives without a word
            t = t.clone()
            f, rate = torch.func.jvp(both, (t,), (torch.ones_like(t),))[1]
        return f, rate

    def progress(self, t: Tensor) -> Tensor:
        """The clock, float64, and exactly 1 at t = 1 whatever its rounding: pinned ends carry no noise at all."""
        t = t.to(torch.float64)
        return torch.where(t == 1, 1.0, self.clock(t).clamp(max=1.0))

    def f(self, t: Tensor) -> Tensor:
        """Linear drift coefficient `d ln α/dt`."""
        return self.rates(t)[0]

    def g2(self, t: Tensor) -> Tensor:
        """`g² = α² dρ²/dt`."""
        return self.alpha(t.to(torch.float64)).square() * self.total * self.rates(t)[1]

    def g(self, t: Tensor) -> Tensor:
        """Diffusion coefficient, `sqrt(g²)`."""
        return self.g2(t).sqrt()

    def rho2(self, t: Tensor) -> Tensor:
        """`ρ²_t = ∫_0^t g²/α²`, the reciprocal of the reference's signal-to-noise ratio."""
        return self.total * self.progress(t)

    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        """`X_t | X_s ~ N(α_t/α_s X_s, α_t² (ρ²_t − ρ²_s))` for s <= t."""
        alpha = self.alpha(t.to(torch.float64))
        phi = alpha / self.alpha(s.to(torch.float64))
        return LinearGaussian(phi, torch.zeros_like(phi), alpha.square() * (self.rho2(t) - self.rho2(s)))

    def noised(self, t: Tensor) -> Marginal:
        """Law of X_t given x0 alone: `Marginal(0, α, α² ρ²)`."""
        alpha = self.alpha(t.to(torch.float64))
        return Marginal(torch.zeros_like(alpha), alpha, alpha.square() * self.rho2(t))

    def pinned(self, t: Tensor) -> Marginal:
        """Law of X_t given both ends: `a = α_t/α_1 r`, `b = α_t (1 − r)`, `c = α_t² ρ²_1 r (1 − r)`."""
        t = t.to(torch.float64)
        alpha, r = self.alpha(t), self.progress(t)
        return Marginal(
            alpha / self.alpha(torch.ones_like(t)) * r, alpha * (1 - r), alpha.square() * self.total * r * (1 - r)
        )

    def between(self, s: Tensor, t: Tensor, u: Tensor) -> Marginal:
        """Law of X_t given X_s and X_u for s <= t <= u and s < u.

        With `w = (r_t − r_s)/(r_u − r_s)`: `N(α_t/α_u w X_u + α_t/α_s (1 − w) X_s, α_t² ρ²_1 (r_u − r_t) w)`.

        Returns:
            A marginal whose `a` weighs the later state X_u and whose `b` weighs the earlier one X_s.
        """
        s, t, u = (time.to(torch.float64) for time in (s, t, u))
        alpha, rs, rt, ru = self.alpha(t), self.progress(s), self.progress(t), self.progress(u)
        w = (rt - rs) / (ru - rs)
        return Marginal(
            alpha / self.alpha(u) * w,
            alpha / self.alpha(s) * ((ru - rt) / (ru - rs)),
            alpha.square() * self.total * (ru - rt) * w,
        )

    def posterior(self, s: Tensor, t: Tensor) -> Marginal:
        """Law of the earlier X_s given x0 and X_t, s < t: `a` weighs X_t and `b` weighs x0.

        The reference is Markov, so a further condition on x1 changes nothing.
        """
        return self.between(torch.zeros_like(s), s, t)

    def h(self, x: Tensor, t: Tensor, x1: Tensor) -> Tensor:
        """Pull of the other end, `∇_x log p(x1 | X_t = x) = (α_t/α_1 x1 − x) / (α_t² (ρ²_1 − ρ²_t))` for t < 1.

        Doob's transform; Zhou et al. 2024, DDBM, Table 1.
        """
        t = t.to(torch.float64)
        alpha, spread = self.alpha(t), self.total * (1 - self.progress(t))
        scale = alpha / self.alpha(torch.ones_like(t))
        return (expand_as(scale, x) * x1 - x) / expand_as(alpha.square() * spread, x)

    def b_f(self, x: Tensor, t: Tensor, x1: Tensor | None) -> Tensor:
        """Forward drift of the process pinned to x1, `f x + g² h = f x + r'/(1 − r) (α_t/α_1 x1 − x)` for t < 1.

        With x1 None it is the reference's own drift `f x`. It also holds without noise.
        """
        f, rate = self.rates(t)
        out = expand_as(f, x) * x
        if x1 is None:
            return out
        t = t.to(torch.float64)
        scale = self.alpha(t) / self.alpha(torch.ones_like(t))
        return out + expand_as(rate / (1 - self.progress(t)), x) * (expand_as(scale, x) * x1 - x)

    def b_b(self, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Backward drift as executed, of the process started in x0: `−f x + r'/r (α_t x0 − x)` for t > 0.

        It is `−f x + g² ∇ log p(x | x0)`, whether or not the process is also pinned to an x1.
        """
        f, rate = self.rates(t)
        t = t.to(torch.float64)
        pull = expand_as(self.alpha(t), x) * x0 - x
        return expand_as(rate / self.progress(t), x) * pull - expand_as(f, x) * x

    def time_of_clock(self, r: Tensor) -> Tensor:
        """The time at which the clock shows r in [0, 1], float64, shape of r; by bisection."""
        r = r.to(torch.float64)
        low, high = torch.zeros_like(r), torch.ones_like(r)
        for _ in range(BISECTIONS):
            middle = low + (high - low) / 2
            late = self.clock(middle) >= r
            low, high = torch.where(late, low, middle), torch.where(late, middle, high)
        return high

    def time_of_sigma_eff(self, sigma: Tensor, *, pinned: bool) -> Tensor:
        """The time at which `sigma_eff` of the pinned (or of the one-sided) marginal equals sigma.

        Pinned: `r = σ²/(σ² + ρ²_1)`, so that infinite noise is t = 1; one-sided: `r = σ²/ρ²_1`.

        Args:
            sigma: noise per unit of signal, at least 0; one-sided levels above ρ_1 give t = 1.
            pinned: the marginal is that of both ends.

        Raises:
            ValueError: if the reference is noiseless.
        """
        if self.total == 0:
            raise ValueError("a noiseless reference has no noise level; choose a distribution of times, not of levels")
        level = sigma.to(torch.float64).square() / self.total
        return self.time_of_clock(1 / (1 + 1 / level) if pinned else level.clamp(max=1.0))


REFERENCES: Registry[Reference] = Registry("reference", Reference, homes=("latentsb.process.references",))
