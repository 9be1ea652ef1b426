"""How like an image its reconstruction is: the traps of SSIM and of eight bits, and distances under their own names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.evaluate import metrics_of
from latentsb.features import FeatureNetwork, Features
from latentsb.metrics.perceptual import PERCEPTUAL, FeatureDistance, Lpips
from latentsb.metrics.reconstruction import Reconstructed, compare
from latentsb.metrics.similarity import ssim
from latentsb.pictures import from_uint8, to_uint8


def smooth(n, side=32, seed=0):
    """Images with structure at several scales, in [-1, 1]."""
    x = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    parts = [F.interpolate(F.avg_pool2d(x, k), size=side, mode="bilinear") * k for k in (1, 2, 4, 8)]
    return (sum(parts) / 6).clamp(-1, 1)


def blurred(x):
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def test_channels_in_the_wrong_place_are_refused_and_would_give_another_figure():
    x = smooth(4)
    y = blurred(x)
    torch.testing.assert_close(ssim(x[:, [2, 0, 1]], y[:, [2, 0, 1]]), ssim(x, y))
    # Five channels are not refused. The wrong order sees columns and channels as an image: blur hardly shows in it.
    a, b = (torch.cat([image, image[:, :2]], dim=1) for image in (x, y))
    right, wrong = ssim(a, b).mean(), ssim(a.movedim(1, 3), b.movedim(1, 3)).mean()
    assert wrong > right + 0.02
    for channels in (x, x[:, :1]):
        with pytest.raises(ValueError, match=r"\(B, C, H, W\), found \(4, 32, 32"):
            ssim(channels.movedim(1, 3), channels.movedim(1, 3))
    assert ssim(torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 4, 4)).item() == 1  # latents of few pixels are no mistake


def test_every_level_of_eight_bits_comes_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)
    cut = ((from_uint8(levels) + 1) * 127.5).to(torch.uint8)  # cut off in place of rounded: some fall by one
    assert (cut.movedim(1, 3).numpy() != levels).sum() > 30


def test_figures_come_with_their_standard_errors():
    x = smooth(50)
    y = x + 0.1 * torch.arange(1, 51)[:, None, None, None] / 50
    found = compare(x.clamp(-0.8, 0.8), y.clamp(-0.8, 0.8), pictures=True)
    values = ssim((x.clamp(-0.8, 0.8) + 1) / 2, (y.clamp(-0.8, 0.8) + 1) / 2, data_range=1.0).double()
    assert found["ssim_se"] == pytest.approx(float(values.std()) / math.sqrt(50))
    assert found["mean_psnr"] > found["psnr_of_mean_mse"]


class Pair(FeatureNetwork):
    """Two features: means of the left and of the right half."""

    name = "pair"

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        half = x.shape[3] // 2
        return torch.stack([x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))], dim=1)


@dataclass(frozen=True, kw_only=True)
class PairFeatures(Features):
    def require(self):
        pass

    def load(self):
        return Pair().eval()


def test_a_feature_distance_is_that_of_unit_vectors():
    def halves(left, right):
        return torch.cat([torch.full((1, 1, 4, 2), left), torch.full((1, 1, 4, 2), right)], dim=3)

    distance = FeatureDistance(network=PairFeatures()).load()
    assert distance.name == "pair feature distance"
    x = torch.cat([halves(0.5, 0.0), halves(0.2, 0.2), halves(0.1, 0.3), halves(0.4, 0.0)])
    y = torch.cat([halves(0.0, 0.2), halves(0.9, 0.9), halves(0.1, 0.3), halves(-0.1, 0.0)])
    torch.testing.assert_close(distance.between(x, y), torch.tensor([2.0, 0.0, 0.0, 4.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(distance.between(halves(0.3, 0.0), halves(0.3, 0.3)), torch.tensor([2 - math.sqrt(2)]))


def lpips_files(folder, seed=0):
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = {name: value * 2 for name, value in alexnet().features.state_dict().items()}
        heads = {f"alex.lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
    save_file({f"features.{name}": value for name, value in values.items()}, folder / "alexnet.safetensors")
    save_file(heads, folder / "lpips_v0.1_lin.safetensors")
    return values, heads


def test_lpips_is_torchmetrics_s(tmp_path):
    """Both with the same random backbone and heads."""
    module = pytest.importorskip("torchmetrics.functional.image.lpips")
    values, heads = lpips_files(tmp_path)
    theirs = module._LPIPS(pretrained=False, net="alex", pnet_rand=True)
    for name, value in values.items():
        [own] = [p for n, p in theirs.net.named_parameters() if n.split(".", 1)[1] == name]
        own.data.copy_(value)
    for k, head in enumerate(heads.values()):
        theirs.lins[k].model[-1].weight.data.copy_(head)
    ours = Lpips(path=tmp_path).load()
    x, y = smooth(3, 40), blurred(smooth(3, 40, seed=1))
    torch.testing.assert_close(ours.between(x, y), theirs(x, y).flatten().detach(), rtol=1e-4, atol=1e-6)
    assert ours.between(x, x).tolist() == [0, 0, 0]
    with pytest.raises(ArgumentError, match="from 31×31 on"):
        ours.check((3, 28, 28))
    assert Lpips(path=tmp_path).load()(x[..., :31, :31], y[..., :31, :31]).shape == (3,)


def test_no_distance_stands_in_for_another(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    assert PERCEPTUAL.names() == ["feature_distance", "lpips"]
    x = smooth(20, 8)[:, :1]
    coder = parts.Stand(x, bridge=parts.Coder(torch.eye(64)[:, :5]))
    metric = metrics_of(["reconstruction"], ["reconstruction.perceptual=lpips"])["reconstruction"]
    with pytest.raises(
        DataError, match=r"lpips_v0.1_lin.safetensors: there is no such file.*reconstruction.perceptual"
    ):
        metric.require(coder)
    (tmp_path / "lpips_lin").mkdir()
    lpips_files(tmp_path / "lpips_lin")
    metric.require(coder)
    with pytest.raises(CapabilityError, match="LPIPS reads"):
        metric.measure(coder)
    (tmp_path / "lpips_lin" / "alexnet.safetensors").unlink()
    with pytest.raises(DataError, match=r"alexnet.safetensors: there is no such file; put torchvision's AlexNet"):
        metric.require(coder)
    with pytest.raises(DataError, match=r"reconstruction.perceptual.network.path=…"):
        metrics_of(["reconstruction"], ["reconstruction.perceptual=feature_distance"])["reconstruction"].require(coder)


def test_the_distance_that_was_asked_for_is_a_column(parts):
    x = smooth(30, 8)[:, :1]
    stand = parts.Stand(x, bridge=parts.Coder(torch.eye(64)))
    plain = Reconstructed().measure(stand)
    found = Reconstructed(perceptual=FeatureDistance(network=PairFeatures())).measure(stand)
    assert plain.tables[0].columns == found.tables[0].columns[:-2]
    assert found.tables[0].columns[-2:] == ["pair feature distance", "± SE"]
    assert found.tables[0].better["pair feature distance"] == "lower"
    rows = dict(found.tables[0].rows)
    assert rows["bridge, faithful"][-2] < 1e-6
    assert rows["bridge, perceptual"][-2] > 3 * rows["bridge, perceptual"][-1] > 0
    assert found.protocol["perceptual"]["name"] == "pair feature distance"
    assert plain.protocol["perceptual"] is None
