"""The Schrödinger bridge between two normal laws over any linear reference, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import End
from latentsb.oracles.linear import Coefficients, coefficients, pinned, sample_between, transition
from latentsb.oracles.normal import Affine, Joint, Normal, gain, square_root
from latentsb.process.reference import Reference
from latentsb.randomness import Draws

__all__ = ["GaussianBridge", "entropic_cost", "entropic_plan"]


def entropic_plan(x0: Normal, x1: Normal, reference: Reference) -> Joint:
    """The static Schrödinger bridge: of all couplings of the ends the one nearest to the reference in KL.

    With `(Phi, m, Q)` of [0, 1] and the whitened covariances `A' = Q^{−1/2} Phi A Phiᵀ Q^{−1/2}`,
    `B' = Q^{−1/2} B Q^{−1/2}`, `M = A'^{1/2} B' A'^{1/2}`:

        C' = ½ (A'^{1/2} (4 M + I)^{1/2} A'^{−1/2} − I),    C = Phi⁻¹ Q^{1/2} C' Q^{1/2}

    It is evaluated as `C' = A'^{1/2} · 2 ((4 M + I)^{1/2} + I)⁻¹ · A'^{1/2} B'`, which neither cancels where the noise
    is large nor needs an inverse, so either end may be a point. The precision then has the block `−Phiᵀ Q⁻¹`.

    Source: Janati et al. 2020, Entropic optimal transport between unbalanced Gaussian measures; Bunne et al. 2023, The
    Schrödinger bridge between Gaussian measures has a closed form, Eq. 4 (isotropic references).

    Args:
        x0: data end.
        x1: other end.
        reference: linear process.

    Raises:
        ValueError: if the reference has no noise in some direction.
    """
    law = transition(reference, 0.0, 1.0, x0.dim)
    values = torch.linalg.eigvalsh(law.Q)
    if not float(values.min()) > 0:
        raise ValueError("an entropic plan needs a reference with noise in every direction")
    root = square_root(law.Q)
    white = torch.linalg.inv(root)
    near = square_root(white @ law.Phi @ x0.cov @ law.Phi.T @ white)
    far = white @ x1.cov @ white
    values, vectors = torch.linalg.eigh(near @ far @ near)
    shrink = 2 / ((4 * values.clamp(min=0) + 1).sqrt() + 1)
    cross = near @ (vectors * shrink) @ vectors.T @ near @ far
    return Joint(x0, x1, torch.linalg.solve(law.Phi, root @ cross @ root))


def entropic_cost(x0: Normal, x1: Normal, epsilon: float) -> float:
    """The optimal value of `E|X0 − X1|² + 2 ε KL(π ‖ π0 ⊗ π1)`, the squared-distance convention of entropic transport.

    With `e = 2 ε` and `M = I + (I + 16/e² A^{1/2} B A^{1/2})^{1/2}`:
    `|m0 − m1|² + tr A + tr B − e/2 (tr M − ln det M + D ln 2 − 2 D)`.

    Source: Janati et al. 2020, Theorem 1.

    Args:
        x0: one end.
        x1: other end.
        epsilon: of the reference (its Brownian variance), half of the regulariser of that cost.
    """
    e, root = 2 * epsilon, square_root(x0.cov)
    values = 1 + (1 + 16 / e**2 * torch.linalg.eigvalsh(root @ x1.cov @ root).clamp(min=0)).sqrt()
    entropic = (values - values.log()).sum() + x0.dim * (math.log(2) - 2)
    distance = (x0.mean - x1.mean).square().sum() + x0.cov.trace() + x1.cov.trace()
    return float(distance - e / 2 * entropic)


@dataclass(frozen=True)
class _Now:
    """What several answers at one time share: the law of X_t, `Cov(X_t, X0)`, `Cov(X_t, X1)`, the coefficients."""

    law: Normal
    with_x0: Tensor
    with_x1: Tensor
    coefficients: Coefficients


@dataclass(frozen=True, eq=False)
class GaussianBridge:
    """A linear reference pinned to a normal coupling of the ends, and the Markov process with the same marginals.

    Of the entropic plan (`GaussianBridge.between`) both are one process, the Schrödinger bridge. Of another coupling
    the drifts below are those of the Markovian projection (Shi et al. 2023, DSBM, Prop. 2), the exact outcome of one
    bridge matching. Drifts and score are affine, so they are given as maps; times lie in [0, 1].

    Args:
        ends: coupling of the ends.
        reference: linear process.
    """

    ends: Joint
    reference: Reference

    @classmethod
    def between(cls, x0: Normal, x1: Normal, reference: Reference) -> GaussianBridge:
        """The Schrödinger bridge between two normal laws."""
        return cls(entropic_plan(x0, x1, reference), reference)

    @property
    def dim(self) -> int:
        """D."""
        return self.ends.dim

    def marginal(self, t: float | Tensor) -> Normal:
        """Law of X_t: with `X_t = U X0 + V X1 + w + ε` of the pinned reference, a mixture over the coupling.

        For Brownian motion of variance σ²: mean `(1−t) m0 + t m1`, covariance
        `(1−t)² A + t² B + t (1−t) (C + Cᵀ + σ² I)`.
        """
        return _at(self, float(t)).law

    def cross(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        """`Cov(X_s, X_t)` of the pinned process for s <= t, shape (D, D)."""
        now = _at(self, float(s))
        if float(s) == 1:
            return now.with_x1
        step = pinned(self.reference, s, t, 1.0, self.dim)
        return now.law.cov @ step.earlier.T + now.with_x1 @ step.later.T

    def x1_given(self, t: float | Tensor) -> Affine:
        """`E[X1 | X_t]` as a map of the state."""
        now = _at(self, float(t))
        slope = gain(now.with_x1.T, now.law.cov)
        return Affine(slope, self.ends.x1.mean - slope @ now.law.mean)

    def x0_given(self, t: float | Tensor) -> Affine:
        """`E[X0 | X_t]` as a map of the state."""
        now = _at(self, float(t))
        slope = gain(now.with_x0.T, now.law.cov)
        return Affine(slope, self.ends.x0.mean - slope @ now.law.mean)

    def a(self, t: float | Tensor) -> Tensor:
        """`g gᵀ` at t, shape (D, D)."""
        return _at(self, float(t)).coefficients.a

    def score(self, t: float | Tensor) -> Affine:
        """`∇ ln p_t` as a map of the state, `−cov⁻¹ (x − mean)`."""
        law = self.marginal(t)
        slope = -torch.linalg.inv(law.cov)
        return Affine(slope, -slope @ law.mean)

    def b_f(self, t: float | Tensor) -> Affine:
        """Forward drift: `F x + c + a Phi_2ᵀ R⁻¹ (E[X1 | x] − Phi_2 x − m_2)` with `(Phi_2, m_2, R)` of [t, 1].

        In the second half of the time it is evaluated as `a score − b_b`, which does not cancel near t = 1.
        """
        return self._to_x1(t) if float(t) <= 0.5 else self.score(t).left(self.a(t)) - self._to_x0(t)

    def b_b(self, t: float | Tensor) -> Affine:
        """Backward drift as executed: `−F x − c − a P⁻¹ (x − Phi_1 E[X0 | x] − m_1)`, with `(Phi_1, m_1, P)` of [0, t].

        In the first half of the time it is evaluated as `a score − b_f`, which does not cancel near t = 0.
        """
        return self._to_x0(t) if float(t) > 0.5 else self.score(t).left(self.a(t)) - self._to_x1(t)

    def _to_x1(self, t: float | Tensor) -> Affine:
        now, law = _at(self, float(t)).coefficients, transition(self.reference, t, 1.0, self.dim)
        pull = now.a @ torch.linalg.solve(law.Q, law.Phi).T
        return now.drift + (self.x1_given(t) - Affine(law.Phi, law.m)).left(pull)

    def _to_x0(self, t: float | Tensor) -> Affine:
        now, law = _at(self, float(t)).coefficients, transition(self.reference, 0.0, t, self.dim)
        back = Affine.identity(self.dim) - Affine(law.Phi, law.m).after(self.x0_given(t))
        return -1.0 * now.drift - back.left(now.a @ torch.linalg.inv(law.Q))

    def velocity(self, t: float | Tensor) -> Affine:
        """Probability-flow velocity in forward time, `(b_f − b_b) / 2`.

        Its flow carries `ln p_0(x_0) = ln p_1(x_1) + ∫ tr A_t dt`, and `∫ tr A_t dt = ½ ln(det B / det A)` of the ends'
        covariances, since `(cov)' = A cov + cov Aᵀ`.
        """
        return 0.5 * (self.b_f(t) - self.b_b(t))

    def drift(self, x: Tensor, t: float | Tensor, towards: End = "x1") -> Tensor:
        """`b_f(x)` towards x1, `b_b(x)` towards x0; rows x of shape (B, D)."""
        return (self.b_f(t) if towards == "x1" else self.b_b(t))(x)

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, draws: Draws) -> Tensor:
        """Exact paths at increasing times, shape (len(times), n, D): the pinned reference between drawn ends."""
        return sample_between(self.reference, *self.ends.sample(n, draws), times, draws)

    @cached_property
    def kl(self) -> float:
        """KL in nats from the reference started in the law of x0; of the entropic plan it is the optimal value.

        `E_x0 KL(π(·|x0) ‖ N(Phi x0 + m, Q))`. Over Brownian motion of variance ε it is
        `OT/(2 ε) + D/2 ln(2π ε) − H(π1)`, OT being the entropic cost and H the differential entropy.
        """
        law = transition(self.reference, 0.0, 1.0, self.dim)
        mean, cov = self.ends.x1_given_x0()
        gap = self.ends.x0.push(mean - Affine(law.Phi, law.m))
        spread = gap.cov + torch.outer(gap.mean, gap.mean) + cov
        shape = torch.linalg.solve(law.Q, cov)
        return float(torch.linalg.solve(law.Q, spread).trace() - self.dim - torch.logdet(shape)) / 2

    def energy(self, nodes: int = 40) -> float:
        """Control energy `½ ∫ E uᵀ a⁻¹ u dt` with `u = b_f − F x − c`: KL of the Markov process from the reference.

        It equals `kl` where the coupling is the entropic plan, and only there.

        Args:
            nodes: of Gauss–Legendre's rule in each half of the time, which crowd at the ends as `t = sin²(π τ/2)`.
        """
        points, weights = np.polynomial.legendre.leggauss(nodes)
        total = 0.0
        for half in (0.25, 0.75):
            for tau, weight in zip(half + points / 4, weights / 4, strict=True):
                t = math.sin(math.pi / 2 * tau) ** 2
                now = _at(self, t).coefficients
                u = self.marginal(t).push(self.b_f(t) - now.drift)
                power = torch.linalg.solve(now.a, u.cov + torch.outer(u.mean, u.mean)).trace()
                total += weight * math.pi / 2 * math.sin(math.pi * tau) * float(power) / 2
        return float(total)


@lru_cache(maxsize=4)
def _at(bridge: GaussianBridge, t: float) -> _Now:
    """The state at t; the last few are kept, since drift, noise and law are asked for at the same time."""
    here, dim = pinned(bridge.reference, 0.0, t, 1.0, bridge.dim), bridge.dim
    both, ends = torch.cat([here.earlier, here.later], 1), bridge.ends.law
    across = both @ ends.cov
    law = Normal(both @ ends.mean + here.offset, across @ both.T + here.cov)
    return _Now(law, across[:, :dim], across[:, dim:], coefficients(bridge.reference, t, dim))
