import pytest
import torch
from torch import nn

from latentsb.errors import ArgumentError
from latentsb.networks.base import DECODERS, ENCODERS
from latentsb.networks.convolution import ResidualConvolution, group_norm, halvings
from latentsb.tensors import Spec

SMALL = {"conv": {"width": 8, "blocks": 1}, "dense": {"width": 16, "depth": 2}}


@pytest.mark.parametrize("word", ["conv", "dense"])
@pytest.mark.parametrize("channels", [1, 3, 4, 16, 32])
@pytest.mark.parametrize("size", [(8, 8), (5, 18), (1, 1)])
def test_shapes_and_independence_of_rows(word, channels, size):
    torch.manual_seed(0)
    spec = Spec((channels, *size))
    encoder, decoder = ENCODERS[word](spec, 6, **SMALL[word]), DECODERS[word](6, spec, **SMALL[word])
    x = torch.randn(3, *spec.shape)
    z = encoder(x)
    assert z.shape == (3, 6)
    y = decoder(z)
    assert y.shape == x.shape
    torch.testing.assert_close(encoder(x[1:2]), z[1:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder(z[1:2]), y[1:2], atol=1e-5, rtol=1e-5)
    assert (z[0] - z[1]).abs().max() > 1e-3
    assert (y[0] - y[1]).abs().max() > 1e-3
    assert not [m for m in (*encoder.modules(), *decoder.modules()) if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_every_pixel_reaches_the_code_and_every_number_reaches_every_pixel():
    torch.manual_seed(0)
    spec = Spec((2, 9, 14))
    encoder, decoder = ENCODERS["conv"](spec, 3, **SMALL["conv"]), DECODERS["conv"](3, spec, **SMALL["conv"])
    x = torch.randn(1, *spec.shape, requires_grad=True)
    encoder(x).sum().backward()
    assert x.grad.ne(0).all()
    z = torch.randn(3, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda v: decoder(v[None])[0], z)
    assert jacobian.ne(0).all()


def test_sizes_halve_to_four_or_less():
    assert halvings(64, 64) == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)]
    assert halvings(5, 18) == [(5, 18), (3, 9), (2, 5), (1, 3)]
    assert halvings(4, 1) == [(4, 1)]


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 12, 48, 64, 320, 512])
def test_groups_divide_and_never_hold_one_channel_alone(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels // norm.num_groups >= min(channels, 8)


def test_residual_block_is_the_formula():
    torch.manual_seed(0)
    block = ResidualConvolution(3, 5).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)

    def branch(h, conv):
        flat = h.flatten(1)
        normed = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        normed = normed.view_as(h)
        return nn.functional.conv2d(normed * normed.sigmoid(), conv.weight, conv.bias, padding=1)

    want = block.skip(x) + branch(branch(x, block.conv1), block.conv2)
    torch.testing.assert_close(block(x), want)


def test_decoders_are_unbounded():
    torch.manual_seed(0)
    for word in ("conv", "dense"):
        decoder = DECODERS[word](4, Spec((1, 8, 8)), **SMALL[word])
        with torch.no_grad():
            decoder.head.weight.mul_(100)
        assert decoder(torch.randn(8, 4)).abs().max() > 10


def test_codes_reconstruct_what_they_were_trained_on():
    torch.manual_seed(0)
    spec = Spec((1, 8, 8))
    encoder, decoder = ENCODERS["conv"](spec, 2, **SMALL["conv"]), DECODERS["conv"](2, spec, **SMALL["conv"])
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")

    def blobs(n, seed):
        at = torch.rand(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed)) * 5 + 1
        return torch.exp(-((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2) / 4)[:, None]

    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for step in range(150):
        x = blobs(64, step)
        loss = (decoder(encoder(x)) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh = blobs(256, 10_000)
    with torch.no_grad():
        explained = 1 - (decoder(encoder(fresh)) - fresh).square().mean() / fresh.var(0).mean()
    assert explained > 0.85  # two numbers are the whole truth about a blob; new blobs, not those seen


@pytest.mark.parametrize("build", [lambda s: ENCODERS["conv"](s, 3), lambda s: DECODERS["conv"](3, s)])
def test_conv_refuses_vectors_by_name(build):
    with pytest.raises(ArgumentError, match="'dense' takes any shape"):
        build(Spec((7,)))
