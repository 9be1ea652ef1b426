"""Distances and nearest neighbours: closed forms, brute force, other libraries; the metric on images of known laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentsb.errors import CapabilityError, DataError
from latentsb.evaluate import metrics_of
from latentsb.features import FeatureNetwork, Features, ImageNetMobileNet, MnistLeNet
from latentsb.metrics.base import stamp
from latentsb.metrics.distances import Cloud, KernelSums, frechet, frechet_distance, kid
from latentsb.metrics.frechet import Frechet, _Chosen, _eight_bits, suited
from latentsb.metrics.manifold import manifold
from latentsb.pictures import from_uint8, to_uint8
from latentsb.tensors import Spec


def normal(n, d, seed=0, scale=1.0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=g, dtype=torch.float64) + shift


def mixed(n, d, seed):
    """Correlated, and not of mean 0."""
    return normal(n, d, seed) @ normal(d, d, 99 + seed) + normal(1, d, 7 * seed)


def test_the_distance_of_moments_is_scipy_s_and_torchmetrics_s():
    a, b = mixed(80, 6, 1), mixed(50, 6, 2)
    linalg = pytest.importorskip("scipy.linalg")
    one, other = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    root = linalg.sqrtm(one @ other).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(one + other - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)
    fid = pytest.importorskip("torchmetrics.image.fid")
    theirs = fid._compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-6)


def test_fewer_samples_than_features_are_no_obstacle():
    # Rank 4 in 30 dimensions; rotated into the plane that both lie in, the distance is that of 8 dimensions.
    a, b = normal(5, 30, 1), normal(5, 30, 2)
    basis = torch.linalg.qr(torch.cat([a, b]).T)[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis), rel=1e-6)
    assert math.isfinite(frechet(Cloud(a), Cloud(b)).error)


def test_the_standard_error_of_the_distance_is_the_spread_over_repetitions():
    """The estimate scatters as its own standard error says, which is known to √(1 / 2·300) = 4 %."""
    mix = torch.tensor([[2.0, 0, 0], [0.5, 1, 0], [0, 0, 0.3]], dtype=torch.float64)
    found = []
    for k in range(300):  # squares are skewed: where the means differ, so do the signs of both terms
        a, b = normal(400, 3, 2 * k + 1).square(), normal(250, 3, 2 * k + 2).square() @ mix + 3
        found.append(frechet(Cloud(a), Cloud(b)))
        assert k > 5 or found[-1] == pytest.approx(
            frechet(Cloud(b), Cloud(a)), rel=1e-6
        )  # the other map is the inverse
    values, errors = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
    assert float(errors.mean() / values.std()) == pytest.approx(1, abs=4 * 0.041)


def brute_kid(a, b):
    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    same = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return same + other - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


@pytest.mark.parametrize(("n", "m", "blocks"), [(7, 9, 20), (30, 11, 4), (2, 3, 1)])
def test_the_kernel_distance_is_its_definition(n, m, blocks):
    a, b = mixed(n, 4, 1) / 3, mixed(m, 4, 2) / 3
    found = kid(KernelSums(a, blocks), KernelSums(b, blocks))
    assert found.value == pytest.approx(brute_kid(a, b), rel=1e-10)
    assert math.isnan(found.error) == (blocks == 1)


def test_the_kernel_distance_is_torchmetrics_s():
    theirs = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = mixed(60, 5, 3), mixed(60, 5, 4)
    assert kid(a, b).value == pytest.approx(float(theirs(a, b, degree=3, gamma=None, coef=1.0)), rel=1e-9)


def test_the_error_of_the_kernel_distance_is_a_jackknife():
    a, b = mixed(24, 3, 1) / 4, mixed(18, 3, 2) / 4
    values = {"a": [], "b": []}
    for rows in torch.arange(24).tensor_split(6):
        kept = torch.ones(24, dtype=torch.bool).index_fill(0, rows, False)
        values["a"].append(brute_kid(a[kept], b))
    for rows in torch.arange(18).tensor_split(6):
        kept = torch.ones(18, dtype=torch.bool).index_fill(0, rows, False)
        values["b"].append(brute_kid(a, b[kept]))
    expected = math.sqrt(sum(5 / 6 * float(np.sum((np.array(v) - np.mean(v)) ** 2)) for v in values.values()))
    assert kid(KernelSums(a, 6), KernelSums(b, 6)).error == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_has_no_bias_where_the_other_has():
    found = [kid(normal(40, 5, 2 * k), normal(40, 5, 2 * k + 1)).value for k in range(200)]
    biased = [frechet_distance(normal(40, 5, 2 * k), normal(40, 5, 2 * k + 1)) for k in range(50)]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(200)
    assert np.mean(biased) > 10 * np.std(biased) / math.sqrt(50)


def brute_manifold(real, made, near, wide):
    def radius(x, k):
        return [sorted(float((p - q).norm()) for j, q in enumerate(x) if j != i)[k - 1] for i, p in enumerate(x)]

    close, far, own = radius(real, near), radius(real, wide), radius(made, near)
    d = [[float((p - q).norm()) for q in real] for p in made]
    n, m = len(real), len(made)
    return (
        sum(any(d[i][j] <= close[j] for j in range(n)) for i in range(m)) / m,
        sum(any(d[i][j] <= own[i] for i in range(m)) for j in range(n)) / n,
        sum(d[i][j] < far[j] for i in range(m) for j in range(n)) / (wide * m),
        sum(any(d[i][j] < far[j] for i in range(m)) for j in range(n)) / n,
    )


@pytest.mark.parametrize(("near", "wide"), [(3, 5), (1, 2), (4, 1)])
def test_neighbours_are_their_definitions(near, wide, monkeypatch):
    monkeypatch.setattr("latentsb.metrics.manifold.ROWS", 7)
    real, made = normal(40, 2, 1), normal(33, 2, 2, scale=1.3, shift=0.5)
    assert tuple(manifold(real, made, near=near, wide=wide)) == pytest.approx(brute_manifold(real, made, near, wide))


def test_the_extremes_of_neighbours():
    x = torch.randperm(4000, generator=torch.Generator().manual_seed(0))[:240].reshape(120, 2)  # whole numbers: exact
    assert tuple(manifold(x, x)) == (1.0, 1.0, 1.0, 1.0)
    assert tuple(manifold(x, x + 10_000)) == (0.0, 0.0, 0.0, 0.0)
    # One point, again and again: all of it lies among the real ones, and it covers none of the others.
    centre = x.double().mean(0).expand(120, 2)
    found = manifold(x, centre)
    assert (found.precision, found.recall) == (1.0, 0.0)
    assert found.coverage < 0.2
    with pytest.raises(ValueError, match="too few for 5 neighbours"):
        manifold(x[:5], x)


def test_equal_laws_have_a_density_of_one():
    # A real ball of 5 neighbours holds 5 of N − 1 real ones, and as large a share of samples on average.
    values = [manifold(normal(200, 2, 2 * k), normal(200, 2, 2 * k + 1)).density for k in range(30)]
    expected = 200 / 199
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(30)


class Flat(FeatureNetwork):
    """Features are the pixels."""

    name, images = "flat", Spec((1, 2, 2))

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.flatten(1)


@dataclass(frozen=True, kw_only=True)
class FlatFeatures(Features):
    def require(self):
        pass

    def load(self):
        return Flat().eval()


def pictures(n, seed, scale=0.2):
    return normal(n, 4, seed, scale).float().clamp(-1, 1).reshape(n, 1, 2, 2)


def test_the_metric_holds_samples_against_real_ones(parts):
    train, held = pictures(900, 1), pictures(300, 2)
    stand = parts.Stand(train, held, samples=pictures(300, 3) + 0.3, bridge=parts.Denoiser(Spec((1, 2, 2)), None))
    found = Frechet(network=FlatFeatures()).measure(stand)
    # Mean moved by 0.3 in four pixels: 4 · 0.09, to four standard errors of a mean of 300.
    assert found.value == pytest.approx(0.36, abs=4 * 2 * 0.3 * 2 * 0.2 / math.sqrt(300) + 0.01)
    assert abs(found.value - 0.36) < 4 * found.error + 0.01
    assert list(found.floors) == ["real: other held-out data", "Gaussian of the pixels"]
    assert all(value < 0.01 for value in found.floors.values())
    assert found.of == "samples: flat Fréchet distance"
    distances, shares = (dict(table.rows) for table in found.tables)
    assert [row[-1] for row in distances.values()] == [300] * 3
    assert "FID" not in str(found)
    assert "KID" not in str(found)
    assert distances["samples"][2] > 10 * distances["samples"][3]
    for name in found.floors:  # no bias
        assert abs(distances[name][2]) < 4 * distances[name][3]
    assert shares["samples"][3] < 0.5 < 0.9 < shares["real: other held-out data"][3]
    assert found.protocol["real"] == 900
    assert found.protocol["other_real"] == 300
    other = Frechet(network=FlatFeatures(), held_out=True).measure(stand)
    assert other.protocol["measured_against"] == "held-out data"
    assert stamp("frechet", found.protocol) != stamp("frechet", other.protocol)


def test_where_little_is_held_out_some_training_images_are_left(parts):
    bridge = parts.Denoiser(Spec((1, 2, 2)), None)
    stand = parts.Stand(pictures(500, 1), pictures(40, 2), samples=pictures(100, 3), bridge=bridge)
    chosen = Frechet()._choose(stand, 100)
    [(data, rows)] = chosen.reference
    assert data is stand.train
    assert len(rows) == 440
    (held, first), (same, left) = chosen.others
    assert held is stand.held
    assert same is stand.train
    assert (len(first), len(left)) == (40, 60)
    assert not set(rows) & set(left)
    assert [len(r) for _, r in Frechet()._choose(stand, 4000).others] == [40, 250]
    alone = parts.Stand(pictures(50, 1), samples=pictures(20, 2), bridge=bridge)
    assert next(iter(Frechet(network=FlatFeatures()).measure(alone).floors)) == "real: other training data"


def test_of_codes_draws_are_measured_too(parts):
    """Codes of two of four pixels: what is drawn from them has lost the others, and gained noise."""
    stand = parts.Stand(
        pictures(400, 1), pictures(200, 2), samples=pictures(200, 3), bridge=parts.Coder(torch.eye(4)[:, :2])
    )
    found = Frechet(network=FlatFeatures()).measure(stand)
    drawn = found.floors["the same, drawn from their codes"]
    assert drawn > 100 * found.floors["real: other held-out data"]
    assert (
        "the same, drawn from their codes" not in Frechet(network=FlatFeatures(), decoded=False).measure(stand).floors
    )


def test_the_gaussian_has_the_moments_of_the_pixels(parts):
    x = torch.cat([pictures(3000, 1), pictures(3000, 2)], dim=1)[:, :1] * torch.tensor([[1.0, 0.5], [0.2, 1.5]]) - 0.1
    stand = parts.Stand(x, bridge=None)
    drawn, fitted = Frechet()._gaussian(stand, Frechet()._choose(stand, 10), 4000)
    assert fitted == 2990
    a, b = x.flatten(1).double(), drawn.flatten(1).double()
    # Standard errors over 3,000 and 4,000 draws: σ√(1/n + 1/m) of means, √2 times that, relative, of variances.
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * a.std(0) * math.sqrt(1 / 3000 + 1 / 4000)).all()
    assert ((b.var(0) / a.var(0)).log().abs() < 4 * math.sqrt(2 / 3000 + 2 / 4000)).all()


def test_the_gaussian_of_few_images_has_their_unbiased_covariance(parts):
    """Of two images at ±d from their mean it lies on the line between them, with the variance 2 d²."""
    x = torch.tensor([0.1, -0.2, 0.05, 0.0]) + torch.tensor([[1.0], [-1.0]]) * torch.tensor([0.1, 0.05, -0.1, 0.02])
    stand = parts.Stand(x.reshape(2, 1, 2, 2), bridge=None)
    drawn, fitted = Frechet()._gaussian(stand, _Chosen([(stand.train, np.arange(2))], []), 4000)
    assert fitted == 2
    along = (drawn.flatten(1) - x.mean(0)) / (x[0] - x.mean(0))
    assert torch.allclose(along, along[:, :1].expand(-1, 4), atol=1e-3)
    # Relative standard error of a variance: √(2/n).
    assert float(along[:, 0].var()) == pytest.approx(2, rel=4 * math.sqrt(2 / 4000))


def test_what_the_metric_needs_is_told_before_anything_is_drawn(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    bridge = parts.Denoiser(Spec((1, 28, 28)), None)
    stand = parts.Stand(torch.zeros(9, 1, 28, 28), samples=torch.zeros(9, 1, 28, 28), bridge=bridge)
    with pytest.raises(DataError, match=r"lenet5.safetensors: there is no such file.*frechet.network.path=…"):
        Frechet().measure(stand)
    with pytest.raises(CapabilityError, match="no held-out data"):
        Frechet(held_out=True).require(stand)
    with pytest.raises(CapabilityError, match="needs images"):
        Frechet().require(parts.Stand(torch.zeros(9, 4)))
    with pytest.raises(CapabilityError, match=r"flat reads \(1, 2, 2\)"):
        Frechet(network=FlatFeatures()).measure(stand)
    assert stand.drawn == 0
    assert suited(Spec((1, 28, 28))) == MnistLeNet()
    assert suited(Spec((1, 64, 64))) == suited(Spec((3, 28, 28))) == ImageNetMobileNet()
    metric = metrics_of(["frechet"], ["frechet.network=mobilenet_v2", "frechet.network.size=96"])["frechet"]
    assert metric.network == ImageNetMobileNet(size=96)


def test_images_are_rounded_as_files_are():
    x = 1.2 * torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1.2
    torch.testing.assert_close(_eight_bits(x), from_uint8(to_uint8(x)), atol=1e-7, rtol=0)


def test_features_of_data_are_kept_beside_the_runs(tmp_path):
    from latentsb.evaluate import RunSubject

    calls = []

    def compute():
        calls.append(1)
        return torch.arange(6.0).reshape(2, 3)

    (tmp_path / "one").mkdir()
    stand = SimpleNamespace(run=SimpleNamespace(path=tmp_path / "one"))
    for of, times in (({"rows": 1}, 1), ({"rows": 1}, 1), ({"rows": 2}, 2)):
        assert torch.equal(RunSubject.kept(stand, "features", of, compute), torch.arange(6.0).reshape(2, 3))
        assert len(calls) == times
    first = min((tmp_path / "features").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    first.write_bytes(b"cut short")
    RunSubject.kept(stand, "features", {"rows": 1}, compute)
    assert len(calls) == 3
