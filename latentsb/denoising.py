"""What preconditioned denoisers share: the call of the network, and a check of their training times."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.networks.base import Network
from latentsb.process.preconditioning import Coefficients
from latentsb.process.times import Timed, TimeDistribution
from latentsb.tensors import Condition

__all__ = ["denoised", "require_times"]


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


def require_times(times: TimeDistribution, bridge: Timed) -> None:
    """Make sure that a law of training times fits a bridge; call it when the bridge is built.

    Raises:
        ArgumentError: if it does not, such as noise levels that the bridge never has.
    """
    try:
        times.quantile(torch.tensor([0.5], dtype=torch.float64), bridge)
    except (ArgumentError, CapabilityError) as error:
        raise ArgumentError("times", str(error)) from error
