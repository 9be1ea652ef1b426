"""Pairs with a known plan: the construction is consistent with itself, with quadrature and with LightSB's form."""

import math

import numpy as np
import pytest
import torch

from latentsb.data.eot import EotPair
from latentsb.data.source import SOURCES
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.oracles import AdjustedPotential, MixturePair, Potential
from latentsb.randomness import Draws

DOUBLE = torch.float64
EPSILONS = (0.1, 1.0, 10.0)


def states(pair, n=5, seed=3):
    return pair.sample_x0(n, Draws.block(seed, "states", 0, n))


def test_the_potential_is_the_recipe_of_its_seed():
    pair = MixturePair(dim=16, epsilon=0.1, seed=4)
    potential = pair.potential
    torch.testing.assert_close(potential.mu.norm(dim=1), torch.full((5,), 5.0, dtype=DOUBLE))
    assert 0.5 <= float(potential.values.min()) < 0.6
    assert 1.8 < float(potential.values.max()) <= 2.0
    torch.testing.assert_close(
        torch.linalg.eigvalsh(potential.sigma), potential.values.sort(1).values, rtol=1e-10, atol=1e-10
    )
    again = MixturePair(dim=16, epsilon=10.0, seed=4).potential
    assert torch.equal(again.mu, potential.mu)  # epsilon is another question about the same mixture
    assert not torch.equal(MixturePair(dim=16, seed=5).potential.mu, potential.mu)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_plan_is_the_tilt_of_the_reference_by_the_potential(epsilon):
    """`ln π(x1|x0) − ln φ(x1) + |x0 − x1|²/2ε` does not depend on x1: the definition, term by term."""
    pair = MixturePair(dim=3, epsilon=epsilon)
    x0, x1 = states(pair), 2 * states(pair, 6, seed=9)
    law = pair.conditional(x0)
    for b in range(len(x0)):
        off = x1[:, None] - law.means[b]
        white = torch.einsum("nkd,kde,nke->nk", off, torch.linalg.inv(law.covs), off)
        log = law.log_weights[b] - white / 2 - torch.logdet(2 * math.pi * law.covs) / 2
        rest = log.logsumexp(1) - pair.potential.log_prob(x1) + (x0[b] - x1).square().sum(1) / (2 * epsilon)
        assert float(rest.max() - rest.min()) < 1e-9


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_drift_is_the_pull_of_the_conditional_mean_and_a_gradient(epsilon):
    pair = MixturePair(dim=4, epsilon=epsilon)
    x = states(pair)
    for t in (0.0, 0.4, 0.95):
        torch.testing.assert_close(pair.drift(x, t), (pair.predict(x, t) - x) / (1 - t), rtol=1e-8, atol=1e-8)
        h = 1e-6 * torch.eye(4, dtype=DOUBLE)
        v = epsilon * (1 - t)
        rise = torch.stack([pair.potential.log_prob(x + e, v) - pair.potential.log_prob(x - e, v) for e in h], 1)
        torch.testing.assert_close(pair.drift(x, t), epsilon * rise / 2e-6, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pair.predict(x, 0.0), pair.conditional(x).mean(), rtol=1e-10, atol=1e-10)
    with pytest.raises(CapabilityError, match="towards x1 only"):
        pair.drift(x, 0.5, "x0")


def test_moments_of_the_conditional_law_and_its_draws_agree():
    pair = MixturePair(dim=3, epsilon=2.0)
    x0, n = states(pair, 1), 40_000
    law = pair.conditional(x0)
    made = pair.conditional(x0.expand(n, -1)).sample(Draws.block(0, "x1", 0, n))
    cov = law.cov()[0]
    assert bool(((made.mean(0) - law.mean()[0]).abs() < 4.5 * (cov.diagonal() / n).sqrt()).all())
    off = made - made.mean(0)
    products = off[:, :, None] * off[:, None, :]
    error = products.std(0) / math.sqrt(n)
    assert bool(((products.mean(0) - cov).abs() < 4.5 * error).all())


def test_the_exact_drift_leads_to_the_conditional_law():
    """Euler–Maruyama from one state: the mean after 100 steps, up to its standard error and O(1/100)."""
    from latentsb.oracles.chain import uniform
    from latentsb.oracles.metrics import follow

    pair = MixturePair(dim=2, epsilon=1.0)
    x0, n = states(pair, 1), 4000
    made = follow(pair, x0.expand(n, -1).clone(), uniform(100), Draws.block(0, "walk", 0, n))
    law = pair.conditional(x0)
    scale = law.cov()[0].diagonal().sqrt()
    assert bool(((made.mean(0) - law.mean()[0]).abs() < (4.5 / math.sqrt(n) + 0.02) * scale).all())
    assert bool(((made.std(0) - scale).abs() < (4.5 / math.sqrt(n) + 0.03) * scale).all())


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_moments_of_x1_agree_with_quadrature(epsilon):
    pair = MixturePair(dim=2, epsilon=epsilon)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    grid = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2))
    mass = torch.from_numpy(np.outer(weights, weights).reshape(-1) / (2 * math.pi))
    law = pair.conditional(grid)
    mean = mass @ law.mean()
    off = law.mean() - mean
    cov = torch.einsum("b,bde->de", mass, law.cov()) + (off.T * mass) @ off
    found = pair.x1_moments
    # 20,000 draws of x0: relative standard errors below 1/√20000 · 2.
    scale = cov.diagonal().sqrt()
    assert bool(((found.mean - mean).abs() < 0.035 * scale).all())
    assert bool(((found.cov - cov).abs() < 0.05 * torch.outer(scale, scale)).all())


def test_paths_are_brownian_bridges_between_pairs_of_the_plan():
    """Regression of the ends on x_t must give the drift: `E[(x1 − x_t)/(1 − t) ψ] = E[b_f ψ]` for test functions ψ."""
    pair, n, t = MixturePair(dim=2, epsilon=1.0), 40_000, 0.5
    paths = pair.sample_paths(n, (0.0, t, 1.0), Draws.block(0, "paths", 0, n))
    x0, x, x1 = paths
    residual = (x1 - x) / (1 - t) - pair.drift(x, t)
    for test in (torch.ones_like(x), x, x.tanh(), x.flip(1)):
        product = residual * test
        assert bool((product.mean(0).abs() < 4.5 * product.std(0) / math.sqrt(n)).all())
    # Backward it is the same plan: the pull to x0 and the pull to x1 add up to the score, so their sum is odd in law.
    both = ((x1 - x) / (1 - t) + (x0 - x) / t) * x / pair.epsilon  # E[score · x] = −1 per dimension
    assert bool(((both.mean(0) + 1).abs() < 4.5 * both.std(0) / math.sqrt(n)).all())


@pytest.mark.parametrize("dim", [2, 16, 64, 128])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_every_pair_is_a_mixture_indeed(dim, epsilon):
    """No component takes nearly all of the mass, so a single Gaussian is not the answer."""
    pair = MixturePair(dim=dim, epsilon=epsilon)
    shares = pair.conditional(states(pair, 300)).log_weights.exp().mean(0)
    assert float(shares.max()) < 0.7
    assert float(shares.sort().values[-3]) > 0.08


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("dim", [2, 8])
def test_lightsbs_form_and_the_benchmarks_are_one(dim, epsilon):
    pair = MixturePair(dim=dim, epsilon=epsilon, seed=1)
    adjusted, x = pair.potential.adjusted(epsilon), states(pair)
    ours, theirs = pair.conditional(x), adjusted.conditional(x, epsilon)
    torch.testing.assert_close(theirs.log_weights, ours.log_weights, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(theirs.means, ours.means, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(theirs.covs, ours.covs, rtol=1e-10, atol=1e-10)
    # v(x) = φ(x) exp(−|x|²/2ε), at points and not in ratio only.
    expected = pair.potential.log_prob(x) - x.square().sum(1) / (2 * epsilon)
    torch.testing.assert_close(adjusted.log_v(x, epsilon), expected, rtol=1e-10, atol=1e-10)
    back = adjusted.potential(epsilon)
    torch.testing.assert_close(back.log_p, pair.potential.log_p, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.mu, pair.potential.mu, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.sigma, pair.potential.sigma, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.9])
def test_the_drift_as_lightsb_writes_it(t):
    """Korotin et al. 2024, Prop. 3.3: `−x/(1−t) + ε ∇ ln Σ …` with A_k and c_k."""
    pair = MixturePair(dim=3, epsilon=0.7)
    epsilon, adjusted = pair.epsilon, pair.potential.adjusted(pair.epsilon)
    inverse = torch.linalg.inv(adjusted.S)
    A = t / (epsilon * (1 - t)) * torch.eye(3, dtype=DOUBLE) + inverse / epsilon
    x = states(pair).requires_grad_()
    c = x[:, None] / (epsilon * (1 - t)) + torch.einsum("kde,ke->kd", inverse, adjusted.r) / epsilon
    fixed = adjusted.log_alpha - torch.logdet(adjusted.S) / 2 - torch.logdet(A) / 2
    fixed = fixed - torch.einsum("kd,kde,ke->k", adjusted.r, inverse, adjusted.r) / (2 * epsilon)
    terms = fixed + torch.einsum("bkd,kde,bke->bk", c, torch.linalg.inv(A), c) / 2
    (gradient,) = torch.autograd.grad(terms.logsumexp(1).sum(), x)
    found = pair.drift(x, t)
    torch.testing.assert_close(found, -x / (1 - t) + epsilon * gradient, rtol=1e-9, atol=1e-9)


def test_log_c_normalises_lightsbs_plan():
    """`∫ exp(⟨x0, x1⟩/ε) v(x1) dx1 = c(x0)`, on the line."""
    adjusted = AdjustedPotential(
        torch.tensor([-0.3, 0.4], dtype=DOUBLE),
        torch.tensor([[-1.0], [0.8]], dtype=DOUBLE),
        torch.tensor([[[0.4]], [[1.6]]], dtype=DOUBLE),
    )
    x0, x1 = torch.tensor([[0.7]], dtype=DOUBLE), torch.linspace(-20, 20, 8001, dtype=DOUBLE)[:, None]
    integrand = (x1[:, 0] * 0.7 / 0.5 + adjusted.log_v(x1, 0.5)).exp()
    assert float(adjusted.log_c(x0, 0.5)) == pytest.approx(math.log(float(integrand.sum()) * 0.005), rel=1e-9)
    with pytest.raises(ArgumentError, match=r"eigenvalue 1\.6"):
        adjusted.potential(0.5)


def test_a_potential_of_given_covariances():
    sigma = torch.tensor([[[1.0, 0.3], [0.3, 0.6]]], dtype=DOUBLE)
    mu = torch.tensor([[0.5, -1.0]], dtype=DOUBLE)
    x = torch.tensor([[0.1, 0.2]], dtype=DOUBLE)
    found = Potential.of(torch.zeros(1, dtype=DOUBLE), mu, sigma).log_prob(x, 0.4)
    truth = torch.distributions.MultivariateNormal(mu[0], sigma[0] + 0.4 * torch.eye(2, dtype=DOUBLE)).log_prob(x)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


def test_the_data_word_brings_both_ends():
    assert "eot_pair" in SOURCES
    source = EotPair(dim=3, epsilon=0.1, n=2000)
    assert source.two_sided
    assert not source.paired
    items = source.read(np.arange(2000))
    assert items.x0.shape == items.x1.shape == (2000, 3)

    def correlation(found):
        a, b = found.x0 - found.x0.mean(0), found.x1 - found.x1.mean(0)
        return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())

    partners = EotPair(dim=3, epsilon=0.1, n=2000, paired=True)
    assert abs(correlation(items)) < 4.5 / math.sqrt(6000)
    assert correlation(partners.read(np.arange(2000))) > 0.5
    assert torch.equal(EotPair(dim=3, epsilon=0.1, n=2000).others, source.others)
    assert not torch.equal(EotPair(dim=3, epsilon=0.1, n=2000, seed=1).others, source.others)
    prints = [
        EotPair(dim=3, n=10, **key).fingerprint() for key in ({}, {"seed": 1}, {"potential": 1}, {"paired": True})
    ]
    assert len({str(p) for p in prints}) == 4
