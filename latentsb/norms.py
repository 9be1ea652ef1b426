"""Group normalisation with statistics that were measured beforehand, so that the tiles of an image share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["sharing"]


@contextmanager
def sharing(module: nn.Module, measure: Callable[[], object]) -> Iterator[None]:
    """Within, every group norm of a module uses the mean and the variance that it met in one measuring call.

    The call runs through all norms in their order, so each of them sees what the shared norms before it give.

    Args:
        module: whose norms are meant.
        measure: calls the module once on something small that stands for the whole.
    """
    norms = [inner for inner in module.modules() if isinstance(inner, nn.GroupNorm)]
    if not norms:
        yield
        return
    found: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}

    def note(norm: nn.Module, args: Any) -> None:
        assert isinstance(norm, nn.GroupNorm)
        found[norm] = statistics(norm, args[0])

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        measure()
    finally:
        for hook in hooks:
            hook.remove()
    try:
        for norm, (mean, variance) in found.items():
            norm.forward = partial(normalised, norm, mean, variance)  # type: ignore[method-assign]
        yield
    finally:
        for norm in found:
            del norm.forward


def statistics(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel's group, each of shape (B C,)."""
    groups = x.reshape(len(x), norm.num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=2, correction=0)
    each = norm.num_channels // norm.num_groups
    return mean.repeat_interleave(each, 1).flatten(), variance.repeat_interleave(each, 1).flatten()


def normalised(norm: nn.GroupNorm, mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    """`(x − mean)/sqrt(variance + eps)`, then the norm's own scale and shift."""
    weight, bias = (value.repeat(len(x)) if norm.affine else None for value in (norm.weight, norm.bias))
    # The channels of all rows are those of one: torch's fastest way to scale and shift channels.
    rows = x.reshape(1, -1, *x.shape[2:])
    return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=norm.eps).reshape(x.shape)
