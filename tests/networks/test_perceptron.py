import pytest
import torch

from latentsb.networks.base import NETWORKS
from latentsb.networks.mlp import MLP, ResidualLayer
from latentsb.tensors import Condition, Spec

CONDS = {"x1": Spec((3,)), "z": Spec((5,)), "label": Spec((), torch.int64, 4)}


def inputs(b=3):
    g = torch.Generator().manual_seed(1)
    cond = {
        "x1": torch.randn(b, 3, generator=g),
        "z": torch.randn(b, 5, generator=g),
        "label": torch.randint(4, (b,), generator=g),
    }
    return torch.randn(b, 3, generator=g), torch.rand(b, generator=g), Condition(cond)


@pytest.mark.parametrize(("shape", "out"), [((2,), None), ((1,), (4,)), ((2, 3, 5), None), ((6, 6), (3,))])
def test_any_shape_gives_exactly_zero_at_first(shape, out, perturbed):
    torch.manual_seed(0)
    network = NETWORKS["mlp"](Spec(shape), {"x1": Spec(shape)}, None if out is None else Spec(out))
    assert type(network) is MLP
    x = torch.randn(1, *shape)
    got = network(x.double(), torch.tensor(0.5, dtype=torch.float64), Condition({"x1": x}))
    assert got.shape == (1, *(out or shape))
    assert got.dtype == torch.float64
    assert not got.any()
    assert perturbed(network)(x, torch.tensor(0.5), Condition({"x1": x})).any()


@pytest.mark.parametrize("name", list(CONDS))
def test_a_present_condition_matters_and_an_absent_one_does_not(name, perturbed):
    torch.manual_seed(0)
    network = perturbed(MLP(Spec((3,)), CONDS, width=32, depth=2))
    x, t, cond = inputs()
    changed = cond.with_(**{name: (cond[name] + 1) % 4})
    rows = torch.tensor([False, True, False])
    a, b = network(x, t, cond.drop(name, rows)), network(x, t, changed.drop(name, rows))
    assert torch.equal(a[1], b[1])
    assert (a - b)[[0, 2]].abs().amax(1).min() > 1e-4


def test_rows_do_not_see_each_other_and_times_matter(perturbed):
    torch.manual_seed(0)
    network = perturbed(MLP(Spec((3,)), CONDS, width=32, depth=2)).double()
    x, t, cond = inputs()
    out = network(x, t, cond)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(network(x[order], t[order], cond.select(order)), out[order])
    assert (network(x, t + 0.3, cond) - out).abs().amax(1).min() > 1e-4


def test_residual_layer_is_the_formula(perturbed):
    torch.manual_seed(0)
    layer = perturbed(ResidualLayer(6)).double()
    h, c = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    shift, scale = layer.modulation(c).split(6, -1)
    u = layer.layers[0](h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift)
    torch.testing.assert_close(layer(h, c), h + layer.layers[3](u * u.sigmoid()))


def test_gradients_are_right(perturbed):
    torch.manual_seed(0)
    network = perturbed(MLP(Spec((3,)), {}, width=8, depth=2)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    t = torch.rand(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: network(y, t, Condition()), x)
    assert torch.autograd.gradgradcheck(lambda y: network(y, t, Condition()), x)


def test_parameters_against_a_count_by_hand():
    w, depth = 64, 3
    network = MLP(Spec((2,)), {"x1": Spec((2,))}, width=w, depth=depth)
    time, embed, null = 256 * w + w + w * w + w, 4 * w + w, 2
    layers, end = depth * (2 * (w * w + w) + w * 2 * w + 2 * w), w + 2 * w + 2
    assert sum(p.numel() for p in network.parameters()) == time + embed + null + layers + end


def test_it_learns_a_rotation_that_depends_on_time():
    torch.manual_seed(0)
    network = MLP(Spec((2,)), width=64, depth=2)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        x, t = torch.randn(256, 2, generator=g), torch.rand(256, generator=g)
        c, s = torch.cos(3 * t), torch.sin(3 * t)
        want = torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)
        loss = (network(x, t, Condition()) - want).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (
        loss.item() < 0.05
    )  # zero explains nothing and scores 2; the best map without t scores 1.12, 2 (1 - |E exp(3it)|^2)
