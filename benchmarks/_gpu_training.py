"""Training and sampling on the device: rates, memory, and whether the host ever waits for it."""

from __future__ import annotations

import gc
from functools import partial

import torch
from _gpu import Place, guarded, say
from _harness import Report, flops
from _training import Loop, dbae
from train_step import forward_backward, transformer

from latentsb.tensors import Condition

SIZES = {"S/2": (384, 12, 6, 512), "B/2": (768, 12, 12, 256), "XL/2": (1152, 28, 16, 128)}
SHARE = {"S/2": 0.20, "B/2": 0.35, "XL/2": 0.45}
LATENT = (4, 32, 32)


def training(report: Report, place: Place) -> None:
    """Images per second and MFU of three sizes, eager and compiled."""
    for name, (width, depth, heads, batch) in ({"tiny": (24, 1, 6, 1)} if place.quick else SIZES).items():
        for compiled in (False, True) if place.device == "cuda" else (False,):
            what = f"train {name}, bf16{', compiled' if compiled else ''}"
            guarded(report, place, what, partial(_train, report, place, what, (width, depth, heads, batch), compiled))
            gc.collect()


def _train(report: Report, place: Place, what: str, size: tuple[int, int, int, int], compiled: bool) -> None:
    width, depth, heads, batch = size
    network = transformer(LATENT, width, depth, heads).to(place.device)
    work = flops(partial(forward_backward, network, 1, bf16=True))
    if compiled:
        network.compile_blocks()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        x, t = torch.randn(batch, *LATENT, device=place.device), torch.rand(batch, device=place.device)
        with torch.autocast(place.device, dtype=torch.bfloat16):
            loss = network(x, t, Condition()).float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    milliseconds = place.milliseconds(step, repeats=10)
    report.add(what, 1e3 * batch / milliseconds, "img/s")
    share = work * batch / milliseconds / 1e9 / report.value("limit: bf16 matrix product")
    name = what.removeprefix("train ").partition(",")[0]
    report.add(f"{what}: MFU", share, at_least=SHARE.get(name) if compiled else None)


def _loop(place: Place, batch: int) -> Loop:
    size = {"width": 24, "depth": 1} if place.quick else {"width": 384, "depth": 12}
    return dbae(LATENT, "bf16", place.device, z_dim=64, channel="exact", heads=6, batch=batch, **size)


def dbae_step(report: Report, place: Place) -> None:
    """The trainer's whole step, data, draws, clipping and average included."""
    batch = 2 if place.quick else 256
    loop = _loop(place, batch)
    milliseconds = place.milliseconds(lambda: loop.step(loop.stream.batch(loop.session.seen)), repeats=10)
    report.add("DBAE of S/2 size, whole step", 1e3 * batch / milliseconds, "img/s")
    waited = loop.run(2 if place.quick else 20)
    report.add("DBAE of S/2 size: host waits for data", 100 * waited, "% of the time", at_most=2.0)


def waits(report: Report, place: Place) -> None:
    """Whether a step makes the host wait for the device: torch raises an error where it would."""
    loop = _loop(place, 2 if place.quick else 64)
    for _ in range(4):
        loop.step(loop.stream.batch(loop.session.seen))
    if place.device != "cuda":
        say(report, "waits of the host in 5 steps", "cannot be seen on the CPU")
        return
    batches = [loop.stream.batch(loop.session.seen + k * 64) for k in range(5)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            loop.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    report.add("waits of the host in 5 steps", 0.0, at_most=0.0)


def sampling(report: Report, place: Place) -> None:
    """Latency of one evaluation for one sample, eager and compiled."""
    for name, (width, depth, heads, _) in ({"tiny": (24, 1, 6, 1)} if place.quick else SIZES).items():
        for compiled in (False, True) if place.device == "cuda" else (False,):
            what = f"one evaluation of {name}, one sample{', compiled' if compiled else ''}"
            guarded(report, place, what, partial(_latency, report, place, what, (width, depth, heads), compiled))


@torch.inference_mode()
def _latency(report: Report, place: Place, what: str, size: tuple[int, int, int], compiled: bool) -> None:
    width, depth, heads = size
    network = transformer(LATENT, width, depth, heads).to(place.device).eval()
    call = torch.compile(network, mode="reduce-overhead") if compiled else network
    x, t = torch.randn(1, *LATENT, device=place.device), torch.rand(1, device=place.device)

    def evaluate() -> None:
        with torch.autocast(place.device, dtype=torch.bfloat16):
            call(x, t, Condition())

    report.add(what, place.milliseconds(evaluate, repeats=20), "ms")


def memory(report: Report, place: Place) -> None:
    """Peak memory and time of a large step, with and without recomputing activations."""
    width, depth, heads, batch = (24, 1, 6, 1) if place.quick else SIZES["XL/2"]
    found = {}
    for recompute in (False, True):
        network = transformer(LATENT, width, depth, heads).to(place.device)
        network.gradient_checkpointing_(recompute)
        step = partial(forward_backward, network, batch, bf16=True)
        what = f"XL/2, batch {batch}{', recomputing' if recompute else ''}"
        found[recompute] = (place.peak(step), place.milliseconds(step, repeats=5))
        report.add(f"{what}: peak memory", found[recompute][0], "MiB")
        report.add(f"{what}: time", found[recompute][1], "ms")
        del network, step
        gc.collect()
    if place.device == "cuda":
        report.add("recomputing: peak memory / without", found[True][0] / found[False][0], at_most=0.6)
    report.add("recomputing: time / without", found[True][1] / found[False][1])
