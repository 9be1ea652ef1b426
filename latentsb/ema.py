"""Moving averages of weights, in images, so that they do not depend on the batch size.

Two forms, both exact in continuous time: when the weights stay constant from `seen` to `seen + batch` images, the
update is the integral of the weighting over that interval, so halving the batch and doubling the steps changes
nothing but the path of the weights itself.

Source: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, Sec. 3.1 and App. C.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError, CheckpointError

__all__ = ["Average", "Ema", "HalfLife", "PowerFunction"]


class Average(ABC):
    """How the past is weighted."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the average's file, without suffix."""

    @abstractmethod
    def decay(self, seen: float, batch: float) -> float:
        """Weight that the old average keeps over the interval from `seen` to `seen + batch` images."""


@dataclass(frozen=True, kw_only=True)
class HalfLife(Average):
    """Exponential average; weights lose half of their influence in `images` images.

    While fewer than `images / ramp` images were seen, the half-life is `ramp · seen`, so that the random
    initialisation leaves no trace; there `decay = (seen / (seen + batch))^(ln 2 / ramp)`.

    Args:
        images: half-life, in images.
        ramp: largest half-life as a share of the images seen; 0 switches the warm-up off.
    """

    images: float
    ramp: float = 0.05

    def __post_init__(self) -> None:
        if not self.images > 0:
            raise ArgumentError("images", f"a half-life is positive, got {self.images}")
        if self.ramp < 0:
            raise ArgumentError("ramp", f"a share is not negative, got {self.ramp}")

    @property
    def label(self) -> str:
        """`ema-500000` for half a million images."""
        return f"ema-{self.images:.15g}"

    def decay(self, seen: float, batch: float) -> float:
        """`2^(−batch / images)` after the warm-up."""
        if self.ramp == 0:
            return float(0.5 ** (batch / self.images))
        ramp_end = self.images / self.ramp
        inside = min(seen + batch, ramp_end) - min(seen, ramp_end)
        outside = batch - inside
        kept = 0.5 ** (outside / self.images)
        if inside > 0:
            kept *= (seen / (seen + inside)) ** (math.log(2) / self.ramp)
        return float(kept)


@dataclass(frozen=True, kw_only=True)
class PowerFunction(Average):
    """Average with weights proportional to `τ^gamma` over the images τ seen so far; it has no scale of its own.

    `avg(t) = (γ+1)/t^(γ+1) ∫_0^t τ^γ θ(τ) dτ`; the relative width
    `σ_rel = sqrt(γ+1) / ((γ+2) sqrt(γ+3))` determines γ (Eq. 123 there, solved here as the cubic
    `(γ+2)²(γ+3) = (γ+1)/σ_rel²`).

    Args:
        width: σ_rel, in (0, 0.28]: the standard deviation of the weighting as a share of the training.
    """

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width <= 0.28:
            raise ArgumentError("width", f"a relative width lies in (0, 0.28], got {self.width}")

    @cached_property
    def gamma(self) -> float:
        """The exponent that belongs to the width."""
        inverse = self.width**-2
        roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
        return float(roots[np.abs(roots.imag) < 1e-9].real.max())

    @property
    def label(self) -> str:
        """`ema-power-0.1` for a width of 0.1."""
        return f"ema-power-{self.width:.6g}"

    def decay(self, seen: float, batch: float) -> float:
        """`(seen / (seen + batch))^(γ+1)`."""
        return float((seen / (seen + batch)) ** (self.gamma + 1))


class Ema:
    """Averages of the parameters and floating buffers of a module; other buffers are copied.

    Args:
        module: whose weights are averaged; its names must not change afterwards.
        averages: the forms, with different labels.

    Attributes:
        seen: images that each name has been trained on, so that a network whose turn comes late warms up then.
    """

    def __init__(self, module: nn.Module, averages: Sequence[Average]) -> None:
        self.averages = tuple(averages)
        if len({a.label for a in self.averages}) != len(self.averages):
            raise ArgumentError("ema", "two averages are the same")
        self.module = module
        self.values = {a.label: {k: v.detach().clone() for k, v in module.state_dict().items()} for a in self.averages}
        self._slots = _slots(module)
        self.seen = dict.fromkeys(module.state_dict(), 0)

    @torch.no_grad()
    def update(self, batch: int, trains: tuple[str, ...] = ("",)) -> None:
        """Take in the present weights after a step.

        Args:
            batch: images of the step.
            trains: prefixes of the names that the step trained; other averages stay as they are, and so does their
                count of images.
        """
        now = {k: held[key].detach() for k, held, key in self._slots if k.startswith(trains)}
        alike: dict[int, list[str]] = defaultdict(list)
        for name, value in now.items():
            if value.is_floating_point():
                alike[self.seen[name]].append(name)
            self.seen[name] += batch
        for average in self.averages:
            values = self.values[average.label]
            for seen, names in alike.items():
                weight = 1 - average.decay(seen, batch)
                torch._foreach_lerp_([values[k] for k in names], [now[k] for k in names], weight)
            for name, value in now.items():
                if not value.is_floating_point():
                    values[name].copy_(value)

    @contextmanager
    def applied(self, label: str) -> Iterator[None]:
        """The module with averaged weights; what it had before comes back at the end, buffers included."""
        own = self.module.state_dict()
        before = {k: v.clone() for k, v in own.items()}
        _copy(own, self.values[label])
        try:
            yield
        finally:
            _copy(own, before)

    def state(self, label: str) -> Mapping[str, Tensor]:
        """The averaged weights by name, as the module's `state_dict` names them."""
        return self.values[label]

    def keep(self, label: str) -> None:
        """Make the module's present weights and buffers this average's."""
        _copy(self.values[label], self.module.state_dict())

    def load(self, label: str, values: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises:
            CheckpointError: if names or shapes differ.
        """
        own = self.values[label]
        if wrong := own.keys() ^ values.keys():
            raise CheckpointError(f"average '{label}': {', '.join(sorted(wrong)[:5])} missing or unknown")
        for name, value in values.items():
            if own[name].shape != value.shape:
                raise CheckpointError(
                    f"average '{label}': {name} is {tuple(value.shape)}, not {tuple(own[name].shape)}"
                )
        _copy(own, values)


def _slots(module: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Where a module keeps each tensor of its state: its name, and the dictionary and key that hold it.

    `state_dict` finds the same by a walk that takes longer than a small network's forward pass.
    """
    found = {
        f"{prefix}.{key}" if prefix else key: (held, key)
        for prefix, part in module.named_modules(remove_duplicate=False)
        for held in (part._parameters, part._buffers)
        for key in held
    }
    return [(name, *found[name]) for name in module.state_dict()]


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)
