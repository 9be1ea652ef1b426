"""Endpoints of bridges that end in noise: which x1 a code is decoded from.

In a bridge that is not pinned the code does not determine x1. Any of these may be chosen for a trained bridge, since
training knows none of them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, EncodingBridge, State
from latentsb.errors import CapabilityError
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.solvers.base import Solver
from latentsb.solvers.ode import Heun
from latentsb.tensors import Condition, expand_as

__all__ = ["ENDPOINTS", "Decoded", "Endpoint", "EndpointBridge", "Inferred", "Random", "Zero"]


class Endpoint(ABC):
    """A way to x1; a frozen dataclass.

    Attributes:
        needs_data: whether x1 carries what the code does not; where there is no x0 (new samples, new codes, a
            decoding of the code alone) the bridge then takes `random`.
    """

    needs_data: bool = False

    @abstractmethod
    def x1(self, bridge: DenoisingBridge, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Tensor:
        """The state at t = 1.

        Args:
            bridge: not pinned.
            cond: its conditions, the code z among them, shape (B, Z).
            x0: the data that the code belongs to, shape (B, *spec.shape), or None.
            draws: of the same rows, or None.

        Returns:
            Shape (B, *spec.shape).

        Raises:
            CapabilityError: if it needs data or draws, and there are none.
        """


ENDPOINTS: Registry[Endpoint] = Registry("endpoint", Endpoint, homes=("latentsb.endpoints",))


class EndpointBridge(EncodingBridge):
    """An encoding bridge that ends in noise, and lets choose how x1 is found.

    Attributes:
        chosen: how.
    """

    chosen: Endpoint

    def choose(self, endpoint: Endpoint) -> None:
        """Find x1 in this way from now on."""
        self.chosen, self.inverts = endpoint, endpoint.needs_data

    def endpoint(self, cond: Condition, x0: Tensor | None = None, draws: Draws | None = None) -> Condition:
        """x1 as chosen; `random` where that needs data and there is none."""
        choice = Random() if self.chosen.needs_data and x0 is None else self.chosen
        return cond.with_(x1=choice.x1(self, cond, x0, draws))

    def choosing(self, endpoint: Endpoint) -> Self:
        """This bridge with another endpoint; both have the same weights."""
        other = copy.copy(self)
        other.choose(endpoint)
        return other


@ENDPOINTS.register("inferred")
@dataclass(frozen=True, kw_only=True)
class Inferred(Endpoint):
    """The data, carried along the probability-flow ODE to t = 1 with its own code: the inverse of decoding.

    Together with z it keeps all of x0, up to the solver's error; z alone does not. `{name: euler, grid: {name:
    uniform}}` is the published reversed DDIM. Where the solver's grid ends before t = 1, the state is enlarged to the
    spread of t = 1, which is what the start `noise` undoes.

    Source: Preechakul et al. 2022, Diffusion autoencoders, Eq. 8; Song et al. 2021, DDIM.

    Args:
        solver: of the ODE, one that runs both ways: `heun`, `euler`, `adaptive`.
    """

    needs_data = True
    solver: Solver = Heun(steps=50)

    def x1(self, bridge: DenoisingBridge, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Tensor:
        """The end of the trajectory."""
        if x0 is None:
            raise CapabilityError("the endpoint 'inferred' needs the data that the code belongs to")
        start = State(x0, torch.zeros((), dtype=torch.float64), cond)
        ended = self.solver.run(bridge, start, draws or Draws.seeds(range(len(x0))), "x1").state
        growth = bridge.marginal(_last()).std / bridge.marginal(ended.t).std
        return expand_as(growth, ended.x) * ended.x


@ENDPOINTS.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Endpoint):
    """Noise, `N(0, α_1² ρ²_1)`: a draw from `p(x0 | z)`, whose squared error is twice that of the mean.

    Source: Preechakul et al. 2022, Diffusion autoencoders, Sec. 5.1.
    """

    def x1(self, bridge: DenoisingBridge, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Tensor:
        """Drawn."""
        if draws is None:
            raise CapabilityError("the endpoint 'random' needs draws")
        nothing = _nothing(bridge, cond)
        return bridge.marginal(_last()).sample(nothing, None, draws.normal("x1", nothing))


@ENDPOINTS.register("zero")
@dataclass(frozen=True, kw_only=True)
class Zero(Endpoint):
    """Zero: the ODE then ends at the centre of `p(x0 | z)`, its mean if it is Gaussian and its median in one dimension.

    What the decoded endpoint of a bridge autoencoder does, up to the signal that is left at t = 1. No state of the
    training has so little noise, so a network extrapolates here.

    Source: closed form.
    """

    def x1(self, bridge: DenoisingBridge, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Tensor:
        """Zeros."""
        return _nothing(bridge, cond)


@ENDPOINTS.register("decoded")
@dataclass(frozen=True, kw_only=True)
class Decoded(Endpoint):
    """The network's own estimate without noise, `α_1 D(0, 1, z)`: `zero`, about the mean of x0 instead of about zero.

    One call. Of a Gaussian of variance s² the ODE then misses the mean by `(s²/(s² + σ²))^(3/2)` of it, and from `zero`
    by `(s²/(s² + σ²))^(1/2)`, with σ the noise per signal at t = 1.

    Source: closed form.
    """

    def x1(self, bridge: DenoisingBridge, cond: Condition, x0: Tensor | None, draws: Draws | None) -> Tensor:
        """The signal of the estimate."""
        x = bridge.denoise(_nothing(bridge, cond), _last(), cond)
        return bridge.marginal(_last()).mean(x, None)


def _last() -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _nothing(bridge: DenoisingBridge, cond: Condition) -> Tensor:
    """Zeros of as many states as there are codes."""
    return bridge.ends.spec.zeros(len(cond["z"]), cond["z"].device)
