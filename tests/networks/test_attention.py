import logging
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentsb.errors import ArgumentError, BackendError
from latentsb.networks import attention as room
from latentsb.networks.attention import (
    Attention,
    Signature,
    attention,
    available,
    check_backend,
    chosen,
    set_attention,
)

B, H, N, M, D = 2, 3, 7, 5, 8


def tensors(dtype=torch.float32, requires_grad=False):
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(B, H, n, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)
        for n in (N, M, M)
    ]


def written_out(q, k, v, allowed):
    """Attention in float64, one query at a time; `allowed` bool (B, H, N, M)."""
    q, k, v = (x.double() for x in (q, k, v))
    rows = []
    for b in range(B):
        for h in range(H):
            for i in range(N):
                keep = allowed[b, h, i].nonzero()[:, 0].tolist()
                weights = [torch.exp((q[b, h, i] * k[b, h, j]).sum() / D**0.5) for j in keep]
                total = sum(weights)
                rows.append(sum(w / total * v[b, h, j] for w, j in zip(weights, keep, strict=True)))
    return torch.stack(rows).view(B, H, N, D)


def some_mask():
    mask = torch.rand(B, 1, N, M, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("backend", ["sdpa", "math", "auto"])
@pytest.mark.parametrize("masked", ["none", "bool", "added"])
def test_agrees_with_the_sum_written_out(backend, masked):
    q, k, v = tensors(requires_grad=True)
    allowed = some_mask() if masked != "none" else torch.ones(B, 1, N, M, dtype=torch.bool)
    mask = {"none": None, "bool": allowed, "added": torch.where(allowed, 0.0, -math.inf)}[masked]
    weight = torch.randn(B, H, N, D, generator=torch.Generator().manual_seed(2))
    out = attention(q, k, v, mask=mask, backend=backend)
    want = written_out(q, k, v, allowed.expand(B, H, N, M))
    # float32: about ten roundings of numbers of order one, each 6e-8
    torch.testing.assert_close(out.double(), want, atol=2e-6, rtol=0)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    wanted = torch.autograd.grad((want * weight).sum(), (q, k, v))
    for got, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=5e-6, rtol=0)


def test_math_computes_in_float32_whatever_the_inputs():
    q, k, v = tensors(torch.bfloat16)
    out = attention(q, k, v, backend="math")
    want = written_out(q, k, v, torch.ones(B, H, N, M, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, want.to(torch.bfloat16))  # one rounding only, at the end
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            attention(*tensors(), backend="math").double(), written_out(*tensors(), torch.ones(B, H, N, M).bool())
        )


def test_math_has_second_order_gradients():
    q, k, v = tensors(torch.float64, requires_grad=True)
    small = [x[:1, :1, :3, :2].detach().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradgradcheck(lambda *a: attention(*a, backend="math"), small)


class FakeXFormers(types.ModuleType):
    """Takes (B, N, H, D) as the real one does, and keeps what it was given."""

    def memory_efficient_attention(self, q, k, v, attn_bias=None):
        self.seen = (q.shape, k.shape, v.shape, attn_bias)
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhnm,bmhd->bnhd", (logits + (0 if attn_bias is None else attn_bias)).softmax(-1), v)


@pytest.fixture
def fresh():
    caches = (room._xformers, room._decide, room._log_once)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def fake(monkeypatch, fresh):
    package, ops = types.ModuleType("xformers"), FakeXFormers("xformers.ops")
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return ops


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_adapter_converts_layout_and_mask(fake, masked):
    q, k, v = tensors()
    mask = some_mask() if masked else None
    out = room._xformers_attention(q, k, v, mask)
    torch.testing.assert_close(out, attention(q, k, v, mask=mask, backend="math"))
    q_shape, k_shape, v_shape, bias = fake.seen
    assert q_shape == (B, N, H, D)
    assert k_shape == v_shape == (B, M, H, D)
    if masked:
        assert bias.shape == (B, H, N, M)
        assert all(s % 8 == 0 for s in bias.stride()[:-1])  # its kernels read rows in blocks of eight
        assert torch.equal(bias == 0, mask.expand(B, H, N, M))


def cuda(backend="auto", **changes):
    return Signature(backend, "cuda:0", torch.bfloat16, 64, 64, 4, 64)._replace(**changes)


def test_auto_takes_xformers_on_cuda_only_where_an_operator_accepts(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(room, "_trial", lambda sig: "no operator accepts it" if sig.dim > 256 else None)
    assert room._decide(cuda()).name == "xformers"
    refused = room._decide(cuda(dim=512))
    assert refused.name == "sdpa"
    assert "no operator accepts it" in refused.reason
    with pytest.raises(BackendError, match="no operator accepts it; use 'auto', 'sdpa' or 'math'"):
        room._decide(cuda("xformers", dim=512))


def test_the_trial_runs_the_operator_and_reports_its_refusal(fake):
    asked = cuda(device="cpu", queries=N, keys=M, dtype=torch.float32, masked=True)
    assert room._trial(asked) is None
    assert fake.seen[0] == (1, N, 4, 64)

    def refuse(*args, **kwargs):
        raise NotImplementedError("No operator found:\n  `a` because:\n    x\n  `b` because:\n    dtype\n    y")

    fake.memory_efficient_attention = refuse
    assert room._trial(asked) == "no operator accepts heads of 64, 7 tokens, float32 (dtype)"


def test_xformers_without_compiled_kernels_or_not_installed_is_refused(monkeypatch, fake):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sys.modules["xformers"]._has_cpp_library = False
    with pytest.raises(BackendError, match=r"compiled kernels did not load.*CUDA-12 runtime"):
        room._decide(cuda("xformers"))
    room._xformers.cache_clear()
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(BackendError, match=r"pip install 'latentsb\[xformers\]'"):
        room._decide(cuda("xformers"))


def test_a_forced_backend_that_cannot_run_is_one_clear_line(fresh):
    q, k, v = tensors()
    with pytest.raises(BackendError, match="'xformers' cannot run: the tensors are on 'cpu'") as caught:
        attention(q, k, v, backend="xformers")
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="cpu"):
        check_backend("xformers", "cpu")
    with pytest.raises(BackendError, match="Did you mean 'xformers'"):
        check_backend("xformer", "cpu")
    assert check_backend("auto", "cpu").name == "sdpa"


def test_the_choice_is_logged_once_per_reason(fresh, caplog):
    q, k, v = tensors()
    with caplog.at_level(logging.INFO, logger=room.__name__):
        for _ in range(3):
            attention(q, k, v)
        attention(q[:, :, :2], k, v)  # another shape, the same reason
        assert len(caplog.records) == 1
        attention(q, k, v, backend="math")
    assert len(caplog.records) == 2
    assert "sdpa" in caplog.messages[0]
    assert "math" in caplog.messages[1]
    assert chosen(q, k, v) == check_backend("auto", "cpu")


def test_available_names_every_backend_with_a_reason(fresh):
    rows = {row.backend: row for row in available("cpu")}
    assert list(rows) == ["auto", "sdpa", "xformers", "math"]
    assert [row.usable for row in rows.values()] == [True, True, False, True]
    assert all(row.reason for row in rows.values())


def test_setting_one_model_leaves_every_other_and_the_process_alone(fresh, monkeypatch):
    one, other = (nn.Sequential(Attention(16, 2), nn.Sequential(Attention(16, 2))) for _ in range(2))
    assert set_attention(one, "math") == 2
    assert [m.backend for m in one.modules() if isinstance(m, Attention)] == ["math"] * 2
    assert [m.backend for m in other.modules() if isinstance(m, Attention)] == ["auto"] * 2
    assert Attention(16, 2).backend == "auto"
    ran = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, attn_mask=None: ran.append("sdpa") or torch.zeros_like(q)
    )
    x = torch.randn(1, 4, 16)
    one(x)
    assert not ran
    other(x)
    assert ran == ["sdpa"] * 2
    with pytest.raises(ArgumentError, match="Did you mean 'sdpa'"):
        set_attention(one, "spda")


def test_module_is_the_same_function_with_every_backend():
    torch.manual_seed(0)
    module = Attention(32, 4, qk_norm=True).double()
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    module.backend = "math"
    want = module(x)
    module.backend = "sdpa"
    torch.testing.assert_close(module(x), want)
    # without positions, tokens are a set
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(module(x[:, order]), want[:, order])


def test_module_projects_heads_as_the_textbook_does():
    torch.manual_seed(0)
    module = Attention(12, 3).double()
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    wq, wk, wv = module.qkv.weight.chunk(3)
    bq, bk, bv = module.qkv.bias.chunk(3)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        q, k, v = (x[0] @ w[part].T + b[part] for w, b in ((wq, bq), (wk, bk), (wv, bv)))
        heads.append((q @ k.T / 2).softmax(-1) @ v)
    want = torch.cat(heads, -1) @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x)[0], want)


def test_a_compiled_graph_leaves_xformers_outside(fake, monkeypatch):
    monkeypatch.setattr(room, "_obstacle", lambda sig: None)
    q, k, v = tensors()
    compiled = torch.compile(lambda *x: attention(*x, backend="xformers") * 2, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), 2 * attention(q, k, v, backend="math"))
    assert type(fake.seen[0]) is torch.Size
    assert fake.seen[0] == (B, N, H, D)


def test_the_choice_is_told_in_a_word_where_nothing_was_expected(fresh, monkeypatch, caplog):
    caplog.set_level("INFO")
    check_backend("auto", "cpu")
    assert caplog.messages == ["attention: sdpa"]
