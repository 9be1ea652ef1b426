"""Benches: the truth itself as a method, closed forms for what learned nothing, arms that are kept, and refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch

from latentsb.bench import eot, instance, toys
from latentsb.bench.arms import Method, bind, chosen, measured
from latentsb.bench.epsilon import BROWNIAN, INTEGRALS, correlation
from latentsb.bench.epsilon import rows as epsilon_rows
from latentsb.bench.gaussian import GaussianBench, distances, exact_rows, floors
from latentsb.bench.methods import METHODS
from latentsb.bench.plane import LAWS, PlaneLaw, solve
from latentsb.bench.tables import Column, Row, over_seeds
from latentsb.errors import RecipeError
from latentsb.oracles import ExactBridge, GaussianBridge, MixturePair, Normal
from latentsb.process.references import OU, Brownian
from latentsb.randomness import Draws
from latentsb.solvers.sde import EulerMaruyama

DIM, N = 2, 4000
BENCH = GaussianBench(samples=N)
SOLVER = EulerMaruyama(steps=BENCH.steps, noiseless_last=False)
PLAN = (math.sqrt(5) - 1) / 2
TINY = ("--dims", "2", "--seeds", "1", "--width", "8", "--images", "512", "--quick", "--runs", "arms")


@pytest.fixture
def command(tmp_path, commands):
    return commands(tmp_path)


@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_the_exact_bridge_reaches_its_floors(towards):
    truth = BENCH.bridge(DIM)
    found = distances(ExactBridge(truth), SOLVER, truth, towards, N, 3)
    expected, law, _ = exact_rows(BENCH, DIM)
    # The KL of a fit to n samples has a spread below its mean (a chi-square of 5 and of 2·2 terms), at each time.
    for key in ("kl_full", "kl_diagonal", "end_full", "end_diagonal"):
        assert found[key] < 4 * (expected.mean(key) + law.mean(key)), key
    assert abs(found["covariance"] - PLAN) < 4 * math.sqrt(2 / N)
    assert abs(found["variance"] - law.mean("variance")) < 4 * math.sqrt(2 / N)
    assert found["mean"] == pytest.approx(-BENCH.a if towards == "x0" else BENCH.a, abs=4 / math.sqrt(N))


def test_a_bridge_that_leads_the_wrong_way_is_far_off():
    truth = BENCH.bridge(DIM)
    moved = GaussianBridge.between(truth.ends.x1, truth.ends.x0, truth.reference)
    wrong = distances(ExactBridge(moved), SOLVER, truth, "x1", N, 3)
    # It leads −a to −a + c (−a − a) with the plan's correlation c, where a is right.
    assert wrong["end_full"] == pytest.approx(DIM * (2 * BENCH.a * (1 + PLAN)) ** 2 / 2, rel=0.15)


def test_laws_beside_the_samples(tmp_path):
    rows = {row.name: row for row in floors(BENCH, DIM, (1, 2, 3), tmp_path)}
    assert rows["exact drift (its law)"].mean("variance") == pytest.approx(1.0157, abs=1e-4)
    # At t the independent coupling has the variance (1 − t)² + t² + t (1 − t), and lacks 2 t (1 − t) of the plan's.
    total = 0.0
    for k in range(21):
        t = k / 20
        ratio = (1 - t + t * t) / (1 - t + t * t + 2 * t * (1 - t) * PLAN)
        total += DIM * (ratio - 1 - math.log(ratio)) / 2
    loose = rows["independent (its law)"]
    assert loose.mean("kl_full") == pytest.approx(total / 21, rel=1e-9)
    assert loose.mean("covariance") == 0
    sampled, own = rows["independent, sampled"], rows["truth, sampled (expected)"]
    assert sampled.seeds == (1, 2, 3)
    for key in ("kl_full", "kl_diagonal"):
        assert abs(sampled.mean(key) - loose.mean(key) - own.mean(key)) < 5 * max(sampled.error(key), 2e-3)
    assert abs(sampled.mean("covariance")) < 5 / math.sqrt(3 * N)


def test_exact_samples_and_the_independent_coupling_of_mixtures():
    pair, setting = MixturePair(dim=2, epsilon=1.0), eot.EotBench(inputs=20, samples=400, steps=20)
    samplers = eot.floor_samplers(pair, setting.steps)
    found = {name: eot.scores(sampler, pair, setting, 1) for name, sampler in samplers.items()}
    through = eot.scores(
        eot.sampler_of(ExactBridge(pair), EulerMaruyama(steps=20, noiseless_last=False)), pair, setting, 1
    )
    floor, drift, loose = found.values()
    # The exact bridge behind the harness is the exact drift: other draws, the same law.
    assert abs(through["cbw2_uvp"] - drift["cbw2_uvp"]) < 4 * math.hypot(through["cbw2_uvp ±"], drift["cbw2_uvp ±"])
    assert floor["cbw2_uvp"] < 1
    assert loose["cbw2_uvp"] > 30
    assert max(floor["bw2_uvp"], loose["bw2_uvp"], drift["bw2_uvp"]) < 1


def test_figures_in_the_plane_on_gaussians():
    """Between two round laws the grid's bridge is the Gaussian one, and every figure has a closed form."""
    law = PlaneLaw(torch.zeros(1, 2, dtype=torch.float64), 1.0, "")
    grid, exact = solve(law, law, 1.0), GaussianBridge.between(*[Normal.isotropic(2)] * 2, Brownian())
    assert toys.drift_error(ExactBridge(exact), grid, 0) < 1e-6
    bigger = GaussianBridge.between(Normal.isotropic(2), Normal.isotropic(2, 1.0), Brownian())
    assert toys.drift_error(ExactBridge(bigger), grid, 0) > 0.1
    x1 = Normal.isotropic(2).sample(3000, Draws.block(0, "test", 0, 3000))
    solver = EulerMaruyama(steps=20, noiseless_last=False)
    states = toys.paths_of(ExactBridge(exact), solver, x1, 0)
    assert toys.way(states[0].x, states[-1].x) == pytest.approx(2 * (2.0157 - 2 * PLAN), rel=0.08)
    assert toys.energy(ExactBridge(exact), states) == pytest.approx(2 * exact.energy(), rel=0.1)
    assert toys.wasserstein(x1[:200], x1[:200].flip(0)) < 1e-9
    assert toys.wasserstein(x1[:200], x1[:200] + 3) == pytest.approx(3 * math.sqrt(2), rel=1e-6)


def test_the_densities_are_those_of_the_data():
    for name in ("moons", "eight_gaussians"):
        x = toys.ToyBench(samples=2000).fresh(name, 0, "test").double()
        law = LAWS[name]
        whole = law.centres.T @ law.centres / len(law.centres) + law.std**2 * torch.eye(2, dtype=torch.float64)
        torch.testing.assert_close(x.T @ x / len(x), whole, rtol=0.1, atol=0.3)
        # By Gibbs, no law has a larger mean log-density on these points than their own.
        assert law.log_prob(x).mean() > PlaneLaw(law.centres + 0.15, law.std, "").log_prob(x).mean()


def test_the_table_of_epsilon():
    """Sources: (√(4 + ε²) − ε)/2, and 2 sinh(B/2) in place of ε for a variance-preserving reference."""
    rows = epsilon_rows()
    effective = [*BROWNIAN, *(2 * math.sinh(whole / 2) for whole in INTEGRALS)]
    for row, value in zip(rows, effective, strict=True):
        assert row.mean("epsilon") == pytest.approx(value, rel=1e-9)
        assert row.mean("correlation") == pytest.approx((math.sqrt(4 + value**2) - value) / 2, rel=1e-6)
    ou = OU(theta=1.0, sigma=1.0)
    assert correlation(ou) == pytest.approx((math.sqrt(4 + math.sinh(1) ** 2) - math.sinh(1)) / 2, rel=1e-3)


@pytest.mark.parametrize("word", METHODS)
def test_every_method_fits_every_bench(word):
    method = Method(word, METHODS[word])
    for base, values in (
        ("latentsb.bench.gaussian", GaussianBench().values(3, 1)),
        ("latentsb.bench.eot", eot.EotBench().values(3, 0.5)),
        ("latentsb.bench.toys", toys.ToyBench().values("gaussian-moons", 1)),
    ):
        module = __import__(base, fromlist=["BASE"])
        recipe = bind(module.BASE, method, values, 7)
        assert recipe.seed == 7
        reference = recipe.bridge.arguments.get("reference")
        if reference is not None:
            assert reference.build().epsilon == pytest.approx(values["EPSILON"])


def test_the_bound_of_a_known_autoencoder():
    """.33940 in continuous time, .339396 by chains of 20,000 steps, above .1553, the divergence that it bounds."""
    assert instance.bound() == pytest.approx(0.33940, abs=5e-6)
    assert instance.chain(20_000) == pytest.approx(0.339396, abs=2e-6)
    assert instance.decoder_kl() == pytest.approx(0.1553, abs=5e-5)
    # First order: half the step, half the error.
    errors = [instance.chain(steps) - instance.bound() for steps in (400, 800)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.02)


def test_rows():
    row = over_seeds("case", "name", {1: {"a": 1.0, "b": None}, 2: {"a": 3.0, "b": 2.0}})
    assert (row.mean("a"), row.error("a")) == (2.0, 1.0)
    assert "b" not in row.figures
    assert Column("a", "a", 10).cell(row) == "20±1e+01"
    alone = over_seeds("case", "name", {1: {"a": 1.0, "a ±": 0.25}})
    assert alone.error("a") == 0.25
    assert alone.json()["figures"]["a"] == {"mean": 1.0, "standard_error": 0.25, "values": [1.0]}
    assert Column("a", "z").cell(Row("case", "name", (), {})) == ""


def test_what_lies_there_is_not_measured_again(tmp_path):
    asked = []

    def measure() -> dict[str, float | None]:
        asked.append(1)
        return {"a": 1.0}

    for protocol in ({"n": 1}, {"n": 1}, {"n": 2}):
        assert measured(tmp_path / "x.json", protocol, measure) == {"a": 1.0}
    assert len(asked) == 2


def test_a_bench_goes_on_where_it_stopped(command, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "bridge: {name: flow, network: $NETWORK, dropout: 0}\nsolver: {name: heun, steps: 2}\n"
    )
    bench = ("bench", "gaussian", "--methods", "flow", "--recipe", "mine.yaml", *TINY, "-o", "found.json")
    code, out, err = command(*bench)
    assert code == 0, err
    told = json.loads((tmp_path / "found.json").read_text())
    names = [row["name"] for row in told["rows"]]
    assert names[-4:] == ["flow → x0", "flow → x1", "mine → x0", "mine → x1"]
    assert names[0] == "truth, sampled (expected)"
    assert all(name in out for name in names)
    assert told["protocol"]["steps"] == 20
    assert told["rows"][-1]["figures"]["trained"]["values"] == [512.0]
    runs = sorted((tmp_path / "arms").glob("*-d2-seed1-*/figures.json"))
    times = [path.stat().st_mtime_ns for path in runs]
    assert len(runs) == 2
    assert command(*bench)[1] == out
    assert [path.stat().st_mtime_ns for path in runs] == times


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gaussian", "--methods", "dsbn_imf"), "no method is called 'dsbn_imf'. Did you mean 'dsbm_imf'?"),
        (("gaussian", "--dims", "5,x"), "--dims: found '5,x', expected whole numbers"),
        (("gaussian", "--sigma", "0"), "--sigma: found 0, expected a number above 0"),
        (("eot", "--epsilon", "1,-2"), "--epsilon: found -2, expected a number above 0"),
        (
            ("toys2d", "--problems", "gaussian-moon"),
            "--problems: found 'gaussian-moon'. Did you mean 'gaussian-moons'?",
        ),
        (("gaussian", "--recipe", "no.yaml"), "--recipe: no.yaml cannot be read"),
        (("epsilon", "-o", "a.pdf"), "--output: found the ending '.pdf', expected .png"),
    ],
)
def test_refusals(command, arguments, told):
    code, _, err = command("bench", *arguments)
    assert code != 0
    assert told in err
    assert len(err.splitlines()) == 1


def test_a_method_of_ones_own_needs_a_name_of_its_own(tmp_path):
    (tmp_path / "flow.yaml").write_text("bridge: vae")
    with pytest.raises(RecipeError, match="method of this bench already"):
        chosen(METHODS, None, [tmp_path / "flow.yaml"])
