"""The contract of metrics: what is measured, how a figure is told, and when two figures may be compared."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.bridge import Bridge
from latentsb.data.source import Items, Source
from latentsb.errors import CapabilityError
from latentsb.randomness import numpy_generator
from latentsb.registry import Registry
from latentsb.tensors import Condition

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentsb.endpoints import Endpoint
    from latentsb.results import Reconstruction
    from latentsb.solvers.base import Solver

__all__ = ["METRICS", "Data", "Drawn", "Measured", "Metric", "Subject", "Table", "stamp"]

Progress = Callable[[int], None]
Row = tuple[str, Sequence[Any]]


class Data:
    """Samples that figures are held against: pixels, and the latents of the same rows once they are asked for.

    Args:
        source: of pixels or vectors.
        open_latents: opens the normalised latents of `source`, called at most once.
        held_out: whether training has not seen them.
    """

    def __init__(self, source: Source, open_latents: Callable[[], Source], *, held_out: bool) -> None:
        self.source, self.held_out, self._open = source, held_out, open_latents

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def latents(self) -> Source:
        """Normalised latents of the same rows."""
        return self._open()

    @property
    def name(self) -> str:
        """`held-out data`, or that training has seen them."""
        return "held-out data" if self.held_out else "training data (none are held out)"

    @property
    def labelled(self) -> bool:
        """Whether each sample has a label."""
        return "label" in self.source.cond

    def rows(self, n: int, seed: int, purpose: str) -> np.ndarray:
        """Positions of n samples chosen by the seed, in their order; all where there are no more than n."""
        if n >= len(self):
            return np.arange(len(self))
        return np.sort(numpy_generator(seed, purpose).choice(len(self), n, replace=False))

    def read(self, rows: np.ndarray, *, latents: bool = False, batch: int = 256) -> Items:
        """Samples of these rows, or their latents, read in batches."""
        source = self.latents if latents else self.source
        parts = [source.read(rows[first : first + batch]) for first in range(0, len(rows), batch)]
        x1 = None if parts[0].x1 is None else torch.cat([p.x1 for p in parts if p.x1 is not None])
        cond = {name: torch.cat([p.cond[name] for p in parts]) for name in parts[0].cond}
        return Items(torch.cat([p.x0 for p in parts]), x1, cond)

    def batches(self, rows: np.ndarray, *, latents: bool = False, batch: int = 256) -> Iterator[Tensor]:
        """The x0 of these rows, a batch at a time; each followed by its mirror image where training sees both."""
        source = self.latents if latents else self.source
        for first in range(0, len(rows), batch):
            cut = rows[first : first + batch]
            seen = [source.read(cut, np.full(len(cut), variant)).x0 for variant in range(source.variants)]
            yield torch.stack(seen, dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Drawn:
    """Samples of the bridge.

    Args:
        images: shape (N, C, H, W) in [-1, 1] or (N, D), as written.
        labels: class that was asked of each, int64 of shape (N,), where the bridge has classes.
        folder: name of the folder where they lie.
    """

    images: Tensor
    labels: Tensor | None = None
    folder: str = ""


class Subject(ABC):
    """What is measured: a bridge, its data, and what it makes; nothing is read or drawn before a metric asks.

    Attributes:
        bridge: trained, on its device.
        autoencoder: beside it.
        train: what it was trained on.
        held: what training has not seen; None where nothing was held out.
    """

    bridge: Bridge
    autoencoder: Autoencoder
    train: Data
    held: Data | None = None

    @property
    def test(self) -> Data:
        """What figures are measured on: held-out data, and training data where nothing was held out."""
        return self.train if self.held is None else self.held

    def samples(self, *, guidance: float = 1.0) -> Drawn:
        """The samples that were asked for, those of `latentsb sample` with the same seed; classes in turn.

        Raises:
            CapabilityError: if there is nothing to draw from, or nothing to guide.
        """
        raise CapabilityError("no samples can be drawn here")

    def reconstruct(
        self,
        images: Tensor,
        *,
        mode: Literal["faithful", "perceptual"],
        seed: int,
        cond: Condition,
        endpoint: Endpoint | None = None,
    ) -> Reconstruction:
        """Images by their codes, as `latentsb reconstruct` makes them; with another way to x1, if one is given.

        Raises:
            CapabilityError: if the bridge has no encoder, or its code determines x1 and another one is asked for.
        """
        raise CapabilityError("nothing can be reconstructed here")

    def follower(self) -> Solver:
        """The solver that samples are drawn with.

        Raises:
            CapabilityError: if there is none.
        """
        raise CapabilityError("no samples can be drawn here")

    def untrained(self) -> Bridge | None:
        """The bridge as it was before training, on its device; None where that cannot be built."""
        return None

    def kept(self, name: str, of: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, read back where it was computed from the same before; by default it never is.

        Args:
            name: of such things: `features`.
            of: JSON values that identify what is computed, all that it depends on.
            compute: gives it, on the CPU.
        """
        return compute()

    def known(self, cond: Mapping[str, Tensor]) -> Condition:
        """Those of the data's conditions that the bridge is given."""
        return Condition({name: value for name, value in cond.items() if name in self.bridge.ends.cond})

    def watch(self, title: str, total: int) -> AbstractContextManager[Progress]:
        """Shows how far a long work is; what is called with the number just finished."""
        return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Table:
    """Numbers to be read side by side.

    Args:
        title: one line.
        columns: heads; the first is that of the names of the rows.
        rows: a name and its numbers, or texts, or None for what does not apply.
        digits: of each number, as shown.
        better: which numbers of a column are better, `lower` or `higher`, by its head; a column of standard errors
            follows its own, under a head that begins with ±.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    digits: int = 4
    better: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A figure, the floors and baselines beside it, and the protocol that it depends on.

    Args:
        value: the figure.
        floors: the same figure of something else, by name: real data, noise, a trivial baseline.
        protocol: every choice that changes the figure, JSON values; figures of unequal protocols are not compared.
        details: further numbers, JSON values.
        of: what `value` is the figure of.
        digits: behind the point, as shown.
        tables: what a reader looks at.
        hidden: names of details that are too long to be shown.
        error: standard error of `value`, where it is known.
        better: which values are better, `lower` or `higher`; nothing where neither is.
        shown: what a picture is made of; not kept with the figure.
    """

    value: float
    floors: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    of: str = "samples"
    digits: int = 3
    tables: Sequence[Table] = ()
    hidden: frozenset[str] = frozenset()
    error: float | None = None
    better: str = ""
    shown: Any = None


class Metric(ABC):
    """A figure of a run; a frozen dataclass of its settings."""

    def require(self, subject: Subject) -> None:
        """Say before anything is drawn or computed what `measure` would miss; by default nothing.

        Raises:
            CapabilityError: if the bridge or the data lack what the metric needs.
            DataError: if a file that the metric needs is not there.
        """

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """Why it is measured where no metric is named: it fits the run and takes no long time; empty where not."""
        return ""

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Measure.

        Raises:
            CapabilityError: if the bridge or the data lack what the metric needs.
        """

    def picture(self, found: Measured) -> Image | None:
        """A picture of what was measured; none by default."""
        return None


def stamp(word: str, protocol: Mapping[str, Any]) -> str:
    """Twelve letters that are equal where two figures may be compared.

    Args:
        word: of the metric.
        protocol: of the figure.
    """
    text = json.dumps({"metric": word, **protocol}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


WORDS = (
    "accuracy",
    "autoencoder",
    "crps",
    "budget",
    "denoising",
    "disentanglement",
    "frechet",
    "information",
    "likelihood",
    "log_z",
    "posterior",
    "probes",
    "recognised",
    "reconstruction",
    "retrieval",
    "states",
)
METRICS: Registry[Metric] = Registry("metric", Metric, homes=tuple(f"latentsb.metrics.{word}" for word in WORDS))
