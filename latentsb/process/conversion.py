"""The one table of conversions between drifts, score, noise, predictions of the ends and velocity.

Three groups, each in both directions. Around a marginal `X_t | x0, x1 ~ N(a x1 + b x0, c)`:

    score = −noise / √c,    x = a x1 + b x0 + √c noise

between an end and the drift that leads to it (`reference.b_f`, `reference.b_b`):

    b_f = f x + r'/(1 − r) (α_t/α_1 x1 − x),    b_b = −f x + r'/r (α_t x0 − x)

and between the two drifts, the score and the probability-flow velocity (Nelson 1967; Song et al. 2021, Eq. 13):

    b_f + b_b = g² score,    velocity = (b_f − b_b)/2 = b_f − g² score/2

All of them are affine, so they turn a conditional expectation of one into that of the other. Drifts are written as
executed: `x_{t+h} = x_t + h b_f`, `x_{t−h} = x_t + h b_b`. Times are inside (0, 1), of shape () or (B,); `x1` None
stands for a marginal with a = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.process.marginal import Marginal
from latentsb.process.reference import Reference, ScalarReference
from latentsb.tensors import expand_as

__all__ = [
    "b_b_from_b_f",
    "b_b_from_velocity",
    "b_b_from_x0",
    "b_f_from_b_b",
    "b_f_from_velocity",
    "b_f_from_x1",
    "noise_from_score",
    "noise_from_x0",
    "score_from_drifts",
    "score_from_noise",
    "score_from_x0",
    "velocity_from_drifts",
    "velocity_from_score",
    "x0_from_b_b",
    "x0_from_noise",
    "x0_from_score",
    "x1_from_b_f",
    "x1_from_x0",
]


def score_from_noise(marginal: Marginal, noise: Tensor) -> Tensor:
    """`−noise / √c`."""
    return -noise / expand_as(marginal.std, noise)


def noise_from_score(marginal: Marginal, score: Tensor) -> Tensor:
    """`−√c score`."""
    return -expand_as(marginal.std, score) * score


def noise_from_x0(marginal: Marginal, x: Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """`(x − a x1 − b x0) / √c`."""
    return marginal.noise(x, x0, x1)


def x0_from_noise(marginal: Marginal, x: Tensor, noise: Tensor, x1: Tensor | None = None) -> Tensor:
    """`(x − a x1 − √c noise) / b`."""
    return marginal.to_y(x - expand_as(marginal.std, x) * noise, x1)


def score_from_x0(marginal: Marginal, x: Tensor, x0: Tensor, x1: Tensor | None = None) -> Tensor:
    """`−(x − a x1 − b x0) / c`."""
    return marginal.score(x, x0, x1)


def x0_from_score(marginal: Marginal, x: Tensor, score: Tensor, x1: Tensor | None = None) -> Tensor:
    """Tweedie's formula, `(x − a x1 + c score) / b`."""
    return marginal.to_y(x + expand_as(marginal.c, x) * score, x1)


def x1_from_x0(marginal: Marginal, x: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """`(x − b x0 − √c noise) / a`, from predictions of the other two."""
    rest = x - expand_as(marginal.b, x) * x0 - expand_as(marginal.std, x) * noise
    return rest / expand_as(marginal.a, x)


def b_f_from_x1(reference: ScalarReference, t: Tensor, x: Tensor, x1: Tensor | None) -> Tensor:
    """`f x + r'/(1 − r) (α_t/α_1 x1 − x)`; the reference's own drift `f x` where there is no x1."""
    return reference.b_f(x, t, x1)


def x1_from_b_f(reference: ScalarReference, t: Tensor, x: Tensor, b_f: Tensor) -> Tensor:
    """Inverse of `b_f_from_x1`."""
    f, rate = reference.rates(t)
    t = t.to(torch.float64)
    pull = (b_f - expand_as(f, x) * x) * expand_as((1 - reference.progress(t)) / rate, x)
    return (x + pull) * expand_as(reference.alpha(torch.ones_like(t)) / reference.alpha(t), x)


def b_b_from_x0(reference: ScalarReference, t: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """`−f x + r'/r (α_t x0 − x)`."""
    return reference.b_b(x, t, x0)


def x0_from_b_b(reference: ScalarReference, t: Tensor, x: Tensor, b_b: Tensor) -> Tensor:
    """Inverse of `b_b_from_x0`."""
    f, rate = reference.rates(t)
    t = t.to(torch.float64)
    pull = (b_b + expand_as(f, x) * x) * expand_as(reference.progress(t) / rate, x)
    return (x + pull) / expand_as(reference.alpha(t), x)


def score_from_drifts(reference: Reference, t: Tensor, b_f: Tensor, b_b: Tensor) -> Tensor:
    """Nelson's relation, `(b_f + b_b) / g²`."""
    return (b_f + b_b) / expand_as(reference.g(t).square(), b_f)


def b_b_from_b_f(reference: Reference, t: Tensor, b_f: Tensor, score: Tensor) -> Tensor:
    """Time reversal, `g² score − b_f` (Anderson 1982)."""
    return expand_as(reference.g(t).square(), score) * score - b_f


def b_f_from_b_b(reference: Reference, t: Tensor, b_b: Tensor, score: Tensor) -> Tensor:
    """Time reversal, `g² score − b_b`."""
    return expand_as(reference.g(t).square(), score) * score - b_b


def velocity_from_drifts(b_f: Tensor, b_b: Tensor) -> Tensor:
    """Probability-flow velocity in forward time, `(b_f − b_b) / 2`."""
    return (b_f - b_b) / 2


def velocity_from_score(reference: Reference, t: Tensor, b_f: Tensor, score: Tensor) -> Tensor:
    """`b_f − g² score / 2`."""
    return b_f - expand_as(reference.g(t).square() / 2, score) * score


def b_f_from_velocity(reference: Reference, t: Tensor, velocity: Tensor, score: Tensor) -> Tensor:
    """`velocity + g² score / 2`."""
    return velocity + expand_as(reference.g(t).square() / 2, score) * score


def b_b_from_velocity(reference: Reference, t: Tensor, velocity: Tensor, score: Tensor) -> Tensor:
    """`−velocity + g² score / 2`."""
    return -velocity + expand_as(reference.g(t).square() / 2, score) * score
