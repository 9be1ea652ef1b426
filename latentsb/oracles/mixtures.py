"""Pairs of laws in any dimension whose Schrödinger bridge is known, made from a mixture potential.

Choose the law of x0 and a mixture of Gaussians `φ_1 = Σ_k p_k N(·; μ_k, Σ_k)`, and *define* the plan by
`π(x1 | x0) ∝ exp(−|x0 − x1|²/2ε) φ_1(x1)`. Between its own ends it is the entropic plan of Brownian motion with
variance ε, so x1 has known conditional laws and samples, though no closed density.

Source: Gushchin et al. 2023, Building the bridge of Schrödinger: a continuous entropic optimal transport benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentsb.bridge import End
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.oracles.linear import moment, sample_between
from latentsb.oracles.normal import Normal
from latentsb.process.references import Brownian
from latentsb.randomness import Draws, numpy_generator
from latentsb.ranges import Count, NonNegativeInt, Positive, enforce

__all__ = ["AdjustedPotential", "Conditional", "MixturePair", "Potential"]

COMPONENTS = 5
RADIUS = 5.0
SPREAD = (0.5, 2.0)
"""The pairs of `MixturePair`: centres on a sphere, variances log-uniform between these two, in random directions."""


@dataclass(frozen=True)
class Conditional:
    """Laws of x1 given each of B states, mixtures of the same K Gaussian shapes.

    Args:
        log_weights: shape (B, K), normalised.
        means: shape (B, K, D).
        covs: shape (K, D, D).
        roots: `R` with `R Rᵀ = covs`.
    """

    log_weights: Tensor
    means: Tensor
    covs: Tensor
    roots: Tensor

    def mean(self) -> Tensor:
        """Shape (B, D)."""
        return torch.einsum("bk,bkd->bd", self.log_weights.exp(), self.means)

    def cov(self) -> Tensor:
        """Shape (B, D, D)."""
        weights, off = self.log_weights.exp(), self.means - self.mean()[:, None]
        between = torch.einsum("bk,bkd,bke->bde", weights, off, off)
        return between + torch.einsum("bk,kde->bde", weights, self.covs)

    def sample(self, draws: Draws) -> Tensor:
        """One x1 for each state, shape (B, D); the draws serve the same rows."""
        steps = self.log_weights.exp().cumsum(1)
        k = (draws.uniform("component")[:, None] >= steps[:, :-1]).sum(1)
        noise = draws.normal("x1", self.means[:, 0])
        out = torch.empty_like(noise)
        for component in range(len(self.covs)):
            rows = k == component
            out[rows] = self.means[rows, component] + noise[rows] @ self.roots[component].T
        return out


@dataclass(frozen=True)
class Potential:
    """The mixture `Σ_k p_k N(x; μ_k, Σ_k)` with `Σ_k = V_k diag(λ_k) V_kᵀ`, and what Brownian motion makes of it.

    Args:
        log_p: shape (K,).
        mu: shape (K, D).
        values: eigenvalues λ, shape (K, D).
        vectors: eigenvectors V in columns, shape (K, D, D).
    """

    log_p: Tensor
    mu: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, log_p: Tensor, mu: Tensor, sigma: Tensor) -> Potential:
        """From covariances of shape (K, D, D)."""
        values, vectors = torch.linalg.eigh(sigma)
        return cls(log_p, mu, values, vectors)

    @property
    def sigma(self) -> Tensor:
        """Covariances Σ, shape (K, D, D)."""
        return (self.vectors * self.values[:, None, :]) @ self.vectors.mT

    def _project(self, x: Tensor) -> Tensor:
        """`V_kᵀ (x − μ_k)`, shape (B, K, D)."""
        return torch.einsum("kde,bkd->bke", self.vectors, x[:, None] - self.mu)

    def log_terms(self, x: Tensor, variance: float | Tensor = 0.0) -> Tensor:
        """`ln p_k N(x; μ_k, Σ_k + variance I)`, shape (B, K)."""
        values = self.values + variance
        fit = (self._project(x).square() / values).sum(2) + (2 * math.pi * values).log().sum(1)
        return self.log_p - fit / 2

    def log_prob(self, x: Tensor, variance: float | Tensor = 0.0) -> Tensor:
        """`ln φ` after a time in which the noise adds this variance, shape (B,)."""
        return self.log_terms(x, variance).logsumexp(1)

    def score(self, x: Tensor, variance: float | Tensor = 0.0) -> Tensor:
        """Gradient of `log_prob`, shape (B, D)."""
        share = self.log_terms(x, variance).softmax(1)
        pull = -self._project(x) / (self.values + variance) * share[:, :, None]
        return torch.einsum("kde,bke->bd", self.vectors, pull)

    def conditional(self, x: Tensor, variance: float | Tensor) -> Conditional:
        """Law of x1 given a state x from which noise of this variance is still to come.

        Weights `∝ p_k N(x; μ_k, Σ_k + v I)`, covariances `(I/v + Σ_k⁻¹)⁻¹`, means `cov (Σ_k⁻¹ μ_k + x/v)`.
        """
        shrunk = 1 / (1 / variance + 1 / self.values)
        moved = torch.einsum("kde,bke->bkd", self.vectors, self._project(x) * (shrunk / variance)[None])
        roots = self.vectors * shrunk.sqrt()[:, None, :]
        return Conditional(self.log_terms(x, variance).log_softmax(1), self.mu + moved, roots @ roots.mT, roots)

    def adjusted(self, epsilon: float) -> AdjustedPotential:
        """LightSB's form of the same plan: `v(x) = φ_1(x) exp(−|x|²/2ε) = Σ_k α_k N(x; r_k, ε S_k)`.

        `ε S = (I/ε + Σ⁻¹)⁻¹`, `r = ε S Σ⁻¹ μ`, `ln α = ln p + ln N(0; μ, Σ) − ln N(0; r, ε S)`.
        """
        scaled = 1 / (1 / epsilon + 1 / self.values)
        mu = torch.einsum("kde,kd->ke", self.vectors, self.mu)
        r = scaled / self.values * mu
        logs = _log_normal_at_zero(mu, self.values) - _log_normal_at_zero(r, scaled)
        S = (self.vectors * (scaled / epsilon)[:, None, :]) @ self.vectors.mT
        return AdjustedPotential(self.log_p + logs, torch.einsum("kde,ke->kd", self.vectors, r), S)


@dataclass(frozen=True)
class AdjustedPotential:
    """LightSB's potential `v(x1) = Σ_k α_k N(x1; r_k, ε S_k)`; the plan is `π(x1|x0) = exp(⟨x0, x1⟩/ε) v(x1) / c(x0)`.

    Source: Korotin et al. 2024, Light Schrödinger bridge, Eq. 11–14.

    Args:
        log_alpha: shape (K,).
        r: shape (K, D).
        S: symmetric positive definite, shape (K, D, D).
    """

    log_alpha: Tensor
    r: Tensor
    S: Tensor

    def log_terms(self, x0: Tensor, epsilon: float) -> Tensor:
        """`ln α_k + (x0ᵀ S_k x0 + 2 ⟨r_k, x0⟩) / 2ε`, shape (B, K)."""
        square = torch.einsum("bd,kde,be->bk", x0, self.S, x0)
        return self.log_alpha + (square + 2 * x0 @ self.r.T) / (2 * epsilon)

    def log_c(self, x0: Tensor, epsilon: float) -> Tensor:
        """`ln c(x0)`, the normaliser of the plan given x0, shape (B,)."""
        return self.log_terms(x0, epsilon).logsumexp(1)

    def log_v(self, x1: Tensor, epsilon: float) -> Tensor:
        """`ln v(x1)`, shape (B,)."""
        return Potential.of(self.log_alpha, self.r, epsilon * self.S).log_prob(x1)

    def conditional(self, x0: Tensor, epsilon: float) -> Conditional:
        """Law of x1 given x0: weights by `log_terms`, means `r_k + S_k x0`, covariances `ε S_k`."""
        means = self.r + torch.einsum("kde,be->bkd", self.S, x0)
        covs = epsilon * self.S
        return Conditional(self.log_terms(x0, epsilon).log_softmax(1), means, covs, torch.linalg.cholesky(covs))

    def potential(self, epsilon: float) -> Potential:
        """The benchmark's form, the inverse of `Potential.adjusted`: `Σ = (S⁻¹ − I)⁻¹ ε`, `μ = Σ (ε S)⁻¹ r`.

        Raises:
            ArgumentError: if an eigenvalue of S is not below one: then `v exp(|x|²/2ε)` is no mixture of Gaussians.
        """
        shares, vectors = torch.linalg.eigh(self.S)
        if not bool((shares < 1).all()):
            raise ArgumentError("S", f"has the eigenvalue {float(shares.max()):.3g}, expected all below 1")
        values = epsilon * shares / (1 - shares)
        r = torch.einsum("kde,kd->ke", vectors, self.r)
        mu = values / (epsilon * shares) * r
        logs = _log_normal_at_zero(r, epsilon * shares) - _log_normal_at_zero(mu, values)
        return Potential(self.log_alpha + logs, torch.einsum("kde,ke->kd", vectors, mu), values, vectors)


def _log_normal_at_zero(mean: Tensor, values: Tensor) -> Tensor:
    """`ln N(0; mean, diag(values))` for each row."""
    return -(mean.square() / values + (2 * math.pi * values).log()).sum(1) / 2


@dataclass(frozen=True, kw_only=True)
class MixturePair:
    """A pair of laws with its Schrödinger bridge: x0 is standard normal, x1 the end of the plan of a seeded mixture.

    The potential has five components of equal weight, centres on a sphere of radius 5, and variances log-uniform in
    [0.5, 2] along random directions. The published benchmark's own mixtures are not public as numbers, so figures on
    these pairs compare among themselves.

    Args:
        dim: D.
        epsilon: variance of the Brownian reference, ε.
        seed: of the potential, which does not depend on ε.
    """

    dim: Count = 2
    epsilon: Positive = 1.0
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        enforce(self)

    @cached_property
    def potential(self) -> Potential:
        """`φ_1`."""
        rng = numpy_generator(self.seed, "mixture pair", self.dim)
        centres = torch.from_numpy(rng.standard_normal((COMPONENTS, self.dim)))
        bases = torch.from_numpy(rng.standard_normal((COMPONENTS, self.dim, self.dim)))
        low, high = (math.log(v) for v in SPREAD)
        values = torch.from_numpy(rng.uniform(low, high, (COMPONENTS, self.dim))).exp()
        mu = RADIUS * centres / centres.norm(dim=1, keepdim=True)
        equal = torch.full((COMPONENTS,), -math.log(COMPONENTS), dtype=torch.float64)
        return Potential(equal, mu, values, torch.linalg.qr(bases)[0])

    @property
    def reference(self) -> Brownian:
        """Brownian motion of variance ε."""
        return Brownian(sigma=math.sqrt(self.epsilon))

    @property
    def x0(self) -> Normal:
        """`N(0, I)`."""
        return Normal.isotropic(self.dim)

    def sample_x0(self, n: int, draws: Draws) -> Tensor:
        """Draw n states at t = 0, float64, shape (n, D)."""
        return draws.normal("x0", torch.empty(n, self.dim, dtype=torch.float64))

    def sample_x1(self, n: int, draws: Draws) -> Tensor:
        """Draw n states at t = 1, each from the plan given an x0 of its own, which is dropped."""
        return self.sample_pairs(n, draws.fork("other"))[1]

    def sample_pairs(self, n: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw n pairs `(x0, x1)` of the plan. Read either way: x0 is a draw from its law given x1, too."""
        x0 = self.sample_x0(n, draws)
        return x0, self.conditional(x0).sample(draws)

    def conditional(self, x0: Tensor) -> Conditional:
        """Law of x1 given x0 under the plan."""
        return self.potential.conditional(x0.double(), self.epsilon)

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, draws: Draws) -> Tensor:
        """Exact paths at increasing times, shape (len(times), n, D): ends from the plan, then the Brownian bridge."""
        return sample_between(self.reference, *self.sample_pairs(n, draws), times, draws)

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`E[X1 | X_t = x]` for t < 1, shape (B, D)."""
        wide = x.to("cpu", torch.float64)
        return self.potential.conditional(wide, self.epsilon * (1 - moment(t))).mean().to(x)

    def drift(self, x: Tensor, t: float | Tensor, towards: End = "x1") -> Tensor:
        """`b_f = ε ∇ ln Σ_k p_k N(x; μ_k, Σ_k + ε (1 − t) I)`, rows x of shape (B, D), t in [0, 1].

        Raises:
            CapabilityError: towards x0, since the law of x1 has no closed density; use `sample_pairs`.
        """
        if towards == "x0":
            raise CapabilityError("a mixture pair knows its drift towards x1 only; towards x0 it has samples")
        wide = x.to("cpu", torch.float64)
        return (self.epsilon * self.potential.score(wide, self.epsilon * (1 - moment(t)))).to(x)

    @cached_property
    def x1_moments(self) -> Normal:
        """Mean and covariance of x1 from the conditional moments at 20,000 fixed draws of x0; x1 is not normal."""
        rows, means, cov = 20_000, [], torch.zeros(self.dim, self.dim, dtype=torch.float64)
        for part in torch.split(self.sample_x0(rows, Draws.block(self.seed, "moments of x1", 0, rows)), 1000):
            law = self.conditional(part)
            means.append(law.mean())
            cov += torch.einsum("bk,kde->de", law.log_weights.exp(), law.covs) / rows
            off = law.means - means[-1][:, None]
            cov += torch.einsum("bk,bkd,bke->de", law.log_weights.exp(), off, off) / rows
        centre = Normal.fitted(torch.cat(means))
        return Normal(centre.mean, cov + centre.cov)
