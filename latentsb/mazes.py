"""A ball in a maze: geometry, the simulated environment, the waypoint controller and the tracking of plans.

The environment is PointMaze of gymnasium-robotics (MuJoCo), the extra `planning`; geometry needs no more than numpy. A
state is `(x, y, v_x, v_y)`, an action a force in [-1, 1]², and a step lasts 0.01. Cells are squares of side 1, and the
origin is the centre of the maze.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from latentsb.errors import ArgumentError, BackendError, nearest
from latentsb.randomness import numpy_generator

__all__ = ["MAZES", "STEP", "SUCCESS", "Episode", "Maze", "Simulator", "drive", "record", "tasks", "track"]

MAZES = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}
"""Words of the mazes, and their names in the environment's identifiers."""
STEP = 0.01
"""Duration of a step."""
SUCCESS = 0.45
"""Distance from the goal within which the environment counts it as reached."""
REACHED = 0.25
"""Distance at which the recorded controller turns to its next goal."""
JITTER = 0.25
"""Starts and goals lie within this of the centre of their cell in both directions, as in the environment's resets."""
GAIN, DAMPING, NOISE = 10.0, 1.0, 0.1


@dataclass(frozen=True, eq=False)
class Maze:
    """Walls of a maze.

    Args:
        walls: bool, shape (rows, columns); the border is wall.
    """

    walls: np.ndarray

    @cached_property
    def free(self) -> np.ndarray:
        """Row and column of every free cell, int64, shape (N, 2)."""
        return np.argwhere(~self.walls)

    def centre(self, cell: np.ndarray) -> np.ndarray:
        """Centres of cells (…, 2), as (x, y): columns run along x, rows against y."""
        rows, columns = self.walls.shape
        cell = np.asarray(cell)
        return np.stack([cell[..., 1] + 0.5 - columns / 2, rows / 2 - cell[..., 0] - 0.5], -1)

    def cell(self, point: np.ndarray) -> np.ndarray:
        """Row and column of the cells that hold points (…, 2), moved to the border where they lie outside."""
        rows, columns = self.walls.shape
        row = np.floor(rows / 2 - np.asarray(point)[..., 1]).clip(0, rows - 1)
        column = np.floor(np.asarray(point)[..., 0] + columns / 2).clip(0, columns - 1)
        return np.stack([row, column], -1).astype(np.int64)

    def inside(self, point: np.ndarray) -> np.ndarray:
        """Whether points (…, 2) lie inside walls, bool of shape (…)."""
        cell = self.cell(point)
        return np.asarray(self.walls[cell[..., 0], cell[..., 1]])

    def towards(self, goal: np.ndarray) -> np.ndarray:
        """The next cell on a shortest way to a cell, from every cell, by breadth-first search.

        Args:
            goal: row and column of a free cell.

        Returns:
            int64, shape (rows, columns, 2); the goal leads to itself, and so do cells that do not reach it.
        """
        following = np.stack(np.meshgrid(*map(np.arange, self.walls.shape), indexing="ij"), -1)
        seen, queue = {tuple(goal)}, deque([tuple(int(k) for k in goal)])
        while queue:
            row, column = queue.popleft()
            for at in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if at not in seen and not self.walls[at]:
                    seen.add(at)
                    following[at] = row, column
                    queue.append(at)
        return following


class Simulator:
    """The environment, moved state by state; a context manager.

    Args:
        name: one of `MAZES`.

    Raises:
        ArgumentError: if there is no such maze.
        BackendError: if gymnasium-robotics is not installed.
    """

    def __init__(self, name: str) -> None:
        if name not in MAZES:
            raise ArgumentError("maze", f"found '{name}', expected one of {', '.join(MAZES)}.{nearest(name, MAZES)}")
        try:
            import gymnasium
            import gymnasium_robotics
        except ImportError as error:
            raise BackendError("mazes need gymnasium-robotics: pip install 'latentsb[planning]'") from error
        gymnasium.register_envs(gymnasium_robotics)
        self.env: Any = gymnasium.make(f"PointMaze_{MAZES[name]}-v3").unwrapped
        self.point: Any = self.env.point_env
        self.maze = Maze(np.array(self.env.maze.maze_map) == 1)
        Path(self.env.tmp_xml_file_path).unlink(missing_ok=True)  # left behind by the package, once per environment

    def put(self, state: np.ndarray) -> None:
        """Place the ball, state of shape (4,)."""
        self.point.reset(seed=0)
        self.point.set_state(np.array(state[:2], dtype=np.float64), np.array(state[2:], dtype=np.float64))

    def step(self, action: np.ndarray) -> np.ndarray:
        """Apply a force of shape (2,) for one step; the new state, shape (4,)."""
        return np.array(self.point.step(action)[0])

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.env.close()


@dataclass(frozen=True, eq=False)
class Episode:
    """What became of one attempt.

    Args:
        states: shape (K + 1, 4), from the start to the goal, or to the limit.
        success: the ball came within 0.45 of the goal.
    """

    states: np.ndarray
    success: bool

    @property
    def steps(self) -> int:
        """Steps until the goal, or the limit."""
        return len(self.states) - 1


def force(target: np.ndarray, velocity: np.ndarray | float, state: np.ndarray) -> np.ndarray:
    """Proportional and damping force towards a point, `clip(10 (target − x) + (velocity − v), ±1)`."""
    return np.asarray(np.clip(GAIN * (target - state[:2]) + DAMPING * (velocity - state[2:]), -1, 1))


def waypoint(maze: Maze, following: np.ndarray, goal: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Where the controller heads: the centre of the next cell, or the goal in its own cell."""
    row, column = maze.cell(state[:2])
    at = following[row, column]
    return goal if (at == (row, column)).all() else maze.centre(at)


def record(name: str, steps: int, seed: int = 0, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """States of the waypoint controller on its way from goal to goal; it is never reset.

    Its force is `clip(10 (w − x) − v + 0.1 ε, ±1)` with w the centre of the next cell on a shortest way, or the goal in
    the last cell. Within 0.25 of the goal a new one is drawn.

    Args:
        name: of the maze.
        steps: to record.
        seed: of goals and noise.
        progress: called with numbers of steps just done.

    Returns:
        Arrays by name: states, float32 of shape (steps, 4), walls, starts, dt, maze, seed; and goals, their number.
    """
    rng = numpy_generator(seed, "maze", name)
    states = np.empty((steps, 4), dtype=np.float32)
    with Simulator(name) as simulator:
        maze, count = simulator.maze, 0
        state = np.concatenate([_place(maze, maze.free[rng.integers(len(maze.free))], rng), np.zeros(2)])
        simulator.put(state)
        goal, following = state[:2], maze.towards(maze.cell(state[:2]))
        for k in range(steps):
            states[k] = state
            while np.linalg.norm(state[:2] - goal) < REACHED:
                cell = maze.free[rng.integers(len(maze.free))]
                goal, following, count = _place(maze, cell, rng), maze.towards(cell), count + 1
            push = force(waypoint(maze, following, goal, state), 0.0, state)
            state = simulator.step(np.clip(push + NOISE * rng.standard_normal(2), -1, 1))
            if progress is not None and k % 1000 == 999:
                progress(1000)
    made = {"states": states, "walls": maze.walls, "starts": np.zeros(1, np.int64), "dt": np.array(STEP)}
    return made | {"maze": np.array(name), "seed": np.array(seed), "goals": np.array(count)}


def tasks(maze: Maze, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Starts at rest, shape (n, 4), and goals in other cells, shape (n, 2); the i-th depends on `(seed, i)` alone."""
    starts, goals = np.zeros((n, 4)), np.zeros((n, 2))
    for i in range(n):
        rng = numpy_generator(seed, "tasks", i)
        start, goal = maze.free[rng.choice(len(maze.free), 2, replace=False)]
        starts[i, :2], goals[i] = _place(maze, start, rng), _place(maze, goal, rng)
    return starts, goals


def _place(maze: Maze, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return maze.centre(cell) + rng.uniform(-JITTER, JITTER, 2)


def follow(simulator: Simulator, start: np.ndarray, goal: np.ndarray, limit: int, act: Any) -> Episode:
    """Act until the goal is reached or the limit is; `act(k, state)` is the force of step k."""
    simulator.put(start)
    states = [np.asarray(start, dtype=np.float64)]
    for k in range(limit):
        if np.linalg.norm(states[-1][:2] - goal) <= SUCCESS:
            break
        states.append(simulator.step(act(k, states[-1])))
    return Episode(np.stack(states), bool(np.linalg.norm(states[-1][:2] - goal) <= SUCCESS))


def drive(simulator: Simulator, start: np.ndarray, goal: np.ndarray, limit: int) -> Episode:
    """The waypoint controller, without noise; it knows the walls."""
    maze = simulator.maze
    following = maze.towards(maze.cell(goal))
    return follow(simulator, start, goal, limit, lambda _, s: force(waypoint(maze, following, goal, s), 0.0, s))


def track(simulator: Simulator, plan: np.ndarray, stride: int, goal: np.ndarray, limit: int) -> Episode:
    """Follow a plan with `clip(10 (x* − x) + (v* − v), ±1)`, made once and not again; at its end hold its last point.

    Args:
        simulator: of the maze.
        plan: states, shape (H, 4); the first one is where the ball starts.
        stride: steps between two points of the plan, which is interpolated linearly.
        goal: where it should come, shape (2,).
        limit: of the steps.
    """
    moments = np.arange(limit) + 1.0
    knots = stride * np.arange(len(plan))
    wanted = np.stack([np.interp(moments, knots, channel) for channel in plan.T], 1)
    wanted[moments > knots[-1], 2:] = 0.0
    return follow(simulator, plan[0], goal, limit, lambda k, s: force(wanted[k, :2], wanted[k, 2:], s))
