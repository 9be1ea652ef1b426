"""Laws in the plane that look like something, with their densities: moons, spirals, rings of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.oracles import GridBridge
from latentsb.process.references import Brownian

__all__ = ["LAWS", "PlaneLaw", "data_of", "solve"]

NODES = 400
"""Points that stand for a curve; their spacing is far below its width."""


@dataclass(frozen=True)
class PlaneLaw:
    """Evenly weighted round Gaussians around centres: points, or a curve.

    Args:
        centres: shape (K, 2).
        std: of each.
        recipe: YAML of the data of this law; `$N` and `$POINTSEED` are number and seed.
    """

    centres: Tensor
    std: float
    recipe: str

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at rows of shape (B, 2), shape (B,)."""
        squares = torch.cdist(x.double(), self.centres).square()
        logs = (-squares / (2 * self.std**2)).logsumexp(1)
        return logs - math.log(len(self.centres)) - math.log(2 * math.pi * self.std**2)

    def standard(self) -> PlaneLaw:
        """The same law, centred and scaled to a mean variance of one; its points are not those of the recipe."""
        centres = self.centres - self.centres.mean(0)
        scale = math.sqrt(float(centres.square().mean()) + self.std**2)
        return PlaneLaw(centres / scale, self.std / scale, "")

    @property
    def reach(self) -> float:
        """Half of the side of a square about the origin that holds all but 1e-6 of the law."""
        return float(self.centres.abs().max()) + 5 * self.std


def solve(x0: PlaneLaw, x1: PlaneLaw, sigma: float) -> GridBridge:
    """The Schrödinger bridge between two laws over Brownian motion, on a grid that resolves both.

    Args:
        x0: data end.
        x1: other end.
        sigma: of the reference.
    """
    reach = max(x0.reach, x1.reach)
    # Three nodes in two standard deviations: a sum over a Gaussian then errs by exp(−2 π² 1.5²), below 1e-19. Near an
    # end the noise must be wider than the spacing: sigma √t is from t = 0.0225 on.
    spacing = min(x0.std / 1.5, x1.std / 1.5, 0.15 * sigma)
    count = 1 + math.ceil(2 * reach / spacing)
    axis = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return GridBridge.between(x0.log_prob, x1.log_prob, Brownian(sigma=sigma), [axis, axis], tolerance=1e-8)


def _gaussian() -> PlaneLaw:
    centres = torch.zeros(1, 2, dtype=torch.float64)
    return PlaneLaw(centres, 1.0, "{name: gaussian, mean: [0.0, 0.0], n: $N, seed: $POINTSEED}")


def _moons(scale: float = 3.0, std: float = 0.2) -> PlaneLaw:
    angle = (torch.arange(NODES, dtype=torch.float64) + 0.5) * math.pi / NODES
    upper = scale * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    recipe = f"{{name: moons, scale: {scale}, std: {std}, n: $N, seed: $POINTSEED}}"
    return PlaneLaw(torch.cat([upper, -upper]), std, recipe)


def _swissroll(radius: float = 4.0, std: float = 0.2) -> PlaneLaw:
    angle = 1.5 * math.pi * (1 + 2 * (torch.arange(2 * NODES, dtype=torch.float64) + 0.5) / (2 * NODES))
    centres = radius * (angle / (4.5 * math.pi))[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return PlaneLaw(centres, std, f"{{name: swissroll, radius: {radius}, std: {std}, n: $N, seed: $POINTSEED}}")


def _eight_gaussians(radius: float = 5.0, std: float = 0.3) -> PlaneLaw:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    recipe = f"{{name: eight_gaussians, radius: {radius}, std: {std}, n: $N, seed: $POINTSEED}}"
    return PlaneLaw(radius * torch.stack([angle.cos(), angle.sin()], 1), std, recipe)


LAWS = {
    "gaussian": _gaussian(),
    "moons": _moons(),
    "swissroll": _swissroll(),
    "eight_gaussians": _eight_gaussians(),
}
"""The laws by the word of their data."""


def data_of(law: str, n: str, seed: str) -> str:
    """YAML of the data of a law.

    Args:
        law: one of `LAWS`.
        n: number of points, or the word for it.
        seed: likewise.
    """
    return LAWS[law].recipe.replace("$N", n).replace("$POINTSEED", seed)
