"""The published table of samplers: exact denoiser, VP, x0 ~ N(0.25, 0.1²), x1 = −0.1.

Every number is a mean and a standard deviation propagated exactly through the very steps that the solver takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from latentsb.process.references import VE, VP
from latentsb.solvers.base import Grid
from latentsb.solvers.coordinates import NoiseCoordinate, TimeCoordinate
from latentsb.solvers.exponential import DPMpp, Posterior, Posterior2
from latentsb.solvers.grid import Karras, KarrasTime, LogUniform, Uniform, karras
from latentsb.solvers.hybrid import Hybrid
from latentsb.solvers.ode import Euler, Heun
from latentsb.solvers.start import Boot, Endpoint

M0, S0, X1 = 0.25, 0.1, -0.1


def row(oracles, solver, *, draws=1, reference=VP(), t_min=1e-9):
    mean = torch.tensor([M0], dtype=torch.float64)
    bridge = oracles.gaussian(reference, mean, torch.tensor([[S0**2]], dtype=torch.float64), pinned=True)
    bridge.t_min = t_min
    x1 = torch.tensor([X1], dtype=torch.float64)
    law = oracles.propagate(solver, bridge, x=x1, x1=x1, draws=draws)
    return law.calls, float(law.mean[0] - M0) / S0, float(law.cov[0, 0].sqrt()) / S0


# y begins at N(0, 80²) where the table has N(m0, 80²): the start forgets at most prod(1 − D) of m0.
FORGOTTEN = 2e-3


@pytest.mark.parametrize(("steps", "bias"), [(20, -0.0696), (100, -0.0420)])
def test_official_euler(oracles, steps, bias):
    solver = Euler(steps=steps, grid=KarrasTime(), start=Endpoint(), coordinates=TimeCoordinate())
    calls, mean, std = row(oracles, solver, t_min=1e-4)
    assert calls == steps
    assert mean == pytest.approx(bias, abs=5e-5)
    assert std == 0


@pytest.mark.parametrize(("steps", "calls", "bias"), [(100, 199, -0.0397), (333, 665, -0.0221)])
def test_official_heun(oracles, steps, calls, bias):
    found, mean, std = row(
        oracles, Heun(steps=steps, grid=KarrasTime(), start=Endpoint(), coordinates=TimeCoordinate()), t_min=1e-4
    )
    assert found == calls
    assert mean == pytest.approx(bias, abs=5e-5)
    assert std == 0


CHURN = [
    (Hybrid(steps=83), 248, 0.0015, 1.0208),
    pytest.param(Hybrid(steps=167), 500, 0.0007, 1.0118, marks=pytest.mark.slow),
    pytest.param(Hybrid(steps=333), 998, 0.0002, 1.0068, marks=pytest.mark.slow),
    pytest.param(Hybrid(steps=333, corrector=False), 666, 0.0017, 1.0201, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("solver", "calls", "bias", "spread"), CHURN)
def test_official_churn(oracles, solver, calls, bias, spread):
    found, mean, std = row(oracles, solver, draws=solver.steps, t_min=1e-4)
    assert found == calls
    assert mean == pytest.approx(bias, abs=5.1e-5)
    assert std == pytest.approx(spread, abs=5.1e-5)


@pytest.mark.parametrize("corrector", [False, True])
def test_official_sampler_without_churn_is_the_ode(oracles, corrector):
    ode = (Heun if corrector else Euler)(steps=20, grid=KarrasTime(), start=Endpoint(), coordinates=TimeCoordinate())
    official = row(oracles, Hybrid(steps=20, churn=0.0, corrector=corrector), t_min=1e-4)
    assert official == pytest.approx(row(oracles, ode, t_min=1e-4), abs=1e-12)


DBIM = [(0.0, (0.331, 0.548, 0.726, 0.870)), (1.0, (0.300, 0.504, 0.666, 0.808))]


@pytest.mark.parametrize(("eta", "spread"), DBIM)
def test_dbim_on_uniform_time(oracles, eta, spread):
    for calls, expected in zip((6, 11, 21, 51), spread, strict=True):
        solver = Posterior(steps=calls - 1, grid=Uniform(margin=1e-3, last=1e-4), start=Boot(), eta=eta)
        found, mean, std = row(oracles, solver, draws=calls)
        assert found == calls
        assert mean == pytest.approx(0, abs=1e-9)
        assert std == pytest.approx(expected, abs=5.1e-4)


SIGMA_ROWS = [
    *[(Posterior(steps=n, grid=Karras()), n, s) for n, s in [(10, 0.674), (20, 0.828), (50, 0.929), (100, 0.964)]],
    *[
        (Heun(steps=n, grid=Karras(), coordinates=NoiseCoordinate()), 2 * n - 1, s)
        for n, s in [(9, 1.446), (18, 1.090), (25, 1.043)]
    ],
    *[
        (DPMpp(steps=n, grid=Karras(sigma_min=0.003)), n, s)
        for n, s in [(10, 1.057), (15, 1.087), (20, 1.063), (30, 1.029)]
    ],
    *[(DPMpp(steps=n), n, s) for n, s in [(8, 0.995), (10, 1.027), (15, 1.024), (20, 1.015), (30, 1.007)]],
    *[
        (Posterior(steps=n, grid=LogUniform(), eta=1.0), n, s)
        for n, s in [(10, 0.630), (20, 0.783), (50, 0.904), (100, 0.950)]
    ],
]


@pytest.mark.parametrize(("solver", "calls", "spread"), SIGMA_ROWS)
def test_noise_coordinates(oracles, solver, calls, spread):
    found, mean, std = row(oracles, solver, draws=solver.steps)
    assert found == calls
    assert mean == pytest.approx(0, abs=FORGOTTEN * M0 / S0)
    assert std == pytest.approx(spread, abs=5.1e-4)


def test_euler_in_noise_coordinates_is_the_deterministic_posterior_step(oracles):
    """Two derivations of one step: the ODE in (y, sigma) and the posterior with eta 0 in (a, b, c)."""
    ode = row(oracles, Euler(steps=12, grid=LogUniform(), coordinates=NoiseCoordinate()))
    assert ode == pytest.approx(row(oracles, Posterior(steps=12)), abs=1e-12)


@pytest.mark.parametrize("s0", [0.05, 0.1, 0.3])
@pytest.mark.parametrize(("steps", "low", "high"), [(15, 0.020, 0.026), (20, 0.013, 0.016)])
def test_spread_of_the_default_for_other_laws(oracles, s0, steps, low, high):
    """The log-uniform grid is scale-free, so the error of the spread hardly depends on the law's own."""
    mean = torch.tensor([M0], dtype=torch.float64)
    bridge = oracles.gaussian(VP(), mean, torch.tensor([[s0**2]], dtype=torch.float64), pinned=True)
    law = oracles.propagate(DPMpp(steps=steps), bridge, x=mean, x1=mean)
    assert low - 5e-4 < float(law.cov[0, 0].sqrt()) / s0 - 1 < high + 5e-4


def test_ve_and_vp_agree_in_noise_coordinates(oracles):
    """Rescaling x by 1/alpha and time by rho maps one bridge onto the other."""
    vp = VP()
    ve = VE(sigma_max=vp.total**0.5)
    for solver in (
        DPMpp(steps=11),
        Posterior(steps=11, eta=0.7),
        Heun(steps=7, grid=Karras(), coordinates=NoiseCoordinate()),
    ):
        assert row(oracles, solver, draws=12, reference=ve) == pytest.approx(row(oracles, solver, draws=12), abs=1e-9)


@dataclass(frozen=True, kw_only=True)
class Inside(Grid):
    """Times from 0.999 to 1e-3, even in `t^(1/rho)`, for one trajectory."""

    rho: float = 1.0

    def times(self, bridge, steps, towards="x0"):
        return karras(0.999, 1e-3, steps + 1, self.rho)


# The published figures have four decimals.
FIRST = (Posterior, 1.0, [0.0619, 0.0328, 0.0171, 0.0088])
SECOND = (Posterior2, 7.0, [0.0147, 0.0067, 0.0031, 0.0014])


@pytest.mark.parametrize(("solver", "rho", "published"), [FIRST, SECOND])
def test_error_of_dbim_on_one_trajectory(oracles, solver, rho, published):
    """x starts at mu + 1.3 sd at t = 0.999; the errors at t = 1e-3 are published.

    The second order is hidden by its first step, which is of first order and long: the error halves.
    """
    m0, s0, x1, k = 0.25, 0.3, -0.4, 1.3
    mean = torch.tensor([m0], dtype=torch.float64)
    bridge = oracles.gaussian(VP(), mean, torch.tensor([[s0**2]], dtype=torch.float64), pinned=True)
    pin = torch.tensor([x1], dtype=torch.float64)

    def point(t):
        there = bridge.marginal(torch.tensor(t, dtype=torch.float64))
        return there.a * x1 + there.b * m0 + k * (there.b**2 * s0**2 + there.c).sqrt()

    errors = []
    for steps in (10, 20, 40, 80):
        chosen = solver(steps=steps, grid=Inside(rho=rho), start=Endpoint())
        law = oracles.propagate(chosen, bridge, x=point(0.999).reshape(1), x1=pin)
        errors.append(abs(float(law.mean[0] - point(1e-3))))
    assert errors == pytest.approx(published, abs=6e-5)
