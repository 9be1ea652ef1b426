"""TAEF2 against an evaluation of its published layer list, on its own weights and on random ones."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsb.autoencoders.taef2 import TAEF2
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.metrics.similarity import psnr
from latentsb.normalisers import Statistics
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec

IMAGES = Spec((3, 32, 48))
SCALE = 255 / 2


def made(images: Spec = IMAGES, **kwargs: Any) -> TAEF2:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TAEF2(images, **kwargs).eval()


def conv(x: Tensor, w: Mapping[str, Tensor], name: str, stride: int = 1) -> Tensor:
    weight = w[name + ".weight"]
    return F.conv2d(x, weight, w.get(name + ".bias"), stride, weight.shape[-1] // 2)


def block(x: Tensor, w: Mapping[str, Tensor], name: str, pool: bool) -> Tensor:
    if pool:
        wide = conv(x, w, f"{name}.pool.0")
        grouped = wide.reshape(len(wide), 4, -1)
        mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
        normal = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(wide.shape)
        scaled = normal * w[f"{name}.pool.1.weight"][:, None, None] + w[f"{name}.pool.1.bias"][:, None, None]
        x = x + conv(scaled.clamp(min=0), w, f"{name}.pool.3")
    h = conv(conv(x, w, f"{name}.conv.0").clamp(min=0), w, f"{name}.conv.2").clamp(min=0)
    return (conv(h, w, f"{name}.conv.4") + x).clamp(min=0)


def encoded(images: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Latents of images in [0, 1] by the published layer list."""
    x = block(conv(images, w, "0"), w, "1", False)
    for down in (2, 6, 10):
        x = conv(x, w, str(down), 2)
        for k in (1, 2, 3):
            x = block(x, w, str(down + k), down == 10)
    return conv(x, w, "14")


def decoded(latents: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """Images in [0, 1] by the published layer list."""
    x = conv(3 * torch.tanh(latents / 3), w, "1").clamp(min=0)
    for first in (3, 8, 13):
        for k in (0, 1, 2):
            x = block(x, w, str(first + k), first == 3)
        x = conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2), w, str(first + 4))
    return conv(block(x, w, "18", False), w, "19")


def halves(codec: TAEF2) -> list[dict[str, Tensor]]:
    state = {k.removeprefix("model."): v for k, v in codec.state_dict().items()}
    return [{k.removeprefix(h): v for k, v in state.items() if k.startswith(h)} for h in ("encoder.", "decoder.")]


@torch.no_grad()
def test_layers_are_the_published_ones() -> None:
    codec = made().double()  # so that only the layers can differ
    rng = torch.Generator().manual_seed(1)
    for value in codec.model.parameters():
        value.copy_(0.05 * torch.randn(value.shape, generator=rng))
    x = torch.rand(2, *IMAGES.shape, generator=rng).double() * 2 - 1
    up, down = halves(codec)
    assert (sum(v.numel() for v in up.values()), sum(v.numel() for v in down.values())) == (1338528, 1338499)
    raw = codec.moments(x)
    assert raw.std is None
    assert raw.mean.shape[1:] == codec.latent.shape == (32, 4, 6)
    torch.testing.assert_close(raw.mean, encoded((x + 1) / 2, up), atol=1e-12, rtol=1e-9)
    far = 5 * torch.randn(raw.mean.shape, generator=rng).double()  # beyond where the clamp is linear
    torch.testing.assert_close(codec.raw_decode(far), 2 * decoded(far, down) - 1, atol=1e-12, rtol=1e-9)
    assert codec.decode(far).abs().max() <= 1


@torch.no_grad()
def test_all_of_an_image_is_seen_so_it_cannot_be_tiled() -> None:
    codec = made(Spec((3, 256, 64)))
    assert codec.tiles == "refused"
    x = torch.rand(1, 3, 256, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    other = x.clone()
    other[..., 128:, :] = -1
    assert (codec.moments(x).mean - codec.moments(other).mean)[..., 0, :].abs().max() > 1e-4


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"shape \(1, 32, 32\); for grey images write channels: 3"):
        TAEF2(Spec((1, 32, 32)))
    with pytest.raises(ArgumentError, match=r"the sides by 8; images have 32×36; nearest that fit: 32×32 and 32×40$"):
        TAEF2(Spec((3, 32, 36)))
    with pytest.raises(ArgumentError, match=r"have 60×60; nearest that fit: 56×56 and 64×64$"):
        TAEF2(Spec((3, 60, 60)))
    with pytest.raises(ArgumentError, match=r"have 60×5; nearest that fit: 64×8$"):
        TAEF2(Spec((3, 60, 5)))
    with pytest.raises(ArgumentError, match=r"weights: 'taesd' belongs to 'taesd', not to 'taef2'; .*: taef2"):
        TAEF2(IMAGES, weights="taesd")
    with pytest.raises(CapabilityError, match="kl"):
        made().loss(Batch(torch.arange(1), x0=torch.zeros(1, 3, 32, 48)), Draws.step(0, "x", 0, range(1)))
    with pytest.raises(DataError, match=r"weights of 'taef2': found no .* in .*nowhere"):
        made(weights=tmp_path / "nowhere").load()
    for name in ("resnet20", "resnet56"):
        save_file({"conv.weight": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        DataError,
        match=r"weights of 'taef2': found no \*_encoder\.safetensors and \*_decoder\.safetensors, or \S+, or a single "
        r"\*\.safetensors in \S+ \(it holds resnet20\.safetensors, resnet56\.safetensors\); put them there, or name",
    ):
        made(weights=tmp_path).load()


def test_namings_and_files_are_read_alike(tmp_path: Path) -> None:
    codec = made()
    up, down = halves(codec)
    pair, one = tmp_path / "pair", tmp_path / "one"
    for folder in (pair, one):
        folder.mkdir()
    save_file(up, pair / "x_encoder.safetensors")
    save_file(down, pair / "x_decoder.safetensors")
    joint = {}
    for half, values, ahead in (("encoder", up, 0), ("decoder", down, 1)):  # diffusers does not count the clamp
        for name, value in values.items():
            layer, rest = name.split(".", 1)
            joint[f"{half}.layers.{int(layer) - ahead}.{rest}"] = value
    save_file(joint, one / "taef2.safetensors")
    for weights in (pair, one, one / "taef2.safetensors"):
        torch.manual_seed(1)
        other = TAEF2(IMAGES, weights=weights)
        assert other.fingerprint() != codec.fingerprint()
        other.load()
        assert other.fingerprint() == codec.fingerprint()
    save_file({k: v for k, v in joint.items() if "pool" not in k}, one / "taef2.safetensors")
    with pytest.raises(DataError, match=r"does not fit: encoder\.11\.pool\.0\.weight is missing"):
        made(weights=one).load()


def photographs(shared: Path, shard: int) -> Iterator[Tensor]:
    """Photographs (1, 3, 256, 256) in [0, 255], in the order of a shard."""
    with tarfile.open(shared / "data" / "imagenet1k-sample-256" / f"train-00000{shard}.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                stream = tar.extractfile(member)
                assert stream is not None
                yield torch.from_numpy(np.array(Image.open(io.BytesIO(stream.read())))).movedim(2, 0)[None].float()


@pytest.fixture
def published(shared_data: Path) -> TAEF2:
    codec = made(Spec((3, 256, 256)), weights=shared_data / "weights" / "taef2")
    codec.load()
    return codec


@pytest.mark.shared
@torch.no_grad()
def test_published_weights_give_the_published_latents(shared_data: Path, published: TAEF2) -> None:
    up, down = (
        {k: v.float() for k, v in load_file(shared_data / "weights" / "taef2" / f"taef2_{half}.safetensors").items()}
        for half in ("encoder", "decoder")
    )
    pixels = next(photographs(shared_data, 0))
    raw, truth = published.moments(pixels / SCALE - 1).mean, encoded(pixels / 255, up)
    # Latents reach 5; forty convolutions in float32 leave an error of a few units of 2⁻²⁴ on them.
    torch.testing.assert_close(raw, truth, atol=2e-5, rtol=0)
    torch.testing.assert_close(published.raw_decode(raw), 2 * decoded(truth, down) - 1, atol=5e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(7200)
@torch.no_grad()
def test_published_latents_and_reconstructions_have_the_published_figures(shared_data: Path, published: TAEF2) -> None:
    """All latents of a thousand photographs; the quality of a hundred of them, beside that of another fifty."""
    notes = json.loads((shared_data / "weights" / "taef2" / "README.json").read_text())
    parts, quality = [], []
    for shard in (0, 1):
        for k, pixels in enumerate(photographs(shared_data, shard)):
            images = pixels / SCALE - 1
            raw = published.moments(images).mean
            parts.append(Statistics.of(raw))
            if shard == 0 and k < 100:
                quality.append(psnr(published.raw_decode(raw).clamp(-1, 1), images).item())
    found, truth = sum(parts[1:], parts[0]), notes["latent_stats_1000_imagenet_samples_256"]
    assert found.count == 1000 * 32 * 32
    for name, value in (("mean", found.mean), ("std", found.std)):
        np.testing.assert_allclose(value.numpy(), truth[f"channel_{name}"], atol=6e-5)  # printed to four digits
    overall = (found.std**2 + found.mean**2).mean() - found.mean.mean() ** 2
    assert found.mean.mean().item() == pytest.approx(truth["global_mean"], abs=6e-5)
    assert overall.sqrt().item() == pytest.approx(truth["global_std"], abs=6e-5)
    # Which fifty were published is not told: two means of 100 and 50 draws of one spread.
    spread = np.std(quality) * (1 / 100 + 1 / 50) ** 0.5
    assert abs(np.mean(quality) - notes["verified"]["recon_psnr_db"]["mean"]) < 3 * spread
