"""Autoencoders side by side on real images: what they keep, what their latents are like, what they cost.

Those whose weights are here, or that need none, are measured in full. Of the others, which are built with random
weights, only the cost is told: it does not depend on what the weights are.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.data.arrays import ArraySource
from latentsb.data.source import Source
from latentsb.data.subset import split
from latentsb.errors import DataError, Problem, RecipeError
from latentsb.experiment import load_weights
from latentsb.metrics.autoencoder import coded
from latentsb.pictures import from_uint8
from latentsb.randomness import numpy_generator
from latentsb.recipe import Part, Recipe
from latentsb.run import Run
from latentsb.tensors import Batch, Spec
from latentsb.weights import KNOWN, files_of

__all__ = ["ABOUT", "KEPT", "LATENTS", "AutoencoderBench", "Candidate", "Images", "asked", "data_of", "known", "rows"]

ABOUT = (
    "images decoded from the posterior's mean, on [0, 1]; mean PSNR in dB; bytes of a latent in the cache; images per "
    "second of wall clock; raw latents' statistics over channels, power over variance (white noise: 1)"
)
NO_WEIGHTS = "no weights here"
COST = 16
"""Images of which the cost is told where there are no weights."""
MATCHED = {
    "pca, 32 per 8×8": "{name: pca, patch: 8, components: 32}",
    "pca, 8 per 4×4": "{name: pca, patch: 4, components: 8}",
}
"""Principal components: as many as `taef2` has numbers per patch, and as the recipe `cifar10_kl` has."""
FRAME = "name: bench\ndata: {data}\nautoencoder: {autoencoder}\nbridge: {{name: flow, network: mlp}}\n"
KEPT = (
    Column("latent", "latent"),
    Column("PSNR", "psnr"),
    Column("SSIM", "ssim"),
    Column("MSE ×10³", "mse", 1e3),
    Column("bytes", "bytes"),
    Column("encode/s", "encode"),
    Column("decode/s", "decode"),
)
"""What is kept, and what it costs."""
LATENTS = (
    Column("bits per image", "bits"),
    Column("std, least", "least_std"),
    Column("most", "most_std"),
    Column("excess kurtosis", "kurtosis"),
    Column("power at the highest frequency", "power"),
)
"""What latents are like."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class AutoencoderBench:
    """The setting.

    Args:
        images: that are encoded and decoded.
        batch: of them at a time.
        fitted_on: images, at most, that what has a closed form is fitted to.
        device: CUDA where there is one, else the CPU, if None.
    """

    images: int = 50
    batch: int = 8
    fitted_on: int = 20_000
    device: str | None = None

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Candidate:
    """An autoencoder.

    Args:
        name: of the row.
        part: of a recipe.
        wanted: it was asked for, so that it must fit the images.
    """

    name: str
    part: Part
    wanted: bool = True


@dataclass(frozen=True)
class Images:
    """Real images.

    Args:
        name: of them.
        source: that closed forms are fitted to.
        held: that are measured; some of `source`, and the rest fitted to, if None.
        identity: what identifies them, JSON values.
    """

    name: str
    source: Source
    held: Source | None
    identity: Any

    def chosen(self, n: int, seed: int) -> tuple[Tensor, np.ndarray]:
        """Images that are measured, (N, C, H, W), and the positions in `source` of the others."""
        rng = numpy_generator(seed, "bench of autoencoders")
        pool = self.source if self.held is None else self.held
        order = rng.permutation(len(pool))
        n = min(n, len(pool) // 2 if self.held is None else len(pool))
        rest = order[n:] if self.held is None else rng.permutation(len(self.source))
        return read(pool, np.sort(order[:n])), rest


def read(source: Source, index: np.ndarray, batch: int = 256) -> Tensor:
    """The x0 of these positions."""
    return torch.cat([source.read(index[k : k + batch]).x0.float() for k in range(0, len(index), batch)])


def data_of(text: str | None, size: int) -> Images:
    """Images of a recipe, of its fragment, or, if None, two photographs that come with scikit-learn.

    Raises:
        RecipeError: if it is none, or has no images.
    """
    if text is None:
        source: Source = photographs(size)
        return Images(f"{len(source)} tiles of two photographs", source, None, {"photographs": size})
    recipe = Recipe.load(text) if text.endswith((".yaml", ".yml")) else Recipe.parse(frame(data=text), label="--data")
    source, held = recipe.data.build(), None
    if isinstance(recipe.held_out, Part):
        held = recipe.held_out.build()
    elif recipe.held_out is not None:
        source, held = split(source, recipe.held_out, recipe.seed)
    if len(source.spec.shape) != 3:
        raise RecipeError([Problem("", "--data", f"expected images, found samples of shape {source.spec.shape}")])
    return Images(recipe.data.name, source, held, recipe.data.plain())


def photographs(size: int) -> Source:
    """scikit-learn's two photographs of 427×640 in tiles that do not overlap.

    Raises:
        RecipeError: if a tile is larger than a photograph.
    """
    from sklearn.datasets import load_sample_images

    whole = from_uint8(np.stack(load_sample_images().images))
    if size > min(whole.shape[2:]):
        shape = "×".join(map(str, whole.shape[2:]))
        raise RecipeError([Problem("", "--size", f"found {size}, expected at most a side of the photographs, {shape}")])
    tiles = whole.unfold(2, size, size).unfold(3, size, size).movedim(1, 3).reshape(-1, 3, size, size)
    return ArraySource(tiles.contiguous())


def frame(data: str = "digits", autoencoder: str = "identity") -> str:
    """A recipe around a fragment."""
    return FRAME.format(data=data, autoencoder=autoencoder)


def asked(text: str) -> Candidate:
    """An autoencoder by its word, a fragment of a recipe, or the folder of a run that trained one.

    Raises:
        RecipeError: if there is none of that description.
    """
    if Path(text).is_dir():
        run = json.dumps({"run": text, "part": "autoencoder"})
        return Candidate(Path(text).name, Recipe.parse(frame(autoencoder=run), label=text).autoencoder)
    return Candidate(text, Recipe.parse(frame(autoencoder=text), label=text).autoencoder)


def known() -> list[Candidate]:
    """Every registered autoencoder but `identity`, with every published weights that are here, or the first."""
    found: dict[str, str] = {}
    for word in AUTOENCODERS:
        if AUTOENCODERS[word].is_identity or word == "pca":
            continue
        names = [name for name, weights in KNOWN.items() if weights.autoencoder == word]
        here = [name for name in names if _is_here(word, name)]
        texts = [f"{{name: {word}, weights: {name}}}" for name in here or names[:1]] or [word]
        found |= dict(zip(here or names[:1] or [word], texts, strict=True))
    candidates = []
    for name, text in {**found, **MATCHED}.items():
        try:
            candidates.append(replace(asked(text), name=name, wanted=False))
        except RecipeError:  # a key of it has no default
            continue
    return candidates


def _is_here(word: str, name: str) -> bool:
    weights = KNOWN[name]
    sets = (weights.files, *weights.instead)
    try:
        files_of(name, *(tuple(file.replace("*", name) for file in files) for files in sets), owner=word)
    except DataError:
        return False
    return True


def rows(
    bench: AutoencoderBench, candidates: Iterable[Candidate], images: Images, seeds: Sequence[int], tell: Tell
) -> Iterator[Row]:
    """A row for each autoencoder that takes images of this shape.

    Raises:
        RecipeError: if one that was asked for does not.
    """
    shape = "×".join(map(str, images.source.spec.shape))
    chosen = {seed: images.chosen(bench.images, seed) for seed in seeds}
    count = len(chosen[seeds[0]][0])
    for candidate in candidates:
        try:
            codec, here = built(candidate, images.source.spec, tell)
        except RecipeError as error:
            if candidate.wanted:
                raise
            tell(f"{candidate.name}: left out: {error}")
            continue
        codec, fits = codec.to(bench.place).eval(), here and codec.needs_fit
        found: dict[int, dict[str, float | None]] = {}
        for seed, (x, rest) in chosen.items():
            if fits:
                codec.fit(partial(passes, bench, images.source, rest))
            found[seed] = figures(bench, codec, x, here=here)
        row = over_seeds(f"{images.name}, {count} of {shape}", candidate.name, found)
        yield replace(row, notes=notes(codec, row, here=here))


def built(candidate: Candidate, images: Spec, tell: Tell) -> tuple[Autoencoder, bool]:
    """The autoencoder, and whether its weights are those that it should have, or it needs none."""
    part = candidate.part
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec: Autoencoder = part.build(images)
    if part.from_run is not None:
        values, prefix = Run.open(part.from_run.run).weights(part.from_run.weights), f"{part.from_run.part}."
        own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        load_weights(codec.state_dict(), own, f"the weights of {part.from_run.run}")
        return codec, True
    try:
        codec.load()
    except DataError as error:
        tell(f"{candidate.name}: {NO_WEIGHTS}: {error}")
        return codec, False
    return codec, codec.trained


def passes(bench: AutoencoderBench, source: Source, index: np.ndarray) -> Iterator[Batch]:
    """Images that a closed form is fitted to."""
    index = np.sort(index[: bench.fitted_on])
    for first in range(0, len(index), 256):
        part = index[first : first + 256]
        yield Batch(torch.arange(len(part)), x0=read(source, part)).to(bench.place)


@torch.no_grad()
def figures(bench: AutoencoderBench, codec: Autoencoder, x: Tensor, *, here: bool) -> dict[str, float | None]:
    """What the table tells of an autoencoder on images (N, C, H, W)."""
    x = x if here else x[:COST]
    found: dict[str, float | None] = {
        "numbers": codec.latent.numel,
        "bytes": codec.latent.numel * codec.latent_dtype.itemsize,
        **speeds(codec, x, bench.batch),
    }
    if not here:
        return found
    made = coded(codec, torch.split(x, bench.batch))
    kept, latents = made.figures, made.statistics
    found |= {"psnr": kept["mean_psnr"], "psnr ±": kept["mean_psnr_se"]}
    found |= {"ssim": kept["ssim"], "ssim ±": kept["ssim_se"], "mse": kept["mse"], "mse ±": kept["se"]}
    found |= {"bits": latents.bits, "least_std": float(latents.std.min()), "most_std": float(latents.std.max())}
    found["kurtosis"] = float(latents.kurtosis.nanmean())
    if latents.spectrum is not None:
        highest = min(codec.latent.shape[1:]) // 2
        found["power"] = float(latents.spectrum[:, highest].nanmean())
    return found


def speeds(codec: Autoencoder, x: Tensor, batch: int) -> dict[str, float]:
    """Images per second of wall clock, each way: of the batches' median, after one that does not count."""
    parts = [part.to(codec.device) for part in torch.split(x, batch)]
    parts = [part for part in parts if len(part) == len(parts[0])]
    codec.decode(codec.encode(parts[0]))
    taken: dict[str, list[float]] = {"encode": [], "decode": []}
    for part in parts:
        begun = now(codec.device)
        latents = codec.encode(part)
        between = now(codec.device)
        codec.decode(latents)
        taken["encode"].append(between - begun)
        taken["decode"].append(now(codec.device) - between)
    return {name: len(parts[0]) / max(statistics.median(seconds), 1e-9) for name, seconds in taken.items()}


def now(device: torch.device) -> float:
    """Seconds, after what the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def notes(codec: Autoencoder, row: Row, *, here: bool) -> Mapping[str, str]:
    """Words of a row: the latent's shape, and why a figure is missing."""
    told = {"latent": "×".join(map(str, codec.latent.shape))}
    if not here:
        return told | {"psnr": NO_WEIGHTS}
    lossless = row.mean("mse") == 0 and "psnr" not in row.figures
    told |= {"psnr": "lossless"} if lossless else {}
    return told | ({} if "bits" in row.figures else {"bits": "none"})
