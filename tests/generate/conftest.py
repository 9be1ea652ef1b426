"""Experiments whose truth is known, and one small trained run."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latentsb.autoencoders.identity import Identity
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.data.arrays import ArraySource
from latentsb.experiment import Experiment, build
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.solvers.base import SOLVERS
from latentsb.tensors import Condition, Spec
from latentsb.trainer import Trainer

DOUBLE = torch.float64
POINTS = Spec((2,), DOUBLE)


@dataclass(frozen=True)
class Law:
    """x0 = (u, w) with u ~ N(0, 1) and w | u ~ N(SLOPE u, SPREAD²); the code is z = u."""

    slope: float = 0.6
    spread: float = 0.5

    def draw(self, n: int) -> Tensor:
        noise = torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
        return torch.stack([noise[:, 0], self.slope * noise[:, 0] + self.spread * noise[:, 1]], 1)

    def mean(self, z: Tensor) -> Tensor:
        """E[x0 | z]."""
        return torch.cat([z, self.slope * z], 1)


LAW = Law()


class Optimum(Network):
    """F of the `shifted` preconditioning for unit sigma_data whose denoiser is E[x0 | y, z] for the law above."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        variance = (8 * t).exp()[..., None]
        y = x * (1 + variance).sqrt()
        gain = LAW.spread**2 / (LAW.spread**2 + variance)
        centre = LAW.mean(cond["z"])
        w = centre[:, 1:] + gain * (y[:, 1:] - centre[:, 1:])
        best = torch.cat([cond["z"], w], 1)
        return (best - y / (1 + variance)) * ((1 + variance) / variance).sqrt()


class First(Encoder):
    """z = u."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


class Doubled(Decoder):
    """x1 = (2z, 2z): what it is does not matter to an exact denoiser."""

    def forward(self, z: Tensor) -> Tensor:
        return 2 * z.expand(-1, 2)


class Whitening(Network):
    """E[x1 − x0 | x_t] for x0 ~ N(MEAN, STD²) and x1 ~ N(0, 1), independent: affine in x."""

    MEAN, STD = 2.0, 0.5

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        t = t[..., None] if t.ndim else t
        variance = (1 - t) ** 2 * self.STD**2 + t**2
        off = x - (1 - t) * self.MEAN
        return (t - (1 - t) * self.STD**2) / variance * off - self.MEAN


class Shift(Network):
    """The velocity of a rigid shift: x1 = x0 + 3."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return torch.full_like(x, 3.0)


class Seen(Network):
    """Zero; remembers which rows knew their label."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.labels, self.present = cond["label"], cond.mask("label")
        return torch.zeros_like(x)


def experiment(source: ArraySource, bridge: torch.nn.Module, solver: str, **settings: int) -> Experiment:
    autoencoder = Identity(source.spec)
    return Experiment(None, source, autoencoder, bridge.eval(), SOLVERS[solver](**settings))


@pytest.fixture
def exact() -> SimpleNamespace:
    """The law, and experiments with exact networks: `autoencoder`, `flow`, `shift`, `labelled`."""
    points = LAW.draw(3000)
    dbae = DBAE(
        Ends(spec=POINTS),
        network=lambda *a: Optimum(*a),
        encoder=lambda *a: First(*a),
        decoder=lambda *a: Doubled(*a),
        z_dim=1,
    )
    far = points + 3
    line = torch.linspace(-1, 1, 10, dtype=DOUBLE)[:, None]
    label = {"label": Spec((), torch.int64, 3)}
    return SimpleNamespace(
        law=LAW,
        points=points,
        autoencoder=experiment(ArraySource(points), dbae, "dpmpp", steps=80),
        whitening=Whitening,
        flow=experiment(
            ArraySource(points), Flow(Ends(spec=POINTS), network=lambda *a: Whitening(*a)), "heun", steps=50
        ),
        shift=experiment(
            ArraySource(points, far, paired=True),
            Flow(Ends(spec=POINTS, two_sided=True), network=lambda *a: Shift(*a)),
            "heun",
            steps=3,
        ),
        labelled=experiment(
            ArraySource(line.expand(-1, 2)),
            Flow(Ends(spec=POINTS, cond=label), network=lambda *a: Seen(*a)),
            "euler",
            steps=1,
        ),
    )


RECIPE = """
data: digits
conditions: [label]
bridge:
  name: dbae
  z_dim: 4
  network: {name: mlp, width: 32, depth: 1}
  encoder: {name: dense, width: 32, depth: 1}
  decoder: {name: dense, width: 32, depth: 1}
solver: {name: dpmpp, steps: 4}
train: {images: 640, batch: 64, warmup: 100, log_every: 128, save_every: 320, preview_every: 1000000}
"""


def trained(path, *overrides: str) -> Run:
    recipe = Recipe.parse(RECIPE, overrides, label="tiny")
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return Run.open(path)


@pytest.fixture(scope="session")
def train():
    """Train the tiny recipe at a path with overrides."""
    return trained


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Run:
    """A trained run; tests write only into folders of their own, or into parts that no other test reads."""
    return trained(tmp_path_factory.mktemp("runs") / "tiny")
