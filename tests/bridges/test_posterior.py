"""Posteriors of a normal prior under linear measurements: exact by the chain's own moments, for any control."""

import math

import pytest
import torch

from latentsb.bridge import DenoisingBridge, State
from latentsb.bridges.posterior import Posterior
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.measurements import Linear, Mask
from latentsb.metrics.posterior import moments
from latentsb.networks.mlp import MLP
from latentsb.process.references import VE
from latentsb.randomness import Draws
from latentsb.solvers.grid import Karras
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Loss

DOUBLE = torch.float64
MEAN, COV = torch.tensor([0.5, -1.0], dtype=DOUBLE), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=DOUBLE)
EYE = torch.eye(2, dtype=DOUBLE)
GRID = Karras(sigma_max=20.0, sigma_min=0.02, rho=3.0)


class NormalPrior(DenoisingBridge):
    """`E[X0|X_t]` of N(mean, cov) in closed form over a variance-exploding reference."""

    t_min = 1e-4

    def __init__(self, ends: Ends, mean=MEAN, cov=COV):
        super().__init__()
        self.ends, self.reference, self.mean, self.cov = ends, VE(sigma_max=20.0), mean, cov

    def marginal(self, t):
        return self.reference.noised(t)

    def gain(self, t):
        """`Cov (Cov + ρ² 1)⁻¹`."""
        return self.cov @ torch.linalg.inv(self.cov + self.marginal(t).c * EYE)

    def denoise(self, x, t, cond):
        return (self.mean + (x.double() - self.mean) @ self.gain(t).T).to(x)

    def loss(self, batch, draws):
        return Loss(torch.zeros(len(batch)))

    def start(self, batch, draws, towards="x0"):
        noise = draws.normal("x1", self.ends.spec.zeros(len(batch)))
        return State(20.0 * noise, torch.ones((), dtype=DOUBLE), batch.cond)


def sampler(measurement, *, steps: int, prior=NormalPrior, shake: float = 0.0, **recipe) -> Posterior:
    torch.manual_seed(0)
    made = Posterior(
        Ends(Spec((2,))),
        prior=prior,
        network=lambda x, cond, out: MLP(x, cond, out, width=16, depth=1),
        measurement=measurement,
        steps=steps,
        grid=GRID,
        **recipe,
    )
    with torch.no_grad():
        for p in made.control.parameters():
            p.add_(shake * torch.randn(p.shape))
    return made


def law_of_chain(made: Posterior):
    """Mean and covariance of the end of the chain without control: a linear recursion."""
    prior, mean, cov = made.prior, torch.zeros(2, dtype=DOUBLE), 400.0 * EYE
    for k, t in enumerate(made.times[:-2]):
        gain, a, b, c = prior.gain(t), made.kernels.a[k], made.kernels.b[k], made.kernels.c[k]
        step = a * EYE + b * gain
        mean, cov = step @ mean + b * (prior.mean - gain @ prior.mean), step @ cov @ step.T + c * EYE
    gain = prior.gain(made.times[-2])
    return gain @ mean + prior.mean - gain @ prior.mean, gain @ cov @ gain.T


def given(mean, cov, matrix, sigma, y):
    """Posterior mean and covariance of N(mean, cov) under y, and log p(y)."""
    joint = matrix @ cov @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=DOUBLE)
    gain = cov @ matrix.T @ torch.linalg.inv(joint)
    off = y - matrix @ mean
    density = -off @ torch.linalg.solve(joint, off) / 2 - joint.logdet() / 2 - len(y) / 2 * math.log(2 * math.pi)
    return mean + gain @ off, cov - gain @ matrix @ cov, float(density)


def weighted(made: Posterior, y, paths: int):
    rows = Batch(torch.arange(1), cond=Condition({"known": torch.tensor([y], dtype=torch.float32)}))
    with torch.no_grad():
        return made.posterior(rows, paths, Draws.block(0, "", 0, 1))


@pytest.mark.parametrize("shake", [0.0, 0.05])
@pytest.mark.parametrize(
    ("measurement", "y"),
    [(Mask(sigma=0.3), [1.2]), (Linear(rows=((1.0, -2.0),), sigma=0.5), [2.0])],
    ids=["mask", "linear"],
)
def test_weights_give_the_exact_posterior_of_any_control(measurement, y, shake):
    """Few steps, no training: `E w = p(y)`, and weighted moments are those of conditioning."""
    made, n = sampler(measurement, steps=8, shake=shake), 20_000
    mean, cov = law_of_chain(made)
    matrix = measurement.matrix(Spec((2,)))
    expected, spread, log_p = given(mean, cov, matrix, measurement.sigma, torch.tensor(y, dtype=DOUBLE))
    found = weighted(made, y, n)
    w = found.log_weight.double().exp()
    error = float(w.std()) / math.sqrt(n)
    assert error < 0.07 * math.exp(log_p)
    assert abs(float(w.mean()) - math.exp(log_p)) < 3 * error
    ours, variance, ess = moments(found, n)
    size = n * float(ess)
    assert bool(((ours[0] - expected).abs() < 4 * (spread.diagonal() / size).sqrt()).all())
    assert torch.allclose(variance[0], spread.diagonal(), rtol=6 / math.sqrt(size))


def test_the_guide_is_the_optimum_of_an_isotropic_prior():
    """Before any training log-weights vary as the step alone; with the sign turned next to nothing is left of them."""
    few, many = (
        sampler(Mask(sigma=0.3), steps=n, prior=lambda ends: NormalPrior(ends, cov=EYE), spread=1.0) for n in (40, 160)
    )
    log_w = [weighted(made, [1.5], 2_000).log_weight for made in (few, many)]
    assert float(log_w[0].var()) > 3 * float(log_w[1].var())
    assert float(log_w[1].var()) < 0.15
    with torch.no_grad():
        few.control.head.bias.fill_(-1.0)
    assert float(moments(weighted(few, [1.5], 2_000), 2_000)[2]) < 0.2


def test_training_raises_the_effective_sample_size_for_all_measurements_at_once():
    """The guide is wrong for a correlated prior; `lv` over paths of one measurement mends it."""
    made = sampler(Mask(sigma=0.2), steps=12, paths=8)
    x0 = (
        MEAN
        + torch.randn(64, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) @ torch.linalg.cholesky(COV).T
    )
    batch, draws = Batch(torch.arange(64), x0.float()), Draws.step(0, "test", 0, range(64))

    def size() -> float:
        with torch.no_grad():
            return float(moments(made.posterior(made.observe(batch, draws), 64, draws.fork("paths")), 64)[2].mean())

    before = size()
    optimiser = torch.optim.Adam(made.control.parameters(), lr=5e-3)
    for k in range(60):
        optimiser.zero_grad()
        rows = Batch(torch.arange(32), x0[32 * (k % 2) :][:32].float())
        made.loss(rows, Draws.step(0, "loss", 32 * k, range(32))).total.mean().backward()
        optimiser.step()
    assert size() > before + 0.05
    assert all(p.grad is None for p in made.prior.parameters())


def test_what_does_not_fit_is_told():
    class Noiseless(NormalPrior):
        def marginal(self, t):
            return self.reference.pinned(t)

    with pytest.raises(ArgumentError, match="denoising bridge from noise"):
        sampler(Mask(), steps=8, prior=Noiseless)
    with pytest.raises(ArgumentError, match="at least 2"):
        sampler(Mask(), steps=8, paths=1)
    with pytest.raises(ArgumentError, match="a sample has 2"):
        sampler(Linear(rows=((1.0,),)), steps=8)
    made = sampler(Mask(), steps=8)
    with pytest.raises(CapabilityError, match="needs a measurement"):
        made.start(Batch(torch.arange(1)), Draws.seeds([0]))
