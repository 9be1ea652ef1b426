"""Optimiser and moving averages on 65 million parameters in 430 tensors, beside bare calls of torch and diffusers.

The least that an average costs is one `torch._foreach_lerp_`; several averages cost it several times.
"""

from __future__ import annotations

from functools import partial

import torch
from _harness import Report, alternate, estimate, limits, main, ratio
from torch import nn

from latentsb.ema import Average, Ema, HalfLife, PowerFunction

AVERAGES: tuple[Average, ...] = (PowerFunction(width=0.1), PowerFunction(width=0.05), HalfLife(images=1e6))


class Tensors(nn.Module):
    """So many tensors of so many numbers, in pairs of a matrix and a vector.

    Args:
        pairs: of tensors.
        side: of the matrices.
    """

    def __init__(self, pairs: int, side: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(side, side) for _ in range(pairs))


def measure(quick: bool = False) -> Report:
    """Time AdamW, averages and norms."""
    report = Report("optimiser", "AdamW, averages and norms on 65 million parameters")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    repeats = 2 if quick else 15
    module = Tensors(3, 8) if quick else Tensors(215, 550)
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    one, three = Ema(module, AVERAGES[:1]), Ema(module, AVERAGES)
    copies = [[p.detach().clone() for p in parameters] for _ in range(3)]

    @torch.no_grad()
    def bare(count: int) -> None:
        for values in copies[:count]:
            torch._foreach_lerp_(values, [p.detach() for p in parameters], 0.001)

    def norms() -> None:
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)

    adamw = partial(torch.optim.AdamW, parameters, lr=1e-6)
    rivals = {
        "AdamW, fused": adamw(fused=True).step,
        "AdamW, foreach": adamw(foreach=True).step,
        "norm and clipping": norms,
        "one average: latentsb": partial(one.update, 4),
        "one average: bare foreach lerp": partial(bare, 1),
        "three averages: latentsb": partial(three.update, 4),
        "three averages: bare foreach lerps": partial(bare, 3),
    } | _diffusers(parameters)
    seconds = alternate(rivals, repeats, warmup=2)
    for name, found in seconds.items():
        report.add(name, estimate([1e3 * s for s in found]), "ms")
    for count in ("one average", "three averages"):
        bares = next(name for name in rivals if name.startswith(f"{count}: bare"))
        within = ratio(seconds[f"{count}: latentsb"], seconds[bares])
        report.add(f"{count}: latentsb / bare", within, at_most=1.15)
    report.add("AdamW: foreach / fused", ratio(seconds["AdamW, foreach"], seconds["AdamW, fused"]))
    if "one average: diffusers" in seconds:
        gain = ratio(seconds["one average: diffusers"], seconds["one average: latentsb"])
        report.add("one average: diffusers / latentsb", gain, at_least=2.3)
    return report


def _diffusers(parameters: list[nn.Parameter]) -> dict[str, partial[None]]:
    try:
        from diffusers.training_utils import EMAModel
    except ImportError:
        return {}
    rival = EMAModel(parameters, decay=0.999)
    return {"one average: diffusers": partial(rival.step, parameters)}


if __name__ == "__main__":
    main(measure, __doc__)
