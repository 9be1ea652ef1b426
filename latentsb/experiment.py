"""From a recipe to objects: data, autoencoder, bridge and solver that fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from latentsb.autoencoder import Autoencoder
from latentsb.bridge import Bridge
from latentsb.data.source import Source
from latentsb.data.subset import split
from latentsb.errors import CapabilityError, CheckpointError, Problem, RecipeError, nearest
from latentsb.laws import Ends
from latentsb.networks.base import Encoder
from latentsb.randomness import key_of
from latentsb.recipe import Part, Recipe
from latentsb.solvers.base import Solver
from latentsb.tensors import Spec
from latentsb.trainable import Trainable

__all__ = ["Experiment", "build", "load_encoders", "load_weights", "part_of"]


@dataclass(frozen=True)
class Experiment:
    """The objects of a recipe.

    Args:
        recipe: where they come from.
        source: of the samples that are trained on: images, vectors.
        autoencoder: images to latents and back.
        bridge: between the two laws, in latent space.
        solver: the recipe's way of sampling.
        device: where the modules are.
        step: optimiser steps of the run behind these weights; 0 for new ones.
        seen: images of the present stage behind them.
        weights: `model`, or the label of an average.
        held: of samples that are kept from training; None where there are none.
    """

    recipe: Recipe
    source: Source
    autoencoder: Autoencoder
    bridge: Bridge
    solver: Solver
    device: torch.device = torch.device("cpu")
    step: int = 0
    seen: int = 0
    weights: str = "model"
    held: Source | None = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What has weights, by section."""
        return {"autoencoder": self.autoencoder, "bridge": self.bridge}

    def to(self, device: torch.device | str) -> Experiment:
        """Move the modules to a device, in place."""
        for module in self.modules.values():
            module.to(device)
        return replace(self, device=torch.device(device))

    def state_dict(self) -> dict[str, Tensor]:
        """All weights, names beginning with the section."""
        return {f"{head}.{k}": v for head, module in self.modules.items() for k, v in module.state_dict().items()}

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place.

        Raises:
            CheckpointError: if names or shapes differ.
        """
        load_weights(self.state_dict(), values, "the model's weights")

    def trainable(self, name: str) -> tuple[Trainable, str]:
        """What a stage trains, and which part of it: `bridge.prior` is the bridge and `prior`."""
        head, _, part = name.partition(".")
        return (self.autoencoder, part) if head == "autoencoder" else (self.bridge, part)


@torch.no_grad()
def load_weights(own: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    """Copy values into tensors of the same names.

    Raises:
        CheckpointError: naming what is missing, unknown, or of another shape; nothing is copied then.
    """
    wrong = [f"{k} is missing" for k in own if k not in values] + [f"{k} is unknown" for k in values if k not in own]
    wrong += [
        f"{k} is {tuple(values[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in values and values[k].shape != v.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{what} do not fit: {'; '.join(wrong[:5])}{more}")
    for name, value in values.items():
        own[name].copy_(value)


def build(
    recipe: Recipe, *, weights: bool = True, source: Source | None = None, held: Source | None = None
) -> Experiment:
    """Build the objects of a recipe on the CPU, with parameters that depend on the recipe's seed alone.

    Args:
        recipe: bound and checked.
        weights: load pretrained weights and the parts that come from other runs; False where all weights are
            overwritten anyway, or only shapes are asked for.
        source: of all samples of `data`; the recipe's if None.
        held: of the data that `held_out` names; the recipe's if None.

    Raises:
        RecipeError: if the parts do not fit each other; names the key.
        DataError: if data or pretrained weights are missing.
        CheckpointError: if a part from another run does not fit.
    """
    source, held = _held_out(recipe, recipe.data.build() if source is None else source, held)
    autoencoder: Autoencoder = _seeded(recipe, recipe.autoencoder, source.spec)
    ends = Ends(
        spec=autoencoder.latent,
        x0=source.x0,
        x1=source.x1,
        cond=_conditions(recipe, source),
        images=source.spec,
        two_sided=source.two_sided,
    )
    bridge: Bridge = _seeded(recipe, recipe.bridge, ends)
    experiment = Experiment(recipe, source, autoencoder, bridge, recipe.solver.build(), held=held)
    borrowed = [part for section in (recipe.autoencoder, recipe.bridge) for part in section.walk() if part.from_run]
    _check(experiment, {part.key for part in borrowed})
    if weights:
        if recipe.autoencoder.from_run is None:
            autoencoder.load()
        load_encoders(experiment)
        for part in borrowed:
            _borrow(experiment, part)
    for module in experiment.modules.values():
        module.eval()
    return experiment


def _held_out(recipe: Recipe, source: Source, held: Source | None) -> tuple[Source, Source | None]:
    """What is trained on, and what is kept from it."""
    asked = recipe.held_out
    if asked is None:
        return source, None
    if not isinstance(asked, Part):
        return split(source, asked, recipe.seed, place=recipe.places.get("held_out", ""))
    other: Source = asked.build() if held is None else held
    forms = {"shape": (other.spec.shape, source.spec.shape), "two ends": (other.two_sided, source.two_sided)}
    for name in recipe.conditions:
        if name in source.cond:
            forms[f"condition '{name}'"] = (other.cond.get(name), source.cond[name])
    told = [f"{what}: found {theirs}, the data have {ours}" for what, (theirs, ours) in forms.items() if theirs != ours]
    if told:
        raise RecipeError(_problem(asked, f"held-out data must be of the data's form; {message}") for message in told)
    return source, other


def _conditions(recipe: Recipe, source: Source) -> dict[str, Spec]:
    """Shapes of the conditions that the recipe gives to the bridge."""
    known = source.cond
    has = f"It has: {', '.join(known) or 'none'}"
    missing = [name for name in recipe.conditions if name not in known]
    told = [f"the data '{recipe.data.name}' has no '{name}'.{nearest(name, known)} {has}" for name in missing]
    if told:
        raise RecipeError(Problem("", "conditions", message) for message in told)
    return {name: known[name] for name in recipe.conditions}


def part_of(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; the module itself for an empty one.

    Raises:
        CheckpointError: if there is none.
    """
    for name in filter(None, path.split(".")):
        inner: Any = getattr(module, name, None)
        if not isinstance(inner, nn.Module):
            raise CheckpointError(f"{type(module).__name__} has no part '{name}' with weights of its own")
        module = inner
    return module


def _seeded(recipe: Recipe, part: Part, *positional: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(recipe.seed, "init", part.kind) & (2**63 - 1))
        return part.build(*positional)


def _check(experiment: Experiment, borrowed: set[str]) -> None:
    recipe = experiment.recipe
    trained = [stage.train.partition(".")[0] for stage in recipe.stages]
    problems = []
    if not experiment.autoencoder.trained and "autoencoder" not in {*trained, *borrowed}:
        message = f"'{recipe.autoencoder.name}' has no trained weights and no stage trains it"
        problems.append(_problem(recipe.autoencoder, f"{message}; begin with stages: [{{train: autoencoder}}, …]"))
    if experiment.autoencoder.deterministic and recipe.latents.build().posterior:
        message = f"'{recipe.autoencoder.name}' has no posterior to sample from; leave `posterior` out"
        problems.append(_problem(recipe.latents, message))
    if "bridge" in trained and "autoencoder" in trained[trained.index("bridge") :]:
        problems.append(Problem("", "stages", "the autoencoder cannot be trained after the bridge that lives in it"))
    for i, stage in enumerate(recipe.stages):
        trainable, part = experiment.trainable(stage.train)
        if not any(p.numel() for p in trainable.parameters()):
            word = recipe.parts[stage.train.partition(".")[0]].name
            problems.append(Problem("", f"stages.{i}", f"'{word}' has no parameters to train"))
            continue
        try:
            trainable.schedule(part)
        except CapabilityError as error:
            problems.append(Problem("", f"stages.{i}.train", str(error)))
    if problems:
        raise RecipeError(problems)


def load_encoders(experiment: Experiment) -> None:
    """Read the pretrained weights of the bridge's encoders, but of those that another run's weights replace.

    Raises:
        DataError: if they are missing or do not fit.
    """
    borrowed = [part.key for part in experiment.recipe.bridge.walk() if part.from_run]
    for name, module in experiment.bridge.named_modules(prefix="bridge"):
        if isinstance(module, Encoder) and not any(f"{name}.".startswith(f"{key}.") for key in borrowed):
            module.load()


def _problem(part: Part, message: str) -> Problem:
    return Problem(part.places.get("", ""), part.key, message)


def _borrow(experiment: Experiment, part: Part) -> None:
    """Copy the weights of another run's part into ours."""
    from latentsb.run import Run

    assert part.from_run is not None
    origin = part.from_run
    run = Run.open(origin.run)
    values = run.weights(origin.weights)
    prefix = origin.part + "."
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    head, _, path = part.key.partition(".")
    own = part_of(experiment.modules[head], path).state_dict()
    load_weights(own, found, f"{part.key}: the weights of '{origin.part}' in {origin.run}")
