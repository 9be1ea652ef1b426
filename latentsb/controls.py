"""Controls of samplers: how a network and the scores of the two ends make up a drift in units of g.

Every control is `u = clip(network(x, t)) + g(t) clip(scale(t)) clip(guide(x, t))` with a guide that is known before
training. The network begins at zero and the scale at `begin`, so training begins with the guide alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from latentsb.networks.base import Network
from latentsb.networks.embeddings import TimeEmbedding
from latentsb.networks.mlp import MLP
from latentsb.process.pathspace import Sampler
from latentsb.ranges import Positive
from latentsb.registry import Build, Registry
from latentsb.targets.base import Target
from latentsb.tensors import Condition, Spec, expand_as

__all__ = ["CONTROLS", "Control", "Guided", "Langevin", "Lerp", "Plain", "Potential", "PriorScore", "Score"]

PERCEPTRON: Build[Network] = cast("Build[Network]", partial(MLP, width=64, depth=2))


class Control(nn.Module, ABC):
    """A drift in units of g. Built from the target and the processes that it belongs to.

    Args:
        target: at t = 0.
        sampler: the processes.
    """

    def __init__(self, target: Target, sampler: Sampler) -> None:
        super().__init__()
        self.target, self.sampler = target, sampler

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Control at states x of shape (n, …) and times in [0, 1] of shape () or (n,); shape of x."""


CONTROLS: Registry[Control] = Registry("control", Control, homes=("latentsb.controls",))


@CONTROLS.register("plain")
class Plain(Control):
    """A network alone; for comparison, since without any score training rarely finds separated modes.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's.
    """

    def __init__(
        self, target: Target, sampler: Sampler, *, network: Build[Network] = PERCEPTRON, clip: Positive = 250.0
    ) -> None:
        super().__init__(target, sampler)
        self.network = network(target.spec, {}, target.spec)
        self.clip = clip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`clip(network)`."""
        time = t.to(device=x.device, dtype=x.dtype).expand(len(x))
        found: Tensor = self.network(x, time, Condition())
        return found.clamp(-self.clip, self.clip)


class Guided(Plain):
    """A network beside a guide.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's, and of the guide's.
        begin: value of the learned scale of the guide before training.
    """

    def __init__(
        self,
        target: Target,
        sampler: Sampler,
        *,
        network: Build[Network] = PERCEPTRON,
        clip: Positive = 250.0,
        begin: float = 1.0,
    ) -> None:
        super().__init__(target, sampler, network=network, clip=clip)
        self.time = TimeEmbedding(64)
        self.head = nn.Linear(64, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, begin)

    @abstractmethod
    def guide(self, x: Tensor, t: Tensor) -> Tensor:
        """What is known of the control in units of g, before it is multiplied by g; shape of x."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Network and guide."""
        # Whole paths come with few times, each of which stands many times in a row.
        times, place = torch.unique_consecutive(t.reshape(-1).to(x), return_inverse=True)
        scale: Tensor = self.head(torch.nn.functional.silu(self.time(times))).to(x)
        scale = scale[place].clamp(-self.clip, self.clip).reshape(-1, *(1,) * (x.ndim - 1))
        guide = self.guide(x, t).clamp(-self.clip, self.clip)
        own: Tensor = super().forward(x, t)
        return own + expand_as(self.sampler.g(t), x) * scale * guide


@CONTROLS.register("score")
class Score(Guided):
    """Network and `∇log ρ`, weakly at first: for processes that start in a point or a stationary law (PIS, DDS).

    Source: Zhang & Chen 2022; Richter & Berner 2024, App. on parametrisation.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's, and of the guide's.
        begin: value of the learned scale of the guide before training.
    """

    def __init__(
        self,
        target: Target,
        sampler: Sampler,
        *,
        network: Build[Network] = PERCEPTRON,
        clip: Positive = 250.0,
        begin: float = 0.01,
    ) -> None:
        super().__init__(target, sampler, network=network, clip=clip, begin=begin)

    def guide(self, x: Tensor, t: Tensor) -> Tensor:
        """`∇log ρ`."""
        return self.target.score(x)


@CONTROLS.register("lerp")
class Lerp(Guided):
    """Network and the interpolated score `t ∇log prior + (1 − t) ∇log ρ`: an annealed score at first (DIS).

    Source: Richter & Berner 2024, App. on parametrisation; Máté & Fleuret 2023.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's, and of the guide's.
        begin: value of the learned scale of the guide before training.
    """

    def guide(self, x: Tensor, t: Tensor) -> Tensor:
        """The interpolated score."""
        late = expand_as(t, x)
        return late * self.sampler.prior_score(x) + (1 - late) * self.target.score(x)


@CONTROLS.register("prior_score")
class PriorScore(Guided):
    """Network and the prior's part of the interpolated score, `t ∇log prior`: for the learned drift towards t = 1.

    Source: Richter & Berner 2024, App. on parametrisation.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's, and of the guide's.
        begin: value of the learned scale of the guide before training.
    """

    def guide(self, x: Tensor, t: Tensor) -> Tensor:
        """`t ∇log prior`."""
        return expand_as(t, x) * self.sampler.prior_score(x)


@CONTROLS.register("langevin")
class Langevin(Guided):
    """Network and what makes the process Langevin dynamics at first, `(½ g² ∇log ρ − base)/g`.

    Source: Richter & Berner 2024, official code.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time.
        clip: largest absolute value of each number of the network's, and of the guide's.
        begin: value of the learned scale of the guide before training.
    """

    def guide(self, x: Tensor, t: Tensor) -> Tensor:
        """`½ ∇log ρ − base/g²`."""
        return self.target.score(x) / 2 - self.sampler.base(x, t) / expand_as(self.sampler.g(t).square(), x)


@CONTROLS.register("potential")
class Potential(Plain):
    """`u = g ∇φ` of a scalar network φ: the optimum of every sampler with a fixed comparison is of this form.

    Source: Richter & Berner 2024, App. on parametrisation.

    Args:
        target: at t = 0.
        sampler: the processes.
        network: from state and time, to one number.
        clip: largest absolute value of each number of the gradient's.
    """

    def __init__(
        self, target: Target, sampler: Sampler, *, network: Build[Network] = PERCEPTRON, clip: Positive = 250.0
    ) -> None:
        super().__init__(target, sampler, network=lambda x, cond, out: network(x, cond, Spec((1,))), clip=clip)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """`g clip(∇φ)`."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if again and x.requires_grad else x.detach().requires_grad_()
            time = t.to(device=x.device, dtype=x.dtype).expand(len(x))
            height = cast(Tensor, self.network(point, time, Condition())).sum()
            (slope,) = torch.autograd.grad(height, point, create_graph=again)
        return expand_as(self.sampler.g(t), x) * slope.clamp(-self.clip, self.clip)
