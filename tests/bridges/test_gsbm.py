"""Generalised bridge matching: no cost, a quadratic cost in closed form, an obstacle, and a resumed run."""

import math
from dataclasses import dataclass, field, replace
from itertools import islice

import pytest
import torch

from latentsb.bridges.gsbm import GSBM
from latentsb.data.pairs import Unpaired
from latentsb.data.toys import Gaussian
from latentsb.errors import ArgumentError
from latentsb.experiment import build
from latentsb.laws import Ends
from latentsb.oracles import GaussianBridge, Joint, Normal
from latentsb.oracles.recursions import imf
from latentsb.process.coupling import MinibatchOT, Pair, Paired
from latentsb.process.path import PinnedPath
from latentsb.process.references import OU
from latentsb.process.splines import Spline
from latentsb.process.statecost import Obstacles, Quadratic, StateCost
from latentsb.process.times import Uniform
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.rounds import Renewal
from latentsb.run import Run
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainer import Trainer

DOUBLE = torch.float64
KNOTS = torch.linspace(0, 1, 9, dtype=DOUBLE)


@pytest.fixture
def make(gauss):
    """A bridge in the plane with affine networks."""

    def bridge(cost, **keys):
        network = lambda x, cond: gauss.LinearNetwork(x, knots=KNOTS)  # noqa: E731
        return GSBM(Ends(Spec((2,)), two_sided=True), network=network, cost=cost, **keys)

    return bridge


def pair_of(rows=32, dtype=DOUBLE, seed=0):
    ends = torch.randn(2, rows, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Pair(ends[0], ends[1])


def draws_of(pair, name="test"):
    return Draws.block(0, name, 0, len(pair.x0))


def spline_of(bridge, pair):
    return Spline(bridge.path.sigma, pair.x0, pair.x1, pair.extra["bend"], pair.extra["swell"])


def renewal(number, source, resumed=False):
    return Renewal(number, resumed=resumed, source=source, seed=0, purpose="loss", device=torch.device("cpu"))


def test_without_a_cost_the_brownian_bridge_is_kept_and_matched(make):
    bridge, pair = make(Quadratic(alpha=0), sigma=0.8, fit_steps=20), pair_of(dtype=torch.float32)
    found = bridge.controlled(pair, draws_of(pair))
    assert float(found.extra["bend"].abs().max()) < 1e-5
    assert float(found.extra["swell"].abs().max()) < 1e-5
    for end in ("x0", "x1"):
        loss = bridge.matching(found, bridge.path, Uniform(), draws_of(pair), end).total
        dsbm = bridge.matching(pair, PinnedPath(bridge.reference), Uniform(), draws_of(pair), end).total
        torch.testing.assert_close(loss, dsbm, rtol=1e-4, atol=1e-5)


def test_the_price_of_nothing_is_stationary_at_the_brownian_bridge(make):
    bridge, pair = make(Quadratic(alpha=0)), pair_of()
    knots = [torch.zeros(32, 15, 2, dtype=DOUBLE, requires_grad=True), torch.zeros(32, 15, dtype=DOUBLE)]
    knots[1].requires_grad_()
    price = bridge.price(Spline(1.0, pair.x0, pair.x1, *knots), draws_of(pair))
    assert float(price.detach().abs().max()) < 1e-12
    assert all(float(slope.abs().max()) < 1e-9 for slope in torch.autograd.grad(price.sum(), knots))


def test_a_quadratic_cost_makes_ornstein_uhlenbeck_bridges(make):
    """Moments to 1e-2 of the data's unit.

    A straight line between knots is off by at most `h²/8` times the curvature of the mean, `η² |m|`, which is a quarter
    for half the distance. The rest is the noise of the last steps of Adam.
    """
    sigma, eta, pair = 0.8, 2.0, pair_of()
    t = torch.linspace(0.02, 0.98, 49, dtype=DOUBLE)
    law, errors = OU(theta=eta, sigma=sigma).pinned(t), []
    for knots in (7, 15):
        bridge = make(Quadratic(alpha=eta**2 / (2 * sigma**2)), sigma=sigma, knots=knots, fit_steps=100)
        mean, std = spline_of(bridge, bridge.controlled(pair, draws_of(pair))).sweep(t)
        expected = law.b[:, None, None] * pair.x0 + law.a[:, None, None] * pair.x1
        errors.append(float((mean - expected).abs().max()))
        bound = eta**2 * float(torch.stack([pair.x0, pair.x1]).abs().max()) / (8 * (knots + 1) ** 2)
        assert errors[-1] < bound + 2e-3
        assert float((std - law.std[:, None]).abs().max()) < 1e-2
    assert errors[1] < 1e-2
    assert errors[1] < 0.4 * errors[0]


def test_units_do_not_matter(make):
    """Lengths and sigma doubled, the cost of a place the same: every path is the same, twice as large."""
    small = make(Quadratic(alpha=4.0), sigma=0.5, fit_steps=30)
    large = make(Quadratic(alpha=1.0), sigma=1.0, fit_steps=30)
    pair = pair_of()
    one = small.controlled(pair, draws_of(pair))
    two = large.controlled(Pair(2 * pair.x0, 2 * pair.x1), draws_of(pair))
    torch.testing.assert_close(two.extra["bend"], 2 * one.extra["bend"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(two.extra["swell"], one.extra["swell"], rtol=1e-9, atol=1e-9)


@dataclass(frozen=True, kw_only=True)
class Early(StateCost):
    """Draws to (3, 3) in the first quarter of the time, and counts what it is asked."""

    seen: list = field(default_factory=list)

    def __call__(self, x, t):
        self.seen.append(x.shape[0] * x.shape[1])
        return 20 * (x - 3).square().sum(2) * (t < 0.25)[:, None]


def test_a_cost_acts_at_its_own_time(make):
    bridge, pair = make(Early(), fit_steps=50), pair_of()
    bend = bridge.controlled(pair, draws_of(pair)).extra["bend"].mean((0, 2))
    # After the cost has ended the way back is the cheapest, a straight line; before, it is bent towards (3, 3).
    assert int(bend.argmax()) in (2, 3, 4)
    torch.testing.assert_close(
        bend[5:], bend[5] * torch.arange(10, -0.5, -1).double()[: len(bend[5:])] / 10, rtol=0.1, atol=0.05
    )


def test_work_grows_with_the_pairs_and_no_faster(make):
    counts = []
    for rows in (16, 32):
        bridge, pair = make(Early(), fit_steps=3, fit_times=7, fit_draws=2), pair_of(rows)
        bridge.controlled(pair, draws_of(pair))
        counts.append(sum(bridge.cost.seen))
    assert counts == [16 * 3 * 7 * 4, 32 * 3 * 7 * 4]


def test_paths_go_around_an_obstacle(make):
    """The fit is no dearer than the best detour that we can think of, and that bounds the time spent inside.

    Inside a ball the cost is at least half the weight, so `share of time inside <= 2 price / weight`. The detours are
    sines of any height on either side; a fit finds a side by itself, so means over pairs are compared.
    """
    cost, sigma = Obstacles(balls=((0.0, 0.0, 0.6),), weight=400.0, edge=0.05), 0.5
    pair = pair_of(64)
    shift = torch.tensor([2.0, 0.0], dtype=DOUBLE)
    pair = Pair(0.2 * pair.x0 - shift, 0.2 * pair.x1 + shift)
    bridge = make(cost, sigma=sigma, fit_steps=150)
    found, look = spline_of(bridge, bridge.controlled(pair, draws_of(pair))), replace_times(bridge)
    flat = Spline(sigma, pair.x0, pair.x1, 0 * found.bend, 0 * found.swell)
    sine = torch.sin(math.pi * torch.arange(1, 16, dtype=DOUBLE) / 16)[:, None] * torch.tensor([0.0, 1.0])
    detours = [replace(flat, bend=height * sine.expand_as(flat.bend)) for height in (0.6, 0.8, 1.0, 1.2, 1.4)]
    best = torch.stack([look.price(detour, draws_of(pair, "look")) for detour in detours]).amin(0)
    price = look.price(found, draws_of(pair, "look")).detach()
    assert within_time(cost, found) <= 2 * float(price.mean()) / cost.weight
    assert float((price - best).mean()) < 0
    assert within_time(cost, flat) > 3 * 2 * float(best.mean()) / cost.weight


def replace_times(bridge):
    """The bridge's price with so many times and draws that its noise is small."""
    bridge.fit_times, bridge.fit_draws = 200, 4
    return bridge


def within_time(cost, spline):
    """Share of the time that draws of the paths spend inside."""
    mean, std = spline.sweep((torch.arange(200, dtype=DOUBLE) + 0.5) / 200)
    noise = torch.randn(mean.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    return float(cost.inside(mean + std[..., None] * noise).double().mean())


def regress(bridge, end, copies=24):
    """Bridge matching of an affine network by least squares, on the path's own targets."""
    table, network = bridge.splines.table, bridge.networks[end]
    rows = torch.arange(len(table["x0"])).repeat(copies)
    extra = {k: table[f"extra.{k}"][rows] for k in ("bend", "swell")}
    pair = Pair(table["x0"][rows], table["x1"][rows], extra=extra)
    draws = Draws.block(1, f"regress {end}", 0, len(pair.x0))
    t = Uniform().sample(bridge, draws)
    point = bridge.path.at(t, pair, draws)
    target = bridge.prediction.target(point.b_f if end == "x1" else point.b_b, point.x, t, bridge.reference, end)
    inputs = torch.cat([point.x, torch.ones_like(point.x[:, :1])], 1).double()
    features = (network.hats(t)[:, :, None] * inputs[:, None]).flatten(1)
    weight = torch.linalg.lstsq(features, target.double()).solution.reshape(len(KNOTS), 3, 2)
    network.weight.data.copy_(weight.transpose(1, 2))


def test_the_whole_method_finds_the_gaussian_bridge_of_a_quadratic_cost(make):
    """Round by round the ends are coupled as iterative Markovian fitting over the Ornstein-Uhlenbeck process says.

    The two dimensions are alike and independent, so a covariance of 2048 pairs has the standard error
    `√((1 + c²)/4096)`, .017; over the Brownian motion it would be .546 and .611, here .42 and .44. The bias of 100
    steps is below .01.
    """
    alpha, rows = 2.0, 2048
    reference = OU(theta=math.sqrt(2 * alpha), sigma=1.0)
    source = Unpaired(x0=Gaussian(n=20_000, seed=1), x1=Gaussian(mean=(1.0, -1.0), n=20_000, seed=2))
    simulation = EulerMaruyama(steps=100, noiseless_last=False)
    bridge = make(Quadratic(alpha=alpha), pairs=rows, fit_steps=60, fit_times=10, simulation=simulation).eval()
    laws = Normal.isotropic(2, 0.0, 1.0), Normal(torch.tensor([1.0, -1.0], dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    independent = Joint.independent(*laws)
    for number, joint in enumerate([independent, *islice(imf(independent, reference), 2)]):
        end = "x1" if number % 2 else "x0"
        with torch.no_grad():
            bridge.renew(renewal(number, source))
        table = {k: bridge.splines.table[k].double() for k in ("x0", "x1")}
        c = float(((table["x0"] - table["x0"].mean(0)) * (table["x1"] - table["x1"].mean(0))).mean())
        truth = float(joint.cross.diagonal().mean())
        assert abs(c - truth) < 4 * math.sqrt((1 + truth**2) / (2 * rows)) + 0.01
        for name, law in zip(("x0", "x1"), laws, strict=True):
            assert float((table[name].mean(0) - law.mean).abs().max()) < 4 / math.sqrt(rows) + 0.02
            assert abs(float(table[name].var(0).mean()) - 1) < 4 / math.sqrt(rows) + 0.02
        regress(bridge, end)
    optimum = GaussianBridge.between(*laws, reference)
    x = torch.tensor([[0.5, 0.0], [0.0, -1.0]])
    for t in (0.25, 0.5, 0.75):
        for end, drift in (("x1", optimum.b_f), ("x0", optimum.b_b)):
            found = bridge.drift(x, torch.tensor(t, dtype=DOUBLE), Condition(), end)
            torch.testing.assert_close(found.double(), drift(t)(x.double()), rtol=0, atol=0.2)


RECIPE = """
seed: 3
data:
  name: unpaired
  x0: {name: gaussian, mean: [0.5, 0.0], n: 300}
  x1: {name: gaussian, mean: [-1.0, 1.0], n: 400, seed: 1}
bridge:
  name: gsbm
  network: {name: mlp, width: 16, depth: 1}
  cost: {name: obstacles, balls: [[0, 0, 0.3]]}
  images: 64
  pairs: 300
  knots: 5
  fit_steps: 3
  simulation: {name: euler_maruyama, steps: 3, noiseless_last: false}
solver: {name: euler_maruyama, steps: 3}
train: {images: 224, batch: 16, log_every: 32, save_every: 1000000, preview_every: 1000000, warmup: 0}
"""


def trained(path, *overrides):
    recipe = Recipe.parse(RECIPE, overrides, label="toy")
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
        return dict(run.checkpoint().sha256)
    finally:
        run.close()


def test_a_training_interrupted_in_any_turn_ends_in_the_same_bytes(tmp_path):
    """In the first turn, whose pairs are the coupling's, and in both directions of simulated ones."""
    whole = trained(tmp_path / "whole")
    for images in (32, 96, 128, 160):
        trained(tmp_path / "parts", f"train.images={images}")
    assert trained(tmp_path / "parts") == whole


def test_a_round_can_be_made_again_and_another_one_is_different(make):
    source = Unpaired(x0=Gaussian(n=300, seed=1), x1=Gaussian(n=400, seed=2))
    bridge = make(Obstacles(), pairs=300, fit_steps=2, simulation=EulerMaruyama(steps=2, noiseless_last=False))
    tables = []
    for number, resumed in ((1, False), (1, True), (3, False)):
        with torch.no_grad():
            bridge.renew(renewal(number, source, resumed))
        tables.append(bridge.splines.table)
    assert all(torch.equal(tables[0][k], tables[1][k]) for k in tables[0])
    assert not torch.equal(tables[0]["x0"], tables[2]["x0"])
    assert set(tables[0]) == {"x0", "x1", "extra.bend", "extra.swell"}


def test_conditions_travel_with_their_pair(make):
    bridge, pair = make(Quadratic(), fit_steps=1), pair_of()
    labels = torch.arange(32)
    found = bridge.controlled(replace(pair, cond=Condition({"label": labels})), draws_of(pair))
    assert torch.equal(found.cond["label"], labels)
    assert torch.equal(found.x0, pair.x0)


@pytest.mark.parametrize("coupling", [Paired(), MinibatchOT()])
def test_couplings_that_a_round_cannot_serve_are_refused(make, coupling):
    with pytest.raises(ArgumentError, match="coupling"):
        make(Quadratic(), coupling=coupling)


def test_a_held_out_loss_is_of_the_batch_that_it_is_given(make):
    bridge = make(Quadratic(), pairs=256, fit_steps=2, simulation=EulerMaruyama(steps=2, noiseless_last=False))
    with torch.no_grad():
        bridge.renew(renewal(0, Unpaired(x0=Gaussian(n=300), x1=Gaussian(n=300))))
    pair = pair_of(16, torch.float32)
    batch, draws = Batch(torch.arange(16), pair.x0, pair.x1), draws_of(pair)
    with torch.no_grad():
        assert torch.equal(bridge.eval().pair(batch, draws, "x1").x1, pair.x1)
        assert torch.equal(bridge.pair(batch, draws, "x0").x0, pair.x0)
        assert not torch.equal(bridge.train().pair(batch, draws, "x1").x1, pair.x1)
