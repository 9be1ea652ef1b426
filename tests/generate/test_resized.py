"""Sampling at another size: a local law whose best denoiser does not know the size, and who must refuse."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentsb.autoencoders.identity import Identity
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.bridges.score import Score
from latentsb.data.arrays import ArraySource
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import Experiment
from latentsb.generate import sample
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.networks.decoder import ConvDecoder
from latentsb.networks.encoder import ConvEncoder
from latentsb.networks.mlp import MLP
from latentsb.networks.positions import Extended
from latentsb.networks.transformer import Transformer, patchify, unpatchify
from latentsb.resized import is_resized, positions_of, resized
from latentsb.solvers.base import SOLVERS
from latentsb.tensors import Condition, Spec

TRAINED = Spec((1, 4, 4))
COV = torch.tensor([[1.0, 0.6, 0.3, 0.1], [0.6, 1.2, 0.2, 0.0], [0.3, 0.2, 0.7, -0.2], [0.1, 0.0, -0.2, 0.5]])


class Patches(Network):
    """The velocity of flow matching for independent 2×2 patches of law N(0, COV): the same at every size.

    `E[x1 − x0 | x_t] = (t − (1 − t) S) ((1 − t)² S + t²)^-1 x_t`.
    """

    stride = 2

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        s, one, t = COV.double(), torch.eye(4).double(), t.double().flatten()[0]
        gain = (t * one - (1 - t) * s) @ torch.linalg.inv((1 - t) ** 2 * s + t**2 * one)
        grid = (x.shape[-2] // 2, x.shape[-1] // 2)
        return unpatchify((patchify(x, 2).double() @ gain.T).to(x.dtype), 2, grid)


def experiment(bridge, spec: Spec = TRAINED, **ends) -> Experiment:
    source = ArraySource(torch.zeros(4, *spec.shape), **ends)
    return Experiment(None, source, Identity(spec), bridge.eval(), SOLVERS["heun"](steps=16))


def flow(network=Patches, **ends) -> Flow:
    return Flow(Ends(spec=TRAINED, **ends), network=lambda *a: network(*a))


@pytest.mark.parametrize("size", [(4, 4), (12, 20), (2, 6)])
def test_a_local_law_is_sampled_at_every_size(size):
    found = resized(experiment(flow()), size)
    n = 16_000 // (size[0] * size[1] // 4)
    x = sample(found, range(n)).images
    assert x.shape == (n, 1, *size)
    patches = patchify(x, 2).flatten(0, 1).double()
    cov = patches.T @ patches / len(patches)
    # A second moment of normal numbers has variance (S_ii S_jj + S_ij²)/n; 16 steps of Heun err by less than 1 %.
    error = (COV.diag().outer(COV.diag()) + COV**2).div(len(patches)).sqrt()
    assert ((cov - COV).abs() < 4.5 * error + 0.01).all()
    # Neighbouring patches are independent.
    tokens = patchify(x, 2).double()
    if tokens.shape[1] > 1:
        across = tokens[:, 0].T @ tokens[:, 1] / n
        assert (across.abs() < 4.5 * (COV.diag().outer(COV.diag()) / n).sqrt() + 0.01).all()


def test_a_sample_of_the_trained_size_is_untouched():
    before = sample(experiment(flow()), range(3)).images
    found = resized(experiment(flow()), (4, 4))
    assert not is_resized(found)
    torch.testing.assert_close(sample(found, range(3)).images, before, rtol=0, atol=0)


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(ArgumentError, match="found 5×8, expected multiples of 2; near: 4, 6, 8"):
        resized(experiment(flow()), (5, 8))


def test_who_is_bound_to_the_trained_size_says_so():
    mlp = Flow(Ends(spec=TRAINED), network=lambda *a: MLP(*a, width=8, depth=1))
    with pytest.raises(CapabilityError, match="'flow' samples at the trained size alone: MLP is bound to its places"):
        resized(experiment(mlp), (8, 8))
    with pytest.raises(CapabilityError, match="starts from data of that size, not from noise"):
        resized(experiment(flow(two_sided=True)), (8, 8))
    with pytest.raises(CapabilityError, match="condition 'known' has that size"):
        resized(experiment(flow(cond={"known": TRAINED})), (8, 8))
    coded = DBAE(
        Ends(spec=TRAINED),
        network=lambda *a: Transformer(*a, width=16, depth=1, heads=2),
        encoder=lambda *a: ConvEncoder(*a, width=8),
        decoder=lambda *a: ConvDecoder(*a, width=8),
        z_dim=2,
    )
    with pytest.raises(CapabilityError, match=r"'dbae' samples .* decoded from a code into that size"):
        resized(experiment(coded), (8, 8))

    class Basis(Identity):
        any_size = False

    fixed = dataclasses.replace(experiment(flow()), autoencoder=Basis(TRAINED))
    with pytest.raises(CapabilityError, match="Basis makes images of 4×4 alone"):
        resized(fixed, (8, 8))
    with pytest.raises(CapabilityError, match="needs images"):
        resized(experiment(Flow(Ends(spec=Spec((2,))), network=lambda *a: Patches(*a)), Spec((2,))), (8, 8))


def test_positions_belong_to_transformers():
    dit = Score(Ends(spec=TRAINED), network=lambda *a: Transformer(*a, width=16, depth=1, heads=2))
    found = resized(experiment(dit), (8, 4), Extended())
    assert positions_of(found) == Extended()
    assert sample(found, range(2)).images.shape == (2, 1, 8, 4)
    with pytest.raises(ArgumentError, match="has none; they belong to 'dit'"):
        resized(experiment(flow()), (8, 8), Extended())
