"""PSNR and SSIM against closed forms and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentsb.metrics.similarity import mse, psnr, ssim


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=rng, dtype=torch.float64) * 2 - 1
    return x, (x + 0.3 * torch.randn(shape, generator=rng, dtype=torch.float64)).clamp(-1, 1)


def test_mse_and_psnr_of_a_constant_difference() -> None:
    x = torch.zeros(3, 2, 5, 5)
    y = x + torch.tensor([0.1, 0.2, 2.0])[:, None, None, None]
    torch.testing.assert_close(mse(x, y), torch.tensor([0.01, 0.04, 4.0]))
    torch.testing.assert_close(psnr(x, y), torch.tensor([20 * math.log10(20), 20.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(psnr(x / 2, y / 2, data_range=1.0), psnr(x, y), atol=1e-5, rtol=0)
    assert psnr(x, x).tolist() == [math.inf] * 3


def test_ssim_of_constants_is_its_luminance_term() -> None:
    a, b, c1 = 0.5, -0.25, 0.02**2
    x, y = torch.full((1, 1, 16, 16), a, dtype=torch.float64), torch.full((1, 1, 16, 16), b, dtype=torch.float64)
    assert ssim(x, y).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 1, 11, 11), (2, 3, 32, 20), (1, 16, 13, 40), (2, 3, 8, 8), (1, 1, 1, 5)])
def test_ssim_of_equals_is_one_and_it_is_symmetric(shape: tuple[int, ...]) -> None:
    x, y = pair(shape)
    torch.testing.assert_close(ssim(x, x), torch.ones(shape[0], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert (ssim(x, y) < 1).all()


@pytest.mark.parametrize("shape", [(3, 1, 8, 6), (3, 3, 32, 20), (2, 4, 64, 64)])
def test_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = pair(shape)
    theirs = functional.structural_similarity_index_measure(x, y, data_range=2.0, reduction="none")
    torch.testing.assert_close(ssim(x, y), theirs, atol=1e-6, rtol=0)
    unit = functional.structural_similarity_index_measure((x + 1) / 2, (y + 1) / 2, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim((x + 1) / 2, (y + 1) / 2, data_range=1.0), unit, atol=1e-6, rtol=0)
    theirs = functional.peak_signal_noise_ratio(x, y, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(x, y), theirs, atol=1e-6, rtol=0)


def test_small_images_have_a_window_that_fits() -> None:
    """Two pixels in a row are reflected to b a b and a b a, under a window of three."""
    x, y = pair((1, 1, 1, 2))
    side = math.exp(-1 / (2 * 1.5**2))
    weights = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    c1, c2, places = 0.02**2, 0.06**2, []
    for order in ([1, 0, 1], [0, 1, 0]):
        p, q = x[0, 0, 0, order], y[0, 0, 0, order]
        mx, my = (weights * p).sum(), (weights * q).sum()
        vx, vy = (weights * (p - mx) ** 2).sum(), (weights * (q - my) ** 2).sum()
        cov = (weights * (p - mx) * (q - my)).sum()
        places.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    torch.testing.assert_close(ssim(x, y)[0], torch.stack(places).mean())


def test_rows_do_not_depend_on_their_batch() -> None:
    x, y = pair((4, 3, 16, 16))
    torch.testing.assert_close(ssim(x, y)[2:3], ssim(x[2:3], y[2:3]))
    assert ssim(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        mse(torch.zeros(1, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ssim(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
