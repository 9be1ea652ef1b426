"""What `latentsb check` finds out about a recipe without training it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from latentsb.cli.console import console, count, size, table
from latentsb.data.record import left_out
from latentsb.errors import DataError
from latentsb.experiment import Experiment, build
from latentsb.randomness import Draws
from latentsb.recipe import Part, Recipe, Stage
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Trainable

__all__ = ["activations", "report"]

ROWS = 2  # enough for losses that compare rows
# Parameters, and numbers in a sample, up to which one trial loss on the CPU is a matter of seconds.
LARGEST, WIDEST = 300_000_000, 50_000


def report(recipe: Recipe) -> None:
    """Print what the recipe means: parts, shapes, parameters, bytes, memory, steps.

    Raises:
        DataError: if the data is missing, after everything that can be told without it.
    """
    out = console()
    try:
        experiment = build(recipe, weights=False)
    except DataError as error:
        out.print(_parts(recipe), markup=False)
        error.add_note("Shapes, sizes and steps are not known without the data; all keys of the recipe are right.")
        raise
    out.print(_parts(recipe), markup=False)
    out.print(_shapes(experiment), markup=False)
    if told := left_out(experiment.source):
        out.print(told, markup=False)
    out.print(_modules(experiment), markup=False)
    out.print(_stages(experiment), markup=False)
    out.print(f"{recipe.name}: no problems", markup=False)


def _parts(recipe: Recipe) -> Any:
    shown = table("", "part", "word", "defined in")
    for section in recipe.parts.values():
        for part in section.walk():
            where = f"{part.cls.__module__}.{part.cls.__qualname__}"
            shown.add_row(part.key or f"  {part.kind}", _word(part), where)
    return shown


def _word(part: Part) -> str:
    origin = part.from_run
    return part.name if origin is None else f"{part.name}, weights of '{origin.part}' in {origin.run}"


def _shapes(experiment: Experiment) -> Any:
    source, latent = experiment.source, experiment.autoencoder.latent
    samples = len(source)
    stored = samples * source.variants * latent.numel * experiment.autoencoder.latent_dtype.itemsize
    shown = table("", "data", "")
    shown.add_row("samples", f"{samples:,}" + (", and their mirror images" if source.variants == 2 else ""))
    shown.add_row("one sample", _shape(source.spec))
    for name, spec in source.cond.items():
        shown.add_row(f"condition '{name}'", _shape(spec))
    fewer = source.spec.numel / latent.numel
    shown.add_row("one latent", _shape(latent) + (f" ({fewer:.3g} times fewer numbers)" if fewer != 1 else ""))
    shown.add_row("latents of all samples", size(stored))
    return shown


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


def _stages(experiment: Experiment) -> Any:
    shown = table(
        "", "stage", "images", "steps", "epochs", "parameters", "one checkpoint", "training memory (estimate)"
    )
    samples = len(experiment.source)
    for stage in experiment.recipe.stages:
        settings = stage.settings
        trainable, part = experiment.trainable(stage.train)
        trained = sum(p.numel() for n, p in trainable.named_parameters() if n.startswith(part))
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
    if everything > LARGEST or experiment.source.spec.numel > WIDEST:
        return f"{size(fixed)} and activations"
    short = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    rows = settings.micro_batch or settings.batch
    needed = activations(experiment, experiment.trainable(stage.train)[0]) * rows * (0.5 if short else 1.0)
    total = fixed + needed
    return f"{size(total)} on {'CUDA' if cuda else 'the CPU'}, {size(needed)} of it for {rows} images at a time"


def activations(experiment: Experiment, trainable: Trainable) -> float:
    """Bytes that the backward pass of a loss keeps per image, measured in one forward pass.

    The inputs are normal numbers of the right shapes: the data is not read, a bridge's latents are not encoded.
    """
    source = experiment.source
    draws = Draws.step(0, "check", 0, range(ROWS))
    spec = source.spec if trainable is experiment.autoencoder else experiment.autoencoder.latent
    x0 = draws.normal("x0", spec.zeros(ROWS))
    cond = Condition({name: spec.zeros(ROWS) for name, spec in source.cond.items()})
    images = draws.normal("images", source.spec.zeros(ROWS))
    x1 = draws.normal("other", x0) if source.two_sided else None
    batch = Batch(torch.arange(ROWS), x0, x1, cond, 0, images)
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
