"""Trajectories in the plane as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["of_folders", "trajectories"]

SPAN = np.array([-1.0, 1.0])
COLOURS = ("tab:blue", "tab:orange")


def trajectories(panels: Mapping[str, np.ndarray], path: Path, *, columns: int | None = None) -> Path:
    """Draw trajectories, a panel for each set of them; blue where they begin, orange where they end.

    Args:
        panels: states by title, shape (times, n, 2), in the order of travel.
        path: of the PNG.
        columns: panels in a row; all if None.
    """
    from matplotlib.figure import Figure

    across = min(columns or len(panels), len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2.6 * across, 2.7 * down), dpi=100, layout="constrained")
    ends = np.concatenate([states[[0, -1]].reshape(-1, 2) for states in panels.values()])
    middle, reach = ends.mean(0), 1.3 * np.abs(ends - ends.mean(0)).max()
    for k, (title, states) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, k + 1)
        axes.plot(states[:, :, 0], states[:, :, 1], color="0.6", linewidth=0.4, alpha=0.6)
        for place, colour in zip((0, -1), COLOURS, strict=True):
            axes.scatter(states[place, :, 0], states[place, :, 1], s=5, color=colour, zorder=2)
        axes.set_title(title, fontsize=9)
        axes.set(xlim=middle[0] + reach * SPAN, ylim=middle[1] + reach * SPAN, aspect="equal")
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def of_folders(folders: Mapping[str, Path], path: Path, columns: int | None = None) -> Path | None:
    """The picture of trajectories that lie in folders as `paths.npy`; None where there are none."""
    found = {name: np.load(at / "paths.npy") for name, at in folders.items() if (at / "paths.npy").is_file()}
    return trajectories(found, path, columns=columns) if found else None
