"""What `latentsb doctor` finds on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from latentsb.cli.console import console, size, table

__all__ = ["report"]

# extra of pyproject.toml -> what it brings, and for what
EXTRAS = {
    "xformers": ("xformers", "faster attention on CUDA"),
    "track": ("tensorboard", "curves while training"),
    "eval": ("torchmetrics", "further metrics"),
}
RUNS = Path("runs")


def report() -> None:
    """Print one table: what is here, what is missing, and how to get it."""
    shown = table("", "", "found", "to get it")
    for what, found, remedy in (*_versions(), *_devices(), *_attention(), *_extras(), *_folder(), *_recipes()):
        shown.add_row(what, found, remedy)
    console().print(shown, markup=False)


def _versions() -> Iterator[tuple[str, str, str]]:
    import torch

    from latentsb import __version__

    yield "latentsb", __version__, ""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads", ""
    for name in ("diffusers", "timm", "accelerate"):
        try:
            yield name, importlib.metadata.version(name), ""
        except importlib.metadata.PackageNotFoundError:
            yield name, "missing", f"pip install {name}"


def _devices() -> Iterator[tuple[str, str, str]]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            yield f"cuda:{i}", f"{found.name}, {size(found.total_memory)}", ""
    else:
        why = "this build of torch has none" if torch.version.cuda is None else "no usable device"
        yield "cuda", f"not available: {why}", "https://pytorch.org/get-started" if torch.version.cuda is None else ""
    if torch.backends.mps.is_available():
        yield "mps", "available, not used", ""
    yield "cpu", f"{os.cpu_count()} cores", ""


def _attention() -> Iterator[tuple[str, str, str]]:
    from latentsb.networks.attention import available

    for backend, usable, reason in available():
        yield f"attention {backend}", reason if usable else f"no: {reason}", ""


def _extras() -> Iterator[tuple[str, str, str]]:
    for extra, (module, purpose) in EXTRAS.items():
        if find_spec(module) is not None:
            yield f"extra {extra}", f"{module} {importlib.metadata.version(module)}: {purpose}", ""
        else:
            yield f"extra {extra}", f"not installed: {purpose}", _install(extra)


def _install(extra: str) -> str:
    """The command that brings an extra: from the index, or in a clone from the clone."""
    clone = Path(__file__).resolve().parents[2]
    inside = (clone / "pyproject.toml").is_file()
    return f"pip install -e '{os.path.relpath(clone)}[{extra}]'" if inside else f"pip install 'latentsb[{extra}]'"


def _folder() -> Iterator[tuple[str, str, str]]:
    folder = RUNS if RUNS.is_dir() else Path()
    free = size(shutil.disk_usage(folder).free)
    writable = os.access(folder, os.W_OK)
    state = f"{free} free, {'writable' if writable else 'NOT writable'}"
    yield "runs/", state if RUNS.is_dir() else f"not there yet; here {state}", "" if writable else f"chmod u+w {folder}"


def _recipes() -> Iterator[tuple[str, str, str]]:
    from latentsb.recipe.sources import shipped

    yield "recipes", f"{len(shipped())} come with latentsb", "latentsb list recipes"
