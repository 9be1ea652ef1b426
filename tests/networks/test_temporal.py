"""The temporal U-Net: what it must not depend on, what it must, and what it refuses."""

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.networks.temporal import TemporalUNet
from latentsb.tensors import Condition, Spec

STATE = Spec((4, 16))


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = TemporalUNet(STATE, {"known": STATE}, width=8, multipliers=(1, 2), kernel=3)
    torch.nn.init.normal_(made.head.weight)
    return made


def test_it_is_zero_before_training():
    made = TemporalUNet(STATE, {"known": STATE}, Spec((3, 16)), width=8, multipliers=(2, 2, 3))
    x = torch.randn(2, 4, 16)
    out = made(x, torch.rand(2), Condition({"known": x}))
    assert torch.equal(out, torch.zeros(2, 3, 16))


def test_every_parameter_and_every_input_counts(network):
    x, known, t = (torch.randn(3, 4, 16, requires_grad=True) for _ in range(2)), None, torch.rand(3)
    x, known = x
    network(x, t, Condition({"known": known})).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in dead if "null" not in name] == []  # the stand-in of an absent condition was not needed
    assert x.grad.any(dim=(0, 2)).all()
    assert known.grad.any(dim=(0, 2)).all()
    cond = Condition({"known": known})
    assert not torch.allclose(network(x, t, cond), network(x, t + 0.3, cond))


def test_rows_do_not_see_each_other(network):
    x, t = torch.randn(3, 4, 16), torch.rand(3)
    together = network(x, t, Condition({"known": x}))
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], Condition({"known": x[i : i + 1]})) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_other_lengths_that_can_be_halved_fit(network):
    assert network.stride == 2
    x = torch.randn(1, 4, 22)
    assert network(x, torch.zeros(()), Condition({"known": x})).shape == x.shape


@pytest.mark.parametrize(
    ("x", "keys", "name"),
    [
        (Spec((4,)), {}, "x"),
        (Spec((4, 18)), {}, "multipliers"),
        (STATE, {"width": 12}, "width"),
        (STATE, {"kernel": 4}, "kernel"),
    ],
)
def test_what_does_not_fit_is_told(x, keys, name):
    with pytest.raises(ArgumentError) as told:
        TemporalUNet(x, **keys)
    assert told.value.name == name
