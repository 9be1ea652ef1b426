"""Gaussian paths between paired ends whose mean and standard deviation are splines.

    x_t | x0, x1 ~ N(m_t, γ_t² I)
    m_t = (1 − t) x0 + t x1 + Σ_k hat_k(t) bend_k
    γ_t = σ √(t (1 − t)) s_t,      s_t = softplus(ln(e − 1) + Σ_k hat_k(t) swell_k)

`hat_k` are the hat functions of K interior knots at `k/(K + 1)`. Both splines are fixed at both ends, and the path with
all knots zero is the Brownian bridge, since `softplus(ln(e − 1)) = 1`. The end of s is no free choice: with any other
value there, the drift's energy near that end is the integral of a constant over t, which is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from latentsb.process.coupling import Pair
from latentsb.process.path import PathPoint
from latentsb.randomness import Draws
from latentsb.tensors import expand_as

__all__ = ["Moments", "Spline", "SplinePath", "hats", "modes"]

UNIT = math.log(math.expm1(1.0))
"""Where softplus is one."""


def hats(t: Tensor, knots: int) -> tuple[Tensor, Tensor]:
    """Values and slopes of the hat functions of interior knots; between knots a spline is a straight line.

    Args:
        t: times in [0, 1], float64, shape (N,).
        knots: K, the knots between the ends.

    Returns:
        Values and right-hand slopes, each float64 of shape (N, K).
    """
    at = torch.arange(1, knots + 1, dtype=torch.float64, device=t.device)
    place = t.to(torch.float64)[:, None] * (knots + 1) - at
    inside = (place >= -1) & (place < 1)
    slope = torch.where(place < 0, 1.0, -1.0).to(torch.float64) * (knots + 1)
    return (1 - place.abs()).clamp(min=0), torch.where(inside, slope, 0.0)


def modes(knots: int) -> Tensor:
    """Directions in which the bend of a path costs one unit of energy each, `∫ |bend'|² dt = Σ_j w_j²`.

    `bend = modes @ w`: sines divided by the root of their stiffness, so that w of standard normal numbers is a Brownian
    bridge at the knots.

    Returns:
        Float64, shape (K, K), one column per mode, slow ones first.
    """
    n = knots + 1
    j = torch.arange(1, n, dtype=torch.float64)
    stiffness = 2 * n * (1 - torch.cos(math.pi * j / n))
    return math.sqrt(2 / n) * torch.sin(math.pi * j[:, None] * j / n) / stiffness.sqrt()


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and their derivatives in time.

    Args:
        mean: m, shape (B, …).
        slope: m', shape (B, …).
        std: γ, float64, shape (B,).
        rate: γ', float64, shape (B,).
    """

    mean: Tensor
    slope: Tensor
    std: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Spline:
    """Gaussian paths of B pairs.

    Args:
        sigma: diffusion coefficient of the Brownian motion that the paths are controlled from.
        x0: near ends, shape (B, …).
        x1: far ends, shape (B, …).
        bend: how far the mean is off the straight line at the knots, shape (B, K, …).
        swell: knots of the standard deviation before softplus, shape (B, K).
    """

    sigma: float
    x0: Tensor
    x1: Tensor
    bend: Tensor
    swell: Tensor

    @property
    def knots(self) -> int:
        """K, the knots between the ends."""
        return self.swell.shape[1]

    def at(self, t: Tensor) -> Moments:
        """Moments of each path at a time of its own, t of shape (B,) inside (0, 1): 2 K numbers per pair."""
        value, slope = (h.to(self.x0.device) for h in hats(t, self.knots))
        off = torch.einsum("bk,bk...->b...", value.to(self.bend), self.bend)
        turn = torch.einsum("bk,bk...->b...", slope.to(self.bend), self.bend)
        swell = self.swell.to(torch.float64)
        ratio, grows = _ratio((value * swell).sum(1), (slope * swell).sum(1))
        return self._moments(t, off, turn, ratio, grows)

    def sweep(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of all paths at common times, t of shape (S,).

        Returns:
            Shape (S, B, …) and shape (S, B), in the dtype of the ends.
        """
        value = hats(t, self.knots)[0].to(self.x0)
        u = t.to(self.x0).reshape(-1, *[1] * self.x0.ndim)
        mean = (1 - u) * self.x0 + u * self.x1 + torch.einsum("sk,bk...->sb...", value, self.bend)
        ratio = softplus(UNIT + value @ self.swell.to(value).T)
        return mean, self.sigma * (t * (1 - t)).sqrt().to(ratio)[:, None] * ratio

    def energy(self, t: Tensor) -> Tensor:
        """Energy of the control above the Brownian bridge's, in nats, shape (B,).

        `E ∫ |u|²/(2σ²) dt`, with u the drift of the path, is infinite for every pinned path, but what it has more than
        the Brownian bridge's is the Kullback-Leibler divergence from that, in both directions of time:

            ∫ |bend'|²/(2σ²) + D/2 [(s − 1/s)² / (4 t (1 − t)) + t (1 − t) s'²] dt

        The first term is exact, the second a mean over times.

        Args:
            t: times spread evenly over (0, 1), shape (S,).
        """
        edge = torch.zeros_like(self.bend[:, :1])
        steps = torch.cat([edge, self.bend, edge], 1).diff(dim=1)
        turn = (self.knots + 1) * steps.square().flatten(1).sum(1) / (2 * self.sigma**2)
        value, slope = (h.to(self.swell) for h in hats(t, self.knots))
        ratio, grows = _ratio(self.swell @ value.T, self.swell @ slope.T)
        spread = (t * (1 - t)).to(self.swell)
        width = (ratio - 1 / ratio).square() / (4 * spread) + spread * grows.square()
        return turn + self.x0[0].numel() / 2 * width.mean(1)

    def _moments(self, t: Tensor, off: Tensor, turn: Tensor, ratio: Tensor, grows: Tensor) -> Moments:
        u, t = expand_as(t, self.x0), t.to(ratio)
        root = (t * (1 - t)).sqrt()
        return Moments(
            (1 - u) * self.x0 + u * self.x1 + off,
            self.x1 - self.x0 + turn,
            self.sigma * root * ratio,
            self.sigma * ((1 - 2 * t) / (2 * root) * ratio + root * grows),
        )


def _ratio(swell: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation relative to the Brownian bridge's, and its derivative in time."""
    return softplus(UNIT + swell), torch.sigmoid(UNIT + swell) * slope


@dataclass(frozen=True, kw_only=True)
class SplinePath:
    """The Gaussian spline that each pair brings as `extra["bend"]` and `extra["swell"]`.

    Source: Liu et al. 2024, Generalized Schrödinger bridge matching, Sec. 3.2 and Proposition 3.

    Args:
        sigma: diffusion coefficient.
    """

    sigma: float

    def at(self, t: Tensor, pair: Pair, draws: Draws) -> PathPoint:
        """Draw `x = m + γ ε`, with the drifts of the diffusion that has these marginals.

        b_f = m' + (γ' − σ²/2γ) ε,    b_b = −m' − (γ' + σ²/2γ) ε,    score = −ε/γ
        """
        spline = Spline(self.sigma, pair.x0, pair.x1, pair.extra["bend"], pair.extra["swell"])
        now, noise = spline.at(t), draws.normal("path", pair.x0)
        pull = self.sigma**2 / (2 * now.std)
        return PathPoint(
            now.mean + expand_as(now.std, noise) * noise,
            now.slope + expand_as(now.rate - pull, noise) * noise,
            -now.slope - expand_as(now.rate + pull, noise) * noise,
            -noise / expand_as(now.std, noise),
        )
