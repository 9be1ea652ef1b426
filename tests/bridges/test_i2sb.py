"""I2SB as a reference of `ddbm`: its schedule, marginals, posterior, sampler and loss, each from its own formulas."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from latentsb.bridge import State
from latentsb.bridges.ddbm import DDBM
from latentsb.bridges.flow import Flow
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.coupling import Paired
from latentsb.process.references import Varying
from latentsb.process.times import Weight
from latentsb.randomness import Draws
from latentsb.solvers.exponential import Posterior
from latentsb.solvers.grid import Uniform
from latentsb.solvers.ode import Euler
from latentsb.solvers.start import Endpoint
from latentsb.tensors import Batch, Condition, Spec, expand_as

DOUBLE = torch.float64
ENDS = Ends(Spec((3,), DOUBLE), two_sided=True)
MIDDLE = {0.3: 0.1866, 1.0: 0.4331}
"""`beta_middle` of the reference for the two `beta_max` of the published scripts."""


def published(beta_max, steps=1000):
    """The discrete schedule: the square of linear in the root from 1e-4 to beta_max/1000, its first half mirrored."""
    half = torch.linspace(1e-4**0.5, (beta_max / steps) ** 0.5, steps, dtype=DOUBLE)[: steps // 2].square()
    return torch.cat([half, half.flip(0)])


def spent(reference, t):
    """`s_t = ∫_0^t β` and `r_t = ∫_t^1 β` by Simpson's rule on g², not by the clock."""

    def integral(low, high):
        points = torch.linspace(0, 1, 2001, dtype=DOUBLE) * (high - low) + low
        weight = torch.full((2001,), 2.0, dtype=DOUBLE)
        weight[1::2], weight[0], weight[-1] = 4.0, 1.0, 1.0
        return float((reference.g2(points.clamp(1e-12, 1 - 1e-12)) * weight).sum() * (high - low) / 6000)

    return integral(0.0, t), integral(t, 1.0)


class Guess(Network):
    """Some nonlinear function of state, time and x1."""

    def forward(self, x, t, cond):
        out = torch.sin(x.flip(1)) + t[..., None]
        return out + 0.3 * cond["x1"] if "x1" in cond else out


def partners(n):
    draws = Draws.step(0, "pairs", 0, range(n))
    x0 = draws.normal("x0", torch.empty(n, 3, dtype=DOUBLE))
    return x0, x0.roll(1, 1) + 0.5 * draws.normal("x1", x0)


@pytest.mark.parametrize(("beta_max", "total"), [(0.3, 0.141), (1.0, 0.247)])
def test_the_reference_is_the_published_schedule(beta_max, total):
    reference, beta = Varying(beta_middle=MIDDLE[beta_max]), published(beta_max)
    assert round(float(beta.sum()), 3) == round(reference.epsilon, 3) == total
    # Step n stands for the time (n + 1/2)/1000; half a step is what the sum and the integral differ by.
    times = (torch.arange(1000, dtype=DOUBLE) + 0.5) / 1000
    torch.testing.assert_close(reference.g2(times), 1000 * beta, rtol=2.5e-3, atol=0)
    between = beta.cumsum(0) - beta / 2
    torch.testing.assert_close(reference.total * reference.clock(times), between, rtol=0, atol=2e-4)
    assert beta_max != 0.3 or round(reference.total**0.5, 4) == 0.3756


@pytest.mark.parametrize("t", [0.05, 0.4, 0.5, 0.7, 0.999])
def test_marginals_are_the_published_ones(t):
    reference = Varying(beta_middle=MIDDLE[1.0])
    s, r = spent(reference, t)
    law = DDBM(ENDS, network=Guess, reference=reference).marginal(torch.tensor(t, dtype=DOUBLE))
    expected = torch.tensor([s / (s + r), r / (s + r), s * r / (s + r)], dtype=DOUBLE)
    torch.testing.assert_close(torch.stack([law.a, law.b, law.c]), expected, rtol=1e-6, atol=1e-9)


def test_a_trajectory_starts_at_x1_itself():
    """The published last index still has `r > 0`, a hair off x1; here t = 1 is x1 and the clock is exactly one."""
    beta = published(0.3)
    s, r = beta.sum(), beta[-1]  # both cumulative sums hold the last step
    assert float(r / (s + r)) == pytest.approx(7.1e-4, rel=0.01)
    assert float((s * r / (s + r)).sqrt()) == pytest.approx(0.01, rel=0.01)
    bridge = DDBM(ENDS, network=Guess, reference=Varying())
    law = bridge.marginal(torch.ones((), dtype=DOUBLE))
    assert (float(law.a), float(law.b), float(law.c)) == (1, 0, 0)
    _, x1 = partners(4)
    state = bridge.start(Batch(torch.arange(4), x1=x1), Draws.seeds(range(4)))
    assert torch.equal(state.x, x1)


@pytest.mark.parametrize("steps", [2, 7])
def test_posterior_steps_are_the_ancestral_sampler(steps):
    """`x_prev ~ N((δ² x̂0 + s_prev x)/s, s_prev δ²/s)` with `δ² = s − s_prev`, on any grid, no noise at the end."""
    reference, n = Varying(), 16
    bridge = DDBM(ENDS, network=Guess, reference=reference)
    solver = Posterior(steps=steps, eta=1.0, grid=Uniform(), start=Endpoint())
    _, x1 = partners(n)
    cond, draws = Condition({"x1": x1}), Draws.step(1, "solve", 0, range(n))
    made = solver.run(bridge, State(x1, torch.ones((), dtype=DOUBLE), cond), draws).x
    x = x1
    for k, (t, s) in enumerate(pairwise(solver.grid.times(bridge, steps))):
        late, early = spent(reference, float(t))[0], spent(reference, float(s))[0]
        x0 = bridge.denoise(x, t, cond)
        delta = late - early
        noise = draws.fork(f"step {k}").normal("noise", x) if float(s) > 0 else torch.zeros_like(x)
        x = (delta * x0 + early * x) / late + (early * delta / late) ** 0.5 * noise
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class OverSpent(Weight):
    """`1/s_t`: the error of x0 in units of the noise since x0."""

    def of(self, t, bridge, coefficients):
        return 1 / bridge.reference.rho2(t)


def test_the_loss_is_the_published_one_up_to_its_weight():
    """`|net − (x_t − x0)/√s|²` with `x̂0 = x_t − √s net` is `|D − x0|²/s`."""
    reference, n = Varying(), 64
    x0, x1 = partners(n)
    bridge = DDBM(ENDS, network=Guess, reference=reference, weight=OverSpent(), dropout=0.0)
    draws = Draws.step(2, "loss", 0, range(n))
    loss = bridge.loss(Batch(torch.arange(n), x0, x1), draws).total
    t = bridge.times.sample(bridge, draws)
    s, r = (torch.tensor(v, dtype=DOUBLE)[:, None] for v in zip(*(spent(reference, float(u)) for u in t), strict=True))
    x = (r * x0 + s * x1) / (s + r) + (s * r / (s + r)).sqrt() * draws.normal("noise", x0)
    net = (x - bridge.denoise(x, t, Condition({"x1": x1}))) / s.sqrt()
    torch.testing.assert_close(loss, (net - (x - x0) / s.sqrt()).square().mean(1), rtol=1e-3, atol=1e-4)


def test_without_noise_it_is_the_flow_between_partners():
    """The ODE variant trains and samples on the means; on its clock each step is Euler's of `flow` with `paired`."""
    n, steps = 16, 5
    flow = Flow(ENDS, network=Guess, coupling=Paired())
    reference, (_, x1) = Varying(beta_middle=MIDDLE[1.0]), partners(n)
    clock = reference.progress(torch.linspace(1, 0, steps + 1, dtype=DOUBLE))
    x, y = x1, x1
    for late, early in pairwise(clock):
        x0 = x - expand_as(late, x) * flow.velocity(x, late, Condition())
        x = ((late - early) * x0 + early * x) / late
        y = y - (late - early) * flow.velocity(y, late, Condition())
    torch.testing.assert_close(x, y)
    even = Euler(steps=steps).run(flow, State(x1, torch.ones((), dtype=DOUBLE), Condition()), Draws.seeds(range(n))).x
    z = x1
    for late, early in pairwise(torch.linspace(1, 0, steps + 1, dtype=DOUBLE)):
        z = ((late - early) * (z - late * flow.velocity(z, late, Condition())) + early * z) / late
    torch.testing.assert_close(even, z)
