"""Attention: error against float64 and time of every backend that runs, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _gpu import Place, guarded
from _harness import Report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentsb.networks.attention import attention

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
TOKENS = {256: 64, 1024: 16, 4096: 4}
HEADS, DIMS = 16, (64, 72)


def attention_backends(report: Report, place: Place) -> None:
    """All backends at all sizes; the default must be within 2 % of the best."""
    calls = _calls(place)
    for tokens, batch in ({16: 1} if place.quick else TOKENS).items():
        for dim in (8,) if place.quick else DIMS:
            times: dict[str, float] = {}
            for name, call in calls.items():
                what = f"attention {tokens}×{dim}: {name}"
                guarded(
                    report, place, what, partial(_one, report, place, what, call, (batch, tokens, dim), name, times)
                )
            rivals = [t for name, t in times.items() if name not in ("auto", "plain formula")]
            if "auto" in times and rivals:
                report.add(f"attention {tokens}×{dim}: default / best", times["auto"] / min(rivals), at_most=1.02)


def _calls(place: Place) -> dict[str, Call]:
    def torch_with(context: Callable[[], AbstractContextManager[Any]]) -> Call:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with context():
                return F.scaled_dot_product_attention(q, k, v)

        return call

    calls: dict[str, Call] = {
        "auto": attention,
        "torch, free choice": torch_with(nullcontext),
        "torch, flash": torch_with(partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION)),
        "plain formula": partial(attention, backend="math"),
        "xformers": partial(attention, backend="xformers"),
    }
    if place.device == "cuda":
        from torch.nn.attention.flex_attention import flex_attention

        calls["torch, cuDNN"] = torch_with(partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION))
        calls["flex, compiled"] = torch.compile(flex_attention)
    return calls


def _one(
    report: Report,
    place: Place,
    what: str,
    call: Call,
    size: tuple[int, int, int],
    name: str,
    times: dict[str, float],
) -> None:
    batch, tokens, dim = size
    dtype = torch.bfloat16 if place.device == "cuda" else torch.float32
    generator = torch.Generator(place.device).manual_seed(0)
    shape = (batch, HEADS if not place.quick else 2, tokens, dim)
    given = [torch.randn(shape, device=place.device, dtype=dtype, generator=generator) for _ in range(4)]
    q, k, v = (tensor.requires_grad_() for tensor in given[:3])

    def step() -> list[Tensor]:
        out = call(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), given[3])]

    found = [tensor[:1].detach().double() for tensor in step()]
    exact = [tensor[:1].detach().double().requires_grad_() for tensor in (q, k, v)]
    out = attention(*exact, backend="math")
    wanted = [out.detach(), *torch.autograd.grad(out, exact, given[3][:1].double())]
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))
    report.add(f"{what}: error of output and gradients", error, at_most=2e-2 if dtype == torch.bfloat16 else 1e-5)
    times[name] = place.milliseconds(step, repeats=20)
    work = 7 * 2 * batch * shape[1] * tokens**2 * dim
    report.add(what, times[name], "ms")
    report.add(f"{what}: rate", work / times[name] / 1e9, "TFLOP/s")
