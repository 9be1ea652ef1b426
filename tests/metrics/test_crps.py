"""CRPS: by samples it is what it is for normal laws in closed form; the best forecast has the least."""

import math

import pytest
import torch

from latentsb.metrics.crps import crps, gaussian_crps, regression

F64 = torch.float64


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_samples_by_hand():
    x, y = torch.tensor([[1.0], [4.0]], dtype=F64), torch.tensor([2.0], dtype=F64)
    assert float(crps(x, y)[0]) == pytest.approx((1 + 2) / 2 - 3 / 2)


def test_all_pairs_at_once_and_one_by_one():
    x, y = torch.randn(7, 3, 2, dtype=F64, generator=rng(0)), torch.randn(3, 2, dtype=F64, generator=rng(1))
    pairs = (x[:, None] - x[None]).abs().sum((0, 1)) / (7 * 6)
    assert torch.allclose(crps(x, y), (x - y).abs().mean(0) - pairs / 2)


def test_of_few_samples_it_is_the_closed_form_on_average():
    y = torch.tensor([0.0, 0.4, -2.0], dtype=F64).repeat(20_000, 1)
    found = crps(0.3 + 1.5 * torch.randn(4, *y.shape, dtype=F64, generator=rng(0)), y)
    exact = gaussian_crps(torch.tensor(0.3), torch.tensor(1.5), y[:1])
    assert bool(((found.mean(0) - exact).abs() < 4 * found.std(0) / math.sqrt(len(y))).all())


def test_the_normal_score_is_the_integral_of_squared_differences_of_distribution_functions():
    y = torch.tensor(0.7, dtype=F64)
    z = torch.linspace(-14, 14, 28_001, dtype=F64)
    cdf = (1 + torch.erf((z - 0.3) / (1.5 * math.sqrt(2)))) / 2
    integral = float(((cdf - (z >= y).double()) ** 2).sum() * (z[1] - z[0]))
    found = float(gaussian_crps(torch.tensor(0.3, dtype=F64), torch.tensor(1.5, dtype=F64), y))
    assert found == pytest.approx(integral, abs=1e-3)


def test_regression_finds_a_linear_law_and_its_spread():
    x = torch.randn(20_000, 3, dtype=F64, generator=rng(2))
    w = torch.tensor([[1.0, 0.0], [0.5, -2.0], [0.0, 3.0]], dtype=F64)
    y = 4 + x @ w + torch.tensor([0.5, 2.0], dtype=F64) * torch.randn(20_000, 2, dtype=F64, generator=rng(3))
    mean, std = regression(x, y, torch.eye(3, dtype=F64), 0.0)
    assert torch.allclose(mean, 4 + w, atol=4 * 2 * math.sqrt(2 / 20_000))
    assert torch.allclose(std, torch.tensor([0.5, 2.0], dtype=F64), rtol=4 / math.sqrt(2 * 20_000))
