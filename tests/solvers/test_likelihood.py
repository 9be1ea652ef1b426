"""Likelihoods by the probability-flow ODE against closed-form densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from latentsb.bridge import DenoisingBridge
from latentsb.errors import CapabilityError
from latentsb.laws import Ends, Gaussian
from latentsb.likelihood import Likelihood, bits_per_dim
from latentsb.process.marginal import Marginal
from latentsb.process.references import VE, VP, Brownian
from latentsb.randomness import Draws
from latentsb.tensors import Condition, Spec

MEAN = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
ROOT = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]], dtype=torch.float64)
COV = ROOT @ ROOT.T
ROWS = 6
TIGHT = Likelihood(rtol=1e-8, atol=1e-8)


def points(n=ROWS):
    rng = torch.Generator().manual_seed(3)
    return MEAN + 1.5 * torch.randn(n, 3, generator=rng, dtype=torch.float64) @ ROOT.T


def noise_bridge(oracles, reference, t_min=1e-6):
    bridge = oracles.gaussian(reference, MEAN, COV, pinned=False)
    bridge.t_min = t_min
    return bridge


def flow_bridge(oracles):
    """The exact flow from noise, as a denoising bridge: `N((1 − t) x0, t²)`."""

    class FromNoise(oracles.Exact):
        def marginal(self, t):
            t = t.double()
            return Marginal(torch.zeros_like(t), 1 - t, t.square())

        def velocity(self, x, t, cond):
            return oracles.Straight._velocity(self.straight, x, t, cond)

    made = FromNoise(Brownian(sigma=0.0), Spec((3,), torch.float64), lambda x, t, c: x, False)
    made.straight, made.t_min = oracles.Straight(MEAN, COV), 1e-6
    return made


def exact(bridge, x):
    """Log-density of the data with the noise of t_min."""
    sigma = float(bridge.marginal(torch.tensor(bridge.t_min, dtype=torch.float64)).sigma_eff)
    eye = torch.eye(3, dtype=torch.float64)
    return MultivariateNormal(MEAN, COV + sigma**2 * eye).log_prob(x)


def terminal_bias(bridge, x):
    """Exact difference of `ln p_1` where the trajectory of x ends: samples start from N(0, sigma²)."""
    ends = torch.tensor([bridge.t_min, bridge.t_max], dtype=torch.float64)
    low, sigma = (float(s) for s in bridge.marginal(ends).sigma_eff)
    eye = torch.eye(3, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(COV)
    end = MEAN + ((x - MEAN) @ vectors) * ((values + sigma**2) / (values + low**2)).sqrt() @ vectors.T
    wide = MultivariateNormal(MEAN, COV + sigma**2 * eye).log_prob(end)
    return MultivariateNormal(torch.zeros(3).double(), sigma**2 * eye).log_prob(end) - wide


# At a late t_min the scale of the signal is no longer one, and the density is that of data with much noise.
@pytest.mark.parametrize(
    ("reference", "t_min"), [(VE(sigma_max=20.0), 1e-6), (VP(beta_d=19.9), 1e-6), (VP(beta_d=19.9), 0.1)]
)
def test_gaussian_from_noise(oracles, reference, t_min):
    bridge, x = noise_bridge(oracles, reference, t_min), points()
    found = TIGHT.log_prob(bridge, x, Condition(), Draws.seeds(range(ROWS)))
    assert found.exact
    assert found.calls > 10
    bias = terminal_bias(bridge, x)
    assert bias.abs().max() > 1e-3
    torch.testing.assert_close(found.nats, exact(bridge, x) + bias, rtol=0, atol=3e-5)


@pytest.mark.parametrize("t_min", [1e-6, 0.1])
def test_gaussian_by_the_flow_from_noise(oracles, t_min):
    bridge, x = flow_bridge(oracles), points()
    bridge.t_min = t_min
    assert isinstance(bridge, DenoisingBridge)
    found = TIGHT.log_prob(bridge, x, Condition(), Draws.seeds(range(ROWS)))
    torch.testing.assert_close(found.nats, exact(bridge, x), rtol=0, atol=3e-5)


def test_gaussian_by_a_plain_flow(oracles):
    """A bridge that does not denoise takes the density of its law of x1."""
    bridge, x = oracles.Straight(MEAN, COV), points()
    bridge.ends = Ends(bridge.ends.spec, x1=Gaussian(bridge.ends.spec))
    found = TIGHT.log_prob(bridge, x, Condition(), Draws.seeds(range(ROWS)))
    expected = MultivariateNormal(MEAN, COV).log_prob(x)
    torch.testing.assert_close(found.nats, expected, rtol=0, atol=1e-5)


def test_mixture_in_two_dimensions(oracles):
    centres = torch.tensor([[1.0, 0.5], [-0.8, -0.2], [0.1, -1.1]], dtype=torch.float64)
    spread = torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def formula(y, sigma, cond):
        variance = spread.square() + sigma.square()
        gaps = y[:, None] - centres
        share = torch.softmax(weights.log() - gaps.square().sum(2) / (2 * variance) - variance.log(), dim=1)
        return (share[:, :, None] * (centres + (spread.square() / variance)[:, None] * gaps)).sum(1)

    bridge = oracles.Exact(VE(sigma_max=300.0), Spec((2,), torch.float64), formula, pinned=False)
    bridge.t_min = 1e-6
    low = float(bridge.marginal(torch.tensor(1e-6, dtype=torch.float64)).sigma_eff)
    scales = (spread.square() + low**2).sqrt()
    eyes = scales[:, None, None] * torch.eye(2, dtype=torch.float64)
    law = MixtureSameFamily(Categorical(weights), MultivariateNormal(centres, scale_tril=eyes))
    x = torch.tensor([[1.1, 0.4], [0.0, 0.0], [-0.7, -0.9], [0.2, -1.2], [1.5, 1.5]], dtype=torch.float64)
    found = TIGHT.log_prob(bridge, x, Condition(), Draws.seeds(range(5)))
    # At sigma 300 the law of x1 lacks the data's mean: |m| |y| / sigma² is 2e-3 at three sigma.
    torch.testing.assert_close(found.nats, law.log_prob(x), rtol=0, atol=6e-3)


def test_probes_are_unbiased(oracles):
    """Many rows at one point: the mean over probes is the exact value, to its standard error."""
    bridge = noise_bridge(oracles, VP(beta_d=19.9))
    x = points(1).expand(400, 3).contiguous()
    sharp = Likelihood(exact_up_to=0, rtol=1e-6, atol=1e-6)
    one = sharp.log_prob(bridge, x, Condition(), Draws.seeds(range(400)))
    assert not one.exact
    truth = float(TIGHT.log_prob(bridge, x[:1], Condition(), Draws.seeds([0])).nats)
    deviation = one.nats - truth
    error = float(deviation.std()) / math.sqrt(400)
    assert error > 1e-3
    assert abs(float(deviation.mean())) < 4 * error
    four = Likelihood(exact_up_to=0, probes=4, rtol=1e-6, atol=1e-6)
    spread = four.log_prob(bridge, x, Condition(), Draws.seeds(range(400))).nats.std()
    # A ratio of two standard deviations of 400 has a standard error of 5 %.
    assert float(one.nats.std() / spread) == pytest.approx(2, rel=0.2)


def test_signs_belong_to_the_row(oracles):
    bridge, x = noise_bridge(oracles, VP(beta_d=19.9)), points(2)
    loose = Likelihood(exact_up_to=0)
    both = loose.log_prob(bridge, x, Condition(), Draws.seeds([7, 8])).nats
    alone = loose.log_prob(bridge, x[1:], Condition(), Draws.seeds([8])).nats
    assert float(both[1]) == pytest.approx(float(alone), abs=1e-3)
    other = loose.log_prob(bridge, x[1:], Condition(), Draws.seeds([10])).nats
    assert abs(float(alone - other)) > 1e-2 or float(alone) == pytest.approx(float(other))


def test_bits():
    """A uniform law on 256 levels has 8 bits in every dimension, whatever the scale of the latents."""
    step = 2 / 255 / 0.37
    nats = torch.tensor([-5 * math.log(256 * step)], dtype=torch.float64)
    assert float(bits_per_dim(nats, 5, 5 * math.log(step))) == pytest.approx(8, abs=1e-12)


def test_bridges_without_a_density_say_so(oracles):
    pinned = oracles.gaussian(VP(), MEAN, COV, pinned=True)
    with pytest.raises(CapabilityError, match="ends in an x1 that belongs to each x0"):
        Likelihood().log_prob(pinned, points(), Condition(), Draws.seeds(range(ROWS)))
    with pytest.raises(CapabilityError, match="knows that law by samples only"):
        Likelihood().log_prob(oracles.Straight(MEAN, COV), points(), Condition(), Draws.seeds(range(ROWS)))
