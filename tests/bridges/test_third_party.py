"""The bridge of the page "a new bridge" is one short file that trains, resumes and samples without an edit of ours."""

import math
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.cli import main
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import load_run
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch, Spec

DOCS = Path(__file__).parents[2] / "docs"
FILE, RECIPE = DOCS / "examples" / "my_bridge.py", DOCS / "examples" / "my_bridge.yaml"
DOUBLE = torch.float64


@pytest.fixture
def recipe():
    before = {word: BRIDGES._classes[word] for word in BRIDGES._classes}
    modules = set(sys.modules)
    yield Recipe.load(RECIPE, imports=(FILE,))
    BRIDGES._classes.clear()
    BRIDGES._classes.update(before)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(FILE):
            del sys.modules[name]


def test_the_page_shows_the_very_files():
    page = (DOCS / "new-bridge.md").read_text()
    assert len(FILE.read_text().splitlines()) <= 40
    assert FILE.read_text() in page
    assert RECIPE.read_text() in page
    assert EXACT in page


EXACT = """\
class Exact(Network):
    def forward(self, x, t, cond):
        mean, cov = torch.tensor([0.5, -1.0]).to(x), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).to(x)
        angle, eye = torch.pi / 2 * t.reshape(-1, 1, 1), torch.eye(2).to(x)
        c, s = angle.cos(), angle.sin()
        slope = torch.pi / 2 * s * c * (eye - cov) @ torch.linalg.inv(c**2 * cov + s**2 * eye)
        return -torch.pi / 2 * s[..., 0] * mean + (slope @ (x - c[..., 0] * mean)[..., None])[..., 0]
"""


def exact_network():
    """The network that the page shows."""
    names = {"torch": torch, "Network": Network}
    exec(EXACT, names)
    return names["Exact"]


def reached(gauss, bridge, steps):
    """Mean and covariance that Heun's method makes of the exact velocity, without sampling."""
    state = bridge.start(Batch(torch.arange(3)), Draws.seeds(range(3)))
    state = replace(state, x=torch.cat([torch.zeros(1, 2, dtype=DOUBLE), gauss.EYE]))
    x = Heun(steps=steps).run(bridge, state, Draws.seeds(range(3))).x
    slope = (x[1:] - x[0]).T
    return x[0], slope @ slope.T


def test_its_exact_velocity_ends_in_the_data(gauss, recipe):
    bridge = BRIDGES["arc"](Ends(Spec((2,), DOUBLE)), network=exact_network())
    misses = [max(float((reached(gauss, bridge, steps)[1] - gauss.COV).abs().max()), 1e-12) for steps in (20, 40)]
    assert misses[1] < 2e-3
    assert 3 < misses[0] / misses[1] < 5, "half the step, a quarter of the error"
    torch.testing.assert_close(reached(gauss, bridge, 40)[0], gauss.MEAN, rtol=0, atol=2e-3)


def test_its_loss_is_smallest_at_the_exact_velocity(gauss, recipe):
    """Each eigenvalue λ of S leaves (π/2)² λ/q of variance, where q = c² λ + s²."""
    bridge = BRIDGES["arc"](Ends(Spec((2,), DOUBLE)), network=exact_network())
    eigenvalues = torch.linalg.eigvalsh(gauss.COV)

    def smallest(t):
        c2 = torch.cos(math.pi / 2 * t)[:, None] ** 2
        return (math.pi / 2) ** 2 * (eigenvalues / (c2 * eigenvalues + 1 - c2)).mean(1)

    batch = gauss.batch(gauss.data(20_000, seed=2))
    loss = bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total
    assert gauss.within(loss, gauss.integral(smallest, 0.0, 1.0))


def test_it_trains_resumes_and_samples_a_known_gaussian(gauss, recipe, tmp_path, monkeypatch):
    train = BRIDGES["arc"].loss

    def stopping(bridge, batch, draws):
        if batch.seen == 80_000:
            signal.raise_signal(signal.SIGTERM)
        return train(bridge, batch, draws)

    folder, n, codes, steps = tmp_path / "arc", 4000, [], []
    for loss in (stopping, train):
        monkeypatch.setattr(BRIDGES["arc"], "loss", loss)
        with pytest.raises(SystemExit) as left:
            main(["train", str(RECIPE), "--import", str(FILE), "--run", str(folder)])
        codes.append(left.value.code)
        steps.append(load_run(folder).checkpoint().step)
    assert codes == [143, 0], "stopped by SIGTERM, then done"
    assert 80 <= steps[0] < steps[1] == 200
    assert len({record["step"] for record in load_run(folder).records() if "lr" in record}) == 100
    with pytest.raises(SystemExit) as left:
        main(["sample", str(folder), "-n", str(n)])
    assert left.value.code == 0
    x = torch.from_numpy(np.load(next(folder.glob("samples/step-*/samples.npz")))["x"]).double()
    exact = BRIDGES["arc"](Ends(Spec((2,), DOUBLE)), network=exact_network())
    mean, cov = reached(gauss, exact, recipe.solver.arguments["steps"])
    diagonal = gauss.COV.diagonal()
    off_mean = 3 * (diagonal / n).sqrt() + (mean - gauss.MEAN).abs()
    off_cov = 3 * ((gauss.COV**2 + torch.outer(diagonal, diagonal)) / n).sqrt() + (cov - gauss.COV).abs()
    assert bool(((x.mean(0) - gauss.MEAN).abs() <= off_mean).all()), x.mean(0)
    assert bool(((x.T.cov() - gauss.COV).abs() <= off_cov).all()), x.T.cov()
