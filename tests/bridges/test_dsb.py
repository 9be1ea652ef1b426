"""DSB: labels, times and calls of its chains, its turns, and what a sampler does with it."""

from __future__ import annotations

import math

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.errors import ArgumentError
from latentsb.laws import Ends
from latentsb.oracles import chain
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Affine, Normal
from latentsb.process.prediction import DriftItself, EndPoint, Scaled
from latentsb.process.references import OU, VE, Brownian
from latentsb.process.reversal import Original, Simplified, Terminal
from latentsb.randomness import Draws
from latentsb.solvers.base import counting
from latentsb.solvers.grid import LogUniform, Symmetric
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec

DSB = BRIDGES["dsb"]
F64 = torch.float64
KINDS = [Original(), Simplified(), Terminal()]
ONE = Normal.isotropic(1)


@pytest.mark.parametrize("objective", KINDS)
def test_a_deterministic_pair_says_which_way_and_when(gauss, objective):
    """Chains that carry 0 to 1 in a straight line: the state is its own time, and the way back is exactly −1."""
    bridge = gauss.dsb(objective=objective, reference=Brownian(sigma=1e-7), steps=8)
    bridge.turn.fill_(1)
    still = Normal(torch.zeros(1, dtype=F64), torch.zeros(1, 1, dtype=F64))
    point = Normal(torch.ones(1, dtype=F64), still.cov)
    for end, other, drift in (("x1", "x0", 1.0), ("x0", "x1", -1.0)):
        bridge.networks[end].maps = lambda t, drift=drift: Affine(still.cov, torch.tensor([drift], dtype=F64))
        draws = gauss.Quick(512, 3)
        table = bridge.simulate_chains(gauss.both(still, point, 512, draws), draws, end)
        link, _ = bridge.links(table, draws, other)
        torch.testing.assert_close(link.after[:, 0], link.t, atol=1e-6, rtol=0)
        torch.testing.assert_close(link.before[:, 0], link.s, atol=1e-6, rtol=0)
        label = bridge.objective.label(link, bridge.reference, other)
        torch.testing.assert_close(label, torch.full_like(label, -drift), atol=1e-4, rtol=0)


def test_training_and_sampling_ask_at_the_same_times(gauss):
    """True forward time of the state that is asked, and no other: the backward network never at 0, nor forward at 1."""
    bridge = gauss.dsb(steps=10)
    batch, draws = gauss.both(ONE, ONE, 4096, gauss.Quick(4096, 0)), gauss.Quick(4096, 1)
    for end in ("x0", "x1"):
        network = bridge.networks[end]
        bridge._loss_towards(end)(batch, draws)
        trained = network.times[-1].unique()
        bridge.turn.fill_(2)
        network.times.clear()
        EulerMaruyama(steps=10).run(bridge, bridge.start(batch, draws, end), Draws.block(0, "x", 0, 4096), end)
        sampled = torch.stack(network.times).sort().values
        torch.testing.assert_close(trained, sampled, atol=0, rtol=0)
        assert float(trained[0]) == (0.1 if end == "x0" else 0.0)


def test_rows_are_drawn_from_all_chains_and_places_independently(gauss):
    bridge, paths = gauss.dsb(steps=20), 300
    table = {"x": (torch.arange(paths, dtype=F64)[:, None] * 100 + torch.arange(21))[..., None]}
    link, _ = bridge.links(table, Draws.block(0, "rows", 0, 6000), "x0")
    path, place = (link.before[:, 0] // 100).long(), (link.before[:, 0] % 100).long()
    assert torch.equal(link.first[:, 0], path.double() * 100)
    assert torch.equal(link.after, link.before + 1)
    # Each count is binomial; 5 standard deviations. Neighbours in a batch are of one chain as often as any two rows.
    for found, kinds in ((place, 20), (path, paths)):
        expected = 6000 / kinds
        assert (found.bincount(minlength=kinds) - expected).abs().max() < 5 * math.sqrt(expected)
    same = (path[1:] == path[:-1]).sum()
    assert abs(float(same) - 6000 / paths) < 5 * math.sqrt(6000 / paths)


@pytest.mark.parametrize(("objective", "calls"), [(Original(), 40), (Simplified(), 20), (Terminal(), 20)])
def test_simplified_chains_cost_half(gauss, objective, calls):
    bridge = gauss.dsb(objective=objective, steps=20)
    draws = gauss.Quick(4, 0)
    for turn, end, expected in ((0, "x1", 0), (1, "x0", calls), (2, "x1", calls)):
        bridge.turn.fill_(turn)
        with counting(bridge) as count:
            table = bridge.simulate_chains(gauss.both(ONE, ONE, 4, draws), draws, end)
        assert count.calls == expected
        assert ("correction" in table) == isinstance(objective, Original)


def test_states_do_not_lose_small_steps_in_short_types(gauss):
    """Steps of 1e-3 from 1, where bf16 has a spacing of 8e-3: the spread of 20 is right to 5 standard errors."""
    bridge = DSB(Ends(Spec((4,), torch.bfloat16), two_sided=True), network=gauss.Maps, reference=Brownian(sigma=1e-3))
    x = torch.ones(1000, 4, dtype=torch.bfloat16)
    table = bridge.simulate_chains(Batch(torch.arange(1000), x, x), Draws.block(0, "x", 0, 1000), "x1")
    assert table["x"].dtype == torch.float32
    spread = float((table["x"][:, -1] - 1).std())
    assert spread == pytest.approx(1e-3, rel=5 / math.sqrt(8000))


def test_conditions_travel_with_their_chain(gauss):
    ends = Ends(Spec((1,), F64), cond={"label": Spec((), torch.int64, classes=9)}, two_sided=True)
    bridge = DSB(ends, network=gauss.Maps, reference=Brownian(sigma=1e-7))
    labels = torch.arange(64) % 9
    cond = Condition({"label": labels}, {"label": labels != 4})
    x = labels.double()[:, None]
    table = bridge.simulate_chains(Batch(torch.arange(64), x, x, cond), gauss.Quick(64, 0), "x1")
    link, cond = bridge.links(table, gauss.Quick(256, 1), "x0")
    assert torch.equal(cond["label"], link.after[:, 0].round().long())
    assert torch.equal(cond.mask("label"), cond["label"] != 4)


@pytest.mark.parametrize("prediction", [DriftItself(), Scaled(), EndPoint()])
@pytest.mark.parametrize("objective", KINDS)
def test_errors_are_in_units_of_the_step_s_noise_or_of_the_output(gauss, objective, prediction):
    """No error at the label; beside it `√h δ/g` of the step that was simulated, or what the output changes by."""
    reference, grid = OU(theta=0.4, sigma=0.9), Symmetric(ratio=0.2)
    bridge = gauss.dsb(objective=objective, prediction=prediction, reference=reference, steps=6, grid=grid)
    for end in ("x0", "x1"):
        draws = gauss.Quick(50, 0)
        table = bridge.simulate_chains(gauss.both(ONE, ONE, 50, draws), draws, "x1" if end == "x0" else "x0")
        link, _ = bridge.links(table, draws, end)
        label = objective.label(link, reference, end)
        right, beside = (prediction.target(b, link.after, link.t, reference, end) for b in (label, label + 0.3))
        for output, expected in ((right, torch.zeros_like(label)), (beside, beside - right)):
            if not isinstance(objective, Terminal):
                expected = 0.3 * (link.s - link.t).abs().sqrt()[:, None] / 0.9 * float(output is beside)
            error = objective.error(output, link, prediction, reference, end)
            torch.testing.assert_close(error, expected.expand_as(error), atol=1e-9, rtol=1e-9)


def test_an_untrained_step_costs_one_per_dimension_at_any_number_of_steps(gauss):
    """Brownian steps less nothing: the loss is the square of standard normal noise, `1 ± √(2/n)`."""
    for steps in (5, 80):
        bridge = gauss.dsb(dim=3, steps=steps, reference=Brownian(sigma=0.3), grid=Symmetric(ratio=0.05))
        batch = gauss.both(Normal.isotropic(3), Normal.isotropic(3), 20_000, gauss.Quick(20_000, 0))
        total = bridge._loss_towards("x0")(batch, gauss.Quick(20_000, 1)).total
        assert float(total.mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 60_000))


# Turns and grids


def test_a_noiseless_last_step_loses_its_variance_and_nothing_else(gauss):
    laws_of_ends = (Normal.isotropic(1, 0.4, 0.7), Normal.isotropic(1, -0.3, 1.6))
    truth = GaussianBridge.between(*laws_of_ends, Brownian(sigma=1.0))
    times, n = chain.uniform(20, "x0"), 4096
    laws = [
        chain.run(chain.euler_maruyama(truth.b_b, truth.a, times, noiseless_last=last), laws_of_ends[1]).last
        for last in (False, True)
    ]
    assert float(laws[0].cov - laws[1].cov) == pytest.approx(1 / 20, rel=1e-12)
    assert float(laws[0].mean) == float(laws[1].mean)
    bridge = gauss.dsb()
    bridge.networks["x0"].maps = truth.b_b
    bridge.turn.fill_(1)
    draws = Draws.block(0, "sampling", 0, n)
    state = bridge.start(gauss.both(*laws_of_ends, n, draws), draws, "x0")
    ends = [EulerMaruyama(steps=20, noiseless_last=last).run(bridge, state, draws).x for last in (False, True)]
    for x, law in zip(ends, laws, strict=True):
        assert float(x.var()) == pytest.approx(float(law.cov), rel=5 * math.sqrt(2 / n))
    assert float((ends[0] - ends[1]).var()) == pytest.approx(1 / 20, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_symmetric_steps(gauss, steps):
    times = Symmetric(ratio=0.1).times(gauss.dsb(), steps)
    sizes = -times.diff()
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0)
    torch.testing.assert_close(sizes, sizes.flip(0))
    torch.testing.assert_close(Symmetric(ratio=0.1).times(gauss.dsb(), steps, "x1"), 1 - times)
    if steps > 2:
        assert float(sizes[0] / sizes.max()) == pytest.approx(0.1)
        growth = sizes[: (steps + 1) // 2].diff()
        torch.testing.assert_close(growth, growth[:1].expand_as(growth))
    # 2 Σ γ is the reference's epsilon, whatever the grid.
    assert float(0.49 * sizes.sum()) == pytest.approx(Brownian(sigma=0.7).epsilon)


def test_the_first_chains_are_the_reference_s_until_the_first_turn_ends(gauss):
    bridge, reference = gauss.dsb(reference=OU(theta=0.7, sigma=0.5)), OU(theta=0.7, sigma=0.5)
    x, t = torch.tensor([[2.0]], dtype=F64), torch.tensor(0.3, dtype=F64)
    assert float(bridge.drift(x, t, Condition(), "x1")) == pytest.approx(-1.4)
    assert float(bridge.drift(x, t, Condition(), "x0")) == 0.0
    bridge.networks["x1"].maps = lambda t: Affine.identity(1)
    bridge.renew(gauss.OneBlock(1, ONE, ONE))
    assert int(bridge.turn) == 1
    assert float(bridge.drift(x, t, Condition(), "x1")) == 2.0
    assert reference.epsilon == pytest.approx(0.25 * math.sinh(0.7) / 0.7)


def test_refreshes_are_rounds_within_a_turn(gauss):
    bridge = gauss.dsb(half_step=60, refresh=20, paths=50)
    schedule = bridge.schedule()
    assert [schedule.now(seen, {})[0].trains for seen in (0, 59, 60)] == [("networks.x0.",)] * 2 + [("networks.x1.",)]
    tables = []
    for number in range(4):
        assert schedule.round(20 * number) == number
        work = gauss.OneBlock(number, ONE, ONE)
        bridge.renew(work)
        tables.append(bridge.chains["x"])
        assert work.names == ["chains towards x1" if number < 3 else "chains towards x0"]
        assert int(bridge.turn) == number // 3
    assert not torch.equal(tables[0], tables[1])


def test_data_that_are_not_trained_on_have_chains_of_their_own(gauss):
    bridge = gauss.dsb(steps=4)
    bridge.chains = {"x": torch.full((9, 5, 1), math.nan, dtype=F64)}
    batch = gauss.both(ONE, ONE, 8, gauss.Quick(8, 0))
    assert bridge.train().loss(batch, gauss.Quick(8, 1)).total.isnan().all()
    assert bridge.eval().loss(batch, gauss.Quick(8, 1)).total.isfinite().all()


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"reference": Brownian(sigma=0.0)}, "reference"),
        ({"reference": VE(sigma_max=2.0)}, "reference"),
        ({"half_step": 100, "refresh": 30}, "refresh"),
        ({"grid": LogUniform()}, "grid"),
        ({"begin": lambda ends: None}, "begin"),
    ],
)
def test_what_cannot_work_is_refused(gauss, keys, name):
    with pytest.raises(ArgumentError) as caught:
        gauss.dsb(**keys)
    assert caught.value.name == name
