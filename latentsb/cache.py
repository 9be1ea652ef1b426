"""The latent cache: every image encoded once, before a bridge is trained in the latents.

A cache holds *raw* latents, so that it depends on the encoder's weights and the data alone; samples leave it
normalised. It is written beside its place, made durable, and only then given its name: what bears the name is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb import parallel
from latentsb.autoencoder import Autoencoder
from latentsb.building import FORMAT, MANIFEST, digest, numpy_type
from latentsb.data.source import Items, Source
from latentsb.encoding import Progress, ahead, blocks_of, build, made_of
from latentsb.errors import CacheError
from latentsb.normalisers import Statistics
from latentsb.randomness import Draws
from latentsb.roundtrip import Kept
from latentsb.shards import Shards, damaged
from latentsb.stores import Auto, Store

__all__ = ["LatentCache", "Normalised", "manifest_of", "size_of", "verify"]

log = logging.getLogger(__name__)

LARGEST_BATCH, PIXELS_AT_ONCE = 64, 16 * 3 * 256**2
"""Images, and numbers in them, that are encoded at once."""
LARGE = 4_000_000_000
"""Bytes of a cache beyond which a line says that its checksums are being compared."""
CHECKSUM = re.compile("[0-9a-f]{64}")
TOLD = 5
"""Damaged files that a message names."""
READABLE = (1, FORMAT)
"""Caches of the first format are whole files of float16 or float32 and remember no error and no round trip."""


class Normalised(Source):
    """A source whose samples become normalised latents as they are read, for autoencoders that are not cached.

    Args:
        source: of samples.
        autoencoder: without weights, its normaliser fitted.
    """

    def __init__(self, source: Source, autoencoder: Autoencoder) -> None:
        self.source, self.spec, self.cond = source, autoencoder.latent, source.cond
        self.moments = autoencoder.moments
        self.variants, self.two_sided, self.paired = source.variants, source.two_sided, source.paired
        self.shift, self.scale = autoencoder.shift.cpu().clone(), autoencoder.scale.cpu().clone()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def partners(self) -> int:
        """How many x1 there are."""
        return self.source.partners

    def _latents(self, samples: Tensor) -> Tensor:
        return (self.moments(samples).mean - self.shift) / self.scale

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Latents of both ends."""
        found = self.source.read(index, variant)
        x1 = None if found.x1 is None else self._latents(found.x1)
        return Items(self._latents(found.x0), x1, found.cond)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Latents of the other end."""
        return self._latents(self.source.draw_x1(index, variant, draws))

    def fingerprint(self) -> dict[str, Any]:
        """That of the source, with shift and scale."""
        affine = {"shift": self.shift.flatten().tolist(), "scale": self.scale.flatten().tolist()}
        return {**self.source.fingerprint(), **affine}


class LatentCache(Source):
    """Normalised latents gathered from memory-mapped files; make one with `open_or_build`.

    Where the store keeps the posterior, `draw` returns a sample of it, `mean + std · noise`, whose noise belongs to
    seed, images seen and row; `read` always returns the mean.

    Args:
        path: of the cache.
        source: whose samples were encoded.
        autoencoder: that encoded them. If its normaliser is not fitted yet, it is, to the cache's statistics.
        store: in which the latents are kept.
        verify: read every byte and compare checksums first, at the disk's speed: what a disk has damaged must not be
            trained on.

    Raises:
        CacheError: if there is no whole cache, a file of it is damaged (named), or it was made of something else;
            names the field and both values.
    """

    def __init__(
        self, path: Path, source: Source, autoencoder: Autoencoder, *, store: Store = Auto(), verify: bool = True
    ) -> None:
        self.path, self.sample = path, store.posterior
        self.manifest = manifest_of(path)
        _compare(path, self.manifest["made_of"], made_of(source, autoencoder, store))
        self.store = store.resolved(autoencoder.latent_dtype)
        self.spec, self.cond = autoencoder.latent, source.cond
        self.variants, self.two_sided, self.paired = source.variants, source.two_sided, source.paired
        self.counts: dict[str, int] = self.manifest["counts"]
        if verify:
            self.verify()
        if not bool(autoencoder.fitted):
            autoencoder.use_statistics(Statistics.from_json(self.manifest["statistics"]))
        self.shift, self.inverse = autoencoder.shift.cpu().clone(), 1 / autoencoder.scale.cpu()
        try:
            self._open()
        except ValueError as error:
            raise CacheError(f"latent cache {path} is damaged: {error}; remove the folder to encode again") from error

    def _open(self) -> None:
        moments = ("mean", "std") if self.sample else ("mean",)
        self._moments: dict[tuple[str, str, int], Shards] = {}
        self._affine: dict[tuple[str, str, int], Tensor] = {}
        for key in ((e, m, v) for e in self.counts for m in moments for v in range(self.variants)):
            name, count, dtype = "-".join(map(str, key)), self.counts[key[0]], self.store.dtype
            self._moments[key] = Shards(self.path, name, count, self.spec.shape, dtype, self.manifest["rows"])
            if self.store.ranged:
                blocks = -(-count // self.manifest["batch"])
                self._affine[key] = self._whole(f"{name}-affine", blocks, (2, self.spec.channels), np.dtype(np.float32))
        n = self.counts["x0"]
        self._cond = {
            name: self._whole(f"cond-{name}", n, spec.shape, numpy_type(spec.dtype)) for name, spec in self.cond.items()
        }

    def _whole(self, name: str, count: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        """A small array, in memory."""
        return torch.from_numpy(Shards(self.path, name, count, shape, dtype, count).take(np.arange(count)))

    @classmethod
    def open_or_build(
        cls,
        path: Path,
        source: Source,
        autoencoder: Autoencoder,
        progress: Progress | None = None,
        *,
        store: Store = Auto(),
        batch: int | None = None,
        verify: bool = True,
    ) -> Source:
        """The latents of a source: from the cache at `path`, which is built where there is none.

        An autoencoder that is not `cached` encodes what is read; where it is the identity and nothing is normalised,
        the source itself is returned. Every process of a group must call this: each encodes a share. Of several groups
        one builds and the others wait. What is encoded stays when it is broken off; the same call again goes on.

        Args:
            path: folder of the cache; its parent exists or can be made.
            source: of images.
            autoencoder: on the device on which to encode; its normaliser is fitted by this call if it was not.
            progress: called with images encoded (or read, to fit a normaliser alone) and images in all, after
                each batch and before the first to be encoded; what it raises ends the work.
            store: in which latents are kept.
            batch: images encoded at once; None for as many as make up 16 of 256×256, and at most 64.
            verify: compare the checksums of a cache that is there; one that was just built is not read again.

        Raises:
            CacheError: if a cache is there that was made of something else, or is damaged.
            DiskError: if the disk has no room for it.
        """
        if len(source) == 0:
            return source
        batch = batch or max(1, min(LARGEST_BATCH, PIXELS_AT_ONCE // source.spec.numel))
        if not autoencoder.cached:
            if not bool(autoencoder.fitted):
                read = _watched(source, batch, progress)
                raws = (autoencoder.moments(images).mean for images in read)
                parallel.together(lambda: autoencoder.fit_normaliser(raws))
            plain = autoencoder.is_identity and not autoencoder.normaliser.fits
            return source if plain else Normalised(source, autoencoder)
        if not parallel.broadcast(path.exists()) and build(path, source, autoencoder, store, progress, batch):
            verify = False
        whole = parallel.first(lambda: cls(path, source, autoencoder, store=store, verify=verify))
        return cls(path, source, autoencoder, store=store, verify=False) if whole is None else whole

    @staticmethod
    def key(source: Source, autoencoder: Autoencoder, store: Store = Auto()) -> str:
        """A short word that differs where caches would; a good name for their folder."""
        text = json.dumps(made_of(source, autoencoder, store), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def statistics(self) -> Statistics:
        """Of the raw latents of all samples and variants, at both ends; of posterior samples where they are kept."""
        return Statistics.from_json(self.manifest["statistics"])

    @property
    def round_trip(self) -> Kept | None:
        """What the decoder made of a few of these latents when they were written; None in an old cache."""
        return Kept.of(self.manifest.get("round_trip"))

    def lost(self, moment: str = "mean") -> dict[str, list[float]]:
        """Largest and root mean square error (`largest`, `rms`) that storing made in each channel.

        In units of the latents' standard deviation; empty in an old cache.
        """
        found: dict[str, list[float]] = self.manifest.get("lost", {}).get(moment, {"largest": [], "rms": []})
        return found

    def verify(self) -> None:
        """Read every byte and compare checksums.

        Raises:
            CacheError: if a file is damaged; names it.
        """
        verify(self.path, self.manifest)

    def __len__(self) -> int:
        return self.counts["x0"]

    @property
    def partners(self) -> int:
        """How many x1 there are."""
        return self.counts.get("x1", 0)

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        """Gather posterior means, normalised, float32."""
        return self._items(index, variant, None)

    def draw(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Items:
        """Gather posterior samples where `sample` is on, else means."""
        return self._items(index, variant, draws)

    def draw_x1(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws) -> Tensor:
        """Gather the other end alone."""
        return self._latents("x1", index, variant, draws)

    def _items(self, index: np.ndarray, variant: np.ndarray | None, draws: Draws | None) -> Items:
        x1 = self._latents("x1", index % self.partners, variant, draws) if self.partners else None
        at = torch.from_numpy(np.asarray(index, dtype=np.int64))
        cond = {name: values[at] for name, values in self._cond.items()}
        return Items(self._latents("x0", index, variant, draws), x1, cond)

    def _latents(self, end: str, index: np.ndarray, variant: np.ndarray | None, draws: Draws | None) -> Tensor:
        raw = self._gather(end, "mean", index, variant)
        if draws is not None and self.sample:
            raw = raw + self._gather(end, "std", index, variant) * draws.normal(f"posterior of {end}", raw)
        return raw.sub_(self.shift).mul_(self.inverse)  # half the time of a division

    def _gather(self, end: str, moment: str, index: np.ndarray, variant: np.ndarray | None) -> Tensor:
        if variant is None or not variant.any():
            return self._take((end, moment, 0), index)
        out = torch.empty((len(index), *self.spec.shape))
        for side in (0, 1):
            at = variant == side
            out[torch.from_numpy(at)] = self._take((end, moment, side), index[at])
        return out

    def _take(self, key: tuple[str, str, int], index: np.ndarray) -> Tensor:
        """Raw latents of one array."""
        affine = self._affine[key][index // self.manifest["batch"]] if self.store.ranged else None
        return self.store.unpack(self._moments[key].take(index), affine)

    def fingerprint(self) -> dict[str, Any]:
        """What the cache was made of."""
        made: dict[str, Any] = self.manifest["made_of"]
        return made


def _watched(source: Source, batch: int, progress: Progress | None) -> Iterator[Tensor]:
    """Both ends of all samples, with word on how far they are."""
    total, done = len(source) + source.partners, 0
    for block, items in ahead(source, blocks_of(source, batch)):
        yield items.x0
        done += len(block)
        if progress is not None:
            progress(done, total)


def verify(path: Path, manifest: Mapping[str, Any]) -> None:
    """Read every byte of a cache and compare checksums.

    Raises:
        CacheError: if a file is damaged; names it.
    """
    files: dict[str, str] = manifest["files"]
    stored = size_of(path, manifest)
    if stored > LARGE:
        log.info("comparing the checksums of the latent cache %s (%.1f GB)", path, stored / 1e9)
    wrong = damaged(path, files)
    if wrong:
        more = f" and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise CacheError(
            f"latent cache {path} is damaged: {', '.join(wrong[:TOLD])}{more} is absent or was changed; "
            "remove the folder to encode again"
        )


def size_of(path: Path, manifest: Mapping[str, Any]) -> int:
    """Bytes of a cache's files."""
    return sum((path / name).stat().st_size for name in manifest["files"] if (path / name).is_file())


def manifest_of(path: Path) -> dict[str, Any]:
    """The manifest of a cache, whose own checksum is compared.

    Raises:
        CacheError: if there is none, or it was changed, or is of a format that is not read here.
    """
    try:
        found: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        known = found.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{path} is no whole latent cache: {MANIFEST} is missing or damaged; remove the folder to encode again"
        ) from error
    if known != digest(found):
        raise CacheError(f"latent cache {path} is damaged: {MANIFEST} was changed; remove the folder to encode again")
    if found["format"] not in READABLE:
        raise CacheError(
            f"latent cache {path} has format {found['format']}, this version writes {FORMAT} and reads "
            f"{' and '.join(map(str, READABLE))}; remove the folder to encode again"
        )
    return found


def _compare(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise where the cache was made of something else; that it holds more moments than are read does not matter."""
    left, right = dict(_flat(stored)), dict(_flat(wanted))
    for key in [*right, *(key for key in left if key not in right)]:
        if left.get(key) != right.get(key) and not (key == "std" and left.get(key)):
            raise CacheError(
                f"latent cache {path} was written with {key} = {_told(left.get(key))}, this recipe has "
                f"{_told(right.get(key))}; "
                "remove that folder to encode again, or give the cache another path"
            )


def _told(value: Any) -> str:
    """A value as a message shows it: of a checksum the beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and CHECKSUM.fullmatch(value) else repr(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
