"""Bridges between partners, held to linear-Gaussian pairs, whose conditional law is known."""

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.bridges.ddbm import DDBM
from latentsb.errors import ArgumentError, DataError
from latentsb.laws import Ends, Gaussian
from latentsb.networks.base import Network
from latentsb.process.coupling import Independent, MinibatchOT
from latentsb.process.preconditioning import Official, Shifted
from latentsb.process.references import VE, VP, Brownian
from latentsb.randomness import Draws
from latentsb.solvers.direct import Denoise
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.grid import Uniform
from latentsb.solvers.sde import EulerMaruyama
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE), two_sided=True)
LOSS = torch.tensor([[0.8, -0.5], [0.2, 1.1]], dtype=DOUBLE)
NOISE = 0.4
"""x1 = LOSS x0 + NOISE ε: a mixed and noisy image of x0."""
REFERENCES = {"vp": VP(), "ve": VE(sigma_max=3.0), "brownian": Brownian(sigma=0.8)}


def degraded(x0, seed):
    noise = torch.randn(x0.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return x0 @ LOSS.T + NOISE * noise


def restored(gauss, x1):
    """Mean (B, 2) and covariance (2, 2) of x0 given x1, by conditioning the joint Gaussian."""
    gain = gauss.COV @ LOSS.T @ torch.linalg.inv(LOSS @ gauss.COV @ LOSS.T + NOISE**2 * gauss.EYE)
    return gauss.MEAN + (x1 - LOSS @ gauss.MEAN) @ gain.T, gauss.COV - gain @ LOSS @ gauss.COV


@pytest.fixture(scope="module")
def optimum(gauss):
    class Optimum(Network):
        """F of the `shifted` preconditioning for unit sigma_data: EDM's in `y = (x − a x1)/b`, given x1."""

        def forward(self, x, t, cond):
            sigma = (4 * t).exp()[..., None]
            y = x * (1 + sigma**2).sqrt()
            mean, cov = restored(gauss, cond["x1"])
            best = gauss.Posterior(mean, cov, torch.ones_like(t), sigma[..., 0] ** 2).x0(y)
            return (best - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma

    return Optimum


class Silent(Network):
    """A network whose output layer is still zero; keeps what it was told."""

    def forward(self, x, t, cond):
        self.told = cond
        return torch.zeros_like(x)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.93])
@pytest.mark.parametrize("name", REFERENCES)
def test_denoiser_score_and_drifts_are_the_closed_forms(gauss, optimum, name, t):
    reference, time = REFERENCES[name], torch.tensor(t, dtype=DOUBLE)
    bridge = DDBM(ENDS, network=optimum, reference=reference)
    x1 = degraded(gauss.data(64, seed=1), 2)
    cond = Condition({"x1": x1})
    # Mean and variance by conditioning X_1 = φ X_t + √q ε on x1, from the transitions alone.
    first, last = reference.transition(0 * time, time), reference.transition(time, torch.ones_like(time))
    spread = last.Phi**2 * first.Q + last.Q
    a = first.Q * last.Phi / spread
    b, c = first.Phi * (1 - a * last.Phi), first.Q - a**2 * spread
    mean, cov = restored(gauss, x1)
    at = gauss.Posterior(mean, cov, b, c, shift=a * x1)
    x = a * x1 + b * gauss.data(64, seed=3) + c.sqrt() * gauss.data(64, seed=4)
    f, g2 = reference.f(time), reference.g2(time)
    pull = last.Phi * (x1 - last.Phi * x) / last.Q
    torch.testing.assert_close(bridge.denoise(x, time, cond), at.x0(x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(bridge.score(x, time, cond), at.score(x), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bridge.drift(x, time, cond, "x1"), f * x + g2 * pull, rtol=1e-8, atol=1e-8)
    backward = -f * x + g2 * (at.score(x) - pull)
    torch.testing.assert_close(bridge.drift(x, time, cond, "x0"), backward, rtol=1e-7, atol=1e-7)
    assert BRIDGES.word_of(bridge) == "ddbm"


# Bias of the spread: 2M has 1.5 % at 20 calls and second order; Euler-Maruyama misses a few times 1/steps.
ODE, SDE = DPMpp(steps=60), EulerMaruyama(steps=60, start=Endpoint(), grid=Uniform())


@pytest.mark.parametrize(
    ("name", "solver", "bias"), [("vp", ODE, 0.005), ("ve", ODE, 0.005), ("brownian", ODE, 0.005), ("vp", SDE, 0.05)]
)
def test_samples_given_x1_have_the_conditional_law(gauss, optimum, name, solver, bias):
    n = 1500
    bridge = DDBM(ENDS, network=optimum, reference=REFERENCES[name])
    for x1 in (torch.tensor([1.5, -2.0], dtype=DOUBLE), torch.tensor([-1.0, 0.5], dtype=DOUBLE)):
        draws = Draws.step(7, "sample", 0, range(n))
        state = bridge.start(Batch(torch.arange(n), x1=x1.expand(n, 2)), draws)
        assert torch.equal(state.x, x1.expand(n, 2))
        assert float(state.t) == 1
        made = solver.run(bridge, state, draws).x
        mean, cov = restored(gauss, x1)
        scale = cov.diagonal().sqrt()
        error = (made.mean(0) - mean).abs() / scale
        assert bool((error < 4 / n**0.5 + bias).all()), error
        spread = torch.cov(made.T) - cov
        # A covariance of n Gaussian rows has the standard error √((1 + corr²)/n) in units of the spreads.
        assert float((spread / scale / scale[:, None]).abs().max()) < 4 * (2 / n) ** 0.5 + 2 * bias, spread


def test_one_call_gives_the_mean(gauss, optimum):
    bridge = DDBM(ENDS, network=optimum)
    x1 = degraded(gauss.data(32), 1)
    draws = Draws.seeds(range(32))
    run = Denoise().run(bridge, bridge.start(Batch(torch.arange(32), x1=x1), draws), draws)
    assert run.calls == 1
    # At sigma_eff = 80 the state itself still tells a share var/80² of x0.
    torch.testing.assert_close(run.x, restored(gauss, x1)[0], rtol=0, atol=2e-2)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("name", REFERENCES)
def test_the_loss_of_the_optimum_is_what_cannot_be_known(gauss, optimum, name, t):
    bridge = DDBM(ENDS, network=optimum, reference=REFERENCES[name], times=gauss.At(t=t))
    x0 = gauss.data(20_000)
    x1 = degraded(x0, 1)
    batch = Batch(torch.arange(len(x0)), x0, x1)
    loss = bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total
    marginal = bridge.marginal(torch.tensor(t, dtype=DOUBLE))
    left = gauss.Posterior(*restored(gauss, x1[:1]), marginal.b, marginal.c).error() / 2
    weight = bridge.preconditioning.coefficients(marginal, torch.tensor(t, dtype=DOUBLE)).weight
    assert gauss.within(loss, float(weight * left)), (float(loss.mean()), float(weight * left))


@pytest.mark.parametrize("t", [0.001, 0.3, 0.8, 0.999])
def test_initial_loss_is_one(gauss, t):
    """For x1 of any law where it is subtracted; for the published form with the variances and the covariance given."""
    n = 20_000
    rng = torch.Generator().manual_seed(3)
    x0 = 0.5 * torch.randn(n, 2, dtype=DOUBLE, generator=rng)
    other = torch.randn(n, 2, dtype=DOUBLE, generator=rng)
    mixed = 0.8 * x0 + 0.3 * other  # variance 1/4, covariance 1/5
    cases = [
        (Shifted(sigma_data=0.5), 3 * x0.flip(1) + 7 + other),
        (Official(sigma_data=0.5, sigma_end=0.5, covariance=0.2), mixed),
    ]
    for preconditioning, x1 in cases:
        bridge = DDBM(ENDS, network=Silent, times=gauss.At(t=t), preconditioning=preconditioning)
        loss = bridge.loss(Batch(torch.arange(n), x0, x1), Draws.step(3, "loss", 0, range(n))).total
        assert gauss.within(loss, 1.0), float(loss.mean())


@pytest.mark.parametrize("preconditioning", [Shifted(), Official()])
def test_the_loss_is_the_error_of_the_network_at_its_own_target(gauss, preconditioning):
    """w (D − x0)² = (F − (x0 − skip (x − shift x1))/out)², row by row."""

    class Affine(Network):
        def forward(self, x, t, cond):
            self.output = 0.3 * x - 0.2 * cond["x1"] + t[:, None]
            return self.output

    bridge = DDBM(ENDS, network=Affine, preconditioning=preconditioning)
    x0 = gauss.data(50)
    x1, draws = degraded(x0, 1), Draws.step(1, "loss", 0, range(50))
    loss = bridge.loss(Batch(torch.arange(50), x0, x1), draws).total
    t = bridge.times.sample(bridge, draws)
    x = VP().pinned(t).sample(x0, x1, draws.normal("noise", x0))
    target = preconditioning.coefficients(VP().pinned(t), t).target(x, x1, x0)
    torch.testing.assert_close(loss, (bridge.network.output - target).square().mean(1))


def test_labels_are_dropped_and_x1_never(gauss):
    ends = Ends(ENDS.spec, two_sided=True, cond={"label": Spec((), torch.int64, classes=3)})
    bridge = DDBM(ends, network=Silent, dropout=0.3)
    x0 = gauss.data(4000)
    batch = Batch(torch.arange(4000), x0, x0 + 1, Condition({"label": torch.arange(4000) % 3}))
    bridge.loss(batch, Draws.step(0, "loss", 0, batch.index))
    told = bridge.network.told
    assert bool(told.mask("x1").all())
    assert torch.equal(told["x1"], x0 + 1)
    assert gauss.within((~told.mask("label")).double(), 0.3)


def test_towards_x1_it_is_the_pinned_reference(gauss, optimum):
    """Steps of its own drift end at the given x1; the last one, at 1 − 1e-4 or before, is without noise."""
    bridge = DDBM(ENDS, network=optimum, reference=Brownian(sigma=0.8))
    x0 = gauss.data(64)
    x1, draws = degraded(x0, 5), Draws.step(0, "sample", 0, range(64))
    state = bridge.start(Batch(torch.arange(64), x0, x1), draws, "x1")
    assert torch.equal(state.x, x0)
    made = EulerMaruyama(steps=50, grid=Uniform()).run(bridge, state, draws, "x1").x
    torch.testing.assert_close(made, x1, rtol=0, atol=4 * 0.8 * 1e-4**0.5)


def test_unpaired_ends_can_be_coupled_by_the_batch(gauss, optimum):
    bridge = DDBM(ENDS, network=optimum, coupling=MinibatchOT(reference=Brownian(sigma=0.5)))
    assert not bridge.aligned
    assert DDBM(ENDS, network=optimum).aligned
    batch = Batch(torch.arange(64), gauss.data(64, seed=1), gauss.data(64, seed=2))
    made = bridge.prepare(batch, Draws.step(0, "batch", 0, range(64)))
    assert float((made.x1 - made.x0).norm(dim=1).mean()) < 0.5 * float((batch.x1 - batch.x0).norm(dim=1).mean())


def test_what_it_cannot_do_is_told(gauss, optimum):
    one_sided = Ends(Spec((2,), DOUBLE))
    for ends, recipe in ((one_sided, {}), (one_sided, {"coupling": Independent()})):
        with pytest.raises(ArgumentError, match="coupling"):
            DDBM(ends, network=optimum, **recipe)
    with pytest.raises(ArgumentError, match="reference"):
        DDBM(ENDS, network=optimum, reference=Brownian(sigma=0.0))
    draws = Draws.seeds(range(3))
    with pytest.raises(DataError, match="x1"):
        DDBM(ENDS, network=optimum).start(Batch(torch.arange(3)), draws)
    law = Ends(Spec((2,)), x1=Gaussian(Spec((2,)), mean=(3.0, 1.0)))
    bridge = DDBM(law, network=optimum, coupling=Independent())
    assert bridge.start(Batch(torch.arange(3)), draws).cond["x1"].shape == (3, 2)
