"""A published model's scale and shift, whatever they are: its latents leave normalised, once, by statistics alone."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.autoencoders.kl import KL
from latentsb.cache import LatentCache
from latentsb.data.arrays import ArraySource
from latentsb.stores import Float32
from latentsb.tensors import Spec

ROOT = Path(__file__).parents[2]
SCALES = ({}, {"scaling_factor": 0.18215}, {"scaling_factor": 0.3611, "shift_factor": 0.1159}, {"scaling_factor": 40.0})


def published(folder: Path, **config: float) -> Path:
    """A folder as diffusers saves it; weights are the same each time, latents far from mean 0 and deviation 1."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            **config,
        )
    with torch.no_grad():
        model.quant_conv.weight[:4] *= 7.0
        model.quant_conv.bias[:4] = torch.tensor([3.0, -20.0, 0.5, 0.0])
    model.save_pretrained(folder)
    return folder


def latents(place: Path, **config: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a bridge is trained on, encoded at once, and what the decoder makes of it."""
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    data = ArraySource(images, None, {}, identity={"data": "noise"})
    codec = KL(Spec((3, 8, 8)), weights=published(place / "weights", **config)).eval()
    codec.load()
    cache = LatentCache.open_or_build(place / "cache", data, codec, store=Float32())
    found = cache.read(np.arange(24)).x0
    with torch.no_grad():
        return found, codec.encode(images), codec.decode(found)


def test_scale_and_shift_of_a_published_model_change_nothing(tmp_path: Path) -> None:
    made = [latents(tmp_path / str(k), **config) for k, config in enumerate(SCALES)]
    for found, encoded, decoded in made:
        for one, first in zip((found, encoded, decoded), made[0], strict=True):
            assert torch.equal(one, first)
    found, encoded, decoded = made[0]
    # Float32 of numbers up to 30 deviations: 2⁻²⁴ each, and of a mean over 384.
    assert found.double().mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(found.double().std((0, 2, 3), correction=0), torch.ones(4).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, encoded, atol=1e-5, rtol=0)
    assert decoded.abs().max() > 0.1


def test_the_decoder_is_given_what_the_encoder_made(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    _, _, decoded = latents(tmp_path, **SCALES[2])
    model = AutoencoderKL.from_pretrained(tmp_path / "weights").eval()
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        whole = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, whole, atol=1e-4, rtol=0)


RAW = re.compile(r"\.(moments|raw_decode|denormalise|posterior)\(")
KNOWN = {
    "autoencoder.py": "the one place where latents are normalised",
    "encoding.py": "writes raw latents into the cache",
    "cache.py": "encodes as it reads, and normalises, where nothing is cached",
}


@pytest.mark.parametrize("path", sorted((ROOT / "latentsb").glob("*.py")), ids=lambda path: path.name)
def test_raw_latents_never_leave(path: Path) -> None:
    assert path.name in KNOWN or not RAW.search(path.read_text())
