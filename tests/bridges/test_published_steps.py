"""Published steps of the bridge between x0 and a decoded x1, where the denoiser is a formula in (y, sigma_eff)."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.optimize import brentq
from torch.distributions import Normal
from torch.testing import assert_close

from latentsb.bridge import DenoisingBridge, State
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.references import VE, VP
from latentsb.randomness import Draws
from latentsb.solvers.base import Grid
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior
from latentsb.solvers.grid import KarrasTime, LogUniform
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.start import Boot, Endpoint
from latentsb.tensors import Condition, Spec

DOUBLE = torch.float64
ONE = torch.ones((), dtype=DOUBLE)


def f64(value):
    return torch.tensor(value, dtype=DOUBLE)


class Known(DenoisingBridge):
    """A pinned bridge whose denoiser is a formula in (y, sigma_eff)."""

    class Formula(Network):
        def __init__(self, spec, formula):
            super().__init__(spec)
            self.formula = formula

        def forward(self, y, sigma, cond):
            return self.formula(y, sigma)

    def __init__(self, formula, reference=VP(), t_min=1e-9):
        super().__init__()
        spec = Spec((1,), DOUBLE)
        self.ends, self.reference, self.has_x1, self.t_min = Ends(spec), reference, True, t_min
        self.network = self.Formula(spec, formula)

    def marginal(self, t):
        return self.reference.pinned(t)

    def denoise(self, x, t, cond):
        at = self.marginal(t)
        if bool(at.b == 0):
            return self.network(torch.zeros_like(x), f64(1e100), cond)
        return self.network((x - at.a * cond["x1"]) / at.b, at.sigma_eff, cond)

    def start(self, batch, draws, towards="x0"):
        raise NotImplementedError

    def loss(self, batch, draws):
        raise NotImplementedError


class Given:
    """Draws that return one noise."""

    def __init__(self, noise):
        self.noise, self.size = noise, len(noise)

    def fork(self, name):
        return self

    def normal(self, name, like):
        return self.noise


@dataclass(frozen=True, kw_only=True)
class Listed(Grid):
    """Given times."""

    at: tuple[float, ...]

    def times(self, bridge, steps, towards="x0"):
        return f64(self.at)


@pytest.mark.parametrize("reference", [VP(), VE(sigma_max=5.0)])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_posterior_steps_keep_the_marginals(reference, eta):
    """With x0 known, a step from the law at s is in the law at t: mean a x1 + b x0, and k² c_s + w² = c_t."""
    x0, x1, s, t = 0.7, -1.3, 0.8, 0.3
    bridge = Known(lambda y, sigma: torch.full_like(y, x0), reference)
    early, late = reference.pinned(f64(s)), reference.pinned(f64(t))
    mean = early.a * x1 + early.b * x0
    x = torch.stack([mean, mean + early.c.sqrt(), mean])[:, None]
    state, noise, states = State(x, ONE, Condition({"x1": torch.full_like(x, x1)})), f64([[0.0], [0.0], [1.0]]), []
    solver = Posterior(steps=2, eta=eta, start=Endpoint(), grid=Listed(at=(s, t, 1e-3)))
    solver.run(bridge, state, Given(noise), record=states.append)
    centre, by_state, by_noise = states[1].x[:, 0]
    assert float(states[1].t) == t
    assert_close(centre, late.a * x1 + late.b * x0, rtol=1e-12, atol=1e-13)
    assert_close((by_state - centre) ** 2 + (by_noise - centre) ** 2, late.c, rtol=1e-10, atol=0)
    w = (
        eta
        * reference.alpha(f64(t))
        * (reference.rho2(f64(t)) * (1 - reference.rho2(f64(t)) / reference.rho2(f64(s)))).sqrt()
    )
    assert_close(by_noise - centre, w, rtol=1e-10, atol=1e-13)


def test_the_ode_from_any_endpoint_ends_in_the_median():
    """0.3 N(−0.6, 0.1²) + 0.7 N(0.5, 0.2²): the limit for a start at t → 1 is 0.38681, not the mean 0.17."""
    weights, centres, spread = f64([0.3, 0.7]), f64([-0.6, 0.5]), f64([0.1, 0.2])

    def below(x):
        return float((weights * Normal(centres, spread).cdf(f64(x))).sum()) - 0.5

    median = brentq(below, -1, 1, xtol=1e-12)
    assert median == pytest.approx(0.38681, abs=5e-6)

    def mean(y, sigma):
        variance = spread**2 + sigma**2
        share = torch.softmax(weights.log() - variance.log() / 2 - (y - centres) ** 2 / (2 * variance), dim=1)
        return (share * (centres + spread**2 / variance * (y - centres))).sum(1, keepdim=True)

    bridge = Known(mean)
    x1 = f64([[-2.0], [0.0], [0.3], [3.0]])
    state, widths = State(x1, ONE, Condition({"x1": x1})), []
    for rest in (1e-8, 1e-10):
        first = float(bridge.marginal(1 - f64(rest)).sigma_eff)
        grid = LogUniform(sigma_max=first, sigma_min=1e-3)
        solver = Heun(steps=200, grid=grid, start=Endpoint(), coordinates=NoiseCoordinate())
        ends = solver.run(bridge, state, Draws.seeds(range(4))).x
        widths.append(float(ends.max() - ends.min()))
        # y begins at 1.155 x1, which is so many standard units of sigma_eff from the mean 0.17; divided by the density.
        offset = (1.155 * x1 - 0.17) / first / math.sqrt(2 * math.pi)
        density = float((weights * Normal(centres, spread).log_prob(f64(median)).exp()).sum())
        assert_close(ends, median + offset / density, rtol=0, atol=3e-4)
    # The spread over the endpoints falls as the square root of what is left of the time.
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda n: Euler(steps=n, grid=KarrasTime(), start=Endpoint(), coordinates=TimeCoordinate()), lambda n: n),
        (
            lambda n: Heun(steps=n, grid=KarrasTime(), start=Endpoint(), coordinates=TimeCoordinate()),
            lambda n: 2 * n - 1,
        ),
        (lambda n: Hybrid(steps=n, corrector=False), lambda n: 2 * n),
        (lambda n: Hybrid(steps=n), lambda n: 3 * n - 1),
        (lambda n: Posterior(steps=n, eta=0.0, start=Boot()), lambda n: n + 1),
        (lambda n: DPMpp(steps=n), lambda n: n),
    ],
)
def test_calls_of_the_published_samplers(make, calls):
    """What a sampler says that it cost is how often the denoiser was asked: n, 2n − 1, 2n, 3n − 1, or n + 1."""
    for n in (2, 5, 11):
        asked = []
        bridge = Known(lambda y, sigma, asked=asked: asked.append(1) or y / (1 + sigma**2), t_min=1e-4)
        x1 = f64([[0.4]])
        solution = make(n).run(bridge, State(x1, ONE, Condition({"x1": x1})), Draws.seeds([0]))
        assert solution.calls == len(asked) == calls(n)
