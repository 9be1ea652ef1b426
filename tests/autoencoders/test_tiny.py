"""The tiny autoencoder of any shape: against the published layout, its reach, its weights from a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from latentsb.autoencoders.taesd import TAESD
from latentsb.autoencoders.tiny import Small
from latentsb.data.arrays import Digits
from latentsb.data.stream import Stream
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec

IMAGES = Spec((1, 8, 8))
SMALL: dict[str, Any] = {"encoder_width": 6, "decoder_width": 10, "encoder_blocks": (1, 2), "latent_channels": 3}


def made(images: Spec = IMAGES, **kwargs: Any) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small(images, **{**SMALL, **kwargs})


def test_a_tiny_one_of_the_published_shape_is_taesd() -> None:
    """Our own layout of the published files and diffusers' are two derivations of one network."""
    shape = {"encoder_blocks": (1, 3, 3, 3), "decoder_blocks": (3, 3, 3, 1), "encoder_width": 64, "decoder_width": 64}
    torch.manual_seed(0)
    images = Spec((3, 16, 24))
    tiny, taesd = Small(images, **shape), TAESD(images, latent_channels=4)
    values = dict(zip(taesd.model.state_dict(), tiny.model.state_dict().values(), strict=True))
    taesd.model.load_state_dict(values)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    assert tiny.latent == taesd.latent
    assert torch.equal(tiny.encode(x), taesd.encode(x))
    raw = 4 * torch.randn(2, 4, 2, 3)  # beyond what the decoder lets through
    torch.testing.assert_close(tiny.raw_decode(raw), taesd.raw_decode(raw), atol=1e-6, rtol=0)


def test_a_latent_sees_a_bounded_neighbourhood() -> None:
    codec = made(Spec((1, 64, 8)))
    x = torch.zeros(1, 1, 64, 8).requires_grad_()
    (seen,) = torch.autograd.grad(codec.encode(x)[0, :, 16].sum(), x)
    rows = seen.abs().sum((0, 1, 3)).nonzero().flatten()
    assert 0 < rows.min() < 32 < rows.max() < 63
    assert codec.tiles == "exact"


def test_halves_mirror_each_other_unless_both_are_given() -> None:
    keys: dict[str, Any] = dict.fromkeys(("weights", *Small.shape))
    new = {"latent_channels": 4, "encoder_width": 32, "decoder_width": 32}
    assert Small.completed(keys) == {**new, "encoder_blocks": (1, 1, 1), "decoder_blocks": (1, 1, 1)}
    assert Small.completed({**keys, "encoder_blocks": (0, 1)}) == {**new, "decoder_blocks": (1, 0)}
    assert Small.completed({**keys, "decoder_blocks": (4, 1)}) == {**new, "encoder_blocks": (1, 4)}


@pytest.mark.parametrize(("shape", "blocks"), [((1, 8, 8), (1,)), ((3, 12, 20), (0, 1)), ((5, 16, 8), (1, 0, 2))])
def test_any_channels_and_sides(shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    codec, factor = made(Spec(shape), encoder_blocks=blocks), 2 ** (len(blocks) - 1)
    x = torch.zeros(1, *shape)
    assert codec.encode(x).shape[1:] == codec.latent.shape == (3, shape[1] // factor, shape[2] // factor)
    assert codec.decode(codec.encode(x)).shape == x.shape


def test_trains_on_digits_to_a_better_image_than_the_mean() -> None:
    source, codec = Digits(), made(encoder_width=24, decoder_width=24)
    optimiser = torch.optim.AdamW(codec.parameters(), 3e-3)
    stream = Stream(source, 0, 64, images=source)
    for step in range(60):
        batch = stream.batch(64 * step)
        optimiser.zero_grad()
        codec.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        optimiser.step()
    x = source.samples[:256]
    best = psnr(source.samples.mean(0).expand_as(x), x).mean()
    assert psnr(codec.round_trip(x), x).mean() > best + 3.0


def test_loss_is_the_mean_error_of_each_row_and_of_both_ends() -> None:
    from latentsb.process.distances import Squared

    codec, x = made(distance=Squared()), Digits().samples
    a, b, draws = Batch(torch.arange(4), x0=x[:4]), Batch(torch.arange(4), x0=x[4:8]), Draws.step(0, "l", 0, range(4))
    truth = (codec.raw_decode(codec.moments(x[:4]).mean) - x[:4]).square().mean((1, 2, 3))
    torch.testing.assert_close(codec.loss(a, draws).total, truth)
    both = codec.loss(Batch(a.index, x0=a.x0, x1=b.x0, images=a.x0), draws).total
    torch.testing.assert_close(both, (truth + codec.loss(b, draws).total) / 2)


def test_weights_and_their_shape_come_from_a_folder(tmp_path: Path) -> None:
    original, x = made(), Digits().samples[:5]
    original.model.save_pretrained(tmp_path)
    codec = Small(IMAGES, weights=tmp_path)
    codec.load()
    assert codec.fingerprint() == original.fingerprint()
    assert torch.equal(codec.round_trip(x), original.round_trip(x))
    found = Small.completed({"weights": tmp_path, **dict.fromkeys(Small.shape)})
    assert found == {**SMALL, "decoder_blocks": (2, 1)}
    assert Small(IMAGES, weights=tmp_path / "gone", **found).latent == codec.latent
    with pytest.raises(ArgumentError, match=r"encoder_blocks: found \[2, 2\]; the weights .* have \[1, 2\] \(leave"):
        Small(IMAGES, weights=tmp_path, encoder_blocks=(2, 2))
    with pytest.raises(ArgumentError, match="for images of 1 channels, found 3; write channels: 1 in the data"):
        Small(Spec((3, 8, 8)), weights=tmp_path)
    with pytest.raises(DataError, match=r"weights of 'tiny': found no config\.json and .* in .*gone; put"):
        Small(IMAGES, weights=tmp_path / "gone")


def test_incomplete_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "right"
    made().model.save_pretrained(folder)

    def changed(name: str, **config: Any) -> Path:
        path = Path(shutil.copytree(folder, tmp_path / name))
        stored = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**stored, **config}))
        return path

    for config, told in (
        ({"act_fn": "silu"}, 'act_fn: "silu"'),
        ({"_class_name": "AutoencoderKL"}, '_class_name: "AutoencoderKL"'),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor: 4"),
        ({"encoder_block_out_channels": [6, 8]}, r"encoder_block_out_channels: \[6, 8\]"),
        ({"out_channels": 3}, "out_channels: 3"),
    ):
        with pytest.raises(DataError, match=f"config.json: tiny cannot hold {told}"):
            Small(IMAGES, weights=changed(next(iter(config)), **config))
    (tmp_path / "cut").mkdir()
    for file in folder.iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        Small(IMAGES, weights=tmp_path / "cut")
    shutil.copy(folder / "config.json", tmp_path / "cut")
    with pytest.raises(DataError, match="cannot be loaded"):
        Small(IMAGES, weights=tmp_path / "cut").load()


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ArgumentError, match="decoder_blocks: found 1 resolutions, the encoder has 2"):
        made(decoder_blocks=(1,))
    with pytest.raises(ArgumentError, match=r"encoder_blocks: 2 resolutions divide .* 7×8; nearest that fit"):
        made(Spec((1, 7, 8)))
