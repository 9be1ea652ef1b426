"""What `latentsb check` finds out about a recipe without training it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from latentsb.cli.caching import round_trip
from latentsb.cli.console import console, count, size, table
from latentsb.data.record import left_out
from latentsb.data.source import Source
from latentsb.data.stream import Stream
from latentsb.errors import DataError
from latentsb.experiment import Experiment, build, load_encoders
from latentsb.randomness import Draws
from latentsb.recipe import Part, Recipe, Stage
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Trainable

__all__ = ["activations", "report"]

ROWS = 2  # enough for losses that compare rows
# Parameters, and numbers in what a loss is given, up to which one trial loss on the CPU is a matter of seconds.
LARGEST, WIDEST = 300_000_000, 50_000
BIG = 256  # sides from which on it is told what fits a GPU
GPUS = (24, 80, 141)  # GB
DATA, HELD, WEIGHTS = "the data", "the held-out data", "the autoencoder's weights"
ENCODER = "the encoder's weights"
UNKNOWN = "not known before the data can be used"


def report(recipe: Recipe) -> None:
    """Print what the recipe means: parts, shapes, parameters, bytes, memory, steps.

    Raises:
        DataError: if data or weights are missing or cannot be used, after everything that can be told without them.
    """
    out = console()
    faults: dict[str, str] = {}
    source = _tried(faults, DATA, recipe.data.build)
    other = recipe.held_out
    held = _tried(faults, HELD, other.build) if isinstance(other, Part) else None
    if not faults:
        experiment = _tried(faults, WEIGHTS, lambda: build(recipe, weights=False, source=source, held=held))
    if faults:
        out.print(_parts(recipe), markup=False)
        if source is not None:
            samples = _tried(faults, DATA, lambda: _usable(source))
            out.print(_data(source, samples), markup=False)
        refused = _refused(recipe, faults)
        refused.add_note("Parameters, memory and steps are known once this is mended.")
        raise refused
    samples = _tried(faults, DATA, lambda: _usable(experiment.source))
    kept = None
    if experiment.held is not None and (held is not None or DATA not in faults):
        kept = _tried(faults, DATA if held is None else HELD, lambda: _usable(experiment.held))
    if recipe.autoencoder.from_run is None:  # else weights of another run take their place
        _tried(faults, WEIGHTS, experiment.autoencoder.load)
    _tried(faults, ENCODER, lambda: load_encoders(experiment))
    if DATA not in faults:
        _tried(faults, DATA, lambda: _streams(experiment))
    out.print(_parts(recipe), markup=False)
    out.print(_shapes(experiment, samples, kept), markup=False)
    if samples is not None and (told := left_out(experiment.source)):
        out.print(told, markup=False)
    out.print(_modules(experiment), markup=False)
    if told := _round_trip(experiment, faults):
        out.print(told, markup=False)
    out.print(_stages(experiment, samples), markup=False)
    if faults:
        raise _refused(recipe, faults)
    out.print(f"{recipe.name}: no problems", markup=False)


def _tried(faults: dict[str, str], what: str, act: Callable[[], Any]) -> Any:
    """What an action returns, or None where data are refused; the reason is then kept."""
    try:
        return act()
    except DataError as error:
        faults[what] = f"held_out: {error}" if what == HELD and "held_out" not in str(error) else str(error)
        return None


def _refused(recipe: Recipe, faults: dict[str, str]) -> DataError:
    what = " and ".join(faults)
    return DataError("\n".join([f"{recipe.name}: all keys are right, but {what} cannot be used:", *faults.values()]))


def _round_trip(experiment: Experiment, faults: Mapping[str, str]) -> Any:
    """What a pretrained autoencoder makes of a few images; None where there is nothing to test yet."""
    autoencoder = experiment.autoencoder
    if not autoencoder.cached or not autoencoder.trained or autoencoder.needs_fit or DATA in faults:
        return None
    if experiment.recipe.autoencoder.from_run is not None or not len(experiment.source):
        return None
    return round_trip(experiment, loaded=WEIGHTS not in faults)


def _usable(source: Source) -> int:
    """The number of samples, after what training reads first: names, labels and attributes of all, two samples.

    Raises:
        DataError: if training would refuse the data; says why.
    """
    source.require()
    n = len(source)
    if n:
        source.read(np.unique([0, n - 1]))
    if source.two_sided and source.partners:
        source.draw_x1(np.unique([0, source.partners - 1]), None, Draws.seeds([0, 1][: min(2, source.partners)]))
    return n


def _streams(experiment: Experiment) -> None:
    """See that there is a batch for every stage, with partners where it needs them.

    Raises:
        DataError: if there is none.
    """
    for stage in experiment.recipe.stages:
        trainable, _ = experiment.trainable(stage.train)
        Stream(experiment.source, 0, stage.settings.batch, aligned=bool(getattr(trainable, "aligned", False)))


def _parts(recipe: Recipe) -> Any:
    shown = table("", "part", "word", "defined in")
    held = [recipe.held_out] if isinstance(recipe.held_out, Part) else []
    for section in [recipe.data, *held, *(part for name, part in recipe.parts.items() if name != "data")]:
        for part in section.walk():
            where = f"{part.cls.__module__}.{part.cls.__qualname__}"
            shown.add_row(part.key or f"  {part.kind}", _word(part), where)
    return shown


def _word(part: Part) -> str:
    origin = part.from_run
    return part.name if origin is None else f"{part.name}, weights of '{origin.part}' in {origin.run}"


def _data(source: Source, samples: int | None) -> Any:
    """What the data are, as far as they say so themselves."""
    mirrored = ", and their mirror images" if source.variants == 2 else ""
    shown = table("", "data", "")
    shown.add_row("samples", UNKNOWN if samples is None else f"{samples:,}{mirrored}")
    shown.add_row("one sample", _shape(source.spec))
    for name, spec in source.cond.items():
        shown.add_row(f"condition '{name}'", _shape(spec))
    return shown


def _shapes(experiment: Experiment, samples: int | None, held: int | None) -> Any:
    source, latent = experiment.source, experiment.autoencoder.latent
    store = experiment.recipe.latents.build().resolved(experiment.autoencoder.latent_dtype)
    stored = source.variants * latent.numel * store.dtype.itemsize * (2 if store.posterior else 1)
    shown = _data(source, samples)
    if experiment.held is not None:
        shown.add_row("samples held out", _held_out(experiment, held))
    fewer = source.spec.numel / latent.numel
    shown.add_row("one latent", _shape(latent) + (f" ({fewer:.3g} times fewer numbers)" if fewer != 1 else ""))
    if samples is not None:
        shown.add_row("latents of all samples", size((samples + source.partners) * stored))
    if experiment.autoencoder.cached:
        mirrored = ", and their mirror images" if source.variants == 2 else ""
        ends = ", both ends" if source.two_sided else ""
        shown.add_row(f"latents of 1,000 samples{ends}{mirrored}", size((2000 if ends else 1000) * stored))
    return shown


def _held_out(experiment: Experiment, held: int | None) -> str:
    asked = experiment.recipe.held_out
    if held is not None:
        return f"{held:,}"
    if isinstance(asked, Part) or asked is None:
        return UNKNOWN
    return f"{asked:,}" if asked >= 1 else f"{asked:.3g} of them"


def _shape(spec: Spec) -> str:
    text = " × ".join(map(str, spec.shape)) or "one number"
    return f"{text}, {spec.classes} classes" if spec.classes else text


def _modules(experiment: Experiment) -> Any:
    shown = table("", "module", "class", "parameters")
    for name, module in experiment.modules.items():
        shown.add_row(name, type(module).__name__, count(_size(module)))
        for child, inner in module.named_children():
            if _size(inner):
                shown.add_row(f"  {name}.{child}", type(inner).__name__, count(_size(inner)))
    return shown


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _stages(experiment: Experiment, samples: int | None) -> Any:
    shown = table(
        "", "stage", "images", "steps", "epochs", "parameters", "one checkpoint", "training memory (estimate)"
    )
    for stage in experiment.recipe.stages:
        settings = stage.settings
        trainable, part = experiment.trainable(stage.train)
        trained = sum(p.numel() for n, p in trainable.named_parameters() if n.startswith(part) and p.requires_grad)
        everything = sum(_size(module) for module in experiment.modules.values())
        averages = trained if settings.ema is not None else 0
        shown.add_row(
            stage.train,
            f"{settings.images:,}",
            f"{math.ceil(settings.images / settings.batch):,}",
            _epochs(settings.images / samples) if samples else "",
            count(trained),
            size(4 * (everything + 2 * trained + averages)),
            _memory(experiment, stage, everything, 3 * trained + averages),
        )
    return shown


def _epochs(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _memory(experiment: Experiment, stage: Stage, everything: int, moving: int) -> str:
    """Weights, gradients, two moments, averages, and the activations of one micro-batch."""
    settings = stage.settings
    cuda = torch.cuda.is_available()
    fixed = 4 * (everything + moving)
    trainable = experiment.trainable(stage.train)[0]
    widest = max(spec.numel for spec in _inputs(experiment, trainable))
    if _size(trainable) > LARGEST or widest > WIDEST:
        return f"{size(fixed)} and activations"
    short = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    rows = settings.micro_batch or settings.batch
    each = activations(experiment, trainable)
    if len(experiment.source.spec.shape) == 3 and min(experiment.source.spec.shape[1:]) >= BIG:
        console().print(
            f"{stage.train}: images at a time in bf16 on a GPU of {_fitting(fixed, each / 2)}", markup=False
        )
    needed = each * rows * (0.5 if short else 1.0)
    total = fixed + needed
    return f"{size(total)} on {'CUDA' if cuda else 'the CPU'}, {size(needed)} of it for {rows} images at a time"


def _fitting(fixed: float, each: float) -> str:
    """Images at a time that fit: `24 GB 96, 80 GB 390`; a tenth is left for what the allocator cannot use."""
    rows = {gb: int((0.9 * gb * 1e9 - fixed) // each) for gb in GPUS}
    return ", ".join(f"{gb} GB {n if n > 0 else 'none'}" for gb, n in rows.items())


def _inputs(experiment: Experiment, trainable: Trainable) -> tuple[Spec, ...]:
    """Shapes of what a loss is given: pixels for an autoencoder, else latents, and pixels where it asks for them."""
    pixels, latent = experiment.source.spec, experiment.autoencoder.latent
    if trainable is experiment.autoencoder:
        return (pixels,)
    return (latent, pixels) if trainable.needs_images else (latent,)


def activations(experiment: Experiment, trainable: Trainable) -> float:
    """Bytes that the backward pass of a loss keeps per image, measured in one forward pass.

    The inputs are normal numbers of the right shapes: the data is not read, a bridge's latents are not encoded.
    """
    source = experiment.source
    draws = Draws.step(0, "check", 0, range(ROWS))
    spec, *pixels = _inputs(experiment, trainable)
    x0 = draws.normal("x0", spec.zeros(ROWS))
    cond = Condition({name: spec.zeros(ROWS) for name, spec in source.cond.items()})
    images = draws.normal("images", pixels[0].zeros(ROWS)) if pixels else None
    x1 = draws.normal("other", x0) if source.two_sided else None
    batch = trainable.prepare(Batch(torch.arange(ROWS), x0, x1, cond, 0, images), draws)
    own = {p.untyped_storage().data_ptr() for p in trainable.parameters()}
    kept: dict[int, int] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    trainable.train()
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        losses = [phase.loss(batch, draws).total.sum() for phase in trainable.schedule().now(0, {})]
    trainable.eval()
    del losses
    return sum(kept.values()) / ROWS
