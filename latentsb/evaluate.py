"""Figures of a run: metrics with floors and protocol, as tables, as JSON and as pictures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save
from torch import Tensor

from latentsb.bridge import Bridge
from latentsb.data.record import RECORD
from latentsb.data.source import Source
from latentsb.data.subset import whole
from latentsb.disk import disk_error
from latentsb.endpoints import Endpoint
from latentsb.errors import CapabilityError, Error, Problem, RecipeError, nearest
from latentsb.experiment import Experiment, build
from latentsb.generate import labels_of, reconstruct, starts
from latentsb.latents import held_latents_of, latents_of
from latentsb.metrics.base import METRICS, Data, Drawn, Measured, Metric, Progress, Subject, stamp
from latentsb.outputs import SampleFolder, make, protocol, sample_folder, write_json
from latentsb.recipe.binding import Binder
from latentsb.recipe.merge import override
from latentsb.recipe.nodes import Node
from latentsb.registry import describe
from latentsb.results import Reconstruction
from latentsb.run import Run
from latentsb.solvers.base import Solver
from latentsb.tensors import Condition
from latentsb.weights import read

__all__ = ["RunSubject", "evaluate", "fitting", "metrics_of"]

Watch = Callable[[str, int], AbstractContextManager[Progress]]


def metrics_of(words: Sequence[str], settings: Sequence[str] = ()) -> dict[str, Metric]:
    """The metrics of these words, with settings such as `denoising.images=1000`.

    Args:
        words: see `latentsb list metric`.
        settings: overrides as in a recipe; the first word is that of a metric.

    Raises:
        RecipeError: if a metric or a key does not exist, or a value is wrong.
    """
    strange = [text for text in settings if _head(text) not in words]
    if strange:
        asked = f"the metrics asked for are: {', '.join(words)}"
        hints = [
            nearest(_head(text), words) or _meant(text, words) or f" {asked[0].upper()}{asked[1:]}" for text in strange
        ]
        raise RecipeError(
            Problem(f"override '{text}'", "", f"no metric '{_head(text)}' is asked for.{hint}")
            for text, hint in zip(strange, hints, strict=True)
        )
    tree = override(Node({word: Node({"name": Node(word, "--metrics")}, "--metrics") for word in words}, ""), settings)
    assert isinstance(tree.value, dict)
    binder = Binder()
    parts = {word: binder.part(Metric, node, word) for word, node in tree.value.items()}
    if binder.problems:
        raise RecipeError(binder.problems)
    return {word: part.build() for word, part in parts.items()}


def _meant(setting: str, words: Sequence[str]) -> str:
    """The metric that has such a key, where one of those asked for has it."""
    key = setting.removeprefix("~").partition("=")[0].strip().partition(".")[2]
    having = [word for word in words if word in METRICS and key.split(".")[0] in signature(METRICS[word]).parameters]
    return f" Did you mean '{having[0]}.{key}'?" if having else ""


def fitting(subject: Subject) -> dict[str, str]:
    """Metrics that fit a run and take no long time: words, each with the reason; measured where none is named."""
    found = {}
    for word in METRICS:
        reason = METRICS[word].suits(subject)
        try:
            if reason:
                METRICS[word]().require(subject)
                found[word] = reason
        except Error:  # it needs what is not here
            continue
    return found


def chosen_for(subject: Subject) -> dict[str, str]:
    """The same, at least one.

    Raises:
        CapabilityError: if there is none.
    """
    found = fitting(subject)
    if not found:
        raise CapabilityError(
            "none of the metrics that are measured by default fits this run; name one: --metrics "
            f"{','.join(METRICS)} (what each asks and needs: latentsb list metric)"
        )
    return found


def _head(setting: str) -> str:
    return setting.removeprefix("~").partition("=")[0].split(".")[0].strip()


class RunSubject(Subject):
    """A run as metrics see it.

    Args:
        run: to measure.
        experiment: its trained parts.
        n: samples, where a metric asks for any.
        seed: of the first.
        solver: another one than the recipe's.
        watch: shows how far a long work is.
        tell: called with a line on samples that were drawn.
    """

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        n: int,
        *,
        seed: int = 0,
        solver: Solver | None = None,
        watch: Watch | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.run, self.experiment, self.n, self.seed, self.solver = run, experiment, n, seed, solver
        self.bridge, self.autoencoder = experiment.bridge, experiment.autoencoder
        self.train = Data(experiment.source, partial(latents_of, run.path, experiment), held_out=False)
        self.held = None if experiment.held is None else Data(experiment.held, self._held_latents, held_out=True)
        self._watch, self._tell = watch, tell
        self.folders: dict[float, SampleFolder] = {}
        self.used: dict[str, None] = {}

    def _held_latents(self) -> Source:
        found = held_latents_of(self.run.path, self.experiment)
        assert found is not None
        return found

    def watch(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """As it was given."""
        return nullcontext(lambda done: None) if self._watch is None else self._watch(title, total)

    def tell(self, line: str) -> None:
        """Say something to whoever asked to be told."""
        if self._tell is not None:
            self._tell(line)

    def samples(self, *, guidance: float = 1.0) -> Drawn:
        """Those of `latentsb sample` with the same seed and settings; the ones that lie there are not drawn again."""
        if guidance not in self.folders:
            with self.watch("sampling", self.n) as advance:
                drawn = sample_folder(
                    self.run,
                    self.experiment,
                    self.n,
                    seed=self.seed,
                    solver=self.solver,
                    guidance=guidance,
                    progress=advance,
                )
            self.folders[guidance] = drawn
            if drawn.fresh:
                more = " more" if drawn.fresh < self.n else ""
                self.tell(f"drew {drawn.fresh:,}{more} sample{'s' if drawn.fresh > 1 else ''} into {drawn.path}")
        drawn = self.folders[guidance]
        self.used[drawn.path.name] = None
        return Drawn(drawn.samples, self._labels(), drawn.path.name)

    def _labels(self) -> Tensor | None:
        """Class of each sample: its partner's, else in turn."""
        seeds = range(self.seed, self.seed + self.n)
        source = self.experiment.source
        known = starts(self.experiment, seeds).cond if source.two_sided and source.paired else Condition()
        label = known.get("label")
        return labels_of(self.bridge, seeds, None).get("label") if label is None else label

    def follower(self) -> Solver:
        """The recipe's, or the one that was asked for."""
        return self.solver or self.experiment.solver

    def untrained(self) -> Bridge:
        """Built anew from the recipe, whose seed gives the weights that training began with."""
        known = self.experiment
        fresh = build(known.recipe, weights=False, source=whole(known.source), held=known.held)
        return fresh.bridge.to(self.bridge.device).eval()

    def kept(self, name: str, of: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Read back from `NAME/` beside the runs, which share what they have in common; else computed and kept there.

        What lies there can be removed, and where nothing can be written it is computed each time.
        """
        digest = hashlib.sha256(json.dumps({"name": name, **of}, sort_keys=True, default=str).encode()).hexdigest()
        path = self.run.path.resolve().parent / name / f"{digest[:32]}.safetensors"
        try:
            return read(path)[name]
        except (Error, KeyError):
            found = compute()
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            partial = path.with_name(f".{path.name}-{os.getpid()}")
            partial.write_bytes(save({name: found.contiguous()}))
            partial.replace(path)
        return found

    def reconstruct(
        self,
        images: Tensor,
        *,
        mode: Literal["faithful", "perceptual"],
        seed: int,
        cond: Condition,
        endpoint: Endpoint | None = None,
    ) -> Reconstruction:
        """As `latentsb reconstruct` does it."""
        with self.watch(f"reconstructing, {mode}", len(images)) as advance:
            return reconstruct(
                self.experiment,
                images,
                mode=mode,
                endpoint=endpoint,
                seed=seed,
                cond=cond,
                solver=self.solver,
                progress=advance,
            )


def evaluate(
    run: Run,
    experiment: Experiment,
    metrics: Sequence[str] | None,
    n: int,
    *,
    settings: Sequence[str] = (),
    seed: int = 0,
    solver: Solver | None = None,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Measured]:
    """Measure a run.

    Samples, where a metric asks for any, are those of `latentsb sample` with the same seed. Each metric's figure goes
    to `evaluations/step-…-METRIC.json` in the run folder, a picture of it beside; where a figure of another protocol,
    solver or seed lies there, a few letters that tell the protocols apart are added to the name. The `stamp` is equal
    where two figures may be compared.

    Args:
        run: to measure.
        experiment: its trained parts.
        metrics: words; see `latentsb list metric`; those that fit the run and take no long time if None.
        n: samples.
        settings: of the metrics, such as `denoising.images=1000`.
        seed: of the first sample.
        solver: another one than the recipe's.
        watch: opens something that shows how far a long work is.
        tell: called with a line on the metrics that were chosen, the samples that were drawn, and another place.

    Raises:
        RecipeError: if a metric or a setting does not exist.
        CapabilityError: if the bridge or the data lack what a metric needs; nothing is drawn then.
    """
    subject = RunSubject(run, experiment, n, seed=seed, solver=solver, watch=watch, tell=tell)
    if metrics is None:
        fit = chosen_for(subject)
        subject.tell("metrics: " + ", ".join(f"{word} ({reason})" for word, reason in fit.items()))
        metrics = tuple(fit)
    chosen = metrics_of(metrics, settings)
    for metric in chosen.values():
        metric.require(subject)
    folder = run.path / "evaluations"
    make(folder)
    measured = {}
    for name, metric in chosen.items():
        subject.used.clear()
        found = measured[name] = metric.measure(subject)
        store(subject, name, metric, found)
    return measured


def store(subject: RunSubject, name: str, metric: Metric, found: Measured) -> None:
    """Write the JSON of a figure, and its picture."""
    run, experiment = subject.run, subject.experiment
    facts = protocol(run, experiment, metric=describe(metric), seed=subject.seed)
    content = asdict(found)
    del content["hidden"], content["shown"]
    count = {"count": found.details["count"]} if "count" in found.details else {}
    solver = {"solver": describe(subject.solver or experiment.solver)} if subject.used else {}
    data = identity_of(run, experiment)
    facts |= {**content, **count, **solver, "samples": list(subject.used), "data": digest_of(data)}
    facts["stamp"] = stamp(name, {**found.protocol, "data": data})
    usual = run.path / "evaluations" / f"step-{experiment.step:09d}-{name}.json"
    path = place(usual, facts)
    if path != usual:
        subject.tell(f"a figure of another protocol is kept; this one of '{name}' is in {path}")
    write_json(path, facts)
    picture = metric.picture(found)
    if picture is not None:
        try:
            picture.save(path.with_suffix(".png"))
        except OSError as error:
            raise disk_error(error, path.with_suffix(".png"), 0) from error


DECIDING = ("stamp", "metric", "weights", "solver", "seed", "count")
"""Facts of which figures of one step have all in common where a new one takes the place of an old one."""


def place(path: Path, facts: Mapping[str, Any]) -> Path:
    """Where a figure goes: to this path, or beside it where a figure of another protocol lies there."""
    ours = json.loads(json.dumps({key: facts.get(key) for key in DECIDING}, sort_keys=True, default=str))
    if not path.exists():
        return path
    there = json.loads(path.read_text())
    if all(there.get(key) == value for key, value in ours.items()):
        return path
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
    return path.with_stem(f"{path.stem}-{digest[:8]}")


def digest_of(data: Any) -> str:
    """Twelve letters that are equal where two runs have the same data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:12]


def identity_of(run: Run, experiment: Experiment) -> Any:
    """What identifies the data: as training wrote it down, else as they say themselves."""
    path = run.path / RECORD
    return json.loads(path.read_text())["identity"] if path.is_file() else experiment.source.fingerprint()
