"""The law of a discretised chain: published tables to all digits, and the solvers of the house obey it."""

import math

import pytest
import torch

from latentsb.oracles import ExactBridge, GaussianBridge, Normal
from latentsb.oracles.chain import euler, euler_maruyama, heun, posterior, run, uniform
from latentsb.process.references import OU, Brownian
from latentsb.randomness import Draws
from latentsb.solvers.grid import Uniform
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch

STANDARD = Normal.isotropic(1)
GOLDEN = (math.sqrt(5) - 1) / 2


@pytest.fixture(scope="module")
def bridge():
    """Between two standard normals with noise of variance one."""
    return GaussianBridge.between(STANDARD, STANDARD, Brownian())


@pytest.mark.parametrize(
    ("steps", "variance"), [(10, 1.0317), (20, 1.0157), (50, 1.0062), (100, 1.0031), (200, 1.0016), (1000, 1.0003)]
)
def test_euler_maruyama_gains_variance_and_keeps_the_covariance(bridge, steps, variance):
    chain = run(euler_maruyama(bridge.b_f, bridge.a, uniform(steps)), STANDARD)
    # The table rounds 1.00155 of 200 steps up.
    assert float(chain.last.cov) == pytest.approx(variance, abs=6e-5)
    assert float(chain.ends.cross) == pytest.approx(GOLDEN, rel=1e-9)
    assert float(chain.last.mean) == 0


@pytest.mark.parametrize(("steps", "variance"), [(5, 0.698), (10, 0.798), (20, 0.870), (50, 0.932), (100, 0.959)])
def test_ancestral_steps_lose_variance_and_keep_the_covariance(bridge, steps, variance):
    forward = run(posterior(bridge.x1_given, bridge.reference, uniform(steps)), STANDARD)
    assert float(forward.last.cov) == pytest.approx(variance, abs=6e-4)
    assert float(forward.ends.cross) == pytest.approx(GOLDEN, rel=1e-9)
    backward = run(posterior(bridge.x0_given, bridge.reference, uniform(steps, "x0")), STANDARD)
    assert float(backward.last.cov) == pytest.approx(float(forward.last.cov), rel=1e-9)  # this bridge is symmetric


def test_five_steps_of_heun_and_the_average_divergence_of_euler_maruyama(bridge):
    chain = run(heun(bridge.velocity, uniform(5)), STANDARD)
    assert float(chain.last.cov) == pytest.approx(0.9999, abs=5e-5)
    laws = run(euler_maruyama(bridge.b_f, bridge.a, uniform(20)), STANDARD).laws
    average = sum(law.kl(bridge.marginal(k / 20)) for k, law in enumerate(laws)) / 21
    assert average == pytest.approx(2.16e-5, abs=5e-8)
    assert 50 * average == pytest.approx(1.08e-3, abs=5e-6)


def test_the_noiseless_last_step_loses_its_variance(bridge):
    steps, times = 20, uniform(20)
    full = run(euler_maruyama(bridge.b_f, bridge.a, times), STANDARD).last
    bare = run(euler_maruyama(bridge.b_f, bridge.a, times, noiseless_last=True), STANDARD).last
    assert float(full.cov - bare.cov) == pytest.approx(1 / steps, rel=1e-12)


@pytest.mark.parametrize(("make", "order"), [("euler_maruyama", 1), ("euler", 1), ("heun", 2), ("posterior", 0.8)])
@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_the_order_of_each_chain_in_three_dimensions(x0, x1, make, order, towards):
    """Halving the steps divides the error of the covariance by 2 to the order, towards both ends.

    Ancestral steps lose `ln N / N`, an apparent order below one.
    """
    bridge = GaussianBridge.between(x0, x1, OU(theta=0.8, sigma=0.9))
    start, end = (x0, x1) if towards == "x1" else (x1, x0)

    def error(steps):
        times = uniform(steps, towards)
        drift, predict = (bridge.b_f, bridge.x1_given) if towards == "x1" else (bridge.b_b, bridge.x0_given)
        made = {
            "euler_maruyama": lambda: euler_maruyama(drift, bridge.a, times),
            "euler": lambda: euler(bridge.velocity, times),
            "heun": lambda: heun(bridge.velocity, times),
            "posterior": lambda: posterior(predict, bridge.reference, times),
        }
        last = run(made[make](), start).last
        return float((last.cov - end.cov).norm())

    coarse, fine = error(32), error(64)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert fine < 0.2


@pytest.mark.parametrize("towards", ["x0", "x1"])
@pytest.mark.parametrize("noiseless", [True, False])
def test_the_solver_euler_maruyama_draws_from_the_predicted_law(x0, x1, towards, noiseless):
    bridge = GaussianBridge.between(x0, x1, OU(theta=0.8, sigma=0.9))
    n, steps = 4000, 5
    start = x0 if towards == "x1" else x1
    points = start.sample(n, Draws.block(0, "start", 0, n))
    exact = ExactBridge(bridge)
    draws = Draws.block(0, "solve", 0, n)
    state = exact.start(Batch(torch.arange(n), points, points), draws, towards)
    solver = EulerMaruyama(steps=steps, grid=Uniform(), noiseless_last=noiseless)
    found = Normal.fitted(solver.run(exact, state, draws, towards).x)
    drift = bridge.b_f if towards == "x1" else bridge.b_b
    law = run(euler_maruyama(drift, bridge.a, uniform(steps, towards), noiseless_last=noiseless), start).last
    truth = (x1 if towards == "x1" else x0).cov
    variances = law.cov.diagonal()
    error = ((variances[:, None] * variances + law.cov.square()) / n).sqrt()
    assert bool(((found.cov - law.cov).abs() < 4.5 * error).all())
    assert bool(((found.mean - law.mean).abs() < 4.5 * (variances / n).sqrt()).all())
    assert bool(((law.cov - truth).abs() > 4.5 * error).any())  # the bias is larger than what the test resolves


@pytest.mark.parametrize("towards", ["x0", "x1"])
def test_the_solvers_of_the_ode_do_what_the_chain_says(x0, x1, towards):
    bridge = GaussianBridge.between(x0, x1, OU(theta=0.8, sigma=0.9))
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, draws = ExactBridge(bridge), Draws.block(0, "solve", 0, 7)
    state = exact.start(Batch(torch.arange(7), points, points), draws, towards)
    for solver, made in ((Euler(steps=6, grid=Uniform()), euler), (Heun(steps=6, grid=Uniform()), heun)):
        whole = run(made(bridge.velocity, uniform(6, towards)), x0).whole
        found = solver.run(exact, state, draws, towards).x
        torch.testing.assert_close(found, whole(points), rtol=1e-9, atol=1e-9)
