"""Which versions, libraries and kernels there are, before anything is timed."""

from __future__ import annotations

import importlib
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from _gpu import Place, guarded, say
from _harness import Report
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentsb.networks.attention import available

PACKAGES = ("torch", "triton", "diffusers", "timm", "accelerate", "xformers", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def environment(report: Report, place: Place) -> None:
    """Note versions, xformers' state, the kernels of torch's attention that run, and the machine's limits."""
    say(report, "python", platform.python_version())
    for name in PACKAGES:
        try:
            say(report, f"version of {name}", version(name))
        except PackageNotFoundError:
            say(report, f"version of {name}", "not installed")
    say(report, "CUDA of torch", torch.version.cuda)
    say(report, "cuDNN that is loaded", torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None)
    if place.device == "cuda":
        say(report, "card", torch.cuda.get_device_name())
    guarded(report, place, "xformers", partial(_xformers, report))
    dtype = torch.bfloat16 if place.device == "cuda" else torch.float32
    for found in available(place.device, dtype):
        say(report, f"latentsb's backend {found.backend}", f"{'runs' if found.usable else 'not'}: {found.reason}")
    for name in KERNELS:
        guarded(report, place, f"kernel {name} of torch", partial(_kernel, report, place, name))
    guarded(report, place, "limits", partial(limits, report, place))


def _xformers(report: Report) -> None:
    package = importlib.import_module("xformers")
    say(report, "xformers: compiled library loaded", getattr(package, "_has_cpp_library", None))
    fmha = importlib.import_module("xformers.ops.fmha")
    for operator in (*fmha.ALL_FW_OPS, *fmha.ALL_BW_OPS):
        say(report, f"xformers operator {operator.NAME}", "available" if operator.is_available() else "not available")


def _kernel(report: Report, place: Place, name: str) -> None:
    dtype = torch.bfloat16 if place.device == "cuda" else torch.float32
    q = torch.randn(2, 4, 64, 64, device=place.device, dtype=dtype, requires_grad=True)
    with sdpa_kernel(getattr(SDPBackend, name)):
        F.scaled_dot_product_attention(q, q, q).sum().backward()  # type: ignore[no-untyped-call]
    say(report, f"kernel {name} of torch", "runs")


def limits(report: Report, place: Place) -> None:
    """Matrix products in bf16 and copies: what every other figure is read against."""
    size = 64 if place.quick else 8192 if place.device == "cuda" else 1024
    a = torch.randn(size, size, device=place.device, dtype=torch.bfloat16)
    rate = 2 * size**3 / place.milliseconds(lambda: a @ a) / 1e9
    report.add("limit: bf16 matrix product", rate, "TFLOP/s")
    source = torch.empty(size * size * 4, device=place.device)
    target = torch.empty_like(source)
    moved = 8 * source.numel() / place.milliseconds(lambda: target.copy_(source)) / 1e6
    report.add("limit: copy, read and write", moved, "GB/s")
