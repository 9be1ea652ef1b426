"""DSBM held to the exact recursions of normal laws: what each turn learns, and what its pairs are."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from latentsb.bridges.dsbm import DSBM
from latentsb.errors import ArgumentError
from latentsb.laws import Ends, Gaussian
from latentsb.networks.base import Network
from latentsb.oracles.chain import euler_maruyama, run, uniform
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.process.coupling import FromReference, Independent, MinibatchOT, Pair, Paired
from latentsb.process.path import PinnedPath
from latentsb.process.prediction import PREDICTIONS, DriftItself, EndPoint, Scaled
from latentsb.process.references import OU, VP, Brownian
from latentsb.randomness import Draws
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Round
from latentsb.twosided import Simulated

DOUBLE = torch.float64
LINE = Ends(Spec((1,), DOUBLE), two_sided=True)
ALL = [DriftItself(), EndPoint(), Scaled()]
STEPS = 20


def rows(x0: Normal, x1: Normal, n: int, seen: int = 0) -> Batch:
    """n independent draws of both ends."""
    draws = Draws.step(11, "data", seen, range(n))
    return Batch(torch.arange(n), x0.sample(n, draws, "x0"), x1.sample(n, draws, "x1"), seen=seen)


class Whole(Round):
    """A round whose tables are one block."""

    def __init__(self, x0: Normal, x1: Normal, number: int, *, bf16: bool = False):
        self.laws, self.number, self.bf16 = (x0, x1), number, bf16

    def simulate(self, name, count, make):
        place = 1000 + self.number
        return make(rows(*self.laws, count, place), Draws.step(5, name, place, range(count)))


class Optimum(Network):
    """What a network should say for exact drifts."""

    def __init__(self, x: Spec, exact: GaussianBridge, prediction, towards):
        super().__init__(x, {})
        self.exact, self.prediction, self.towards = exact, prediction, towards

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        at = t.flatten()[0].double()
        drift = self.exact.drift(x, at, self.towards)
        return self.prediction.target(drift, x, at.expand(len(x)), self.exact.reference, self.towards)


def build(gauss, *, knots=None, ends=LINE, **settings) -> DSBM:
    """A bridge of networks that are affine in the state."""
    # Dense at both ends, where an error of a predicted end is divided by the time that is left.
    angles = torch.linspace(0, torch.pi, 25, dtype=DOUBLE)
    knots = (1 - angles.cos()) / 2 if knots is None else knots
    settings = {"prediction": EndPoint(), "dropout": 0.0, "images": 100, "pairs": 40_000} | settings
    network = lambda spec, cond=None: gauss.LinearNetwork(spec, knots=knots)  # noqa: E731
    return DSBM(ends, network=network, simulation=EulerMaruyama(steps=STEPS, noiseless_last=False), **settings)


def solve(bridge: DSBM, batches: list[Batch], phase, towards) -> None:
    """Minimise a phase's own loss over many rows: one Newton step, since it is quadratic in the weights."""
    network = bridge.networks[towards]
    network.weight.data.zero_()
    kept: list[tuple[Tensor, Tensor]] = []
    hook = network.register_forward_pre_hook(lambda _, given: kept.append((given[0].detach(), given[1])))
    slope, curvature = 0, 0
    for batch in batches:
        loss = phase.loss(batch, Draws.step(2, "loss", batch.seen, batch.index)).total
        slope = slope + torch.autograd.grad(loss.sum(), network.weight)[0]
        x, t = kept[-1]
        inputs = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        features = (network.hats(t)[:, :, None] * inputs[:, None]).flatten(1)
        curvature = curvature + 2 * features.T @ features / x.shape[1]
    hook.remove()
    knots, out, width = network.weight.shape
    best = -torch.linalg.solve(curvature, slope.transpose(1, 2).reshape(-1, out))
    network.weight.data.copy_(best.reshape(knots, width, out).transpose(1, 2))


def turn(bridge: DSBM, x0: Normal, x1: Normal, number: int, n: int = 50_000, parts: int = 4) -> None:
    """One turn, as the engine takes it."""
    bridge.eval()
    with torch.no_grad():
        bridge.renew(Whole(x0, x1, number))
    bridge.train()
    (phase,) = bridge.schedule().now(number * bridge.images, {})
    batches = [rows(x0, x1, n, seen=number * 10 + k) for k in range(parts)]
    solve(bridge, batches, phase, bridge.student(number)[0])


def drift_map(bridge: DSBM, towards):
    """A learned drift as an affine map at each time."""

    def at(t: Tensor) -> Affine:
        with torch.no_grad():
            dim = bridge.ends.spec.numel
            probe = torch.cat([torch.zeros(1, dim, dtype=DOUBLE), torch.eye(dim, dtype=DOUBLE)])
            found = bridge.drift(probe, torch.as_tensor(t, dtype=DOUBLE), Condition(), towards)
        return Affine((found[1:] - found[0]).T, found[0])

    return at


def a(reference, dim=1):
    return lambda t: reference.g(torch.as_tensor(t, dtype=DOUBLE)).square() * torch.eye(dim, dtype=DOUBLE)


UNIT = Normal.isotropic(1)


NEAR = Normal(torch.tensor([0.5, -1.0], dtype=DOUBLE), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=DOUBLE))
FAR = Normal(torch.tensor([-0.3, 0.8], dtype=DOUBLE), torch.tensor([[0.7, -0.2], [-0.2, 1.5]], dtype=DOUBLE))
CROSS = NEAR.cov @ torch.tensor([[0.3, 0.6], [-0.2, 0.4]], dtype=DOUBLE)
PLANE = Ends(Spec((2,), DOUBLE), two_sided=True)
REFERENCES = [Brownian(sigma=0.8), OU(theta=1.7, sigma=0.6), VP()]


@pytest.mark.parametrize("prediction", ALL, ids=PREDICTIONS.word_of)
@pytest.mark.parametrize("reference", REFERENCES, ids=repr)
def test_the_optimum_is_the_markovian_projection_over_any_reference(gauss, reference, prediction):
    """The exact drift leaves residuals that neither have a mean nor know the state: it is the regression."""
    exact = GaussianBridge(Joint(NEAR, FAR, CROSS), reference)
    n = 8000
    draws = Draws.step(1, "pairs", 0, range(n))
    pair = Pair(*exact.ends.sample(n, draws))
    for t in (0.05, 0.5, 0.95):
        bridge = build(gauss, ends=PLANE, reference=reference, prediction=prediction, times=gauss.At(t=t))
        times = bridge.times.sample(bridge, draws)
        for towards in ("x0", "x1"):
            network = Optimum(PLANE.spec, exact, prediction, towards)
            bridge.networks[towards] = network
            point = bridge.path.at(times, pair, draws)
            drift = point.b_f if towards == "x1" else point.b_b
            target = prediction.target(drift, point.x, times, reference, towards)
            residual = bridge.output(point.x, times, Condition(), towards) - target
            assert gauss.within(residual, 0.0)
            assert gauss.within(residual[:, :, None] * point.x[:, None], 0.0)
            # The loss of the bridge is that residual's square, and another drift has more of it.
            loss = bridge.matching(pair, bridge.path, bridge.times, draws, towards).total
            assert gauss.within(loss - residual.square().mean(1), 0.0, 6.0)
            turned = (2 * prediction.target(-drift, point.x, times, reference, towards) - target).square().mean()
            assert turned > loss.mean()


@pytest.mark.parametrize("reference", REFERENCES, ids=repr)
def test_the_markovian_projection_keeps_every_marginal(gauss, reference):
    bridge = build(gauss, ends=PLANE, reference=reference)
    turn(bridge, NEAR, FAR, 0, parts=1)
    turn(bridge, NEAR, FAR, 1, parts=1)
    exact = GaussianBridge(Joint.independent(NEAR, FAR), reference)
    for towards, start in (("x1", NEAR), ("x0", FAR)):
        times = uniform(200, towards)
        chain = run(euler_maruyama(drift_map(bridge, towards), a(reference, 2), times), start)
        for k in (50, 100, 150, 200):
            expected = exact.marginal(times[k])
            assert_close(chain.laws[k].mean, expected.mean, rtol=0, atol=0.04)
            assert_close(chain.laws[k].cov, expected.cov, rtol=0, atol=0.08)


def test_the_targets_of_a_shift_without_noise_are_the_shift(gauss):
    shift = torch.tensor([0.7, -2.0], dtype=DOUBLE)
    x0 = rows(NEAR, FAR, 64).x0
    batch = Batch(torch.arange(64), x0, x0 + shift)
    draws = Draws.step(0, "loss", 0, range(64))
    bridge = build(gauss, ends=PLANE, reference=Brownian(sigma=0.0), coupling=Paired(), prediction=DriftItself())
    assert bridge.aligned
    for towards, value in (("x1", shift), ("x0", -shift)):
        for sign, expected in ((1, 0.0), (-1, float(4 * shift.square().mean()))):
            bridge.networks[towards] = gauss.Constant(PLANE.spec, sign * value)
            loss = bridge.matching(bridge.pair(batch, draws, towards), bridge.path, bridge.times, draws, towards)
            assert_close(loss.total, torch.full((64,), expected, dtype=DOUBLE), rtol=1e-9, atol=1e-20)
    both = bridge.loss(batch, draws)
    assert_close(both.total, both.terms["backward"] + both.terms["forward"])


@pytest.mark.parametrize("prediction", ALL, ids=PREDICTIONS.word_of)
@pytest.mark.parametrize("reference", [Brownian(sigma=0.8), OU(theta=1.7, sigma=0.6)], ids=repr)
def test_exchanged_ends_make_the_mirrored_bridge(gauss, reference, prediction):
    """A reversible reference looks the same from both ends: every number is equal but for its name."""
    n = 50
    batch, draws = rows(NEAR, FAR, n), Draws.step(0, "flip", 0, range(n))
    bridge, mirror = (build(gauss, ends=PLANE, reference=reference, prediction=prediction) for _ in range(2))
    there = bridge.networks["x1"]
    there.weight.data.copy_(torch.randn(there.weight.shape, generator=torch.Generator().manual_seed(1)) / 4)
    mirror.networks["x0"].weight.data.copy_(there.weight.data.flip(0))
    turned = Batch(batch.index, batch.x1, batch.x0)
    if isinstance(reference, Brownian):
        for t in (0.2, 0.7):
            now = torch.full((n,), t, dtype=DOUBLE)
            point = PinnedPath(reference).at(now, Pair(batch.x0, batch.x1), draws)
            other = PinnedPath(reference).at(1 - now, Pair(turned.x0, turned.x1), draws)
            mine = bridge.error(point, now, Condition(), "x1")
            assert_close(mirror.error(other, 1 - now, Condition(), "x0"), mine, rtol=1e-9, atol=1e-12)
            assert not torch.allclose(mirror.error(other, now, Condition(), "x0"), mine, rtol=1e-2)
    if isinstance(prediction, DriftItself) or isinstance(reference, Brownian):
        with torch.no_grad():
            reached = bridge.reach(batch, draws, bridge.simulation, "x1")
            mirrored = mirror.reach(turned, draws, mirror.simulation, "x0")
        assert_close((mirrored.x0, mirrored.x1), (reached.x1, reached.x0), rtol=1e-9, atol=1e-9)


def test_velocity_is_half_the_difference_of_the_drifts_and_finite_at_the_ends(gauss):
    exact = GaussianBridge.between(NEAR, FAR, Brownian(sigma=0.8))
    bridge = build(gauss, ends=PLANE, reference=exact.reference, prediction=Scaled())
    for towards in ("x0", "x1"):
        bridge.networks[towards] = Optimum(PLANE.spec, exact, Scaled(), towards)
    x = rows(NEAR, FAR, 16).x0
    for t in (0.0, 0.3, 0.8, 1.0):
        now = torch.tensor(t, dtype=DOUBLE)
        expected = exact.velocity(now)(x)
        assert_close(bridge.velocity(x, now, Condition()), expected, rtol=0, atol=1e-9 if 0 < t < 1 else 0.02)


def test_simulated_pairs_are_never_paired_anew(gauss):
    bridge = build(gauss, coupling=MinibatchOT(), pairs=256)
    batch, draws = rows(UNIT, UNIT, 64), Draws.step(0, "batch", 0, range(64))
    assert not torch.equal(bridge.prepare(batch, draws).x1, batch.x1)
    with torch.no_grad():
        bridge.renew(Whole(UNIT, UNIT, 1))
        assert isinstance(bridge.coupling, MinibatchOT)
        bridge.renew(Whole(UNIT, UNIT, 2))
    assert bridge.prepare(batch, draws) is batch
    pair, table = bridge.pair(batch, draws, "x0"), bridge.coupling.table
    row = (pair.x0 == table["x0"].T).int().argmax(1)
    assert torch.equal(pair.x0, table["x0"][row])
    assert torch.equal(pair.x1, table["x1"][row])


def test_a_table_keeps_its_conditions_and_which_are_absent():
    seen = torch.tensor([True, False, True])
    label = torch.tensor([3, 0, 5])
    pair = Pair(torch.arange(3.0)[:, None], -torch.arange(3.0)[:, None], Condition({"label": label}, {"label": seen}))
    batch, draws = Batch(torch.arange(40), torch.zeros(40, 1)), Draws.step(0, "rows", 0, range(40))
    found = Simulated(table=Simulated.rows(pair)).pair(batch, LINE, draws)
    row = found.x0[:, 0].long()
    assert set(row.tolist()) == {0, 1, 2}
    assert torch.equal(found.x1, -found.x0)
    assert torch.equal(found.cond["label"], label[row])
    assert torch.equal(found.cond.mask("label"), seen[row])


def test_states_are_not_rounded_where_networks_are_short(gauss):
    """A two-hundredth of a drift of 0.01 is below the spacing of bf16 at 4: there no step would move the state."""
    ends = Ends(Spec((1,)), two_sided=True)
    bridge = build(gauss, ends=ends, reference=Brownian(sigma=0.0), prediction=DriftItself(), pairs=8)
    bridge.simulation = EulerMaruyama(steps=200, noiseless_last=False)
    bridge.networks["x1"] = gauss.Constant(ends.spec, torch.tensor([0.01]))

    class Fixed(Whole):
        def simulate(self, name, count, make):
            x = torch.full((count, 1), 4.0)
            return make(Batch(torch.arange(count), x, x), Draws.step(0, name, 0, range(count)))

    assert bridge.student(2) == ("x0", True)
    with torch.no_grad():
        bridge.renew(Fixed(UNIT, UNIT, 2, bf16=True))
        table = bridge.coupling.table
        with torch.autocast("cpu", torch.bfloat16):
            assert bridge.networks["x1"](torch.ones(1, 1), torch.ones(()), Condition()).dtype == torch.bfloat16
    assert table["x1"].dtype == torch.float32
    assert_close(table["x1"], torch.full((8, 1), 4.01), rtol=0, atol=1e-4)


@pytest.mark.parametrize("coupling", [Independent(), FromReference()], ids=["imf", "ipf"])
def test_turns_alternate_and_the_network_just_trained_makes_the_pairs(gauss, coupling):
    bridge = build(gauss, coupling=coupling, images=100, first=300, renew=50, pairs=64)
    schedule = bridge.schedule()
    starts = [0, 300] if coupling.both_ends else [0]
    begin = 300 * len(starts)
    seen = [*starts, *(begin + k * 50 for k in range(6))]
    assert [schedule.round(s) for s in seen] == list(range(len(seen)))
    assert schedule.round(begin + 49) == len(starts)
    trained = [schedule.now(s, {})[0] for s in seen]
    students = (
        ["x0", "x1", "x0", "x0", "x1", "x1", "x0", "x0"] if coupling.both_ends else "x0 x1 x1 x0 x0 x1 x1".split()
    )
    assert [phase.trains for phase in trained] == [(f"networks.{end}.",) for end in students]
    assert [bridge.student(k) for k in range(len(seen))] == [(end, k >= len(starts)) for k, end in enumerate(students)]
    assert {phase.name for phase in trained} == {"backward", "forward"}
    # The one end of the pairs that the student goes to is data.
    for number in range(len(starts), len(seen)):
        with torch.no_grad():
            bridge.renew(Whole(NEAR1, FAR1, number))
        data = rows(NEAR1, FAR1, bridge.pairs, 1000 + number)
        assert torch.equal(bridge.coupling.table[students[number]], getattr(data, students[number]))


NEAR1, FAR1 = Normal.isotropic(1, mean=-3.0), Normal.isotropic(1, mean=3.0)


def test_networks_begin_anew_where_they_do_not_continue(gauss):
    bridge = build(gauss, continuing=False, renew=50, pairs=64)
    for network in bridge.networks.values():
        network.weight.data.fill_(1.0)

    def renewed(number: int, *, resumed: bool = False) -> list[float]:
        work = Whole(UNIT, UNIT, number)
        work.resumed = resumed
        with torch.no_grad():
            bridge.renew(work)
        return [bridge.networks[end].weight.mean().item() for end in ("x0", "x1")]

    assert renewed(1) == [1, 1]
    assert renewed(2, resumed=True) == [1, 1]  # what was learned since the turn began stays
    assert [renewed(number) for number in (3, 2, 5, 4)] == [[1, 1], [0, 1], [0, 1], [0, 0]]


def test_a_held_out_loss_is_of_the_rows_that_it_is_given(gauss):
    bridge = build(gauss, pairs=64)
    with torch.no_grad():
        bridge.renew(Whole(UNIT, UNIT, 2))
        batch, draws = rows(FAR1, FAR1, 16), Draws.step(0, "held", 0, range(16))
        assert torch.equal(bridge.eval().pair(batch, draws, "x0").x0, batch.x0)
        assert torch.equal(bridge.pair(batch, draws, "x1").x1, batch.x1)
        assert bridge.train().pair(batch, draws, "x0").x0.mean() < 1


def test_noise_is_the_other_end_where_nothing_brings_one(gauss):
    bridge = build(gauss, ends=Ends(Spec((1,), DOUBLE)))
    assert isinstance(bridge.ends.x1, Gaussian)
    with pytest.raises(ArgumentError, match="partners"):
        build(gauss, ends=Ends(Spec((1,), DOUBLE)), coupling=Paired())
    with pytest.raises(ArgumentError, match="divisor"):
        build(gauss, images=100, renew=33)
