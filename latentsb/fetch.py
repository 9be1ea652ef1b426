"""Bringing published weights to their place: downloaded or copied beside it, opened, recorded, then renamed.

What an interruption leaves beside the place is taken up by the next call.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentsb.autoencoder import AUTOENCODERS
from latentsb.disk import Disk, alone, disk_error
from latentsb.errors import DataError, DiskError, Error, nearest
from latentsb.tensors import Spec
from latentsb.weights import KNOWN, Known, files_of, home, misfit, names_of

__all__ = ["RECORD", "Fetched", "UnknownWeightsError", "fetch", "here"]

RECORD = "fetched.json"
CHUNK = 1 << 20
SECONDS = 30.0


class UnknownWeightsError(Error):
    """A name that no published weights have."""

    exit_code = 2


@dataclass(frozen=True)
class Fetched:
    """Weights in their place.

    Args:
        name: by which recipes name them.
        path: of the folder.
        files: bytes and sha256 of each file.
        origin: where they came from.
        fresh: they were brought by this call, and were not there before.
    """

    name: str
    path: Path
    files: Mapping[str, Mapping[str, Any]]
    origin: str
    fresh: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def here(name: str) -> Path | None:
    """The folder of known weights if its files are there; they are not opened."""
    known = KNOWN[name]
    try:
        files_of(name, known.files, *known.instead)
    except DataError:
        return None
    return home() / name


def fetch(name: str, origin: str | None = None) -> Fetched:
    """Bring published weights to their place, if they are not there yet.

    Args:
        name: a known one.
        origin: a folder, a file, or the URL of either, in place of the Hugging Face Hub.

    Raises:
        UnknownWeightsError: if nothing is known by this name.
        DataError: if they cannot be had, or are not what the name says; one line that says what else can be done.
        DiskError: if they cannot be written.
    """
    if name not in KNOWN:
        raise UnknownWeightsError(f"no weights are called '{name}'.{nearest(name, KNOWN)} Known: {', '.join(KNOWN)}")
    known, target = KNOWN[name], home() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if target.exists():
                return _found(name, target, origin)
            free = shutil.disk_usage(target.parent).free
            if free < known.size:
                raise DiskError(f"{name} takes about {known.size:,} bytes, {free:,} are free at {target.parent}")
            beside = target.with_name(f".{name}.fetching")
            beside.mkdir(exist_ok=True)
            try:
                source = _bring(name, known, origin, beside)
                return _settle(name, source, beside, target)
            finally:
                if beside.exists() and not any(beside.iterdir()):
                    beside.rmdir()
    except OSError as error:
        raise disk_error(error, target, known.size) from error


def _found(name: str, target: Path, origin: str | None) -> Fetched:
    """Weights that are there already."""
    if origin is not None:
        raise DataError(f"{target} is there already; remove it to take '{name}' from {origin}")
    try:
        _open(name, target)
    except DataError as error:
        raise DataError(f"{error}; remove {target} and fetch it again") from error
    record = target / RECORD
    stored = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return Fetched(name, target, stored.get("files") or _sums(target), stored.get("from", str(target)), False)


def _bring(name: str, known: Known, origin: str | None, beside: Path) -> str:
    """Put the files beside their place; return where they came from."""
    if origin is None:
        _from_hub(name, known, beside)
        return f"huggingface.co/{known.repo}"
    if origin.startswith(("http://", "https://")):
        _from_url(name, known, origin, beside)
        return origin
    where = Path(origin).expanduser()
    if not where.exists():
        raise DataError(f"there is no {where} to take '{name}' from")
    shutil.rmtree(beside)  # what a download left
    beside.mkdir()
    for path in (*files_of(where, known.files, *known.instead, owner=name), *where.glob("LICENSE*")):
        shutil.copyfile(path, beside / path.name)
    return str(where.resolve())


def _settle(name: str, source: str, beside: Path, target: Path) -> Fetched:
    """Open what was brought, record it, and give it its name."""
    disk = Disk()
    shutil.rmtree(beside / ".cache", ignore_errors=True)  # the hub's own notes on what is complete
    for part in beside.glob("*.part"):
        part.unlink()
    try:
        _open(name, beside)
    except DataError as error:
        shutil.rmtree(beside)
        told = str(error).replace(str(beside), source)
        raise DataError(f"what {source} has is not '{name}': {told}; nothing was kept") from error
    files = _sums(beside)
    record = {"name": name, "from": source, "licence": KNOWN[name].licence, "files": files}
    (beside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in sorted(beside.iterdir()):
        disk.sync(path)
    disk.sync_dir(beside)
    disk.rename(beside, target)
    disk.sync_dir(target.parent)
    return Fetched(name, target, files, source, True)


def _open(name: str, folder: Path) -> None:
    """Load the weights into their autoencoder: every tensor is there, of the known shape, and none is left over."""
    make: Any = AUTOENCODERS[KNOWN[name].autoencoder]
    images = Spec((3, 256, 256))  # a multiple of every factor
    with torch.random.fork_rng(devices=[]):
        opened = make(images, weights=folder)
        opened.load()
        with torch.device("meta"):
            expected = make(images, weights=name)
    if wrong := misfit(expected.state_dict(), opened.state_dict()):
        raise DataError(f"{folder} does not fit: {wrong}")


def _sums(folder: Path) -> dict[str, dict[str, Any]]:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD]
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sum(path)} for path in paths}


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(name: str, known: Known, beside: Path) -> None:
    from huggingface_hub import constants, hf_hub_download

    where = f"{constants.ENDPOINT}/{known.repo}"
    try:  # first of all, since the library repeats itself for half a minute where there is no network
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer, whatever it says of this page
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise _unreachable(name, where, f"no connection ({getattr(error, 'reason', error)})") from error
    for file in known.files:
        try:
            hf_hub_download(known.repo, file, local_dir=beside, endpoint=constants.ENDPOINT)
        except Exception as error:  # the library has a dozen kinds, of three families
            reason = str(error).strip().split("\n", 1)[0].rstrip(". ") or type(error).__name__
            raise _unreachable(name, where, reason) from error


def _from_url(name: str, known: Known, origin: str, beside: Path) -> None:
    """Files below a URL, or the one file that it is."""
    one = origin.endswith(".safetensors")
    for url in [origin] if one else [f"{origin.rstrip('/')}/{file}" for file in known.files]:
        try:
            _download(url, beside / url.rsplit("/", 1)[1])
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            raise _unreachable(name, url, str(getattr(error, "reason", error))) from error


def _download(url: str, path: Path) -> None:
    """Load a file, going on where an earlier attempt at this URL ended."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            done = done if answer.status == 206 else 0  # a server may ignore the range and send everything
            whole = done + int(answer.headers.get("Content-Length", -1 - done))
            with open(part, "ab" if done else "wb") as file:
                shutil.copyfileobj(answer, file, CHUNK)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:  # the range is empty: everything was there
            raise
        whole = done
    if whole >= 0 and part.stat().st_size != whole:
        raise ConnectionError(f"the connection ended after {part.stat().st_size:,} of {whole:,} bytes")
    os.replace(part, path)


def _unreachable(name: str, where: str, reason: str) -> DataError:
    return DataError(
        f"cannot load '{name}' from {where}: {reason}; repeat the command to go on; or put into {home() / name}: "
        f"{names_of(name)}; or take these from a folder that has them: latentsb fetch {name} --from FOLDER"
    )
