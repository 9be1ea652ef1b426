"""The commands `cache info` and `cache verify`, and what `check` says of a round trip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsb.errors import CacheError

if TYPE_CHECKING:
    from rich.table import Table

    from latentsb.experiment import Experiment

__all__ = ["register", "round_trip"]

SHOWN = 8
"""Channels whose statistics are told one by one."""
LOOKED_AT = 2 * 3 * 256**2
"""Numbers in the images that `check` encodes and decodes, at most, unless one image has more."""

Place = Annotated[
    Path, typer.Argument(metavar="PATH|RUN", help="A cache, a folder of caches such as runs/latents, a run.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    group = typer.Typer(no_args_is_help=True, help="Look at latent caches: what they hold, and whether it is whole.")
    group.command()(info)
    group.command()(verify)
    app.add_typer(group, name="cache")


def info(path: Place) -> None:
    """Tell what a cache was made of, what it holds, and what storing it has lost."""
    from latentsb.cache import manifest_of
    from latentsb.cli.console import console

    for place in caches(path):
        console().print(_table(place, manifest_of(place)), markup=False)


def verify(path: Place) -> None:
    """Read every byte of a cache and compare checksums; damaged files are named."""
    from latentsb.cache import manifest_of, size_of
    from latentsb.cache import verify as compare
    from latentsb.cli.console import size

    for place in caches(path):
        manifest = manifest_of(place)
        compare(place, manifest)
        typer.echo(f"{place}: {len(manifest['files'])} files, {size(size_of(place, manifest))}: whole")


def caches(path: Path) -> list[Path]:
    """The caches at a path.

    Raises:
        CacheError: if there is none.
    """
    from latentsb.building import MANIFEST
    from latentsb.run import RESOLVED

    if (path / MANIFEST).exists():
        return [path]
    if (path / RESOLVED).exists():
        from latentsb.latents import places_of
        from latentsb.run import Run

        found = [place for place in places_of(Run.open(path)) if place.exists()]
    else:
        found = sorted(inner.parent for inner in path.glob(f"[!.]*/{MANIFEST}"))
    if not found:
        making = path.with_name(f".{path.name}.building")
        hint = f"; {making} holds what was encoded before a stop, the same training goes on with it"
        raise CacheError(f"{path}: there is no latent cache{hint if making.exists() else ''}")
    return found


def _table(path: Path, manifest: Mapping[str, Any]) -> Table:
    from latentsb.cache import size_of
    from latentsb.cli.console import size, table
    from latentsb.roundtrip import Kept, decibel

    made, counts = manifest["made_of"], manifest["counts"]
    shown = table("", "latent cache", str(path))
    shown.add_row("autoencoder", f"{made['autoencoder']}, weights {made['weights'][:12]}…")
    for key, value in made["data"].items():
        shown.add_row(f"data: {key}", f"{value:.12}…" if isinstance(value, str) and len(value) == 64 else str(value))
    mirrored = ", each also mirrored" if made["variants"] == 2 else ""
    shown.add_row("latents", ", ".join(f"{n:,} {end}" for end, n in counts.items()) + mirrored)
    shown.add_row("one latent", " × ".join(map(str, made["latent"])))
    shown.add_row("kept as", made["dtype"] + (", mean and standard deviation" if made["std"] else ""))
    shown.add_row("bytes", f"{size(size_of(path, manifest))} in {len(manifest['files'])} files")
    for moment, lost in manifest.get("lost", {}).items():
        told = f"largest {max(lost['largest']):.2g}, rms {max(lost['rms']):.2g} of the latents' standard deviation"
        shown.add_row(f"error of the {moment} as kept", told)
    for name, value in _statistics(manifest["statistics"]).items():
        shown.add_row(name, value)
    kept = Kept.of(manifest.get("round_trip"))
    if kept is not None:
        mean = sum(kept.errors) / len(kept.errors)
        shown.add_row("decoded when written", f"{decibel(mean)}, PSNR of {len(kept.errors)} images")
    shown.add_row("format", str(manifest["format"]))
    return shown


def _statistics(values: Mapping[str, Any]) -> dict[str, str]:
    from latentsb.normalisers import Statistics

    found = Statistics.from_json(values)
    parts = {"mean of raw latents": found.mean, "std of raw latents": found.std}
    parts |= {"least": found.low, "largest": found.high}
    return {name: channels(part.tolist()) for name, part in parts.items()}


def channels(values: list[float]) -> str:
    """Numbers of each channel; of many channels the range."""
    if len(values) > SHOWN:
        return f"{min(values):.3g} to {max(values):.3g} over {len(values)} channels"
    return ", ".join(f"{value:.3g}" for value in values)


def round_trip(experiment: Experiment, *, loaded: bool) -> Table | str:
    """What the autoencoder makes of a few images, and how its latents are normalised; or why that is not known yet.

    Args:
        experiment: as built, its data usable.
        loaded: the pretrained weights are read.
    """
    from latentsb.cache import manifest_of
    from latentsb.cli.console import table
    from latentsb.cli.train import RUNS
    from latentsb.latents import shared_place
    from latentsb.normalisers import Statistics
    from latentsb.roundtrip import chosen, decibel, measured

    autoencoder, source = experiment.autoencoder, experiment.source
    if not loaded:
        return "round trip: not tested, the weights are not here; it is tested before the first step"
    place = shared_place(RUNS, experiment, source)
    known = place.exists()
    index = chosen(source, max(1, LOOKED_AT // source.spec.numel))
    whole = autoencoder.state_dict()
    kept = {name: whole[name].clone() for name in ("shift", "scale", "fitted")}
    own, images, raw = measured(source, autoencoder, index)  # nothing is fitted yet: raw latents
    found = Statistics.of(raw)
    autoencoder.use_statistics(Statistics.from_json(manifest_of(place)["statistics"]) if known else found)
    after = Statistics.of(autoencoder.normalise(raw))
    for name, value in kept.items():
        whole[name].copy_(value)
    shown = table("", f"round trip of {len(images)} images", "")
    shown.add_row("PSNR of decode(encode(x))", f"{own.told()} (their mean image: {decibel(own.floor)})")
    shown.add_row("raw latents: mean", channels(found.mean.tolist()))
    shown.add_row("raw latents: std", channels(found.std.tolist()))
    by = f"statistics of {place}" if known else "their own statistics; training takes those of all images"
    shown.add_row("normalised: mean", channels(after.mean.tolist()))
    shown.add_row("normalised: std", channels(after.std.tolist()))
    shown.add_row("normalised by", by)
    return shown
