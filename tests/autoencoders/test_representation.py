"""Tokens of a frozen network: timm's own, frozen in training; a decoder that learns; noise of the right size."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from latentsb.autoencoder import Moments
from latentsb.autoencoders.representation import Representation, TokenDecoder
from latentsb.errors import ArgumentError, DataError
from latentsb.metrics.similarity import psnr
from latentsb.networks.embeddings import grid_positions, position_features
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.update import Update

SMALL = {"encoder": "test_vit", "width": 32, "depth": 1, "heads": 2}
COLOUR = Spec((3, 32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of a network at its own size, 160×160, whose last norm scales and shifts."""
    path = tmp_path_factory.mktemp("weights") / "test_vit"
    path.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit")
        torch.nn.init.normal_(model.norm.weight, 1.0, 0.5)
        torch.nn.init.normal_(model.norm.bias)
        torch.nn.init.normal_(model.cls_token)
    save_file(model.state_dict(), path / "model.safetensors")
    return path


def made(images=COLOUR, **keys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Representation(images, **{**SMALL, **keys})


def opened(folder, images=COLOUR, **keys):
    codec = made(images, weights=folder, **keys)
    codec.load()
    return codec.eval()


def pixels(n, *shape):
    """Smooth images, all different."""
    coarse = torch.randn(n, shape[0], 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=shape[1:], mode="bilinear").clamp(-1, 1)


def timms_own(folder, x, size):
    """What timm makes of images in [-1, 1]: the tokens behind its last norm, which scales and shifts."""
    overlay = {"state_dict": load_file(folder / "model.safetensors")}
    seen = size or x.shape[-2:]
    model = timm.create_model("test_vit", img_size=seen, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    if size is not None:
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
    with torch.no_grad():
        return model, model.forward_features(((x + 1) / 2 - mean) / std)


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 48), None), ((3, 20, 20), (160, 160)), ((1, 32, 32), None)])
def test_latents_are_timms_tokens_without_scale_and_shift(folder, shape, size):
    x = pixels(2, *shape)
    codec = opened(folder, Spec(shape), size=size)
    model, tokens = timms_own(folder, x.expand(-1, 3, -1, -1), size)
    raw = codec.moments(x).mean
    rows, columns = codec.latent.shape[1:]
    assert (rows, columns) == ((10, 10) if size else (shape[1] // 16, shape[2] // 16))
    own = raw.flatten(2).mT * model.norm.weight + model.norm.bias
    torch.testing.assert_close(own, tokens[:, 1:], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(raw.mean(1), torch.zeros(2, rows, columns), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.square().mean(1), torch.ones(2, rows, columns), atol=1e-3, rtol=0)


def test_other_networks_have_tokens_too():
    codec = made(Spec((3, 64, 64)), encoder="test_resnet").eval()
    x = pixels(2, 3, 64, 64)
    model = timm.create_model("test_resnet").eval()
    model.load_state_dict(codec.trunk.state_dict(), strict=False)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        features = model.forward_features(((x + 1) / 2 - mean) / std).movedim(1, -1)
    expected = F.layer_norm(features, features.shape[-1:], eps=1e-6).movedim(-1, 1)
    torch.testing.assert_close(codec.moments(x).mean, expected, atol=1e-4, rtol=1e-4)


def test_the_decoder_puts_patches_where_their_tokens_are():
    """Without attention's help: where one token differs, its patch differs most; channels and rows in their order."""
    decoder = TokenDecoder(Spec((4, 2, 3)), 2, 4, width=16, depth=0, heads=2)
    torch.nn.init.normal_(decoder.head.weight)
    tokens = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, :, 1, 2] += 1
    changed = (decoder(tokens) != decoder(other))[0]
    assert decoder(tokens).shape == (1, 2, 8, 12)
    assert changed[:, 4:, 8:].all()
    assert int(changed.sum()) == 2 * 4 * 4
    assert decoder(torch.randn(1, 4, 5, 5)).shape == (1, 2, 20, 20)


def test_the_decoder_knows_where_a_token_is():
    """Equal tokens at unequal places: without layers, what stands before the head is token and place added."""
    decoder = TokenDecoder(Spec((4, 2, 3)), 2, 4, width=16, depth=0, heads=2)
    torch.nn.init.normal_(decoder.head.weight)
    patches = F.unfold(decoder(torch.ones(1, 4, 2, 3)), 4, stride=4)[0].T
    places = position_features(grid_positions(2, 3, (2, 3)), 16)
    torch.testing.assert_close(patches, decoder.head(decoder.norm(decoder.embed(torch.ones(6, 4)) + places)))
    assert torch.pdist(patches).min() > 0.1


def settings():
    from latentsb.recipe import Recipe

    text = "data: digits\nbridge: {name: flow, network: {name: mlp}}\n"
    return Recipe.parse(text + "train: {images: 640, batch: 16, lr: 3e-3, warmup: 0}", label="x").train


def test_only_the_decoder_is_trained_and_it_learns(folder):
    """On 64 smooth images: far better than the best constant image, which is what an untaught decoder can reach."""
    x = pixels(64, 3, 32, 32)
    codec = opened(folder, noise=0.1).train()
    assert not codec.trunk.training
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    latents = codec.moments(x).mean
    update = Update(codec, settings(), seed=0, purpose="test", ema=None, bf16=False)
    phases = codec.schedule().now(0, {})
    for step in range(60):
        rows = torch.arange(16) + 16 * (step % 4)
        update.step(Batch(torch.arange(16), x[rows], seen=16 * step), phases, 16 * step, None)
    moved = {name for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"decoder.{name}" for name, _ in codec.decoder.named_parameters()}
    assert torch.equal(codec.moments(x).mean, latents)
    codec.eval()
    best = psnr(x.mean(0).expand_as(x), x).mean()
    assert psnr(codec.round_trip(x), x).mean() > best + 3.0


def test_noise_has_the_spread_that_is_asked_for(folder, monkeypatch):
    """One σ for all numbers of an image, σ = |N(0, noise²)|: standard errors are those of 1,000 half normals."""
    n = 1000
    codec, x, seen = opened(folder, Spec((3, 16, 16)), noise=0.5), torch.zeros(n, 3, 16, 16), []
    clean = codec.moments(x[:1]).mean.expand(n, -1, -1, -1)
    monkeypatch.setattr(codec, "moments", lambda images: Moments(clean))
    monkeypatch.setattr(codec, "raw_decode", lambda raw: seen.append(raw) or x)
    codec.loss(Batch(torch.arange(n), x), Draws.step(0, "test", 0, range(n)))
    apart = (seen[0] - clean).double()
    squares = apart.square().mean((1, 2, 3)) / 0.25  # σ² in units of noise², known from 64 numbers
    assert abs(float(squares.mean()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float(squares.square().mean()) - 3 * (1 + 2 / 64)) < 4 * (96 / n) ** 0.5  # E σ⁴ = 3, variance 96
    assert abs(float((apart.mean((1, 2, 3)) / squares.sqrt()).mean())) < 4 * 0.5 / (64 * n) ** 0.5
    codec.noise = 0.0
    codec.loss(Batch(torch.arange(n), x), Draws.step(0, "test", 0, range(n)))
    assert torch.equal(seen[1], clean)


def test_the_loss_is_the_absolute_error_and_counts_both_ends(folder):
    codec, x = opened(folder, noise=0.0), pixels(6, 3, 32, 32)
    batch = Batch(torch.arange(3), x[:3])
    found = codec.loss(batch, Draws.step(0, "test", 0, range(3)))
    torch.testing.assert_close(found.total, x[:3].abs().mean((1, 2, 3)))  # it begins with an image of zeros
    both = codec.loss(Batch(torch.arange(3), x[:3], x[3:]), Draws.step(0, "test", 0, range(3)))
    torch.testing.assert_close(both.total, (x[:3].abs() + x[3:].abs()).mean((1, 2, 3)) / 2)


def test_weights_are_looked_for_in_one_place_and_never_downloaded(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(folder.parent))
    codec = made()
    codec.load()
    held = load_file(folder / "model.safetensors")
    assert torch.equal(codec.trunk.cls_token, held["cls_token"])
    monkeypatch.setenv("LATENTSB_WEIGHTS", str(tmp_path))
    with pytest.raises(DataError, match=r"found no model\.safetensors in .*; put the weights of timm/test_vit there"):
        made().load()
    with pytest.raises(DataError, match="does not hold the weights of timm's 'test_resnet'"):
        made(Spec((3, 64, 64)), encoder="test_resnet", weights=folder).load()


def test_refusals():
    with pytest.raises(ArgumentError, match=r"encoder: timm has no 'test_vitt'\. Did you mean 'test_vit"):
        made(encoder="test_vitt")
    with pytest.raises(ArgumentError, match="grey or colour"):
        made(Spec((4, 32, 32)))
    with pytest.raises(ArgumentError, match=r"encoder: 'test_vit' gives no tokens for images of 8x8"):
        made(Spec((3, 8, 8)))
    with pytest.raises(ArgumentError, match="10×10 tokens of 160×160 pixels, which do not cut 32×32 into squares"):
        made(size=(160, 160))
    with pytest.raises(ArgumentError, match="heads: width / heads must be a multiple of 4, found 32 / 3"):
        made(heads=3)
