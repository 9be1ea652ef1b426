"""Matrix OU processes: moments against the ODE that they solve, special cases, and what a shortcut gets wrong."""

import math

import pytest
import torch

from latentsb.oracles import variational
from latentsb.process.matrix import Kernel, MatrixOU, Rate, apply
from latentsb.process.policies import Constant, Diagonal, Free, Full, LowRank, Scaled, Symmetric
from latentsb.process.references import VP

F64 = torch.float64
A = torch.tensor([[0.15, 0.05], [-0.1, 0.3]], dtype=F64)
a = torch.tensor([0.4, -0.7], dtype=F64)
EYE, ONE = torch.eye(2, dtype=F64), torch.ones(1, dtype=F64)
RATE = Rate(low=0.1, high=10.0, power=1.7)


def process(matrices: torch.Tensor, shift: torch.Tensor | None = None, rate: Rate = RATE) -> MatrixOU:
    n = len(matrices)
    return MatrixOU(rate, matrices, torch.zeros(n, 2, dtype=F64) if shift is None else shift.expand(n, 2))


def factor(n: int, low: float = 0.5, high: float = 1.5) -> torch.Tensor:
    """The scale of A at the middles of n intervals, growing linearly."""
    return (low + (high - low) * (torch.arange(n, dtype=F64) + 0.5) / n)[:, None, None]


def moments_by_ode(matrix, shift, rate: Rate, end: float = 1.0, steps: int = 4000):
    """Phi, m and Q by RK4 in t, from the differential equations themselves."""

    def slope(t, state):
        Phi, m, Q = state
        beta = rate.of(torch.tensor(t, dtype=F64))
        F = beta * (matrix(t) - EYE / 2)
        return F @ Phi, F @ m + beta * shift, F @ Q + Q @ F.T + beta * EYE

    state, h = (EYE, torch.zeros(2, dtype=F64), torch.zeros(2, 2, dtype=F64)), end / steps
    for k in range(steps):
        t = k * h

        def moved(by, ks, state=state):
            return tuple(x + by * d for x, d in zip(state, ks, strict=True))

        k1 = slope(t, state)
        k2 = slope(t + h / 2, moved(h / 2, k1))
        k3 = slope(t + h / 2, moved(h / 2, k2))
        k4 = slope(t + h, moved(h, k3))
        state = tuple(x + h / 6 * (p + 2 * q + 2 * r + s) for x, p, q, r, s in zip(state, k1, k2, k3, k4, strict=True))
    return state


def test_a_constant_matrix_agrees_with_the_moment_equations():
    rate = Rate(low=0.1, high=10.0, power=2.0)  # a smooth rate, so that the fourth order of RK4 shows
    law = process(A[None], a, rate).along(ONE)
    Phi, m, Q = moments_by_ode(lambda t: A, a, rate)
    for found, exact in ((law.Phi[0], Phi), (law.m[0], m), (law.Q[0], Q)):
        assert torch.allclose(found, exact, rtol=0, atol=2e-11)


def test_a_pinned_terminal_covariance_and_the_stationary_one():
    end = process(A[None]).along(ONE).Q[0]
    assert torch.allclose(end, torch.tensor([[1.3206, -0.0551], [-0.0551, 1.9608]], dtype=F64), atol=6e-5)
    late = process(A[None], rate=Rate(low=100.0, high=100.0, power=0.0)).along(ONE).Q[0]
    D = EYE - 2 * A
    assert torch.allclose(D @ late + late @ D.T, 2 * EYE, atol=1e-9)


def test_a_changing_matrix_converges_to_the_moment_equations_with_the_square_of_the_intervals():
    rate = Rate(low=0.1, high=10.0, power=2.0)
    _, _, Q = moments_by_ode(lambda t: (0.5 + t) * A, a, rate, steps=2000)
    errors = [float((process(factor(n) * A, a, rate).along(ONE).Q[0] - Q).abs().max()) for n in (50, 100)]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.03)


def test_one_exponential_of_the_integral_fails_for_a_changing_matrix():
    n = 2000
    law = process(factor(n) * A).along(ONE)
    exact = torch.tensor([[1.5072, -0.0716], [-0.0716, 2.7378]], dtype=F64)
    assert torch.allclose(law.Q[0], exact, atol=1e-4)
    edges = torch.linspace(0, 1, n + 1, dtype=F64)
    B = RATE.integral(edges).diff()[:, None, None]
    drift = (B * (factor(n) * A - EYE / 2)).sum(0)
    block = torch.cat([torch.cat([drift, B.sum() * EYE], 1), torch.cat([torch.zeros(2, 2, dtype=F64), -drift.T], 1)])
    C, H = (torch.linalg.matrix_exp(block) @ torch.cat([torch.zeros(2, 2, dtype=F64), EYE])).split(2)
    wrong = C @ torch.linalg.inv(H)
    assert torch.allclose(wrong, torch.tensor([[1.4254, -0.0637], [-0.0637, 2.4053]], dtype=F64), atol=1e-3)
    assert float((wrong - law.Q[0]).norm() / law.Q[0].norm()) > 0.1
    # The mean has no such trouble, since the matrices commute with each other.
    assert torch.allclose(law.Phi[0], torch.linalg.matrix_exp(drift), atol=1e-10)


def test_without_a_matrix_it_is_the_variance_preserving_diffusion():
    rate, vp = Rate(low=0.1, high=10.0, power=1.0), VP(beta_min=0.1, beta_d=9.9)
    s, t = torch.tensor([0.0, 0.2, 0.3], dtype=F64), torch.tensor([0.4, 1.0, 0.9], dtype=F64)
    found, exact = process(torch.zeros(3, 2, 2, dtype=F64), rate=rate).transition(s, t), vp.transition(s, t)
    assert torch.allclose(found.Phi, exact.Phi[:, None, None] * EYE, atol=1e-13)
    assert torch.allclose(found.Q, exact.Q[:, None, None] * EYE, atol=1e-13)
    assert torch.allclose(process(A[None], rate=rate).g(t), vp.g(t))


@pytest.mark.parametrize("scale", [0.2, 0.5, 0.8])
def test_a_multiple_of_the_identity_is_a_number(scale):
    B, d = float(RATE.integral(ONE)), 1 - 2 * scale
    exact = (1 - math.exp(-d * B)) / d if d else B
    assert torch.allclose(process(scale * EYE[None]).along(ONE).Q[0], exact * EYE, atol=1e-11)


def test_symmetric_and_diagonal_ways_agree_with_exponentials():
    S = torch.tensor([[0.2, 0.3], [0.3, -0.4]], dtype=F64)
    fast, tilt = process(factor(6) * S, a), torch.zeros(6, 2, 2, dtype=F64)
    tilt[:, 0, 1] = 1e-15  # not symmetric any more, and the same process
    slow = process(factor(6) * S + tilt, a)
    assert fast.basis is not None
    assert slow.basis is None
    t = torch.tensor([0.9, 0.05, 0.4], dtype=F64)
    for name in ("Phi", "m", "Q"):
        assert torch.allclose(getattr(fast.along(t), name), getattr(slow.along(t), name), atol=1e-12)
    diagonal = torch.tensor([0.2, -0.4], dtype=F64).expand(6, 2)
    thin, wide = MatrixOU(RATE, diagonal, a.expand(6, 2)).along(t), process(torch.diag_embed(diagonal), a).along(t)
    assert torch.allclose(torch.diag_embed(thin.Q), wide.Q, atol=1e-12)
    assert torch.allclose(thin.m, wide.m, atol=1e-12)


def test_transitions_compose():
    ou, s = process(factor(5) * A, a), torch.tensor([0.0, 0.1, 0.45], dtype=F64)
    t, u = torch.tensor([0.15, 0.5, 0.55], dtype=F64), torch.tensor([1.0, 0.7, 0.58], dtype=F64)
    one, two, whole = ou.transition(s, t), ou.transition(t, u), ou.transition(s, u)
    assert torch.allclose(two.Phi @ one.Phi, whole.Phi, atol=1e-12)
    assert torch.allclose(apply(two.Phi, one.m) + two.m, whole.m, atol=1e-12)
    assert torch.allclose(two.Phi @ one.Q @ two.Phi.mT + two.Q, whole.Q, atol=1e-12)


def test_the_kernel_knows_the_best_linear_guess_of_the_noise():
    S0 = torch.tensor([[1.0, 0.6], [0.6, 4.0]], dtype=F64)
    law = process(factor(5) * A, a).along(torch.tensor([1e-3, 0.3, 1.0], dtype=F64))
    kernel = Kernel.of(law, a, S0)
    joint = kernel.L.mT @ torch.linalg.inv(kernel.K)  # Cov(ε, x_t) = Lᵀ
    assert torch.allclose(kernel.gain, joint, atol=1e-10)
    assert torch.allclose(kernel.rest @ kernel.rest.mT, EYE - joint @ kernel.L, atol=1e-10)
    assert torch.allclose(kernel.white @ kernel.K @ kernel.white.mT, EYE.expand(3, 2, 2), atol=1e-9)
    assert torch.allclose(kernel.K, law.Phi @ S0 @ law.Phi.mT + law.Q, atol=1e-12)
    # The score of Gaussian data, −L⁻ᵀ E[ε | x] = −K⁻¹ (x − mean).
    assert torch.allclose(kernel.pull @ kernel.gain, torch.linalg.inv(kernel.K), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", [Full, Symmetric, Diagonal, LowRank])
@pytest.mark.parametrize("profile", [Constant(), Scaled(knots=3), Free(knots=3)])
def test_policies_begin_at_zero_and_can_be_trained(family, profile):
    policy = family(4, profile=profile)
    t = torch.linspace(0, 1, 5, dtype=F64)
    A, shift = policy(t)
    assert not bool(A.any() or shift.any())
    for p in policy.parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    A, shift = policy(t)
    assert A.shape == ((5, 4) if family is Diagonal else (5, 4, 4))
    if family is Symmetric:
        assert bool((A == A.mT).all())
    if family is LowRank:
        wide = LowRank(8, profile=profile)
        assert int(torch.linalg.matrix_rank(wide.matrices() + wide.V @ wide.V.mT)[0]) == 4
    assert bool((A[0] == A[-1]).all()) == isinstance(profile, Constant)
    (A.sum() + shift.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.parameters())


def test_stages_with_a_matrix_for_each_time_reach_the_bridge_and_constant_ones_do_not():
    S0, n = torch.tensor([[64.0]], dtype=F64), 50
    exact = variational.bridge_variance(RATE, 64.0, (torch.arange(n, dtype=F64) + 0.5) / n)
    begin = variational.first(RATE, S0, n)
    assert float(begin.end) == pytest.approx(2.457, abs=1e-3)
    found = {}
    for constant in (False, True):
        stage = begin
        for _ in range(25):
            stage = variational.renewed(stage, S0, constant=constant)
        found[constant] = float((stage.forward[:, 0, 0] / exact - 1).abs().max()), stage.energy, float(stage.end)
    assert found[False][0] < 0.015
    assert found[False][2] == pytest.approx(1.0, abs=1e-6)
    assert found[True][0] > 0.4
    assert found[True][2] == pytest.approx(1.0, abs=0.05)
    assert found[True][1] > 4 * found[False][1]


def test_the_variance_of_the_bridge_by_its_general_oracle():
    from latentsb.oracles import GaussianBridge, Normal

    rate, t = Rate(low=0.1, high=10.0, power=1.0), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    ends = Normal(torch.zeros(1, dtype=F64), torch.full((1, 1), 64.0, dtype=F64)), Normal.isotropic(1, 0.0, 1.0)
    bridge = GaussianBridge.between(*ends, VP(beta_min=0.1, beta_d=9.9))
    known = torch.stack([bridge.marginal(float(time)).cov[0, 0] for time in t])
    assert torch.allclose(variational.bridge_variance(rate, 64.0, t), known, rtol=1e-8)
