"""What holds of every network over maps."""

import pytest
import torch

from latentsb.networks.base import NETWORKS
from latentsb.networks.transformer import Transformer
from latentsb.networks.unet import UNet
from latentsb.tensors import Condition, Spec

EMPTY = Condition()
MAP = Spec((4, 4, 6))
KINDS = {
    "dit": (Transformer, {"width": 32, "depth": 2, "heads": 2}, {"width": 8, "depth": 1, "heads": 2, "qk_norm": True}),
    "unet": (
        UNet,
        {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": 4, "head_dim": 8},
        {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": 4, "head_dim": 8},
    ),
}


@pytest.fixture(params=KINDS)
def build(request):
    """Build a small network of a kind with a seed; `tiny` for derivatives."""
    kind, small, least = KINDS[request.param]

    def built(*arguments, tiny=False, **changes):
        torch.manual_seed(0)
        network = NETWORKS[request.param](*arguments, **{**(least if tiny else small), **changes})
        assert type(network) is kind
        return network

    return built


def test_counts_its_calls(build, normal):
    network = build(Spec((1, 4, 4)), {}, None)
    network(normal(1, 1, 4, 4), torch.tensor(0.5), EMPTY)
    network(normal(1, 1, 4, 4), torch.tensor(0.5), EMPTY)
    assert network.calls == 2


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 32])
@pytest.mark.parametrize("size", [(4, 4), (2, 6)])
def test_any_channels_and_sizes_give_exactly_zero_at_first(build, perturbed, normal, channels, size):
    spec = Spec((channels, *size))
    network = build(spec, {"x1": spec}, Spec((channels + 1, *size)))
    x = 3 * normal(1, channels, *size)
    out = network(x, torch.tensor([0.3], dtype=torch.float64), Condition({"x1": x}))
    assert out.shape == (1, channels + 1, *size)
    assert out.dtype == x.dtype
    assert not out.any()
    out.sub(1).square().sum().backward()
    last = network.head if isinstance(network, Transformer) else network.conv_out
    assert last.bias.grad.any()
    assert perturbed(network)(x, torch.tensor(0.3), Condition({"x1": x})).any()


@pytest.mark.parametrize("name", ["label", "z", "attributes", "x1", "mask"])
def test_a_present_condition_matters_and_an_absent_one_does_not(build, perturbed, normal, specs, conditions, name):
    network = perturbed(build(MAP, specs))
    assert network.uses == set(specs)
    x, t, cond = normal(3, 4, 4, 6), torch.tensor([0.1, 0.5, 0.9]), conditions()
    value = cond[name]
    other = (value + 1) % 5 if name == "label" else ~value if name == "mask" else value + 1
    changed = cond.with_(**{name: other})
    rows = torch.tensor([False, True, False])
    a, b = network(x, t, cond.drop(name, rows)), network(x, t, changed.drop(name, rows))
    assert torch.equal(a[1], b[1])
    assert (a - b)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-4
    full = network(x, t, cond)
    torch.testing.assert_close(full[[0, 2]], a[[0, 2]])
    assert (full - a)[1].abs().max() > 1e-4


def test_rows_do_not_see_each_other_and_times_matter(build, perturbed, normal, specs, conditions):
    network = perturbed(build(MAP, specs))
    x, t, cond = normal(3, 4, 4, 6), torch.tensor([0.1, 0.5, 0.9]), conditions()
    out = network(x, t, cond)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(network(x[order], t[order], cond.select(order)), out[order])
    torch.testing.assert_close(network(x[:1], t[:1], cond.select(slice(0, 1))), out[:1])
    assert (network(x, t.flip(0), cond) - out)[0].abs().max() > 1e-4
    same = network(x, torch.tensor(0.5, dtype=torch.float64), cond)
    torch.testing.assert_close(same[1], out[1])


def test_dropout_acts_in_training_only(build, perturbed, normal):
    network = perturbed(build(MAP, dropout=0.5))
    x, t = normal(1, 4, 4, 6), torch.tensor(0.5)
    assert not torch.equal(network.train()(x, t, EMPTY), network(x, t, EMPTY))
    assert torch.equal(network.eval()(x, t, EMPTY), network(x, t, EMPTY))


def test_gradients_are_right(build, perturbed, normal):
    network = perturbed(build(Spec((1, 2, 4)), tiny=True).double())
    x = normal(1, 1, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: network(y, torch.tensor(0.4), EMPTY), x)
