"""Checkpoints that survive kills, power failures, full disks and bit rot.

A checkpoint is a directory `step-000012000` of safetensors files, `state.json` and `manifest.json`:

1. every file is written in a hidden directory beside it and synced, the manifest (bytes and sha256 of each) last;
2. the hidden directory is synced, renamed, and its parent synced;
3. what was written is read back and its hashes compared;
4. only then are checkpoints pruned that are older than the newest `keep` (at least two) valid ones.

A directory whose files do not match its manifest does not count: reading walks back to the newest that does and
says which ones it passed over. Nothing here is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from latentsb.disk import FULL, Disk, disk_error
from latentsb.errors import CheckpointError, DiskError

__all__ = ["FORMAT", "Checkpoint", "Checkpoints"]

FORMAT = 1
MANIFEST, STATE, SUFFIX = "manifest.json", "state.json", ".safetensors"
STEP = re.compile(r"step-(\d{9,})")
# These say that a second attempt would fail in the same way.
PERMANENT = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files matched its manifest when it was opened.

    Args:
        path: its directory.
        step: optimiser steps of the run when it was written.
        state: content of `state.json`.
        files: names of its tensor files, without suffix.
        sha256: hash of each tensor file.
        disk: where it lies.
    """

    path: Path
    step: int
    state: Mapping[str, Any]
    files: tuple[str, ...]
    sha256: Mapping[str, str]
    disk: Disk

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of one file by name, on the CPU.

        Raises:
            CheckpointError: if there is no such file, or it changed since the checkpoint was opened.
        """
        if name not in self.files:
            raise CheckpointError(f"{self.path} has no '{name}'; it has {', '.join(self.files)}")
        data = self.disk.read(self.path / (name + SUFFIX))
        if hashlib.sha256(data).hexdigest() != self.sha256[name]:
            raise CheckpointError(f"{self.path / (name + SUFFIX)} changed while it was read")
        tensors: dict[str, Tensor] = load_tensors(data)
        return tensors


class Damaged(Exception):
    """A directory that is not a checkpoint; the message says why."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `runs/x/checkpoints`; made at the first save.
        keep: newest valid checkpoints that are never pruned.
        disk: file operations.

    Attributes:
        passed_over: directories that the last `latest` refused, with the reason.

    Raises:
        ValueError: if keep is below 2.
    """

    def __init__(self, folder: Path, *, keep: int = 2, disk: Disk | None = None) -> None:
        if keep < 2:
            raise ValueError(f"keep: at least two checkpoints are kept, got {keep}")
        self.folder, self.keep, self.disk = folder, keep, disk or Disk()
        self.passed_over: list[tuple[Path, str]] = []

    def steps(self) -> list[int]:
        """Steps of all directories that look like checkpoints, valid or not, ascending."""
        found = (STEP.fullmatch(name) for name in self.disk.names(self.folder))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Directory of a step."""
        return self.folder / f"step-{step:09d}"

    def open(self, step: int) -> Checkpoint:
        """Open and verify the checkpoint of a step.

        Raises:
            CheckpointError: if it is missing, damaged, or of another format version.
        """
        try:
            return self._verify(self.path(step), step)
        except Damaged as error:
            raise CheckpointError(f"{self.path(step)} is damaged: {error}") from None

    def latest(self) -> Checkpoint | None:
        """The newest valid checkpoint, or None; what it walked past stands in `passed_over` and in the log.

        Raises:
            CheckpointError: if the newest intact one has a format version that this program cannot read.
        """
        self.passed_over = []
        for step in reversed(self.steps()):
            try:
                return self._verify(self.path(step), step)
            except Damaged as error:
                self.passed_over.append((self.path(step), str(error)))
                log.warning("checkpoint %s is damaged and passed over: %s", self.path(step), error)
        return None

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint durably, verify it, then prune.

        A valid checkpoint of the same step is left as it is and returned.

        Args:
            step: optimiser steps of the run.
            tensors: content of each tensor file; contiguous, on the CPU, not sharing memory.
            state: JSON values.

        Raises:
            DiskError: if it cannot be written (after one more attempt where that may help); earlier checkpoints
                are untouched.
        """
        if step in self.steps():
            try:
                return self._verify(self.path(step), step)
            except Damaged as damage:
                log.warning("%s is damaged (%s) and is written again", self.path(step), damage)
        files = {name + SUFFIX: save_tensors(dict(values)) for name, values in tensors.items()}
        files[STATE] = _json(state)
        files[MANIFEST] = _manifest(files, {name: len(values) for name, values in tensors.items()})
        needed = sum(map(len, files.values()))
        try:
            self._write(step, files, needed)
        except OSError as first:
            self.clean()
            if first.errno in PERMANENT:
                raise disk_error(first, self.path(step), needed) from first
            log.warning("saving %s failed (%s); trying once more", self.path(step), first)
            try:
                self._write(step, files, needed)
            except OSError as second:
                self.clean()
                raise disk_error(second, self.path(step), needed) from second
        try:
            saved = self._verify(self.path(step), step)
        except Damaged as error:
            raise DiskError(f"{self.path(step)} does not read back as it was written: {error}") from None
        self._prune(saved.step)
        return saved

    def clean(self) -> list[Path]:
        """Remove what an interrupted save or prune left behind; returns it. Call it only with the run's lock."""
        left = [self.folder / name for name in self.disk.names(self.folder) if name.startswith(".tmp-")]
        for path in left:
            try:
                self._remove(path)
            except OSError as error:
                log.warning("cannot remove %s: %s", path, error)
        return left

    def _write(self, step: int, files: Mapping[str, bytes], needed: int) -> None:
        disk = self.disk
        if not disk.is_dir(self.folder):
            disk.mkdir(self.folder)
            disk.sync_dir(self.folder.parent)
        if disk.free(self.folder) < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        hidden = self.folder / f".tmp-{step:09d}-{os.getpid()}"
        disk.mkdir(hidden)
        for name, data in files.items():
            disk.write(hidden / name, data)
            disk.sync(hidden / name)
        disk.sync_dir(hidden)
        if disk.is_dir(self.path(step)):  # a damaged directory of the same step
            aside = self.folder / f".tmp-damaged-{step:09d}-{os.getpid()}"
            disk.rename(self.path(step), aside)
            self._remove(aside)
        disk.rename(hidden, self.path(step))
        disk.sync_dir(self.folder)

    def _verify(self, path: Path, step: int) -> Checkpoint:
        manifest = self._read_manifest(path)
        listed: dict[str, dict[str, Any]] = manifest["files"]
        found = set(self.disk.names(path)) - {MANIFEST}
        if missing := set(listed) - found:
            raise Damaged(f"{', '.join(sorted(missing))} missing")
        if extra := found - set(listed):
            raise Damaged(f"{', '.join(sorted(extra))} not in the manifest")
        state: Any = None
        for name, entry in listed.items():
            data = self._read(path / name)
            if len(data) != entry["bytes"]:
                raise Damaged(f"{name} has {len(data):,} bytes, the manifest says {entry['bytes']:,}")
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise Damaged(f"{name} does not match its sha256")
            if name == STATE:
                state = json.loads(data)
        hashes = {n.removesuffix(SUFFIX): e["sha256"] for n, e in listed.items() if n.endswith(SUFFIX)}
        return Checkpoint(path, step, state, tuple(sorted(hashes)), hashes, self.disk)

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self._read(path / MANIFEST))
            own = manifest.pop("sha256")
            intact = own == hashlib.sha256(_json(manifest)).hexdigest()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(f"{MANIFEST} is unreadable") from None
        if not intact:
            raise Damaged(f"{MANIFEST} does not match its own sha256")
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format version {manifest['format']}, this latentsb reads {FORMAT} "
                f"(written by {manifest['written_by']})"
            )
        return manifest

    def _read(self, path: Path) -> bytes:
        try:
            return self.disk.read(path)
        except FileNotFoundError:
            raise Damaged(f"{path.name} missing") from None
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read: {error}") from None

    def _prune(self, verified: int) -> None:
        """Remove what is older than the newest `keep` valid checkpoints; a failure costs space only."""
        valid = 0
        for step in reversed(self.steps()):
            path = self.path(step)
            if valid >= self.keep:
                aside = self.folder / f".tmp-pruned-{step:09d}-{os.getpid()}"
                try:
                    self.disk.rename(path, aside)
                    self._remove(aside)
                except OSError as error:
                    log.warning("cannot remove the old checkpoint %s: %s", path, error)
                continue
            try:
                if step != verified:
                    self._verify(path, step)
                valid += 1
            except (Damaged, CheckpointError):
                continue  # it does not count as one that is kept, and resuming reports it

    def _remove(self, path: Path) -> None:
        if not self.disk.is_dir(path):
            self.disk.unlink(path)
            return
        for name in self.disk.names(path):
            self._remove(path / name)
        self.disk.rmdir(path)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _manifest(files: Mapping[str, bytes], counts: Mapping[str, int]) -> bytes:
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "files": {
            name: {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "tensors": counts.get(name.removesuffix(SUFFIX), 0),
            }
            for name, data in files.items()
        },
        "written_by": {name: version(name) for name in ("latentsb", "torch", "safetensors")},
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    manifest["sha256"] = hashlib.sha256(_json(manifest)).hexdigest()
    return _json(manifest)
