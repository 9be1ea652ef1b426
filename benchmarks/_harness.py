"""How the benchmarks measure: rivals take turns in one process, on one thread, by the processor time that they use.

Wall time says little on a shared machine. Processor time of one thread and *ratios* of rivals that ran side by side
do; the machine's own limit is measured in the same run, so that every figure can be read against it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from latentsb.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "diffusers", "latentsb")
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass
class Report:
    """What one benchmark found; printed as a table and kept as JSON.

    Args:
        name: of the benchmark and of its file.
        about: one line.
    """

    name: str
    about: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        what: str,
        value: Estimate | float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Note a figure; a target counts as missed only where the whole interval misses it."""
        found = value if isinstance(value, Estimate) else Estimate(value, value, value)
        met: bool | None = None
        if at_least is not None:
            met = found.high >= at_least
        if at_most is not None:
            met = found.low <= at_most
        interval = [found.low, found.high] if isinstance(value, Estimate) else None
        row = {"what": what, "value": found.median, "interval": interval, "unit": unit}
        self.rows.append(row | {"at_least": at_least, "at_most": at_most, "met": met})

    def value(self, what: str) -> float:
        """The figure of a row."""
        return next(float(row["value"]) for row in self.rows if row["what"] == what)

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        table = Table("figure", "value", "95 %", "target", title=f"{self.name}: {self.about}")
        for row in self.rows:
            bound = f"≥ {row['at_least']:g}" if row["at_least"] is not None else ""
            bound = f"≤ {row['at_most']:g}" if row["at_most"] is not None else bound
            verdict = {True: " met", False: " MISSED", None: ""}[row["met"]]
            between = "" if row["interval"] is None else " … ".join(f"{edge:.4g}" for edge in row["interval"])
            shown = row["value"] if isinstance(row["value"], str) else f"{row['value']:.4g} {row['unit']}".strip()
            table.add_row(row["what"], shown, between, bound + verdict)
        (console or Console()).print(table)

    def write(self, folder: Path) -> Path:
        """Keep the table and what it was measured on as JSON."""
        path = folder / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": self.about, "machine": machine(), "rows": [_rounded(row) for row in self.rows]}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    def four(value: Any) -> Any:
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {k: [four(edge) for edge in v] if isinstance(v, list) else four(v) for k, v in row.items()}


def alternate(
    rivals: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each rival in each repeat; they take turns, and each is the first one equally often.

    Args:
        rivals: what is called, by name.
        repeats: counted turns.
        warmup: turns before them that are not.
        clock: processor time of this process if left out.
    """
    names = list(rivals)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, repeats):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            began = clock()
            rivals[name]()
            if turn >= 0:
                seconds[name].append(clock() - began)
    return seconds


def estimate(values: list[float]) -> Estimate:
    """Median of repeated measurements and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Estimate(statistics.median(values), float(low), float(high))


def ratio(slow: list[float], fast: list[float]) -> Estimate:
    """How many times longer the first took than the second, turn by turn."""
    return estimate([a / b for a, b in zip(slow, fast, strict=True)])


def per_second(count: float, seconds: list[float]) -> Estimate:
    """Things per second of processor time."""
    return estimate([count / s for s in seconds])


def limits(report: Report, repeats: int = 5, size: int = 1024) -> dict[str, float]:
    """Measure what this machine can do at most, and note it: matrix products and copies of memory on one thread."""
    a = torch.randn(size, size)
    b = a.bfloat16()
    source = torch.randn(size * size * 8)
    target = torch.empty_like(source)
    rivals = {"fp32": lambda: a @ a, "bf16": lambda: b @ b, "copy": lambda: target.copy_(source)}
    seconds = alternate(rivals, repeats, warmup=2)
    found = {name: 2 * size**3 / statistics.median(seconds[name]) / 1e9 for name in ("fp32", "bf16")}
    found["copy"] = 2 * source.numel() * 4 / statistics.median(seconds["copy"]) / 1e9
    report.add(f"limit: fp32 matrix product of {size}", found["fp32"], "GFLOP/s")
    report.add(f"limit: bf16 matrix product of {size}", found["bf16"], "GFLOP/s")
    report.add("limit: copy, read and write", found["copy"], "GB/s")
    return found


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def machine() -> dict[str, Any]:
    """What a reader needs to know about the machine; no name of it and no path."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["cpu"], found["threads"] = _cpu(), torch.get_num_threads()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(measure: Callable[[bool], Report], about: str | None) -> None:
    """Run a benchmark as a command: one thread, table on the screen, JSON beside the others."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    report = measure(given.quick)
    report.show()
    if not given.quick or given.out != RESULTS:
        report.write(given.out)
