"""LSBDM: its drift, its law and its starts, beside closed forms of Gaussians, mixtures and points."""

import math

import pytest
import torch
from torch import Tensor

from latentsb.bridges.lsbdm import LSBDM
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.networks.mlp import MLP
from latentsb.oracles import GaussianBridge, Normal, chain
from latentsb.origins import EmpiricalOrigin, GaussianOrigin
from latentsb.process.preconditioning import Noise
from latentsb.process.references import Brownian
from latentsb.process.times import Uniform as UniformTimes
from latentsb.randomness import Draws
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.grid import Karras, KarrasTime, Uniform
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
MEAN = torch.tensor([0.5, -1.0], dtype=DOUBLE)
COV = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=DOUBLE)


class Denoiser(Network):
    """F behind `shifted` for unit sigma_data whose denoiser is a given function of y and σ."""

    def __init__(self, x: Spec, cond: dict, best) -> None:
        super().__init__(x, cond)
        self.best = best

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        sigma = (4 * t.double()).exp()
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        y = x * (1 + sigma**2).sqrt()
        return ((self.best(y, sigma) - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma).to(x)


def mixture(weights, means, covs):
    """`E[x0 | x0 + σ ε]` of a Gaussian mixture: responsibilities times each component's own."""

    def best(y: Tensor, sigma: Tensor) -> Tensor:
        log, own = [], []
        for weight, mean, cov in zip(weights, means, covs, strict=True):
            whole = cov + sigma.flatten()[0] ** 2 * torch.eye(len(mean), dtype=DOUBLE)
            away = torch.linalg.solve(whole, (y.double() - mean).T).T
            log.append(math.log(weight) - ((y - mean) * away).sum(1) / 2 - torch.logdet(whole) / 2)
            own.append(mean + away @ cov)
        share = torch.stack(log, 1).softmax(1)
        return (share[..., None] * torch.stack(own, 1)).sum(1)

    return best


def exact(best, dim=2, **keys) -> LSBDM:
    """A bridge whose denoiser is known."""
    return LSBDM(Ends(Spec((dim,))), network=lambda x, cond: Denoiser(x, cond, best), **keys).eval()


def of_rows(latents: Tensor):
    """Passes over latents in two parts."""
    parts = (latents[: len(latents) // 3], latents[len(latents) // 3 :])
    return lambda: [Batch(torch.arange(len(part)), part) for part in parts]


def points(law: Normal, n: int, seed: int = 0) -> Tensor:
    return law.sample(n, Draws.block(seed, "points", 0, n))


def solved(bridge: LSBDM, solver, x: Tensor, seed: int = 1) -> Tensor:
    from latentsb.bridge import State

    with torch.no_grad():
        state = State(x, torch.ones((), dtype=DOUBLE), Condition())
        return solver.run(bridge, state, Draws.block(seed, "solve", 0, len(x))).x


def test_drift_of_a_gaussian():
    """`−σ² (S + σ² t)⁻¹ (x − m)`, and the score that belongs to it."""
    bridge = exact(mixture([1.0], [MEAN], [COV]), sigma=1.5)
    x = points(Normal(MEAN, 2 * COV), 5)
    for time in (0.01, 0.4, 1.0):
        t = torch.tensor(time, dtype=DOUBLE)
        whole = COV + 1.5**2 * time * torch.eye(2, dtype=DOUBLE)
        score = -torch.linalg.solve(whole, (x - MEAN).T).T
        assert torch.allclose(bridge.score(x, t, Condition()), score, atol=1e-6)
        assert torch.allclose(bridge.drift(x, t, Condition()), 1.5**2 * score, atol=1e-5)
        assert torch.allclose(bridge.drift(x, t, Condition(), "x1"), torch.zeros_like(x))
        assert float(bridge.diffusion(t)) == pytest.approx(1.5)


def test_it_is_the_schroedinger_bridge():
    """A second derivation: the entropic plan of N(m, S) and N(m, S + σ²) over Brownian motion has `Cov(X0, X1) = S`."""
    for sigma in (0.7, 3.0):
        end = Normal(MEAN, COV + sigma**2 * torch.eye(2, dtype=DOUBLE))
        oracle = GaussianBridge.between(Normal(MEAN, COV), end, Brownian(sigma=sigma))
        assert torch.allclose(oracle.ends.cross, COV, atol=1e-9)
        bridge = exact(mixture([1.0], [MEAN], [COV]), sigma=sigma)
        x = points(end, 6)
        for time in (0.05, 0.5, 0.95):
            t = torch.tensor(time, dtype=DOUBLE)
            assert torch.allclose(bridge.drift(x, t, Condition()), oracle.b_b(time)(x), atol=1e-5)
            assert torch.allclose(oracle.b_f(time).A, torch.zeros(2, 2, dtype=DOUBLE), atol=1e-8)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(("variance", "target"), [(1.0, 0.04), (1.0, 1.0), (4.0, 0.25)])
def test_euler_leaves_the_variance_of_its_recursion(variance, target, steps):
    """`v ← (1 − h σ²/(s² + σ² t))² v + σ² h` from `s² + σ²`; the published grid down to t = 0."""
    h, v = 1 / steps, target + variance
    for k in range(steps):
        v = (1 - h * variance / (target + variance * (1 - k * h))) ** 2 * v + variance * h
    law = Normal.isotropic(1, 0.0, target)
    bridge = exact(mixture([1.0], [law.mean], [law.cov]), 1, sigma=math.sqrt(variance))
    solver = EulerMaruyama(steps=steps, grid=Uniform(), noiseless_last=False)
    start = points(Normal.isotropic(1, 0.0, target + variance), 20_000)
    found = float(solved(bridge, solver, start).var())
    assert abs(found / v - 1) < 4 * math.sqrt(2 / 20_000)


def test_the_recursion_has_its_known_values():
    def last(variance, target, steps):
        h, v = 1 / steps, target + variance
        for k in range(steps):
            v = (1 - h * variance / (target + variance * (1 - k * h))) ** 2 * v + variance * h
        return v

    assert last(1, 1, 10) == pytest.approx(1.0390, abs=1e-4)
    assert last(1, 0.04, 50) == pytest.approx(0.0516, abs=1e-4)
    assert last(4, 0.25, 200) == pytest.approx(0.2602, abs=1e-4)
    assert last(4, 0.04, 1000) == pytest.approx(0.0421, abs=1e-4)


def test_weights_and_spreads_of_a_mixture_are_kept():
    means = [torch.tensor([-2.0, 0.0], dtype=DOUBLE), torch.tensor([1.0, 1.5], dtype=DOUBLE)]
    covs, weights = [0.1 * COV, 0.05 * torch.eye(2, dtype=DOUBLE)], [0.3, 0.7]
    bridge = exact(mixture(weights, means, covs), sigma=3.0)
    n = 6000
    rows = torch.rand(n, generator=torch.Generator().manual_seed(0)) < weights[0]
    x0 = torch.where(rows[:, None], points(Normal(means[0], covs[0]), n), points(Normal(means[1], covs[1]), n, 1))
    start = x0 + 3 * Draws.block(3, "noise", 0, n).normal("x1", x0)
    found = solved(bridge, Posterior(steps=80, eta=1.0, grid=Karras(sigma_min=0.01)), start)
    near = (found - means[0]).norm(dim=1) < (found - means[1]).norm(dim=1)
    # Twice the variance: the start's own share of the first component is a draw too.
    assert abs(float(near.double().mean()) - 0.3) < 4 * math.sqrt(2 * 0.21 / n)
    for mask, mean, cov in ((near, means[0], covs[0]), (~near, means[1], covs[1])):
        law = Normal.fitted(found[mask])
        assert torch.allclose(law.mean, mean, atol=4 * math.sqrt(0.1 / 1800))
        assert torch.allclose(law.cov, cov, atol=0.1 * float(cov.max()))


def test_ends_of_the_bridge_have_the_covariance_of_the_data():
    """Backwards from data and forwards by the solver: `Cov(X0, X1) = Cov(X0)` both ways."""
    sigma, n = 1.5, 20_000
    x0 = points(Normal(MEAN, COV), n)
    x1 = x0 + sigma * Draws.block(3, "noise", 0, n).normal("x1", x0)
    bridge = exact(mixture([1.0], [MEAN], [COV]), sigma=sigma)
    back = solved(bridge, EulerMaruyama(steps=60, grid=Uniform(), noiseless_last=False), x1)
    for start in (x0, back):
        cross = (start - start.mean(0)).T @ (x1 - x1.mean(0)) / n
        # Standard error √((S11 (S11 + σ²) + S11²)/n) < .015; Euler adds less than σ²h/4.
        assert torch.allclose(cross, COV, atol=4 * 0.015 + sigma**2 / 240)


def test_points_come_back():
    """Data without a density: the softmax over them is the denoiser; near t = 0 the drift ends in one of them."""
    data = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 1.0]], dtype=DOUBLE)
    nothing = [torch.zeros(2, 2, dtype=DOUBLE)] * 3
    horizon = 0.999
    bridge = exact(mixture([1 / 3] * 3, list(data), nothing), sigma=2.0, horizon=horizon)
    n = 900
    start = data.repeat(n // 3, 1) + 2 * Draws.block(0, "x1", 0, n).normal("x1", torch.zeros(n, 2, dtype=DOUBLE))

    def away(x: Tensor) -> Tensor:
        return torch.cdist(x, data).min(1).values

    whole = solved(bridge, Posterior(steps=60, eta=1.0, grid=Karras(sigma_min=1e-4)), start)
    assert float(away(whole).max()) < 1e-3
    stopped = solved(bridge, Posterior(steps=60, eta=1.0, grid=KarrasTime(rho=7, margin=0.0, zero=False)), start)
    spread = 2 * math.sqrt(1 - horizon)
    rms = float((away(stopped).square().mean() / 2).sqrt())
    assert rms == pytest.approx(spread, rel=4 / math.sqrt(4 * n))
    euler = solved(bridge, EulerMaruyama(steps=500, grid=Uniform(last=1 - horizon)), start)
    assert float(away(euler).max()) < 1e-3
    shares = torch.bincount(torch.cdist(whole, data).argmin(1), minlength=3) / n
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=4 * math.sqrt(4 / 9 / n))


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_a_wrong_start_is_forgotten_by_the_known_factors(sigma):
    """Bias of the mean times `s²/(s² + σ²)`, bias of the variance times its square; exact in continuous time."""
    variance, factor = 1.0, 1.0 / (1.0 + sigma**2)
    oracle = GaussianBridge.between(
        Normal.isotropic(1, 0.0, variance), Normal.isotropic(1, 0.0, variance + sigma**2), Brownian(sigma=sigma)
    )
    times = torch.linspace(1, 0, 1001, dtype=DOUBLE)
    steps = chain.euler_maruyama(oracle.b_b, lambda t: sigma**2 * torch.eye(1, dtype=DOUBLE), times)
    right = chain.run(steps, Normal.isotropic(1, 0.0, variance + sigma**2)).last
    wrong = chain.run(steps, Normal.isotropic(1, 0.7, sigma**2)).last
    assert float(wrong.mean) == pytest.approx(0.7 * factor, rel=0.01)
    assert float(right.cov - wrong.cov) == pytest.approx(variance * factor**2, rel=0.01)
    bridge = exact(mixture([1.0], [torch.zeros(1, dtype=DOUBLE)], [torch.ones(1, 1, dtype=DOUBLE)]), 1, sigma=sigma)
    solver = EulerMaruyama(steps=100, noiseless_last=False, grid=Uniform())
    start = sigma * torch.randn(4000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    gap = solved(bridge, solver, start + 0.7) - solved(bridge, solver, start)
    # The same noise on both sides, and the map is affine: only the steps' own error is left.
    assert float(gap.std()) < 1e-6
    assert float(gap.mean()) == pytest.approx(0.7 * factor, rel=0.06)


def test_starts():
    latents = points(Normal(MEAN, COV), 3000).float()
    draws = Draws.block(5, "start", 0, 20_000)
    for start in (GaussianOrigin, lambda spec: EmpiricalOrigin(spec, keep=700)):
        bridge = exact(mixture([1.0], [MEAN], [COV]), sigma=2.0, start=start)
        with pytest.raises(CapabilityError, match="fitted"):
            bridge.start(Batch(torch.arange(4)), draws)
        bridge.fit(of_rows(latents))
        state = bridge.start(Batch(torch.arange(20_000)), draws)
        kept = bridge.origin.latents if isinstance(bridge.origin, EmpiricalOrigin) else latents
        law, found = Normal.fitted(kept), Normal.fitted(state.x)
        whole = law.cov + 4 * torch.eye(2, dtype=DOUBLE)
        assert float(state.t) == 1
        assert torch.allclose(found.mean, law.mean, atol=4 * math.sqrt(5 / 20_000))
        assert torch.allclose(found.cov, whole, atol=4 * 5 * math.sqrt(2 / 20_000))
        other = exact(mixture([1.0], [MEAN], [COV]), sigma=2.0, start=start)
        other.load_state_dict(bridge.state_dict())
        assert torch.equal(other.start(Batch(torch.arange(20_000)), draws).x, state.x)


def test_the_empirical_start_keeps_evenly_spaced_latents():
    origin = EmpiricalOrigin(Spec((1,)), keep=4)
    origin.fit(of_rows(torch.arange(10.0)[:, None]))
    assert origin.latents[:, 0].tolist() == [0, 2, 5, 7]
    origin.fit(of_rows(torch.arange(3.0)[:, None]))
    assert origin.latents[:, 0].tolist() == [0, 1, 2]
    drawn = origin.sample(50, Draws.block(0, "", 0, 50))
    assert set(drawn[:, 0].tolist()) == {0, 1, 2}


def test_the_loss_is_the_posterior_variance():
    """At the optimum `E |D − x0|²/out²` is the trace of the posterior covariance over `out²`; a wrong one is worse."""
    bridge = exact(mixture([1.0], [MEAN], [COV]), sigma=2.0, times=UniformTimes())

    class At(UniformTimes):
        def quantile(self, u, bridge):
            return torch.full_like(u, 0.3)

    bridge.times = At()
    n, s2 = 20_000, 4 * 0.3
    batch = Batch(torch.arange(n), points(Normal(MEAN, COV), n))
    draws = Draws.step(0, "loss", 0, range(n))
    found = bridge.loss(batch, draws).total
    eye = torch.eye(2, dtype=DOUBLE)
    posterior = COV - COV @ torch.linalg.solve(COV + s2 * eye, COV)
    expected = float(posterior.trace()) / 2 * (1 + s2) / s2
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(n)
    worse = exact(mixture([1.0], [-MEAN], [COV]), sigma=2.0, times=At())
    assert float(worse.loss(batch, draws).total.mean()) > expected + 0.1


def test_the_published_loss_is_that_of_the_noise():
    """`preconditioning: noise` and `times: uniform`: `|F − ξ|²`; an untrained network has a loss of one."""
    network = lambda x, cond: MLP(x, cond, width=8, depth=1)  # noqa: E731
    bridge = LSBDM(Ends(Spec((2,))), network=network, preconditioning=Noise(), times=UniformTimes(), horizon=0.99)
    n = 8000
    loss = bridge.loss(Batch(torch.arange(n), points(Normal(MEAN, COV), n)), Draws.step(0, "loss", 0, range(n))).total
    assert abs(float(loss.mean()) - 1) < 4 / math.sqrt(n)
    assert bridge.t_min == pytest.approx(0.01)


def test_conditions_are_refused():
    with pytest.raises(ArgumentError, match="label"):
        LSBDM(Ends(Spec((2,)), cond={"label": Spec((), torch.int64, 3)}), network=lambda x, cond: MLP(x, cond))
