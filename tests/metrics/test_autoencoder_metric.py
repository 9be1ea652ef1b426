"""The figures of an autoencoder, of one whose loss, rate and latents are known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from latentsb.autoencoder import Autoencoder, Moments
from latentsb.errors import CapabilityError
from latentsb.evaluate import metrics_of
from latentsb.metrics.autoencoder import NONE, Codec, coded, spectra, table_of
from latentsb.metrics.similarity import ssim
from latentsb.metrics.statistics import statistics_of
from latentsb.tensors import Spec

SHAPE = Spec((1, 8, 8))


class Halved(Autoencoder):
    """Even rows of an image, four times as large, drawn with a known width; odd rows are lost and stay 0."""

    def __init__(self, std: float | None) -> None:
        super().__init__(SHAPE, Spec((1, 4, 8)))
        self.width = std
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def moments(self, images: Tensor) -> Moments:
        mean = 4 * images[:, :, ::2]
        return Moments(mean, None if self.width is None else torch.full_like(mean, self.width))

    def raw_decode(self, raw: Tensor) -> Tensor:
        return torch.stack([raw / 4, torch.zeros_like(raw)], 3).reshape(-1, *SHAPE.shape)

    def loss(self, batch, draws):
        raise NotImplementedError


def noise(n: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(n, *SHAPE.shape, generator=torch.Generator().manual_seed(seed))


def stand(parts, std: float | None = 0.1):
    found = parts.Stand(noise(300), noise(200, 1))
    found.autoencoder = Halved(std).eval()
    found.autoencoder.fit_normaliser([found.autoencoder.moments(noise(300)).mean])
    found.bridge = None
    return found


def test_figures_of_a_known_loss(parts):
    found = Codec().measure(stand(parts))
    x = noise(200, 1)
    kept = x.clone()
    kept[:, :, 1::2] = 0
    each = ((x - kept.clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    assert found.value == pytest.approx(each.mean().item(), rel=1e-5)
    assert found.error == pytest.approx(each.std().item() / math.sqrt(200), rel=1e-4)
    # Half of the pixels have variance 0.04, a quarter of it on [0, 1]: 0.005, with the error of a mean square.
    half = pytest.approx(0.005, abs=4 * 0.005 * math.sqrt(2 / (200 * 32)))
    assert found.value == half
    figures = found.details["figures"]["autoencoder"]
    assert figures["mean_psnr"] == pytest.approx((-10 * each.log10()).mean().item(), rel=1e-5)
    alike = ssim((x + 1) / 2, (kept.clamp(-1, 1) + 1) / 2, data_range=1.0)
    assert figures["ssim"] == pytest.approx(alike.mean().item(), rel=1e-5)
    assert found.details["count"] == 200
    assert found.details["measured on"] == "held-out data"
    # Of unseen white noise no plane keeps more than another: 32 of 64 components keep half.
    assert found.floors["PCA, 32 components"] == half
    assert found.floors["mean image"] == pytest.approx(0.01, rel=0.05)


def test_rate_and_statistics_are_those_of_the_raw_latents(parts):
    found = Codec().measure(stand(parts)).details
    x = 4 * noise(200, 1)[:, :, ::2].double()
    nats = 0.5 * (x.square() + 0.01 - 1 - math.log(0.01)).sum((1, 2, 3)).mean().item()
    assert found["bits per image"] == pytest.approx(nats / math.log(2), rel=1e-5)
    assert found["bits per latent number"] == pytest.approx(nats / math.log(2) / 32, rel=1e-5)
    # Of white noise the bound is tight: 32 numbers, ½ log2(1 + 0.64 / 0.01) each.
    truth = 16 * math.log2(1 + 64)
    assert found["bits per image, normal law of each channel"] == pytest.approx(truth, abs=32 * 4 / math.sqrt(2 * 6400))
    [std], [kurtosis], [spectrum] = (found["channels"][name] for name in ("std", "kurtosis", "spectrum"))
    assert std == pytest.approx(math.sqrt(0.65), rel=4 / math.sqrt(2 * 6400))
    assert abs(kurtosis) < 4 * math.sqrt(24 / 6400)
    assert all(abs(power - 1) < 5 * math.sqrt(2 / 200) for power in spectrum)


def test_a_deterministic_one_has_no_rate(parts):
    found = Codec(fitted_on=0).measure(stand(parts, None))
    assert found.details["rate"] == NONE
    assert not any("bits" in name for name in found.details)
    assert found.floors == {}


def test_a_lossless_one_has_no_psnr_and_the_picture_shows_both_rows(parts):
    whole = parts.Stand(noise(20).clamp(-1, 1))
    metric = metrics_of(["autoencoder"], ["autoencoder.images=10", "autoencoder.fitted_on=0"])["autoencoder"]
    found = metric.measure(whole)
    assert found.value == 0
    assert found.details["figures"]["autoencoder"]["mean_psnr"] is None
    picture = metric.picture(found)
    assert picture is not None
    assert picture.size[0] > 4 * picture.size[1]  # ten images wide, two high
    lost = metric.picture(replace(found, shown=(torch.ones(1, 3, 8, 8), -torch.ones(1, 3, 8, 8))))
    assert lost is not None
    high, low = (lost.convert("L").getpixel((lost.width // 2, lost.height * k // 4)) for k in (1, 3))
    assert high > low  # originals above
    content = asdict(found)
    del content["hidden"], content["shown"]
    json.dumps(content)  # what is kept of it
    assert found.details["measured on"] == "training data (none are held out)"


def test_tables_name_what_they_hold():
    """A checkerboard of 1 and 3: mean 2, deviation 1, kurtosis −2, all power at one frequency; stripes at another."""
    board = 2 + torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    stripes = 5 + 3 * torch.tensor([1.0, -1.0]).repeat(2).expand(4, 4)
    found = statistics_of([Moments(torch.stack([board, stripes])[None])])
    assert table_of(found).rows == [("0", [2.0, 1.0, -2.0]), ("1", [5.0, 3.0, -2.0])]
    (table,) = spectra(found)
    # Ring 2 of 4 × 4 has the two frequencies of 2 along one side alone and four beside them; ring 3 that of both.
    rows = dict(table.rows)
    for ring, board_power, stripe_power in (("0", 0, 0), ("1", 0, 0), ("2", 0, 16 / 6), ("3", 16, 0)):
        low, high = sorted((board_power, stripe_power))
        assert rows[ring] == pytest.approx([(low + high) / 2, low, high], abs=1e-9)


def test_batches_change_nothing(parts):
    subject = stand(parts)
    one, many = (Codec(batch=size).measure(subject) for size in (200, 7))
    assert one.value == pytest.approx(many.value, rel=1e-5)
    assert one.details["bits per image"] == pytest.approx(many.details["bits per image"], rel=1e-6)
    assert one.protocol == many.protocol
    assert coded(subject.autoencoder, [noise(3), noise(30)]).originals.shape == (16, 1, 8, 8)


def test_vectors_are_refused(parts):
    with pytest.raises(CapabilityError, match="measures images; these data are none"):
        Codec().require(parts.Stand(torch.zeros(5, 2)))
