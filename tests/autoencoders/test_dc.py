"""The deep-compression autoencoder: published shapes, against diffusers' own model, its weights from a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from latentsb.autoencoders.dc import DC
from latentsb.data.arrays import Digits
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.metrics.similarity import psnr
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.weights import KNOWN

IMAGES = Spec((3, 16, 8))
SMALL: dict[str, Any] = {
    "weights": None,
    "widths": (8, 16, 16),
    "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 2, 1),
    "attention": 1,
    "head_width": 4,
    "latent_channels": 4,
}
SHAPE = {**{k: v for k, v in SMALL.items() if k != "weights"}, "scales": (5,), "shuffle": False, "batch_norm": False}
IN = {"shuffle": True, "batch_norm": True, "scales": (), "encoder_blocks": (0, 1, 1), "decoder_blocks": (0, 1, 2)}


def made(images: Spec = IMAGES, **kwargs: Any) -> DC:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DC(images, **{**SMALL, **kwargs})


def pictures(n: int = 3, images: Spec = IMAGES) -> torch.Tensor:
    return torch.rand(n, *images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


BYTES = {"f32c32-sana": 1.25e9, "f32c32": 1.29e9, "f64c128": 2.71e9, "f128c512": 4.48e9}
"""Sizes of the published files, as their pages tell them to three digits."""


@pytest.mark.parametrize("name", [name for name, found in KNOWN.items() if found.autoencoder == "dc"])
def test_published_shapes_have_the_published_sizes(name: str) -> None:
    factor, channels = (int(part) for part in name.split("-")[2][1:].split("c"))
    with torch.device("meta"):
        codec = DC(Spec((3, 512, 256)), weights=name)
    assert codec.latent.shape == (channels, 512 // factor, 256 // factor)
    size = sum(value.numel() * value.element_size() for value in codec.model.state_dict().values())
    expected = BYTES.get("-".join(name.split("-")[2:4])) or BYTES[name.split("-")[2]]
    assert size == pytest.approx(expected, abs=0.005e9) == KNOWN[name].size
    assert codec.model.spatial_compression_ratio == factor


def test_the_default_is_f32c32_with_the_config_that_is_published() -> None:
    """The config.json beside the weights in Sana's own repository."""
    with torch.device("meta"):
        codec = DC(Spec((3, 64, 64)))
    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    published = {
        "attention_head_dim": 32,
        "decoder_act_fns": "silu",
        "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "decoder_block_types": blocks,
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "decoder_norm_types": "rms_norm",
        "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "downsample_block_type": "Conv",
        "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
        "encoder_block_types": blocks,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
        "in_channels": 3,
        "latent_channels": 32,
        "upsample_block_type": "interpolate",
    }
    found = json.loads(json.dumps(DC.told(dict(codec.model.config))))
    told = json.loads(json.dumps(DC.told(published)))
    assert {name: found[name] for name in told} == told
    assert DC.shape_in(DC.told(published)) == dict(KNOWN["dc-ae-f32c32-sana-1.0"].shape)
    new = DC.completed({"weights": None, **dict.fromkeys(DC.shape)})
    assert new == dict(KNOWN["dc-ae-f32c32-sana-1.0"].shape)


@pytest.mark.parametrize("keys", [{}, IN, {"attention": 0}, {"shuffle": True, "attention": 3, "head_width": 8}])
def test_it_is_diffusers_model_and_comes_back_from_its_folder(keys: dict[str, Any], tmp_path: Path) -> None:
    from diffusers.models import AutoencoderDC

    original, x = made(**keys).eval(), pictures()
    if keys.get("batch_norm"):  # statistics that a use in training mode would change
        for name, value in original.model.named_buffers():
            value.copy_(value + (0 if "num" in name else 0.3))
    original.model.save_pretrained(tmp_path)
    theirs = AutoencoderDC.from_pretrained(tmp_path).eval()
    codec = DC(IMAGES, weights=tmp_path)
    codec.load()
    assert (codec.trained, codec.moments(x).std) == (True, None)
    with torch.no_grad():
        raw = theirs.encode(x).latent
        torch.testing.assert_close(codec.eval().moments(x).mean, raw, atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.raw_decode(raw), theirs.decode(raw).sample, atol=1e-5, rtol=0)
    found = DC.completed({"weights": tmp_path, **dict.fromkeys(DC.shape)})
    assert {**found, "scales": 0} == {**SHAPE, **keys, "scales": 0}
    assert raw.std() > 1e-3


def test_fitted_normaliser_replaces_the_scaling_factor() -> None:
    codec, x = made().eval(), pictures(40)
    codec.model.register_to_config(scaling_factor=123.0)
    with torch.no_grad():
        codec.fit_normaliser([codec.moments(x).mean])
        latents = codec.encode(x).double()
        own = codec.model(x).sample.clamp(-1, 1)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(codec.round_trip(x), own, atol=1e-5, rtol=0)


def test_keys_of_another_shape_follow_from_the_widths() -> None:
    keys = {"weights": None, **dict.fromkeys(DC.shape), "widths": (16, 32)}
    found = DC.completed(keys)
    assert (found["encoder_blocks"], found["decoder_blocks"], found["attention"]) == ((2, 2), (2, 2), 2)


def test_trains_on_digits_to_a_better_image_than_the_mean() -> None:
    source = Digits()
    codec = made(Spec((1, 8, 8)), widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    optimiser = torch.optim.AdamW(codec.parameters(), 4e-3)
    stream = Stream(source, 0, 64, images=source)
    for step in range(60):
        batch = stream.batch(64 * step)
        optimiser.zero_grad()
        codec.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        optimiser.step()
    x = source.samples[:256]
    best = psnr(source.samples.mean(0).expand_as(x), x).mean()
    assert psnr(codec.round_trip(x), x).mean() > best + 2.0


def test_batch_normalisation_is_used_and_not_trained() -> None:
    batch = Batch(torch.arange(3), x0=pictures())
    with pytest.raises(CapabilityError, match="dc is not trained with batch normalisation"):
        made(**IN).loss(batch, Draws.step(0, "loss", 0, range(3)))
    found = made().loss(batch, Draws.step(0, "loss", 0, range(3)))
    alone = made().loss(batch.select(slice(2, 3)), Draws.step(0, "loss", 0, range(2, 3)))
    torch.testing.assert_close(alone.total, found.total[2:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"widths": (8, 16, 18)}, r"widths: found \(8, 16, 18\), the last must be a multiple of latent_channels = 4"),
        ({"widths": (8, 24, 16)}, r"widths: found 8 before 24, expected a divisor of 32"),
        ({"encoder_blocks": (1, 1)}, "encoder_blocks: found 2 resolutions, widths has 3"),
        ({"decoder_blocks": (1, 0, 1)}, r"decoder_blocks: found \(1, 0, 1\); only the first resolution can be without"),
        ({"attention": 4}, "attention: found 4, there are 3 resolutions"),
        ({"head_width": 32}, "head_width: found 32, a width that attends is 16"),
        (
            {"widths": (8, 8, 8, 8), "encoder_blocks": None, "decoder_blocks": None},
            "4 resolutions divide the sides by 8",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        made(Spec((3, 16, 12)), **keys)


def test_contradictions_missing_files_and_foreign_configs(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"widths: found \[8, 16\]; the weights 'dc-ae-f32c32-sana-1.0' have"):
        DC(Spec((3, 64, 64)), widths=(8, 16))
    with pytest.raises(ArgumentError, match="for images of 3 channels, found 1; write channels: 3 in the data"):
        DC(Spec((1, 64, 64)))
    with pytest.raises(ArgumentError, match=r"32; images have 48×64; nearest that fit: 32×64 and 64×64"):
        DC(Spec((3, 48, 64)))
    with pytest.raises(ArgumentError, match="'sdxl-vae' belongs to 'kl', not to 'dc'"):
        DC(Spec((3, 64, 64)), weights="sdxl-vae")
    with pytest.raises(DataError, match=r"weights of 'dc': found no config\.json and .* in .*gone; put"):
        DC(IMAGES, weights=tmp_path / "gone")
    folder = tmp_path / "right"
    made().model.save_pretrained(folder)
    for name, value in (
        ("decoder_block_out_channels", [8, 16, 32]),
        ("encoder_block_types", ["EfficientViTBlock", "ResBlock", "ResBlock"]),
        ("encoder_out_shortcut", False),
        ("upsample_block_type", "pixel_shuffle"),
        ("decoder_act_fns", ["silu", "relu", "silu"]),
    ):
        other = Path(shutil.copytree(folder, tmp_path / name))
        stored = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**stored, name: value}))
        with pytest.raises(DataError, match=rf"config\.json: dc cannot hold {name}: "):
            DC(IMAGES, weights=other)
