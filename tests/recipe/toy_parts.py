"""Parts of somebody else: small ones with every kind of key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from latentsb import BRIDGES, NETWORKS, REFERENCES, ArgumentError, Bridge, Build, Network, ScalarReference
from latentsb.data.source import SOURCES, Source
from latentsb.ranges import Count, Fraction, Positive
from latentsb.solvers.base import SOLVERS, Solver


@REFERENCES.register("toy_line")
@dataclass(frozen=True, kw_only=True)
class Line(ScalarReference):
    """A toy."""

    low: Positive = 0.1
    high: Positive = 20.0

    def __post_init__(self):
        if self.high <= self.low:
            raise ArgumentError("high", f"must be above low = {self.low}, found {self.high}")

    def alpha(self, t):
        return t

    def clock(self, t):
        return t

    @property
    def total(self):
        return 1.0


@NETWORKS.register("toy_net")
class Net(Network):
    """A toy."""

    def __init__(
        self, x, cond=None, out=None, *, width: Count, heads: Count = 4, act: Literal["silu", "gelu"] = "silu"
    ):
        super().__init__(x, cond, out)
        if width % heads:
            raise ArgumentError("heads", f"must divide width = {width}, found {heads}")
        self.width, self.heads, self.act = width, heads, act

    def forward(self, x, t, cond):
        return x


@BRIDGES.register("toy_bridge")
class ToyBridge(Bridge):
    """A toy bridge with one key of each kind.

    Source: nobody.
    """

    def __init__(
        self,
        ends,
        *,
        network: Build[Network],
        second: Build[Network] = partial(Net, width=8),
        reference: ScalarReference = Line(),
        others: tuple[ScalarReference, ...] = (),
        by_name: dict[str, ScalarReference] | None = None,
        z_dim: Count = 8,
        sigma_max: Positive = 80.0,
        drop: Fraction = 0.1,
        weights: Path | None = None,
        sizes: tuple[int, ...] = (1, 2),
        flag: bool = False,
        level: int | Literal["auto"] = "auto",
    ):
        super().__init__()
        self.reference, self.others, self.by_name = reference, others, by_name
        self.first, self.again, self.second = network(ends), network(ends), second(ends)
        self.values = (z_dim, sigma_max, drop, weights, sizes, flag, level)

    def start(self, batch, draws, towards="x0"):
        raise NotImplementedError

    def drift(self, x, t, cond, towards="x0"):
        raise NotImplementedError

    def diffusion(self, t):
        raise NotImplementedError

    def loss(self, batch, draws):
        raise NotImplementedError


@SOURCES.register("toy_data")
class Data(Source):
    """A toy."""

    def __init__(self, *, n: Count = 10, path: Path = Path("x")):
        self.n, self.path = n, path

    def __len__(self):
        return self.n

    def read(self, index, variant=None):
        raise NotImplementedError

    def fingerprint(self):
        return {}


@SOLVERS.register("toy_solver")
@dataclass(frozen=True, kw_only=True)
class ToySolver(Solver):
    """A toy."""

    steps: Count = 10

    def run(self, bridge, state, draws, towards="x0", record=None):
        raise NotImplementedError
