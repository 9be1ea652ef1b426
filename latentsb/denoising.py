"""What preconditioned denoisers share: the call of the network, their loss, and a check of their training times."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.networks.base import Network
from latentsb.process.distances import Distance, Squared
from latentsb.process.marginal import Marginal
from latentsb.process.preconditioning import Coefficients, Preconditioning
from latentsb.process.reference import ScalarReference
from latentsb.process.times import Timed, TimeDistribution, Weight
from latentsb.randomness import Draws
from latentsb.tensors import Condition, expand_as
from latentsb.trainable import Loss

__all__ = ["Preconditioned", "denoised", "denoising_loss", "require_noise", "require_times"]


class Preconditioned(Timed, Protocol):
    """A bridge whose denoiser is a preconditioned network."""

    preconditioning: Preconditioning
    times: TimeDistribution
    weight: Weight

    def marginal(self, t: Tensor) -> Marginal:
        """Law of x_t given the ends."""

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x0 | x_t = x, cond]`."""


def denoised(network: Network, scales: Coefficients, x: Tensor, x1: Tensor | None, cond: Condition) -> Tensor:
    """`D = skip (x − shift x1) + out F(scale_in (x − shift x1), noise, cond)`; Karras et al. 2022, EDM, Eq. 7.

    Args:
        network: F; what stands beside the state (x1, a code, labels) reaches it through `cond`.
        scales: coefficients at the times of x, of shape () or (B,).
        x: state, shape (B, …).
        x1: other end of a pinned marginal, or None.
        cond: conditions of the network.

    Returns:
        Shape of x, in the wider dtype of x and the network's output.
    """
    output = network(scales.enter(x, x1), scales.noise.to(device=x.device, dtype=x.dtype), cond)
    return scales.leave(x, x1, output)


def denoising_loss(
    bridge: Preconditioned,
    x0: Tensor,
    x1: Tensor | None,
    cond: Condition,
    draws: Draws,
    distance: Distance = Squared(),
) -> Loss:
    """`w(t) |D(x_t, t) − x0|²`, mean over a sample, shape (B,); a time and a noise of its own for each row.

    Args:
        bridge: with its law of times, its weight and its denoiser.
        x0: data, shape (B, …).
        x1: other end of a pinned marginal, or None.
        cond: what the denoiser is given, x1 included where it is.
        draws: of the rows.
        distance: in the place of the square.
    """
    t = bridge.times.sample(bridge, draws)
    marginal = bridge.marginal(t)
    error = bridge.denoise(marginal.sample(x0, x1, draws.normal("noise", x0)), t, cond) - x0
    scales = bridge.preconditioning.coefficients(marginal, t)
    weight = bridge.weight.of(t, bridge, scales)
    return Loss(distance.of(error, expand_as(weight, error), expand_as(scales.out, error)).flatten(1).mean(1))


def require_noise(reference: ScalarReference) -> None:
    """Make sure that a diffusion ends in noise; call it when a bridge is built whose trajectories start from it.

    Raises:
        ArgumentError: if more than a hundredth of the data's variance is left at t = 1.
    """
    if reference.total < 100:
        raise ArgumentError(
            "reference",
            f"must end in noise: rho2 = {reference.total:.3g} at t = 1, expected at least 100 (a 'vp' needs "
            "beta_min + beta_d/2 >= 4.7, such as beta_d: 19.9)",
        )


def require_times(times: TimeDistribution, bridge: Timed) -> None:
    """Make sure that a law of training times fits a bridge; call it when the bridge is built.

    Raises:
        ArgumentError: if it does not, such as noise levels that the bridge never has.
    """
    try:
        times.quantile(torch.tensor([0.5], dtype=torch.float64), bridge)
    except (ArgumentError, CapabilityError) as error:
        raise ArgumentError("times", str(error)) from error
