"""Run folders: what was asked, what was measured, what was trained."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentsb import parallel
from latentsb.checkpoint import Checkpoint, Checkpoints
from latentsb.disk import disk_error, write_text
from latentsb.environment import environment
from latentsb.errors import CheckpointError, Error, LockedError
from latentsb.identity import IMPORTS, check_imports, compare, compare_imports
from latentsb.recipe import Part, Recipe
from latentsb.recipe.nodes import dump

if TYPE_CHECKING:
    from latentsb.blends import Blend
    from latentsb.directions import Direction
    from latentsb.endpoints import Endpoint
    from latentsb.experiment import Experiment
    from latentsb.generate import Mode
    from latentsb.results import Edits, Interpolation, Reconstruction, Samples
    from latentsb.solvers.base import Solver
    from latentsb.tensors import Condition

__all__ = ["Run", "last_record", "load_run", "runs_in"]

RECIPE, RESOLVED, ENVIRONMENT, LOG, LOCK = "recipe.yaml", "resolved.yaml", "environment.json", "log.jsonl", "lock"
DATA = ("data.json", "files.csv", "unreadable.csv")  # what is known of the data
LATENTS = ("latents", "latents-held-out")
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
        self._new = False
        self._log_failed = False
        self._kept: tuple[tuple[str, int | None], Experiment] | None = None

    @classmethod
    def create(cls, recipe: Recipe, path: str | Path) -> Run:
        """Make a run folder, or take up one of the same recipe; lock it until `close`.

        A folder without a valid checkpoint may be taken up by another recipe, which begins it anew.
        Of several processes only the main one does so; the others learn whether it succeeded.

        Args:
            recipe: to train.
            path: of the folder.

        Raises:
            LockedError: if another process trains in it.
            CheckpointError: if it holds another recipe, imported files that were changed since, or something that is
                no run.
            DiskError: if it cannot be written.
        """
        made = parallel.first(lambda: cls._create(recipe, Path(path)))
        return made if made is not None else cls(Path(path), recipe)

    @classmethod
    def _create(cls, recipe: Recipe, folder: Path) -> Run:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; a run needs a folder: -o FOLDER")
        run = cls(folder, recipe)
        run._new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run._acquire()
        except OSError as error:
            raise disk_error(error, folder, 0) from error
        try:
            if (folder / RESOLVED).exists():
                run._take_up()
            else:
                foreign = {p.name for p in folder.iterdir() if not p.name.startswith(".tmp-")}
                foreign -= {LOCK, RECIPE, ENVIRONMENT, IMPORTS}
                if foreign:
                    raise CheckpointError(
                        f"{folder} is not empty and no run: it holds {', '.join(sorted(foreign)[:5])}"
                    )
            run._write()
        except BaseException:
            run.discard()
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
        check_imports(folder)  # before anything of them runs
        recipe = Recipe.load(folder / RESOLVED)
        return cls(folder, recipe)

    def discard(self) -> None:
        """Remove the folder again if this object made it and nothing was trained, encoded or reported in it."""
        kept = [self.path / name for name in ("checkpoints", *LATENTS, "nan_report")]
        if self._new and self._lock is not None and not any(p.is_file() for at in kept for p in at.rglob("*")):
            shutil.rmtree(self.path, ignore_errors=True)

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
        kept = self.recipe.held_out
        held = source_of(self.path, kept, held=True) if isinstance(kept, Part) else None
        experiment = build(self.recipe, weights=False, source=source_of(self.path, self.recipe.data), held=held)
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
        """Draw n samples; sample i depends on `seed + i` alone. See `latentsb.generate.sample`; weights as above."""
        from latentsb import generate

        seeds = range(seed, seed + n)
        return generate.sample(self._loaded(weights), seeds, label=label, cond=cond, guidance=guidance, solver=solver)

    def reconstruct(
        self,
        images: Tensor,
        *,
        mode: Mode = "faithful",
        endpoint: Endpoint | None = None,
        seed: int = 0,
        cond: Condition | None = None,
        weights: str = "ema",
    ) -> Reconstruction:
        """Encode images (B, C, H, W) in [-1, 1] and decode their codes; see `latentsb.generate.reconstruct`."""
        from latentsb import generate

        found = self._loaded(weights)
        return generate.reconstruct(found, images, mode=mode, endpoint=endpoint, seed=seed, cond=cond)

    def interpolate(
        self,
        images: Tensor,
        *,
        frames: int = 9,
        mode: Mode = "perceptual",
        blend: Blend | None = None,
        seed: int = 0,
        cond: Condition | None = None,
        weights: str = "ema",
    ) -> Interpolation:
        """Walk between images 0 and 1, 2 and 3, and so on; see `latentsb.walks.interpolate`."""
        from latentsb import walks

        found = self._loaded(weights)
        return walks.interpolate(found, images, frames=frames, mode=mode, blend=blend, seed=seed, cond=cond)

    def edit(
        self,
        images: Tensor,
        attribute: Direction | str | int,
        *,
        strengths: Sequence[float] = (-2, -1, 0, 1, 2),
        mode: Mode = "perceptual",
        seed: int = 0,
        cond: Condition | None = None,
        weights: str = "ema",
    ) -> Edits:
        """Move the codes of images along the direction of an attribute; see `latentsb.edits.edit`."""
        from latentsb import edits

        found = self._loaded(weights)
        return edits.edit(found, images, attribute, strengths=strengths, mode=mode, seed=seed, cond=cond)

    def encode(self, images: Tensor, *, weights: str = "ema") -> Tensor:
        """Mean codes of images, shape (B, Z); see `latentsb.codes.encode`."""
        from latentsb import codes

        return codes.encode(self._loaded(weights), images)

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
            raise LockedError(
                f"{self.path} is being trained in by {owner}; stop it, or name another folder with -o"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = handle

    def _take_up(self) -> None:
        """Check that the folder is of this recipe; one in which nothing was trained becomes it."""
        stored: Recipe | None = None
        refusal: Error
        try:
            # Compared first: the stored files cannot be imported beside changed ones of the same words.
            compare_imports(self.path, self.recipe)
            stored = Run.open(self.path).recipe
            compare(self.path, self.recipe, stored)
            return
        except Error as error:
            refusal = error
        if self.checkpoints.latest() is not None:
            raise refusal
        logger.info("%s holds nothing trained yet: it begins anew with the recipe as it is now", self.path)
        self._clear(stored)

    def _clear(self, stored: Recipe | None) -> None:
        """Remove what a start with another recipe left; latents stay where data and autoencoder are the same."""
        for name in (RESOLVED, RECIPE, ENVIRONMENT, LOG, *DATA):
            (self.path / name).unlink(missing_ok=True)
        folders = [IMPORTS, "nan_report", "tensorboard"]
        heads = {key.partition(".")[0] for key in self.recipe.differences(stored)} if stored else {"data"}
        if heads & {"data", "held_out", "autoencoder", "latents", "seed", "imports"}:
            folders += LATENTS
        for name in folders:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for picture in (self.path / "samples").glob("preview-*.png"):
            picture.unlink()

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


def load_run(path: str | Path) -> Run:
    """Open a trained run: `load_run("runs/x").sample(16, seed=0)`."""
    return Run.open(path)


def runs_in(folder: Path) -> list[Path]:
    """Run folders directly inside a folder."""
    return sorted(p.parent for p in folder.glob(f"*/{RESOLVED}"))


def last_record(folder: Path) -> dict[str, Any]:
    """The last line of a run's log that says how far training is; empty if there is none."""
    return next((r for r in reversed(_records(folder / LOG)) if "images_per_second" in r), {})


def _records(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
