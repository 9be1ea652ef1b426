"""DSBM's turns on exact moments: the recursions of Markovian and of proportional fitting, without sampling error.

Losses are quadratic and simulated states affine in normal draws, so rows whose draws have means of exactly 0,
variances of 1 and no covariances give every expectation exactly. What is left is the
bias of N Euler–Maruyama steps, which the exact law of the chain predicts to rounding.
"""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from latentsb.bridges.dsbm import DSBM
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.oracles.chain import euler_maruyama, run, uniform
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.process.coupling import FromReference, Independent
from latentsb.process.prediction import PREDICTIONS, DriftItself, EndPoint, Scaled
from latentsb.process.references import Brownian
from latentsb.process.times import TimeDistribution
from latentsb.randomness import Draws
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Condition, Spec

DOUBLE = torch.float64
UNIT = Normal.isotropic(1)
BROWNIAN = Brownian(sigma=1.0)
LINE = Ends(Spec((1,), DOUBLE), two_sided=True)


class AsDrawn(TimeDistribution):
    """The times that the draws give."""

    def quantile(self, u: Tensor, bridge: object) -> Tensor:
        return u


class AtTimes(Network):
    """Affine in the state, with coefficients of its own at each time of the grid."""

    def __init__(self, x: Spec, cond: object = None, *, steps: int):
        super().__init__(x, {})
        self.steps, self.weight = steps, nn.Parameter(torch.zeros(steps + 1, 2, dtype=DOUBLE))

    def place(self, t: Tensor) -> Tensor:
        return (t * self.steps).round().long()

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        slope, shift = self.weight[self.place(t)].expand(len(x), 2).T
        return (slope * x[:, 0] + shift)[:, None]


def solve(gauss, bridge: DSBM, number: int) -> None:
    """Least squares with a phase's own loss: one Newton step at each time."""
    (phase,) = bridge.train().schedule().now(number * bridge.images, {})
    towards = bridge.student(number)[0]
    network, steps = bridge.networks[towards], bridge.simulation.steps
    draws = gauss.Columns(steps, uniform(steps, towards)[:-1])
    network.weight.data.zero_()
    seen: list[tuple[Tensor, Tensor]] = []
    hook = network.register_forward_pre_hook(lambda _, given: seen.append((given[0].detach(), given[1])))
    total = phase.loss(gauss.both(UNIT, UNIT, draws.rows * draws.copies, draws), draws).total
    hook.remove()
    slope = torch.autograd.grad(total.sum(), network.weight)[0]
    x, t = seen[0]
    inputs = torch.cat([x, torch.ones_like(x)], 1)
    squares = 2 * inputs[:, :, None] * inputs[:, None]
    curvature = torch.zeros(steps + 1, 2, 2, dtype=DOUBLE).index_add(0, network.place(t), squares)
    network.weight.data.copy_(-torch.einsum("kij,kj->ki", torch.linalg.pinv(curvature), slope))


def outcome(bridge: DSBM, towards: str) -> Joint:
    """Exact law of the ends of the learned chain, x0 first."""

    def drift(t: Tensor) -> Affine:
        probe = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
        with torch.no_grad():
            low, high = bridge.drift(probe, t, Condition(), towards)
        return Affine((high - low)[None], low)

    return law(drift, towards, bridge.simulation.steps)


def law(drift, towards: str, steps: int) -> Joint:
    """Ends of a chain of N steps from the standard normal law, x0 first."""
    one = torch.eye(1, dtype=DOUBLE)
    ends = run(euler_maruyama(drift, lambda t: one, uniform(steps, towards)), UNIT).ends
    return ends if towards == "x1" else ends.reversed()


def matched(joint: Joint, towards: str, steps: int) -> Joint:
    """What one turn should make of a coupling: the chain of N steps with the exact drift of its projection."""
    exact = GaussianBridge(joint, BROWNIAN)
    return law(exact.b_f if towards == "x1" else exact.b_b, towards, steps)


def same(found: Joint, expected: Joint, error: float = 1e-9) -> bool:
    pairs = ((found.cross, expected.cross), (found.x0.cov, expected.x0.cov), (found.x1.cov, expected.x1.cov))
    return max(float((a - b).abs()) for a, b in pairs) < error


def build(coupling, steps: int, prediction=Scaled()) -> DSBM:
    return DSBM(
        LINE,
        network=partial(AtTimes, steps=steps),
        reference=BROWNIAN,
        coupling=coupling,
        prediction=prediction,
        times=AsDrawn(),
        simulation=EulerMaruyama(steps=steps, noiseless_last=False),
        images=100,
        pairs=2 ** math.ceil(math.log2(steps + 5)),  # as many as there are columns
        dropout=0.0,
    )


def turn(gauss, bridge: DSBM, number: int) -> Joint:
    """One turn, as the engine takes it: the coupling that the drift just trained makes."""
    with torch.no_grad():
        bridge.eval().renew(gauss.OneBlock(number, UNIT, UNIT, gauss.Columns(bridge.simulation.steps)))
    solve(gauss, bridge, number)
    return outcome(bridge, bridge.student(number)[0])


def moments(table: dict[str, Tensor]) -> Joint:
    """Of the rows of a table."""
    x0, x1 = table["x0"][:, 0], table["x1"][:, 0]
    one = lambda v: Normal(v.mean()[None], v.var(unbiased=False)[None, None])  # noqa: E731
    return Joint(one(x0), one(x1), (x0 * x1).mean()[None, None])


def turns(gauss, bridge: DSBM, count: int) -> list[Joint]:
    """Couplings after each turn; every turn and every table is held to the exact law of the chain."""
    now = bridge.coupling
    loose = Joint.independent(UNIT, UNIT)
    first = Joint(UNIT, Normal.isotropic(1, 0.0, 2.0), UNIT.cov) if isinstance(now, FromReference) else loose
    expected, found = first, []
    for number in range(count):
        towards, simulated = bridge.student(number)
        found.append(turn(gauss, bridge, number))
        if simulated:
            assert same(moments(bridge.coupling.table), expected)
        expected = matched(expected if simulated else first, towards, bridge.simulation.steps)
        assert same(found[-1], expected)
    return found


def limits(gauss, coupling, count: int, prediction=Scaled()) -> list[tuple[float, float]]:
    """Covariance and variance of the made end after each turn at N → ∞, by extrapolation from two N: error 1/N²."""
    coarse, fine = (build(coupling, steps, prediction) for steps in (30, 60))
    found = []
    for k, (one, two) in enumerate(zip(turns(gauss, coarse, count), turns(gauss, fine, count), strict=True)):
        one, two = (law if fine.student(k)[0] == "x1" else law.reversed() for law in (one, two))
        found.append((float(2 * two.cross - one.cross), float(2 * two.x1.cov - one.x1.cov)))
        assert abs(float(two.cross) - found[-1][0]) < 1 / 60  # the bias that is extrapolated is no more than 1/N
    return found


@pytest.mark.parametrize("prediction", [DriftItself(), EndPoint(), Scaled()], ids=PREDICTIONS.word_of)
def test_turns_from_independent_ends_are_iterative_markovian_fitting(gauss, prediction):
    """c = .54629, .61114, .61739, … → .618034; both drifts are first matched to the first coupling."""
    found = limits(gauss, Independent(), 4, prediction)
    for (cross, made), published in zip(found, (0.54629, 0.54629, 0.61114, 0.61739), strict=True):
        assert cross == pytest.approx(published, abs=1e-3)
        assert made == pytest.approx(1, abs=1e-3)


def test_turns_from_the_reference_are_iterative_proportional_fitting(gauss):
    """Covariances 1/2, 2/3, 3/5, 5/8 and variances 3/4, 10/9, 24/25, 65/64 of the end that is made."""
    found = limits(gauss, FromReference(), 4)
    published = ((1 / 2, 3 / 4), (2 / 3, 10 / 9), (3 / 5, 24 / 25), (5 / 8, 65 / 64))
    for (cross, made), (c, v) in zip(found, published, strict=True):
        assert cross == pytest.approx(c, abs=1e-3)
        assert made == pytest.approx(v, abs=1e-3)


def test_pairs_of_ordinary_draws_have_the_law_of_the_chain(gauss):
    """Four standard errors of 40,000 pairs."""
    bridge, n = build(Independent(), 20), 40_000
    *_, law_of_pairs = turns(gauss, bridge, 2)
    bridge.pairs = n
    draws = Draws.step(5, "pairs", 0, range(n))
    with torch.no_grad():
        bridge.eval().renew(gauss.OneBlock(2, UNIT, UNIT, draws))
    found = moments(bridge.coupling.table)
    assert torch.equal(bridge.coupling.table["x0"], UNIT.sample(n, draws, "x0"))
    cross, made = float(law_of_pairs.cross), float(law_of_pairs.x1.cov)
    assert float(found.x1.cov) == pytest.approx(made, abs=4 * made * math.sqrt(2 / n))
    assert float(found.cross) == pytest.approx(cross, abs=4 * math.sqrt((made + cross**2) / n))
