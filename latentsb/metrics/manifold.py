"""Precision and recall of samples, density and coverage: who lies among whose nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Manifold", "manifold"]

ROWS = 1024
"""Distances of so many samples to all others are held at once."""


class Manifold(NamedTuple):
    """Four shares; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, made: Tensor, *, near: int = 3, wide: int = 5) -> Manifold:
    """Precision, recall, density and coverage.

    With `B_k(r)` the ball about a real feature r that reaches to its k-th nearest other real one:

    * precision: share of samples in at least one `B_near(r)`; recall: the same with the two sets exchanged;
    * density: `Σ_s #{r: s ∈ B_wide(r)} / (wide · samples)`; coverage: share of real ones with a sample in `B_wide(r)`.

    As in the authors' code the ball has its border in precision and recall, and has it not in density and coverage.

    All depend on the sizes of the sets; figures are compared at equal ones.

    Source: Kynkäänniemi et al. 2019, Improved precision and recall metric; Naeem et al. 2020, Reliable fidelity and
    diversity metrics.

    Args:
        real: features, shape (N, F).
        made: of samples, shape (M, F).
        near: k of precision and recall, < N and M.
        wide: k of density and coverage, < N.

    Raises:
        ValueError: if there are no more features than neighbours.
    """
    if len(real) <= max(near, wide) or len(made) <= near:
        raise ValueError(f"{len(real)} real and {len(made)} made features are too few for {max(near, wide)} neighbours")
    real, made = real.double(), made.double()
    close, far = _radii(real, (near, wide))
    (own,) = _radii(made, (near,))
    inside = torch.zeros(len(made), dtype=torch.bool)
    counts = torch.zeros(len(made))
    reached, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for first in range(0, len(made), ROWS):
        rows = slice(first, first + ROWS)
        apart = torch.cdist(made[rows], real)
        inside[rows] = (apart <= close).any(1)
        within = apart < far
        counts[rows] = within.sum(1).float()
        covered |= within.any(0)
        reached |= (apart <= own[rows, None]).any(0)
    return Manifold(
        float(inside.double().mean()),
        float(reached.double().mean()),
        float(counts.double().mean() / wide),
        float(covered.double().mean()),
    )


def _radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Distance of each row to its k-th nearest other row, for each k."""
    found = []
    for first in range(0, len(x), ROWS):
        apart = torch.cdist(x[first : first + ROWS], x)
        places = torch.arange(first, min(first + ROWS, len(x)))
        apart[torch.arange(len(places)), places] = torch.inf
        nearest = apart.topk(max(neighbours), dim=1, largest=False).values
        found.append(torch.stack([nearest[:, k - 1] for k in neighbours]))
    return list(torch.cat(found, dim=1))
