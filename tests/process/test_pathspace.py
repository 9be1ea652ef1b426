"""Weights of paths: exact for any control and any number of steps; constant at the optimum as steps shrink."""

import math
from types import SimpleNamespace

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.process.pathloss import KL, KLIto, LogVariance, Paths, RelativeKL
from latentsb.process.pathspace import DDS, DIS, PIS, General
from latentsb.process.pathweights import walk, weigh
from latentsb.process.references import OU, VP, Brownian
from latentsb.targets.toys import GaussianTarget, MixtureTarget

DOUBLE = torch.float64
TARGET = GaussianTarget(mean=1.0, sigma=0.5, scale=math.exp(0.7))
MILD = VP(beta_min=0.5, beta_d=1.5)
SAMPLERS = {"dis": DIS(reference=MILD), "general": General(), "pis": PIS(), "dds": DDS(reference=MILD, scale=1.3)}


class Noise:
    """Draws from one generator."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=self.generator)


def chain(sampler, control, target, steps: int, n: int, *, back=None, seed: int = 0) -> SimpleNamespace:
    draws, like = Noise(seed), torch.zeros(n, *target.shape, dtype=DOUBLE)
    times = torch.linspace(1, 0, steps + 1, dtype=DOUBLE)
    path = walk(sampler, control, sampler.begin(like, draws), times, lambda k: draws.normal("", like))
    v = None if back is None else torch.stack([back(x, t) for x, t in zip(path.x, times, strict=True)])
    weight = weigh(sampler, path, v=v)
    log_w = target.log_prob(path.end) + weight.log_b - weight.log_f
    ess = float((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()) / n
    return SimpleNamespace(
        x=path.end, path=path, weight=weight, log_w=log_w, ess=ess, log_z=float(log_w.logsumexp(0)) - math.log(n)
    )


@pytest.mark.parametrize("word", SAMPLERS)
@pytest.mark.parametrize("control", [lambda x, t: -x, lambda x, t: 0.3 - 1.5 * x])
def test_the_mean_weight_is_z_for_any_control_at_five_steps(word, control):
    """No training, few steps, each member: a wrong sign or time direction fails here."""
    back = (lambda x, t: 0.4 - 0.5 * x) if word == "general" else None
    found = chain(SAMPLERS[word], control, TARGET, 5, 60_000, back=back).log_w.exp()
    error = float(found.std()) / math.sqrt(len(found))
    assert error < 0.05 * math.exp(0.7)
    assert abs(float(found.mean()) - math.exp(0.7)) < 3 * error


@pytest.mark.parametrize("word", SAMPLERS)
def test_the_ito_part_is_zero_on_average(word):
    back = (lambda x, t: 0.4 - 0.5 * x) if word == "general" else None
    ito = chain(SAMPLERS[word], lambda x, t: 0.3 - 1.5 * x, TARGET, 5, 20_000, back=back).weight.ito
    assert abs(float(ito.mean())) < 4 * float(ito.std()) / math.sqrt(len(ito))


def optimum(sampler, m: float = 1.0, s2: float = 0.25):
    """Control whose process ends in N(m, s2) up to the steps: closed forms."""

    def dis(x, t):
        alpha = sampler.reference.alpha(t)
        return -sampler.g(t) * (x - alpha * m) / (alpha**2 * s2 + 1 - alpha**2)

    def dds(x, t):
        alpha, wide = sampler.reference.alpha(t), sampler.scale**2
        return sampler.g(t) * (x / wide - (x - alpha * m) / (alpha**2 * s2 + wide * (1 - alpha**2)))

    def pis(x, t):
        a, b = 1 / s2 - 1 / sampler.reference.total, m / s2
        return sampler.g(t) * (b - a * x) / (1 + a * sampler.reference.rho2(t))

    return {DIS: dis, DDS: dds, PIS: pis}[type(sampler)]


@pytest.mark.parametrize("sampler", [DIS(), DDS(), PIS()], ids=["dis", "dds", "pis"])
def test_the_optimal_control_at_25_steps(sampler):
    found = chain(sampler, optimum(sampler), TARGET, 25, 20_000)
    assert found.ess >= 0.92
    assert abs(found.log_z - 0.7) < 4 * math.sqrt((1 / found.ess - 1) / 20_000)
    assert float(found.x.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(found.x.std()) == pytest.approx(0.5, abs=0.05)


def test_the_spread_of_the_weights_falls_as_the_root_of_the_step():
    """`std(R) ≈ 1.07 √h` of the optimal PIS: R is constant in continuous time alone."""
    spreads = [float(chain(PIS(), optimum(PIS()), TARGET, n, 20_000).log_w.std()) for n in (25, 100)]
    assert spreads[0] / spreads[1] == pytest.approx(2, rel=0.06)
    assert spreads[1] == pytest.approx(0.107, rel=0.03)


def test_the_diffused_mixture_is_the_optimum_of_nine_modes():
    sampler, target = DIS(), MixtureTarget()

    def control(x, t):
        alpha, point = sampler.reference.alpha(t), x.detach().requires_grad_()
        with torch.enable_grad():
            return sampler.g(t) * torch.autograd.grad(target.diffused(point, alpha, 1 - alpha**2).sum(), point)[0]

    found = chain(sampler, control, target, 50, 8_000)
    assert found.ess == pytest.approx(0.70, abs=0.05)  # what a perfect network reaches at 50 steps
    assert abs(found.log_z) < 4 * math.sqrt((1 / found.ess - 1) / 8_000)
    share = torch.bincount(target.mode_of(found.x), minlength=9) / 8_000
    # Of an exact sampler a total variation of 0.011 is expected; steps add what weights take away again.
    assert float((share - 1 / 9).abs().sum()) / 2 < 0.03


def test_the_prior_itself_needs_a_control():
    """DIS to N(0, 1): generative drift expands, `u = −g x`, not zero."""
    target = GaussianTarget(mean=0.0)
    sampler = DIS()
    right = chain(sampler, lambda x, t: -sampler.g(t) * x, target, 100, 5_000)
    still = chain(sampler, lambda x, t: torch.zeros_like(x), target, 100, 5_000)
    assert right.ess > 0.9
    assert still.ess < 0.1


def test_gradients_of_the_log_variance_are_twice_those_of_the_relative_kl():
    """Path by path, for a fixed comparison."""
    sampler, theta = DIS(reference=MILD), torch.tensor([0.3, -1.0], dtype=DOUBLE, requires_grad=True)
    path = chain(sampler, lambda x, t: 0.1 - x, TARGET, 20, 64).path
    weight = weigh(sampler, path, theta[0] + theta[1] * path.x[:-1])
    log_f, ito = weight.log_f.reshape(8, 8), weight.ito.reshape(8, 8)
    log_b = (weight.log_b + TARGET.log_prob(path.end)).reshape(8, 8)
    paths = Paths(log_f, log_b, ito, torch.ones(8, 8, dtype=torch.bool))
    lv, rkl = (
        torch.autograd.grad(loss.of(paths).mean(), theta, retain_graph=True)[0]
        for loss in (LogVariance(), RelativeKL())
    )
    assert torch.allclose(lv, 2 * rkl, rtol=1e-10)
    assert LogVariance().of(paths)[0].item() == pytest.approx((log_f - log_b)[0].var().item(), rel=1e-10)


def test_gradients_of_every_divergence_agree_on_average():
    """Reparametrised and by log-derivatives: the same gradient of E R at one θ, by two derivations."""
    sampler, n = PIS(), 40_000

    def grads(loss):
        theta = torch.full((n, 1), -2.0, dtype=DOUBLE, requires_grad=True)
        with torch.set_grad_enabled(loss.through):
            path = chain(sampler, lambda x, t: 0.5 + theta * x, TARGET, 10, n).path
        u = path.u if loss.through else 0.5 + theta * path.x[:-1]
        weight = weigh(sampler, path, u)
        log_b = weight.log_b + TARGET.log_prob(path.end)
        paths = Paths(*(v[None] for v in (weight.log_f, log_b, weight.ito)), torch.ones(1, n, dtype=torch.bool))
        (slope,) = torch.autograd.grad(loss.of(paths).sum() * n, theta)
        return slope[:, 0]

    by = {type(loss).__name__: grads(loss) for loss in (KL(), KLIto(), RelativeKL())}
    for name in ("KLIto", "RelativeKL"):
        gap = by[name] - by["KL"]
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(n)
    assert abs(float(by["KL"].mean())) > 20 * float(by["KL"].std()) / math.sqrt(n)


def test_paths_that_are_left_out_do_not_count():
    values = torch.tensor([[1.0, 2.0, math.nan, 1e9]], dtype=DOUBLE)
    paths = Paths(
        values, torch.zeros_like(values), torch.zeros_like(values), torch.tensor([[True, True, False, False]])
    )
    assert float(LogVariance().of(paths)) == 0.5
    assert float(KL().of(paths)) == 1.5


def test_references_that_do_not_fit_are_told():
    with pytest.raises(ArgumentError, match="drift"):
        PIS(reference=VP())
    with pytest.raises(ArgumentError, match="no noise"):
        PIS(reference=Brownian(sigma=0.0))
    with pytest.raises(ArgumentError, match="variance 1 becomes"):
        DDS(reference=OU())
