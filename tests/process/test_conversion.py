"""The conversion table: inverses of each other, and right for exact Gaussian processes."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.testing import assert_close

from latentsb.bridge import DenoisingBridge, State
from latentsb.laws import Ends
from latentsb.process import conversion
from latentsb.process.marginal import Marginal
from latentsb.process.reference import ScalarReference
from latentsb.process.references import VP, Brownian
from latentsb.tensors import Condition, Spec, expand_as
from latentsb.trainable import Loss

D = 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(seed: int, size: int = D) -> Tensor:
    root = normal(size, size, seed=seed) / math.sqrt(size)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


class GaussianBridge(DenoisingBridge):
    """The exact bridge of x0 ~ N(mean, cov), correlated over dimensions, pinned to x1 or one-sided."""

    def __init__(self, reference: ScalarReference, *, pinned: bool, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        self.reference, self.is_pinned, self.mean, self.cov = reference, pinned, mean, cov
        self.ends = Ends(Spec(tuple(mean.shape)))

    def marginal(self, t: Tensor) -> Marginal:
        return self.reference.pinned(t) if self.is_pinned else self.reference.noised(t)

    def law(self, t: Tensor, x1: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of X_t, t of shape ()."""
        m = self.marginal(t)
        shift = 0.0 if x1 is None else m.a * x1
        return shift + m.b * self.mean, m.b.square() * self.cov + m.c * torch.eye(len(self.mean)).to(self.cov)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        mean, cov = self.law(t, cond.get("x1"))
        gain = self.marginal(t).b * self.cov @ torch.linalg.inv(cov)
        return self.mean.to(x) + (x - mean.to(x)) @ gain.T.to(x)

    def loss(self, batch, draws) -> Loss:
        raise NotImplementedError

    def start(self, batch, draws, towards="x0") -> State:
        raise NotImplementedError


@pytest.fixture(params=[True, False], ids=["pinned", "one-sided"])
def pinned(request) -> bool:
    return request.param


def gaussian(reference: ScalarReference, pinned: bool) -> tuple[GaussianBridge, Condition]:
    bridge = GaussianBridge(reference, pinned=pinned, mean=normal(D, seed=1), cov=covariance(2))
    return bridge, Condition({"x1": normal(D, seed=3).expand(5, D)}) if pinned else Condition()


TIMES = [0.02, 0.3, 0.62, 0.97]


def scalar(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def test_every_conversion_is_undone_by_its_inverse(reference, t, pinned):
    m = reference.pinned(t) if pinned else reference.noised(t)
    n = len(t)
    x, value, x1 = normal(n, 3, 2, seed=1), normal(n, 3, 2, seed=2), normal(n, 3, 2, seed=3) if pinned else None
    score = normal(n, 3, 2, seed=4)
    there_and_back = [
        conversion.noise_from_score(m, conversion.score_from_noise(m, value)),
        conversion.noise_from_x0(m, x, conversion.x0_from_noise(m, x, value, x1), x1),
        conversion.x0_from_noise(m, x, conversion.noise_from_x0(m, x, value, x1), x1),
        conversion.x0_from_score(m, x, conversion.score_from_x0(m, x, value, x1), x1),
        conversion.x1_from_b_f(reference, t, x, conversion.b_f_from_x1(reference, t, x, value)),
        conversion.x0_from_b_b(reference, t, x, conversion.b_b_from_x0(reference, t, x, value)),
        conversion.b_f_from_b_b(reference, t, conversion.b_b_from_b_f(reference, t, value, score), score),
        conversion.b_f_from_velocity(reference, t, conversion.velocity_from_score(reference, t, value, score), score),
    ]
    # Next to an end a prediction is divided by b or c of order 1e-4, and the states by x0's share of them.
    for back in there_and_back:
        assert_close(back, value, rtol=1e-7, atol=1e-8)


def test_routes_through_the_table_agree(reference, t):
    # x, x0, x1 and the noise are tied by one equation; every route from them to a drift or score is the same.
    m, n = reference.pinned(t), len(t)
    x0, x1, noise = normal(n, 3, seed=1), normal(n, 3, seed=2), normal(n, 3, seed=3)
    x = m.sample(x0, x1, noise)
    score = conversion.score_from_x0(m, x, x0, x1)
    b_f, b_b = conversion.b_f_from_x1(reference, t, x, x1), conversion.b_b_from_x0(reference, t, x, x0)

    def close(found, expected, tolerance=1e-8):
        scale = 1 + expected.abs().amax(1, keepdim=True)
        assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)

    close(conversion.score_from_noise(m, noise), score)
    close(conversion.x1_from_x0(m, x, x0, noise) * expand_as(m.a, x), x1 * expand_as(m.a, x))
    close(conversion.score_from_drifts(reference, t, b_f, b_b), score)
    close(conversion.b_b_from_b_f(reference, t, b_f, score), b_b)
    velocity = conversion.velocity_from_drifts(b_f, b_b)
    close(conversion.velocity_from_score(reference, t, b_f, score), velocity)
    close(conversion.b_f_from_velocity(reference, t, velocity, score), b_f)
    close(conversion.b_b_from_velocity(reference, t, velocity, score), b_b)


def test_signs_on_brownian_motion():
    # Towards x1 = 1 and x0 = 0, seen from 1/2: forward up, backward down, both by distance over time.
    t, x = scalar(0.5), torch.tensor([[0.5]], dtype=torch.float64)
    reference, one, zero = Brownian(sigma=0.7), torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    b_f, b_b = conversion.b_f_from_x1(reference, t, x, one), conversion.b_b_from_x0(reference, t, x, zero)
    assert float(b_f) == pytest.approx(1.0)
    assert float(b_b) == pytest.approx(-1.0)
    assert float(conversion.velocity_from_drifts(b_f, b_b)) == pytest.approx(1.0)


@pytest.mark.parametrize("time", TIMES)
def test_score_of_a_correlated_gaussian(reference, pinned, time):
    bridge, cond = gaussian(reference, pinned)
    x, t = normal(5, D, seed=5).requires_grad_(), scalar(time)
    mean, cov = bridge.law(t, cond["x1"][0] if pinned else None)
    log_p = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
    (exact,) = torch.autograd.grad(log_p.sum(), x)
    scale = 1 + exact.abs().max()
    assert_close(bridge.score(x.detach(), t, cond) / scale, exact / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("time", TIMES)
def test_published_reverse_sde_flow_and_nelson(reference, pinned, time):
    # dx = [f x − g²(s − h)] dt backwards, dx = [f x − g²(s/2 − h)] dt, forward [f x + g² h]: Zhou et al. 2024, Sec. 3.
    bridge, cond = gaussian(reference, pinned)
    x, t = normal(5, D, seed=5), scalar(time)
    score, f, g2 = bridge.score(x, t, cond), reference.f(t), reference.g2(t)
    h = reference.h(x, t, cond["x1"]) if pinned else torch.zeros_like(x)
    b_f, b_b = bridge.drift(x, t, cond, "x1"), bridge.drift(x, t, cond, "x0")
    size = 1 + (g2 * (score.abs() + h.abs())).max()
    for found, published in [
        (b_b, -(f * x - g2 * (score - h))),
        (b_f, f * x + g2 * h),
        (bridge.velocity(x, t, cond), f * x - g2 * (score / 2 - h)),
        (b_f + b_b, g2 * score),
    ]:
        assert_close(found / size, published / size, rtol=0, atol=1e-10)
    assert_close(bridge.diffusion(t).square(), g2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("time", TIMES)
def test_drifts_carry_the_marginals(reference, pinned, time):
    """Continuity and Fokker–Planck equations of a Gaussian, whose mean and covariance are differentiated directly."""
    bridge, cond = gaussian(reference, pinned)
    x1 = cond["x1"][0] if pinned else None
    one = Condition({"x1": x1[None]}) if pinned else Condition()
    t, step = scalar(time), torch.tensor(1.0, dtype=torch.float64)
    (mean, cov), (mean_rate, cov_rate) = torch.func.jvp(lambda u: bridge.law(u, x1), (t,), (step,))
    g2 = reference.g2(t)

    def affine(field):
        points = torch.cat([mean[None], mean + torch.eye(D, dtype=torch.float64)])
        values = torch.stack([field(p[None])[0] for p in points])
        return values[0], (values[1:] - values[0]).T

    noise = g2 * torch.eye(D, dtype=torch.float64)
    for sign, field, diffusion in [
        (1, lambda x: bridge.velocity(x, t, one), 0 * noise),
        (1, lambda x: bridge.drift(x, t, one, "x1"), noise),
        (-1, lambda x: bridge.drift(x, t, one, "x0"), noise),
    ]:
        value, slope = affine(field)
        size = 1 + value.abs().max()
        assert_close(sign * value / size, mean_rate / size, rtol=0, atol=1e-9)
        growth = slope @ cov + cov @ slope.T + diffusion
        size = 1 + g2 + slope.abs().max() * cov.abs().max()
        assert_close(sign * growth / size, cov_rate / size, rtol=0, atol=1e-9)


def test_backward_process_ends_in_the_data(reference, pinned):
    """Moments of `x_{t−h} = x_t + h b_b + noise`, integrated from t = 0.9, are those of x0 ~ N(0.25, 0.3²)."""
    m0, s0, x1, first, last = 0.25, 0.3, -0.4, 0.9, 1e-3
    mean, cov = torch.tensor([m0], dtype=torch.float64), torch.tensor([[s0**2]], dtype=torch.float64)
    bridge = GaussianBridge(reference, pinned=pinned, mean=mean, cov=cov)
    end = torch.tensor([[x1]], dtype=torch.float64)
    cond = Condition({"x1": end.expand(2, 1)}) if pinned else Condition()
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def rhs(elapsed, y):
        t = scalar(first - elapsed)
        offset, whole = bridge.drift(probe, t, cond, "x0")[:, 0].tolist()
        slope = whole - offset
        return [slope * y[0] + offset, 2 * slope * y[1] + float(reference.g2(t))]

    def law(t):
        m, v = bridge.law(scalar(t), end[0] if pinned else None)
        return [float(m), float(v)]

    y = solve_ivp(rhs, (0, first - last), law(first), rtol=1e-7, atol=1e-9, method="LSODA").y[:, -1]
    expected = law(last)
    assert y[0] == pytest.approx(expected[0], abs=1e-4 * s0)
    assert y[1] == pytest.approx(expected[1], rel=1e-4)


def static_bridge(A: Tensor, B: Tensor, eps: float) -> Tensor:
    """Cov(X0, X1) of the entropic plan between N(., A) and N(., B); Janati et al. 2020, Mallasto et al. 2021."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.sqrt()) @ vectors.T

    half = root(A)
    eye = torch.eye(len(A), dtype=torch.float64)
    return (half @ root(4 * half @ B @ half + eps**2 * eye) @ torch.linalg.inv(half) - eps * eye) / 2


@pytest.mark.parametrize("time", TIMES)
def test_gaussian_schroedinger_bridge(reference, time):
    """The bridge mixed over the plan of `reference.epsilon` is Markov: its drifts are gradient fields and fit together.

    A wrong epsilon, or a wrong weight of an end, makes the drift matrices unsymmetric.
    """
    if reference.epsilon > 100:
        reference = VP(beta_min=0.1, beta_d=4.0)
    A, B, m0, m1 = covariance(1), covariance(2), normal(D, seed=3), normal(D, seed=4)
    C, t, m = static_bridge(A, B, reference.epsilon), scalar(time), reference.pinned(scalar(time))
    eye = torch.eye(D, dtype=torch.float64)
    joint = torch.cat([torch.cat([A, C], 1), torch.cat([C.T, B], 1)])
    assert_close(torch.linalg.inv(joint)[:D, D:], -eye / reference.epsilon, rtol=1e-8, atol=1e-8)

    def law(u):
        p = reference.pinned(u)
        cov = p.b.square() * A + p.a.square() * B + p.a * p.b * (C + C.T) + p.c * eye
        return p.b * m0 + p.a * m1, cov

    (mean, cov), (mean_rate, cov_rate) = torch.func.jvp(law, (t,), (torch.ones_like(t),))
    inverse = torch.linalg.inv(cov)
    x = torch.cat([mean[None], mean + eye])
    x0 = m0 + (x - mean) @ ((m.b * A + m.a * C) @ inverse).T
    x1 = m1 + (x - mean) @ ((m.b * C.T + m.a * B) @ inverse).T
    b_f, b_b = conversion.b_f_from_x1(reference, t, x, x1), conversion.b_b_from_x0(reference, t, x, x0)
    g2, score = reference.g2(t), -(x - mean) @ inverse
    size = 1 + b_f.abs().max() + b_b.abs().max()

    def close(found, expected):
        assert_close(found / size, expected / size, rtol=0, atol=1e-9)

    close(b_f + b_b, g2 * score)
    close(conversion.score_from_drifts(reference, t, b_f, b_b) * g2, score * g2)
    close(conversion.velocity_from_drifts(b_f, b_b)[0], mean_rate)
    forward, backward = (b_f[1:] - b_f[0]).T, (b_b[1:] - b_b[0]).T
    close(forward, forward.T)
    close(backward, backward.T)
    close(forward @ cov + cov @ forward.T + g2 * eye, cov_rate)
    close(-(backward @ cov + cov @ backward.T + g2 * eye), cov_rate)


def test_scalar_schroedinger_bridge_is_the_golden_ratio():
    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(static_bridge(one, one, Brownian(sigma=1.0).epsilon)) == pytest.approx((math.sqrt(5) - 1) / 2)


def test_float32_states(reference, pinned):
    bridge, cond = gaussian(reference, pinned)
    narrow = Condition({k: v.float() for k, v in cond.values.items()})
    for time in (1e-4, 0.3, 0.9999):
        t = scalar(time)
        noise = normal(5, D, seed=7)
        x = bridge.marginal(t).sample(bridge.mean.expand(5, D), cond.get("x1"), noise)
        for towards in ("x0", "x1"):
            wide, found = bridge.drift(x, t, cond, towards), bridge.drift(x.float(), t, narrow, towards)
            assert found.dtype == torch.float32
            # A state rounded to 2^-24 of its size, seen through the slope of the drift (at most r'/r or r'/(1 − r)).
            rate, r = reference.rates(t)[1], reference.progress(t)
            slope = 1 + reference.f(t).abs() + (rate / r if towards == "x0" else rate / (1 - r) * pinned)
            size = 1 + x.abs().max() + (cond["x1"].abs().max() if pinned else 0) + bridge.mean.abs().max()
            assert float((found - wide).abs().max()) <= float(2.0**-19 * slope * size)
