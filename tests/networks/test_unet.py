import copy

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.networks.unet import UNet
from latentsb.tensors import Condition, Spec

SMALL = {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": 4, "head_dim": 8}
EMPTY = Condition()
SPEC = Spec((4, 4, 6))


def build(spec=SPEC, cond=None, out=None, **changes):
    torch.manual_seed(0)
    return UNet(spec, cond, out, **{**SMALL, **changes})


def test_residual_branches_are_zero_at_first(normal):
    network = build(multipliers=(1, 1), blocks=2)
    seen = []
    for block in (*network.down_blocks, network.mid_block):
        for layer in (*block.resnets, *getattr(block, "attentions", ())):
            layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    network(normal(2, 4, 4, 6), torch.tensor(0.5), EMPTY)
    assert len(seen) == 2 + (2 + 2) + (2 + 1)
    assert all(torch.equal(x, y) for x, y in seen)


def test_every_parameter_is_reached(perturbed, normal, conditions, specs):
    network = perturbed(build(cond=specs, blocks=2).double())
    x, t, cond = normal(3, 4, 4, 6).double(), torch.tensor([0.1, 0.5, 0.9]), conditions()
    for name in specs:
        cond = cond.drop(name, torch.tensor([False, True, False]))
    network(x, t, cond).square().sum().backward()
    largest = {name: p.grad.abs().max().item() for name, p in network.named_parameters()}
    # One number added to all logits of a query changes no softmax: q·b for the bias b of the keys is such a number.
    still = {name for name in largest if name.endswith("to_k.bias")}
    assert len(still) == 2 + 1 + 3
    assert max(largest[name] for name in still) < 1e-9
    assert min(value for name, value in largest.items() if name not in still) > 1e-6


def test_every_level_sees_the_whole_map(perturbed, normal):
    network = perturbed(build(Spec((1, 16, 16)), attention=2))  # levels of 16 and 8: attention in the middle only
    x = normal(1, 1, 16, 16).requires_grad_()
    network(x, torch.tensor(0.5), EMPTY)[0, 0, 0, 0].backward()
    assert x.grad[0, 0, -1, -1].abs() > 0


@pytest.mark.parametrize(
    ("attention", "layers"), [(0, 0), (1, 1), (4, 1), (6, 1 + 1 + 2), (11, 4), (12, 1 + 2 * (1 + 2)), (99, 7)]
)
def test_attention_is_where_the_longer_side_allows_it(attention, layers):
    network = build(Spec((1, 8, 12)), attention=attention)
    assert sum(hasattr(m, "to_q") for m in network.modules()) == layers


def test_another_size_than_trained_works_where_the_levels_divide_it(perturbed, normal):
    network = perturbed(build())
    assert network(normal(1, 4, 8, 6), torch.tensor(0.5), EMPTY).shape == (1, 4, 8, 6)
    with pytest.raises(ValueError, match="2 levels divide the sides by 2; the state has 5x6"):
        network(normal(1, 4, 5, 6), torch.tensor(0.5), EMPTY)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout, perturbed, normal, specs):
    plain = perturbed(build(cond={"z": specs["z"]}, dropout=dropout)).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_()
    x, cond = normal(2, 4, 4, 6), Condition({"z": normal(2, 7)})
    runs, kept = [], []
    for network in (plain, saving):
        entered, sizes = [], []
        for module in network.modules():
            if hasattr(module, "conv1") or hasattr(module, "to_q"):
                module.register_forward_pre_hook(lambda module, args, entered=entered: entered.append(1))
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda v, s=sizes: (s.append(v.numel()), v)[1], lambda v: v):
            loss = network(x, torch.tensor([0.2, 0.7]), cond).square().sum()
        kept.append(sum(sizes))
        loss.backward()
        runs.append(len(entered))
    assert runs[1] == 2 * runs[0] == 2 * (2 * (1 + 2) + 2 + 2 + 1 + 1 + 2)  # it did run every layer again
    assert kept[1] < kept[0] / 4
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_bf16_autocast_is_near_and_trains(perturbed, normal, specs):
    network = perturbed(build(Spec((4, 8, 8)), {"z": specs["z"]}, attention=8))
    x, t, cond = normal(4, 4, 8, 8), torch.rand(4), Condition({"z": normal(4, 7)})
    found = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = network(x, t, cond)
        assert out.dtype == torch.float32
        out.square().sum().backward()
        found.append((out.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    (out, gradient), (short, short_gradient) = found
    # Each of about 40 roundings on the longest way has a relative error of at most 2^-9: sqrt(40) / 512 at random.
    assert 0 < (short - out).norm() / out.norm() < 0.05
    assert torch.cosine_similarity(gradient, short_gradient, dim=0) > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": (1, 1, 1)}, r"multipliers: 3 levels divide the sides by 4; the state has 4x6, .* 2 at most"),
        ({"multipliers": ()}, r"multipliers: needs one number for each level"),
        ({"head_dim": 5}, r"head_dim: .* found 5 and 32; nearest that fit: 4 and 8$"),
        ({"head_dim": 32, "attention": 6}, r"head_dim: .* found 32 and 16, 32; nearest that fit: 16$"),
    ],
)
def test_wrong_numbers_are_told_with_the_right_ones(changes, message):
    with pytest.raises(ArgumentError, match=message):
        build(**changes)


def test_wrong_shapes_are_told():
    with pytest.raises(ArgumentError, match="'mlp' takes any shape"):
        build(Spec((2,)))
    with pytest.raises(ArgumentError, match=r"out: needs the state's size \(4, 6\)"):
        build(out=Spec((4, 6, 4)))
    with pytest.raises(ArgumentError, match=r"'y' of shape \(2, 3, 3\) is neither"):
        build(cond={"y": Spec((2, 3, 3))})


def test_without_attention_the_length_of_a_head_is_free(normal):
    assert build(head_dim=5, attention=0)(normal(1, 4, 4, 6), torch.tensor(0.5), EMPTY).shape == (1, 4, 4, 6)


def test_a_bridge_begins_at_the_skip_of_its_preconditioning(perturbed, normal):
    from latentsb.bridges.dbae import DBAE
    from latentsb.laws import Ends
    from latentsb.networks.decoder import DenseDecoder
    from latentsb.networks.encoder import DenseEncoder

    x, x1 = normal(3, 4, 4, 6), normal(3, 4, 4, 6, seed=1)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    torch.manual_seed(0)
    bridge = DBAE(
        Ends(SPEC),
        network=lambda x, cond: UNet(x, cond, **SMALL),
        encoder=DenseEncoder,
        decoder=DenseDecoder,
        z_dim=7,
    )
    assert bridge.network.uses == {"z", "x1"}
    scales = bridge.preconditioning.coefficients(bridge.marginal(t), t)
    skip = scales.skip.view(-1, 1, 1, 1) * (x - scales.shift.view(-1, 1, 1, 1) * x1)
    got = bridge.denoise(x, t, Condition({"z": normal(3, 7), "x1": x1}))
    torch.testing.assert_close(got.double(), skip.double(), rtol=1e-5, atol=1e-6)
    perturbed(bridge.network)
    assert (bridge.denoise(x, t, Condition({"z": normal(3, 7), "x1": x1})) - got).abs().min(0).values.max() > 1e-3


@pytest.mark.slow
def test_compiled_blocks_change_nothing(perturbed, normal):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    network = perturbed(build(multipliers=(1,), attention=6))
    x, t = normal(2, 4, 4, 6), torch.tensor(0.5)
    names, plain = list(network.state_dict()), network(x, t, EMPTY)
    network.compile_blocks()
    torch.testing.assert_close(network(x, t, EMPTY), plain, atol=1e-5, rtol=1e-5)
    assert list(network.state_dict()) == names
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert not dynamo.utils.counters["graph_break"]
