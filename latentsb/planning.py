"""Plans of a trained planner, and what becomes of them in the maze they were trained for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentsb.data.record import Recorded
from latentsb.data.source import Source
from latentsb.data.subset import whole
from latentsb.data.trajectories import Trajectories
from latentsb.errors import CapabilityError, DataError
from latentsb.experiment import Experiment
from latentsb.mazes import Episode, Maze, Simulator, drive, tasks, track
from latentsb.outputs import make, protocol, write_json
from latentsb.randomness import Draws
from latentsb.run import Run
from latentsb.solvers.base import Solver, StepSolver
from latentsb.tensors import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Outcome", "animate", "evaluate_plans", "plans", "write_evaluation"]

Progress = Callable[[int], None]
PATIENCE = 2
"""An episode ends after so many durations of a plan."""
CONTROLLER, LINE = "waypoint controller", "straight line"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the plans of one kind.

    Args:
        name: of the kind.
        calls: network calls for each plan; None where there is no network.
        success: of each episode, bool of shape (N,).
        inside: share of each plan's points that lie inside walls, shape (N,); of the controller, of its way.
        steps: of each episode until its end.
    """

    name: str
    calls: int | None
    success: np.ndarray
    inside: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, name: str, calls: int | None, episodes: Sequence[Episode], inside: np.ndarray) -> Outcome:
        """Gather episodes."""
        success = np.array([episode.success for episode in episodes])
        return cls(name, calls, success, inside, np.array([episode.steps for episode in episodes]))

    def row(self, beside: Outcome) -> dict[str, Any]:
        """Means with standard errors, and the paired difference of success to another kind's on the same tasks."""
        gap = self.success.astype(float) - beside.success
        return {
            "plan": self.name,
            "calls": self.calls,
            "success": mean_of(self.success),
            "inside": mean_of(self.inside),
            "steps": mean_of(self.steps),
            f"success beyond the {beside.name}": mean_of(gap),
            "episodes": {"success": self.success.astype(int).tolist(), "inside": self.inside.round(4).tolist()},
        }


def mean_of(values: np.ndarray) -> dict[str, float]:
    """Mean and its standard error over episodes."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "error": spread / math.sqrt(len(values))}


def trajectories_of(source: Source) -> Trajectories:
    """The source, if it is recorded motion; of a run, the file that it was trained on.

    Raises:
        CapabilityError: if it is not.
        DataError: if that file is gone, or another now.
    """
    source = whole(source.same if isinstance(source, Recorded) else source)
    if not isinstance(source, Trajectories):
        raise CapabilityError("plan needs a run on the data 'trajectories'")
    return source


@torch.no_grad()
def plans(
    experiment: Experiment, lines: Tensor, solver: Solver, seeds: Sequence[int], trace: list[Tensor] | None = None
) -> tuple[Tensor, int]:
    """A plan for each line from a start to a goal.

    Args:
        experiment: with trained weights.
        lines: from `Trajectories.query`, shape (B, channels, horizon), in the units of the data.
        solver: that makes the plans.
        seeds: one per plan, each of which depends on its own alone.
        trace: where the states on the way are kept, decoded, if given.

    Returns:
        Plans of the shape of `lines`, on the CPU, and network calls for each.
    """
    autoencoder, draws = experiment.autoencoder, Draws.seeds(seeds)
    batch = Batch(torch.arange(len(lines)), x1=autoencoder.encode(lines.to(experiment.device)))
    start = experiment.bridge.start(batch, draws.fork("start"))
    record = None if trace is None else lambda state: trace.append(autoencoder.decode(state.x).cpu())
    solved = solver.run(experiment.bridge, start, draws.fork("solve"), record=record)
    return autoencoder.decode(solved.x).cpu(), solved.calls


def evaluate_plans(
    experiment: Experiment,
    *,
    calls: Sequence[int] = (1, 4, 16),
    episodes: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Plans of several numbers of calls in closed loop, beside the straight line and the waypoint controller.

    All meet the same starts and goals, so that differences are paired. A plan is made once, and then tracked for at
    most twice its duration.

    Args:
        experiment: a planner with trained weights.
        calls: network calls for each plan.
        episodes: tasks.
        seed: of tasks and plans.
        progress: called with numbers of episodes just finished, of `(len(calls) + 2) episodes`.

    Raises:
        CapabilityError: if the run is no planner, or its solver has no steps.
        DataError: if the recording does not say in which maze it was made.
    """
    source, solver = trajectories_of(experiment.source), experiment.solver
    if not isinstance(solver, StepSolver):
        raise CapabilityError("plan needs a solver with steps, such as 'posterior'")
    if source.maze is None:
        raise DataError(f"{source.path}: does not say in which maze it was recorded")
    limit, done = PATIENCE * source.steps, progress or (lambda _: None)
    with Simulator(source.maze) as simulator:
        starts, goals = tasks(simulator.maze, episodes, seed)
        driven = []
        for start, goal in zip(starts, goals, strict=True):
            driven.append(drive(simulator, start, goal, limit))
            done(1)
        ways = np.array([simulator.maze.inside(episode.states[:, :2]).mean() for episode in driven])
        lines = source.query(torch.from_numpy(starts).float(), torch.from_numpy(goals).float())
        found = [Outcome.of(CONTROLLER, None, driven, ways), attempt(simulator, source, LINE, None, lines, goals, done)]
        for count in calls:
            chosen = with_steps(solver, count)
            made, used = plans(experiment, lines, chosen, range(seed, seed + episodes))
            found.append(attempt(simulator, source, "plan", used, made, goals, done))
    return found


def with_steps(solver: StepSolver[Any], steps: int) -> Solver:
    """The solver with another number of steps."""
    return replace(solver, steps=steps)  # type: ignore[type-var]


def attempt(
    simulator: Simulator,
    source: Trajectories,
    name: str,
    calls: int | None,
    made: Tensor,
    goals: np.ndarray,
    done: Progress,
) -> Outcome:
    """Track plans, shape (N, channels, horizon)."""
    points = made.transpose(1, 2).double().numpy()
    episodes = []
    for plan, goal in zip(points, goals, strict=True):
        episodes.append(track(simulator, plan, source.stride, goal, PATIENCE * source.steps))
        done(1)
    return Outcome.of(name, calls, episodes, simulator.maze.inside(points[..., :2]).mean(1))


def write_evaluation(
    run: Run,
    experiment: Experiment,
    *,
    calls: Sequence[int] = (1, 4, 16),
    episodes: int = 200,
    seed: int = 0,
    picture: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate, and write a JSON of all episodes and an animation of six into `plans/` of the run.

    Returns:
        The content of the JSON, and `picture`, the path of the animation.
    """
    outcomes = evaluate_plans(experiment, calls=calls, episodes=episodes, seed=seed, progress=progress)
    make(run.path / "plans")
    stem = run.path / "plans" / f"step-{experiment.step:09d}"
    facts = protocol(run, experiment, episodes=episodes, seed=seed, rows=[o.row(outcomes[1]) for o in outcomes])
    write_json(stem.with_suffix(".json"), facts)
    if not picture:
        return facts
    save(animate(experiment, max(calls), seed=seed), stem.with_suffix(".gif"))
    return facts | {"picture": stem.with_suffix(".gif")}


# ---------------------------------------------------------------- pictures

CELL, GAP = 18, 8
INK, PAPER, WALL, WAY, GOAL = (20, 20, 20), (255, 255, 255), (190, 190, 190), (31, 119, 180), (214, 39, 40)
FRAMES = 32
"""Of the part in which the balls move."""


def animate(experiment: Experiment, calls: int, *, count: int = 6, seed: int = 0) -> list[Image]:
    """How plans come about, call by call, and how balls then follow them; `count` tasks beside each other."""
    source, solver = trajectories_of(experiment.source), experiment.solver
    if source.maze is None or not isinstance(solver, StepSolver):
        raise CapabilityError("an animation needs a maze, and a solver with steps")
    with Simulator(source.maze) as simulator:
        starts, goals = tasks(simulator.maze, count, seed)
        lines = source.query(torch.from_numpy(starts).float(), torch.from_numpy(goals).float())
        trace: list[Tensor] = []
        made, _ = plans(experiment, lines, with_steps(solver, calls), range(seed, seed + count), trace)
        points = made.transpose(1, 2).double().numpy()
        limit = PATIENCE * source.steps
        episodes = [track(simulator, p, source.stride, g, limit) for p, g in zip(points, goals, strict=True)]
        shown = [sheet(simulator.maze, state, starts, goals, None) for state in (lines, *trace)]
        last = max(episode.steps for episode in episodes)
        for k in np.linspace(0, last, FRAMES).astype(int):
            balls = np.stack([episode.states[min(k, episode.steps), :2] for episode in episodes])
            shown.append(sheet(simulator.maze, made, starts, goals, balls))
    return shown


def sheet(maze: Maze, made: Tensor, starts: np.ndarray, goals: np.ndarray, balls: np.ndarray | None) -> Image:
    """One frame: a panel for each task."""
    from PIL import Image, ImageDraw

    rows, columns = maze.walls.shape
    width = columns * CELL + GAP
    frame = Image.new("RGB", (len(made) * width - GAP, rows * CELL), PAPER)
    draw = ImageDraw.Draw(frame)
    for i in range(len(made)):

        def at(point: np.ndarray, left: int = i * width) -> tuple[float, float]:
            return left + (point[0] + columns / 2) * CELL, (rows / 2 - point[1]) * CELL

        for row, column in np.argwhere(maze.walls):
            x, y = i * width + column * CELL, row * CELL
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=WALL)
        draw.line([at(point) for point in made[i, :2].T.numpy()], fill=WAY, width=2)
        for point, colour in ((starts[i, :2] if balls is None else balls[i], INK), (goals[i], GOAL)):
            x, y = at(point)
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    return frame.quantize(16)


def save(frames: Sequence[Image], path: Path) -> None:
    """Write an animation that runs for ever; plan and end are shown for a second each."""
    times = [120] * len(frames)
    times[-FRAMES - 1], times[-1] = 1000, 1000
    frames[0].save(path, save_all=True, append_images=list(frames[1:]), duration=times, loop=0, optimize=True)
