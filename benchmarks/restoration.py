"""Restoration of held-out images by a trained bridge, beside the degraded images and the best linear restoration.

python benchmarks/restoration.py runs/sprites_superres
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import latentsb
from latentsb.generate import partners, sample
from latentsb.solvers.direct import Denoise

SEEN = 20_000
"""Training pairs of the linear restoration."""
RIDGE = 1e-4
"""Of the mean variance of the degraded pixels, so that constant ones can be inverted."""


def linear(x0: Tensor, x1: Tensor, rows: Tensor) -> Tensor:
    """`E[x0] + C01 C11⁻¹ (x1 − E[x1])` for other rows of x1, by least squares on pairs of shape (N, D), float64."""
    centred0, centred1 = x0 - x0.mean(0), x1 - x1.mean(0)
    gram = centred1.T @ centred1 / len(x1)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, centred1.T @ centred0 / len(x1))
    return x0.mean(0) + (rows - x1.mean(0)) @ weights


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=1000, help="held-out images")
    given = parser.parse_args()
    experiment = latentsb.load_run(given.run).experiment()
    train = experiment.source.read(np.arange(min(SEEN, len(experiment.source))))
    held = partners(experiment, range(given.n))
    x0, x1 = (x.double().flatten(1) for x in (held.x0, held.x1))
    found = {
        "x1, not restored": x1,
        "the best linear restoration": linear(train.x0.double().flatten(1), train.x1.double().flatten(1), x1),
        "one call, E[x0 given x1]": sample(experiment, range(given.n), solver=Denoise()).images.double().flatten(1),
        "a sample": sample(experiment, range(given.n)).images.double().flatten(1),
    }
    for name, x in found.items():
        error = (x - x0).square().mean(1)
        psnr = 10 * math.log10(4 / float(error.mean()))  # pixels are in [-1, 1]
        spread = 10 / math.log(10) * float(error.std()) / given.n**0.5 / float(error.mean())
        print(f"{name}: mean squared error {error.mean():.4f}, PSNR {psnr:.2f} ± {spread:.2f} dB")


if __name__ == "__main__":
    main()
