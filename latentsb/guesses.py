"""First guesses of a plan: what stands at the other end of a planning bridge, given start and goal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.registry import Registry
from latentsb.tensors import Spec

__all__ = ["GUESSES", "GaussianGuess", "Guess", "LineGuess", "RegressedGuess"]


class Guess(nn.Module, ABC):
    """A law of trajectories given start and goal.

    Args:
        spec: shape (channels, horizon) of a trajectory.
        mask: of the entries that are known, bool of that shape.
    """

    def __init__(self, spec: Spec, mask: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.places = mask.flatten().nonzero().flatten()

    @abstractmethod
    def sample(self, line: Tensor, draws: Draws) -> Tensor:
        """Draw guesses, without gradient.

        Args:
            line: straight lines from the starts to the goals, shape (B, channels, horizon); their known entries are
                those of the plan that is wanted.
            draws: of the rows.

        Returns:
            Shape of `line`.
        """

    def loss(self, x0: Tensor, line: Tensor) -> Tensor | None:
        """What trains the guess beside the bridge, shape (B,); None where there is nothing to train."""
        return None


GUESSES: Registry[Guess] = Registry("guess", Guess, homes=("latentsb.guesses",))


@GUESSES.register("line")
class LineGuess(Guess):
    """The straight line from start to goal at constant velocity, through whatever is between.

    Source: Srivastava 2024, Planning using Schrödinger bridge diffusion models, arXiv 2406.12458.
    """

    def sample(self, line: Tensor, draws: Draws) -> Tensor:
        """The line itself."""
        return line


@GUESSES.register("gaussian")
class GaussianGuess(Guess):
    """Standard normal noise, that knows neither start nor goal.

    Source: Srivastava 2024, Planning using Schrödinger bridge diffusion models, arXiv 2406.12458.
    """

    def sample(self, line: Tensor, draws: Draws) -> Tensor:
        """Noise."""
        return draws.normal("guess", line)


@GUESSES.register("regressed")
class RegressedGuess(Guess):
    """The mean of all plans with this start and goal, `E[x0 | start, goal]`, by a perceptron that is trained.

    `|G(known) − x0|²` is minimised beside the bridge's own loss; the bridge takes the guess as it is at each step and
    sends no gradient into it.

    Source: the mean squared error's minimiser.

    Args:
        spec: shape of a trajectory.
        mask: of the known entries.
        width: of the two hidden layers.
    """

    def __init__(self, spec: Spec, mask: Tensor, *, width: Count = 256) -> None:
        super().__init__(spec, mask)
        self.layers = nn.Sequential(
            nn.Linear(len(self.places), width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, spec.numel),
        )

    def mean(self, line: Tensor) -> Tensor:
        """G, shape of `line`; differentiable."""
        known = line.flatten(1)[:, self.places.to(line.device)]
        out: Tensor = self.layers(known)
        return line + out.reshape(line.shape)

    def sample(self, line: Tensor, draws: Draws) -> Tensor:
        """`G(known)`."""
        with torch.no_grad():
            return self.mean(line)

    def loss(self, x0: Tensor, line: Tensor) -> Tensor:
        """`|G(known) − x0|²`, mean over a trajectory."""
        return (self.mean(line) - x0).square().flatten(1).mean(1)
