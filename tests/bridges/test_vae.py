"""The variational autoencoder is a linear-Gaussian model here, whose evidence, optimum and codes are known.

Tipping and Bishop 1999, Probabilistic principal component analysis: with x0 = W z + s ε and z ~ N(0, 1) the data are
N(0, C), C = W Wᵀ + s²; the posterior is N(M⁻¹ Wᵀ x0, s² M⁻¹), M = Wᵀ W + s². For given s² the best W is
U (Λ − s²)^(1/2) of the largest eigenvalues Λ, with M = Λ, so that the numbers of the code are independent given x0.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from latentsb.autoencoders.identity import Identity
from latentsb.bridge import BRIDGES
from latentsb.bridges.vae import VAE
from latentsb.channels import Clamped, Exact
from latentsb.data.arrays import ArraySource
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.generate import reconstruct
from latentsb.laws import Ends
from latentsb.networks.base import Encoder
from latentsb.randomness import Draws
from latentsb.solvers.base import SOLVERS
from latentsb.solvers.direct import Denoise
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.sde import EulerMaruyama
from latentsb.solvers.start import Boot
from latentsb.solvers.unipc import UniPC
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
SPEC = Spec((4,), DOUBLE)
EIGENVALUES = torch.tensor([2.0, 1.0, 0.2, 0.1], dtype=DOUBLE)
AXES = torch.linalg.qr(torch.randn(4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)))[0]
S2 = 0.3
"""Variance of the decoder; between the second eigenvalue and the third, so that two numbers of code are used."""
WEIGHT = AXES[:, :2] * (EIGENVALUES[:2] - S2).sqrt()
NOISE = S2 * torch.eye(4, dtype=DOUBLE)
MODEL = MultivariateNormal(torch.zeros(4, dtype=DOUBLE), WEIGHT @ WEIGHT.T + NOISE)
POSTERIOR = torch.linalg.solve(WEIGHT.T @ WEIGHT + NOISE[:2, :2], WEIGHT.T)
"""E[z | x0] = POSTERIOR x0."""


def data(n, seed=0):
    """N(0, AXES Λ AXESᵀ)."""
    noise = torch.randn(n, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return noise * EIGENVALUES.sqrt() @ AXES.T


class Gaussian(Encoder):
    """Mean `V x`, and spreads that do not depend on x, behind the inverse of the channel's soft clamps and floor."""

    def __init__(self, x, outputs, mean, log_sigma):
        super().__init__(x, outputs)
        self.mean, self.log_sigma = nn.Parameter(mean.clone()), nn.Parameter(log_sigma.clone())

    def forward(self, x):
        # Six standard deviations of the posterior mean are below the limit of 5.
        mean = 5 * torch.atanh((x @ self.mean.T).clamp(-4.99, 4.99) / 5)
        return torch.cat([mean, 5 * torch.atanh(self.log_sigma / 5).expand_as(mean)], 1)


def variational(gauss, mean, sigma, weight, beta=2 * S2):
    return VAE(
        Ends(SPEC),
        encoder=lambda x, outputs: Gaussian(x, outputs, mean, (sigma - 0.01).log()),
        decoder=lambda dim, out: gauss.LinearDecoder(dim, out, weight),
        z_dim=2,
        channel=Clamped(beta=beta),
    )


def optimal(gauss, **recipe):
    return variational(gauss, POSTERIOR, (S2 / EIGENVALUES[:2]).sqrt(), WEIGHT, **recipe)


def in_units_of_the_loss(nats):
    """`(2 s² nats − s² d ln 2π s²)/d`: what an expectation of −ln p(x0) or of its bound is as a loss."""
    return (2 * S2 * nats - 4 * S2 * math.log(2 * math.pi * S2)) / 4


def evidence(covariance):
    """E −ln N(x0; 0, C) over the data."""
    law = MultivariateNormal(torch.zeros(4, dtype=DOUBLE), covariance)
    true = AXES @ torch.diag(EIGENVALUES) @ AXES.T
    return float((4 * math.log(2 * math.pi) + covariance.logdet() + (law.precision_matrix * true).sum()) / 2)


def test_the_loss_is_the_evidence_bound_sample_by_sample(gauss):
    """With the exact posterior the bound is the evidence, for each x0: `d loss = −2 s² ln p(x0) − s² d ln 2π s²`."""
    n, bridge = 40_000, optimal(gauss)
    for x0 in data(3, 9):
        batch = gauss.batch(x0.expand(n, 4))
        loss = bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total.detach()
        assert gauss.within(loss, in_units_of_the_loss(-MODEL.log_prob(x0)))


def test_another_posterior_has_a_looser_bound(gauss):
    """By exactly KL(q(z|x0) ‖ p(z|x0)), here of a mean that is off by 0.4 and a spread that is 1.5 times too large."""
    n, x0 = 40_000, data(1, 4)
    law = optimal(gauss).code_law(x0)
    bridge = variational(gauss, torch.zeros(2, 4, dtype=DOUBLE), 1.5 * law.sigma[0].detach(), WEIGHT)
    bridge.encoder.register_forward_hook(
        lambda layer, given, out: torch.cat(
            [(5 * torch.atanh((law.mean + 0.4) / 5)).expand(len(out), 2), out[:, 2:]], 1
        )
    )
    gap = float((0.16 / law.sigma.detach() ** 2 + 2.25 - 1 - math.log(2.25)).sum() / 2)
    batch = gauss.batch(x0.expand(n, 4))
    loss = bridge.loss(batch, Draws.step(1, "loss", 0, batch.index)).total.detach()
    assert gauss.within(loss, in_units_of_the_loss(gap - MODEL.log_prob(x0)[0]))


def test_the_gradient_vanishes_at_the_closed_form(gauss):
    bridge, parts = optimal(gauss), []
    for k in range(64):
        batch = gauss.batch(data(512, 100 + k), seen=512 * k)
        bridge.zero_grad()
        bridge.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        parts.append(torch.cat([p.grad.flatten() for p in bridge.parameters() if p.grad is not None]))
    assert parts[0].numel() == 8 + 2 + 8
    assert gauss.within(torch.stack(parts), 0.0, errors=4.5)


def train(bridge, steps, rows, lr):
    optimiser = torch.optim.Adam(bridge.parameters(), lr=lr)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
        batch = Batch(torch.arange(rows), data(rows, step + 1), seen=step * rows)
        optimiser.zero_grad()
        bridge.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        optimiser.step()


def test_training_reaches_the_evidence_of_probabilistic_pca(gauss):
    """From a random start; the model that was learned is the best one of all with two numbers of code."""
    start = 0.5 * torch.randn(2, 2, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    bridge = variational(gauss, start[0], torch.full((2,), 0.7, dtype=DOUBLE), start[1].T)
    train(bridge, 300, 1024, 0.1)
    batch = gauss.batch(data(60_000, 10**6))
    with torch.no_grad():
        loss = bridge.loss(batch, Draws.step(7, "loss", 0, batch.index)).total
        best = optimal(gauss).loss(batch, Draws.step(7, "loss", 0, batch.index)).total
    # C has the eigenvalues of the two kept axes, and s² for the others.
    least = (4 * math.log(2 * math.pi) + float(EIGENVALUES[:2].log().sum()) + 2 + 2 * math.log(S2) + 0.3 / S2) / 2
    assert evidence(MODEL.covariance_matrix) == pytest.approx(least, rel=1e-12)
    assert gauss.within(best, in_units_of_the_loss(least))
    assert gauss.within(loss, in_units_of_the_loss(least)), (float(loss.mean()), in_units_of_the_loss(least))
    learned = bridge.decoder.weight.detach()
    # No decoder has more evidence; what training has left is second order in the errors of its weights.
    assert least <= evidence(learned @ learned.T + NOISE) < least + 5e-4
    # The numbers of the code are independent given x0, so Wᵀ W is diagonal: the axes themselves are found.
    assert_close(learned.T @ learned, torch.diag(EIGENVALUES[:2] - S2), rtol=0, atol=0.05)


def test_the_mean_of_the_rate_is_what_the_code_carries_here(gauss):
    """The codes of the optimum are N(0, 1), so that E rate = I(x0; z) = Σ ln(Λ/s²)/2, logged in bits."""
    batch = gauss.batch(data(60_000, 5))
    found = optimal(gauss).loss(batch, Draws.step(3, "loss", 0, batch.index))
    assert gauss.within(found.terms["rate_bits"], float((EIGENVALUES[:2] / S2).log2().sum()) / 2)
    # Along a kept axis the mean falls short by the share s²/Λ, and the code's noise adds (Λ − s²) s²/Λ: together s².
    kept = (S2 / EIGENVALUES[:2]) ** 2 * EIGENVALUES[:2] + (EIGENVALUES[:2] - S2) * S2 / EIGENVALUES[:2]
    assert float(kept.sum()) == pytest.approx(2 * S2)
    assert gauss.within(found.terms["reconstruction"].detach(), float(kept.sum() + EIGENVALUES[2:].sum()) / 4)


def plain(gauss):
    start = 0.5 * torch.randn(2, 2, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    return VAE(
        Ends(SPEC),
        encoder=lambda x, dim: gauss.LinearEncoder(x, dim, start[0]),
        decoder=lambda dim, out: gauss.LinearDecoder(dim, out, start[1].T),
        z_dim=2,
        channel=Exact(),
    )


def test_an_exact_channel_makes_a_linear_autoencoder_of_pca(gauss):
    """The least error of a code of two numbers is the variance along the other axes, 0.3/4 per number."""
    bridge = plain(gauss)
    train(bridge, 400, 512, 0.05)
    through = (bridge.decoder.weight @ bridge.encoder.weight).detach()
    assert_close(through, AXES[:, :2] @ AXES[:, :2].T, rtol=0, atol=0.02)
    left = torch.eye(4, dtype=DOUBLE) - through
    error = float((left @ AXES @ torch.diag(EIGENVALUES) @ AXES.T @ left.T).trace()) / 4
    assert 0.3 / 4 <= error < 0.3 / 4 + 1e-3
    batch = gauss.batch(data(40_000, 10**6))
    found = bridge.loss(batch, Draws.step(7, "loss", 0, batch.index))
    assert gauss.within(found.total.detach(), error)
    assert set(found.terms) == {"reconstruction"}


EXACT = 1e-9
FIRST_STEP_LEFT = 4 * 0.0032
"""Four standard deviations of the noise at t = 1e-4, of which the published sampler's last Euler step leaves half."""
SOLVERS_TO_X0 = [
    (Denoise(), EXACT),
    (Euler(steps=7), EXACT),
    (Heun(steps=7), EXACT),
    (Posterior(steps=7), EXACT),
    (Posterior(steps=7, eta=1.0, start=Boot()), EXACT),
    (DPMpp(steps=7), EXACT),
    (DPMpp(steps=7, eta=1.0), EXACT),
    (UniPC(steps=7), EXACT),
    (EulerMaruyama(steps=7), 1e-3),
    (Hybrid(steps=7), FIRST_STEP_LEFT),
]


@pytest.mark.parametrize(("solver", "error"), SOLVERS_TO_X0)
def test_solvers_end_in_the_decoded_code(gauss, solver, error):
    """Whatever the noise, for the denoiser knows x0; Euler steps in time leave what the last is too coarse for."""
    bridge, draws = plain(gauss), Draws.seeds(range(5))
    z = data(5, 8)[:, :2]
    with torch.no_grad():
        state = bridge.start(Batch(torch.arange(5), cond=Condition({"z": z})), draws)
        found = solver.run(bridge, state, draws).x
        elsewhere = replace(state, x=state.x + 3)
        again = solver.run(bridge, elsewhere, draws).x
    assert_close(state.x, z @ bridge.decoder.weight.detach().T)
    for x in (found, again):
        assert_close(x, state.x, rtol=0, atol=error)


def experiment(bridge, solver="dpmpp"):
    points = data(40, 6)
    return Experiment(None, ArraySource(points), Identity(bridge.ends.spec), bridge.eval(), SOLVERS[solver](steps=6))


def test_faithful_and_perceptual_are_one(gauss):
    """There is no law of x0 given z to draw from: both decode."""
    there = experiment(plain(gauss))
    images = data(8, 7)
    faithful, perceptual = (reconstruct(there, images, mode=mode) for mode in ("faithful", "perceptual"))
    decoded = images @ there.bridge.encoder.weight.detach().T @ there.bridge.decoder.weight.detach().T
    assert_close(faithful.bridge, decoded, rtol=1e-12, atol=1e-12)
    assert_close(perceptual.bridge, decoded, rtol=1e-9, atol=1e-9)
    assert_close(reconstruct(there, images, mode="perceptual", seed=9).bridge, decoded, rtol=1e-9, atol=1e-9)


def test_what_stands_for_data_is_the_mean_of_its_code(gauss):
    bridge, x0 = optimal(gauss), data(6, 2)
    state = bridge.start(Batch(torch.arange(6), x0), Draws.seeds(range(6)))
    assert_close(state.cond["z"], x0 @ POSTERIOR.T, rtol=1e-9, atol=1e-9)
    assert_close(state.x, x0 @ POSTERIOR.T @ WEIGHT.T, rtol=1e-9, atol=1e-9)


def test_refusals(gauss):
    with pytest.raises(ArgumentError, match="encodes_images"):
        VAE(Ends(SPEC), encoder=gauss.LinearEncoder, decoder=gauss.LinearDecoder, encodes_images=True)
    with pytest.raises(CapabilityError, match="no prior over z has been fitted"):
        plain(gauss).start(Batch(torch.arange(2)), Draws.seeds(range(2)))
    assert BRIDGES["vae"] is VAE
