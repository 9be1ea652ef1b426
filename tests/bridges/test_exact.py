"""Bridges whose network is the optimum of a correlated Gaussian must show that Gaussian's closed forms."""

import math
from dataclasses import replace

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow, GaussianFlow
from latentsb.bridges.score import Score
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends, Gaussian
from latentsb.networks.base import Network
from latentsb.process.coupling import Paired
from latentsb.process.references import VE, VP, Brownian
from latentsb.process.times import LogNormalSigma
from latentsb.randomness import Draws
from latentsb.solvers.coordinates import NoiseCoordinate
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.grid import Karras
from latentsb.solvers.ode import Heun
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE))
TIMES = (0.05, 0.5, 0.93)
NOISES = {"ve": VE(sigma_max=30.0), "vp": VP(beta_min=0.1, beta_d=19.9)}
DECODER = torch.tensor([[0.7], [-1.2]], dtype=DOUBLE)


def time(t):
    return torch.tensor(t, dtype=DOUBLE)


def beta(reference, t):
    return reference.beta_min + reference.beta_d * t


def rates(reference, t):
    """f and g² by the papers' own formulas."""
    if isinstance(reference, VP):
        return -beta(reference, t) / 2, beta(reference, t)
    return torch.zeros_like(t), 2 * t * reference.sigma_max**2


def level(reference, t):
    """α and the variance of the noise."""
    if isinstance(reference, VP):
        integral = reference.beta_min * t + reference.beta_d * t**2 / 2
        return torch.exp(-integral / 2), -torch.expm1(-integral)
    return torch.ones_like(t), t**2 * reference.sigma_max**2


def exact_dbae(gauss, network=None, **recipe):
    return DBAE(
        ENDS,
        network=network or gauss.BridgeOptimum,
        encoder=lambda x, dim: gauss.LinearEncoder(x, dim, gauss.CODE),
        decoder=lambda dim, out: gauss.LinearDecoder(dim, out, DECODER),
        z_dim=1,
        **recipe,
    )


@pytest.mark.parametrize("t", TIMES)
def test_flow_is_the_closed_form(gauss, t):
    bridge, t, cond = Flow(ENDS, network=gauss.FlowOptimum), time(t), Condition()
    at = gauss.Posterior(gauss.MEAN, gauss.COV, 1 - t, t**2)
    x = gauss.data(64, seed=1)
    torch.testing.assert_close(bridge.denoise(x, t, cond), at.x0(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(bridge.score(x, t, cond), at.score(x), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bridge.drift(x, t, cond, "x1"), bridge.velocity(x, t, cond))
    torch.testing.assert_close(bridge.drift(x, t, cond, "x0"), -bridge.velocity(x, t, cond))
    assert float(bridge.diffusion(t)) == 0
    assert BRIDGES.word_of(bridge) == "flow"


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", NOISES)
def test_score_is_the_closed_form(gauss, name, t):
    reference, t, cond = NOISES[name], time(t), Condition()
    bridge = Score(ENDS, network=gauss.ScoreOptimum, reference=reference)
    alpha, variance = level(reference, t)
    at = gauss.Posterior(gauss.MEAN, gauss.COV, alpha, variance)
    f, g2 = rates(reference, t)
    x = alpha * gauss.data(64, seed=1) + variance.sqrt() * gauss.data(64, seed=2)
    score = at.score(x)
    torch.testing.assert_close(bridge.denoise(x, t, cond), at.x0(x), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(bridge.score(x, t, cond), score, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bridge.drift(x, t, cond, "x1"), f * x)
    torch.testing.assert_close(bridge.drift(x, t, cond, "x0"), -f * x + g2 * score, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(bridge.velocity(x, t, cond), f * x - g2 / 2 * score, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("t", TIMES)
def test_dbae_is_the_closed_form(gauss, t):
    bridge, t = exact_dbae(gauss), time(t)
    z = gauss.data(64, seed=1) @ gauss.CODE.T
    cond = bridge.endpoint(Condition({"z": z}))
    x1 = z @ DECODER.T
    alpha, variance = level(VP(), t)
    alpha_1, variance_1 = level(VP(), time(1.0))
    snr, snr_1 = alpha**2 / variance, alpha_1**2 / variance_1
    a, b, c = snr_1 / snr * alpha / alpha_1, alpha * (1 - snr_1 / snr), variance * (1 - snr_1 / snr)
    mean, cov = gauss.of_code(z)
    at = gauss.Posterior(mean, cov, b, c, shift=a * x1)
    x = a * x1 + b * gauss.data(64, seed=2) + c.sqrt() * gauss.data(64, seed=3)
    score = at.score(x)
    h = (alpha / alpha_1 * x1 - x) / (variance * (snr / snr_1 - 1))
    f, g2 = rates(VP(), t)
    torch.testing.assert_close(cond["x1"], x1)
    torch.testing.assert_close(bridge.denoise(x, t, cond), at.x0(x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(bridge.score(x, t, cond), score, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bridge.drift(x, t, cond, "x1"), f * x + g2 * h, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bridge.drift(x, t, cond, "x0"), -f * x + g2 * (score - h), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bridge.velocity(x, t, cond), f * x + g2 * (h - score / 2), rtol=1e-7, atol=1e-7)


def moments(gauss, bridge, t):
    """Mean and covariance of X_t by the marginal alone, x1 of an autoencoder being fixed."""
    marginal = bridge.marginal(t)
    if isinstance(bridge, DBAE):
        mean, cov = gauss.of_code(torch.tensor([[0.4]], dtype=DOUBLE))
        return marginal.a * 0.4 * DECODER[:, 0] + marginal.b * mean[0], marginal.b**2 * cov + marginal.c * gauss.EYE
    return marginal.b * gauss.MEAN, marginal.b**2 * gauss.COV + marginal.c * gauss.EYE


@pytest.mark.parametrize("name", ["flow", "ve", "vp", "dbae"])
def test_velocity_carries_the_marginals_forward(gauss, name):
    """dm/dt = v(m) and dK/dt = A K + K Aᵀ for the affine field v = A (x − m) + v(m): time and sign at once."""
    bridge = {
        "flow": lambda: Flow(ENDS, network=gauss.FlowOptimum),
        "dbae": lambda: exact_dbae(gauss),
    }.get(name, lambda: Score(ENDS, network=gauss.ScoreOptimum, reference=NOISES[name]))()
    t, cond = time(0.6), Condition()
    if name == "dbae":
        cond = bridge.endpoint(Condition({"z": torch.full((3, 1), 0.4, dtype=DOUBLE)}))
    mean, cov = moments(gauss, bridge, t)
    v = bridge.velocity(torch.stack([mean, mean + gauss.EYE[0], mean + gauss.EYE[1]]), t, cond)
    slope = (v[1:] - v[0]).T
    step = 1e-5
    (m_up, k_up), (m_down, k_down) = (moments(gauss, bridge, t + h) for h in (step, -step))
    torch.testing.assert_close(v[0], (m_up - m_down) / (2 * step), rtol=1e-6, atol=1e-6)
    change = (k_up - k_down) / (2 * step)
    torch.testing.assert_close(slope @ cov + cov @ slope.T, change, rtol=1e-6, atol=1e-6)


class Probe(Network):
    """The optimum plus, per row, small multiples of what it was given: gradients of each row's own loss."""

    def __init__(self, best, x, cond=None, out=None):
        super().__init__(x, cond, out)
        self.best = best(x, cond)
        self.theta = None

    def forward(self, x, t, cond):
        features = [x, *(v for v in cond.values.values() if v.is_floating_point())]
        features = torch.cat([torch.ones_like(x[:, :1]), *features], 1)
        if self.theta is None or len(self.theta) != len(x):
            self.theta = torch.zeros(len(x), features.shape[1], x.shape[1], dtype=x.dtype, requires_grad=True)
        return self.best(x, t, cond) + torch.einsum("bi,bio->bo", features, self.theta)


BUILD = {
    "flow": lambda gauss, network: Flow(ENDS, network=network(gauss.FlowOptimum)),
    "score": lambda gauss, network: Score(ENDS, network=network(gauss.ScoreOptimum), reference=NOISES["ve"]),
    "dbae": lambda gauss, network: exact_dbae(gauss, network(gauss.BridgeOptimum)),
}


def plain(best):
    return best


def smallest_flow(gauss):
    def loss(t):
        at = gauss.Posterior(gauss.MEAN, gauss.COV, 1 - t, t**2)
        cross = t[:, None, None] * gauss.EYE - (1 - t)[:, None, None] * gauss.COV
        kept = gauss.EYE + gauss.COV - cross @ torch.linalg.solve(at.spread, cross.mT)
        return kept.diagonal(dim1=1, dim2=2).sum(1) / 2

    return gauss.integral(loss, 1e-4, 1.0) / (1 - 1e-4)


def smallest_score(gauss):
    mean, std, low, high = -0.5, 1.2, math.log(30 * Score.t_min), math.log(30.0)

    def density(log_sigma):
        return torch.exp(-((log_sigma - mean) ** 2) / (2 * std**2))

    def loss(log_sigma):
        sigma2 = (2 * log_sigma).exp()
        error = gauss.Posterior(gauss.MEAN, gauss.COV, torch.ones_like(sigma2), sigma2).error() / 2
        return density(log_sigma) * error * (sigma2 + 1) / sigma2

    return gauss.integral(loss, low, high) / gauss.integral(density, low, high)


def smallest_dbae(gauss):
    cov = gauss.of_code(torch.zeros(1, 1, dtype=DOUBLE))[1]

    def loss(t):
        m = VP().pinned(t)
        sigma2 = m.c / m.b**2
        error = gauss.Posterior(gauss.MEAN, cov, torch.ones_like(t), sigma2).error() / 2
        return error * (sigma2 + 1) / sigma2

    return gauss.integral(loss, DBAE.t_min, DBAE.t_max) / (DBAE.t_max - DBAE.t_min)


SMALLEST = {"flow": smallest_flow, "score": smallest_score, "dbae": smallest_dbae}


@pytest.mark.parametrize("name", BUILD)
def test_loss_of_the_optimum_is_its_closed_form(gauss, name):
    bridge = BUILD[name](gauss, plain)
    batch = gauss.batch(gauss.data(60_000, seed=5))
    with torch.no_grad():
        loss = bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total
    assert loss.shape == (60_000,)
    assert gauss.within(loss, SMALLEST[name](gauss)), (float(loss.mean()), SMALLEST[name](gauss))


@pytest.mark.parametrize("name", BUILD)
def test_gradient_vanishes_at_the_optimum_and_only_there(gauss, name):
    bridge = BUILD[name](gauss, lambda best: lambda x, cond=None, out=None: Probe(best, x, cond, out))
    batch = gauss.batch(gauss.data(20_000, seed=6))
    draws = Draws.step(0, "loss", 0, batch.index)

    def gradient():
        bridge.loss(batch, draws).total.sum().backward()
        found, bridge.network.theta.grad = bridge.network.theta.grad.clone(), None
        return found

    at_optimum = gradient()
    assert gauss.within(at_optimum, 0.0, errors=4.5)
    bridge.network.theta.data[:, 0] = 0.2
    beside = gradient()[:, 0]
    assert bool((beside.mean(0) > 20 * beside.std(0) / math.sqrt(len(beside))).all())


def test_shifted_predictions_do_not_depend_on_the_endpoint(gauss):
    """The gauge: with one network of (y, t, z), any endpoint decoder gives the same sample from the same noise."""
    results = []
    for scale in (0.8, 0.0, -2.0):
        bridge = exact_dbae(gauss)
        bridge.decoder.weight.data = scale * DECODER
        start = bridge.start(Batch(torch.arange(8), gauss.data(8)), Draws.seeds(range(8)))
        results.append(DPMpp(steps=12).run(bridge, start, Draws.seeds(range(8))).x.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0], results[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["flow", "score", "dbae"])
def test_runs_from_either_end_reach_the_other_law(gauss, name):
    """A deterministic affine solver maps moments exactly, so sampling noise plays no part: x0 → x1 → x0 is the identity
    to the solver's own second-order error, and the law of x1 is the marginal's."""
    bridge = BUILD[name](gauss, plain)
    x0 = gauss.data(4000, seed=7)
    draws, batch = Draws.seeds(range(len(x0))), Batch(torch.arange(len(x0)), x0)
    forward = bridge.start(batch, draws, "x1")
    assert float(forward.t) == 0
    torch.testing.assert_close(forward.x, x0)
    errors = []
    with torch.no_grad():
        for steps in (40, 80):
            if name == "flow":
                solver = Heun(steps=steps)
            else:
                solver = Heun(steps=steps, grid=Karras(sigma_max=25.0), coordinates=NoiseCoordinate())
            there = solver.run(bridge, forward, draws, "x1")
            back = replace(solver, start=Endpoint()).run(bridge, there.state, draws, "x0")
            errors.append(float((back.x - x0).abs().max()))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2


def test_flow_between_two_data_sets_is_a_velocity_only(gauss):
    ends = Ends(Spec((2,), DOUBLE), two_sided=True)

    class Line(Network):
        """x1 = x0 + (2, −1) for every pair."""

        def forward(self, x, t, cond):
            return torch.tensor([2.0, -1.0], dtype=x.dtype).expand_as(x)

    bridge = Flow(ends, network=Line, coupling=Paired())
    assert bridge.aligned
    assert not isinstance(bridge, GaussianFlow)
    x0 = gauss.data(16)
    shift = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    draws, batch = Draws.seeds(range(16)), Batch(torch.arange(16), x0, x0 + shift)
    assert float(bridge.loss(batch, Draws.step(0, "loss", 0, range(16))).total.max()) < 1e-25
    to_x0 = Heun(steps=2).run(bridge, bridge.start(batch, draws), draws)
    torch.testing.assert_close(to_x0.x, x0)
    to_x1 = Heun(steps=2).run(bridge, bridge.start(batch, draws, "x1"), draws, "x1")
    torch.testing.assert_close(to_x1.x, x0 + shift)
    with pytest.raises(CapabilityError, match="needs a DenoisingBridge") as raised:
        DPMpp().run(bridge, bridge.start(batch, draws), draws)
    assert "\n" not in str(raised.value)


def test_flow_starts_from_a_law_of_x1(gauss):
    bridge = Flow(Ends(Spec((2,)), x1=Gaussian(Spec((2,)), mean=(3.0, -2.0))), network=gauss.FlowOptimum)
    state = bridge.start(Batch(torch.arange(4000)), Draws.seeds(range(4000)))
    assert gauss.within(state.x, torch.tensor([3.0, -2.0], dtype=DOUBLE))


def test_wrong_arguments_are_told_by_name(gauss):
    with pytest.raises(ArgumentError, match="coupling"):
        Flow(ENDS, network=gauss.FlowOptimum, coupling=Paired())
    with pytest.raises(ArgumentError, match="times"):
        Flow(Ends(Spec((2,)), two_sided=True), network=gauss.FlowOptimum, times=LogNormalSigma())
    with pytest.raises(ArgumentError, match="reference"):
        Score(ENDS, network=gauss.ScoreOptimum, reference=VP())
    with pytest.raises(ArgumentError, match="at least 100"):
        Score(ENDS, network=gauss.ScoreOptimum, reference=VE(sigma_max=9.99))
    assert Score(ENDS, network=gauss.ScoreOptimum, reference=VE(sigma_max=10.0)).reference.total == 100.0
    with pytest.raises(ArgumentError, match="reference"):
        exact_dbae(gauss, reference=Brownian(sigma=0.0))
    with pytest.raises(ArgumentError, match="encodes_images"):
        exact_dbae(gauss, encodes_images=True)
