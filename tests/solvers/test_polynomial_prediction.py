"""Multistep solvers on an uneven grid, for a prediction of x0 that is a polynomial in the clock."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from latentsb.bridge import State
from latentsb.process.references import VE
from latentsb.process.times import time_of_sigma
from latentsb.randomness import Draws
from latentsb.solvers.exponential import DPMpp, Posterior2
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Condition, Spec

UNEVEN = torch.tensor([-2.6, -2.3, -1.6, -1.2, -0.2, 0.1, 0.9], dtype=torch.float64)
"""Clocks, `lambda = −ln sigma`."""


def stepped(oracles, solver, degree):
    """Clocks, states `y` and memories of a solver whose prediction is `lambda^degree / degree!`."""

    def formula(y, sigma, cond):
        return torch.full_like(y, float((-sigma.log()) ** degree) / math.factorial(degree))

    bridge = oracles.Exact(VE(sigma_max=20.0), Spec((1,), torch.float64), formula, pinned=False)
    times = time_of_sigma(bridge, (-UNEVEN).exp())
    state, memory = State(torch.tensor([[3.0]], dtype=torch.float64), times[0], Condition()), None
    states, memories = [float(state.x)], []
    for s in times[1:]:
        state, memory = solver.step(bridge, state, s, Draws.seeds([0]), "x0", memory)
        states.append(float(state.x))  # the signal of VE is 1: x is y
        memories.append(memory)
    return [-float(bridge.marginal(t).sigma_eff.log()) for t in times], states, memories


def exact(y, first, last, degree):
    """Solution of `dy/dlambda = lambda^k/k! − y`: `P = Σ (−1)^j lambda^(k−j)/(k−j)!` and what is left of y − P."""

    def particular(clock):
        return sum((-1) ** j * clock ** (degree - j) / math.factorial(degree - j) for j in range(degree + 1))

    return particular(last) + math.exp(first - last) * (y - particular(first))


def test_posterior2_is_exact_for_a_line(oracles):
    clocks, states, _ = stepped(oracles, Posterior2(), 1)
    for n in range(1, len(clocks) - 1):  # the first step knows no slope
        assert states[n + 1] == pytest.approx(exact(states[n], clocks[n], clocks[n + 1], 1), rel=1e-9)


def test_dpmpp_holds_a_line_at_the_middle_of_the_step(oracles):
    clocks, states, _ = stepped(oracles, DPMpp(), 1)
    for n in range(1, len(clocks) - 1):
        kept = math.exp(clocks[n] - clocks[n + 1])
        middle = (clocks[n] + clocks[n + 1]) / 2
        assert states[n + 1] == pytest.approx(kept * states[n] + (1 - kept) * middle, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_predicts_with_as_many_points_as_its_order_and_corrects_with_one_more(oracles, order):
    """For `lambda^order / order!` the correction is exact, and the prediction lacks the interpolation's remainder.

    The polynomial through `order` points falls short by `∏ (lambda − lambda_i) / order!`, which the step integrates
    under `e^{−(h−r)}`.
    """
    clocks, states, memories = stepped(oracles, UniPC(order=order), order)
    corrected = [float(past.y) for past in memories]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for n in range(order, len(memories)):
        last, to = clocks[n], clocks[n + 1]
        assert corrected[n] == pytest.approx(exact(corrected[n - 1], clocks[n - 1], last, order), rel=1e-8)
        where = last + (to - last) * (nodes + 1) / 2
        short = np.prod([where - clocks[n - i] for i in range(order)], axis=0) / math.factorial(order)
        missing = (to - last) / 2 * float((weights * np.exp(where - to) * short).sum())
        assert missing > 1e-4
        assert exact(corrected[n], last, to, order) - states[n + 1] == pytest.approx(missing, rel=1e-6)


def test_the_grid_is_uneven():
    lengths = [float(b - a) for a, b in pairwise(UNEVEN)]
    assert min(max(a / b, b / a) for a, b in pairwise(lengths)) > 1.5
