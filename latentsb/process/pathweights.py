"""Simulated paths of a controlled chain, and both log-densities of whole paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.process.pathspace import Sampler
from latentsb.tensors import expand_as

__all__ = ["Walk", "Weight", "walk", "weigh"]

Control = Callable[[Tensor, Tensor], Tensor]
"""From a state (n, …) and a time of shape () or (n,) to a control of the state's shape."""


@dataclass(frozen=True)
class Walk:
    """Simulated paths of the controlled chain.

    Args:
        x: states from t = 1 to t = 0, shape (N + 1, n, …).
        u: controls that they were simulated with, shape (N, n, …).
        times: N + 1 falling times, float64.
    """

    x: Tensor
    u: Tensor
    times: Tensor

    @property
    def end(self) -> Tensor:
        """States at t = 0, shape (n, …)."""
        return self.x[-1]


@dataclass(frozen=True)
class Weight:
    """Log-densities of whole paths, without the constants that both chains share; each of shape (n,).

    Args:
        log_f: of the controlled chain.
        log_b: of the comparison, but for ρ at t = 0.
        ito: the martingale `Σ √h (u + v)·ξ`, whose mean is zero whatever the controls.
    """

    log_f: Tensor
    log_b: Tensor
    ito: Tensor


def walk(sampler: Sampler, control: Control, x: Tensor, times: Tensor, noise: Callable[[int], Tensor]) -> Walk:
    """Simulate the controlled chain; differentiable.

    Args:
        sampler: of the chain.
        control: of the process, in units of g.
        x: states at t = 1, shape (n, …).
        times: falling from 1 to 0, shape (N + 1,).
        noise: standard normal numbers of a step, shape of x, by its number.
    """
    states, controls, kernels = [x], [], sampler.kernel(times[:-1], times[1:])
    for k, t in enumerate(times[:-1]):
        kernel = kernels.step(k)
        controls.append(control(states[-1], t))
        states.append(kernel.mean(states[-1], controls[-1]) + expand_as(kernel.q.sqrt(), x) * noise(k))
    return Walk(torch.stack(states), torch.stack(controls), times)


def weigh(sampler: Sampler, path: Walk, u: Tensor | None = None, v: Tensor | None = None) -> Weight:
    """Both log-densities of paths, all steps at once.

    Args:
        sampler: of the chains.
        path: where they are taken, whoever has simulated it.
        u: controls at all states but the last, shape (N, n, …); those of the simulation if None.
        v: learned part of the comparison's drift at all states, shape (N + 1, n, …), in units of g; None for none.
    """
    u = path.u if u is None else u
    later, x = path.x[:-1], path.x[1:]
    kernel = sampler.kernel(path.times[:-1], path.times[1:])
    own = x - kernel.mean(later, u)
    gap = sampler.gap(kernel, x, later, None if v is None else v[1:])
    pull = expand_as(kernel.b, u) * (u if v is None else u + v[:-1])
    precision = (1 / kernel.q).to(own)
    dims = tuple(range(2, own.ndim))
    return Weight(
        log_f=sampler.log_begin(path.x[0]) - precision @ own.square().sum(dims) / 2,
        log_b=-sampler.log_end(path.end) - precision @ gap.square().sum(dims) / 2,
        ito=precision @ (own * pull).sum(dims),
    )
