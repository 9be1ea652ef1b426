"""Distances to exact answers, and the floors that belong beside every such figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from latentsb.oracles.chain import uniform
from latentsb.oracles.mixtures import MixturePair
from latentsb.oracles.normal import Normal, square_root
from latentsb.randomness import Draws

__all__ = [
    "Floors",
    "Score",
    "bw2",
    "bw2_uvp",
    "cbw2_uvp",
    "estimator_floor",
    "floors",
    "follow",
    "gaussian_kl",
]

Sampler = Callable[[Tensor, Draws], Tensor]
"""Draws one x1 for each row of x0, float64, both of shape (B, D); the draws serve the rows."""

TOGETHER = 50_000
"""Rows that are simulated at once."""


@dataclass(frozen=True)
class Score:
    """A mean over test inputs and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.1g}"


def bw2(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """Squared Bures–Wasserstein distance for the cost `|x − y|²/2`, batched over leading dimensions.

    `|m_a − m_b|²/2 + tr S_a/2 + tr S_b/2 − tr (S_a^{1/2} S_b S_a^{1/2})^{1/2}`: half of the Fréchet distance.

    Source: Dowson and Landau 1982; Korotin et al. 2021, Do neural optimal transport solvers work?, for the half.

    Args:
        mean: shape (..., D).
        cov: shape (..., D, D).
        other_mean: of the other law.
        other_cov: of the other law.
    """
    root = square_root(cov)
    cross: Tensor = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum(-1)
    traces = cov.diagonal(dim1=-2, dim2=-1).sum(-1) + other_cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean - other_mean).square().sum(-1) + traces) / 2 - cross


def bw2_uvp(samples: Tensor, target: Normal) -> float:
    """Unexplained variance of x1 in per cent, `100 BW²(samples, target) / (tr Cov / 2)`.

    To predict the mean always scores 100. Only the first two moments of the target enter.

    Source: Gushchin et al. 2023, Sec. 4.2.

    Args:
        samples: of the model's x1, shape (n, D).
        target: mean and covariance of the true x1.
    """
    fit = Normal.fitted(samples)
    return float(100 * bw2(fit.mean, fit.cov, target.mean, target.cov) / (target.cov.trace() / 2))


def cbw2_uvp(sampler: Sampler, pair: MixturePair, *, inputs: int = 1000, samples: int = 1000, seed: int = 0) -> Score:
    """Conditional unexplained variance in per cent: how far a model's plan is from the true one.

    `100 mean_x0 BW²(model(·|x0), π(·|x0)) / (tr Cov(x1) / 2)`, the model by samples, the plan by its exact moments.

    Source: Gushchin et al. 2023, Sec. 4.2.

    Args:
        sampler: of the model.
        pair: with the true plan.
        inputs: test states x0, the same for every model at equal seed.
        samples: of the model for each of them.
        seed: of the inputs and of the model's draws.

    Returns:
        The mean and its standard error over the inputs.
    """
    x0 = pair.sample_x0(inputs, Draws.block(seed, "test inputs", 0, inputs))
    found = []
    for k, part in enumerate(torch.split(x0, max(1, TOGETHER // samples))):
        rows = part.repeat_interleave(samples, 0)
        made = sampler(rows, Draws.block(seed, "test samples", k, len(rows))).double()
        made = made.reshape(len(part), samples, -1)
        mean = made.mean(1)
        off = made - mean[:, None]
        law = pair.conditional(part)
        found.append(bw2(mean, off.mT @ off / (samples - 1), law.mean(), law.cov()))
    scores = 100 * torch.cat(found) / (pair.x1_moments.cov.trace() / 2)
    return Score(float(scores.mean()), float(scores.std() / math.sqrt(inputs)))


@dataclass(frozen=True)
class Floors:
    """What belongs beside a model's `cbw2_uvp`.

    Args:
        sampling: samples of the true plan itself: no model can show less.
        drift: Euler–Maruyama with the exact drift: no model of the drift can show less with these steps.
        independent: x1 drawn without regard to x0: a model above it has learned nothing about the plan.
    """

    sampling: Score
    drift: Score
    independent: Score


def floors(pair: MixturePair, *, steps: int, inputs: int = 1000, samples: int = 1000, seed: int = 0) -> Floors:
    """The three floors at the numbers of inputs and samples at which a model is measured.

    Args:
        pair: with the true plan.
        steps: of Euler–Maruyama.
        inputs: as in `cbw2_uvp`.
        samples: as in `cbw2_uvp`.
        seed: as in `cbw2_uvp`.
    """

    def score(sampler: Sampler) -> Score:
        return cbw2_uvp(sampler, pair, inputs=inputs, samples=samples, seed=seed)

    return Floors(
        score(lambda x0, draws: pair.conditional(x0).sample(draws)),
        score(lambda x0, draws: follow(pair, x0, uniform(steps), draws)),
        score(lambda x0, draws: pair.sample_x1(len(x0), draws)),
    )


def follow(pair: MixturePair, x0: Tensor, times: Tensor, draws: Draws) -> Tensor:
    """Euler–Maruyama along increasing times with the exact drift, noise in the last step too; shape of x0."""
    x = x0
    for k, (t, s) in enumerate(pairwise(times)):
        noise = draws.fork(f"step {k}").normal("noise", x)
        x = x + (s - t) * pair.drift(x, t) + torch.sqrt((s - t) * pair.epsilon) * noise
    return x


def gaussian_kl(samples: Tensor, law: Normal, *, diagonal: bool = False) -> float:
    """`KL(fit ‖ law)` in nats of a normal law fitted to samples, with unbiased covariance.

    Args:
        samples: shape (n, D); n > D unless diagonal.
        law: true one.
        diagonal: compare the products of the marginals of both instead, which is blind to correlations.
    """
    fit = Normal.fitted(samples)
    if not diagonal:
        return fit.kl(law)
    variance, true = fit.cov.diagonal(), law.cov.diagonal()
    ratio = variance / true
    return float((ratio + (fit.mean - law.mean).square() / true - 1 - ratio.log()).sum() / 2)


def estimator_floor(dim: int, samples: int, *, diagonal: bool = False) -> float:
    """Expectation of `gaussian_kl` for samples of the law itself, exact.

    `½ (D/n − E ln det W)` with Wishart's `E ln det W = Σ_i ψ((n − i)/2) − D ln((n − 1)/2)`, i = 1 … D; for the diagonal
    one each i is 1, and the true covariance must be diagonal. To first order it is `(D + D (D + 1)/2) / 2n`, diagonal
    `D/n`, so figures with full and with diagonal covariance do not compare.

    Source: Bishop 2006, Pattern recognition and machine learning, Eq. B.81.

    Args:
        dim: D.
        samples: n > D.
        diagonal: as in `gaussian_kl`.
    """
    orders = torch.ones(dim) if diagonal else torch.arange(1, dim + 1)
    wishart = torch.digamma((samples - orders.double()) / 2).sum() - dim * math.log((samples - 1) / 2)
    return float(dim / samples - wishart) / 2
