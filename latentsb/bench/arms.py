"""Arms of a bench: a method on a problem with a seed, trained as any recipe is, with what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import torch

from latentsb.errors import Problem, RecipeError, nearest
from latentsb.experiment import Experiment, build
from latentsb.networks.base import Network
from latentsb.outputs import make, write_json
from latentsb.recipe import Recipe
from latentsb.recipe.merge import merge
from latentsb.recipe.nodes import dump
from latentsb.recipe.sources import read_text
from latentsb.run import Run
from latentsb.trainer import Trainer

__all__ = ["Cost", "Method", "bind", "chosen", "costing", "measured", "trained"]

FIGURES = "figures.json"


@dataclass(frozen=True)
class Method:
    """A method: what it adds to a bench's recipe.

    Args:
        name: in tables and folders.
        text: YAML of a recipe without data, in which `$WORD`s stand for the problem's numbers.
        folder: what imports in it are relative to.
    """

    name: str
    text: str
    folder: Path = field(default_factory=Path)

    @classmethod
    def of(cls, path: Path) -> Method:
        """A method of one's own, from a file.

        Raises:
            RecipeError: if the file cannot be read.
        """
        try:
            return cls(path.stem, path.read_text(), path.parent)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError([Problem("", "--recipe", f"{path} cannot be read: {error}")]) from None


def chosen(table: Mapping[str, str], words: Sequence[str] | None, files: Iterable[Path] = ()) -> tuple[Method, ...]:
    """Methods of a bench's table by their words, all if none are given, and those of files.

    Raises:
        RecipeError: for an unknown word, or two methods of one name.
    """
    asked = list(table) if words is None else list(dict.fromkeys(words))
    wrong = [word for word in asked if word not in table]
    problems = [
        Problem("", "--methods", f"no method is called '{w}'.{nearest(w, table)} Known: {', '.join(table)}")
        for w in wrong
    ]
    own = [Method.of(path) for path in files]
    problems += [
        Problem("", "--recipe", f"'{m.name}' is a method of this bench already") for m in own if m.name in asked
    ]
    if problems:
        raise RecipeError(problems)
    return (*(Method(word, table[word]) for word in asked), *own)


def bind(base: str, method: Method, values: Mapping[str, Any], seed: int) -> Recipe:
    """The recipe of an arm: the bench's own with the method's keys over it.

    Args:
        base: YAML of the bench, with `$WORD`s.
        method: likewise.
        values: that the words stand for; `$SEED` is the seed.
        seed: of the arm.

    Raises:
        RecipeError: if the method does not fit.
    """
    words = {**values, "SEED": seed}
    below = read_text(Template(base).safe_substitute(words), "bench", Path(), "bench")
    above = read_text(Template(method.text).safe_substitute(words), method.name, method.folder, method.name)
    text = dump(merge(below.tree, above.tree).plain())
    return Recipe.parse(text, (), [str(entry.target) for entry in above.imports], label=method.name)


@dataclass
class Cost:
    """What training took.

    Args:
        cpu: seconds of the processor, over all threads.
        trained: rows that the bridge's networks saw with gradients.
        simulated: rows without, of simulated pairs for example.
    """

    cpu: float = 0.0
    trained: int = 0
    simulated: int = 0


@contextmanager
def costing(experiment: Experiment) -> Iterator[Cost]:
    """Count rows through the bridge's networks, and time, as long as it lasts."""
    cost = Cost()

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            cost.trained += len(inputs[0])
        else:
            cost.simulated += len(inputs[0])

    networks = [module for module in experiment.bridge.modules() if isinstance(module, Network)]
    hooks = [network.register_forward_pre_hook(count) for network in networks]
    began = time.process_time()
    try:
        yield cost
    finally:
        cost.cpu = time.process_time() - began
        for hook in hooks:
            hook.remove()


def trained(recipe: Recipe, folder: Path) -> tuple[Experiment, dict[str, float | None]]:
    """Train an arm, or go on with it; the experiment with averaged weights, and its cost.

    The cost is unknown where an interruption has left a part of it uncounted.

    Raises:
        KeyboardInterrupt: if training was asked to stop.
    """
    run = Run.create(recipe, folder)
    try:
        resumed = run.checkpoints.latest() is not None
        experiment = build(recipe)
        with costing(experiment) as cost:
            outcome = Trainer(run, experiment, "cpu").fit()
    finally:
        run.close()
    if outcome.reason is not None:
        stop = KeyboardInterrupt()
        stop.add_note("interrupted; the same command goes on")
        raise stop
    told: dict[str, float | None] = {"cpu": cost.cpu, "trained": cost.trained, "simulated": cost.simulated}
    if resumed:
        told = dict.fromkeys(told)
    opened = Run.open(folder)
    told["seconds"] = float(opened.checkpoint().state["seconds"])
    told["parameters"] = sum(p.numel() for p in experiment.bridge.parameters())
    return opened.experiment(device="cpu"), told


def measured(
    path: Path, protocol: Mapping[str, Any], measure: Callable[[], Mapping[str, float | None]]
) -> dict[str, float | None]:
    """The figures that lie in a file under the same protocol; else they are measured, and kept there."""
    asked = json.loads(json.dumps(dict(protocol)))
    if path.is_file():
        held = json.loads(path.read_text())
        if held.get("protocol") == asked:
            return dict(held["figures"])
    found = dict(measure())
    make(path.parent)
    write_json(path, {"protocol": asked, "figures": found})
    return found


def folder_of(runs: Path, method: Method, case: str, seed: int, recipe: Recipe) -> Path:
    """Where an arm lies; another budget, or another form of the method, lies elsewhere."""
    word = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{method.name}-{case}")
    return runs / f"{word}-seed{seed}-{recipe.hash[:8]}"
