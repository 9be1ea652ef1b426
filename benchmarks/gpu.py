"""One command for a machine with a GPU: what loads there, which attention is right and fastest, how fast we train.

    python benchmarks/gpu.py                           # less than eight minutes on one card
    python benchmarks/gpu.py --device cpu --quick      # shows that it runs, measures nothing

Every part stands alone: one that fails is told in the table and the rest goes on, and parts for which no time is left
are named. A part that has begun is finished, so that the command may end a little after its time.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from _gpu import Place, guarded
from _gpu_attention import attention_backends
from _gpu_probe import environment
from _gpu_training import dbae_step, memory, sampling, training, waits
from _harness import RESULTS, Report

SECTIONS = {
    "environment": environment,
    "attention": attention_backends,
    "waits of the host": waits,
    "DBAE step": dbae_step,
    "training": training,
    "memory": memory,
    "sampling": sampling,
}


def measure(device: str, minutes: float = 8.0, quick: bool = False) -> Report:
    """Run all parts within a time.

    Args:
        device: cuda or cpu.
        minutes: after which no part is begun.
        quick: tiny sizes.
    """
    report = Report("gpu", f"attention, training, sampling on {device}")
    place = Place(device, quick, time.monotonic() + 60 * minutes)
    for name, section in SECTIONS.items():
        guarded(report, place, name, partial(section, report, place))
    return report


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is begun after this time")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, default=None, help="folder of gpu.json; benchmarks/results on a GPU")
    given = parser.parse_args()
    report = measure(given.device, given.minutes, given.quick)
    report.show()
    out = given.out or (RESULTS if given.device == "cuda" and not given.quick else None)
    if out is not None:
        report.write(out)


if __name__ == "__main__":
    main()
