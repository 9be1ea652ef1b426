"""The normaliser against numpy's float64 statistics; what the base class promises of every autoencoder."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments
from latentsb.autoencoders.identity import Identity
from latentsb.data.arrays import Digits
from latentsb.normalisers import NORMALISERS, Channel, Global, Limits, Normaliser, Statistics, Unchanged
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

RNG = np.random.default_rng(0)
# A channel far from zero: sums of squares in float32, or E[x²] − E[x]², would lose it.
RAW = (
    RNG.standard_normal((50, 3, 4, 5)).astype(np.float32) * np.array([1, 1e-2, 30], np.float32)[None, :, None, None]
    + np.array([0, 1e3, -5], np.float32)[None, :, None, None]
)


def batches(raw: np.ndarray = RAW, size: int = 7) -> list[Tensor]:
    return [torch.from_numpy(raw[k : k + size]) for k in range(0, len(raw), size)]


def flat(raw: np.ndarray = RAW) -> np.ndarray:
    return raw.astype(np.float64).transpose(1, 0, *range(2, raw.ndim)).reshape(raw.shape[1], -1)


def test_streamed_statistics_are_those_of_the_whole() -> None:
    found = Statistics.over(batches())
    assert found.count == 50 * 20
    np.testing.assert_allclose(found.mean.numpy(), flat().mean(1), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(found.std.numpy(), flat().std(1), rtol=1e-11)
    np.testing.assert_array_equal(found.low.numpy(), flat().min(1))
    np.testing.assert_array_equal(found.high.numpy(), flat().max(1))
    again = Statistics.from_json(json.loads(json.dumps(found.to_json())))
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.square, found.square)
    with pytest.raises(ValueError, match="no data"):
        Statistics.over([])


def test_noise_adds_its_variance() -> None:
    std = RNG.random(RAW.shape)
    found = Statistics.of(torch.from_numpy(RAW), torch.from_numpy(std))
    np.testing.assert_allclose(found.std.numpy() ** 2, flat().var(1) + (flat(std) ** 2).mean(1), rtol=1e-11)


@pytest.mark.parametrize(
    ("normaliser", "shift", "scale"),
    [
        (Channel(), flat().mean(1), flat().std(1)),
        (Global(), np.full(3, flat().mean()), np.full(3, flat().std())),
        (Limits(), (flat().max(1) + flat().min(1)) / 2, (flat().max(1) - flat().min(1)) / 2),
        (Unchanged(), np.zeros(3), np.ones(3)),
    ],
)
def test_affine_of_each_normaliser(normaliser: Normaliser, shift: np.ndarray, scale: np.ndarray) -> None:
    found = normaliser.affine(Statistics.over(batches()))
    np.testing.assert_allclose(found[0].numpy(), shift, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found[1].numpy(), scale, rtol=1e-11)


def test_constant_channels_are_not_scaled() -> None:
    for normaliser in (Channel(), Limits(), Global()):
        _, scale = normaliser.affine(Statistics.of(torch.full((4, 2, 3), 5.0)))
        assert scale.tolist() == [1.0, 1.0]


def test_words() -> None:
    assert NORMALISERS.names() == ["channel", "global", "limits", "none"]
    assert {"identity", "kl"} <= set(AUTOENCODERS.names())


class Doubling(Autoencoder):
    """`raw = 2 x + 3`, with a posterior of standard deviation 0.1."""

    def __init__(self, images: Spec, **kwargs: Any) -> None:
        super().__init__(images, images, **kwargs)
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def moments(self, images: Tensor) -> Moments:
        raw = self.weight * images + 3.0
        return Moments(raw, torch.full_like(raw, 0.1))

    def raw_decode(self, raw: Tensor) -> Tensor:
        return (raw - 3.0) / self.weight

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        return Loss(torch.zeros(len(batch)))


def test_latents_leave_normalised_and_decode_undoes_it() -> None:
    images = (Digits().samples[:200] + torch.linspace(-0.3, 0.3, 8)).clamp(-1, 1)
    codec = Doubling(Spec((1, 8, 8)))
    assert not codec.fitted
    codec.fit_normaliser(codec.moments(part).mean.detach() for part in images.split(32))
    assert codec.fitted
    latents = codec.encode(images).detach()
    # shift and scale are kept in float32: relative error 2⁻²⁴ each, on numbers of order one.
    assert abs(latents.double().mean().item()) < 1e-6
    assert latents.double().std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(codec.decode(latents), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.round_trip(images), images, atol=1e-6, rtol=0)
    draws = Draws.step(0, "x", 0, range(200))
    noise = codec.encode(images, draws).detach() - latents
    # The noise has standard deviation 0.1 raw, hence 0.1/scale; standard error 1/√(2·12,800).
    assert noise.std().item() == pytest.approx(0.1 / codec.scale.item(), rel=4 / (2 * 12_800) ** 0.5)
    torch.testing.assert_close(codec.encode(images, draws).detach() - latents, noise, rtol=0, atol=0)


def test_bounded_images_are_clamped() -> None:
    codec = Doubling(Spec((1, 2, 2)))
    assert codec.decode(torch.full((1, 1, 2, 2), 100.0)).max() == 1.0


def test_fingerprint_is_of_the_weights_alone() -> None:
    a, b = Doubling(Spec((1, 2, 2))), Doubling(Spec((1, 2, 2)))
    known = a.fingerprint()
    assert known == b.fingerprint()
    a.fit_normaliser([torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))])
    assert a.fingerprint() == known
    with torch.no_grad():
        a.weight.view(torch.int32)[0] += 1  # one unit in the last place
    assert a.fingerprint() != known
    assert Identity(Spec((1, 2, 2))).fingerprint() != known


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 3, 5), (7,), (2, 9)])
def test_identity_is_exact_for_any_shape(shape: tuple[int, ...]) -> None:
    codec = Identity(Spec(shape))
    x = 3.0 * torch.randn((5, *shape), generator=torch.Generator().manual_seed(0))
    assert codec.fitted
    assert torch.equal(codec.encode(x), x)
    assert torch.equal(codec.decode(x), x)
    normalised = Identity(Spec(shape), normaliser=Channel())
    normalised.fit_normaliser([x])
    others = [k for k in range(x.ndim) if k != 1]
    assert normalised.encode(x).mean(others).abs().max() < 1e-6
    torch.testing.assert_close(normalised.encode(x).std(others, correction=0), torch.ones(shape[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalised.round_trip(x), x, atol=1e-5, rtol=0)
