"""DSB that begins with a trained bridge, and its training: interrupted inside rounds, split, and by recipe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentsb.bridge import BRIDGES
from latentsb.errors import ArgumentError, RecipeError
from latentsb.experiment import build
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Joint, Normal
from latentsb.process.references import OU, VP, Brownian
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainer import Trainer

DSB, F64 = BRIDGES["dsb"], torch.float64
DATA = Normal(torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64))


class Still(Network):
    """Zero."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return 0 * x


class NoiseFlow(Network):
    """The velocity `E[x1 − x0 | x]` of `x = (1 − t) x0 + t x1` for the data above, by conditioning."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        rows = []
        for state, time in zip(x, t.expand(len(x)), strict=True):
            spread = torch.linalg.inv((1 - time) ** 2 * DATA.cov + time**2 * torch.eye(2, dtype=F64))
            off = spread @ (state - (1 - time) * DATA.mean)
            rows.append(time * off - DATA.mean - (1 - time) * DATA.cov @ off)
        return torch.stack(rows)


class NoiseScore(Network):
    """EDM's F for unit data, so that its denoiser is exact for the data above."""

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        rows = []
        for seen, noise in zip(x, t.expand(len(x)), strict=True):
            sigma2 = (8 * noise).exp()
            y = seen * (1 + sigma2).sqrt()
            off = torch.linalg.solve(DATA.cov + sigma2 * torch.eye(2, dtype=F64), y - DATA.mean)
            best = DATA.mean + DATA.cov @ off
            rows.append((best - y / (1 + sigma2)) * ((1 + sigma2) / sigma2).sqrt())
        return torch.stack(rows)


def flow(ends: Ends):
    return BRIDGES["flow"](ends, network=lambda x, cond: NoiseFlow(x))


def score(ends: Ends):
    return BRIDGES["score"](ends, network=lambda x, cond: NoiseScore(x))


def vp(ends: Ends):
    return BRIDGES["score"](ends, network=lambda x, cond: NoiseScore(x), reference=VP(beta_d=19.9))


@pytest.mark.parametrize("reference", [Brownian(sigma=0.6), OU(theta=0.5, sigma=1.0)])
@pytest.mark.parametrize("begin", [flow, score, vp])
def test_the_first_chains_of_a_trained_bridge_are_bridge_matching_of_independent_ends(begin, reference):
    """The drift that carries noise to data with this reference's noise, from any denoiser: the oracle's projection."""
    bridge = DSB(Ends(Spec((2,), F64)), network=lambda x, cond: Still(x), begin=begin, reference=reference)
    truth = GaussianBridge(Joint.independent(DATA, Normal.isotropic(2)), reference)
    x = torch.tensor([[0.3, -0.4], [1.5, 1.0], [-2.0, 0.1]], dtype=F64)
    for t in (1.0, 0.95, 0.5, 0.05):
        found = bridge.drift(x, torch.tensor(t, dtype=F64), Condition(), "x0")
        # At t = 1 the state is noise alone. A denoiser asked at its largest level σ takes `cov x/σ` of it for signal.
        lost = float((x @ DATA.cov).abs().max()) / 80 * 1.01
        torch.testing.assert_close(found, truth.b_b(t)(x), atol=lost if t == 1 else 1e-7, rtol=1e-7)


def test_a_bridge_to_begin_with_takes_the_place_of_the_first_half_step():
    bridge = DSB(Ends(Spec((2,), F64)), network=lambda x, cond: Still(x), begin=flow, half_step=10)
    schedule, teachers = bridge.schedule(), []
    assert [schedule.now(seen, {})[0].trains for seen in (0, 10)] == [("networks.x1.",), ("networks.x0.",)]
    assert not any(name.startswith(("networks.x0.", "networks.x1.")) for name in bridge.begin.state_dict())

    class Named:
        number = 0

        def simulate(self, name, rows, make):
            teachers.append(name)
            n = 64
            return make(Batch(torch.arange(n), torch.zeros(n, 2, dtype=F64)), Draws.block(0, name, 0, n))

    work = Named()
    bridge.renew(work)
    # From standard normal noise at 1; what a Still network would reach has another mean and spread.
    ends = bridge.chains["x"][:, -1]
    assert float((ends - DATA.mean).mean(0).abs().max()) < 5 / 8
    x, t = torch.zeros(1, 2, dtype=F64), torch.tensor(0.5, dtype=F64)
    assert float(bridge.drift(x, t, Condition(), "x0").abs().max()) > 0
    work.number = 1
    bridge.renew(work)
    assert float(bridge.drift(x, t, Condition(), "x0").abs().max()) == 0
    assert teachers == ["chains towards x0", "chains towards x1"]


def test_a_bridge_between_data_cannot_be_begun_from_noise():
    with pytest.raises(ArgumentError, match="x1 is data"):
        DSB(Ends(Spec((2,), F64), two_sided=True), network=lambda x, cond: Still(x), begin=flow)


RECIPE = """
seed: 3
data: {name: unpaired, x0: {name: gaussian, mean: [0.5], n: 100}, x1: {name: gaussian, mean: [-0.5], n: 70}}
bridge: {name: dsb, network: {name: mlp, width: 16, depth: 1, dropout: 0.1}, steps: 4, paths: 40, half_step: 96,
  refresh: 48}
train: {images: 288, batch: 16, log_every: 48, save_every: 1000000, preview_every: 1000000, warmup: 0}
"""


def train(path, *overrides, text=RECIPE):
    recipe = Recipe.parse(text, overrides, label="toy")
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
    finally:
        run.close()
    return run


@pytest.mark.parametrize("objective", ["original", "terminal"])
def test_interrupted_inside_any_round_it_ends_in_the_same_bits(tmp_path, objective):
    """Stops in the first round, in a refreshed one, and in the turn of the other direction."""
    key = f"bridge.objective={objective}"
    whole = train(tmp_path / "whole", key)
    for stop in (16, 80, 96, 128, 240):
        train(tmp_path / "parts", key, f"train.images={stop}")
    parts = train(tmp_path / "parts", key)
    assert dict(parts.checkpoint().sha256) == dict(whole.checkpoint().sha256)
    assert int(whole.experiment(device="cpu").bridge.turn) == 2


def test_a_step_does_not_depend_on_how_its_rows_are_split():
    bridge = DSB(Ends(Spec((2,), F64), two_sided=True), network=lambda x, cond: Still(x))
    x = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    bridge.chains = bridge.simulate_chains(Batch(torch.arange(64), x, x), Draws.block(0, "chains", 0, 64), "x1")
    batch = Batch(torch.arange(64), x, x)
    whole = bridge.loss(batch, Draws.step(1, "loss", 0, range(64))).total
    halves = [range(32), range(32, 64)]
    parts = [bridge.loss(batch.select(slice(r.start, r.stop)), Draws.step(1, "loss", 0, r)).total for r in halves]
    assert torch.equal(torch.cat(parts), whole)


def test_a_recipe_begins_with_a_run(tmp_path):
    noise = "data: {name: gaussian, mean: [0.5], n: 100}\n"
    network = "{name: mlp, width: 16, depth: 1}"
    first = noise + f"bridge: {{name: flow, network: {network}}}\n" + RECIPE.strip().splitlines()[-1]
    run = train(tmp_path / "flow", "train.images=64", text=first)
    begin = f"{{run: {run.path}, part: bridge}}"
    text = noise + f"bridge: {{name: dsb, network: {network}, steps: 4, paths: 40, half_step: 48, begin: {begin}}}\n"
    text += RECIPE.strip().splitlines()[-1]
    second = train(tmp_path / "dsb", "train.images=80", text=text)
    weights, averaged = second.weights("model"), run.weights("ema")
    borrowed = {k.removeprefix("bridge.begin."): v for k, v in weights.items() if k.startswith("bridge.begin.")}
    assert borrowed.keys() == {k.removeprefix("bridge.") for k in averaged if k.startswith("bridge.")}
    assert all(torch.equal(v, averaged[f"bridge.{k}"]) for k, v in borrowed.items())
    assert second.sample(3, seed=0) is not None
    with pytest.raises(RecipeError, match=r"bridge\.begin"):
        build(Recipe.parse(text.replace(noise, RECIPE.splitlines()[2] + "\n"), label="toy"))
