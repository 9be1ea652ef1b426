"""Classifier-free guidance: a bridge made of a bridge that was trained with dropped conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentsb.bridge import Bridge, DenoisingBridge, End, State
from latentsb.conditioning import GUIDED
from latentsb.errors import CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss

__all__ = ["Guided", "GuidedDenoising"]


class Guided(Bridge):
    """A bridge whose drift is extrapolated from without to with its conditions, in every channel.

    `b = b_uncond + scale (b_cond − b_uncond)`; scale 1 is the bridge itself, 0 forgets the conditions. A guided
    evaluation costs two calls of the network; outside the interval it costs one. `Guided(bridge)` of a
    `DenoisingBridge` is a `GuidedDenoising`, hence a `DenoisingBridge`.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), Eq. 6; Kynkäänniemi et al. 2024 (Applying
    guidance in a limited interval).

    Args:
        bridge: trained with dropout of the conditions.
        scale: of the extrapolation.
        interval: smallest and largest sigma_eff of a denoising bridge, or t of another, at which it acts; everywhere
            if None.
        drop: names of the conditions that the unconditional evaluation does without.
    """

    def __new__(cls, bridge: Bridge, *args: Any, **kwargs: Any) -> Guided:
        """Take the type that has the capabilities of the inner bridge."""
        return super().__new__(GuidedDenoising if isinstance(bridge, DenoisingBridge) else cls)

    def __init__(
        self,
        bridge: Bridge,
        scale: float,
        interval: tuple[float, float] | None = None,
        drop: tuple[str, ...] = GUIDED,
    ) -> None:
        super().__init__()
        self.bridge, self.scale, self.interval, self.drop = bridge, scale, interval, drop
        self.ends, self.aligned, self.needs_images = bridge.ends, bridge.aligned, bridge.needs_images

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The inner bridge's start."""
        return self.bridge.start(batch, draws, towards)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """Guided drift."""
        return self._guide(t, cond, lambda c: self.bridge.drift(x, t, c, towards))

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Guided velocity; velocities are linear in drifts."""
        return self._guide(t, cond, lambda c: self.bridge.velocity(x, t, c))

    def diffusion(self, t: Tensor) -> Tensor:
        """The inner bridge's diffusion."""
        return self.bridge.diffusion(t)

    def project(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The inner bridge's projection."""
        return self.bridge.project(x, t, cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """The inner bridge's loss; guidance is a matter of sampling."""
        return self.bridge.loss(batch, draws)

    def _level(self, t: Tensor) -> Tensor:
        """What the interval is compared with, shape of t."""
        return t

    def _guide(self, t: Tensor, cond: Condition, evaluate: Callable[[Condition], Tensor]) -> Tensor:
        """Extrapolate what `evaluate` says of the conditions, in the rows where guidance acts."""
        if not any(name in cond for name in self.drop):
            raise CapabilityError(
                f"guidance needs one of the conditions {', '.join(self.drop)}; "
                f"these are present: {', '.join(cond.values) or 'none'}"
            )
        scale = torch.full_like(t, self.scale)
        if self.interval is not None:
            level, (low, high) = self._level(t), self.interval
            scale = torch.where((level >= low) & (level <= high), scale, torch.ones_like(t))
        with_them = evaluate(cond)
        if bool((scale == 1).all()):
            return with_them
        bare = cond
        for name in self.drop:
            bare = bare.drop(name)
        without = evaluate(bare)
        return without + expand_as(scale, without) * (with_them - without)


class GuidedDenoising(Guided, DenoisingBridge):
    """A guided bridge that denoises; made by `Guided`.

    Drift, velocity and score are affine in the prediction of x0 with coefficients that do not depend on the
    dropped conditions, so guiding any of them guides all of them alike.

    Source: Ho & Salimans 2022 (Classifier-free diffusion guidance), Eq. 6.
    """

    bridge: DenoisingBridge

    def __init__(
        self,
        bridge: DenoisingBridge,
        scale: float,
        interval: tuple[float, float] | None = None,
        drop: tuple[str, ...] = GUIDED,
    ) -> None:
        super().__init__(bridge, scale, interval, drop)
        self.reference, self.t_min, self.t_max = bridge.reference, bridge.t_min, bridge.t_max

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Guided prediction of x0; it may leave the range of the data where the scale is large."""
        return self._guide(t, cond, lambda c: self.bridge.denoise(x, t, c))

    def marginal(self, t: Tensor) -> Marginal:
        """The inner bridge's marginal."""
        return self.bridge.marginal(t)

    def _level(self, t: Tensor) -> Tensor:
        return self.bridge.marginal(t).sigma_eff
