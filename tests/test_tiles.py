"""Tiles: they cover, their weights sum to one, and what they give is what the whole gives where they can see enough."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsb.autoencoders.kl import KL
from latentsb.autoencoders.taef2 import TAEF2
from latentsb.autoencoders.taesd import TAESD
from latentsb.errors import ArgumentError
from latentsb.norms import sharing
from latentsb.tensors import Spec
from latentsb.tiles import Tiling, ramp_of


@pytest.mark.parametrize(
    ("size", "overlap", "factor"), [(384, 32, 8), (384, 64, 32), (96, 0, 8), (100, 33, 4), (64, 32, 1)]
)
@pytest.mark.parametrize("cells", [1, 3, 11, 32, 47, 128, 129])
def test_tiles_cover_a_side(size, overlap, factor, cells):
    spans = Tiling(size=size, overlap=overlap).spans(cells, factor)
    assert spans[0].first == 0
    assert spans[-1].last == cells
    assert {span.last - span.first for span in spans} == {spans[0].last - spans[0].first}  # of one length
    assert (spans[0].last - spans[0].first) * factor <= size
    for one, two in pairwise(spans):
        assert one.last - two.first == one.after == two.before >= overlap // factor
        assert 3 * one.after <= 2 * (one.last - one.first)  # the middle halves of two overlaps do not meet
    if len(spans) > 1:  # with one tile fewer they would not reach
        assert (len(spans) - 1) * (size // factor) - (len(spans) - 2) * (overlap // factor) < cells


@pytest.mark.parametrize("outer", [1, 8])
@pytest.mark.parametrize("overlap", [0, 8, 24, 64])
def test_weights_sum_to_one(outer, overlap):
    """What every tile sees alike comes back, also from cells that become several pixels."""
    x = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tiling, seen = Tiling(size=128, overlap=overlap), []

    def act(tile: Tensor) -> Tensor:
        seen.append(tile.shape[-2:])
        return tile.repeat_interleave(outer, -1).repeat_interleave(outer, -2)

    whole = act(x)
    seen.clear()
    torch.testing.assert_close(tiling.over(x, act, (40, 56), 8), whole, atol=1e-14, rtol=0)
    assert len(seen) > 6
    assert max(max(s) for s in seen) <= 16


def test_a_ramp_rises_over_the_middle_half():
    assert ramp_of(8).tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    torch.testing.assert_close(ramp_of(30) + ramp_of(30).flip(0), torch.ones(30, dtype=torch.float64))


def smooth(x: Tensor) -> Tensor:
    """Three random convolutions of 5: a pixel depends on 6 on each side."""
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.tanh(F.conv2d(x, torch.randn(1, 1, 5, 5, generator=g, dtype=x.dtype) / 3, padding=2))
    return x


def reach_of(act, x: Tensor) -> int:
    """How far from a pixel in the middle of a row its gradient is not zero."""
    x = x.clone().requires_grad_()
    middle = x.shape[-1] // 2
    found = act(x)
    (grad,) = torch.autograd.grad(found[..., found.shape[-1] // 2].sum(), x)
    places = grad.abs().amax((0, 1, 2)).nonzero().flatten()
    return int((places - middle).abs().max())


def test_tiles_are_exact_where_they_see_enough():
    x = torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reach = reach_of(smooth, x)
    assert reach == 6
    whole = smooth(x)
    wide = Tiling(size=56, overlap=4 * reach)
    torch.testing.assert_close(wide.over(x, smooth, (64, 96), 1), whole, atol=1e-12, rtol=0)
    narrow = Tiling(size=56, overlap=reach)
    off = (narrow.over(x, smooth, (64, 96), 1) - whole).abs()[0, 0]
    near = torch.zeros(64, 96, dtype=torch.bool)
    for dim, n in ((0, 64), (1, 96)):
        for span in narrow.spans(n, 1):
            for border, inner in ((span.first, span.before), (span.last, span.after)):
                if inner:
                    near.index_fill_(dim, torch.arange(max(0, border - reach), min(n, border + reach)), True)
    assert off[~near].max() < 1e-12
    assert off[near].max() > 1e-2  # else nothing was tested


def test_an_autoencoder_without_norms_is_exact_away_from_borders():
    """In a row of pixels: reach of the encoder 163 pixels, of the decoder that of its latents, by gradient."""
    torch.manual_seed(0)
    codec = TAESD(Spec((3, 8, 512)), latent_channels=4, tiling=Tiling(size=320, overlap=64)).double().eval()
    g = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 8, 512, generator=g).double() * 2 - 1
    with torch.no_grad():
        latents, whole = codec.encode(x), codec.normalise(codec.moments(x).mean)
    reach = -(-reach_of(lambda x: codec.moments(x).mean, x) // 8)
    assert 15 <= reach <= 21
    ((_, last, _, shared), (first, *_)) = ((s.first, s.last, s.before, s.after) for s in codec.tiling.spans(64, 8))
    assert shared == last - first
    off = (latents - whole).abs().amax((0, 1, 2))
    context = torch.cat([torch.arange(first - reach), torch.arange(last + reach, 64)])
    assert off[context].max() < 1e-12
    assert off.max() < 0.05 * whole.std()  # what is blended has seen nearly all that counts
    assert off.max() > 1e-9
    with torch.no_grad():
        image, plain = codec.decode(latents), codec.raw_decode(codec.denormalise(latents)).clamp(-1, 1)
    depth = reach_of(codec.raw_decode, latents)
    assert depth <= 25
    off = (image - plain).abs().amax((0, 1, 2)).view(64, 8).amax(1)
    far = torch.cat([torch.arange(max(0, first - depth)), torch.arange(min(64, last + depth), 64)])
    assert off[far].max() < 1e-12


@torch.no_grad()
def test_a_normalised_autoencoder_is_approximate_and_keeps_its_posterior():
    torch.manual_seed(0)
    images = Spec((3, 64, 96))
    codec = KL(images, widths=(8, 16), groups=4, tiling=Tiling(size=48, overlap=16)).double().eval()
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    tiled, whole = codec.posterior(x), codec.moments(x)
    assert tiled.mean.shape == tiled.std.shape == whole.mean.shape
    for a, b in ((tiled.mean, whole.mean), (tiled.std, whole.std)):
        assert 0.0 < (a - b).abs().max()
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.8
    assert not [name for norm in codec.modules() for name in vars(norm) if name == "forward"]  # as they were
    assert codec.decode(tiled.mean).shape == x.shape
    codec.use_tiling(Tiling(size=96))  # one tile
    torch.testing.assert_close(codec.posterior(x).std, whole.std, rtol=0, atol=0)


@torch.no_grad()
def test_tiles_share_the_statistics_of_group_norms():
    """With the norms measured on the whole, tiles are exact again; each by itself they are far off."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1), nn.GroupNorm(4, 4)
    ).double()
    nn.init.normal_(net[1].bias)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 64, 64, generator=g, dtype=torch.float64) * torch.linspace(0.1, 3, 64).double()
    whole, tiling = net(x), Tiling(size=32, overlap=8)
    with sharing(net, lambda: net(x)):
        torch.testing.assert_close(net(x), whole)
        torch.testing.assert_close(tiling.over(x, net, (64, 64), 1), whole)
    torch.testing.assert_close(net(x), whole, rtol=0, atol=0)
    with sharing(net, lambda: net(tiling.digest(x, (64, 64)))):
        sketched = tiling.over(x, net, (64, 64), 1) - whole
    alone = tiling.over(x, net, (64, 64), 1) - whole
    assert sketched.square().mean() < 0.5 * alone.square().mean()


def test_a_digest_is_made_of_evenly_spread_blocks():
    rows = torch.arange(256.0).view(1, 1, 256, 1).expand(-1, -1, -1, 128)
    found = Tiling().digest(rows, (256, 128))
    assert found.shape == (1, 1, 32, 16)
    assert found[0, 0, :, 0].view(8, 4)[:, 0].tolist() == [0, 36, 72, 108, 144, 180, 216, 252]
    assert (found[0, 0, :, 0].view(8, 4).diff(dim=1) == 1).all()
    pixels = Tiling().digest(torch.zeros(1, 3, 64, 96), (8, 12))  # few cells: all rows, two columns in three
    assert pixels.shape == (1, 3, 64, 64)


def test_who_sees_the_whole_refuses_tiles():
    with pytest.raises(ArgumentError, match="'taef2' does not work in tiles: it normalises over the whole image"):
        TAEF2(Spec((3, 64, 64)), tiling=Tiling())
    with pytest.raises(ArgumentError, match=r"must be at most half of size = 64, found 33"):
        Tiling(size=64, overlap=33)
    with pytest.raises(ArgumentError, match="at least 32"):
        Tiling(size=16, overlap=0).spans(4, 32)


def test_tiles_count_in_the_key_of_a_cache_where_they_split():
    def made(tiling: Tiling | None) -> str:
        torch.manual_seed(0)
        return KL(Spec((3, 32, 32)), widths=(8, 16), groups=4, tiling=tiling).fingerprint()

    assert made(None) == made(Tiling(size=32, overlap=0))
    assert len({made(t) for t in (None, Tiling(size=16, overlap=8), Tiling(size=16, overlap=4))}) == 3
