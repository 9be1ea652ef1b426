"""From one data set to the other: images of one end through the autoencoder, along a bridge, and decoded again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, DenoisingBridge, End
from latentsb.data.pixels import ENDINGS
from latentsb.errors import CapabilityError, DataError
from latentsb.experiment import Experiment
from latentsb.generate import blocks, check_shape, complete, together
from latentsb.metrics.similarity import mse
from latentsb.outputs import are_pictures, make, protocol, write_json
from latentsb.pictures import save_image, show
from latentsb.randomness import Draws
from latentsb.recipe import Part
from latentsb.registry import UnknownPartError, describe
from latentsb.results import ACROSS, Result
from latentsb.run import Run
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Translation",
    "direction",
    "files_in",
    "named_end",
    "open_samples",
    "own_samples",
    "translate",
    "ways",
    "write_translation",
]

ARRAYS = (".npz", ".npy")
DEPARTURE = {"x0": "x1", "x1": "x0"}


@dataclass(frozen=True, repr=False)
class Translation(Result):
    """Samples of one end, and what a bridge makes of them at the other.

    Args:
        originals: shape (B, C, H, W) in [-1, 1], or vectors (B, D).
        translated: same shape.
        latents: of the results, shape (B, *latent.shape), normalised.
        towards: the end that they were led to.
        calls: network evaluations per sample.
        cond: conditions of the rows.
    """

    originals: Tensor
    translated: Tensor
    latents: Tensor
    towards: End
    calls: int
    cond: Condition = field(default_factory=Condition)

    def __len__(self) -> int:
        return len(self.originals)

    def picture(self) -> Image:
        """Each original above what became of it; of vectors the results over the originals."""
        if self.originals.ndim != 4:
            return show(self.translated, beside=self.originals)
        across = min(ACROSS, len(self))
        spare = -len(self) % across
        # The last row is filled with the grey that pictures stand on.
        rows = [torch.cat([x, x.new_zeros(spare, *x.shape[1:])]) for x in (self.originals, self.translated)]
        pairs = torch.stack([row.reshape(-1, across, *row.shape[1:]) for row in rows], 1)
        return show(pairs.flatten(0, 2), columns=across)

    def tensors(self) -> dict[str, Tensor]:
        """`originals`, `translated`, `latents`."""
        return {name: getattr(self, name) for name in ("originals", "translated", "latents")}


def ways(bridge: Bridge) -> dict[End, str]:
    """For each end why the bridge cannot lead there from a sample of the other one; empty where it can."""
    found: dict[End, str] = {}
    for towards in ("x0", "x1"):
        found[towards] = _obstacle(bridge, towards)
    return found


@torch.no_grad()
def _obstacle(bridge: Bridge, towards: End) -> str:
    if not bridge.ends.two_sided:
        return "it was trained on data of one end; data with two are `unpaired` or `paired` (`latentsb list data`)"
    x = bridge.ends.spec.zeros(1, bridge.device)
    cond = complete(Condition(), bridge, 1).to(bridge.device)
    if isinstance(bridge, DenoisingBridge) and bridge.pinned:
        if towards == "x1":
            return "its x1 is given, not made"
        cond = cond.with_(x1=x)
    try:
        bridge.drift(x, torch.tensor(0.5, dtype=torch.float64), cond, towards)
    except CapabilityError as error:
        return str(error)
    return ""


def direction(bridge: Bridge, towards: End | None = None) -> End:
    """The end that a translation leads to: the one asked for; else x0, or x1 where the bridge leads only there.

    Raises:
        CapabilityError: if the bridge does not lead there, and why.
    """
    obstacles = ways(bridge)
    if towards is None:
        towards = "x0" if not obstacles["x0"] or obstacles["x1"] else "x1"
    if not obstacles[towards]:
        return towards
    other: End = "x1" if towards == "x0" else "x0"
    able = "" if obstacles[other] else f"; it leads towards {other} only"
    try:
        name = BRIDGES.word_of(bridge)
    except UnknownPartError:
        name = type(bridge).__name__
    raise CapabilityError(f"'{name}' does not translate towards {towards}: {obstacles[towards]}{able}")


@torch.no_grad()
def translate(
    experiment: Experiment,
    samples: Tensor,
    *,
    towards: End | None = None,
    solver: Solver | None = None,
    seed: int = 0,
    cond: Condition | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Translation:
    """Lead samples of one end to the other: encode, follow the bridge, decode.

    Row i has the seed `seed + i`, whatever its neighbours.

    Args:
        experiment: with trained weights, of data with two ends.
        samples: of the end across: images (B, C, H, W) in [-1, 1], or vectors.
        towards: the end to reach; see `direction`.
        solver: in place of the recipe's.
        seed: of the first row's noise.
        cond: conditions of the rows; what the bridge knows and `cond` lacks is absent.
        batch: rows at a time; changes results by rounding only; fewer of large images, at most 256, if None.
        progress: called with the number of samples just finished.

    Raises:
        ArgumentError: if the samples have another shape than the data.
        CapabilityError: if the bridge, or the solver, does not lead there.
    """
    bridge, solver = experiment.bridge, solver or experiment.solver
    towards = direction(bridge, towards)
    check_shape(experiment, samples)
    cond = complete(cond or Condition(), bridge, len(samples))
    images, latents, calls = list[Tensor](), list[Tensor](), 0
    for rows in blocks(len(samples), batch or together(samples[0].numel())):
        here = experiment.autoencoder.encode(samples[rows].to(experiment.device))
        draws = Draws.seeds(range(seed + rows.start, seed + rows.start + len(here)))
        state = bridge.start(_batch(here, cond.select(rows).to(experiment.device), towards), draws, towards)
        solved = solver.run(bridge, state, draws.fork("solve"), towards)
        images.append(experiment.autoencoder.decode(solved.x).cpu())
        latents.append(solved.x.cpu())
        calls = solved.calls
        if progress is not None:
            progress(len(here))
    return Translation(samples.cpu(), torch.cat(images), torch.cat(latents), towards, calls, cond)


def _batch(x: Tensor, cond: Condition, towards: End) -> Batch:
    index = torch.arange(len(x))
    return Batch(index, x1=x, cond=cond) if towards == "x0" else Batch(index, x0=x, cond=cond)


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Files, folders replaced by the images below them in the order of their names.

    Raises:
        DataError: if a path is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not inside:
                raise DataError(f"{path}: the folder holds no image ({', '.join(sorted(ENDINGS))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder")
    return found


def open_samples(experiment: Experiment, files: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Image files as the run's data are read, arrays of `.npy` and `.npz` files as they are; and a name for each row.

    Raises:
        DataError: if a file cannot be read or is of another shape; tells all of them at once.
    """
    rows: list[Tensor] = []
    names: list[str] = []
    faults: list[str] = []
    for file in files:
        try:
            made = _array(file, experiment) if file.suffix in ARRAYS else experiment.source.open(file)[None]
        except DataError as error:
            faults.append(str(error))
            continue
        rows.append(made)
        names += [str(file)] if len(made) == 1 else [f"{file}[{k}]" for k in range(len(made))]
    if faults:
        raise DataError("\n".join(dict.fromkeys(faults)))
    return torch.cat(rows), tuple(names)


def _array(path: Path, experiment: Experiment) -> Tensor:
    """The one array of a file, or its `x`, shape (B, …), float32."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            name = "x" if "x" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
            if name is None:
                raise DataError(f"{path}: found the arrays {', '.join(loaded.files)}, expected one, or one called 'x'")
            loaded = loaded[name]
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array ({error})") from error
    expected = experiment.autoencoder.images.shape
    if loaded.shape[1:] != expected or len(loaded) == 0 or loaded.dtype.kind != "f":
        told = f"found {loaded.dtype} of shape {loaded.shape}, expected floats (B, {', '.join(map(str, expected))})"
        raise DataError(f"{path}: {told}")
    if not np.isfinite(loaded).all():
        raise DataError(f"{path}: holds numbers that are not finite")
    return torch.from_numpy(np.ascontiguousarray(loaded, dtype=np.float32))


def named_end(experiment: Experiment, paths: Sequence[Path]) -> End | None:
    """Of which end of the run's own data these files are, where they lie in that end's folder alone."""
    arguments = experiment.recipe.data.arguments
    ends = {end: arguments.get(end, arguments.get(key)) for end, key in (("x0", "target"), ("x1", "source"))}
    found = set()
    for path in paths:
        at = [end for end, part in ends.items() if _below(path, _place(part))]
        found.add(at[0] if len(at) == 1 else None)
    if found == {"x0"}:
        return "x0"
    return "x1" if found == {"x1"} else None


def _place(part: Any) -> Any:
    """The folder of one end, which a part of its own names or the data themselves."""
    return part.arguments.get("path") if isinstance(part, Part) else part


def _below(path: Path, folder: Any) -> bool:
    return isinstance(folder, (str, Path)) and path.resolve().is_relative_to(Path(folder).expanduser().resolve())


def write_translation(
    run: Run,
    experiment: Experiment,
    samples: Tensor,
    names: Sequence[str],
    *,
    towards: End | None = None,
    solver: Solver | None = None,
    output: Path | None = None,
    seed: int = 0,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write what became of each sample, a picture of sources above results, and a JSON of the protocol.

    Images become one PNG each, numbered, under the name that they came with; everything else one `translations.npz`
    with `originals` and `translated`. Files of an earlier translation in the same folder are replaced.

    Args:
        run: whose weights are used.
        experiment: as it was loaded.
        samples: see `translate`.
        names: of the samples.
        towards: see `direction`.
        solver: in place of the recipe's.
        output: folder; in `translations/` of the run if None.
        seed: of the first row's noise.
        batch: rows at a time.
        progress: called with the number of samples just finished.

    Returns:
        The content of the JSON, and `path` of the folder.
    """
    solver = solver or experiment.solver
    how: dict[str, Any] = {"solver": solver, "seed": seed, "batch": batch, "progress": progress}
    made = translate(experiment, samples, towards=towards, **how)
    told = describe(solver)
    step = f"step-{experiment.step:09d}-{DEPARTURE[made.towards]}-to-{made.towards}-{told['name']}"
    folder = output or run.path / "translations" / step
    make(folder)
    if are_pictures(experiment.autoencoder):
        for i, (name, picture) in enumerate(zip(names, made.translated, strict=True)):
            save_image(picture, folder / f"{i:06d}-{_stem(name)}.png")
    else:
        made.save(folder / "translations.npz")
    made.save(folder / "grid.png")
    facts = protocol(run, experiment, towards=made.towards, solver=told, calls=made.calls, seed=seed)
    facts |= {"count": len(made), "inputs": list(names)}
    facts |= {"mse_to_input": float(mse(made.originals.double(), made.translated.double()).mean())}
    write_json(folder / "translations.json", facts)
    return facts | {"path": folder}


def _stem(name: str) -> str:
    """A name that a file can have: the last part of a path without its ending, words of letters and digits."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-") or "sample"


def own_samples(experiment: Experiment, end: End, n: int) -> Iterator[tuple[Tensor, str]]:
    """The first n samples of an end of the run's data, of those held out where there are any.

    Raises:
        DataError: if the data have not that many.
    """
    source = experiment.source if experiment.held is None else experiment.held
    total = len(source) if end == "x0" else source.partners
    if n > total:
        raise DataError(f"the data have {total} samples of {end}, {n} were asked for")
    index = np.arange(n)
    found = source.read(index).x0 if end == "x0" else source.draw_x1(index, None, Draws.seeds(range(n)))
    return ((row, f"{end}-{i}") for i, row in enumerate(found))
