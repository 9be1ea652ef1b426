"""The Schrödinger bridge between two laws on a grid, by Sinkhorn's iteration in the log domain.

For laws that have no closed form: mixtures on the line, moons and rings in the plane. The reference is any scalar one;
its kernel factorises over the axes, so in d dimensions an iteration costs d one-dimensional ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.bridge import End
from latentsb.errors import ArgumentError
from latentsb.oracles.linear import moment, sample_between
from latentsb.oracles.normal import Joint, Normal
from latentsb.process.reference import ScalarReference
from latentsb.randomness import Draws
from latentsb.tensors import expand_as

__all__ = ["GridBridge"]

CHUNK = 2**22
"""Numbers that are held at once where every point meets every node."""


@dataclass(frozen=True)
class GridBridge:
    """The exact Schrödinger bridge between two laws of finitely many points, the nodes of a grid.

    The plan is `P_ij = exp(f_i + g_j) N(y_j; α x_i, Q)`; with the potentials `φ_t`, `φ̂_t` that the reference carries on

        p_t = φ_t φ̂_t,    b_f = f x + g² ∇ ln φ_t,    b_b = −f x + g² ∇ ln φ̂_t

    (Chen, Georgiou and Pavon 2016). All of it can be asked at any point, not on the grid only. For 0 < t < 1 the
    potentials are mixtures of Gaussians, one per node, hence smooth; they stand for those of a continuous law as long
    as the standard deviation of the noise from t to that end exceeds the spacing of the nodes.

    Args:
        axes: nodes along each axis, increasing.
        p0: masses of the data end, shape of the grid.
        p1: masses of the other end.
        f: potential of the data end.
        g: potential of the other end.
        reference: scalar process with noise.
        iterations: that Sinkhorn took.
        errors: `Σ |marginal − p0|` after each of them.
    """

    axes: tuple[Tensor, ...]
    p0: Tensor
    p1: Tensor
    f: Tensor
    g: Tensor
    reference: ScalarReference
    iterations: int
    errors: tuple[float, ...]

    @classmethod
    def between(
        cls,
        log_p0: Callable[[Tensor], Tensor],
        log_p1: Callable[[Tensor], Tensor],
        reference: ScalarReference,
        axes: Sequence[Tensor],
        *,
        tolerance: float = 1e-12,
        limit: int = 10_000,
    ) -> GridBridge:
        """Solve the static problem between two densities on the nodes.

        The grid should reach six standard deviations beyond both laws widened by the reference's noise.

        Source: Cuturi 2013, Sinkhorn distances; Peyré and Cuturi 2019, Computational optimal transport, Sec. 4.4.

        Args:
            log_p0: log-density of the data end at rows of shape (B, d), as (B,), up to a constant.
            log_p1: that of the other end.
            reference: scalar process.
            axes: nodes along each of the d axes, increasing and evenly spaced.
            tolerance: `Σ |marginal − p0|` that ends the search.
            limit: iterations.

        Raises:
            ArgumentError: if the reference has no noise, an axis is uneven, or the tolerance is not met.
        """
        if reference.total == 0:
            raise ArgumentError("reference", "an entropic plan needs a reference with noise")
        lines = tuple(axis.to("cpu", torch.float64) for axis in axes)
        for line in lines:
            if not torch.allclose(line.diff(), line.diff().mean(), rtol=1e-9) or not bool(line[1] > line[0]):
                raise ArgumentError("axes", "must be evenly spaced in float64 and increasing")
        nodes = _nodes(lines)
        shape = tuple(len(line) for line in lines)
        log0, log1 = (p(nodes).double().reshape(shape) for p in (log_p0, log_p1))
        log0, log1 = (p - p.flatten().logsumexp(0) for p in (log0, log1))
        law = reference.transition(moment(0.0), moment(1.0))
        kernels = [_log_normal(line, law.Phi * line[:, None], law.Q) for line in lines]
        g, errors = torch.zeros_like(log1), list[float]()
        rows = _through(g, kernels)
        while not errors or errors[-1] > tolerance:
            if len(errors) == limit:
                raise ArgumentError("tolerance", f"{limit} iterations of Sinkhorn leave an error of {errors[-1]:.1e}")
            f = log0 - rows
            g = log1 - _through(f, [kernel.T for kernel in kernels])
            rows = _through(g, kernels)
            errors.append(float(((f + rows).exp() - log0.exp()).abs().sum()))
        return cls(lines, log0.exp(), log1.exp(), f, g, reference, len(errors), tuple(errors))

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def nodes(self) -> Tensor:
        """Points of the grid, shape (n, d), in the order of a flattened array over it."""
        return _nodes(self.axes)

    def _weights(self, x: Tensor, t: Tensor, towards: End) -> Tensor:
        """Logarithms of `e^g N(y_j; Phi x, R)` towards x1, of `e^f N(x; Phi x_i, P)` towards x0; shape (B, n)."""
        if towards == "x1":
            law, potential = self.reference.transition(t, moment(1.0)), self.g
            logs = [_log_normal(line, law.Phi * x[:, k, None], law.Q) for k, line in enumerate(self.axes)]
        else:
            law, potential = self.reference.transition(moment(0.0), t), self.f
            logs = [_log_normal(x[:, k, None], law.Phi * line, law.Q) for k, line in enumerate(self.axes)]
        total = logs[0]
        for more in logs[1:]:
            total = (total[:, :, None] + more[:, None, :]).flatten(1)
        return total + potential.flatten()

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split(x.to("cpu", torch.float64), max(1, CHUNK // self.f.numel())))

    def predict(self, x: Tensor, t: float | Tensor, towards: End) -> Tensor:
        """`E[X1 | X_t = x]` (t < 1) or `E[X0 | X_t = x]` (t > 0), shape (B, d)."""
        time, nodes = moment(t), self.nodes
        parts = [self._weights(part, time, towards).softmax(1) @ nodes for part in self._chunks(x)]
        return torch.cat(parts).to(x)

    def potential(self, x: Tensor, t: float | Tensor, towards: End) -> Tensor:
        """`ln φ_t` (towards x1, t < 1) or `ln φ̂_t` (towards x0, t > 0), float64, shape (B,)."""
        time = moment(t)
        return torch.cat([self._weights(part, time, towards).logsumexp(1) for part in self._chunks(x)])

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`ln p_t = ln φ_t + ln φ̂_t` for 0 < t < 1, float64, shape (B,)."""
        return self.potential(x, t, "x1") + self.potential(x, t, "x0")

    def drift(self, x: Tensor, t: float | Tensor, towards: End = "x1") -> Tensor:
        """`b_f` towards x1 for t < 1, `b_b` as executed towards x0 for t > 0; rows x of shape (B, d)."""
        time, end = moment(t), self.predict(x, t, towards)
        return self.reference.b_f(x, time, end) if towards == "x1" else self.reference.b_b(x, time, end)

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`∇ ln p_t = (b_f + b_b) / g²` for 0 < t < 1."""
        both = self.drift(x, t, "x1") + self.drift(x, t, "x0")
        return both / expand_as(self.reference.g2(moment(t)), both)

    @property
    def ends(self) -> Joint:
        """Means, covariances and cross-covariance of the plan; only the moments are those of a normal law."""
        nodes = self.nodes
        later = self.predict(nodes, 0.0, "x1")
        p0, p1 = self.p0.flatten(), self.p1.flatten()
        m0, m1 = p0 @ nodes, p1 @ nodes
        x, y = nodes - m0, nodes - m1
        one, other = Normal(m0, (x.T * p0) @ x), Normal(m1, (y.T * p1) @ y)
        return Joint(one, other, (x.T * p0) @ (later - m1))

    def sample(self, n: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw n pairs of nodes `(x0, x1)` from the plan, float64, shape (n, d) each."""
        nodes = self.nodes
        x0 = nodes[_choose(self.p0.flatten()[None].expand(n, -1), draws.uniform("x0"))]
        chosen, first = [], 0
        u = draws.uniform("x1")
        for part in self._chunks(x0):
            weights = self._weights(part, moment(0.0), "x1").softmax(1)
            chosen.append(_choose(weights, u[first : first + len(part)]))
            first += len(part)
        return x0, nodes[torch.cat(chosen)]

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, draws: Draws) -> Tensor:
        """Exact paths at increasing times, shape (len(times), n, d): ends from the plan, then the pinned reference."""
        return sample_between(self.reference, *self.sample(n, draws), times, draws)


def _nodes(axes: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -(x - mean).square() / (2 * variance) - (2 * math.pi * variance).log() / 2


def _through(potential: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """`ln Σ_j exp(ln K_ij + potential_j)` over all axes, one after the other."""
    for axis, kernel in enumerate(kernels):
        lines = potential.movedim(axis, 0)
        flat = lines.reshape(len(lines), -1)
        width = max(1, CHUNK // kernel.numel())
        parts = [torch.logsumexp(kernel[:, :, None] + part, 1) for part in torch.split(flat, width, dim=1)]
        potential = torch.cat(parts, 1).reshape(len(kernel), *lines.shape[1:]).movedim(0, axis)
    return potential


def _choose(weights: Tensor, u: Tensor) -> Tensor:
    """One column for each row, with these weights and uniform numbers, int64."""
    steps = weights.cumsum(1)
    found = torch.searchsorted(steps / steps[:, -1:], u[:, None], right=True).squeeze(1)
    return found.clamp(max=weights.shape[1] - 1)
