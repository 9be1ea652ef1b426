"""The exact iterates of the two algorithms that solve Schrödinger bridges, for normal ends and any linear reference.

What a method that trains networks should do after each of its rounds: `imf` for DSBM, `ipf` for DSB and its kin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.linear import transition
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.process.reference import Reference

__all__ = ["flow", "imf", "ipf", "markov_coupling"]


def flow(slope: GaussianBridge, panels: int = 40) -> Tensor:
    """`Ψ` with `E[X_1 | x_0] = Ψ x_0 + …` under the forward drift: `Ψ' = A_t Ψ`, `Ψ(0) = I`, shape (D, D).

    By Magnus' expansion of order 6 with three Gauss–Legendre nodes per panel; in one dimension, or where the slopes
    commute, it is the exponential of Gauss–Legendre's rule. Panels crowd at both ends, `t_k = sin²(π k / 2 n)`, where a
    narrow law makes the drift steep.

    Source: Blanes et al. 2009, The Magnus expansion and some of its applications, Sec. 5.4.

    Args:
        slope: whose forward drift is followed.
        panels: an even number, since some references have a kink at t = 1/2.
    """
    ticks = (torch.arange(panels + 1, dtype=torch.float64) * (math.pi / 2 / panels)).sin().square()
    offset = math.sqrt(15) / 10
    out = torch.eye(slope.dim, dtype=torch.float64)

    def commute(a: Tensor, b: Tensor) -> Tensor:
        return a @ b - b @ a

    for start, stop in pairwise(ticks):
        h = stop - start
        early, middle, late = (slope.b_f(start + h * (0.5 + d)).A for d in (-offset, 0.0, offset))
        one, two = h * middle, h * math.sqrt(15) / 3 * (late - early)
        three = 10 * h / 3 * (late - 2 * middle + early)
        inner = commute(one, two)
        outer = two - commute(one, 2 * three + inner) / 60
        out = torch.matrix_exp(one + three / 12 + commute(inner - 20 * one - three, outer) / 240) @ out
    return out


def markov_coupling(bridge: GaussianBridge, panels: int = 40) -> Joint:
    """Coupling of the ends under the Markovian projection: the same ends, `Cov(X0, X1) = A Ψᵀ`."""
    return Joint(bridge.ends.x0, bridge.ends.x1, bridge.ends.x0.cov @ flow(bridge, panels).T)


def imf(start: Joint, reference: Reference, panels: int = 40) -> Iterator[Joint]:
    """Iterative Markovian fitting: couplings after one, two, … exact rounds of bridge matching.

    Forward and backward matching have the same Markovian projection, so it does not matter which one a round trains.
    The ends stay as they are; the cross-covariance converges to that of the entropic plan.

    Source: Shi et al. 2023, Diffusion Schrödinger bridge matching, Alg. 1; Peluchetti 2023.

    Args:
        start: first coupling, such as `Joint.independent`.
        reference: linear process.
        panels: of the time integral.
    """
    while True:
        start = markov_coupling(GaussianBridge(start, reference), panels)
        yield start


def ipf(x0: Normal, x1: Normal, reference: Reference) -> Iterator[Joint]:
    """Iterative proportional fitting (Sinkhorn, DSB): couplings after each half step, that of x1 first.

    It begins with the reference started in x0. Each half step gives one end its right law and keeps the conditional law
    of the other, so the other end has its right law only in the limit.

    Source: De Bortoli et al. 2021, Diffusion Schrödinger bridge, Sec. 3; Kullback 1968.

    Args:
        x0: data end.
        x1: other end.
        reference: linear process.
    """
    law = transition(reference, 0.0, 1.0, x0.dim)
    now = Joint(x0, x0.push(Affine(law.Phi, law.m), law.Q), x0.cov @ law.Phi.T)
    while True:
        now = _replace_x0(now.reversed(), x1).reversed()
        yield now
        now = _replace_x0(now, x0)
        yield now


def _replace_x0(joint: Joint, x0: Normal) -> Joint:
    """The coupling with another law of x0 and the same law of x1 given x0."""
    mean, cov = joint.x1_given_x0()
    return Joint(x0, x0.push(mean, cov), x0.cov @ mean.A.T)
