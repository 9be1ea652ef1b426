"""Mazes: geometry by itself; the controller and the tracking of plans in the simulated environment."""

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from latentsb.data.trajectories import Trajectories
from latentsb.errors import ArgumentError
from latentsb.mazes import Maze, Simulator, drive, record, tasks, track

WALLS = np.array([[int(c) for c in row] for row in ("111111", "100011", "111001", "100001", "111111")]) == 1


def test_centres_and_cells_are_inverse_and_x_runs_right_and_y_up():
    maze = Maze(WALLS)
    assert np.array_equal(maze.cell(maze.centre(maze.free)), maze.free)
    assert maze.centre(np.array([0, 0])).tolist() == [-2.5, 2.0]
    assert maze.centre(np.array([4, 5])).tolist() == [2.5, -2.0]
    rng = np.random.default_rng(0)
    cells = np.argwhere(np.ones_like(WALLS))[rng.integers(WALLS.size, size=200)]
    points = maze.centre(cells) + rng.uniform(-0.499, 0.499, (200, 2))
    assert np.array_equal(maze.cell(points), cells)
    assert np.array_equal(maze.inside(points), WALLS[cells[:, 0], cells[:, 1]])
    assert maze.inside(np.array([99.0, 0.0]))  # beyond the border


def test_following_the_next_cell_takes_as_many_steps_as_the_shortest_way():
    maze = Maze(WALLS)
    number = {tuple(cell): k for k, cell in enumerate(maze.free)}
    graph = np.zeros((len(number), len(number)))
    for (row, column), k in number.items():
        for at in ((row + 1, column), (row, column + 1)):
            if at in number:
                graph[k, number[at]] = graph[number[at], k] = 1
    distance = shortest_path(graph, unweighted=True)
    for goal in maze.free:
        following = maze.towards(goal)
        for cell in maze.free:
            at, steps = tuple(cell), 0
            while at != tuple(goal):
                after = tuple(following[at])
                assert not WALLS[after]
                assert abs(after[0] - at[0]) + abs(after[1] - at[1]) == 1
                at, steps = after, steps + 1
            assert steps == distance[number[tuple(cell)], number[tuple(goal)]]


def test_tasks_depend_on_their_own_number():
    maze = Maze(WALLS)
    starts, goals = tasks(maze, 30, seed=5)
    fewer = tasks(maze, 7, seed=5)
    assert np.array_equal(starts[:7], fewer[0])
    assert np.array_equal(goals[:7], fewer[1])
    assert not maze.inside(starts[:, :2]).any()
    assert not maze.inside(goals).any()
    assert (maze.cell(starts[:, :2]) != maze.cell(goals)).any(1).all()
    assert not np.array_equal(tasks(maze, 7, seed=6)[1], fewer[1])


@pytest.fixture(scope="module")
def simulator():
    pytest.importorskip("gymnasium_robotics", reason="the simulated maze needs the extra 'planning'")
    with Simulator("medium") as made:
        yield made


def test_the_controller_arrives_and_its_way_is_a_plan_that_arrives_where_the_line_hits_walls(simulator, tmp_path):
    starts, goals = tasks(simulator.maze, 12, seed=0)
    stride, lines, plans = 2, [], []
    for start, goal in zip(starts, goals, strict=True):
        driven = drive(simulator, start, goal, 400)
        assert driven.success
        assert not simulator.maze.inside(driven.states[:, :2]).any()
        plan = np.concatenate([driven.states[::stride], driven.states[-1:]])
        plans.append(track(simulator, plan, stride, goal, 800).success)
        blend = np.linspace(0, 1, 64)[:, None]
        line = np.concatenate([start[:2] + blend * (goal - start[:2]), np.tile((goal - start[:2]) / 1.26, (64, 1))], 1)
        line[0] = start
        lines.append((track(simulator, line, stride, goal, 252).success, simulator.maze.inside(line[:, :2]).any()))
    assert all(plans)
    arrived, blocked = np.array(lines).T
    assert arrived[~blocked].all()  # nothing stands in the way
    assert not arrived[blocked].all()


def test_a_state_is_put_and_moves_as_newton_says(simulator):
    centre = simulator.maze.centre(simulator.maze.free[0])
    simulator.put(np.array([*centre, 0.0, 0.0]))
    for _ in range(5):
        state = simulator.step(np.array([1.0, 0.0]))
    assert state[0] > centre[0]
    assert state[2] > 0
    assert state[1] == pytest.approx(centre[1], abs=1e-9)
    simulator.put(np.array([*centre, 0.0, -0.5]))
    assert simulator.step(np.zeros(2))[1] == pytest.approx(centre[1] - 0.005, abs=1e-4)


def test_recordings_repeat_and_stay_out_of_walls(simulator, tmp_path):
    made, again, other = record("medium", 1500, 1), record("medium", 1500, 1), record("medium", 1500, 2)
    assert np.array_equal(made["states"], again["states"])
    assert not np.array_equal(made["states"], other["states"])
    assert int(made["goals"]) >= 5
    assert not Maze(made["walls"]).inside(made["states"][:, :2]).any()
    for name, arrays in (("a", made), ("b", again)):
        np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
    first, second = (Trajectories(path=tmp_path / f"{name}.npz") for name in "ab")
    assert first.fingerprint() == second.fingerprint()
    assert (first.maze, first.dt, len(first)) == ("medium", 0.01, 1500 - 126)
    # Steps of the recording are those of the clock: displacement is velocity times dt, away from contacts.
    moved = np.diff(made["states"][:, :2], axis=0) / 0.01
    assert np.median(np.abs(moved - made["states"][1:, 2:])) < 1e-2


def test_an_unknown_maze_is_told():
    with pytest.raises(ArgumentError, match=r"'medum'.*medium"):
        Simulator("medum")
