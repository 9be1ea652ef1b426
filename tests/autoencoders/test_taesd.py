"""The TAESD family against diffusers' AutoencoderTiny, in both namings, and the reach of one latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentsb.autoencoder import Autoencoder
from latentsb.autoencoders.taesana import TAESana
from latentsb.autoencoders.taesd import TAESD
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec

IMAGES = Spec((3, 48, 32))


def made(kind: type[Autoencoder], images: Spec = IMAGES, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return kind(images, **kwargs).eval()


def saved(folder: Path, channels: int) -> Any:
    """A tiny autoencoder of diffusers with random weights, and its folder."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(3)
    model = AutoencoderTiny(latent_channels=channels).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("channels", "weights"), [(4, "taesd"), (4, "taesdxl"), (16, "taesd3"), (16, "taef1")])
def test_same_as_diffusers(channels: int, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    model = saved(tmp_path / weights, channels)
    x = torch.rand(2, *IMAGES.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for given in (weights, tmp_path / weights):
        codec = made(TAESD, weights=given)
        assert codec.latent.shape == (channels, 6, 4)
        codec.load()
        raw = codec.moments(x).mean
        far = 4 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(2))
        assert (raw - model.encode(x).latents).abs().max() == 0.0
        for z in (raw, far):
            assert (codec.raw_decode(z) - model.decode(z).sample).abs().max() == 0.0


def test_the_published_naming_is_read_too(tmp_path: Path) -> None:
    model = saved(tmp_path / "diffusers", 4)
    files: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, value in model.state_dict().items():
        half, _, layer, rest = name.split(".", 3)  # the published list begins with the clamp
        files[half][f"{int(layer) + (half == 'decoder')}.{rest}"] = value.half()
    (tmp_path / "pair").mkdir()
    for half, values in files.items():
        save_file(values, tmp_path / "pair" / f"taesd_{half}.safetensors")
    codec = made(TAESD, weights=tmp_path / "pair")
    codec.load()
    for name, value in model.state_dict().items():
        half, _, layer, rest = name.split(".", 3)
        own = codec.model.state_dict()[f"{half}.{int(layer) + (half == 'decoder')}.{rest}"]
        assert own.dtype == torch.float32
        assert torch.equal(own, value.half().float())


def test_channels_are_those_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "there", 16)
    keys = {"weights": tmp_path / "there", "latent_channels": None}
    assert TAESD.completed(keys) == {"latent_channels": 16}
    assert TAESD.completed({**keys, "weights": "taesdxl"}) == {"latent_channels": 4}
    assert TAESD.completed({**keys, "weights": tmp_path / "gone"}) == {}
    assert made(TAESD, weights=tmp_path / "gone", latent_channels=16).latent.channels == 16
    with pytest.raises(DataError, match="gone"):
        made(TAESD, weights=tmp_path / "gone")
    for weights, channels in (("taef1", 16), (tmp_path / "there", 16)):
        with pytest.raises(ArgumentError, match=rf"latent_channels: found 4; .* have {channels} \(leave it out\)"):
            made(TAESD, weights=weights, latent_channels=4)
    with pytest.raises(ArgumentError, match=r"'taef2' belongs to 'taef2', not to 'taesd'; .*: taesd, taesdxl, taesd3"):
        made(TAESD, weights="taef2")
    with pytest.raises(ArgumentError, match="channels: 3"):
        made(TAESD, Spec((1, 48, 32)))
    with pytest.raises(CapabilityError):
        made(TAESD).loss(Batch(torch.arange(1), x0=torch.zeros(1, *IMAGES.shape)), Draws.step(0, "x", 0, range(1)))
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    with pytest.raises(DataError, match=r"weights 'taesd': found no .* in .*taesd; run 'latentsb fetch taesd', or put"):
        made(TAESD).load()


@torch.no_grad()
def test_a_latent_sees_a_bounded_neighbourhood() -> None:
    """The reach in pixels, by hand: (k − 1)/2 times the stride so far, over all convolutions on the way.

    One convolution and three of a block at full size, then per resolution one of stride 2 and nine; the last one.
    """
    reach = 4 * 1 + (1 + 9 * 2) + (2 + 9 * 4) + (4 + 9 * 8) + 8
    codec = made(TAESD, Spec((3, 8, 512))).double()
    assert codec.tiles == "exact"
    x = torch.rand(1, 3, 8, 512, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    other = x.clone()
    other[..., :200] = 0.0
    moved = (codec.moments(x).mean - codec.moments(other).mean).abs().amax((0, 1, 2))
    first = 200 + reach  # pixels from here on are too far from what was changed
    assert moved[first // 8 + 1 :].max() == 0.0
    assert moved[: 200 // 8].min() > 0.0


@torch.no_grad()
def test_sana_s_layout(tmp_path: Path) -> None:
    images = Spec((3, 64, 96))
    codec = made(TAESana, images, weights=tmp_path)
    assert codec.latent.shape == (32, 2, 3)
    x = torch.rand(1, *images.shape)
    assert codec.decode(codec.encode(x)).shape == x.shape
    # Where the published lists have their convolutions with stride, without bias, and their widest blocks.
    own = {k: tuple(v.shape) for k, v in codec.model.state_dict().items()}
    assert own["encoder.0.weight"] == (32, 3, 3, 3)
    assert own["encoder.2.weight"] == (64, 32, 3, 3)
    assert own["encoder.17.weight"] == (32, 64, 3, 3)
    bare = [k.removesuffix(".weight") for k in own if k.endswith(".weight") and k.replace("weight", "bias") not in own]
    assert bare == [*(f"encoder.{k}" for k in (5, 9, 13)), *(f"decoder.{k}" for k in (7, 12, 17, 22, 27))]
    assert own["decoder.1.weight"] == (256, 32, 3, 3)
    assert own["decoder.29.weight"] == (3, 64, 3, 3)
    assert own["decoder.7.weight"] == (128, 256, 3, 3)
    save_file({k: v.half() for k, v in codec.model.state_dict().items()}, tmp_path / "taesana.safetensors")
    torch.manual_seed(5)
    other = TAESana(images, weights=tmp_path)
    other.load()
    assert torch.equal(other.model.decoder[29].bias, codec.model.decoder[29].bias.half().float())
