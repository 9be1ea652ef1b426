"""Optimal transport between two equal numbers of points: the exact plan, the entropic plan, and draws from it.

The cost is `|x0 − x1|²/2`, so that the regularisation of an entropic plan is the epsilon of a reference process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = ["Plan", "assign", "costs", "draw", "sinkhorn"]

logger = logging.getLogger(__name__)

INNER = 20
"""Scalings between two rounds in the log domain. A scaling grows by n at most, so 20 stay within float64."""


@dataclass(frozen=True)
class Plan:
    """An entropic plan between n and n points of equal weight.

    Args:
        rows: law of the partner of each x0, float64, shape (n, n); every row sums to one.
        error: mean absolute deviation of the column sums from one, which is that of the weights of x1.
        rounds: scalings that it took.
    """

    rows: Tensor
    error: float
    rounds: int


def costs(x0: Tensor, x1: Tensor) -> Tensor:
    """`|x0_i − x1_j|²/2` of the points, each set centred on its mean.

    Moving a set as a whole changes only the potentials of a plan, never the plan. Of centred points in double
    precision the squares may be expanded without losing digits, which makes one matrix product of it.

    Args:
        x0: shape (n, …).
        x1: shape (n, …).

    Returns:
        Float64, on the CPU, shape (n, n).
    """
    x, y = x0.flatten(1).double(), x1.flatten(1).double()
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.square().sum(1)[:, None] / 2 + y.square().sum(1) / 2 - x @ y.T).cpu()


def assign(cost: Tensor) -> Tensor:
    """The exact plan: the permutation of least total cost.

    The least of each row, then of each column, is subtracted first: feasible potentials, from which the solver's
    shortest augmenting paths are shorter.

    Source: Crouse 2016, On implementing 2D rectangular assignment algorithms (scipy's solver).

    Args:
        cost: shape (n, n).

    Returns:
        The partner of each row, int64, shape (n,).
    """
    from scipy.optimize import linear_sum_assignment

    reduced = cost - cost.amin(1, keepdim=True)
    reduced -= reduced.amin(0, keepdim=True)
    return torch.from_numpy(linear_sum_assignment(reduced.numpy())[1])


def sinkhorn(cost: Tensor, epsilon: float, *, tolerance: float = 1e-4, limit: int = 1000) -> Plan:
    """The entropic plan: `exp(−cost_ij / epsilon)` times a function of i and one of j, with equal weights.

    It minimises `Σ P cost + epsilon Σ P ln P`, and is the static Schrödinger bridge between the points over a reference
    with that epsilon. Potentials are kept in the log domain; between two rounds there, some
    scalings run on the kernel that they make, which cost a tenth and cannot overflow. If the weights of x1 are not
    met after `limit` scalings, a warning says so once, and the plan is still one of x0 exactly.

    Source: Cuturi 2013, Sinkhorn distances; Schmitzer 2019, Stabilized sparse scaling algorithms, Alg. 2.

    Args:
        cost: shape (n, n), float64.
        epsilon: entropic regularisation, above zero, in units of the cost.
        tolerance: mean absolute deviation of the column sums from one that ends the search.
        limit: scalings.
    """
    scores = -cost / epsilon
    g = torch.zeros(len(scores), dtype=torch.float64)
    rounds, error = 0, float("inf")
    while True:
        f = -torch.logsumexp(scores + g, dim=1)
        kernel = torch.exp(scores + f[:, None] + g)
        columns = kernel.sum(0)
        error = float((columns - 1).abs().mean())
        if error <= tolerance or rounds >= limit:
            break
        g = g - torch.logsumexp(scores + f[:, None] + g, dim=0)
        kernel = torch.exp(scores + f[:, None] + g)
        v = torch.ones_like(g)
        for _ in range(INNER):
            v = 1 / (kernel.T @ (1 / (kernel @ v)))
        g, rounds = g + v.log(), rounds + INNER + 1
    if error > tolerance:
        _warn(limit)
    return Plan(kernel, error, rounds)


@cache
def _warn(limit: int) -> None:
    logger.warning(
        "Sinkhorn did not meet the weights of x1 in %d scalings: epsilon is small beside the distances; a reference "
        "without noise (sigma 0) takes the exact plan",
        limit,
    )


def draw(plan: Plan, u: Tensor) -> Tensor:
    """One partner for each x0, from its row of the plan.

    Args:
        plan: between n and n points.
        u: uniform numbers in [0, 1), float64, shape (n,).

    Returns:
        Int64, shape (n,).
    """
    steps = plan.rows.cumsum(1)
    # The last step may miss one by rounding.
    return torch.searchsorted(steps / steps[:, -1:], u[:, None], right=True).squeeze(1).clamp(max=len(steps) - 1)
