"""The KL autoencoder: its loss in closed form, its training, its weights from a folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentsb.autoencoders.kl import KL, divergence
from latentsb.data.arrays import Digits
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr, ssim
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec

SMALL: dict[str, Any] = {"widths": (8, 16), "groups": 4, "attention": False}
IMAGES = Spec((1, 8, 8))


def made(images: Spec = IMAGES, **kwargs: Any) -> KL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KL(images, **{**SMALL, **kwargs})


def test_divergence_is_that_of_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, std = torch.randn(3, 4, 2, 2, generator=rng), 0.2 + torch.rand(3, 4, 2, 2, generator=rng)
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(divergence(mean, std), truth)
    assert divergence(torch.zeros(1, 5), torch.ones(1, 5)).item() == 0.0


def test_posterior_is_as_wide_as_the_logarithm_of_its_variance_says() -> None:
    codec = made(latent_channels=2)
    last = codec.model.quant_conv
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([3.0, -1.0, 2 * math.log(0.25), 2 * math.log(5.0)]))
        found = codec.moments(torch.zeros(1, 1, 8, 8))
    assert found.std is not None
    torch.testing.assert_close(found.mean[0, :, 0, 0], torch.tensor([3.0, -1.0]))
    torch.testing.assert_close(found.std[0, :, 0, 0], torch.tensor([0.25, 5.0]))


class Known(KL):
    """A posterior and a decoder that are known, to check the loss alone."""

    def moments(self, images: Tensor) -> Any:
        from latentsb.autoencoder import Moments

        mean = images.mean((1, 2, 3))[:, None, None, None].expand(-1, *self.latent.shape)
        return Moments(mean, torch.full_like(mean, 1e-20 if self.exact else 0.5))

    def raw_decode(self, raw: Tensor) -> Tensor:
        return self.gain * raw.mean((1, 2, 3))[:, None, None, None].expand(-1, *self.images.shape)

    exact, gain = True, 1.0


def test_loss_is_absolute_error_and_weighted_divergence() -> None:
    codec = Known(IMAGES, **SMALL, kl_weight=0.1, latent_channels=2)
    assert (codec.images.numel, codec.latent.numel) == (64, 32)
    x = Digits().samples[:6]
    found = codec.loss(Batch(torch.arange(6), x0=x), Draws.step(0, "loss", 0, range(6)))
    flat = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    l1 = (x - flat).abs().mean((1, 2, 3))
    torch.testing.assert_close(found.terms["distance"], l1)
    torch.testing.assert_close(found.total, l1 + 0.1 * found.terms["kl"] / 64)
    torch.testing.assert_close(found.terms["psnr"], psnr(flat, x))
    torch.testing.assert_close(found.terms["ssim"], ssim(flat, x))
    codec.gain = 30.0
    bright = codec.loss(Batch(torch.arange(6), x0=x), Draws.step(0, "loss", 0, range(6)))
    torch.testing.assert_close(bright.terms["distance"], (x - 30 * flat).abs().mean((1, 2, 3)))
    torch.testing.assert_close(bright.terms["psnr"], psnr((30 * flat).clamp(-1, 1), x), msg="as shown, not as decoded")
    codec.exact, codec.gain = False, 1.0
    draws = Draws.step(0, "loss", 0, range(6))
    noisy = codec.loss(Batch(torch.arange(6), x0=x), draws)
    mean, numbers = x.mean((1, 2, 3)), codec.latent.numel
    truth = 0.5 * numbers * (mean**2 + 0.25 - 1 - torch.tensor(0.25).log())
    torch.testing.assert_close(noisy.terms["kl"], truth)
    noise = 0.5 * draws.normal("posterior", torch.empty(6, *codec.latent.shape)).mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(noisy.terms["distance"], (x - flat - noise).abs().mean((1, 2, 3)))


def test_loss_belongs_to_rows_and_counts_both_ends() -> None:
    codec, x = made(), Digits().samples
    a, b = (Batch(torch.arange(8), x0=x[k : k + 8]) for k in (0, 8))
    draws = Draws.step(0, "loss", 0, range(8))
    whole = codec.loss(a, draws).total
    half = codec.loss(a.select(slice(4, 8)), Draws.step(0, "loss", 0, range(4, 8))).total
    torch.testing.assert_close(half, whole[4:], atol=1e-5, rtol=0)
    both = codec.loss(Batch(a.index, x0=a.x0, x1=b.x0, images=a.x0), draws).total
    torch.testing.assert_close(both, (whole + codec.loss(b, draws.fork("x1")).total) / 2, atol=1e-5, rtol=0)


def test_trains_on_digits_to_a_better_image_than_the_mean() -> None:
    """The best constant image leaves a PSNR of 11.3 dB; sixty-four latent numbers per digit must do much better."""
    source = Digits()
    codec = made()
    assert codec.latent.shape == (4, 4, 4)
    optimiser = torch.optim.AdamW(codec.parameters(), 8e-3)
    stream = Stream(source, 0, 64, images=source)
    for step in range(60):
        batch = stream.batch(64 * step)
        optimiser.zero_grad()
        codec.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        optimiser.step()
    x = source.samples[:256]
    best = psnr(source.samples.mean(0).expand_as(x), x).mean()
    codec.eval()
    assert psnr(codec.round_trip(x), x).mean() > best + 3.0


def test_normaliser_replaces_the_scaling_factor() -> None:
    codec, x = made().eval(), Digits().samples[:300]
    codec.model.register_to_config(scaling_factor=123.0, shift_factor=4.5)
    with torch.no_grad():
        raw = codec.model.encode(x).latent_dist.mean
        codec.fit_normaliser(codec.moments(part).mean for part in x.split(64))
        latents = codec.encode(x).double()
        own = codec.model.decode(raw).sample.clamp(-1, 1)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.round_trip(x), own, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("shape", "factor"), [((1, 8, 8), 2), ((3, 12, 20), 2), ((4, 16, 8), 4), ((16, 8, 8), 1)])
def test_any_channels_and_sides(shape: tuple[int, ...], factor: int) -> None:
    codec = made(Spec(shape), widths=(4,) * (factor.bit_length()), groups=2, latent_channels=3)
    x = torch.zeros(1, *shape)
    assert codec.encode(x).shape[1:] == codec.latent.shape == (3, shape[1] // factor, shape[2] // factor)
    assert codec.decode(codec.encode(x)).shape == x.shape


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"widths: found \(8, 15\), expected multiples of groups = 4"):
        made(widths=(8, 15))
    with pytest.raises(ArgumentError, match=r"widths: 3 resolutions divide .* 8×6; nearest that fit: 8×4 and 8×8$"):
        made(Spec((1, 8, 6)), widths=(8, 8, 8))
    with pytest.raises(ArgumentError, match=r"found samples of shape \(2,\)"):
        made(Spec((2,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    made().model.save_pretrained(path)
    return path


def opened(weights: Path | str, images: Spec = IMAGES, **kwargs: Any) -> KL:
    torch.manual_seed(1)
    codec = KL(images, weights=weights, **kwargs)
    codec.load()
    return codec


def test_weights_and_their_shape_come_from_a_folder(folder: Path) -> None:
    original, unread = made(), KL(IMAGES, weights=folder)
    assert unread.trained
    assert not original.trained
    assert unread.fingerprint() != original.fingerprint()
    for weights in (folder, str(folder), folder / "diffusion_pytorch_model.safetensors"):
        assert opened(weights).fingerprint() == original.fingerprint()


def test_shape_of_a_new_model_and_of_known_weights() -> None:
    keys = dict.fromkeys(("weights", "latent_channels", "widths", "blocks", "groups", "attention", "quant"))
    new = {"latent_channels": 4, "widths": (32, 64), "blocks": 1, "groups": 16, "attention": True, "quant": True}
    assert KL.completed(keys) == new
    assert KL.completed({**keys, "blocks": 3, "widths": (8,)}) == {
        k: v for k, v in new.items() if k not in ("blocks", "widths")
    }
    found = KL.completed({**keys, "weights": "sd-vae-ft-mse"})
    assert found == {**new, "widths": (128, 256, 512, 512), "blocks": 2, "groups": 32}
    with torch.device("meta"):
        codec = KL(Spec((3, 256, 256)), weights="sd-vae-ft-mse")
    assert codec.latent.shape == (4, 32, 32)
    published = {"encoder": 34_163_592, "decoder": 49_490_179}
    for half, numbers in published.items():
        assert sum(v.numel() for v in getattr(codec.model, half).parameters()) == numbers
    with pytest.raises(ArgumentError, match=r"blocks: found 1; the weights 'sd-vae-ft-mse' have 2 \(leave it out\)"):
        KL(Spec((3, 64, 64)), weights="sd-vae-ft-mse", blocks=1)
    with pytest.raises(ArgumentError, match="for images of 3 channels, found 1; write channels: 3 in the data"):
        KL(Spec((1, 64, 64)), weights="sd-vae-ft-mse")
    with pytest.raises(ArgumentError, match="'taesdxl' belongs to 'taesd'"):
        KL(Spec((3, 64, 64)), weights="taesdxl")


def test_a_folder_that_is_gone_is_not_needed_for_a_known_shape(tmp_path: Path) -> None:
    codec = made()
    shape = {**KL.completed(dict.fromkeys(("weights", "latent_channels", "blocks", "quant", *SMALL))), **SMALL}
    assert KL(IMAGES, weights=tmp_path / "gone", **shape).latent == codec.latent
    with pytest.raises(DataError, match=r"found no config\.json and .* in .*gone; put"):
        KL(IMAGES, weights=tmp_path / "gone")


def test_older_names_of_the_attention_are_understood(folder: Path, tmp_path: Path) -> None:
    codec = KL(IMAGES, widths=(8, 16), groups=4)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    values = {}
    for name, value in codec.model.state_dict().items():
        for new, old in older.items():
            name = name.replace(f".{new}.", f".{old}.")
        values[name] = value
    assert any(".query." in name for name in values)
    codec.model.save_pretrained(tmp_path)
    save_file(values, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert opened(tmp_path).fingerprint() == codec.fingerprint()


def test_without_the_convolutions_around_the_latent(tmp_path: Path) -> None:
    codec = made(quant=False)
    assert codec.fingerprint() != made().fingerprint()
    codec.model.save_pretrained(tmp_path)
    assert opened(tmp_path).fingerprint() == codec.fingerprint()


def test_incomplete_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    def copy(name: str, **config: Any) -> Path:
        path = Path(shutil.copytree(folder, tmp_path / name))
        stored = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**stored, **config}))
        return path

    bare = copy("bare")
    (bare / "diffusion_pytorch_model.safetensors").rename(bare / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"found no config\.json and diffusion_pytorch_model\.safetensors"):
        opened(bare)
    cut = copy("cut")
    data = (cut / "diffusion_pytorch_model.safetensors").read_bytes()
    (cut / "diffusion_pytorch_model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be loaded"):
        opened(cut)
    with pytest.raises(ArgumentError, match=r"widths: found \[16, 16\]; the weights .* have \[8, 16\]"):
        opened(folder, widths=(16, 16))
    other = copy("other")
    made(Spec((1, 8, 8)), blocks=2).model.save_pretrained(tmp_path / "deep")
    shutil.copy(tmp_path / "deep" / "diffusion_pytorch_model.safetensors", other)
    with pytest.raises(DataError, match="unexpected keys"):
        opened(other)
    with pytest.raises(DataError, match="missing keys"):
        opened(copy("shallow", layers_per_block=2))
    with pytest.raises(DataError, match='kl cannot hold act_fn: "relu"'):
        opened(copy("foreign", act_fn="relu"))
