"""Coordinates in which the probability-flow ODE is stepped."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from latentsb.bridge import Bridge, State
from latentsb.errors import CapabilityError
from latentsb.process.times import time_of_sigma
from latentsb.solvers.base import COORDINATES, Coordinates, denoising, noisy
from latentsb.tensors import expand_as

__all__ = ["NaturalCoordinate", "NoiseCoordinate", "TimeCoordinate"]


@COORDINATES.register("time")
@dataclass(frozen=True, kw_only=True)
class TimeCoordinate(Coordinates):
    """The state itself by the clock t: `dx/dt = (b_f − b_b)/2`; for every bridge.

    Source: Song et al. 2021 (Score-based generative modeling through SDEs), Eq. 13.
    """

    def clock(self, bridge: Bridge, t: Tensor) -> Tensor:
        """`t`."""
        return t

    def time(self, bridge: Bridge, clock: Tensor) -> Tensor:
        """`t`."""
        return clock

    def position(self, bridge: Bridge, state: State) -> Tensor:
        """`x`."""
        return state.x

    def state(self, bridge: Bridge, position: Tensor, t: Tensor, like: State) -> State:
        """`x` at t."""
        return replace(like, x=position, t=t)

    def slope(self, bridge: Bridge, state: State) -> Tensor:
        """The bridge's velocity."""
        return bridge.velocity(state.x, state.t, state.cond)


@COORDINATES.register("noise")
@dataclass(frozen=True, kw_only=True)
class NoiseCoordinate(Coordinates):
    """`y = (x − a x1)/b` by the clock sigma_eff: `dy/dsigma = (y − D)/sigma`; for denoising bridges.

    Source: Karras et al. 2022 (EDM), Eq. 3, in the bridge's coordinates.
    """

    def clock(self, bridge: Bridge, t: Tensor) -> Tensor:
        """`sigma_eff`, 0 at t = 0."""
        sigma = denoising(bridge, "coordinates 'noise'").marginal(t).sigma_eff
        if not bool(sigma.isfinite()):
            raise CapabilityError(
                f"coordinates 'noise' need a grid that begins where sigma_eff is finite; this one begins at "
                f"t = {float(t):g}. Use the grid 'loguniform' or 'karras'"
            )
        return sigma

    def time(self, bridge: Bridge, clock: Tensor) -> Tensor:
        """The time of a sigma_eff."""
        return time_of_sigma(denoising(bridge, "coordinates 'noise'"), clock.reshape(1))[0]

    def position(self, bridge: Bridge, state: State) -> Tensor:
        """`y`."""
        there = denoising(bridge, "coordinates 'noise'").marginal(state.t)
        return there.to_y(state.x, state.cond.get("x1"))

    def state(self, bridge: Bridge, position: Tensor, t: Tensor, like: State) -> State:
        """`x = b y + a x1` at t."""
        there = denoising(bridge, "coordinates 'noise'").marginal(t)
        return replace(like, x=there.from_y(position, like.cond.get("x1")), t=t)

    def slope(self, bridge: Bridge, state: State) -> Tensor:
        """`(y − D) / sigma_eff`."""
        y = self.position(bridge, state)
        x0 = denoising(bridge, "coordinates 'noise'").denoise(state.x, state.t, state.cond)
        return (y - x0) / expand_as(self.clock(bridge, state.t), y)


@COORDINATES.register("natural")
@dataclass(frozen=True, kw_only=True)
class NaturalCoordinate(Coordinates):
    """`noise` for denoising bridges with noise, `time` for all others."""

    def clock(self, bridge: Bridge, t: Tensor) -> Tensor:
        """Of the plane that suits the bridge."""
        return _plane(bridge).clock(bridge, t)

    def time(self, bridge: Bridge, clock: Tensor) -> Tensor:
        """Of the plane that suits the bridge."""
        return _plane(bridge).time(bridge, clock)

    def position(self, bridge: Bridge, state: State) -> Tensor:
        """Of the plane that suits the bridge."""
        return _plane(bridge).position(bridge, state)

    def state(self, bridge: Bridge, position: Tensor, t: Tensor, like: State) -> State:
        """Of the plane that suits the bridge."""
        return _plane(bridge).state(bridge, position, t, like)

    def slope(self, bridge: Bridge, state: State) -> Tensor:
        """Of the plane that suits the bridge."""
        return _plane(bridge).slope(bridge, state)


def _plane(bridge: Bridge) -> Coordinates:
    return NoiseCoordinate() if noisy(bridge) else TimeCoordinate()
