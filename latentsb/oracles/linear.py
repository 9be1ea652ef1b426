"""Any linear reference as matrices: transitions, drift and noise coefficients, and its bridges.

A reference says `X_t | X_s ~ N(Phi X_s + m, Q)` with scalars, diagonals or matrices; here they all become matrices, so
one formula serves Brownian motion, OU, VP, VE and a full matrix process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentsb.oracles.normal import Affine, square_root
from latentsb.process.reference import LinearGaussian, Reference, ScalarReference
from latentsb.randomness import Draws

__all__ = ["Coefficients", "Pinned", "coefficients", "moment", "pinned", "sample_between", "transition"]


def moment(t: float | Tensor) -> Tensor:
    """A time as the references want it: float64, on the CPU, shape ()."""
    return torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(())


def _matrix(value: Tensor, dim: int) -> Tensor:
    value = value.detach().to("cpu", torch.float64)
    return value if value.ndim == 2 else torch.diag(value.expand(dim))


def _vector(value: Tensor, dim: int) -> Tensor:
    return value.detach().to("cpu", torch.float64).expand(dim)


def transition(reference: Reference, s: float | Tensor, t: float | Tensor, dim: int) -> LinearGaussian:
    """`X_t | X_s ~ N(Phi X_s + m, Q)` for 0 <= s <= t <= 1 with Phi and Q of shape (D, D) and m of shape (D,)."""
    law = reference.transition(moment(s).reshape(1), moment(t).reshape(1))
    return LinearGaussian(_matrix(law.Phi[0], dim), _vector(law.m[0], dim), _matrix(law.Q[0], dim))


@dataclass(frozen=True)
class Coefficients:
    """`dX = (F X + c) dt + G dW` at one time.

    Args:
        drift: the map `x ↦ F x + c`.
        a: `G Gᵀ`, shape (D, D).
    """

    drift: Affine
    a: Tensor


def coefficients(reference: Reference, t: float | Tensor, dim: int) -> Coefficients:
    """Drift and noise of a reference at t.

    A scalar one knows its own. Of any other they follow from its transition since 0: `Phi' = F Phi`, `m' = F m + c`,
    `Q' = F Q + Q Fᵀ + a`; the derivatives are taken by forward-mode differentiation.
    """
    time = moment(t)
    if isinstance(reference, ScalarReference):
        eye = torch.eye(dim, dtype=torch.float64)
        f, rate = reference.rates(time)
        drift = Affine(f * eye, torch.zeros(dim, dtype=torch.float64))
        return Coefficients(drift, reference.alpha(time).square() * reference.total * rate * eye)

    def since_start(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        law = reference.transition(torch.zeros_like(u), u)
        return law.Phi, law.m, law.Q

    derivative: Any = torch.func.jvp  # its annotation promises three results
    now, rates = derivative(since_start, (time.reshape(1),), (torch.ones(1, dtype=torch.float64),))
    Phi, Q = _matrix(now[0][0], dim), _matrix(now[2][0], dim)
    F = torch.linalg.solve(Phi, _matrix(rates[0][0], dim), left=False)
    c = _vector(rates[1][0], dim) - F @ _vector(now[1][0], dim)
    return Coefficients(Affine(F, c), _matrix(rates[2][0], dim) - F @ Q - Q @ F.T)


@dataclass(frozen=True)
class Pinned:
    """`X_t | X_s, X_u ~ N(earlier X_s + later X_u + offset, cov)`.

    Args:
        earlier: shape (D, D).
        later: shape (D, D).
        offset: shape (D,).
        cov: shape (D, D).
    """

    earlier: Tensor
    later: Tensor
    offset: Tensor
    cov: Tensor


def pinned(reference: Reference, s: float | Tensor, t: float | Tensor, u: float | Tensor, dim: int) -> Pinned:
    """The law of X_t given an earlier and a later state, s <= t <= u and s < u.

    With `(Phi_1, m_1, P)` of [s, t] and `(Phi_2, m_2, R)` of [t, u], and `K = P Phi_2ᵀ (Phi_2 P Phi_2ᵀ + R)⁻¹`: mean
    `mf + K (x_u − Phi_2 mf − m_2)` with `mf = Phi_1 x_s + m_1`, covariance `P − K Phi_2 P` (conditioning a Gaussian).
    """
    first, second = transition(reference, s, t, dim), transition(reference, t, u, dim)
    spread = second.Phi @ first.Q @ second.Phi.T + second.Q
    K = torch.linalg.solve(spread, second.Phi @ first.Q).T
    rest = torch.eye(dim, dtype=torch.float64) - K @ second.Phi
    cov = rest @ first.Q
    return Pinned(rest @ first.Phi, K, rest @ first.m - K @ second.m, (cov + cov.T) / 2)


def sample_between(
    reference: Reference, x0: Tensor, x1: Tensor, times: Sequence[float] | Tensor, draws: Draws
) -> Tensor:
    """Exact paths of the reference pinned to both ends.

    Args:
        reference: the process.
        x0: where the paths begin, shape (n, D).
        x1: where they end, shape (n, D).
        times: increasing, in [0, 1].
        draws: of the same rows.

    Returns:
        States at the times, float64, shape (len(times), n, D); at 0 and 1 they are the ends.
    """
    dim, x, last = x0.shape[1], x0.double(), 0.0
    states = []
    for k, t in enumerate(float(t) for t in times):
        if t == 1:
            x = x1.double()
        elif t > last:
            law = pinned(reference, last, t, 1.0, dim)
            noise = draws.normal(f"path {k}", x) @ square_root(law.cov)
            x = x @ law.earlier.T + x1.double() @ law.later.T + law.offset + noise
        states.append(x)
        last = t
    return torch.stack(states)
