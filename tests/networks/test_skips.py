"""The perceptron with skips: its formula, its size as published, what reaches it and where."""

import pytest
import torch
from torch.nn import functional as F

from latentsb.networks.base import NETWORKS
from latentsb.networks.embeddings import time_features
from latentsb.networks.skips import MLPSkip, ModulatedLayer
from latentsb.tensors import Condition, Spec

CONDS = {"beside": Spec((3,)), "attributes": Spec((5,)), "label": Spec((), torch.int64, 4)}


def inputs(b=3):
    g = torch.Generator().manual_seed(1)
    cond = {
        "beside": torch.randn(b, 3, generator=g),
        "attributes": torch.randn(b, 5, generator=g),
        "label": torch.randint(4, (b,), generator=g),
    }
    return torch.randn(b, 3, generator=g), torch.rand(b, generator=g), Condition(cond)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(("shape", "out"), [((2,), None), ((2, 3, 5), None), ((6,), (3,))])
def test_any_shape_gives_exactly_zero_at_first(shape, out, depth, perturbed):
    torch.manual_seed(0)
    network = NETWORKS["mlp_skip"](Spec(shape), {}, None if out is None else Spec(out), width=8, depth=depth)
    assert type(network) is MLPSkip
    x = torch.randn(2, *shape)
    got = network(x.double(), torch.tensor(0.5, dtype=torch.float64), Condition())
    assert (got.shape, got.dtype) == ((2, *(out or shape)), torch.float64)
    assert not got.any()
    assert perturbed(network)(x, torch.tensor(0.5), Condition()).any()


@pytest.mark.parametrize("name", list(CONDS))
def test_a_present_condition_matters_and_an_absent_one_does_not(name, perturbed):
    torch.manual_seed(0)
    network = perturbed(MLPSkip(Spec((3,)), CONDS, width=32, depth=3, embedding=16))
    x, t, cond = inputs()
    changed = cond.with_(**{name: (cond[name] + 1) % 4})
    rows = torch.tensor([False, True, False])
    a, b = network(x, t, cond.drop(name, rows)), network(x, t, changed.drop(name, rows))
    assert torch.equal(a[1], b[1])
    assert (a - b)[[0, 2]].abs().amax(1).min() > 1e-4


def test_it_is_the_published_formula(perturbed):
    """Written out once more from the weights: every layer is given the state, the last one is plain."""
    torch.manual_seed(0)
    network = perturbed(MLPSkip(Spec((3,)), width=6, depth=3, embedding=4)).double()
    x, t, _ = inputs()
    x, t, w = x.double(), t.double(), dict(network.named_parameters())
    first, second = network.time.layers[0], network.time.layers[2]
    c = F.silu(second(F.silu(first(time_features(t, 64)))))

    def hidden(i, h):
        linear, modulation, norm = (
            [w[f"layers.{i}.{part}.{kind}"] for kind in ("weight", "bias")] for part in ("linear", "modulation", "norm")
        )
        h = (h @ linear[0].T + linear[1]) * (1 + c @ modulation[0].T + modulation[1])
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt() * norm[0] + norm[1]
        return h * h.sigmoid()

    h = hidden(1, torch.cat([hidden(0, x), x], 1))
    want = torch.cat([h, x], 1) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(network(x, t, Condition()), want)


def test_rows_do_not_see_each_other_and_times_matter(perturbed):
    torch.manual_seed(0)
    network = perturbed(MLPSkip(Spec((3,)), CONDS, width=32, depth=3)).double()
    x, t, cond = inputs()
    out = network(x, t, cond)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(network(x[order], t[order], cond.select(order)), out[order])
    assert (network(x, t + 0.3, cond) - out).abs().amax(1).min() > 1e-4


def test_the_published_network_has_its_54_million_weights():
    with torch.device("meta"):
        network = MLPSkip(Spec((512,)), width=2048, depth=10, embedding=512)
    time = 64 * 512 + 512 + 512 * 512 + 512
    hidden = (512 + 8 * (2048 + 512)) * 2048 + 9 * 2048
    modulation, norms, head = 9 * (512 * 2048 + 2048), 9 * 2 * 2048, (2048 + 512) * 512 + 512
    assert sum(p.numel() for p in network.parameters()) == time + hidden + modulation + norms + head
    assert round((time + hidden + modulation + norms + head) / 1e6) == 54


def test_gradients_are_right(perturbed):
    torch.manual_seed(0)
    layer = perturbed(ModulatedLayer(3, 4, 2)).double()
    h, c = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    assert torch.autograd.gradcheck(layer, (h, c))
