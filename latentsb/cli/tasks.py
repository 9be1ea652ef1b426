"""Commands on images and their codes: reconstruct, interpolate, edit, encode-z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsb.cli.runs import (
    AttentionOption,
    Backend,
    BatchOption,
    DeviceOption,
    RunPath,
    Seed,
    Weights,
    WeightsOption,
    arguments,
    bar,
    calls,
    load,
    measures,
    suggest,
)
from latentsb.errors import Problem, RecipeError

if TYPE_CHECKING:
    from latentsb.experiment import Experiment

__all__ = ["register"]

SHOWN = 256
"""Images of the run's data that `reconstruct` takes where no number is given."""
EDITED = 6
"""Images of the run's data that `edit` takes where no number is given."""


class Mode(StrEnum):
    """How a code is decoded."""

    faithful = "faithful"
    perceptual = "perceptual"


class Modes(StrEnum):
    """The same, or in both ways."""

    faithful = "faithful"
    perceptual = "perceptual"
    both = "both"


class Split(StrEnum):
    """Which part of the run's data."""

    train = "train"
    held_out = "held-out"


Files = Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Images; the run's own data if none.")]
ModeOption = Annotated[Mode, typer.Option(help="faithful: the mean, one call; perceptual: a draw.")]
EndpointOption = Annotated[
    str | None, typer.Option(help="How diffae finds x1 (latentsb list endpoint), if not as its recipe says.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (reconstruct, interpolate, edit):
        app.command()(command)
    app.command("encode-z")(encode_z)


def reconstruct(
    run: RunPath,
    images: Files = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="Images of the run's data; 256 or all, if none.")
    ] = None,
    mode: Annotated[Modes, typer.Option(help="faithful: the mean, one call; perceptual: a draw.")] = Modes.faithful,
    endpoint: EndpointOption = None,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Encode images to z and decode z alone; the autoencoder's own row stands beside."""
    from latentsb.bridge import EncodingBridge, require
    from latentsb.tasks import inputs_of, write_reconstruction

    opened, experiment = load(run, weights, device, attention)
    require(experiment.bridge, EncodingBridge, "reconstruct")
    with arguments():
        experiment = ending_at(experiment, endpoint)
        inputs = inputs_of(experiment, images or [], n or min(SHOWN, len(experiment.source)), seed)
        with bar("reconstructing", len(inputs.names) * (2 if mode is Modes.both else 1)) as advance:
            made = write_reconstruction(opened, experiment, inputs, mode=mode.value, seed=seed, progress=advance)
    show_similarity(made, mode)
    rows = ", ".join(name for name in made["figures"] if "floor" not in name)
    typer.echo(f"picture (originals, {rows}): {made['picture']}")
    suggest(run, "interpolate", *editing(experiment), *measures(opened, experiment), "report")


def interpolate(
    run: RunPath,
    images: Files = None,
    n: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="Pairs of the run's data, 6 if none; or sheets, 1.")
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames per pair, ends included.")] = 9,
    grid: Annotated[
        str | None, typer.Option(metavar="RxC", help="Sheets of R rows and C columns between four images each.")
    ] = None,
    along: Annotated[
        str | None, typer.Option(help="lerp or slerp; z goes along lerp and x1 along slerp, if none.")
    ] = None,
    mode: ModeOption = Mode.perceptual,
    endpoint: EndpointOption = None,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Walk between images 1 and 2, 3 and 4, and so on; with --grid between four."""
    from latentsb.blends import BLENDS
    from latentsb.tasks import inputs_of, write_interpolation

    size = None if grid is None else size_of(grid)
    files, corners = images or [], 2 if size is None else 4
    if len(files) % corners:
        expected = "pairs: an even number" if size is None else "the four corners of each grid"
        raise RecipeError([Problem("", "IMAGE", f"found {len(files)}, expected {expected}")])
    blend = None if along is None else BLENDS[along]()
    opened, experiment = load(run, weights, device, attention)
    with arguments():
        experiment = ending_at(experiment, endpoint)
        inputs = inputs_of(experiment, files, corners * (n or (6 if size is None else 1)), seed)
        how: dict[str, Any] = {"frames": frames, "grid": size, "mode": mode.value, "blend": blend, "seed": seed}
        with bar("interpolating", len(inputs.names) // corners) as advance:
            made = write_interpolation(opened, experiment, inputs, progress=advance, **how)
    told = f"{frames} frames per pair" if size is None else f"{size[0]} × {size[1]} frames between four images"
    typer.echo(f"{told}, mixed in {made['along']} ({made['blend']['name']}), {calls(made['calls'])}")
    typer.echo(f"picture: {made['picture']}")
    suggest(run, *editing(experiment), *measures(opened, experiment), "report")


def edit(
    run: RunPath,
    attribute: Annotated[
        str, typer.Option("-a", "--attribute", help="Name of a column or a class of the data, or a number.")
    ],
    images: Files = None,
    strengths: Annotated[
        str, typer.Option(help="In standard deviations of the codes along the direction.")
    ] = "-2,-1,0,1,2",
    rule: Annotated[str, typer.Option(help="How the direction is found (latentsb list direction).")] = "ridge",
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Images of the run's data.")] = EDITED,
    mode: ModeOption = Mode.perceptual,
    keep_endpoint: Annotated[
        bool, typer.Option("--keep-endpoint", help="Keep the x1 of the code before the edit, as published.")
    ] = False,
    endpoint: EndpointOption = None,
    seed: Seed = 0,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Move codes along the direction of an attribute; what that direction is worth is told first."""
    from latentsb.directions import RULES
    from latentsb.edits import LIMIT, asked_of, direction_of
    from latentsb.latents import latents_of
    from latentsb.tasks import inputs_of, write_edits

    chosen, sizes = RULES[rule](), numbers_of(strengths)
    opened, experiment = load(run, weights, device, attention)
    require_codes(experiment, "edit")
    with arguments():
        experiment = ending_at(experiment, endpoint)
        asked_of(experiment.source, attribute)
        inputs = inputs_of(experiment, images or [], n, seed)
        latents = latents_of(opened.path, experiment)
        fits = min(LIMIT, len(experiment.source))
        fits += 0 if experiment.held is None else min(LIMIT // 4, len(experiment.held))
        with bar("encoding", fits) as advance:
            found = direction_of(experiment, attribute, rule=chosen, latents=latents, progress=advance)
        typer.echo(f"{found.attribute}: {'not measured' if found.worth is None else found.worth} ({rule})")
        if found.worth is not None and found.worth.poor:
            typer.echo("warning: this direction says next to nothing of the attribute; nor do the pictures")
        how: dict[str, Any] = {"mode": mode.value, "keep_endpoint": keep_endpoint, "seed": seed}
        with bar("editing", len(inputs.names) * len(sizes)) as advance:
            made = write_edits(opened, experiment, inputs, found, strengths=sizes, progress=advance, **how)
    places = ", ".join(f"{place:+.1f}" for place in made["places"][:12])
    typer.echo(f"places of the images along it, in standard deviations: {places}")
    typer.echo(f"{len(sizes)} strengths, x1 {made['x1']}, {mode.value}, {calls(made['calls'])}")
    typer.echo(f"picture: {made['picture']}")
    suggest(run, "encode-z", *measures(opened, experiment), "report")


def encode_z(
    run: RunPath,
    images: Files = None,
    split: Annotated[Split, typer.Option(help="Which data, where no images are given.")] = Split.train,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .npz or .parquet file; codes/ in the run if none.")
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw noisy codes from their law, in place of the mean.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of drawn codes; sample i has seed SEED + i.")] = 0,
    batch: BatchOption = 256,
    weights: WeightsOption = Weights.ema,
    device: DeviceOption = None,
    attention: AttentionOption = Backend.auto,
) -> None:
    """Write the codes of images, or of all the run's data, with labels, attributes and names."""
    from latentsb.codefiles import check_ending
    from latentsb.tasks import write_code_file

    with arguments():
        check_ending(output or Path("codes.npz"))
    opened, experiment = load(run, weights, device, attention)
    require_codes(experiment, "encode-z")
    if split is Split.held_out and experiment.held is None and not images:
        raise RecipeError([Problem("", "--split", "this run holds out no data (held_out in its recipe)")])
    source = experiment.held if split is Split.held_out and experiment.held is not None else experiment.source
    how: dict[str, Any] = {"split": split.value, "output": output, "draw": draw, "seed": seed, "batch": batch}
    with arguments(), bar("encoding", len(images) if images else len(source)) as advance:
        made = write_code_file(opened, experiment, images or [], progress=advance, **how)
    beside = f" with {', '.join(made['beside'])}" if made["beside"] else ""
    kind = "drawn codes" if draw else "codes"
    typer.echo(f"{made['count']:,} {kind} of {made['z_dim']} numbers{beside}: {made['path']}")
    suggest(run, *editing(experiment), *measures(opened, experiment), "report")


def require_codes(experiment: Experiment, purpose: str) -> None:
    """Refuse a bridge without an encoder."""
    from latentsb.bridge import EncodingBridge, require

    require(experiment.bridge, EncodingBridge, purpose)


def ending_at(experiment: Experiment, word: str | None) -> Experiment:
    """The experiment with another way to x1, where the bridge leaves that open; with the recipe's keys for its own.

    Raises:
        CapabilityError: if the bridge does not leave it open.
    """
    from latentsb.bridge import require
    from latentsb.endpoints import ENDPOINTS, EndpointBridge

    if word is None:
        return experiment
    bridge = require(experiment.bridge, EndpointBridge, "--endpoint")
    asked = ENDPOINTS[word]
    return experiment if isinstance(bridge.chosen, asked) else replace(experiment, bridge=bridge.choosing(asked()))


def size_of(grid: str) -> tuple[int, int]:
    """Rows and columns of `5x7`."""
    rows, _, columns = grid.lower().replace("×", "x").partition("x")
    if not (rows.isascii() and rows.isdigit() and columns.isascii() and columns.isdigit()):
        raise RecipeError([Problem("", "--grid", f"found '{grid}', expected rows and columns, such as 5x7")])
    if min(int(rows), int(columns)) < 2:
        raise RecipeError([Problem("", "--grid", f"found '{grid}', expected at least the corners, 2x2")])
    return int(rows), int(columns)


def numbers_of(text: str) -> tuple[float, ...]:
    """Finite numbers between commas."""
    import math

    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise RecipeError([Problem("", "--strengths", f"found '{text}', expected numbers, such as -2,-1,0,1,2")])
    return found


def editing(experiment: Experiment) -> tuple[str, ...]:
    """`edit`, where the bridge has codes and the data say something of each sample."""
    from latentsb.bridge import EncodingBridge

    known = experiment.source.cond
    if not isinstance(experiment.bridge, EncodingBridge) or not ("label" in known or "attributes" in known):
        return ()
    return ("edit RUN --attribute 0",)


def show_similarity(content: Mapping[str, Any], mode: Modes) -> None:
    """Print how like the originals the reconstructions are."""
    from latentsb.cli.console import console, table

    images = any("ssim" in figures for figures in content["figures"].values())
    columns = ("MSE on [0, 1]", "PSNR (dB)", "SSIM") if images else ("MSE",)
    cost = content["calls"]
    told = f"{mode}, {calls(cost)}" if isinstance(cost, int) else " and ".join(cost)
    shown = table(f"{content['images']} samples, {told}", "", *columns)
    for name, figures in content["figures"].items():
        cells = [f"{figures['mse']:.5f}"]
        if images:
            cells += ["equal" if figures["psnr"] is None else f"{figures['psnr']:.2f}", f"{figures['ssim']:.3f}"]
        shown.add_row(name, *cells)
    console().print(shown)
    if not isinstance(cost, int):
        typer.echo("; ".join(f"{way}: {calls(number)}" for way, number in cost.items()))
