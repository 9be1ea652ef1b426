"""Score and flow matching, held to the Markovian projections of Gaussian couplings, and to known codes' errors."""

import math

import pytest
import torch
from torch import nn

from latentsb.bridges.sf2m import SF2M
from latentsb.errors import ArgumentError, DataError
from latentsb.laws import Ends, Gaussian
from latentsb.likelihood import Likelihood
from latentsb.networks.base import Network
from latentsb.oracles.chain import euler_maruyama, run, uniform
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Joint, Normal
from latentsb.process.coupling import Independent, MinibatchOT, Paired
from latentsb.process.path import PinnedPath
from latentsb.process.references import OU, VP, Brownian, Varying
from latentsb.process.transport import costs, sinkhorn
from latentsb.randomness import Draws
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE), two_sided=True)
A = Normal(torch.tensor([0.5, -1.0], dtype=DOUBLE), torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=DOUBLE))
B = Normal(torch.tensor([-1.0, 0.0], dtype=DOUBLE), torch.tensor([[0.4, -0.1], [-0.1, 1.5]], dtype=DOUBLE))
NONE = Condition()


class Map(Network):
    """An affine function of the state."""

    def __init__(self, x, cond=None, out=None):
        super().__init__(x)
        self.weight = nn.Parameter(torch.zeros(x.numel, x.numel + 1, dtype=DOUBLE))

    def forward(self, x, t, cond):
        return torch.cat([x, torch.ones_like(x[:, :1])], 1) @ self.weight.T


class Exact(Network):
    """An affine function of the state at each time, told from outside."""

    def forward(self, x, t, cond):
        return self.tell(float(t))(x)


def exact(truth, reference, **keys):
    bridge = SF2M(ENDS, network=Exact, reference=reference, **keys)
    bridge.networks["flow"].tell = truth.velocity
    bridge.networks["score"].tell = lambda t: truth.score(t).left(truth.a(t) / 2)
    return bridge


@pytest.mark.parametrize("t", [0.1, 0.5, 0.85])
@pytest.mark.parametrize(
    "reference", [Brownian(sigma=0.7), Varying(beta_ends=0.2, beta_middle=2.0), OU(), VP()], ids=str
)
@pytest.mark.parametrize("plan", ["entropic", "independent"])
def test_the_optimum_is_the_markovian_projection(gauss, plan, reference, t):
    """Both regressions are linear least squares here: one Newton step is their exact optimum."""
    n = 40_000
    between = GaussianBridge.between(A, B, reference)
    truth = between if plan == "entropic" else GaussianBridge(Joint.independent(A, B), reference)
    x0, x1 = truth.ends.sample(n, Draws.block(0, "ends", 0, n))
    bridge = SF2M(ENDS, network=Map, reference=reference, coupling=Paired(), times=gauss.At(t=t), dropout=0.0)
    batch, draws = Batch(torch.arange(n), x0, x1), Draws.block(0, "loss", 0, n)
    x = PinnedPath(reference).at(torch.full((n,), t, dtype=DOUBLE), bridge.coupling.pair(batch, ENDS, draws), draws).x
    weights = [bridge.networks[name].weight for name in ("flow", "score")]
    slopes = torch.autograd.grad(bridge.loss(batch, draws).total.mean(), weights)
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    moments = design.T @ design / n
    time = torch.tensor(t, dtype=DOUBLE)
    # The loss is a mean over two coordinates, so the Hessian of one row is `moments`, times λ² for the score.
    scale = (1.0, float(4 * reference.pinned(time).c / reference.g2(time).square()))
    with torch.no_grad():
        for weight, slope, square in zip(weights, slopes, scale, strict=True):
            weight.sub_(torch.linalg.solve(moments, slope.T).T / square)
    for found, map_ in (
        (bridge.velocity(x, time, NONE), truth.velocity(t)),
        (bridge.score(x, time, NONE), truth.score(t)),
        (bridge.drift(x, time, NONE, "x1"), truth.b_f(t)),
        (bridge.drift(x, time, NONE, "x0"), truth.b_b(t)),
    ):
        expected = map_(x)
        # Three coefficients per coordinate: relative error √(3/n) of targets that spread about 3 times the map at most.
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert float(error) < 3 * 3 * math.sqrt(3 / n), float(error)


@pytest.mark.parametrize("towards", ["x1", "x0"])
def test_the_exact_bridge_reaches_both_ends(towards):
    reference, n = Varying(beta_ends=0.2, beta_middle=2.0), 20_000
    truth = GaussianBridge.between(A, B, reference)
    bridge = exact(truth, reference)
    x0, x1 = truth.ends.sample(n, Draws.block(0, "ends", 0, n))
    draws = Draws.block(1, "solve", 0, n)
    state = bridge.start(Batch(torch.arange(n), x0, x1), draws, towards)
    made = EulerMaruyama(steps=12, noiseless_last=False).run(bridge, state, draws, towards).x
    drift, begin = (truth.b_f, A) if towards == "x1" else (truth.b_b, B)
    law = run(euler_maruyama(drift, truth.a, uniform(12, towards), noiseless_last=False), begin).last
    spread = law.cov.diagonal()
    assert bool(((made.mean(0) - law.mean).abs() < 4.5 * (spread / n).sqrt()).all())
    assert float((torch.cov(made.T) - law.cov).abs().max() / spread.max()) < 4.5 * math.sqrt(2 / n)
    assert law.kl(B if towards == "x1" else A) < 0.02


def test_the_likelihood_is_that_of_the_data():
    reference = Brownian(sigma=0.8)
    x1 = Gaussian(ENDS.spec, mean=tuple(B.mean.tolist()), cov=tuple(map(tuple, B.cov.tolist())))
    truth = GaussianBridge.between(A, B, reference)
    bridge = exact(truth, reference)
    bridge.ends = Ends(ENDS.spec, x1=x1)
    x = A.sample(8, Draws.seeds(range(8)))
    found = Likelihood(rtol=1e-7, atol=1e-7).log_prob(bridge, x, NONE, Draws.seeds(range(8)))
    torch.testing.assert_close(found.nats, A.log_prob(x), rtol=0, atol=1e-4)


def test_the_pull_of_the_flow_is_half_the_growth_of_the_variance():
    """`c'/2c`, for constant σ `(1 − 2t)/(2t(1 − t))`; with `c'/√c`, as a published runner has it, nothing fits."""
    t = torch.tensor([0.1, 0.4, 0.8], dtype=DOUBLE)
    x0, x1 = A.sample(3, Draws.seeds(range(3))), B.sample(3, Draws.seeds(range(3, 6)))
    for reference in (Brownian(sigma=0.7), Varying(beta_ends=0.2, beta_middle=2.0)):
        pair = Paired().pair(Batch(torch.arange(3), x0, x1), ENDS, Draws.seeds(range(3)))
        point = PinnedPath(reference).at(t, pair, Draws.seeds(range(3)))
        h = 1e-6
        law, up, down = (reference.pinned(s) for s in (t, t + h, t - h))
        mean = law.mean(x0, x1)
        rate = (up.mean(x0, x1) - down.mean(x0, x1)) / (2 * h)
        ratio = (up.c - down.c) / (2 * h) / (2 * law.c)
        if isinstance(reference, Brownian):
            torch.testing.assert_close(ratio, (1 - 2 * t) / (2 * t * (1 - t)), rtol=1e-7, atol=1e-7)
        expected = rate + ratio[:, None] * (point.x - mean)
        torch.testing.assert_close((point.b_f - point.b_b) / 2, expected, rtol=1e-6, atol=1e-6)


def test_the_weight_of_the_score_makes_its_first_loss_one(gauss):
    """`|λ s + n|²` of a silent network is the mean of n², at every time and for every reference."""
    n = 20_000
    x0, x1 = A.sample(n, Draws.block(0, "a", 0, n)), B.sample(n, Draws.block(0, "b", 0, n))
    for reference in (Brownian(sigma=3.0), Varying(), VP()):
        bridge = SF2M(ENDS, network=Map, reference=reference, coupling=Independent())
        terms = bridge.loss(Batch(torch.arange(n), x0, x1), Draws.block(0, "loss", 0, n)).terms
        assert gauss.within(terms["score"], 1.0)


def test_pairs_are_entropic_by_default_and_at_the_references_epsilon():
    reference = VP(beta_min=0.1, beta_d=2.0)
    bridge = SF2M(ENDS, network=Map, reference=reference)
    assert isinstance(bridge.coupling, MinibatchOT)
    assert bridge.coupling.reference.epsilon == reference.epsilon == pytest.approx(2 * math.sinh(1.1 / 2))
    # Its pairs have the correlation of the static bridge with |x − y|²/2 as the cost, not that of half the epsilon.
    n = 1024
    one = Ends(Spec((1,), DOUBLE), two_sided=True)
    bridge = SF2M(one, network=Map, reference=Brownian())
    x0, x1 = (Draws.block(0, name, 0, n).normal("x", torch.empty(n, 1, dtype=DOUBLE)) for name in "ab")
    batch = bridge.prepare(Batch(torch.arange(n), x0, x1), Draws.block(0, "pairs", 0, n))
    found = float(torch.corrcoef(torch.cat([batch.x0, batch.x1], 1).T)[0, 1])
    golden, half = ((math.sqrt(4 + e * e) - e) / 2 for e in (1.0, 0.5))
    assert abs(found - golden) < 4.5 * (1 - golden**2) / math.sqrt(n) < abs(half - golden)


def test_an_exact_plan_is_a_permutation():
    """Pairs drawn with replacement from one would lose a share 1/e of the points."""
    n = 64
    x0, x1 = A.sample(n, Draws.seeds(range(n))), B.sample(n, Draws.seeds(range(n, 2 * n)))
    bridge = SF2M(ENDS, network=Map, coupling=MinibatchOT(reference=Brownian(sigma=0.0)))
    batch = bridge.prepare(Batch(torch.arange(n), x0, x1), Draws.seeds(range(n)))
    assert torch.equal(batch.x0, x0)
    assert torch.equal(batch.x1.sort(0)[0], x1.sort(0)[0])
    rows = sinkhorn(costs(x0, x1), 1.0).rows
    torch.testing.assert_close(rows.sum(1), torch.ones(n, dtype=DOUBLE), rtol=0, atol=1e-12)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ArgumentError, match="flow"):
        SF2M(ENDS, network=Map, reference=Brownian(sigma=0.0))
    with pytest.raises(ArgumentError, match="partners"):
        SF2M(Ends(Spec((2,))), network=Map, coupling=Paired())
    bridge = SF2M(ENDS, network=Map)
    with pytest.raises(DataError, match="x1"):
        bridge.start(Batch(torch.arange(2)), Draws.seeds(range(2)))
