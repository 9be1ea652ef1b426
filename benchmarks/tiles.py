"""Tiled decoding at 1024×1024 beside decoding as a whole: time, peak memory, and how far the seams are seen.

Seam error: the mean absolute difference of the two pictures, on [0, 1], over all pixels within one latent cell of a
border of tiles; of all such borders, rows and columns, the largest. It is a mean along a line: the largest difference
of a single pixel, anywhere, and the root mean square of all stand beside it.

Memory is what torch's allocator has given out at the most during a call, from the profiler's record of every
allocation. The image is a photograph of scikit-learn, brought to this size. With `--run RUN` the autoencoder is a
trained one; else weights are new, and only time and memory mean something.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _harness import RESULTS, Report, alternate, estimate, limits, ratio
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from latentsb.allocator import keep_freed_memory
from latentsb.autoencoder import Autoencoder
from latentsb.autoencoders.kl import KL
from latentsb.pictures import from_uint8
from latentsb.resized import shapes_at
from latentsb.run import Run
from latentsb.tensors import Spec
from latentsb.tiles import Tiling

SIDE = 1024
TILING = Tiling()


def peak(call: Callable[[], object]) -> int:
    """Bytes that torch's allocator has given out at the most during a call, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = top = 0
    for _, change in changes:
        live += change
        top = max(top, live)
    return top


def photograph(side: int) -> Tensor:
    """The middle of a photograph of 427×640, enlarged, shape (1, 3, side, side) in [-1, 1]."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    image = Image.fromarray(load_sample_images().images[0]).crop((106, 0, 533, 427))
    resized = image.resize((side, side), Image.Resampling.LANCZOS)
    return from_uint8(np.asarray(resized))[None]


def seam_error(off: Tensor, tiling: Tiling, cells: tuple[int, int], factor: int) -> float:
    """Mean |difference| within one latent cell of a border of tiles, of the border where it is largest.

    Args:
        off: shape (1, C, H, W), tiled minus whole, on [0, 1].
        tiling: what cut it.
        cells: sides of the latent.
        factor: pixels of a cell.
    """
    found = []
    for dim, n in ((-2, cells[0]), (-1, cells[1])):
        borders = {edge for span in tiling.spans(n, factor) for edge in (span.first, span.last)} - {0, n}
        found += [float(off.narrow(dim, (b - 1) * factor, 2 * factor).abs().mean()) for b in borders]
    return max(found)


def autoencoder_of(run: Path | None, side: int) -> Autoencoder:
    """That of a run, or one of the same shape with new weights, for images of a side."""
    if run is None:
        torch.manual_seed(0)
        made: Autoencoder = KL(
            Spec((3, side, side)), widths=(16, 32, 64), groups=8, latent_channels=8, attention=False
        ).eval()
        return made
    made = Run.open(run).experiment(device="cpu").autoencoder
    made.images, made.latent = shapes_at(made, (side, side), made.cell)
    return made


@torch.inference_mode()
def measure(quick: bool = False, run: Path | None = None) -> Report:
    """Decode one photograph as a whole and in tiles."""
    side, tiling = (64, Tiling(size=32, overlap=8)) if quick else (SIDE, TILING)
    report = Report("tiles", f"decoding {side}×{side} in tiles of {tiling.size}, {tiling.overlap} in common")
    limits(report, repeats=2 if quick else 5, size=64 if quick else 1024)
    codec = autoencoder_of(run, side)
    latents = codec.posterior(photograph(side)).mean

    def decode(how: Tiling | None) -> Tensor:
        codec.use_tiling(how)
        return codec.decode(codec.normalise(latents))

    ways = {"whole": partial(decode, None), "tiles": partial(decode, tiling)}
    seconds = alternate(ways, repeats=2 if quick else 5)
    for name in ways:
        report.add(f"seconds, {name}", estimate(seconds[name]), "s")
    times = ratio(seconds["tiles"], seconds["whole"])
    report.add("time, tiles / whole", times)
    # Few turns make a wide interval: the median is held to the target, not its better end.
    report.add("time, tiles / whole, median", times.median, at_most=1.05)
    most = {name: peak(way) for name, way in ways.items()}
    for name, found in most.items():
        report.add(f"peak memory, {name}", found / 2**20, "MiB")
    report.add("memory, tiles / whole", most["tiles"] / most["whole"], at_most=1 / 6)
    off = (decode(tiling) - decode(None)) / 2  # images on [0, 1]
    cells, trained = (latents.shape[-2], latents.shape[-1]), run is not None
    report.add("seam error on [0, 1]", seam_error(off, tiling, cells, codec.cell), at_most=1e-2 if trained else None)
    report.add("difference, root mean square", float(off.square().mean().sqrt()))
    report.add("largest difference of a pixel", float(off.abs().max()))
    report.add("largest step between neighbouring pixels", float(off.diff(dim=-1).abs().max()))
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--run", type=Path, help="a run whose autoencoder is used")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    made = measure(given.quick, given.run)
    made.show()
    if not given.quick or given.out != RESULTS:
        made.write(given.out)
