"""Attention: one function, three backends, chosen per module and reported.

`sdpa` is torch's own fused attention, `xformers` that of the optional package, `math` the plain formula in at least
float32: the reference, and the only one with second-order gradients. No setting is process-wide.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import math
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.errors import ArgumentError, BackendError, nearest
from latentsb.networks.embeddings import rotate

__all__ = [
    "BACKENDS",
    "Attention",
    "AttentionBackend",
    "Availability",
    "Choice",
    "Dispatched",
    "attention",
    "available",
    "check_backend",
    "chosen",
    "set_attention",
]

AttentionBackend = Literal["auto", "sdpa", "xformers", "math"]
BACKENDS: tuple[str, ...] = get_args(AttentionBackend)

PROBE = (64, 64, 4, 64)
WHAT = {
    "sdpa": "torch's own, which chooses the kernel",
    "xformers": "installed, and accepts the tensors",
    "math": "the plain formula; slow, with gradients of any order",
}
INSTALL = "pip install 'latentsb[xformers]'"
_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The backend that runs and why it was taken."""

    name: str
    reason: str


class Availability(NamedTuple):
    """Whether a backend can run on a device, and why or why not."""

    backend: str
    usable: bool
    reason: str


class Signature(NamedTuple):
    """All that the choice depends on."""

    backend: str
    device: str
    dtype: torch.dtype
    queries: int
    keys: int
    heads: int
    dim: int
    masked: bool = False
    differentiable: bool = True
    deterministic: bool = False


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Softmax attention, `softmax(q k^T / sqrt(D) + mask) v`.

    Source: Vaswani et al. 2017, Eq. 1.

    Args:
        q: queries, shape (B, H, N, D).
        k: keys, shape (B, H, M, D).
        v: values, shape (B, H, M, D).
        mask: bool (true where a query may look) or added to the logits, broadcastable to (B, H, N, M). Every query
            must be allowed one key at least.
        backend: `auto` takes xformers on CUDA where it is installed and an operator accepts the tensors, else `sdpa`.
            Inside compiled code `auto` is `sdpa`, since xformers' operators would break the graph.

    Returns:
        Shape (B, H, N, D), dtype of v.

    Raises:
        BackendError: if a backend asked for by name cannot run on these tensors.
    """
    if torch.compiler.is_compiling():
        name = "sdpa" if backend == "auto" else backend
    else:
        name = chosen(q, k, v, mask=mask, backend=backend).name
    if name == "xformers":
        return _xformers_attention(q, k, v, mask)
    if name == "math":
        return _math_attention(q, k, v, mask)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chosen(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Choice:
    """The backend that `attention` takes for these tensors; each choice and its reason are logged once.

    Args:
        q: as in `attention`.
        k: as in `attention`.
        v: as in `attention`.
        mask: as in `attention`.
        backend: as in `attention`.

    Raises:
        BackendError: if a backend asked for by name cannot run on these tensors.
    """
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return _decide(
        Signature(
            backend,
            str(q.device),
            q.dtype,
            q.shape[2],
            k.shape[2],
            q.shape[1],
            q.shape[3],
            mask is not None,
            differentiable,
            torch.are_deterministic_algorithms_enabled(),
        )
    )


def check_backend(
    name: str, device: torch.device | str, dtype: torch.dtype = torch.float32, *, told: bool = True
) -> Choice:
    """Find out before training whether a backend can run.

    Args:
        name: one of `BACKENDS`.
        device: where the network will be.
        dtype: of the queries; bfloat16 under bf16 autocast.
        told: log the choice, once.

    Returns:
        What would run for 64 tokens and heads of 64 numbers.

    Raises:
        BackendError: if it cannot; says why and how to get it.
    """
    return (_decide if told else _choose)(Signature(name, str(device), dtype, *PROBE))


def available(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> list[Availability]:
    """Which backends can run here, with the reason for each.

    Args:
        device: CUDA if there is one, else the CPU, if None.
        dtype: bfloat16 on CUDA, else float32, if None.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    found = []
    for name in BACKENDS:
        sig = Signature(name, str(place), kind, *PROBE)
        obstacle = _obstacle(sig) if name == "xformers" else None
        choice = None if obstacle else _choose(sig)
        reason = obstacle or (_taken(choice) if choice and name == "auto" else "")
        found.append(Availability(name, obstacle is None, reason or WHAT[name]))
    return found


class Dispatched(nn.Module):
    """A module that calls `attention` with a backend of its own, which `set_attention` sets.

    Args:
        backend: one of `BACKENDS`.

    Raises:
        ArgumentError: if the backend is unknown.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        _check_name(backend)
        self.backend = backend


class Attention(Dispatched):
    """Multi-head self-attention with rotary positions and its own backend setting.

    Args:
        width: of the tokens.
        heads: must divide `width`.
        qk_norm: RMS-normalise queries and keys per head (Henry et al. 2020; Esser et al. 2024).
        backend: one of `BACKENDS`.

    Raises:
        ArgumentError: if `heads` does not divide `width`, or the backend is unknown.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False, backend: str = "auto") -> None:
        super().__init__(backend)
        if width % heads:
            raise ArgumentError("heads", f"{heads} does not divide width {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotary: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: tokens, shape (B, N, width).
            rotary: table of `rotary_table`, shape (2, N, D/2).
            mask: as in `attention`.

        Returns:
            Shape (B, N, width).
        """
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        mixed = attention(q.to(v.dtype), k.to(v.dtype), v, mask=mask, backend=self.backend)
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(b, n, width)))


def set_attention(model: nn.Module, backend: str) -> int:
    """Set the backend of every `Dispatched` module inside a model, and of no other model.

    Returns:
        How many modules were set.

    Raises:
        ArgumentError: if the backend is unknown.
    """
    _check_name(backend)
    modules = [m for m in model.modules() if isinstance(m, Dispatched)]
    for module in modules:
        module.backend = backend
    return len(modules)


def _taken(choice: Choice) -> str:
    return f"takes {choice.name}: {choice.reason}" if choice.reason else f"takes {choice.name}"


def _check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise ArgumentError("attention", f"no backend '{backend}'.{nearest(backend, BACKENDS)} Known: {_known()}")


def _known() -> str:
    return ", ".join(BACKENDS)


@cache
def _decide(sig: Signature) -> Choice:
    choice = _choose(sig)
    _log_once(choice)
    return choice


@cache
def _log_once(choice: Choice) -> None:
    _log.info("attention: %s%s", choice.name, f" ({choice.reason})" if choice.reason else "")


def _choose(sig: Signature) -> Choice:
    if sig.backend not in BACKENDS:
        raise BackendError(f"no attention backend '{sig.backend}'.{nearest(sig.backend, BACKENDS)} Known: {_known()}")
    if sig.backend in ("sdpa", "math"):
        return Choice(sig.backend, f"asked for; {WHAT[sig.backend]}")
    obstacle = _obstacle(sig)
    if obstacle is None:
        return Choice("xformers", WHAT["xformers"])
    if sig.backend == "auto":
        expected = torch.device(sig.device).type == "cuda"  # nobody misses it elsewhere
        return Choice("sdpa", f"xformers is not taken: {obstacle}" if expected else "")
    raise BackendError(f"attention backend 'xformers' cannot run: {obstacle}; use 'auto', 'sdpa' or 'math'")


def _obstacle(sig: Signature) -> str | None:
    """Why xformers cannot run, or None."""
    if torch.device(sig.device).type != "cuda":
        return f"the tensors are on '{torch.device(sig.device).type}' and its operators need 'cuda'"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    ops = _xformers()
    if isinstance(ops, str):
        return ops
    return _trial(sig)


def _trial(sig: Signature) -> str | None:
    """Run xformers on one sample of this signature; its refusal in one line, or None."""
    with torch.inference_mode(False), torch.enable_grad():

        def zeros(tokens: int) -> Tensor:
            shape = (1, sig.heads, tokens, sig.dim)
            return torch.zeros(shape, device=sig.device, dtype=sig.dtype, requires_grad=sig.differentiable)

        mask = torch.ones(sig.queries, sig.keys, dtype=torch.bool, device=sig.device) if sig.masked else None
        try:
            out = _xformers_attention(zeros(sig.queries), zeros(sig.keys), zeros(sig.keys), mask)
            if sig.differentiable:
                out.sum().backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, ValueError, RuntimeError) as refusal:
            # xformers lists its operators, the most general one last: "… is not supported because:" and the reasons
            why = str(refusal).rpartition("because:")[2].strip().splitlines()
            shape = f"heads of {sig.dim}, {sig.queries} tokens, {sig.dtype}".replace("torch.", "")
            return f"no operator accepts {shape} ({why[0] if why else type(refusal).__name__})"
    return None


@cache
def _xformers() -> Any:
    """The module `xformers.ops`, or one line saying why it cannot be had."""
    _preload_cuda12()
    try:
        package, ops = importlib.import_module("xformers"), importlib.import_module("xformers.ops")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "xformers":
            return f"it is installed but needs '{error.name}'"
        return f"it is not installed ({INSTALL})"
    except Exception as error:  # a binary package built for another torch fails in many ways
        return f"it is installed but cannot be imported ({type(error).__name__}: {error}); try {INSTALL}"
    if not getattr(package, "_has_cpp_library", True):
        return f"its compiled kernels did not load; they need the CUDA-12 runtime, which {INSTALL} brings"
    return ops


def _preload_cuda12() -> None:
    """Load the CUDA-12 runtime that xformers' compiled kernels are linked to, where torch brings a newer one."""
    if not sys.platform.startswith("linux") or (torch.version.cuda or "").startswith("12."):
        return
    try:
        files = distribution("nvidia-cuda-runtime-cu12").files or []
    except PackageNotFoundError:
        return
    for file in files:
        if file.name == "libcudart.so.12":
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                _log.warning("the CUDA-12 runtime for xformers could not be loaded: %s", error)


def _xformers_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # Importing the adapter imports torch's compiler, which takes longer than all of latentsb.
    from latentsb.networks.memory_efficient import memory_efficient

    bias = None if mask is None else _aligned_bias(mask, q, k)
    return cast(Tensor, memory_efficient(_xformers, q, k, v, bias))


def _aligned_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The added mask, shape (B, H, N, M), a view of a tensor whose rows are padded to a multiple of eight."""
    added = _added(mask, q.dtype)
    keys = k.shape[2]
    padded = F.pad(added.expand(*added.shape[:-1], keys), (0, -keys % 8))
    return padded.expand(*q.shape[:3], padded.shape[-1])[..., :keys]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


def _math_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        logits = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits + _added(mask, wide)
        return (logits.softmax(-1) @ v.to(wide)).to(v.dtype)
