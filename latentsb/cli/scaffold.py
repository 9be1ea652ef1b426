"""The files with which a bridge of one's own begins: one that works, and a test that holds it to closed forms."""

from __future__ import annotations

import keyword
from string import Template

from latentsb.errors import Error
from latentsb.registry import files_of, rooms

__all__ = ["NameTakenError", "bridge_files"]

BRIDGE = Template('''"""A bridge of my own: straight lines from data to noise. Change it into what you need."""

from __future__ import annotations

import torch
from latentsb import BRIDGES, Batch, Bridge, Build, Condition, Draws, Ends, Loss, Network, State
from latentsb.bridge import End
from latentsb.ranges import Positive
from latentsb.tensors import expand_as
from torch import Tensor


@BRIDGES.register("$name")
class $cls(Bridge):
    """Straight lines between data and Gaussian noise; the network learns their mean velocity.

    Source: Liu et al. 2023, Flow straight and fast, Eq. 1.

    Args:
        ends: the two laws; given by the builder. What follows the star stands in the recipe.
        network: predicts the velocity.
        spread: standard deviation of the noise.
    """

    def __init__(self, ends: Ends, *, network: Build[Network], spread: Positive = 1.0) -> None:
        super().__init__()
        self.ends, self.spread = ends, spread
        self.network = network(ends.spec, ends.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Squared error of the velocity, per sample."""
        x0, t = batch.data, draws.uniform("t")
        x1 = self.spread * draws.normal("x1", x0)
        x = x0 + expand_as(t, x0) * (x1 - x0)
        return Loss((self.velocity(x, t, batch.cond) - (x1 - x0)).square().flatten(1).mean(1))

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`E[x1 − x0 | x_t = x]`; dx/dt in forward time, t = 0 is data."""
        return self.network(x, t.to(device=x.device, dtype=x.dtype), cond).to(x.dtype)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """The velocity in the direction of travel."""
        return self.velocity(x, t, cond) * (1 if towards == "x1" else -1)

    def diffusion(self, t: Tensor) -> Tensor:
        """Zero: an ODE."""
        return torch.zeros_like(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """Noise at t = 1; towards x1 the data at t = 0."""
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=torch.float64), batch.cond)
        x1 = self.spread * draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        return State(x1, torch.ones((), dtype=torch.float64), batch.cond)
''')

TEST = Template('''"""$cls is held to closed forms on data N(M, S²), where the best velocity is known.

With x_t = (1 − t) x0 + t x1 and x1 ~ N(0, 1):
v(x, t) = E[x1 − x0 | x_t = x] = −M + (t − (1 − t) S²) / ((1 − t)² S² + t²) · (x − (1 − t) M).
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import torch
from latentsb import Batch, Condition, Draws, Ends, Network, Spec
from latentsb.solvers.base import Solver
from latentsb.solvers.ode import Heun
from latentsb.solvers.sde import EulerMaruyama

M, S = 1.5, 0.4
SPEC = Spec((1,), torch.float64)

spec = importlib.util.spec_from_file_location("$name", Path(__file__).with_name("$name.py"))
module = sys.modules.setdefault("$name", importlib.util.module_from_spec(spec))
spec.loader.exec_module(module)


class Exact(Network):
    """The best velocity, in place of a trained network."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
        return -M + (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2) * (x - (1 - t) * M)


def bridge() -> module.$cls:
    return module.$cls(Ends(SPEC), network=Exact)


def miss(solver: Solver) -> float:
    """Largest distance between the solver's samples and the exact map x0 = M + S x1."""
    flow, draws = bridge(), Draws.seeds(range(64))
    start = flow.start(Batch(torch.arange(64)), draws)
    start = type(start)(start.x.double(), start.t, start.cond)
    x = solver.run(flow, start, draws).x
    return float((x - (M + S * start.x)).abs().max())


def test_samples_are_the_exact_map_of_the_noise_to_second_order():
    assert miss(Heun(steps=80)) < 5e-3
    assert 3 < miss(Heun(steps=40)) / miss(Heun(steps=80)) < 5  # half the step, a quarter of the error


def test_the_drift_leads_along_the_same_map():
    assert miss(EulerMaruyama(steps=400)) < 0.05
    assert 1.5 < miss(EulerMaruyama(steps=200)) / miss(EulerMaruyama(steps=400)) < 2.5  # first order: half the error


def test_the_loss_of_the_best_velocity_is_its_known_minimum():
    n = 20_000
    draws = Draws.step(0, "loss", 0, range(n))
    x0 = M + S * draws.normal("x0", torch.zeros(n, 1, dtype=torch.float64))
    loss = bridge().loss(Batch(torch.arange(n), x0), draws).total
    # ∫ Var(x1 − x0 | x_t) dt = ∫ S² / ((1 − t)² S² + t²) dt = S π/2
    assert abs(float(loss.mean()) - S * math.pi / 2) < 5 * float(loss.std()) / math.sqrt(n)
''')


class NameTakenError(Error):
    """A name that a new part cannot have."""

    exit_code = 2


def bridge_files(kind: str, name: str) -> dict[str, str]:
    """File names and texts of a new bridge and its test.

    Args:
        kind: `bridge`.
        name: a lower-case word that no bridge has.

    Raises:
        NameTakenError: if the kind is another, or the name is taken or no word.
    """
    if kind != "bridge":
        raise NameTakenError(f"'latentsb new {kind}': only 'latentsb new bridge NAME' exists")
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name) or not name.isascii():
        raise NameTakenError(f"'{name}' cannot be a bridge's name: expected a lower-case word such as 'my_bridge'")
    if any(name in files_of(room) for room in rooms("bridge")):
        raise NameTakenError(f"a bridge called '{name}' exists already: latentsb list bridge")
    cls = "".join(word.capitalize() for word in name.split("_")) or "Mine"
    return {f"{name}.py": BRIDGE.substitute(name=name, cls=cls), f"test_{name}.py": TEST.substitute(name=name, cls=cls)}
