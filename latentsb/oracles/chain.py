"""The exact law of a discretised chain: what a sampler with affine drifts draws from after N steps.

A step is `x ↦ A x + v + N(0, S)`, so a chain from a normal law stays normal and its moments are finite sums. The bias
of a sampler is thus predicted instead of tolerated: with the exact drift of a `GaussianBridge`, or with an affine one
that was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from latentsb.bridge import End
from latentsb.oracles.linear import pinned
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.process.reference import Reference

__all__ = ["Chain", "Step", "euler", "euler_maruyama", "heun", "posterior", "run", "uniform"]

Map = Callable[[Tensor], Affine]
"""An affine map for each time: `bridge.b_f`, `bridge.velocity`, `bridge.x1_given`, …"""


@dataclass(frozen=True)
class Step:
    """One step of a chain, `x ↦ mean(x) + N(0, cov)`.

    Args:
        mean: affine map.
        cov: shape (D, D).
    """

    mean: Affine
    cov: Tensor


@dataclass(frozen=True)
class Chain:
    """What a chain does to a normal law.

    Args:
        laws: of the state before the first step and after each one.
        whole: affine map from the first state to the mean of the last.
    """

    laws: tuple[Normal, ...]
    whole: Affine

    @property
    def last(self) -> Normal:
        """Law of the last state."""
        return self.laws[-1]

    @property
    def ends(self) -> Joint:
        """Joint law of the first state (as `x0` of the result, whichever end it is) and the last."""
        return Joint(self.laws[0], self.last, self.laws[0].cov @ self.whole.A.T)


def run(steps: Sequence[Step], start: Normal) -> Chain:
    """Push a normal law through the steps."""
    laws, whole = [start], Affine.identity(start.dim)
    for step in steps:
        laws.append(laws[-1].push(step.mean, step.cov))
        whole = step.mean.after(whole)
    return Chain(tuple(laws), whole)


def uniform(steps: int, towards: End = "x1") -> Tensor:
    """`steps + 1` evenly spaced times in the order of travel, float64."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return times if towards == "x1" else times.flip(0)


def _pairs(times: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(pairwise(times))


def euler_maruyama(
    drift: Map, a: Callable[[Tensor], Tensor], times: Tensor, *, noiseless_last: bool = False
) -> list[Step]:
    """Steps `x + h b(x, t) + √h g(t) ε` of the SDE.

    Source: Maruyama 1955; the noiseless last step as in De Bortoli et al. 2021.

    Args:
        drift: as executed: `b_f` for increasing times, `b_b` for decreasing ones.
        a: `g gᵀ`, shape (D, D).
        times: in the order of travel.
        noiseless_last: leave the noise of the last step out.
    """
    steps = []
    for k, (t, s) in enumerate(_pairs(times)):
        b, h = drift(t), (s - t).abs()
        noise = h * a(t)
        last = noiseless_last and k == len(times) - 2
        steps.append(Step(Affine.identity(len(b.v)) + float(h) * b, torch.zeros_like(noise) if last else noise))
    return steps


def posterior(predict: Map, reference: Reference, times: Tensor) -> list[Step]:
    """Ancestral steps: draw the next state from the reference pinned to the present one and the predicted end.

    Exact where the end is a function of the state; otherwise the spread of the prediction is lost.

    Source: Ho et al. 2020, DDPM, Eq. 6–7; Liu et al. 2023, I2SB, Eq. 4.

    Args:
        predict: `E[X1 | x]` for increasing times, `E[X0 | x]` for decreasing ones.
        reference: linear process.
        times: in the order of travel; the last one is the end.
    """
    steps = []
    for t, s in _pairs(times):
        end = predict(t)
        if bool(s > t):
            law = pinned(reference, t, s, 1.0, len(end.v))
            here, there = law.earlier, law.later
        else:
            law = pinned(reference, 0.0, s, t, len(end.v))
            here, there = law.later, law.earlier
        steps.append(Step(Affine(here, law.offset) + end.left(there), law.cov))
    return steps


def euler(velocity: Map, times: Tensor) -> list[Step]:
    """Euler's steps on the probability-flow ODE; `velocity` is in forward time whatever the direction of travel."""
    steps = []
    for t, s in _pairs(times):
        v = velocity(t)
        steps.append(Step(Affine.identity(len(v.v)) + float(s - t) * v, torch.zeros_like(v.A)))
    return steps


def heun(velocity: Map, times: Tensor) -> list[Step]:
    """Heun's steps on the probability-flow ODE; `velocity` is in forward time whatever the direction of travel."""
    steps = []
    for t, s in _pairs(times):
        v, h = velocity(t), float(s - t)
        guess = Affine.identity(len(v.v)) + h * v
        mean = Affine.identity(len(v.v)) + (h / 2) * (v + velocity(s).after(guess))
        steps.append(Step(mean, torch.zeros_like(v.A)))
    return steps
