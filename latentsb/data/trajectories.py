"""Trajectories: windows of recorded motion, and the straight lines between their ends."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.data.source import SOURCES, Items, Source
from latentsb.errors import ArgumentError, DataError
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Spec

__all__ = ["Trajectories", "straight"]


def straight(first: Tensor, goal: Tensor, horizon: int, duration: float) -> Tensor:
    """The straight line from a state to a position: constant velocity, `(goal − start)/duration`, with its sign.

    Its first point is the state itself, its own velocity included.

    Args:
        first: positions, then velocities, shape (B, 2 P).
        goal: positions, shape (B, P).
        horizon: number of points, at least 2.
        duration: of the whole way, in the unit of time of the velocities.

    Returns:
        Shape (B, 2 P, horizon).
    """
    start = first[:, : goal.shape[1]]
    share = torch.linspace(0, 1, horizon, dtype=first.dtype)
    place = start[..., None] + (goal - start)[..., None] * share
    speed = ((goal - start) / duration)[..., None].expand_as(place)
    line = torch.cat([place, speed], 1)
    line[..., 0] = first
    return line


@SOURCES.register("trajectories")
class Trajectories(Source):
    """Windows of recorded motion as x0, the straight lines between their ends as x1; shape (channels, horizon).

    The channels are positions, then as many velocities. Every window of `(horizon − 1) stride + 1` steps inside an
    episode is a sample, in the order of the recording. The x1 of a sample begins in its first state and ends in its
    last position: all that a planner is told, in the form of a trajectory.

    The file is a `.npz` with `states`, shape (T, channels), and, if there are several episodes, `starts`, the first
    step of each; `dt` is the duration of a step (1 if absent). `latentsb record medium` makes one.

    Args:
        path: of the file.
        horizon: points of a window.
        stride: steps between two points.

    Raises:
        DataError: if the file is missing or wrong, or holds no episode as long as a window.
    """

    two_sided = True
    paired = True

    def __init__(self, *, path: Path, horizon: Count = 64, stride: Count = 2) -> None:
        if horizon < 2:
            raise ArgumentError("horizon", f"found {horizon}, expected at least 2: a start and a goal")
        self.path, self.horizon, self.stride = Path(path), horizon, stride
        arrays = self._read_file()
        states = arrays["states"]
        self.states = torch.from_numpy(np.ascontiguousarray(states, dtype=np.float32))
        self.dt = float(arrays.get("dt", np.array(1.0)))
        self.maze = str(arrays["maze"]) if "maze" in arrays else None
        self.walls = arrays["walls"].astype(bool) if "walls" in arrays else None
        self.first = self._windows(arrays.get("starts", np.zeros(1, np.int64)))
        self.spec, self.cond = Spec((states.shape[1], horizon)), {}

    @property
    def positions(self) -> int:
        """Channels that are positions."""
        return self.spec.channels // 2

    @property
    def steps(self) -> int:
        """Steps from the first point of a window to its last."""
        return (self.horizon - 1) * self.stride

    def _read_file(self) -> dict[str, np.ndarray]:
        if not self.path.is_file():
            raise DataError(f"{self.path}: there is no such file; `latentsb record medium -o {self.path}` makes one")
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: not a readable .npz file ({error})") from error
        states = arrays.get("states")
        if states is None or states.ndim != 2 or states.shape[1] % 2 or states.dtype.kind != "f":
            found = "no array 'states'" if states is None else f"'states' of shape {states.shape} and {states.dtype}"
            raise DataError(f"{self.path}: has {found}, expected floats (T, 2 P): P positions, then P velocities")
        if not np.isfinite(states).all():
            raise DataError(f"{self.path}: 'states' are not all finite")
        return arrays

    def _windows(self, starts: np.ndarray) -> np.ndarray:
        """First step of every window."""
        ends = np.append(starts[1:], len(self.states)) - self.steps
        first = np.concatenate([np.arange(a, max(a, b), dtype=np.int64) for a, b in zip(starts, ends, strict=True)])
        if not len(first):
            raise DataError(
                f"{self.path}: no episode is as long as a window, (horizon − 1) stride + 1 = {self.steps + 1} steps"
            )
        return first

    def __len__(self) -> int:
        return len(self.first)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Gather windows, and the lines between their ends."""
        at = self.first[np.asarray(index)][:, None] + self.stride * np.arange(self.horizon)
        x0 = self.states[torch.from_numpy(at)].transpose(1, 2).contiguous()
        return Items(x0, self.query(x0[..., 0], x0[:, : self.positions, -1]))

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """The lines alone."""
        x1 = self.read(index).x1
        assert x1 is not None
        return x1

    def query(self, first: Tensor, goal: Tensor) -> Tensor:
        """The x1 of a plan that is wanted: from a state (B, 2 P) to a position (B, P) in the time of a window."""
        return straight(first, goal, self.horizon, self.steps * self.dt)

    def fingerprint(self) -> dict[str, Any]:
        """sha256 of the file, and the windows."""
        with self.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"data": "trajectories", "sha256": digest, "horizon": self.horizon, "stride": self.stride}
