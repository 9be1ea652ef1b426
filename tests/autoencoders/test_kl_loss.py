"""What a KL autoencoder is trained with: distance, feature loss, divergence, average; each in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsb.autoencoder import Moments
from latentsb.autoencoders.kl import KL
from latentsb.data.arrays import Digits
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.experiment import build
from latentsb.features import FeatureNetwork, Features
from latentsb.latents import latents_of
from latentsb.metrics.perceptual import FeatureDistance
from latentsb.process.distances import Absolute, Squared
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Batch, Spec
from latentsb.trainer import Trainer

IMAGES = Spec((1, 4, 4))
SMALL: dict[str, Any] = {"widths": (4, 4), "groups": 2, "attention": False, "latent_channels": 2}


class Pixels(FeatureNetwork):
    """The image itself."""

    name = "pixels"

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.flatten(1)


@dataclass(frozen=True, kw_only=True)
class PixelFeatures(Features):
    def require(self) -> None:
        pass

    def load(self) -> Pixels:
        return Pixels()


class Linear(KL):
    """Encoder and decoder are one orthonormal map of the mean over the image, scaled; the posterior's width is free.

    Everything but its two numbers is given, so that its best loss is known.
    """

    def __init__(self, **keys: Any) -> None:
        super().__init__(IMAGES, **SMALL, **keys)
        self.up = torch.nn.Parameter(torch.tensor(0.7))
        self.down = torch.nn.Parameter(torch.tensor(0.7))
        self.width = torch.nn.Parameter(torch.tensor(-1.0))

    def moments(self, images: Tensor) -> Moments:
        # An even value of sixteen pixels is a number 4 v along the unit direction.
        along = 4 * images.mean((1, 2, 3))
        mean = torch.zeros(len(images), *self.latent.shape)
        mean[:, 0, 0, 0] = self.up * along
        std = torch.ones_like(mean)
        std[:, 0, 0, 0] = self.width.exp()
        return Moments(mean, std)

    def raw_decode(self, raw: Tensor) -> Tensor:
        return (self.down * raw[:, 0, 0, 0] / 4)[:, None, None, None].expand(-1, *self.images.shape)


def even(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1).expand(-1, *IMAGES.shape).float()


def test_the_best_linear_autoencoder_is_probabilistic_pca() -> None:
    """Of x = v e with variance S and a decoder of noise σ² = kl_weight / 2 the optimum is known (Tipping and Bishop).

    Its decoder is `down² = S − σ²`, its posterior variance `σ² / S`, and its rate `½ log(S / σ²)` nats.
    """
    variance, noise = 4.0, 0.25
    codec = Linear(distance=Squared(), kl_weight=2 * noise)
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=rng, dtype=torch.float64)
    x = even((values - values.mean()) / values.std(correction=0) * math.sqrt(variance) / 4)
    numbers = [codec.up, codec.down, codec.width]
    optimiser = torch.optim.LBFGS(numbers, max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = codec.loss(Batch(torch.arange(len(x)), x0=x), Draws.step(0, "x", 0, range(len(x)))).total.mean()
        found.backward()
        return found

    optimiser.step(loss)
    s2, down = (2 * codec.width).exp().item(), codec.down.item() ** 2
    # The draws' own variance and covariance with x are off by √(2/20,000) and 1/√20,000.
    assert s2 == pytest.approx(noise / variance, rel=0.03)
    assert down == pytest.approx(variance - noise, rel=0.03)
    assert codec.up.item() * codec.down.item() == pytest.approx(1 - noise / variance, rel=0.03)
    with torch.no_grad():
        found = codec.loss(Batch(torch.arange(len(x)), x0=x), Draws.step(0, "x", 0, range(len(x))))
    assert found.terms["kl"].mean().item() == pytest.approx(0.5 * math.log(variance / noise), rel=0.03)
    # −log p(x) of that model, from its evidence bound, which is tight there: 16 numbers, one of variance S.
    bound = found.total.mean().item() / (2 * noise) * 16
    assert bound == pytest.approx(0.5 + 0.5 * math.log(variance / noise), rel=0.03)


@pytest.mark.parametrize(("distance", "power"), [(Absolute(), 1), (Squared(), 2)])
def test_the_distance_is_that_of_pixels(distance: Any, power: int) -> None:
    codec = Linear(distance=distance, kl_weight=0.0)
    with torch.no_grad():
        codec.width.fill_(-60.0)
        x = even(torch.tensor([0.5, -0.2, 0.0]))
        found = codec.loss(Batch(torch.arange(3), x0=x), Draws.step(0, "x", 0, range(3)))
    error = (1 - 0.49) * torch.tensor([0.5, 0.2, 0.0])
    torch.testing.assert_close(found.total, error**power)
    torch.testing.assert_close(found.terms["distance"], error**power)


def test_a_feature_loss_on_the_image_itself_is_its_squared_error() -> None:
    """Of unit vectors: with images of one length r, `|x̂ − x|² / r²`."""
    codec = Linear(perceptual=FeatureDistance(network=PixelFeatures()), perceptual_weight=3.0, kl_weight=0.0)
    assert codec.perceptual is not None
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(5, 16, generator=rng)).reshape(5, 1, 4, 4) for _ in range(2))
    x.requires_grad_()
    found = codec.perceptual(x, y)
    torch.testing.assert_close(found, 16 * (x - y).square().mean((1, 2, 3)))
    [slope] = torch.autograd.grad(found.sum(), x)
    # On the sphere: 2 (x − y) without its part along x.
    tangent = -2 * (y - (x * y).sum((1, 2, 3), keepdim=True) * x)
    torch.testing.assert_close(slope, tangent)
    with torch.no_grad():
        codec.width.fill_(-60.0)
        images = even(torch.tensor([0.5, -0.2])).clone()
        images[:, 0, 0, 0] = 0.9
        loss = codec.loss(Batch(torch.arange(2), x0=images), Draws.step(0, "x", 0, range(2)))
        flat = 0.49 * images.mean((1, 2, 3), keepdim=True).expand_as(images)
    cosine = torch.nn.functional.cosine_similarity(flat.flatten(1), images.flatten(1))
    torch.testing.assert_close(loss.terms["perceptual"], 2 - 2 * cosine)
    torch.testing.assert_close(loss.total, (flat - images).abs().mean((1, 2, 3)) + 3 * (2 - 2 * cosine))


def test_the_feature_network_is_frozen_and_no_part_of_the_model() -> None:
    plain = KL(IMAGES, **SMALL)
    codec = KL(IMAGES, **SMALL, perceptual=FeatureDistance(network=PixelFeatures()))
    codec.load()
    assert codec.perceptual_weight == 1.0
    assert codec.state_dict().keys() == plain.state_dict().keys()
    assert len(list(codec.parameters())) == len(list(plain.parameters()))
    assert codec.perceptual is not None
    distance = codec.perceptual.load(IMAGES.shape)
    x = torch.rand(2, *IMAGES.shape)
    codec.loss(Batch(torch.arange(2), x0=x), Draws.step(0, "x", 0, range(2))).total.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    assert not distance.training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = codec.perceptual(x.bfloat16(), x.flip(3))
    assert short.dtype == torch.float32


RECIPE = """
name: x
data: {name: digits}
autoencoder: {name: kl, widths: [4, 4], groups: 2, attention: false, KEYS}
bridge: {name: flow, network: {name: mlp}}
stages: [{train: autoencoder}]
"""


STAGES = """
stages: [{train: autoencoder, images: 320, lr: 1e-2, ema: {half_life: 4000}}, {train: bridge, images: 64}]
train: {batch: 16, warmup: 0}
"""


def recipe(keys: str) -> Recipe:
    return Recipe.parse(RECIPE.replace("KEYS", keys))


def test_a_feature_loss_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    whole = recipe("perceptual: {name: feature_distance, network: mnist_lenet}, distance: squared")
    resolved = whole.resolved()["autoencoder"]
    assert resolved["perceptual_weight"] == 1.0
    assert resolved["distance"] == {"name": "squared"}
    with pytest.raises(DataError, match=r"no such file; .*: autoencoder\.perceptual\.network\.path=…"):
        build(whole)
    build(whole, weights=False)  # what was trained needs no feature network
    assert "perceptual_weight" not in {k for k, v in recipe("kl_weight: 0.1").resolved()["autoencoder"].items() if v}
    with pytest.raises(ArgumentError, match="perceptual_weight: found 2, but no `perceptual` that it weighs"):
        KL(IMAGES, **SMALL, perceptual_weight=2.0)


@pytest.mark.shared
def test_a_feature_loss_on_other_images_is_refused(shared_data: Path) -> None:
    network = f"{{name: cifar_resnet, path: {shared_data / 'weights' / 'cifar10_resnet'}, depth: 20}}"
    with pytest.raises(CapabilityError, match=r"autoencoder\.perceptual: images: CIFAR ResNet-20 reads \(3, 32, 32\)"):
        build(recipe(f"perceptual: {{name: feature_distance, network: {network}}}"))


def test_the_bridge_lives_in_the_latents_of_the_averaged_autoencoder(tmp_path: Path) -> None:
    """With a long average the weights of the last step are another autoencoder."""
    two = RECIPE.replace("KEYS", "kl_weight: 1e-4").replace("stages: [{train: autoencoder}]", STAGES)
    whole = Recipe.parse(two, label="two")
    run = Run.create(whole, tmp_path / "two")
    Trainer(run, build(whole), device="cpu").fit()
    run.close()
    first = Recipe.parse(two.replace(", {train: bridge, images: 64}", ""), label="one")
    alone = Run.create(first, tmp_path / "one")
    Trainer(alone, build(first), device="cpu").fit()
    alone.close()
    averaged, last = (alone.experiment(weights, "cpu").autoencoder for weights in ("ema", "model"))
    assert averaged.fingerprint() != last.fingerprint()
    for weights in ("ema", "model"):  # the second stage averages the bridge alone
        codec = run.experiment(weights, "cpu").autoencoder
        assert codec.fingerprint() == averaged.fingerprint()
    images = Digits().samples[:20]
    latents = latents_of(run.path, run.experiment("ema", "cpu")).read(np.arange(20))
    torch.testing.assert_close(latents.x0, codec.encode(images), atol=2e-2, rtol=0)
    with torch.no_grad():
        assert (codec.normalise(last.moments(images).mean) - codec.encode(images)).abs().max() > 0.1
