"""State costs: what a path pays for where it is, beside what its control costs.

A cost is in nats per unit of time, on the scale on which the control costs `|u|²/(2σ²)`; a cost V of the other
convention, control `|u|²/2`, is `V/σ²` here. One of your own is one class:

    @STATE_COSTS.register("wall")
    @dataclass(frozen=True, kw_only=True)
    class Wall(StateCost):
        height: float = 10.0

        def __call__(self, x, t):
            return self.height * torch.sigmoid(10 * x[..., 0])

It must be differentiable in x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import ArgumentError
from latentsb.ranges import NonNegative, Positive, enforce
from latentsb.registry import Registry

__all__ = ["STATE_COSTS", "Congestion", "Obstacles", "Quadratic", "Shell", "StateCost"]


class StateCost(ABC):
    """A cost of being in a state at a time; a frozen dataclass."""

    @abstractmethod
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The cost of each state, in nats per unit of time.

        Args:
            x: shape (S, M, …): at each of S times M states, which together stand for the population at that time.
            t: the times, float64, shape (S,).

        Returns:
            Shape (S, M); differentiable in x.
        """


STATE_COSTS: Registry[StateCost] = Registry("state_cost", StateCost, homes=("latentsb.process.statecost",))


@STATE_COSTS.register("quadratic")
@dataclass(frozen=True, kw_only=True)
class Quadratic(StateCost):
    """`α |x|²`, which draws paths to the origin; the bridge is that of an Ornstein-Uhlenbeck process of rate `σ √(2α)`.

    Args:
        alpha: nats per unit of time and squared distance; zero costs nothing.
    """

    alpha: NonNegative = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """`α |x|²`."""
        return self.alpha * x.flatten(2).square().sum(2)


@STATE_COSTS.register("obstacles")
@dataclass(frozen=True, kw_only=True)
class Obstacles(StateCost):
    """Balls that one had better go around: `weight Σ_i sigmoid((r_i − |x − c_i|) / edge)`.

    Args:
        balls: centre and radius of each, `[x, y, …, r]`.
        weight: cost inside, in nats per unit of time.
        edge: width of the slope at the boundary, in units of the state.

    Raises:
        ArgumentError: if there is no ball, they are of several dimensions, or a radius is not positive.
    """

    balls: tuple[tuple[float, ...], ...] = ((0.0, 0.0, 1.0),)
    weight: NonNegative = 100.0
    edge: Positive = 0.1

    def __post_init__(self) -> None:
        enforce(self)
        if len({len(ball) for ball in self.balls}) != 1 or len(self.balls[0]) < 2:
            raise ArgumentError("balls", f"found {self.balls}, expected `[x, y, …, r]` each, all of one dimension")
        if min(ball[-1] for ball in self.balls) <= 0:
            raise ArgumentError("balls", f"radii must be positive, found {[ball[-1] for ball in self.balls]}")

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class.

        Raises:
            ArgumentError: if the states have another dimension than the balls.
        """
        return self.weight * torch.sigmoid(-self.gap(x) / self.edge).sum(-1)

    def inside(self, x: Tensor) -> Tensor:
        """Whether a state is in a ball, bool, shape (S, M)."""
        return (self.gap(x) < 0).any(-1)

    def gap(self, x: Tensor) -> Tensor:
        """Signed distance from each of N balls, negative inside, shape (S, M, N).

        Raises:
            ArgumentError: if the states have another dimension than the balls.
        """
        points, balls = x.flatten(2), torch.tensor(self.balls).to(x)
        if points.shape[2] != balls.shape[1] - 1:
            raise ArgumentError(
                "balls", f"are in {balls.shape[1] - 1} dimensions, but the states have {points.shape[2]}"
            )
        # The norm has no derivative at a centre; a millionth of the edge keeps it finite there.
        off = (points[:, :, None] - balls[:, :-1]).square().sum(-1)
        return (off + (1e-6 * self.edge) ** 2).sqrt() - balls[:, -1]


@STATE_COSTS.register("congestion")
@dataclass(frozen=True, kw_only=True)
class Congestion(StateCost):
    """Crowds cost: `weight E_y [2 / (|x − y|² / scale² + 1)]` over the others y of the population at the same time.

    The expectation is estimated by one other member each, the next in the row; the population is the block of pairs
    whose paths are fitted together. The others are taken as given: each path answers to the crowd, none is charged for
    what its presence costs the others.

    Source: Liu et al. 2024, Generalized Schrödinger bridge matching, Sec. 4.1 and Appendix D.

    Args:
        weight: in nats per unit of time.
        scale: distance at which the cost has fallen to half.
    """

    weight: NonNegative = 1.0
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        other = x.detach().roll(1, dims=1)
        return 2 * self.weight / ((x - other).flatten(2).square().sum(2) / self.scale**2 + 1)


@STATE_COSTS.register("shell")
@dataclass(frozen=True, kw_only=True)
class Shell(StateCost):
    """`weight D (|x|/√D − radius)²`: stay on the shell where latents live, and so go around the origin, not through it.

    In many dimensions normalised latents have a root mean square near one; the straight line between two of them has
    `√(1/2)` in its middle, where no autoencoder has seen any. Spherical interpolation is the geodesic of this shell.

    Args:
        weight: nats per unit of time, dimension and squared distance of the root mean square.
        radius: root mean square of a typical state.
    """

    weight: NonNegative = 1.0
    radius: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """See the class."""
        flat = x.flatten(2)
        level = (flat.square().mean(2) + 1e-12).sqrt()  # differentiable at the origin
        return self.weight * flat.shape[2] * (level - self.radius).square()
