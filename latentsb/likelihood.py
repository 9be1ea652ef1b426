"""Log-likelihood of data under a bridge, by the change of variables along its probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, EncodingBridge, State
from latentsb.divergence import divergence, signs, units
from latentsb.errors import CapabilityError
from latentsb.laws import Density
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt, Positive, enforce
from latentsb.registry import UnknownPartError
from latentsb.solvers.adaptive import integrate
from latentsb.solvers.base import Coordinates, counting, noisy
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.tensors import Condition, expand_as

__all__ = ["Likelihood", "LogProb", "bits_per_dim", "has_density"]

Prior = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogProb:
    """Log-densities of a batch.

    Args:
        nats: `ln p(x0)` in the space of the bridge, float64, shape (B,).
        calls: evaluations of the bridge's networks per sample.
        exact: the divergence was computed, not estimated.
    """

    nats: Tensor
    calls: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """`ln p(x0) = ln p_1(x(1)) + ∫_0^1 div v dt` along the probability-flow ODE that begins in x0.

    The divergence is exact (one derivative per dimension) in few dimensions; in many it is estimated by
    `E[eps · (J^T eps)]` over signs eps, drawn once per trajectory and sample, so that the estimate of the
    log-likelihood is unbiased (Hutchinson).

    What is computed is the density at the bridge's smallest time t_min: that of the data with `sigma_eff(t_min)` of
    noise. Where the reference ends in noise, `p_1` is the normal law that samples start from, not the
    slightly wider one in which the data end: that lowers the mean of `ln p` by the divergence of the two laws,
    `|m|²/(2σ²) + Σ_i (λ_i/σ²)²/4` nats for data of mean m and covariance eigenvalues λ_i. With a `flow` from noise
    they are the same law.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), Sec. 4.3; Chen et al. 2018 (Neural ODEs),
    Eq. 8; Grathwohl et al. 2019 (FFJORD).

    Args:
        exact_up_to: largest number of dimensions in which the divergence is exact; 0 for never.
        probes: vectors of signs per sample where it is estimated.
        rtol: error per step of the ODE, relative.
        atol: error per step of the ODE.
    """

    exact_up_to: NonNegativeInt = 16
    probes: Count = 1
    rtol: Positive = 1e-5
    atol: Positive = 1e-5

    def __post_init__(self) -> None:
        enforce(self)

    @final
    def log_prob(self, bridge: Bridge, x0: Tensor, cond: Condition, draws: Draws) -> LogProb:
        """Log-densities of data.

        Args:
            bridge: whose other end has a density.
            x0: data, shape (B, *spec.shape).
            cond: conditions of the rows; the density is that of x0 given them.
            draws: of the same rows, for the probes.

        Raises:
            CapabilityError: if the law at t = 1 has no density, or depends on x0.
            Error: if the ODE cannot be solved to the tolerance.
        """
        first, last, plane, prior = _route(bridge)
        exact = x0[0].numel() <= self.exact_up_to
        probes = units(x0) if exact else [signs(x0, draws.fork(f"probe {i}")) for i in range(self.probes)]
        share = 1.0 if exact else 1.0 / self.probes
        begin = State(x0, first, cond)
        inward = x0.new_zeros(len(x0), dtype=torch.float64)
        if isinstance(bridge, DenoisingBridge):
            b = bridge.marginal(first).b
            begin = State(expand_as(b, x0) * x0, first, cond)
            if isinstance(plane, TimeCoordinate):
                inward = inward + x0[0].numel() * float(b.log())

        def field(clock: Tensor, both: Tensor) -> Tensor:
            position = both[:, :-1].reshape(x0.shape)
            t = plane.time(bridge, clock)
            slope, spread = divergence(
                lambda at: plane.slope(bridge, plane.state(bridge, at, t, begin)), position, probes
            )
            return torch.cat([slope.flatten(1), share * spread[:, None]], dim=1)

        start = torch.cat([plane.position(bridge, begin).flatten(1), x0.new_zeros(len(x0), 1)], dim=1)
        span = plane.clock(bridge, first), plane.clock(bridge, last)
        with counting(bridge) as count, torch.no_grad():
            end = integrate(field, start, span, rtol=self.rtol, atol=self.atol)
        nats = prior(end[:, :-1].reshape(x0.shape)) + end[:, -1].double() + inward
        return LogProb(nats, count.calls, exact)


def bits_per_dim(nats: Tensor, dims: int, volume: float = 0.0) -> Tensor:
    """`−(ln p + volume) / (dims ln 2)`.

    Args:
        nats: `ln p` of latents, shape (B,).
        dims: numbers in a sample.
        volume: `ln |d latent / d sample|` over all dimensions, where bits are counted in the sample's own units.
    """
    return -(nats + volume) / (dims * math.log(2))


def has_density(bridge: Bridge) -> None:
    """Make sure that a bridge gives data a density.

    Raises:
        CapabilityError: if the law at t = 1 has no density, or depends on x0.
    """
    _route(bridge)


def _route(bridge: Bridge) -> tuple[Tensor, Tensor, Coordinates, Prior]:
    """First and last time, the coordinates between them, and the log-density at the last."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if len(bridge.ways) < 2:
        raise CapabilityError(f"a likelihood needs both drifts of a bridge; '{_name(bridge)}' has one")
    if not isinstance(bridge, DenoisingBridge):
        law = bridge.ends.x1
        if not isinstance(law, Density):
            raise CapabilityError(
                f"a likelihood needs a law with a density at t = 1; '{_name(bridge)}' knows that law by samples only"
            )
        return zero, one, TimeCoordinate(), lambda x: law.log_prob(x).double()
    if isinstance(bridge, EncodingBridge) or bool(bridge.marginal(one).a != 0):
        raise CapabilityError(
            f"a likelihood needs a law with a density at t = 1; '{_name(bridge)}' ends in an x1 that belongs to each "
            "x0. Bridges from noise have one: flow, score"
        )
    first = torch.tensor(bridge.t_min, dtype=torch.float64)
    last = torch.tensor(bridge.t_max, dtype=torch.float64)
    there = bridge.marginal(last)
    plane: Coordinates = NoiseCoordinate() if noisy(bridge) else TimeCoordinate()
    return first, last, plane, lambda x: _log_normal(x, float(there.sigma_eff if noisy(bridge) else there.std))


def _name(bridge: Bridge) -> str:
    try:
        return BRIDGES.word_of(bridge)
    except UnknownPartError:
        return type(bridge).__name__


def _log_normal(x: Tensor, std: float) -> Tensor:
    """Log-density of `N(0, std² I)` in float64, shape (B,)."""
    flat = x.flatten(1).double()
    return -(flat / std).square().sum(1) / 2 - flat.shape[1] * (math.log(std) + math.log(2 * math.pi) / 2)
