"""Encoders: half a U-Net against its own layers written out, and backbones of timm against timm."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from latentsb.bridges.diffae import DiffAE
from latentsb.channels import Clamped
from latentsb.cli.checking import report
from latentsb.errors import ArgumentError, DataError
from latentsb.experiment import build
from latentsb.laws import Ends
from latentsb.networks.attention import set_attention
from latentsb.networks.base import ENCODERS
from latentsb.networks.encoder_timm import TimmEncoder
from latentsb.networks.encoder_unet import HalfUNet
from latentsb.recipe import Recipe
from latentsb.tensors import Spec

SMALL = {"width": 8, "head_dim": 4, "blocks": 1}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module, seed=1):
    """Weights away from their first zeros, so that every branch shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.3 if p.ndim == 1 else 1 / math.sqrt(p[0].numel()))
    return module


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 32, 32), (1, 28, 28), (16, 8, 8), (5, 9, 12), (2, 3, 2)])
def test_half_unet_takes_any_channels_and_sizes_and_every_weight_learns(shape):
    encoder = randomised(HalfUNet(Spec(shape), 7, **SMALL))
    x = normal(2, *shape).requires_grad_()
    z = encoder(x)
    assert z.shape == (2, 7)
    z.square().sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0)
        for n, p in encoder.named_parameters()
        if "to_k.bias" not in n
    )
    assert bool((x.grad.abs().amax((0, 1)) > 0).all())


def test_half_unet_is_what_its_equation_says():
    """Convolution, residual blocks of two convolutions around the halving, attention, the middle, mean, linear."""
    encoder = randomised(HalfUNet(Spec((3, 8, 8)), 5, width=8, multipliers=(1, 2), blocks=1, attention=4, head_dim=8))
    x = normal(2, 3, 8, 8)
    s = dict(encoder.named_modules())

    def residual(name, h, down=False):
        block = s[name]
        new = F.silu(block.norm1(h))
        new, h = (F.avg_pool2d(new, 2), F.avg_pool2d(h, 2)) if down else (new, h)
        new = block.conv2(F.silu(block.norm2(block.conv1(new))))
        return new + (h if block.conv_shortcut is None else block.conv_shortcut(h))

    def attention(name, h):
        a = s[name]
        tokens = a.group_norm(h).flatten(2).transpose(1, 2)
        q, k, v = (p(tokens).unflatten(2, (2, 8)).transpose(1, 2) for p in (a.to_q, a.to_k, a.to_v))
        mixed = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(3) @ v
        return h + a.to_out[0](mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(h.shape)

    h = residual("down_blocks.0.resnets.0", encoder.conv_in(x))
    h = residual("down_blocks.0.downsamplers.0", h, down=True)
    h = attention("down_blocks.1.attentions.0", residual("down_blocks.1.resnets.0", h))
    h = residual("mid_block.resnets.0", h)
    h = residual("mid_block.resnets.1", attention("mid_block.attentions.0", h))
    expected = encoder.head(F.silu(encoder.norm(h)).mean((2, 3)))
    assert len(encoder.down_blocks) == 2
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)
    set_attention(encoder, "math")
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)


def test_the_last_multiplier_holds_for_further_levels():
    """Sides 64, 32, 16, 8 and 4 of two multipliers: 8, 24, 24, 24 and 24 channels."""
    encoder = HalfUNet(Spec((3, 64, 64)), 5, width=8, multipliers=(1, 3), blocks=1, attention=0)
    assert [block.resnets[-1].conv2.out_channels for block in encoder.down_blocks] == [8, 24, 24, 24, 24]
    assert encoder.head.in_features == 24


def test_half_unet_has_about_twice_the_published_parameters():
    """Base 128, multipliers 1 1 2 3 4 4 at 128x128: 24.67 million with one convolution a block."""
    with torch.device("meta"):
        encoder = HalfUNet(Spec((3, 128, 128)), 512, width=128, multipliers=(1, 1, 2, 3, 4, 4))
    found = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert len(encoder.down_blocks) == 6
    assert 1.7 * 24.67 < found < 2.3 * 24.67, found


def test_half_unet_refuses():
    with pytest.raises(ArgumentError, match="too short"):
        HalfUNet(Spec((3, 64, 2)), 4, **SMALL)
    with pytest.raises(ArgumentError, match=r"\(C, H, W\)"):
        HalfUNet(Spec((8,)), 4, **SMALL)
    with pytest.raises(ArgumentError, match="head_dim"):
        HalfUNet(Spec((3, 8, 8)), 4, width=8, head_dim=5)


@pytest.mark.parametrize(
    ("backbone", "shape", "side"),
    [("test_resnet", (4, 8, 8), None), ("test_efficientnet", (3, 32, 32), None), ("test_vit", (1, 32, 48), None)],
)
def test_new_backbones_take_latents_and_pixels(backbone, shape, side):
    torch.manual_seed(0)
    encoder = TimmEncoder(Spec(shape), 6, backbone=backbone, side=side)
    x = normal(3, *shape).requires_grad_()
    z = encoder(x)
    assert z.shape == (3, 6)
    z.square().sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_codes_depend_neither_on_the_batch_nor_on_training(backbone):
    torch.manual_seed(0)
    encoder, x = TimmEncoder(Spec((3, 32, 32)), 6, backbone=backbone), normal(4, 3, 32, 32)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    whole = encoder.train()(x)
    torch.testing.assert_close(whole[:1], encoder(x[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, encoder.eval()(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, buffers[name]) for name, value in encoder.named_buffers())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights files of timm models with statistics that are not those of a new one."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("test_resnet", "test_vit"):
        torch.manual_seed(3)
        model = timm.create_model(name)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 2.0)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    (folder / "hub").mkdir()
    (folder / "hub" / "model.safetensors").symlink_to(folder / "test_resnet.safetensors")
    return folder


def timm_features(name, file, x, size):
    model = timm.create_model(name)
    model.load_state_dict(load_file(file))
    model.reset_classifier(0)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).reshape(3, 1, 1) for k in ("mean", "std"))
    pixels = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True) if size else x
    return model.eval()(((pixels + 1) / 2 - mean) / std)


@pytest.mark.parametrize(("name", "where"), [("test_resnet", "test_resnet.safetensors"), ("test_resnet", "hub")])
@pytest.mark.parametrize("grey", [False, True])
def test_pretrained_features_are_timms_own(trained, name, where, grey):
    x = normal(2, 1 if grey else 3, 64, 64).clamp(-1, 1)
    encoder = TimmEncoder(Spec(tuple(x.shape[1:])), 6, backbone=name, weights=trained / where)
    encoder.load()
    expected = timm_features(name, trained / "test_resnet.safetensors", x.expand(-1, 3, -1, -1), 0)
    for mode in (True, False):
        torch.testing.assert_close(encoder.train(mode)(x), encoder.head(expected), rtol=1e-4, atol=1e-5)


def test_pretrained_transformer_at_its_own_size(trained):
    x = normal(2, 3, 32, 32).clamp(-1, 1)
    encoder = TimmEncoder(Spec((3, 32, 32)), 6, backbone="test_vit", weights=trained / "test_vit.safetensors", side=160)
    encoder.load()
    expected = timm_features("test_vit", trained / "test_vit.safetensors", x, 160)
    torch.testing.assert_close(encoder(x), encoder.head(expected), rtol=1e-4, atol=1e-5)
    # At another size its positions are resampled by the library.
    small = TimmEncoder(Spec((3, 32, 32)), 6, backbone="test_vit", weights=trained / "test_vit.safetensors")
    small.load()
    assert small.backbone.pos_embed.shape[1] == 5
    assert encoder.backbone.pos_embed.shape[1] == 101


def test_nothing_is_read_before_load_nor_downloaded(trained, tmp_path):
    missing = TimmEncoder(Spec((3, 32, 32)), 6, backbone="test_resnet", weights=tmp_path / "no.safetensors")
    with pytest.raises(DataError, match=r"no\.safetensors: there is no such file"):
        missing.load()
    other = TimmEncoder(Spec((3, 32, 32)), 6, backbone="test_resnet", weights=trained / "test_vit.safetensors")
    with pytest.raises(DataError, match="does not hold the weights of timm's 'test_resnet'"):
        other.load()
    (tmp_path / "x.pth").write_bytes(b"no")
    with pytest.raises(DataError, match="only safetensors"):
        TimmEncoder(Spec((3, 32, 32)), 6, backbone="test_resnet", weights=tmp_path / "x.pth").load()


def test_timm_refusals(trained):
    with pytest.raises(ArgumentError, match="Did you mean 'resnet18'"):
        TimmEncoder(Spec((3, 32, 32)), 6, backbone="resnet_18")
    with pytest.raises(ArgumentError, match="cannot take 4x4x4"):
        TimmEncoder(Spec((4, 4, 4)), 6, backbone="test_vit")
    with pytest.raises(ArgumentError, match="grey or colour"):
        TimmEncoder(Spec((4, 32, 32)), 6, backbone="test_resnet", weights=trained / "hub")
    assert TimmEncoder(Spec((4, 4, 4)), 6, backbone="test_vit", side=32)(normal(1, 4, 4, 4)).shape == (1, 6)


def test_a_pretrained_encoder_must_see_the_images(trained):
    ends = Ends(Spec((3, 32, 32)), images=Spec((3, 32, 32)))
    given = {"network": lambda x, cond: nn.Identity(), "z_dim": 4, "channel": Clamped()}
    encoder = lambda x, dim: TimmEncoder(x, dim, backbone="test_resnet", weights=trained / "hub")  # noqa: E731
    with pytest.raises(ArgumentError, match="encodes_images: must be true"):
        DiffAE(ends, encoder=encoder, **given)
    bridge = DiffAE(ends, encoder=encoder, encodes_images=True, **given)
    assert bridge.encoder(normal(2, 3, 32, 32)).shape == (2, 8)


def test_a_run_reads_its_weights_where_it_begins_and_nowhere_else(trained, tmp_path):
    def recipe(file):
        encoder = f"bridge.encoder={{name: timm, backbone: test_resnet, side: 32, weights: {file}}}"
        return Recipe.load("digits_diffae", (encoder, "bridge.encodes_images=true"))

    begun = build(recipe(trained / "hub")).bridge.encoder.backbone.state_dict()
    held = load_file(trained / "test_resnet.safetensors")
    assert begun
    assert all(torch.equal(value, held[name]) for name, value in begun.items())
    missing = recipe(tmp_path / "none")
    build(missing, weights=False)
    with pytest.raises(DataError, match="none: there is no such file"):
        build(missing)
    with pytest.raises(DataError, match="the encoder's weights cannot be used"):
        report(missing)


def test_all_encoders_are_found():
    assert {"conv", "dense", "half_unet", "timm"} <= set(ENCODERS.names())
