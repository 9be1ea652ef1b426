"""Our attention beside torch's own fused kernel, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from _harness import Report, alternate, estimate, limits, main, ratio
from torch import Tensor

from latentsb.networks.attention import attention

SIZES = {256: 16, 1024: 4}
HEADS, DIM = 6, 64


def heads(batch: int, tokens: int, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, shape (B, H, N, D)."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(batch, HEADS, tokens, dim, generator=generator).requires_grad_() for _ in range(3))
    return q, k, v


def forward_backward(call: Callable[..., Tensor], tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """One call and its gradients."""
    for tensor in tensors:
        tensor.grad = None
    call(*tensors).sum().backward()  # type: ignore[no-untyped-call]


def measure(quick: bool = False) -> Report:
    """Compare at 256 and 1,024 tokens."""
    report = Report("attention", "forward and backward of 6 heads of 64 numbers, fp32")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    for tokens, batch in ({16: 1} if quick else SIZES).items():
        given = heads(batch, tokens)
        rivals = {
            "latentsb": partial(forward_backward, attention, given),
            "torch": partial(forward_backward, F.scaled_dot_product_attention, given),
            "plain formula": partial(forward_backward, partial(attention, backend="math"), given),
        }
        seconds = alternate(rivals, repeats=2 if quick else 11, warmup=2)
        for name, found in seconds.items():
            report.add(f"{tokens} tokens: {name}", estimate([1e3 * s for s in found]), "ms")
        report.add(f"{tokens} tokens: latentsb / torch", ratio(seconds["latentsb"], seconds["torch"]), at_most=1.03)
        report.add(f"{tokens} tokens: plain formula / torch", ratio(seconds["plain formula"], seconds["torch"]))
    return report


if __name__ == "__main__":
    main(measure, __doc__)
