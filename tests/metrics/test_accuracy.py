"""Accuracy and Fréchet distance: closed forms, a stand-in classifier, and published networks on real images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.features import CifarResNet, Classifier, Features, LeNet, MnistLeNet, ResNet
from latentsb.metrics.accuracy import Accuracy, confusion, spread
from latentsb.metrics.base import Drawn
from latentsb.metrics.frechet import frechet_distance
from latentsb.tensors import Spec


def test_the_distance_of_gaussians_is_that_of_their_moments():
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]

    def sample(n, mean, variances):  # exactly these moments: whitened first
        x = torch.randn(n, 3, generator=g, dtype=torch.float64)
        x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
        return x * torch.tensor(variances, dtype=torch.float64).sqrt() @ basis.T + mean

    a, b = sample(50, 0.0, [1.0, 4.0, 9.0]), sample(70, 2.0, [4.0, 4.0, 1.0])
    # Common eigenvectors: |m|² + Σ (√a − √b)².
    assert frechet_distance(a, b) == pytest.approx(3 * 4 + 1 + 0 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(torch.zeros(5, 3), a) == pytest.approx(14)  # a singular covariance
    # Covariances that do not commute: tr (C_a C_b)^{1/2} is the sum of the roots of the product's eigenvalues.
    a, b = a @ torch.randn(3, 3, generator=g, dtype=torch.float64), b + 0.3 * b.flip(1) * b[:, :1]
    one, other = torch.cov(a.T), torch.cov(b.T)
    cross = torch.linalg.eigvals(one @ other).real.sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + one.trace() + other.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_spread_and_confusion():
    labels, found = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2, 2])
    assert confusion(labels, found, 3).tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    features = torch.tensor([[0.0, 0], [2, 0], [1, 1], [1, 1], [1, 1], [5, 5]])
    assert spread(features, labels, 3)[:2].tolist() == [2.0, 0.0]
    assert math.isnan(spread(features, labels, 3)[2])


class Corner(Classifier):
    """Sees as class the number in the corner of the image; features are two more pixels."""

    name, classes, images = "corner", 5, Spec((1, 2, 2))

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.flatten(1)

    def logits(self, features):
        return -(features[:, :1] - torch.arange(5)).abs()


@dataclass(frozen=True, kw_only=True)
class CornerFeatures(Features):
    def require(self):
        pass

    def load(self):
        return Corner().eval()


def images(labels, wrong=0, width=1.0, seed=0):
    x = width * torch.randn(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    x[:, 0, 0, 0] = labels.float()
    x[:wrong, 0, 0, 0] = (labels[:wrong] + 1).float() % 5
    return x


def test_accuracy_counts_and_tells_collapse(parts):
    labels = torch.arange(500) % 5
    bridge = parts.Denoiser(Spec((1, 2, 2)), None, classes=5)

    def given(guidance):  # guidance 1: a fifth is wrong; 3: all right, but of half the spread
        wrong, width = {1.0: (100, 1.0), 3.0: (0, 0.5)}[guidance]
        return Drawn(images(labels, wrong, width, seed=int(guidance)), labels)

    stand = parts.Stand(
        images(labels), images(labels, 50, seed=9), labels=labels, held_labels=labels, bridge=bridge,
        samples=given, classes=5,
    )  # fmt: skip
    found = Accuracy(classifier=CornerFeatures(), guidance=(1.0, 3.0)).measure(stand)
    assert stand.drawn == 2
    assert found.value == 1.0
    assert found.of == "samples, guidance 3"
    assert found.floors == {"real: held-out data": 0.9, "real: training data": 1.0, "chance": 0.2}
    rows = dict(found.tables[0].rows)
    assert rows["guidance 1"][:2] == [0.8, pytest.approx(math.sqrt(0.8 * 0.2 / 500))]
    assert rows["guidance 3"][2] < 0.3 < 0.7 < rows["guidance 1"][2]
    assert rows["guidance 3"][3] > 5 * rows["real: training data"][3]
    assert found.details["per_class"]["1"] == pytest.approx([0.8] * 5)
    assert sum(map(sum, found.details["confusion"]["3"])) == 500
    assert found.protocol["classifier"]["name"] == "corner"


def test_each_class_is_held_to_itself(parts):
    """Class 0 is a tenth as wide as the others; its samples are twice too wide and look like class 1."""
    labels = torch.arange(2000) % 5
    real, made = images(labels, seed=1), images(labels, seed=2)
    for x, width in ((real, 0.1), (made, 0.2)):
        x[labels == 0] *= width
    made[labels == 0, 0, 0, 0] = 1.0
    bridge = parts.Denoiser(Spec((1, 2, 2)), None, classes=5)
    stand = parts.Stand(real, labels=labels, bridge=bridge, samples=lambda guidance: Drawn(made, labels), classes=5)
    found = Accuracy(classifier=CornerFeatures()).measure(stand)
    assert found.details["per_class"]["1"] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert found.details["class balance of the answers"] == "0.000 to 0.400"
    # Variances over 400 images of three pixels have a relative standard error of √(2/1200), their ratios of 6 %.
    assert dict(found.tables[0].rows)["guidance 1"][2] == pytest.approx((4 + 4 * 1) / 5, abs=4 * 0.06 * 20**0.5 / 5)


def test_what_does_not_fit_is_told(parts, tmp_path, monkeypatch):
    labels = torch.arange(20) % 5
    x = images(labels)
    plain = parts.Stand(x, labels=labels, bridge=parts.Denoiser(Spec((1, 2, 2)), None))
    with pytest.raises(CapabilityError, match="needs a bridge with classes"):
        Accuracy(classifier=CornerFeatures()).require(plain)
    seven = parts.Stand(x, labels=labels, classes=7, bridge=parts.Denoiser(Spec((1, 2, 2)), None, classes=7))
    with pytest.raises(CapabilityError, match="does not tell the 7 classes"):
        Accuracy(classifier=CornerFeatures()).measure(seven)
    with pytest.raises(DataError, match=r"resnet56_fp16.safetensors: there is no such file; put the weights"):
        Accuracy(classifier=CifarResNet(path=tmp_path)).require(seven)
    with pytest.raises(ArgumentError, match="at least one scale"):
        Accuracy(guidance=())
    with pytest.raises(ArgumentError, match=r"6n \+ 2"):
        CifarResNet(depth=51)
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path / "all"))
    assert MnistLeNet().file == tmp_path / "all" / "mnist_lenet" / "lenet5.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet20_fp16.safetensors")
    with pytest.raises(DataError, match="does not hold the weights of CIFAR ResNet-20"):
        CifarResNet(path=tmp_path, depth=20).load()
    (tmp_path / "lenet5.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"lenet5\.safetensors: cannot be loaded"):
        MnistLeNet(path=tmp_path).load()
    with pytest.raises(ArgumentError, match=r"reads \(3, 32, 32\), found \(3, 64, 64\)"):
        ResNet(20).read(torch.zeros(1, 3, 64, 64))


def test_networks_have_the_published_sizes():
    # He et al., Table 6: 0.27 M and 0.85 M.
    assert sum(p.numel() for p in ResNet(20).parameters()) == 269_722
    assert sum(p.numel() for p in ResNet(56).parameters()) == 853_018
    assert ResNet(20).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
    assert LeNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 84)


@pytest.mark.shared
def test_the_lenet_reads_mnist(shared_data: Path) -> None:
    network = MnistLeNet(path=shared_data / "weights" / "mnist_lenet").load()
    with np.load(shared_data / "data" / "mnist" / "mnist_test.npz", allow_pickle=False) as held:
        x, y = torch.from_numpy(held["x"][:2000, None]).float() / 127.5 - 1, torch.from_numpy(held["y"][:2000]).long()
    share = float((network.read(x)[1] == y).double().mean())
    # 99.07 % of all 10,000: the first 2,000 are a sample of them.
    assert abs(share - 0.9907) < 4 * math.sqrt(0.9907 * 0.0093 / 2000)


def cifar(path: Path, n: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    import io
    import tarfile

    from PIL import Image

    x, y, keys = {}, {}, []
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, kind = member.name.rpartition(".")
            content = archive.extractfile(member).read()
            if kind == "cls":
                y[key] = int(content)
            else:
                x[key] = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                keys.append(key)
            if n is not None and len(x) == len(y) == n:
                break
    pixels = torch.from_numpy(np.stack([x[k] for k in keys])).movedim(3, 1).float() / 127.5 - 1
    return pixels, torch.tensor([y[k] for k in keys])


@pytest.mark.shared
@pytest.mark.parametrize(("depth", "n", "published"), [(20, 600, 0.810), (56, 300, 0.832)])
def test_the_resnets_read_cifar(shared_data: Path, depth: int, n: int, published: float) -> None:
    network = CifarResNet(path=shared_data / "weights" / "cifar10_resnet", depth=depth).load()
    assert network.sha256
    x, y = cifar(shared_data / "data" / "cifar10" / "test-000000.tar.gz", n)
    share = float((network.read(x)[1] == y).double().mean())
    assert abs(share - published) < 4 * math.sqrt(published * (1 - published) / n)


@pytest.mark.shared
@pytest.mark.slow
def test_the_resnet_reads_all_of_cifar_s_test_images(shared_data: Path) -> None:
    network = CifarResNet(path=shared_data / "weights" / "cifar10_resnet").load()
    x, y = cifar(shared_data / "data" / "cifar10" / "test-000000.tar.gz")
    assert len(x) == 10_000
    assert float((network.read(x)[1] == y).double().mean()) == pytest.approx(0.832, abs=5e-4)


@pytest.mark.shared
def test_weights_are_read_as_stored(shared_data: Path) -> None:
    path = shared_data / "weights" / "cifar10_resnet"
    stored = load_file(path / "resnet20_fp16.safetensors")
    own = CifarResNet(path=path, depth=20).load().state_dict()
    assert all(torch.equal(own[name], value.to(own[name].dtype)) for name, value in stored.items())
