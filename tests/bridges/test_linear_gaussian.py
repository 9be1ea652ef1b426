"""The linear-Gaussian autoencoder, whose optimum, information and initial loss are known in closed form."""

import math

import pytest
import torch

from latentsb.bridges.dbae import DBAE
from latentsb.channels import Clamped
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.process.preconditioning import Official, Shifted
from latentsb.process.references import VP
from latentsb.process.times import Likelihood, Uniform
from latentsb.randomness import Draws
from latentsb.tensors import Spec

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE))


def linear_gaussian(preconditioning, d, times=Uniform(), network=None, q=0.4, e=1.3, weight=None):
    """One dimension: x0 ~ N(0, 1/4), z = e x0 + q ε through the stochastic code, x1 = d z."""

    class Enc(Encoder):
        def forward(self, x):
            # The inverse of the soft clamps and the floor, so that the code is exactly e x0 + q ε.
            log_sigma = 5 * math.atanh(math.log(q - 0.01) / 5)
            return torch.cat([5 * torch.atanh(e * x / 5), torch.full_like(x, log_sigma)], 1)

    class Dec(Decoder):
        def forward(self, z):
            return d * z

    recipe = {} if weight is None else {"weight": weight}
    return DBAE(
        Ends(Spec((1,), DOUBLE)),
        network=network,
        encoder=Enc,
        decoder=Dec,
        z_dim=1,
        channel=Clamped(),
        times=times,
        preconditioning=preconditioning,
        **recipe,
    )


E2S2, Q2, S2 = 1.3**2 * 0.25, 0.16, 0.25
P = S2 - (1.3 * S2) ** 2 / (E2S2 + Q2)


class ScalarOptimum(Network):
    """F of the official preconditioning (sd = se = 1/2) for the linear-Gaussian autoencoder."""

    def forward(self, x, t, cond):
        t = (t / 250).exp()[:, None]
        m = VP().pinned(t)
        variance = m.a**2 / 4 + m.b**2 / 4 + m.c
        state = x * variance.sqrt()
        mean = 1.3 * S2 / (E2S2 + Q2) * cond["z"]
        best = mean + m.b * P / (m.b**2 * P + m.c) * (state - m.a * cond["x1"] - m.b * mean)
        skip, out = m.b / 4 / variance, ((m.a**2 / 16 + m.c / 4) / variance).sqrt()
        return (best - skip * state) / out


def scalar_data(n, seed=0):
    return 0.5 * torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [0.8, 0.0, -2.0])
def test_linear_gaussian_autoencoder_has_the_published_optimum(gauss, d):
    assert pytest.approx(0.0686695279, abs=1e-10) == P
    bridge = linear_gaussian(Official(sigma_data=0.5, sigma_end=0.5), d, network=ScalarOptimum)
    batch = gauss.batch(scalar_data(60_000))
    loss = bridge.loss(batch, Draws.step(1, "loss", 0, batch.index)).total
    assert gauss.within(loss, 0.459759), float(loss.mean())


def test_likelihood_weight_measures_information(gauss):
    """I-MMSE: half the weighted error from t0 = 1e-3 on is ln(1 + p SNR_{t0})/2 = 3.2616546453, whatever x1 is."""

    def marked(t):
        m = VP().pinned(t)
        scales = Official().coefficients(m, t)
        return Likelihood().of(t, bridge, scales) * P * m.c / (m.b**2 * P + m.c)

    bridge = linear_gaussian(Official(), 0.8, network=ScalarOptimum, weight=Likelihood())
    # In u = ln t the integrand is smooth over three decades.
    half = gauss.integral(lambda u: marked(u.exp()) * u.exp(), math.log(1e-3), math.log(1 - 1e-12)) / 2
    assert half == pytest.approx(3.2616546453, abs=1e-8)
    bridge.t_min, bridge.t_max = 1e-3, 1.0
    batch = gauss.batch(scalar_data(60_000))
    loss = bridge.loss(batch, Draws.step(2, "loss", 0, batch.index)).total
    assert gauss.within(loss * (1 - 1e-3) / 2, 3.2616546453)


class Silent(Network):
    """A network whose output layer is still zero."""

    def forward(self, x, t, cond):
        return torch.zeros_like(x)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.8, 0.999])
def test_initial_loss_is_one(gauss, t):
    """Var x0 = sd², elementwise uncorrelated with x1 = (x0₂, −x0₁) of Var se²; and for any x1 when it is subtracted."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE)
    for preconditioning, endpoint in ((Official(), turn), (Shifted(sigma_data=0.5), 3 * turn + 7 * gauss.EYE)):
        bridge = DBAE(
            ENDS,
            network=Silent,
            encoder=gauss.LinearEncoder,
            z_dim=2,
            times=gauss.At(t=t),
            decoder=lambda dim, out, w=endpoint: gauss.LinearDecoder(dim, out, w),
            preconditioning=preconditioning,
        )
        batch = gauss.batch(0.5 * torch.randn(20_000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)))
        assert gauss.within(bridge.loss(batch, Draws.step(3, "loss", 0, batch.index)).total.detach(), 1.0)


@pytest.mark.parametrize(
    ("t", "expected"), [(0.001, 0.99986), (0.1, 0.9739), (0.3, 0.8791), (0.8, 0.7737), (0.999, 0.9971)]
)
def test_ignored_covariance_shows_in_the_initial_loss(gauss, t, expected):
    """x1 = 0.8 x0 + 0.6 x0', so Cov(x0, x1) = 0.2, where the formula assumes none."""
    mix = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=DOUBLE)
    bridge = DBAE(
        ENDS,
        network=Silent,
        encoder=gauss.LinearEncoder,
        z_dim=2,
        times=gauss.At(t=t),
        decoder=lambda dim, out: gauss.LinearDecoder(dim, out, mix),
        preconditioning=Official(),
    )
    batch = gauss.batch(0.5 * torch.randn(20_000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(4)))
    assert gauss.within(bridge.loss(batch, Draws.step(4, "loss", 0, batch.index)).total.detach(), expected)
