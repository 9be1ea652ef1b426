"""Contracts of solvers, time grids, starts and coordinates.

`Solver.run` integrates from a state along a grid. It is differentiable; callers that do not need gradients wrap it
in `torch.no_grad`. A solver draws noise only from the draws that it is given, forking once per step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, final

from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, End, State
from latentsb.errors import CapabilityError
from latentsb.networks.base import Network
from latentsb.randomness import Draws
from latentsb.registry import Registry, UnknownPartError

__all__ = [
    "COORDINATES",
    "GRIDS",
    "SOLVERS",
    "STARTS",
    "CallCount",
    "Coordinates",
    "Grid",
    "Record",
    "Solution",
    "Solver",
    "Start",
    "StepSolver",
    "counting",
    "denoising",
    "noisy",
    "one_way",
]

Memory = TypeVar("Memory")
Record = Callable[[State], None]
"""Called with the state after the start and after every step; trajectories are kept only by who asks for them."""


@dataclass(frozen=True)
class Solution:
    """What a solver returns.

    Args:
        x: the end of the trajectory, shape (B, *spec.shape).
        calls: evaluations of the bridge's networks per sample (two per guided evaluation).
        state: the last state, with the conditions that the trajectory ran under (z and x1, for example).
    """

    x: Tensor
    calls: int
    state: State


class Grid(ABC):
    """Says at which times a solver stops; a frozen dataclass.

    Towards x0 the last time is 0, so that every interval costs one evaluation of a first-order solver; in noise
    coordinates the last one is a denoising bridge's prediction of x0. Towards x1 a denoising bridge's grid begins at
    the smallest time at which its denoiser may be asked.
    """

    @abstractmethod
    def times(self, bridge: Bridge, steps: int, towards: End = "x0") -> Tensor:
        """`steps + 1` times in the order of travel, float64, on the CPU, all inside [0, 1]."""


class Start(ABC):
    """How a trajectory of a denoising bridge leaves t = 1, where a pinned state carries no noise yet."""

    @abstractmethod
    def enter(self, bridge: DenoisingBridge, state: State, t: Tensor, draws: Draws) -> State:
        """The state at the grid's first time t <= 1."""


class Coordinates(ABC):
    """The plane in which an ODE is stepped: a clock and a position, and how fast the position moves by that clock."""

    @abstractmethod
    def clock(self, bridge: Bridge, t: Tensor) -> Tensor:
        """The clock at t, float64, shape ().

        Raises:
            CapabilityError: if the bridge does not have these coordinates.
        """

    @abstractmethod
    def time(self, bridge: Bridge, clock: Tensor) -> Tensor:
        """The time at which the clock shows this, float64, shape (); inverse of `clock` on [t_min, t_max]."""

    @abstractmethod
    def position(self, bridge: Bridge, state: State) -> Tensor:
        """The state's position, shape of `state.x`."""

    @abstractmethod
    def state(self, bridge: Bridge, position: Tensor, t: Tensor, like: State) -> State:
        """The state that has this position at t; inverse of `position`."""

    @abstractmethod
    def slope(self, bridge: Bridge, state: State) -> Tensor:
        """`d position / d clock` along the probability-flow ODE, shape of `state.x`; costs one evaluation."""


class Solver(ABC):
    """An algorithm that follows a bridge; a frozen dataclass of its settings."""

    @abstractmethod
    def run(
        self, bridge: Bridge, state: State, draws: Draws, towards: End = "x0", record: Record | None = None
    ) -> Solution:
        """Follow the bridge from a state to the other end; `record` is called after the start and each step.

        Raises:
            CapabilityError: if the bridge lacks what this solver needs.
        """


class StepSolver(Solver, Generic[Memory]):
    """A solver that visits the times of a grid one after the other.

    Attributes:
        steps: intervals of the grid.
        grid: where they lie.
        start: how a denoising bridge leaves t = 1.
    """

    steps: int
    grid: Grid
    start: Start

    @abstractmethod
    def begin(self, bridge: Bridge, state: State, towards: End) -> Memory:
        """Look at the bridge and the first state of the grid; return what a multistep method remembers.

        Raises:
            CapabilityError: if this solver cannot follow the bridge towards that end.
        """

    @abstractmethod
    def step(
        self, bridge: Bridge, state: State, s: Tensor, draws: Draws, towards: End, memory: Memory
    ) -> tuple[State, Memory]:
        """One step from `state.t` to `s`."""

    @final
    def run(
        self, bridge: Bridge, state: State, draws: Draws, towards: End = "x0", record: Record | None = None
    ) -> Solution:
        """Visit the grid's times in order."""
        times = self.grid.times(bridge, self.steps, towards)
        with counting(bridge) as count:
            state = settle(bridge, self._enter(bridge, state, times[0], draws.fork("start"), towards), record)
            memory = self.begin(bridge, state, towards)
            for i, s in enumerate(times[1:]):
                state, memory = self.step(bridge, state, s, draws.fork(f"step {i}"), towards, memory)
                state = settle(bridge, state, record)
        return Solution(state.x, count.calls, state)

    def _enter(self, bridge: Bridge, state: State, t: Tensor, draws: Draws, towards: End) -> State:
        """Bring a state that stands at an end to the grid's first time."""
        if bool(state.t == t) or not isinstance(bridge, DenoisingBridge):
            return replace(state, t=t)
        there = bridge.marginal(t)
        if bool(there.a != 0) and "x1" not in state.cond:
            raise CapabilityError("a pinned bridge runs from a state whose conditions hold the other end as 'x1'")
        if towards == "x0":
            return self.start.enter(bridge, state, t, draws)
        # In y coordinates data is y = x0 at every small t, so nothing but the scale changes.
        return replace(state, x=there.from_y(state.x, state.cond.get("x1")), t=t)


class CallCount:
    """Evaluations of a bridge's networks since it was made; filled when `counting` ends."""

    calls: int = 0


@contextmanager
def counting(bridge: Bridge) -> Iterator[CallCount]:
    """Count the evaluations of every distinct network inside a bridge by the networks' own counters."""
    networks = [module for module in bridge.modules() if isinstance(module, Network)]
    before = sum(network.calls for network in networks)
    count = CallCount()
    yield count
    count.calls = sum(network.calls for network in networks) - before


def settle(bridge: Bridge, state: State, record: Record | None) -> State:
    """Bring a new state to where it may live and show it to the recorder."""
    state = replace(state, x=bridge.project(state.x, state.t, state.cond))
    if record is not None:
        record(state)
    return state


def denoising(bridge: Bridge, asker: str) -> DenoisingBridge:
    """The bridge, seen as a denoising one.

    Args:
        bridge: any.
        asker: who needs it, such as `solver 'dpmpp'`.

    Raises:
        CapabilityError: if it is not one.
    """
    if isinstance(bridge, DenoisingBridge):
        return bridge
    try:
        name = BRIDGES.word_of(bridge)
    except UnknownPartError:
        name = type(bridge).__name__
    raise CapabilityError(
        f"{asker} needs a DenoisingBridge; '{name}' is not one. Any bridge runs with the solvers 'euler', 'heun' and "
        f"'euler_maruyama' on the grid 'natural' in the coordinates 'natural'"
    )


def one_way(name: str, towards: End) -> None:
    """Refuse to run towards x1.

    Args:
        name: the solver's word.
        towards: the end asked for.

    Raises:
        CapabilityError: if it is x1.
    """
    if towards == "x1":
        raise CapabilityError(
            f"solver '{name}' runs towards x0 only; 'euler', 'heun', 'adaptive' and 'euler_maruyama' run both ways"
        )


def noisy(bridge: Bridge) -> bool:
    """Whether the bridge denoises and its process carries noise, so that noise levels are its natural clock."""
    return isinstance(bridge, DenoisingBridge) and bridge.reference.total > 0


SOLVERS: Registry[Solver] = Registry(
    "solver",
    Solver,
    homes=(
        "latentsb.solvers.ode",
        "latentsb.solvers.sde",
        "latentsb.solvers.exponential",
        "latentsb.solvers.unipc",
        "latentsb.solvers.hybrid",
        "latentsb.solvers.adaptive",
        "latentsb.solvers.direct",
    ),
)
GRIDS: Registry[Grid] = Registry("grid", Grid, homes=("latentsb.solvers.grid",))
STARTS: Registry[Start] = Registry("start", Start, homes=("latentsb.solvers.start",))
COORDINATES: Registry[Coordinates] = Registry("coordinates", Coordinates, homes=("latentsb.solvers.coordinates",))
