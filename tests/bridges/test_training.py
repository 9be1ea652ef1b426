"""Training by the bridges' own losses reaches the laws and the minima that are known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.bridges.score import Score
from latentsb.channels import Clamped
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder, Network
from latentsb.process.preconditioning import PRECONDITIONINGS, Official
from latentsb.process.times import LogUniformSigma
from latentsb.randomness import Draws
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.grid import LogUniform
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Batch, Condition, Spec, expand_as

DOUBLE = torch.float64
ENDS = Ends(Spec((2,), DOUBLE))


def train(bridge, data, steps, rows, lr):
    """Adam with the learning rate falling to zero, a fresh batch per step."""
    optimiser = torch.optim.Adam([p for p in bridge.parameters() if p.requires_grad], lr=lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        seen = step * rows
        batch = data(rows, seen)
        loss = bridge.loss(batch, Draws.step(0, "loss", seen, batch.index)).total.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return bridge


def gaussian_flow(gauss):
    network = gauss.LinearNetwork
    knots = torch.linspace(0, 1, 17, dtype=DOUBLE)
    trained = Flow(ENDS, network=lambda x, cond: network(x, cond, knots=knots))
    return trained, lambda: Flow(ENDS, network=gauss.FlowOptimum)


def gaussian_score(gauss):
    knots = torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 21, dtype=DOUBLE)
    recipe = {"times": LogUniformSigma()}
    trained = Score(ENDS, network=lambda x, cond: gauss.LinearNetwork(x, cond, knots=knots), **recipe)
    return trained, lambda: Score(ENDS, network=gauss.ScoreOptimum)


def gaussian_dbae(gauss):
    knots = torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 21, dtype=DOUBLE)
    trained = DBAE(
        ENDS,
        network=lambda x, cond: gauss.LinearNetwork(x, cond, knots=knots, reads=("z", "x1")),
        encoder=gauss.LinearEncoder,
        decoder=gauss.LinearDecoder,
        z_dim=1,
        times=LogUniformSigma(),
    )

    def exact():
        code = trained.encoder.weight.detach()

        class Optimum(Network):
            def forward(self, x, t, cond):
                sigma = (4 * t).exp()[..., None]
                y = x * (1 + sigma**2).sqrt()
                mean, cov = gauss.of_code(cond["z"], code)
                best = gauss.Posterior(mean, cov, torch.ones_like(t), sigma[..., 0] ** 2).x0(y)
                return (best - y / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma

        return DBAE(
            ENDS,
            network=Optimum,
            z_dim=1,
            encoder=lambda x, dim: gauss.LinearEncoder(x, dim, code),
            decoder=lambda dim, out: gauss.LinearDecoder(dim, out, trained.decoder.weight.detach()),
        )

    return trained, exact


def reached(gauss, bridge, solver):
    """Mean and covariance of what a deterministic solver makes of an affine bridge, without sampling: the map of the
    noise (and of the code, whose law is normal too) is read off its values at zero and at the unit vectors."""
    first = solver.grid.times(bridge, solver.steps)[0]
    noise = torch.cat([torch.zeros(1, 2, dtype=DOUBLE), gauss.EYE, torch.zeros(1, 2, dtype=DOUBLE)])
    cond, spread = Condition(), torch.zeros(1, 1, dtype=DOUBLE)
    if isinstance(bridge, DBAE):
        code = bridge.encoder.weight.detach()
        spread = code @ gauss.COV @ code.T
        z = (code @ gauss.MEAN).expand(4, 1) + torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=DOUBLE)
        cond = bridge.endpoint(Condition({"z": z}))
    marginal = bridge.marginal(first)
    state = bridge.start(Batch(torch.arange(4), cond=cond), Draws.seeds(range(4)))
    state = replace(state, x=marginal.sample(torch.zeros_like(noise), cond.get("x1"), noise))
    x = replace(solver, start=Endpoint()).run(bridge, state, Draws.seeds(range(4))).x
    by_noise, by_code = (x[1:3] - x[0]).T, (x[3:] - x[0]).T
    return x[0], by_noise @ by_noise.T + by_code @ spread @ by_code.T


@pytest.mark.parametrize("make", [gaussian_flow, gaussian_score, gaussian_dbae])
def test_trained_bridge_samples_a_correlated_gaussian(gauss, make):
    torch.manual_seed(0)
    bridge, exact = make(gauss)
    bridge = train(
        bridge, lambda n, seen: gauss.batch(gauss.data(n, seed=seen + 1), seen), steps=200, rows=1024, lr=0.05
    )
    if isinstance(bridge, DBAE):
        bridge.fit(lambda: [gauss.batch(gauss.data(20_000, seed=k), k) for k in range(3)])
    n, solver = 2000, DPMpp(steps=24, grid=LogUniform(sigma_max=60.0))
    draws = Draws.seeds(range(n))
    with torch.no_grad():
        start = bridge.start(Batch(torch.arange(n)), draws)
        x = solver.run(bridge, start, draws).x
        mean, cov = reached(gauss, exact(), solver)
    bias = ((mean - gauss.MEAN).abs(), (cov - gauss.COV).abs())
    assert float(bias[1].max()) < 0.05
    diagonal = gauss.COV.diagonal()
    errors = (diagonal / n).sqrt(), ((gauss.COV**2 + torch.outer(diagonal, diagonal)) / n).sqrt()
    assert bool(((x.mean(0) - gauss.MEAN).abs() <= 3 * errors[0] + bias[0]).all()), x.mean(0)
    assert bool(((x.T.cov() - gauss.COV).abs() <= 3 * errors[1] + bias[1]).all()), x.T.cov()


VARIANCE, SLOPE, NOISE = 0.25, 1.3, 0.4


class Code(Encoder):
    """Inverts the soft clamps and the floor, so that the stochastic code is z = 1.3 x0 + 0.4 ε exactly."""

    def forward(self, x):
        log_sigma = 5 * math.atanh(math.log(NOISE - 0.01) / 5)
        return torch.cat([5 * torch.atanh(SLOPE * x / 5), torch.full_like(x, log_sigma)], 1)


class Scaled(Decoder):
    """x1 = d z."""

    d = 0.0

    def forward(self, z):
        return self.d * z


def scalar(n, seen):
    generator = torch.Generator().manual_seed(seen + 11)
    return Batch(torch.arange(n), 0.5 * torch.randn(n, 1, dtype=DOUBLE, generator=generator), seen=seen)


@pytest.mark.parametrize("d", [0.8, 0.0, -2.0])
def test_linear_gaussian_autoencoder_learns_its_optimum_with_any_endpoint_decoder(gauss, d):
    """The smallest loss is 0.459759 for every d: the endpoint is a change of coordinates."""
    knots = torch.cat([torch.logspace(-4, -1.2, 9, dtype=DOUBLE), torch.linspace(0.1, 1, 15, dtype=DOUBLE)])
    bridge = DBAE(
        Ends(Spec((1,), DOUBLE)),
        network=lambda x, cond: gauss.LinearNetwork(x, cond, knots=250 * knots.log(), reads=("z",)),
        encoder=Code,
        decoder=lambda dim, out: type("Dec", (Scaled,), {"d": d})(dim, out),
        z_dim=1,
        channel=Clamped(),
        preconditioning=Official(sigma_data=0.5, sigma_end=0.5),
    )
    train(bridge, scalar, steps=200, rows=1024, lr=0.08)
    batch = scalar(40_000, 10**9)
    with torch.no_grad():
        draws = Draws.step(9, "loss", 0, batch.index)
        loss = bridge.loss(batch, draws).total
        t, z = bridge.times.sample(bridge, draws), bridge.encode(batch.data, draws)["z"]
        marginal = bridge.marginal(t)
        x = marginal.sample(batch.data, d * z, draws.normal("noise", z))
        best = SLOPE * VARIANCE / (SLOPE**2 * VARIANCE + NOISE**2) * z
        p = VARIANCE - (SLOPE * VARIANCE) ** 2 / (SLOPE**2 * VARIANCE + NOISE**2)
        gain = expand_as(marginal.b * p / (marginal.b**2 * p + marginal.c), x)
        optimum = best + gain * (x - expand_as(marginal.a, x) * d * z - expand_as(marginal.b, x) * best)
        weight = bridge.preconditioning.coefficients(marginal, t).weight
        floor = weight * (optimum - batch.data).square().squeeze(1)
    standard_error = float(loss.std() / math.sqrt(len(loss)))
    assert gauss.within(floor, 0.459759)
    assert gauss.within(loss, 0.459759), float(loss.mean())
    # The same draws on both sides: what training has left above the optimum is below the Monte-Carlo error.
    assert float((loss - floor).mean()) < standard_error


class Only(Network):
    """Sees one of its inputs and nothing else."""

    def __init__(self, x, cond=None, *, name):
        super().__init__(x, cond)
        self.name = name
        dim = x.numel if name in ("x", "x1") else cond[name].numel
        self.layer = nn.Linear(dim, x.numel, dtype=DOUBLE)

    def forward(self, x, t, cond):
        return self.layer(x if self.name == "x" else cond[self.name])


@pytest.mark.parametrize(
    ("route", "preconditioning", "reaches"),
    [
        ("x", "official", ("encoder", "decoder")),
        ("x1", "official", ("encoder", "decoder")),
        ("z", "official", ("encoder",)),
        ("x", "shifted", ()),
        ("x1", "shifted", ("encoder", "decoder")),
        ("z", "shifted", ("encoder",)),
    ],
)
def test_gradient_reaches_encoder_and_decoder_by_each_route(gauss, route, preconditioning, reaches):
    """By the state (which subtracting a x1 closes), by the endpoint beside it, and by the code, one at a time."""
    torch.manual_seed(1)
    bridge = DBAE(
        ENDS,
        network=lambda x, cond: Only(x, cond, name=route),
        encoder=gauss.LinearEncoder,
        decoder=gauss.LinearDecoder,
        z_dim=1,
        preconditioning=PRECONDITIONINGS[preconditioning](),
    )
    # c_skip x_t is a route of its own in the official form; without it only the network's input is left.
    batch = gauss.batch(gauss.data(256))
    draws = Draws.step(0, "loss", 0, batch.index)
    if preconditioning == "official":
        cond = bridge.endpoint(bridge.encode(batch.data))
        t = bridge.times.sample(bridge, draws)
        x = bridge.marginal(t).sample(batch.data, cond["x1"], draws.normal("noise", batch.data))
        scales = bridge.preconditioning.coefficients(bridge.marginal(t), t)
        bridge.network(scales.enter(x, cond["x1"]), scales.noise, cond).square().sum().backward()
    else:
        bridge.loss(batch, draws).total.sum().backward()
    size = {
        name: 0.0 if part.weight.grad is None else float(part.weight.grad.abs().max())
        for name, part in (("encoder", bridge.encoder), ("decoder", bridge.decoder))
    }
    for name, value in size.items():
        assert (value > 1e-3) if name in reaches else (value < 1e-9), size
