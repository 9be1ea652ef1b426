"""Run folders: what was asked, what was measured, what was trained."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsb import parallel
from latentsb.checkpoint import Checkpoint, Checkpoints
from latentsb.disk import disk_error, write_text
from latentsb.environment import environment
from latentsb.errors import CheckpointError, LockedError
from latentsb.recipe import Recipe
from latentsb.recipe.nodes import dump

if TYPE_CHECKING:
    from latentsb.experiment import Experiment
    from latentsb.generate import Mode
    from latentsb.results import Interpolation, Reconstruction, Samples
    from latentsb.solvers.base import Solver
    from latentsb.tensors import Condition

__all__ = ["Run", "identity", "last_record", "load_run", "runs_in"]

RECIPE, RESOLVED, ENVIRONMENT, LOG, LOCK = "recipe.yaml", "resolved.yaml", "environment.json", "log.jsonl", "lock"
IMPORTS = "imports"
# Keys that may change between two starts of a run: they decide how long it goes on and what is seen of it.
FREE = re.compile(
    r"(train|stages\.\d+)\.(images|max_time|log_every|save_every|preview_every|keep|workers|max_bad)|preview(\..*)?|stages"
)
logger = logging.getLogger(__name__)


class Run:
    """A run folder.

    Make one with `Run.create` (to train) or `Run.open` (to use).

    Args:
        path: the folder.
        recipe: bound, with every default.

    Attributes:
        checkpoints: its checkpoints.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.checkpoints = Checkpoints(path / "checkpoints", keep=recipe.train.keep)
        self._lock: int | None = None
        self._log_failed = False
        self._kept: tuple[tuple[str, int | None], Experiment] | None = None

    @classmethod
    def create(cls, recipe: Recipe, path: str | Path) -> Run:
        """Make a run folder, or take up one of the same recipe; lock it until `close`.

        Of several processes only the main one does so; the others learn whether it succeeded.

        Args:
            recipe: to train.
            path: of the folder.

        Raises:
            LockedError: if another process trains in it.
            CheckpointError: if it holds another recipe, or something that is no run.
            DiskError: if it cannot be written.
        """
        made = parallel.first(lambda: cls._create(recipe, Path(path)))
        return made if made is not None else cls(Path(path), recipe)

    @classmethod
    def _create(cls, recipe: Recipe, folder: Path) -> Run:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run = cls(folder, recipe)
            run._acquire()
        except OSError as error:
            raise disk_error(error, folder, 0) from error
        try:
            if (folder / RESOLVED).exists():
                run._compare(cls.open(folder).recipe)
            else:
                foreign = {p.name for p in folder.iterdir() if not p.name.startswith(".tmp-")}
                foreign -= {LOCK, RECIPE, ENVIRONMENT, IMPORTS}
                if foreign:
                    raise CheckpointError(
                        f"{folder} is not empty and no run: it holds {', '.join(sorted(foreign)[:5])}"
                    )
            run._write()
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run to look at it or to sample from it.

        Raises:
            CheckpointError: if there is no run, or its stored imports were changed.
        """
        folder = Path(path)
        if not (folder / RESOLVED).is_file():
            known = [run.name for run in runs_in(folder.parent)]
            hint = f" Runs there: {', '.join(known)}" if known else ""
            raise CheckpointError(f"{folder} is no run: it has no {RESOLVED}.{hint}")
        _check_imports(folder)  # before anything of them runs
        recipe = Recipe.load(folder / RESOLVED)
        return cls(folder, recipe)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record to `log.jsonl`; if that fails, training goes on and a warning is given once."""
        try:
            with open(self.path / LOG, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            if not self._log_failed:
                logger.warning("cannot write %s: %s; training goes on without it", self.path / LOG, error)
            self._log_failed = True

    def records(self) -> list[dict[str, Any]]:
        """The records of `log.jsonl`; a line that a kill cut short is left out."""
        return _records(self.path / LOG)

    def rewind_log(self, step: int) -> None:
        """Remove what was logged after a step and will be logged again; -1 removes everything."""
        if (self.path / LOG).is_file():
            kept = [json.dumps(r) + "\n" for r in self.records() if r.get("step", 0) <= step]
            write_text(self.path / LOG, "".join(kept))

    def checkpoint(self) -> Checkpoint:
        """The newest valid checkpoint.

        Raises:
            CheckpointError: if there is none.
        """
        found = self.checkpoints.latest()
        if found is None:
            passed = "; ".join(f"{p.name}: {why}" for p, why in self.checkpoints.passed_over)
            raise CheckpointError(f"{self.path} has no valid checkpoint yet" + (f" ({passed})" if passed else ""))
        return found

    def weights(self, weights: str = "ema", checkpoint: Checkpoint | None = None) -> dict[str, Tensor]:
        """All weights of the newest checkpoint by full name, `bridge.network.…`.

        Args:
            weights: `ema` for the averaged ones (the raw ones where nothing was averaged), `model`, or the name of
                one of several averages.
            checkpoint: another than the newest.

        Raises:
            CheckpointError: if there is no checkpoint or no such average.
        """
        checkpoint = checkpoint or self.checkpoint()
        values = checkpoint.tensors("model")
        averages = [name for name in checkpoint.files if name.startswith("ema-")]
        chosen = averages[0] if weights == "ema" and averages else weights
        if chosen in averages:
            values.update(checkpoint.tensors(chosen))
        elif chosen not in ("ema", "model"):
            raise CheckpointError(f"{checkpoint.path} has no weights '{weights}'; it has model, {', '.join(averages)}")
        return values

    def experiment(self, weights: str = "ema", device: torch.device | str | None = None) -> Experiment:
        """The trained experiment, in evaluation mode; the data may be gone where no sample of them is asked for.

        Args:
            weights: as in `weights`.
            device: CUDA where there is one, else the CPU, if None.

        Raises:
            CheckpointError: if there is no valid checkpoint.
        """
        from latentsb.data.record import source_of
        from latentsb.experiment import build
        from latentsb.stages import fit_parts

        checkpoint = self.checkpoint()
        experiment = build(self.recipe, weights=False, source=source_of(self.path, self.recipe.data))
        experiment.load_state_dict(self.weights(weights, checkpoint))
        experiment = replace(experiment, step=checkpoint.step, seen=int(checkpoint.state["seen"]), weights=weights)
        experiment = experiment.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not checkpoint.state["fitted"]:
            fit_parts(experiment, self.path)
        return experiment

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        label: int | None = None,
        cond: Condition | None = None,
        guidance: float = 1.0,
        solver: Solver | None = None,
        weights: str = "ema",
    ) -> Samples:
        """Draw samples; sample i depends on `seed + i` alone. See `latentsb.generate.sample`.

        Args:
            n: how many.
            seed: of the first.
            label: class of all of them; classes in turn if None.
            cond: other conditions, n rows.
            guidance: classifier-free guidance scale; 1 is none.
            solver: another solver than the recipe's.
            weights: as in `weights`.
        """
        from latentsb import generate

        seeds = range(seed, seed + n)
        return generate.sample(self._loaded(weights), seeds, label=label, cond=cond, guidance=guidance, solver=solver)

    def reconstruct(
        self,
        images: Tensor,
        *,
        mode: Mode = "faithful",
        seed: int = 0,
        cond: Condition | None = None,
        weights: str = "ema",
    ) -> Reconstruction:
        """Encode images (B, C, H, W) in [-1, 1] and decode their codes; see `latentsb.generate.reconstruct`."""
        from latentsb import generate

        return generate.reconstruct(self._loaded(weights), images, mode=mode, seed=seed, cond=cond)

    def interpolate(
        self,
        images: Tensor,
        *,
        frames: int = 9,
        mode: Mode = "perceptual",
        seed: int = 0,
        cond: Condition | None = None,
        weights: str = "ema",
    ) -> Interpolation:
        """Walk between images 0 and 1, 2 and 3, and so on; see `latentsb.generate.interpolate`."""
        from latentsb import generate

        return generate.interpolate(self._loaded(weights), images, frames=frames, mode=mode, seed=seed, cond=cond)

    def _loaded(self, weights: str) -> Experiment:
        """The experiment of the newest checkpoint, kept from call to call."""
        steps = self.checkpoints.steps()
        key = (weights, steps[-1] if steps else None)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.experiment(weights))
        return self._kept[1]

    def _acquire(self) -> None:
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise LockedError(f"{self.path} is being trained in by {owner}; stop it, or give another --run") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = handle

    def _compare(self, stored: Recipe) -> None:
        differing = {k: v for k, v in self.recipe.differences(stored).items() if not FREE.fullmatch(k)}
        kept, ours = stored.stages, self.recipe.stages
        if len(kept) != len(ours) or any(a.train != b.train for a, b in zip(kept, ours, strict=False)):
            differing["stages"] = ([s.train for s in ours], [s.train for s in kept])
        else:
            for i, (own, old) in enumerate(zip(ours, kept, strict=True)):
                new, was = own.settings.model_dump(), old.settings.model_dump()
                keys = (f"stages.{i}.{k}" for k in new if new[k] != was[k] and f"train.{k}" not in differing)
                for key in keys:
                    name = key.rpartition(".")[2]
                    if not FREE.fullmatch(key):
                        differing[key] = (new[name], was[name])
        if differing:
            told = "; ".join(f"{key}: asked {ours!r}, trained with {was!r}" for key, (ours, was) in differing.items())
            raise CheckpointError(
                f"{self.path} was trained with another recipe ({told}); change it back, or give another --run"
            )

    def _write(self) -> None:
        """Write what was asked; `resolved.yaml` last, since it is what makes the folder a run."""
        resolved = self.recipe.resolved()
        if self.recipe.imports:
            resolved["imports"] = self._store_imports()
        text = dump(resolved)
        if (self.path / RESOLVED).exists() and (self.path / RESOLVED).read_text() == text:
            return
        if not (self.path / RECIPE).exists():
            write_text(self.path / RECIPE, self.recipe.text or text)
            write_text(self.path / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")
        write_text(self.path / RESOLVED, text)

    def _store_imports(self) -> list[str]:
        folder = self.path / IMPORTS
        entries = []
        for target in self.recipe.imports:
            if not isinstance(target, Path):
                entries.append(target)
                continue
            folder.mkdir(exist_ok=True)
            if not (folder / target.name).exists():
                shutil.copyfile(target, folder / target.name)
            entries.append(f"{IMPORTS}/{target.name}")
        if folder.exists():
            write_text(folder / "sha256.json", json.dumps(dict(self.recipe.hashes), indent=1))
        return entries

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def identity(recipe: Recipe) -> str:
    """sha256 of what decides a run's numbers: the resolved recipe without the keys that may change between starts."""
    kept = {key: value for key, value in recipe.resolved().items() if key not in ("name", "about", "imports")}
    stages = [{"train": s.train, **s.settings.model_dump(mode="json")} for s in recipe.stages]
    kept.update(stages=stages, imports=dict(recipe.hashes))
    essence = {k: v for k, v in kept.items() if k not in ("train", "preview")}
    for i, stage in enumerate(stages):
        essence["stages"][i] = {k: v for k, v in stage.items() if not FREE.fullmatch(f"stages.{i}.{k}")}
    return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()


def load_run(path: str | Path) -> Run:
    """Open a trained run: `load_run("runs/x").sample(16, seed=0)`."""
    return Run.open(path)


def runs_in(folder: Path) -> list[Path]:
    """Run folders directly inside a folder."""
    return sorted(p.parent for p in folder.glob(f"*/{RESOLVED}"))


def last_record(folder: Path) -> dict[str, Any]:
    """The last line of a run's log that says how far training is; empty if there is none."""
    return next((r for r in reversed(_records(folder / LOG)) if "images" in r), {})


def _records(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _check_imports(folder: Path) -> None:
    """Compare the stored imports with their hashes.

    Raises:
        CheckpointError: if one is missing or was changed.
    """
    listed = folder / IMPORTS / "sha256.json"
    for name, digest in (json.loads(listed.read_text()) if listed.exists() else {}).items():
        path = folder / IMPORTS / name
        if name.endswith(".py") and (not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest):
            raise CheckpointError(f"{path} is not the file that the run was trained with")
