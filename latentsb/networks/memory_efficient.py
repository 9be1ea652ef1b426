"""xformers' operator, kept out of compiled graphs; a file of its own, since the decorator imports torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["memory_efficient"]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def memory_efficient(load: Callable[[], Any], q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by xformers, whose layout is (B, N, H, D).

    Args:
        load: returns the module `xformers.ops`.
        q: queries, shape (B, H, N, D).
        k: keys, shape (B, H, M, D).
        v: values, shape (B, H, M, D).
        bias: added to the logits, shape (B, H, N, M), rows padded to a multiple of eight in memory.

    Returns:
        Shape (B, H, N, D).
    """
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    mixed: Tensor = load().memory_efficient_attention(*swapped, attn_bias=bias)
    return mixed.transpose(1, 2)
