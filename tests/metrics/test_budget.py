"""The error budget: exact in the Gaussian case, and what is measured by coupling is no less than that."""

import math
from dataclasses import replace

import pytest
import torch

from latentsb.autoencoders.identity import Identity
from latentsb.bridges.lsbdm import LSBDM
from latentsb.data.subset import Subset
from latentsb.data.toys import Gaussian
from latentsb.laws import Ends
from latentsb.metrics.base import Data, Subject
from latentsb.metrics.budget import Budget, EmpiricalBridge, coupled, gathered, kick, matched, refined
from latentsb.networks.mlp import MLP
from latentsb.oracles import Normal, chain
from latentsb.oracles.budget import GaussianBudget, denoiser
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.grid import Karras, Uniform
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
LAW = Normal(torch.tensor([0.5, -1.0], dtype=DOUBLE), torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=DOUBLE))
SIGMA = 2.0


class Exact(EmpiricalBridge):
    """The process out of a normal law."""

    def denoise(self, x, t, cond):
        return denoiser(LAW, SIGMA)(t)(x)


def untrained() -> LSBDM:
    return LSBDM(Ends(Spec((2,))), network=lambda x, cond: MLP(x, cond, width=8, depth=1), sigma=SIGMA).eval()


def budget(times, learned, start) -> dict[str, float]:
    return GaussianBudget(
        law=LAW,
        sigma=SIGMA,
        start=start,
        times=times,
        chain=lambda map, at: chain.posterior(map, Brownian(sigma=SIGMA), at),
        learned=learned,
    ).terms()


def test_terms_of_a_gaussian_bound_the_whole_and_vanish_alone():
    exact = denoiser(LAW, SIGMA)
    right = Normal(LAW.mean, LAW.cov + SIGMA**2 * torch.eye(2, dtype=DOUBLE))
    noise = Normal(torch.zeros(2, dtype=DOUBLE), SIGMA**2 * torch.eye(2, dtype=DOUBLE))
    times = torch.cat([torch.logspace(0, -3, 12, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)])
    wrong = denoiser(Normal(LAW.mean + 0.1, 1.2 * LAW.cov), SIGMA)
    found = budget(times, wrong, noise)
    whole = found.pop("whole")
    assert 0 < whole <= sum(found.values())
    assert all(value > 1e-3 for value in found.values())
    found = budget(times, exact, right)
    assert found["start"] < 1e-6
    assert found["score"] < 1e-6
    finer = torch.cat([torch.logspace(0, -3, 121, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)])
    assert budget(finer, exact, right)["steps"] < 0.15 * found["steps"]
    # What early stopping leaves out is the spread of the posterior, Σ (√s² − s²/√(s² + σ² t))², below σ² t d.
    values = torch.linalg.eigvalsh(LAW.cov)
    left = (values.sqrt() - values / (values + SIGMA**2 * 1e-3).sqrt()).square().sum().sqrt()
    assert found["early stopping"] == pytest.approx(float(left), rel=1e-6)
    assert found["early stopping"] < SIGMA * math.sqrt(2e-3)


@pytest.mark.parametrize(
    "solver",
    [
        Posterior(steps=12, eta=1.0, grid=Karras(sigma_min=0.05)),
        EulerMaruyama(steps=12, grid=Uniform(last=0.01), noiseless_last=False),
    ],
)
def test_coarse_noise_is_the_fine_brownian_motion(solver):
    """Where the denoiser is constant the chain is linear in the noise, and exact for any steps under `posterior`."""
    bridge = untrained()
    times = solver.grid.times(bridge, 12)
    fine, owner = refined(times, 5)
    n = 3000
    noises = [Draws.block(k, "", 0, n).normal("", torch.zeros(n, 2, dtype=DOUBLE)) for k in range(len(fine) - 1)]
    coarse = gathered(bridge, solver, fine, owner, noises)
    for noise in coarse[:-1]:
        assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / (2 * n))
    # A constant denoiser for `posterior`, no drift for Euler: both chains are then linear in the noise, and exact.
    still = Exact(bridge, torch.zeros(1, 2, dtype=DOUBLE))
    ancestral = isinstance(solver, Posterior)
    still.denoise = lambda x, t, cond: torch.zeros_like(x) if ancestral else x  # type: ignore[method-assign]
    x = torch.ones(n, 2, dtype=DOUBLE)
    ends = [
        coupled(still, replace(solver, steps=len(at) - 1), x, at, list(noise[: len(at) - 1]))
        for at, noise in ((times[:-1], coarse), (fine[:-1], noises))
    ]
    assert torch.allclose(ends[0], ends[1], atol=1e-9)
    assert float(ends[0].std()) > 0.01
    keep, spread = kick(bridge, solver, times[0], times[1])
    assert float(keep) > 0
    assert float(spread) > 0


def test_coupled_terms_are_those_of_the_gaussian_or_more():
    """Discretisation under one Brownian motion is an upper bound of W2, and of its size."""
    bridge, solver = untrained(), Posterior(steps=10, eta=1.0, grid=Karras(sigma_min=0.05))
    times = solver.grid.times(bridge, 10)
    fine, owner = refined(times, 16)
    n = 4000
    noises = [Draws.block(k, "", 0, n).normal("", torch.zeros(n, 2, dtype=DOUBLE)) for k in range(len(fine) - 1)]
    begun = LAW.sample(n, Draws.block(0, "x0", 0, n)) + SIGMA * Draws.block(0, "x1", 0, n).normal("", noises[0])
    exact = Exact(bridge, begun[:1])
    ends = [
        coupled(exact, replace(solver, steps=len(at) - 1), begun, at, noise)
        for at, noise in ((times, gathered(bridge, solver, fine, owner, noises)), (fine, noises))
    ]
    measured = float((ends[0] - ends[1]).square().sum(1).mean().sqrt())
    right = Normal(LAW.mean, LAW.cov + SIGMA**2 * torch.eye(2, dtype=DOUBLE))
    truth = budget(times, denoiser(LAW, SIGMA), right)["steps"]
    assert truth * 0.9 < measured < 4 * truth


def test_the_empirical_denoiser_is_bayes():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    found = EmpiricalBridge(untrained(), points)
    t = torch.tensor(0.25, dtype=DOUBLE)
    x = torch.tensor([[0.5, 3.0], [2.0, 0.0]], dtype=DOUBLE)
    share = 1 / (1 + math.exp(-(2.0 - 0.5) / (SIGMA**2 * 0.25)))
    assert found.denoise(x, t, Condition())[:, 0].tolist() == pytest.approx([0.5, share])


def test_assignment():
    a = torch.tensor([[0.0], [1.0], [2.0]])
    distance, rows = matched(a, torch.tensor([[2.5], [0.5], [1.5]]))
    assert distance == pytest.approx(0.5)
    assert rows.tolist() == [1, 2, 0]


def test_a_run_has_its_budget():
    source = Gaussian(mean=(0.5, -1.0), covariance=((1.0, 0.6), (0.6, 0.5)), n=2000)
    bridge = untrained()
    latents = source.read(torch.arange(2000).numpy()).x0
    bridge.fit(lambda: [Batch(torch.arange(2000), latents)])

    class Held(Subject):
        def follower(self):
            return Posterior(steps=15, eta=1.0, grid=Karras(sigma_min=0.05))

    subject = Held()
    subject.bridge, subject.autoencoder = bridge, Identity(Spec((2,)))
    halves = [Subset(source, torch.arange(at, at + 1000).numpy()) for at in (0, 1000)]
    subject.train, subject.held = (Data(half, lambda half=half: half, held_out=True) for half in halves)
    found = Budget(samples=300, finer=3).measure(subject)
    terms = {name: found.details[name] for name in ("start", "score", "steps", "early stopping", "sample")}
    assert sum(terms.values()) >= found.details["error"]
    assert found.value == pytest.approx(sum(terms.values()) / found.details["error"])
    assert terms["early stopping"] == pytest.approx(0.05 * math.sqrt(2), rel=1e-3)
    assert terms["score"] > terms["steps"]
    assert found.details["autoencoder"] == 0
    assert found.details["decoder slope"] == pytest.approx(1, rel=1e-6)
    assert terms["start"] > 0
