"""Correlated Gaussian data, whose posteriors are known, and networks that say exactly what an optimal one would."""

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from latentsb.bridges.dsb import DSB
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.oracles.normal import Affine, Normal
from latentsb.process.times import TimeDistribution
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Round

DOUBLE = torch.float64
MEAN = torch.tensor([0.5, -1.0], dtype=DOUBLE)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=DOUBLE)
CODE = torch.tensor([[1.0, 0.3]], dtype=DOUBLE)
"""The linear encoder z = CODE x0 of the exact autoencoder; one number for two."""
EYE = torch.eye(2, dtype=DOUBLE)


def data(n: int, seed: int = 0) -> Tensor:
    """n draws of N(MEAN, COV), float64."""
    noise = torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return MEAN + noise @ torch.linalg.cholesky(COV).T


def batch(x0: Tensor, seen: int = 0, **cond: Tensor) -> Batch:
    """A training batch whose rows are numbered from zero."""
    return Batch(torch.arange(len(x0)), x0, cond=Condition(cond), seen=seen)


@dataclass(frozen=True)
class Posterior:
    """x0 ~ N(mean, cov) seen through x = shift + b x0 + √c ε; mean and shift may have one row per sample."""

    mean: Tensor
    cov: Tensor
    b: Tensor
    c: Tensor
    shift: Tensor | float = 0.0

    @property
    def spread(self) -> Tensor:
        """Covariance of x, shape (…, 2, 2)."""
        return self.b[..., None, None] ** 2 * self.cov + self.c[..., None, None] * EYE

    def offset(self, x: Tensor) -> Tensor:
        """x minus its mean."""
        return x - self.shift - self.b[..., None] * self.mean

    def score(self, x: Tensor) -> Tensor:
        """∇ log N(x)."""
        return -torch.linalg.solve(self.spread, self.offset(x).unsqueeze(-1)).squeeze(-1)

    def x0(self, x: Tensor) -> Tensor:
        """E[x0 | x] by conditioning the joint Gaussian."""
        return self.mean - self.b[..., None] * (self.score(x).unsqueeze(-2) @ self.cov).squeeze(-2)

    def error(self) -> Tensor:
        """Trace of Cov(x0 | x), shape (…,)."""
        b2 = self.b[..., None, None] ** 2
        kept = self.cov - b2 * self.cov @ torch.linalg.solve(self.spread, self.cov.expand_as(self.spread))
        return kept.diagonal(dim1=-2, dim2=-1).sum(-1)


class FlowOptimum(Network):
    """`E[x1 − x0 | x_t]` for x1 ~ N(0, I)."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        at = Posterior(MEAN, COV, 1 - t, t**2)
        # E[x1 | x_t] = t K^{-1} (x − (1 − t) m), since Cov(x1, x_t) = t I.
        return -t[..., None] * at.score(x) - at.x0(x)


class ScoreOptimum(Network):
    """EDM's F for data of unit sigma_data, from nothing but `c_in y` and `ln(sigma)/4`."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        sigma = (4 * t).exp()[..., None]
        y = x * (1 + sigma**2).sqrt()
        best = Posterior(MEAN, COV, torch.ones_like(t), sigma[..., 0] ** 2).x0(y)
        return (best - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma


def of_code(z: Tensor, code: Tensor = CODE) -> tuple[Tensor, Tensor]:
    """Mean (B, 2) and covariance (2, 2) of x0 given z = CODE x0."""
    gain = COV @ code.T @ torch.linalg.inv(code @ COV @ code.T)
    return MEAN + (z - code @ MEAN) @ gain.T, COV - gain @ code @ COV


class BridgeOptimum(Network):
    """F of the `shifted` preconditioning for unit sigma_data: EDM's in `y = (x − a x1)/b`, given z."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        sigma = (4 * t).exp()[..., None]
        y = x * (1 + sigma**2).sqrt()
        mean, cov = of_code(cond["z"])
        best = Posterior(mean, cov, torch.ones_like(t), sigma[..., 0] ** 2).x0(y)
        return (best - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma


class LinearEncoder(Encoder):
    """z = weight x, flat."""

    def __init__(self, x: Spec, dim: int, weight: Tensor | None = None) -> None:
        super().__init__(x, dim)
        self.weight = nn.Parameter(torch.eye(dim, x.numel, dtype=x.dtype) if weight is None else weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class LinearDecoder(Decoder):
    """x1 = weight z."""

    def __init__(self, dim: int, out: Spec, weight: Tensor | None = None) -> None:
        super().__init__(dim, out)
        self.weight = nn.Parameter(torch.ones(out.numel, dim, dtype=out.dtype) if weight is None else weight.clone())

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T).reshape(len(z), *self.out_spec.shape)


class LinearNetwork(Network):
    """Affine in the state and the vectors, with coefficients that are piecewise linear in the time feature.

    For Gaussian data the optimum is of this form, so only the knots stand between training and the truth.
    """

    def __init__(self, x: Spec, cond: dict[str, Spec] | None = None, *, knots: Tensor, reads: tuple[str, ...] = ()):
        super().__init__(x, {name: (cond or {})[name] for name in reads})
        self.reads = reads
        width = x.numel + sum(self.cond_spec[name].numel for name in reads) + 1
        self.register_buffer("knots", knots)
        self.weight = nn.Parameter(torch.zeros(len(knots), x.numel, width, dtype=x.dtype))

    def hats(self, t: Tensor) -> Tensor:
        """Hat functions of the knots, shape (B, K)."""
        knots = self.knots.to(t.dtype)
        t = t.clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, t.contiguous()).clamp(1, len(knots) - 1)
        share = (t - knots[right - 1]) / (knots[right] - knots[right - 1])
        out = torch.zeros(*t.shape, len(knots), dtype=t.dtype)
        out.scatter_(-1, right[..., None], share[..., None])
        return out.scatter_(-1, right[..., None] - 1, 1 - share[..., None])

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        inputs = torch.cat([x.flatten(1), *(cond[n].flatten(1) for n in self.reads), torch.ones_like(x[:, :1])], 1)
        weight = torch.einsum("bk,koi->boi", self.hats(t.expand(len(x))).to(x.dtype), self.weight)
        return torch.einsum("boi,bi->bo", weight, inputs)


class Constant(Network):
    """The same vector everywhere, through a layer that autocast makes short."""

    def __init__(self, x: Spec, value: Tensor):
        super().__init__(x, {})
        self.layer = nn.Linear(1, len(value), bias=False, dtype=value.dtype)
        self.layer.weight.data.copy_(value[:, None])

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.layer(torch.ones_like(x[:, :1]))


class Maps(Network):
    """An affine map of the state for each time, as an oracle or a fit gives it."""

    def __init__(self, x: Spec, cond: object = None, out: object = None, *, maps: Callable | None = None) -> None:
        super().__init__(x)
        self.maps, self.times = maps or (lambda t: 0.0 * Affine.identity(x.numel)), []
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.times.append(t.detach().clone())
        if t.ndim == 0:
            return self.maps(t.double())(x)
        out = torch.empty_like(x)
        for time in t.unique():
            out[t == time] = self.maps(time.double())(x[t == time])
        return out


class Quick:
    """Draws of many rows from one generator."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.rng = size, torch.Generator().manual_seed(seed)

    def normal(self, name: str, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.rng, dtype=like.dtype)

    def uniform(self, name: str) -> Tensor:
        return torch.rand(self.size, generator=self.rng, dtype=DOUBLE)

    def integers(self, name: str, high: int) -> Tensor:
        return torch.randint(high, (self.size,), generator=self.rng)

    def fork(self, name: str) -> "Quick":
        return self


class Columns:
    """Draws of one number that are columns of ±1, orthogonal to each other and to the constant: exact moments.

    What is affine in normal draws has under them exactly the mean and the covariance that it has on average. Two
    columns are the ends, unrelated, two the noise of paths and of the coupling, and every other draw has one of its
    own. With times, all rows stand there once at each of them.
    """

    FIXED = ("constant", "x0", "x1", "path", "reference")

    def __init__(self, steps: int, times: Tensor | None = None) -> None:
        self.rows, self.used = 2 ** math.ceil(math.log2(steps + len(self.FIXED))), len(self.FIXED)
        self.times, self.copies = times, 1 if times is None else len(times)
        self.columns = torch.from_numpy(hadamard(self.rows)).double()

    def normal(self, name: str, like: Tensor | None = None) -> Tensor:
        known = name in self.FIXED
        self.used += not known
        column = self.FIXED.index(name) if known else self.used - 1
        return self.columns[:, column].repeat(self.copies)[:, None]

    def integers(self, name: str, high: int) -> Tensor:
        assert high == self.rows, "a table of other rows"
        return torch.arange(high).repeat(self.copies)

    def uniform(self, name: str) -> Tensor:
        assert self.times is not None
        return self.times.repeat_interleave(self.rows)

    def fork(self, name: str) -> "Columns":
        return self


class OneBlock(Round):
    """A round whose tables are one block, of data from two normal laws."""

    def __init__(self, number: int, x0: Normal, x1: Normal, draws: Draws | Quick | Columns | None = None) -> None:
        self.number, self.x0, self.x1, self.draws, self.names = number, x0, x1, draws, []

    def simulate(self, name, rows, make):
        self.names.append(name)
        draws = self.draws or Quick(rows, self.number)
        return make(both(self.x0, self.x1, rows, draws), draws)


def both(x0: Normal, x1: Normal, n: int, draws: Draws | Quick | Columns) -> Batch:
    """n rows of unrelated ends."""
    return Batch(torch.arange(n), x0.sample(n, draws, "x0"), x1.sample(n, draws, "x1"))


def dsb(dim: int = 1, **keys) -> DSB:
    """A bridge whose networks are affine maps."""
    ends = Ends(Spec((dim,), DOUBLE), two_sided=True)
    return DSB(ends, **{"network": Maps, "dropout": 0.0, **keys})


@dataclass(frozen=True, kw_only=True)
class At(TimeDistribution):
    """One time for every row."""

    t: float

    def quantile(self, u: Tensor, bridge: object) -> Tensor:
        return torch.full_like(u, self.t)


def integral(function: Callable[[Tensor], Tensor], low: float, high: float, n: int = 20001) -> float:
    """Simpson's rule on an even grid; n is odd."""
    points = torch.linspace(low, high, n, dtype=DOUBLE)
    weight = torch.full((n,), 2.0, dtype=DOUBLE)
    weight[1::2], weight[0], weight[-1] = 4.0, 1.0, 1.0
    return float((function(points) * weight).sum() * (high - low) / (n - 1) / 3)


def within(sample: Tensor, expected: float | Tensor, errors: float = 4.0) -> bool:
    """Whether the mean over the first dimension is the expected one to so many standard errors."""
    wide = sample.double()
    standard_error = wide.std(0) / math.sqrt(len(wide))
    return bool(((wide.mean(0) - expected).abs() <= errors * standard_error).all())


@pytest.fixture(scope="session")
def gauss() -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})


@pytest.fixture(scope="session")
def places() -> Callable[[str, int], None]:
    """Hold a list ` 1. what: file.py::test, …` to be numbered up to n, and every test in it to exist."""

    def hold(document: str, n: int) -> None:
        parts = re.split(r"^ ?(\d+)\. ", document, flags=re.MULTILINE)
        told = zip(parts[1::2], parts[2::2], strict=True)
        found = {int(number): re.findall(r"([\w/]+\.py)::(\w+)", text) for number, text in told}
        assert list(found) == list(range(1, n + 1))
        written = {}
        for number, tests in found.items():
            assert tests, f"check {number} names no test"
            for file, name in tests:
                if file not in written:
                    body = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8")).body
                    written[file] = {node.name for node in body if hasattr(node, "name")}
                assert name in written[file], f"check {number}: no {name} in {file}"

    return hold
