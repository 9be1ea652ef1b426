"""Diffusion autoencoder with exact denoisers: each endpoint against the closed form of where its decoding ends."""

import math
from itertools import pairwise

import pytest
import torch

from latentsb.bridge import require
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.diffae import DiffAE
from latentsb.endpoints import Decoded, EndpointBridge, Inferred, Random, Zero
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.preconditioning import Noise, Shifted
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.solvers.base import counting
from latentsb.solvers.direct import Denoise
from latentsb.solvers.grid import LogUniform, Uniform
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.start import Centre
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE))
REFERENCE = VP(beta_d=19.9)
ONE = torch.ones((), dtype=DOUBLE)
SIGMA = float(REFERENCE.noised(ONE).sigma_eff)
"""Noise per signal at t = 1, 152."""
LEAST = float(REFERENCE.noised(torch.tensor(DiffAE.t_min, dtype=DOUBLE)).sigma_eff)
WHOLE = LogUniform(sigma_max=1e4, sigma_min=1e-4)
"""All levels of the process: cut to LEAST and SIGMA."""


def diffae(gauss, **recipe):
    recipe = {"network": gauss.BridgeOptimum} | recipe
    encoder = lambda x, dim: gauss.LinearEncoder(x, dim, gauss.CODE)  # noqa: E731
    return DiffAE(ENDS, encoder=encoder, z_dim=1, **recipe)


def decode(bridge, batch, solver, seed=5):
    draws = Draws.step(seed, "decode", 0, batch.index)
    return solver.run(bridge, bridge.start(batch, draws), draws).x.detach()


def carried(gauss, y, z, start, end):
    """Where the ODE takes y from one noise level to another: `m + √((K + end²)/(K + start²)) (y − m)`."""
    mean, cov = gauss.of_code(z)
    values, vectors = torch.linalg.eigh(cov)
    values = values.clamp(min=0)  # the code knows one direction exactly
    growth = vectors @ torch.diag(((values + end**2) / (values + start**2)).sqrt()) @ vectors.T
    return mean + (y - mean) @ growth


def test_the_default_diffusion_is_the_limit_of_a_thousand_steps():
    """ᾱ_1000 = 4.04e-5 of linear β, and exp(−10.05) = 4.32e-5: they differ by the Σ β²/2 that no limit keeps."""
    steps = torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE)
    kept = (1 - steps).prod()
    assert float(kept) == pytest.approx(4.0358e-5, rel=1e-4)
    alpha2 = REFERENCE.alpha(ONE).square()
    assert float(alpha2) == pytest.approx(math.exp(-10.05), rel=1e-12)
    assert float((alpha2 / kept).log()) == pytest.approx(float(steps.square().sum() / 2), rel=0.02)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_loss_of_the_optimum_is_what_state_and_code_leave_unknown(gauss, t):
    bridge = diffae(gauss, times=gauss.At(t=t))
    batch = gauss.batch(gauss.data(40_000))
    loss = bridge.loss(batch, Draws.step(1, "loss", 0, batch.index)).total.detach()
    m = REFERENCE.noised(torch.tensor([t], dtype=DOUBLE))
    mean, cov = gauss.of_code(torch.zeros(1, 1, dtype=DOUBLE))
    left = gauss.Posterior(mean, cov, m.b, m.c).error() / 2
    assert gauss.within(loss, float(left * Shifted().coefficients(m, torch.tensor([t])).weight))


class Silent(Network):
    def forward(self, x, t, cond):
        return torch.zeros_like(x)


def test_the_published_loss_is_the_squared_error_of_the_noise(gauss):
    bridge = diffae(gauss, network=Silent, preconditioning=Noise())
    batch = gauss.batch(gauss.data(64))
    draws = Draws.step(1, "loss", 0, batch.index)
    noise = draws.normal("noise", batch.x0)
    torch.testing.assert_close(bridge.loss(batch, draws).total, noise.square().mean(1), rtol=1e-9, atol=0)


def test_inferred_endpoint_is_the_ode_solved_backwards(gauss):
    """Against the closed form, whose distance falls with the order of the solver; and with t running the other way."""
    x0 = gauss.data(50)
    z = x0 @ gauss.CODE.T
    exact = carried(gauss, x0, z, LEAST, SIGMA) * REFERENCE.alpha(ONE)
    for solver, order in ((Euler, 1), (Heun, 2)):
        ways = (Inferred(solver=solver(steps=steps, grid=WHOLE)) for steps in (100, 200))
        coarse, fine = (way.x1(diffae(gauss), Condition({"z": z}), x0, None) - exact for way in ways)
        assert float(coarse.abs().max() / fine.abs().max()) == pytest.approx(2**order, rel=0.15)
        # The leading error away, what is left is of the next order.
        assert float((fine - (coarse - fine) / (2**order - 1)).abs().max()) < {1: 0.02, 2: 5e-5}[order]


@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Heun, 2)])
@pytest.mark.parametrize("grid", [WHOLE, LogUniform(sigma_min=1e-3)])
def test_decoding_the_inferred_endpoint_returns_the_data(gauss, solver, order, grid):
    """Also where the grid ends at 80, since the start there undoes what was done to reach t = 1.

    At the least level x0 is taken for the state, and its denoised self for x0: LEAST² parts of it, whatever the steps.
    """
    x0, errors = gauss.data(50), {}
    for steps in (100, 200):
        way = solver(steps=steps, grid=grid)
        bridge = diffae(gauss, endpoint=Inferred(solver=way))
        least = torch.tensor(bridge.t_min, dtype=DOUBLE)
        seen = bridge.denoise(REFERENCE.alpha(least) * x0, least, Condition({"z": x0 @ gauss.CODE.T}))
        errors[steps] = float((decode(bridge, gauss.batch(x0), way) - seen).abs().max())
    assert float((seen - x0).abs().max()) < 1e-3
    # What Heun errs by on the way up it loses on the way down, up to the next order.
    assert errors[100] / errors[200] == pytest.approx(2 if order == 1 else 8, rel=0.15)
    assert errors[200] < {1: 0.2, 2: 1e-4}[order]


def test_published_inversion_is_reversed_ddim(gauss):
    """`y' = D + σ'/σ (y − D)` over even steps of t, first from the data itself at the smallest time."""
    x0 = gauss.data(20)
    bridge, cond = diffae(gauss), Condition({"z": x0 @ gauss.CODE.T})
    x1 = Inferred(solver=Euler(steps=10, grid=Uniform())).x1(bridge, cond, x0, None)
    times, y = torch.linspace(bridge.t_min, 1, 11, dtype=DOUBLE), x0
    for s, t in pairwise(times):
        here, there = REFERENCE.noised(s), REFERENCE.noised(t)
        best = bridge.denoise(here.b * y, s, cond)
        y = best + there.sigma_eff / here.sigma_eff * (y - best)
    torch.testing.assert_close(x1, REFERENCE.alpha(ONE) * y, rtol=1e-9, atol=1e-12)


def test_random_endpoint_draws_from_the_law_given_the_code(gauss):
    """Sample by sample the affine map of its noise; its mean and covariance are p(x0 | z)'s, short of 1/SIGMA²."""
    x0 = gauss.data(8_000)
    z, batch = x0 @ gauss.CODE.T, gauss.batch(x0)
    bridge = diffae(gauss, endpoint=Random())
    draws = Draws.step(5, "decode", 0, batch.index)
    x1 = bridge.endpoint(Condition({"z": z}), None, draws)["x1"]
    assert gauss.within(x1, 0.0)
    spread = math.sqrt(-math.expm1(-10.05))
    torch.testing.assert_close(x1, spread * draws.normal("x1", x1), rtol=1e-12, atol=0)
    assert gauss.within(x1.square(), 1 - math.exp(-10.05))
    made = decode(bridge, batch, Heun(steps=60, grid=WHOLE))
    expected = carried(gauss, x1 / REFERENCE.alpha(ONE), z, SIGMA, 0.0)
    # Heun's own error is 1e-2 of a posterior deviation at these steps, and quarters when they are doubled.
    fine = decode(bridge, batch, Heun(steps=120, grid=WHOLE))
    coarse_error, fine_error = (float((x - expected).abs().max()) for x in (made, fine))
    assert coarse_error / fine_error == pytest.approx(4, rel=0.2)
    mean, cov = gauss.of_code(z)
    off = expected - mean
    assert gauss.within(off[:, :, None] * off[:, None, :], cov)


def test_a_draw_has_twice_the_squared_error_of_the_mean(gauss):
    x0 = gauss.data(8_000)
    batch = gauss.batch(x0)
    _, cov = gauss.of_code(x0 @ gauss.CODE.T)
    least = float(cov.trace()) / 2
    bridge = diffae(gauss, endpoint=Random())
    drawn = (decode(bridge, batch, Heun(steps=120, grid=WHOLE)) - x0).square().mean(1)
    assert gauss.within(drawn, 2 * least)
    assert gauss.within((decode(bridge, batch, Denoise()) - x0).square().mean(1), least)


@pytest.mark.parametrize("endpoint", [Random(), Zero(), Decoded(), Inferred()])
def test_one_call_gives_the_mean_up_to_the_terminal_signal(gauss, endpoint):
    """`D(x1, 1, z) − m = K (K + SIGMA²)^{-1} (y1 − m)`, at most `‖K‖/SIGMA² |y1 − m|`."""
    x0 = gauss.data(500)
    bridge, batch = diffae(gauss, endpoint=endpoint), gauss.batch(x0)
    mean, cov = gauss.of_code(x0 @ gauss.CODE.T)
    start = bridge.start(batch, Draws.step(5, "decode", 0, batch.index))
    distance = (start.x / REFERENCE.alpha(ONE) - mean).norm(dim=1)
    found = (decode(bridge, batch, Denoise()) - mean).norm(dim=1)
    assert (found <= torch.linalg.matrix_norm(cov, 2) / SIGMA**2 * distance * (1 + 1e-6) + 1e-12).all()


def test_without_noise_the_ode_ends_at_the_mean(gauss):
    """`zero` misses it by `√K/SIGMA` of the mean itself, `decoded` by that share of the one-call estimate's error."""
    x0 = gauss.data(200)
    z, batch = x0 @ gauss.CODE.T, gauss.batch(x0)
    mean, cov = gauss.of_code(z)
    solver = Heun(steps=200, grid=WHOLE)
    zero = decode(diffae(gauss, endpoint=Zero()), batch, solver)
    torch.testing.assert_close(zero, carried(gauss, torch.zeros_like(x0), z, SIGMA, 0.0), rtol=0, atol=1e-5)
    share = float(torch.linalg.matrix_norm(cov, 2).sqrt()) / SIGMA
    assert ((zero - mean).norm(dim=1) <= share * mean.norm(dim=1) + 1e-5).all()
    decoded = decode(diffae(gauss, endpoint=Decoded()), batch, solver)
    assert (decoded - mean).norm(dim=1).max() < 1e-6
    assert (zero - mean).norm(dim=1).max() > 1e-4


class Mixture(Network):
    """F of `shifted` for x0 ~ 0.3 N(−0.6, 0.1²) + 0.7 N(0.5, 0.2²), whatever z."""

    def forward(self, x, t, cond):
        sigma2 = (8 * t).exp()[..., None]
        y = x * (1 + sigma2).sqrt()
        share, mean, var = SHARES, MEANS, SPREADS**2
        log = share.log() - (var + sigma2).log() / 2 - (y - mean) ** 2 / (2 * (var + sigma2))
        best = (log.softmax(-1) * (mean + var / (var + sigma2) * (y - mean))).sum(-1, keepdim=True)
        return (best - y / (1 + sigma2)) * ((1 + sigma2) / sigma2).sqrt()


SHARES, MEANS, SPREADS = torch.tensor([[0.3, 0.7], [-0.6, 0.5], [0.1, 0.2]], dtype=DOUBLE)


def quantile(level):
    """Of the mixture, by bisection."""
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        below = float((SHARES * torch.special.ndtr((middle - MEANS) / SPREADS)).sum())
        low, high = (middle, high) if below < level else (low, middle)
    return low


def test_in_one_dimension_zero_is_the_median(gauss):
    """The ODE keeps the order of states, so y = 0 goes to the quantile of P(y1 < 0); the mean is 0.17."""
    assert quantile(0.5) == pytest.approx(0.38681, abs=1e-5)
    ends = Ends(Spec((1,), DOUBLE))
    bridge = DiffAE(ends, network=Mixture, encoder=gauss.LinearEncoder, z_dim=1, endpoint=Zero())
    grid = LogUniform(sigma_max=1e4, sigma_min=1e-3)
    made = float(decode(bridge, Batch(torch.arange(1), torch.zeros(1, 1, dtype=DOUBLE)), Heun(steps=300, grid=grid)))
    below = float((SHARES * torch.special.ndtr(-MEANS / (SPREADS**2 + SIGMA**2).sqrt())).sum())
    assert made == pytest.approx(quantile(below), abs=2e-4)
    assert made == pytest.approx(quantile(0.5), abs=2e-3)


def test_zero_is_the_endpoint_of_a_bridge_autoencoder(gauss):
    """The same denoiser over the same levels, started without noise: equal, whatever the bridge's Dec makes of z."""
    x0 = gauss.data(50)
    batch, solver = gauss.batch(x0), Heun(steps=40, grid=LogUniform(sigma_max=50.0, sigma_min=0.01), start=Centre())
    parts = {"encoder": lambda x, dim: gauss.LinearEncoder(x, dim, gauss.CODE), "z_dim": 1}
    made = decode(diffae(gauss, endpoint=Zero()), batch, solver)
    for weight in (torch.zeros(2, 1), torch.tensor([[3.0], [-1.0]])):
        decoder = lambda dim, out, w=weight: gauss.LinearDecoder(dim, out, w.double())  # noqa: E731
        dbae = DBAE(ENDS, network=gauss.BridgeOptimum, decoder=decoder, **parts)
        torch.testing.assert_close(decode(dbae, batch, solver), made, rtol=0, atol=1e-8)
    # From their own last levels, infinity and SIGMA, they differ by the signal that is left at the latter.
    mean, cov = gauss.of_code(x0 @ gauss.CODE.T)
    whole = decode(diffae(gauss, endpoint=Zero()), batch, Heun(steps=200, grid=WHOLE))
    assert ((whole - mean).norm(dim=1) <= cov.trace().sqrt() / SIGMA * mean.norm(dim=1) + 1e-5).all()


def test_calls_of_each_endpoint(gauss):
    x0 = gauss.data(8)
    for endpoint, calls in ((Random(), 0), (Zero(), 0), (Decoded(), 1), (Inferred(), 100)):
        bridge = diffae(gauss, endpoint=endpoint)
        with counting(bridge) as count:
            bridge.start(gauss.batch(x0), Draws.seeds(range(8)))
        assert count.calls == calls
        with counting(bridge) as count:
            there = bridge.start(gauss.batch(x0), Draws.seeds(range(8)), "x1")
        assert count.calls == 0
        assert float(there.t) == 0
        assert torch.equal(there.x, x0)


def test_without_data_the_endpoint_is_drawn(gauss):
    bridge, draws = diffae(gauss, endpoint=Inferred()), Draws.seeds(range(4))
    cond = Condition({"z": torch.randn(4, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))})
    made = bridge.start(Batch(torch.arange(4), cond=cond), draws)
    assert bridge.inverts
    assert torch.equal(made.x, Random().x1(bridge, cond, None, draws))
    with pytest.raises(CapabilityError, match="needs the data"):
        Inferred().x1(bridge, cond, None, draws)
    with pytest.raises(CapabilityError, match="needs draws"):
        Random().x1(bridge, cond, None, None)


def test_another_endpoint_of_the_same_weights(gauss):
    bridge = diffae(gauss)
    other = bridge.choosing(Inferred())
    assert other.inverts
    assert not bridge.inverts
    assert all(a is b for a, b in zip(other.parameters(), bridge.parameters(), strict=True))
    assert require(other, EndpointBridge, "test") is other


def test_refusals(gauss):
    with pytest.raises(ArgumentError, match="must end in noise"):
        diffae(gauss, reference=VP())
