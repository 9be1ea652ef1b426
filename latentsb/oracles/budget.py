"""Where the error of a sampler comes from, term by term, in the Gaussian case: exact distances of exact laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.oracles.chain import Step, run
from latentsb.oracles.metrics import bw2
from latentsb.oracles.normal import Affine, Normal, gain

__all__ = ["GaussianBudget", "denoiser", "w2"]

Map = Callable[[Tensor], Affine]


def w2(a: Normal, b: Normal) -> float:
    """2-Wasserstein distance of two normal laws."""
    return float((2 * bw2(a.mean, a.cov, b.mean, b.cov)).clamp(min=0).sqrt())


def denoiser(law: Normal, sigma: float) -> Map:
    """`E[X_0 | X_0 + σ √t ξ]` of a normal law, as a map for each time."""

    def at(t: Tensor) -> Affine:
        slope = gain(law.cov, law.cov + sigma**2 * float(t) * torch.eye(law.dim, dtype=torch.float64))
        return Affine(slope, law.mean - slope @ law.mean)

    return at


@dataclass(frozen=True, kw_only=True)
class GaussianBudget:
    """Error terms of `X_t = X_0 + σ √t ξ` reversed by a chain of affine steps; their sum bounds the whole error.

    With p the law, `A` the chain of the exact denoiser, `B` that of the learned one, q the exact start and q' the
    one that is used, and `p_T` the exact law at the last positive time, denoised:

        W2(B q', p) <= W2(B q', B q) + W2(B q, A q) + W2(A q, p_T) + W2(p_T, p)
                         start          score         steps          early stopping

    Source: the triangle inequality.

    Args:
        law: p, of the latents.
        sigma: σ.
        start: q'.
        times: falling, from 1 to 0; the last step is the denoiser's.
        chain: the solver's steps for a denoiser.
        learned: the denoiser that is used.
    """

    law: Normal
    sigma: float
    start: Normal
    times: Tensor
    chain: Callable[[Map, Tensor], Sequence[Step]]
    learned: Map

    def blurred(self, t: float) -> Normal:
        """`p * N(0, σ² t)`."""
        return Normal(self.law.mean, self.law.cov + self.sigma**2 * t * torch.eye(self.law.dim, dtype=torch.float64))

    def terms(self) -> dict[str, float]:
        """The four terms, and `whole`: the distance that their sum bounds."""
        exact = denoiser(self.law, self.sigma)
        mine, theirs = self.chain(self.learned, self.times), self.chain(exact, self.times)
        last = float(self.times[-2])
        stopped = self.blurred(last).push(exact(self.times[-2]))
        used, right = run(mine, self.start).last, run(mine, self.blurred(1.0)).last
        stepped = run(theirs, self.blurred(1.0)).last
        return {
            "start": w2(used, right),
            "score": w2(right, stepped),
            "steps": w2(stepped, stopped),
            "early stopping": w2(stopped, self.law),
            "whole": w2(used, self.law),
        }
