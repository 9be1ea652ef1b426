"""Ornstein–Uhlenbeck processes with a matrix in the drift, and noising by them.

    dX = β_t (−½ X + A_t X + a_t) dt + √β_t dW = −½ β_t (D_t X − 2 a_t) dt + √β_t dW,    D_t = I − 2 A_t

A and a are constant on each of several intervals. On an interval over which ∫β is B, with `F = A − ½ I`,

    Phi = e^{F B},    m = ∫_0^B e^{F u} a du,    Q = ∫_0^B e^{F u} e^{Fᵀ u} du,

and intervals follow each other in their order: for matrices that change in time no single exponential of an integral
gives the covariance, even where they commute with each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from latentsb.process.reference import LinearGaussian, Reference
from latentsb.ranges import NonNegative, Positive, enforce

__all__ = ["Kernel", "MatrixOU", "Rate", "apply", "spectral"]

F64 = torch.float64


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`β_t = low + (high − low) t^power`.

    Args:
        low: β at t = 0.
        high: β at t = 1.
        power: 1 is the linear schedule of variance-preserving diffusions, 0 is constant.
    """

    low: Positive = 0.1
    high: Positive = 10.0
    power: NonNegative = 1.7

    def __post_init__(self) -> None:
        enforce(self)

    def of(self, t: Tensor) -> Tensor:
        """β at t, float64."""
        return self.low + (self.high - self.low) * t.to(F64).pow(self.power)

    def integral(self, t: Tensor) -> Tensor:
        """`∫_0^t β`, float64."""
        t = t.to(F64)
        return self.low * t + (self.high - self.low) * t.pow(self.power + 1) / (self.power + 1)


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """A matrix (…, D, D), or a diagonal (…, D), times vectors x of shape (B, D); batches of one fit all rows."""
    matrix = matrix.to(x)
    return matrix * x if matrix.ndim == x.ndim else (matrix @ x[..., None]).squeeze(-1)


def _times(first: Tensor, second: Tensor) -> Tensor:
    return first * second if first.ndim < 3 else first @ second


def _turned(matrix: Tensor) -> Tensor:
    return matrix if matrix.ndim < 3 else matrix.mT


def spectral(A: Tensor) -> tuple[Tensor, Tensor] | None:
    """Common eigenvectors (D, D) and the eigenvalues (N, D) of matrices (N, D, D) that are symmetric and commute."""
    if not bool((A == A.mT).all()):
        return None
    mixed = torch.einsum("n,nij->ij", torch.arange(1, len(A) + 1, dtype=F64).sin(), A)
    U = torch.linalg.eigh(mixed)[1]
    turned = U.T @ A @ U
    values = turned.diagonal(dim1=1, dim2=2)
    off = (turned - torch.diag_embed(values)).abs().max()
    return (U, values) if bool(off <= 1e-12 * (1 + A.abs().max())) else None


class MatrixOU(Reference):
    """The process above; symmetric matrices that commute are taken apart into numbers, others exponentiated.

    Source: Deng et al. 2024, Variational Schrödinger diffusion models, Eq. 9-12; Van Loan 1978, Computing integrals
    involving the matrix exponential.

    Args:
        rate: β.
        A: on each of N even intervals of [0, 1], shape (N, D, D), or diagonals (N, D).
        a: shape (N, D).
    """

    def __init__(self, rate: Rate, A: Tensor, a: Tensor) -> None:
        self.rate, self.A, self.a = rate, A.detach().to("cpu", F64), a.detach().to("cpu", F64)
        self.edges = torch.linspace(0, 1, len(A) + 1, dtype=F64)
        self.basis: Tensor | None = None
        self._values = self.A
        found = spectral(self.A) if A.ndim == 3 else None
        if found is not None:
            self.basis, self._values = found

    @property
    def dim(self) -> int:
        """D."""
        return self.a.shape[1]

    @property
    def least_pull(self) -> float:
        """Least eigenvalue of `(D + Dᵀ)/2`; where it is not positive, the process spreads in some direction."""
        sym = self.A if self.A.ndim == 2 else torch.linalg.eigvalsh((self.A + self.A.mT) / 2)
        return float((1 - 2 * sym).min())

    def g(self, t: Tensor) -> Tensor:
        """`√β`."""
        return self.rate.of(t).sqrt()

    def interval(self, t: Tensor) -> Tensor:
        """Number of the interval that t lies in, int64, shape of t."""
        return (t.to(F64) * len(self.A)).long().clamp(max=len(self.A) - 1)

    def policy(self, x: Tensor, t: Tensor) -> Tensor:
        """`A_t x + a_t` for x of shape (B, D) and t of shape () or (B,)."""
        k = self.interval(t.reshape(-1).cpu())
        return apply(self.A[k].to(x.device), x) + self.a[k].to(x)

    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        """`X_t | X_s ~ N(Phi X_s + m, Q)` for s <= t of shape (B,), float64."""
        s, t = s.to("cpu", F64), t.to("cpu", F64)
        k = self.interval((s + t) / 2)
        if bool(((s >= self.edges[k]) & (t <= self.edges[k + 1])).all()):
            return self._back(self._pieces(s, t))
        rows = [self._from(s[i], t[i : i + 1]) for i in range(len(s))]
        return LinearGaussian(*(torch.cat([getattr(row, f.name) for row in rows]) for f in fields(LinearGaussian)))

    def along(self, times: Tensor) -> LinearGaussian:
        """`X_t | X_0` at each of the times, of shape (T,) in any order, by the recursion over intervals."""
        return self._from(torch.zeros((), dtype=F64), times)

    def _from(self, start: Tensor, times: Tensor) -> LinearGaussian:
        start, times = start.to("cpu", F64), times.to("cpu", F64)
        inner = self.edges[(self.edges > start) & (self.edges < times.max())]
        knots = torch.unique(torch.cat([start[None], inner, times]))
        steps = self._pieces(knots[:-1], knots[1:])
        one = torch.ones(self.dim, dtype=F64) if self._values.ndim == 2 else torch.eye(self.dim, dtype=F64)
        here = LinearGaussian(one[None], torch.zeros(1, self.dim, dtype=F64), torch.zeros_like(one)[None])
        found = [here]
        for k in range(len(knots) - 1):
            Phi, m, Q = (value[k : k + 1] for value in (steps.Phi, steps.m, steps.Q))
            moved = _times(_times(Phi, here.Q), _turned(Phi)) + Q
            here = LinearGaussian(_times(Phi, here.Phi), apply(Phi, here.m) + m, (moved + _turned(moved)) / 2)
            found.append(here)
        at = [found[int(k)] for k in torch.searchsorted(knots, times)]
        return self._back(
            LinearGaussian(*(torch.cat([getattr(p, f.name) for p in at]) for f in fields(LinearGaussian)))
        )

    def _pieces(self, s: Tensor, t: Tensor) -> LinearGaussian:
        """Laws over pieces that lie within one interval each, in the eigenbasis where there is one."""
        B = (self.rate.integral(t) - self.rate.integral(s))[:, None]
        k = self.interval((s + t) / 2)
        a = self.a[k] if self.basis is None else self.a[k] @ self.basis
        if self._values.ndim == 2:
            d = 1 - 2 * self._values[k]
            return LinearGaussian(torch.exp(-d * B / 2), a * B * _mean_decay(d * B / 2), B * _mean_decay(d * B))
        D, F = self.dim, self._values[k] - torch.eye(self.dim, dtype=F64) / 2
        block = torch.zeros(len(s), 2 * D + 1, 2 * D + 1, dtype=F64)
        block[:, :D, :D], block[:, D : 2 * D, D : 2 * D], block[:, :D, 2 * D] = F, -F.mT, a
        block[:, :D, D : 2 * D] = torch.eye(D, dtype=F64)
        grown = torch.linalg.matrix_exp(block * B[..., None])
        Phi, Q = grown[:, :D, :D], grown[:, :D, D : 2 * D] @ grown[:, :D, :D].mT
        return LinearGaussian(Phi, grown[:, :D, 2 * D], (Q + Q.mT) / 2)

    def _back(self, law: LinearGaussian) -> LinearGaussian:
        if self.basis is None:
            return law
        U = self.basis
        return LinearGaussian((U * law.Phi[:, None]) @ U.T, law.m @ U.T, (U * law.Q[:, None]) @ U.T)


def _mean_decay(x: Tensor) -> Tensor:
    """`(1 − e^{−x})/x`, 1 at 0."""
    safe = torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, torch.ones_like(x), -torch.expm1(-safe) / safe)


@dataclass(frozen=True)
class Kernel:
    """Noising `x_t = Phi x0 + m + L ε` at several times, and what is best about it for Gaussian data.

    For data N(μ0, S0), `x_t ~ N(mean, K)` with `K = Phi S0 Phiᵀ + L Lᵀ`, and `E[ε | x_t] = gain (x_t − mean)`; what is
    left of ε has the covariance `rest restᵀ`. With a network in units of that, `ε̂ = gain (x − mean) + rest F(white (x −
    mean))`: the preconditioning of EDM for matrices. The score is `−L⁻ᵀ ε̂`, whose label grows as t^(−1/2) where that of
    ε̂ does not.

    Args:
        Phi: shape (T, D, D), or a diagonal (T, D), as all but the vectors m and mean.
        m: shape (T, D).
        L: a root of Q: lower triangular.
        pull: `L⁻ᵀ`.
        mean: of x_t.
        K: covariance of x_t.
        white: `K^{−1/2}` up to a rotation.
        gain: `Lᵀ K⁻¹`.
        rest: symmetric root of `I − Lᵀ K⁻¹ L`.
    """

    Phi: Tensor
    m: Tensor
    L: Tensor
    pull: Tensor
    mean: Tensor
    K: Tensor
    white: Tensor
    gain: Tensor
    rest: Tensor

    @classmethod
    def of(cls, law: LinearGaussian, mean0: Tensor, cov0: Tensor) -> Kernel:
        """The kernel of a law of X_t given X_0, Q > 0, for data of these moments.

        Args:
            law: at several times.
            mean0: shape (D,).
            cov0: shape (D, D), or a diagonal (D,) where that of the law is one.
        """
        if law.Q.ndim == 2:
            kept, L = law.Phi.square() * cov0, law.Q.sqrt()
            ratio = kept / law.Q
            tilt, pull = 1 / (1 + ratio), 1 / L
            white, gain, rest = tilt.sqrt() / L, tilt / L, (ratio * tilt).sqrt()
        else:
            kept, L = law.Phi @ cov0 @ law.Phi.mT, torch.linalg.cholesky(law.Q)
            inverse = torch.linalg.solve_triangular(L, torch.eye(L.shape[-1], dtype=F64), upper=False)
            ratio, V = torch.linalg.eigh(inverse @ kept @ inverse.mT)
            ratio = ratio.clamp(min=0)[:, None]
            tilt, pull = 1 / (1 + ratio), inverse.mT
            white, gain = ((V * root) @ V.mT @ inverse for root in (tilt.sqrt(), tilt))
            rest = (V * (ratio * tilt).sqrt()) @ V.mT
        mean = apply(law.Phi, mean0.expand(len(law.m), -1)) + law.m
        return cls(law.Phi, law.m, L, pull, mean, kept + law.Q, white, gain, rest)

    def at(self, rows: Tensor) -> Kernel:
        """The kernel at some of its times."""
        return Kernel(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, like: Tensor) -> Kernel:
        """The kernel on the device and in the precision of a tensor."""
        return Kernel(*(getattr(self, f.name).to(like) for f in fields(self)))

    def noised(self, x0: Tensor, noise: Tensor) -> Tensor:
        """`Phi x0 + m + L ε`, shape (B, D)."""
        return apply(self.Phi, x0) + self.m.to(x0) + apply(self.L, noise)

    def sample(self, noise: Tensor) -> Tensor:
        """`mean + K^{1/2} ε`, a draw of x_t for Gaussian data, shape (B, D)."""
        root = self.K.sqrt() if self.K.ndim == 2 else torch.linalg.cholesky(self.K)
        return self.mean.to(noise) + apply(root, noise)
