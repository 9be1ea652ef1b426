"""Walks and sheets: their ends are reconstructions, their edges walks, and what lies between has closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentsb.autoencoders.identity import Identity
from latentsb.blends import Lerp, Slerp, between
from latentsb.bridges.vae import VAE
from latentsb.channels import Exact
from latentsb.data.arrays import ArraySource
from latentsb.directions import Direction, Ridge
from latentsb.edits import edit
from latentsb.endpoints import ENDPOINTS
from latentsb.errors import ArgumentError
from latentsb.experiment import Experiment, build
from latentsb.generate import reconstruct
from latentsb.laws import Ends
from latentsb.networks.base import Decoder, Encoder
from latentsb.recipe import Recipe
from latentsb.solvers.base import SOLVERS
from latentsb.tensors import Spec
from latentsb.walks import interpolate, interpolate_sheet

DOUBLE = torch.float64
CODE = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]], dtype=DOUBLE)
BACK = torch.tensor([[0.8, 0.1], [0.2, -0.3], [0.0, 0.4]], dtype=DOUBLE)


class Coded(Encoder):
    """z = CODE x0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ CODE.T


class Back(Decoder):
    """x1 = BACK z."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z @ BACK.T


class Remembering(VAE):
    """What the code leaves out is in x1 = x0 − BACK z, and comes back with the code: nothing is lost."""

    inverts = True

    def endpoint(self, cond, x0=None, draws=None):
        return cond.with_(x1=x0 - self.decoder(cond["z"]))

    def denoise(self, x, t, cond):
        return cond["x1"] + self.decoder(cond["z"])


def linear(bridge: type[VAE]) -> Experiment:
    """An experiment whose encoder and decoder are the matrices above."""
    x = torch.randn(40, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    parts = {"encoder": lambda *a: Coded(*a), "decoder": lambda *a: Back(*a), "z_dim": 2, "channel": Exact()}
    made: nn.Module = bridge(Ends(spec=Spec((3,), DOUBLE)), **parts)
    return Experiment(None, ArraySource(x), Identity(Spec((3,))), made.eval(), SOLVERS["dpmpp"](steps=4))


@pytest.mark.parametrize("mode", ["faithful", "perceptual"])
def test_interpolation_in_z_ends_at_the_reconstructions(exact, mode):
    images = exact.points[:6]
    found = interpolate(exact.autoencoder, images, frames=5, mode=mode, seed=7, batch=10)
    assert found.frames.shape == (3, 5, 2)
    assert found.along == "z"
    for pair in range(3):
        for end, frame in ((0, 0), (1, -1)):
            row = 2 * pair + end
            alone = reconstruct(exact.autoencoder, images[row : row + 1], mode=mode, seed=7 + pair)
            torch.testing.assert_close(found.frames[pair, frame], alone.bridge[0], rtol=1e-10, atol=1e-10)
            assert torch.equal(found.ends[pair, end], images[row])
    # The exact decoder is affine in z for fixed noise, so frames are evenly spaced.
    steps = found.frames.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-8, atol=1e-8)


def test_interpolation_of_other_bridges_goes_by_the_other_end(exact):
    """The flow of two Gaussians is x1 = (x0 − m)/s, so every frame is m + s slerp(x1, x1')."""
    images = exact.points[:4]
    found = interpolate(exact.flow, images, frames=5)
    assert found.along == "x1"
    mean, std = exact.whitening.MEAN, exact.whitening.STD
    x1 = (images - mean) / std
    there = between(Slerp(), x1.reshape(2, 2, 2), (5,))
    expected = mean + std * there
    # Heun's error is of order h²; with h = 1/25 it is 2e-3 of the distances, which reach 8 here.
    torch.testing.assert_close(found.frames, expected, rtol=0, atol=8 * 2e-3)
    torch.testing.assert_close(found.frames[:, 0], images[0::2], rtol=0, atol=8 * 2e-3)
    torch.testing.assert_close(found.frames[:, -1], images[1::2], rtol=0, atol=8 * 2e-3)


def test_a_great_circle_keeps_the_norm_of_orthonormal_noises():
    basis, _ = torch.linalg.qr(torch.randn(12, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    ends = basis.T.reshape(2, 2, 3, 4)
    found = between(Slerp(), ends, (7,))
    norms = found.flatten(2).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    torch.testing.assert_close(found[:, 0], ends[:, 0])
    torch.testing.assert_close(found[:, -1], ends[:, 1])
    angle = torch.arccos((found.flatten(2) * ends[:, :1].flatten(2)).sum(2).clamp(-1, 1))
    torch.testing.assert_close(angle[0], torch.linspace(0, 1, 7, dtype=DOUBLE) * math.pi / 2)


def test_a_great_circle_between_equal_noises_stays_there():
    a = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(between(Slerp(), a.expand(1, 2, 5), (3,)), a.expand(1, 3, 5))


def test_a_line_is_straight_and_a_sheet_bilinear():
    corners = torch.randn(2, 4, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    rows, columns = 4, 3
    found = between(Lerp(), corners, (rows, columns)).reshape(2, rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            r, c = i / (rows - 1), j / (columns - 1)
            weights = torch.tensor([(1 - r) * (1 - c), (1 - r) * c, r * (1 - c), r * c], dtype=DOUBLE)
            torch.testing.assert_close(found[:, i, j], torch.einsum("k,pkd->pd", weights, corners))


def test_a_great_circle_in_z_is_that_of_the_codes():
    plain = linear(VAE)
    images = plain.source.samples[[0, 5]]
    found = interpolate(plain, images, frames=5, mode="faithful", blend=Slerp())
    codes = between(Slerp(), (images @ CODE.T)[None], (5,))
    torch.testing.assert_close(found.frames, codes @ BACK.T)
    assert not torch.allclose(found.frames, interpolate(plain, images, frames=5, mode="faithful").frames, atol=1e-3)


@pytest.mark.parametrize("mode", ["faithful", "perceptual"])
@pytest.mark.parametrize("blend", [None, Slerp()])
def test_corners_of_a_sheet_are_reconstructions_and_its_edges_walks(exact, mode, blend):
    images = exact.points[:8]
    how = {"mode": mode, "blend": blend}
    found = interpolate_sheet(exact.autoencoder, images, rows=3, columns=4, seed=5, batch=12, **how)
    assert found.frames.shape == (2, 3, 4, 2)
    for p in range(2):
        four, sheet = images[4 * p : 4 * p + 4], found.frames[p]
        assert torch.equal(found.corners[p], four)
        for k, corner in enumerate((sheet[0, 0], sheet[0, -1], sheet[-1, 0], sheet[-1, -1])):
            alone = reconstruct(exact.autoencoder, four[k : k + 1], mode=mode, seed=5 + p)
            torch.testing.assert_close(corner, alone.bridge[0], rtol=1e-10, atol=1e-10)
        edges = {(0, 1): sheet[0], (2, 3): sheet[-1], (0, 2): sheet[:, 0], (1, 3): sheet[:, -1]}
        for pair, edge in edges.items():
            along = interpolate(exact.autoencoder, four[list(pair)], frames=len(edge), seed=5 + p, **how)
            torch.testing.assert_close(edge, along.frames[0], rtol=1e-10, atol=1e-10)


def test_a_sheet_of_images_has_its_originals_beside_the_corners(tiny):
    images = tiny.experiment(device="cpu").source.read(torch.arange(4).numpy()).x0
    made = tiny.experiment(device="cpu")
    found = interpolate_sheet(made, images, rows=2, columns=3, mode="faithful")
    width, height = found.picture().size
    assert (width + 4) // (64 + 4) == 5
    assert (height + 4) // (64 + 4) == 2
    assert found.tensors()["corners"].shape == (1, 4, 1, 8, 8)


def test_what_is_inferred_from_the_data_is_mixed_on_the_great_circle():
    """x1 = x0 − BACK CODE x0 of each end, mixed there, and the mixed code decoded beside it."""
    keeping = linear(Remembering)
    images = keeping.source.samples[:4]
    found = interpolate(keeping, images, frames=5, mode="faithful", batch=5)
    z = (images @ CODE.T).reshape(2, 2, 2)
    left = (images - images @ CODE.T @ BACK.T).reshape(2, 2, 3)
    expected = between(Slerp(), left, (5,)) + between(Lerp(), z, (5,)) @ BACK.T
    torch.testing.assert_close(found.frames, expected)
    torch.testing.assert_close(found.frames[:, 0], images[0::2])
    torch.testing.assert_close(found.frames[:, -1], images[1::2])
    torch.testing.assert_close(reconstruct(keeping, images).bridge, images)


def test_a_walk_that_cannot_be_is_told(exact):
    points = exact.points
    with pytest.raises(ArgumentError, match="images: found 3, expected pairs"):
        interpolate(exact.autoencoder, points[:3])
    with pytest.raises(ArgumentError, match="images: found 6, expected the four corners"):
        interpolate_sheet(exact.autoencoder, points[:6])
    with pytest.raises(ArgumentError, match="frames: found 1"):
        interpolate_sheet(exact.autoencoder, points[:4], rows=1)


NOISY = """
data: digits
bridge:
  name: diffae
  z_dim: 4
  network: {name: mlp, width: 16, depth: 1}
  encoder: {name: dense, width: 16, depth: 1}
solver: {name: heun, steps: 4}
"""


@pytest.mark.parametrize(("word", "before"), [("decoded", 1), ("inferred", 100), ("random", 0), ("zero", 0)])
def test_walks_and_edits_of_a_bridge_that_ends_in_noise(word, before):
    """Ends and strength 0 are reconstructions from the same x1; the calls that find x1 are counted."""
    made = build(Recipe.parse(NOISY, (), label="noisy"))
    with torch.no_grad():  # a new network gives zero
        for k, weight in enumerate(made.bridge.network.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(k)))
    made = replace(made, bridge=made.bridge.choosing(ENDPOINTS[word]()))
    images = made.source.read(torch.arange(2).numpy()).x0
    walk = interpolate(made, images, frames=3, seed=3)
    for k, frame in ((0, 0), (1, -1)):
        alone = reconstruct(made, images[k : k + 1], mode="perceptual", seed=3)
        torch.testing.assert_close(walk.frames[0, frame], alone.bridge[0], rtol=1e-4, atol=1e-5)
    both = reconstruct(made, images, mode="perceptual", seed=3)
    direction = Direction("any", torch.full((4,), 0.5), torch.zeros(4), torch.ones(4), 1.0, Ridge(), 0)
    edits = edit(made, images, direction, strengths=(0, 5), seed=3)
    assert torch.equal(edits.edited[:, 0], both.bridge)
    assert not torch.equal(edits.edited[:, 1], both.bridge)
    assert walk.calls == edits.calls == both.calls == before + 7
