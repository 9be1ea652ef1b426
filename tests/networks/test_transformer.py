import copy

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.networks.transformer import Block, Transformer, patchify, unpatchify
from latentsb.tensors import Condition, Spec

SMALL = {"width": 32, "depth": 2, "heads": 2}
EMPTY = Condition()


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 32])
@pytest.mark.parametrize(("batch", "size", "patch"), [(1, (8, 8), 2), (3, (4, 10), 2), (2, (9, 3), 3), (2, (5, 7), 1)])
def test_patches_are_inverted_and_keep_places(channels, batch, size, patch, normal):
    x = normal(batch, channels, *size)
    grid = (size[0] // patch, size[1] // patch)
    tokens = patchify(x, patch)
    assert tokens.shape == (batch, grid[0] * grid[1], channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch, grid), x)
    row, column = grid[0] - 1, grid[1] // 2
    block = x[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(tokens[:, row * grid[1] + column], block.flatten(1))


def test_blocks_are_the_identity_at_first(normal):
    torch.manual_seed(0)
    network = Transformer(Spec((4, 4, 4)), **SMALL)
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    network(normal(2, 4, 4, 4), torch.tensor(0.5), EMPTY)
    assert len(seen) == 2
    assert all(torch.equal(x, y) for x, y in seen)


def test_block_is_the_formula(perturbed, normal):
    torch.manual_seed(0)
    block = perturbed(Block(16, 2, 24, qk_norm=False, dropout=0.0).double())
    x, c = normal(2, 5, 16).double(), normal(2, 16, seed=1).double()
    rotary = torch.stack([torch.ones(5, 4), torch.zeros(5, 4)]).double()
    s1, k1, g1, s2, k2, g2 = (m[:, None] for m in block.modulation(c).split(16, -1))

    def rms(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    h = x + g1 * block.attention(rms(x) * (1 + k1) + s1)
    u = rms(h) * (1 + k2) + s2
    gate, value = block.mlp.gate_and_value(u).split(24, -1)
    want = h + g2 * block.mlp.out(gate * gate.sigmoid() * value)
    torch.testing.assert_close(block(x, c, rotary), want)


def count_by_hand(width, depth, channels, patch, classes):
    w, hidden, inner = width, 1024, channels * patch**2
    time = 256 * w + w + w * w + w
    block = (3 * w * w + 3 * w) + (w * w + w) + (w * 2 * hidden + 2 * hidden) + (hidden * w + w) + (6 * w * w + 6 * w)
    ends = (inner * w + w) + (w * inner + inner) + (2 * w * w + 2 * w)
    return time + depth * block + ends + (classes + 1) * w


def test_parameters_of_size_s2():
    network = Transformer(Spec((4, 32, 32)), {"label": Spec((), torch.int64, 1000)})
    count = sum(p.numel() for p in network.parameters())
    assert count == count_by_hand(384, 12, 4, 2, 1000)
    # the published S/2 has 33.0 million (Peebles and Xie 2023, Table 1)
    assert count == pytest.approx(33.0e6, rel=0.02)


SPEC = Spec((4, 4, 6))


def test_places_matter(perturbed, normal):
    torch.manual_seed(0)
    network = perturbed(Transformer(Spec((4, 6, 6)), **SMALL))
    x, t = normal(1, 4, 6, 6), torch.tensor(0.5)
    out = network(x, t, EMPTY)
    assert not torch.allclose(network(x.flip(3), t, EMPTY).flip(3), out, atol=1e-3)
    assert not torch.allclose(network(x.mT, t, EMPTY).mT, out, atol=1e-3)
    constant = network(torch.ones(1, 4, 6, 6), t, EMPTY)
    assert constant[0, 0, ::2, ::2].std() > 1e-3  # absolute places, not only offsets


def test_another_size_than_trained_is_a_finer_grid(perturbed, normal):
    torch.manual_seed(0)
    network = perturbed(Transformer(Spec((2, 4, 6)), patch=1, **SMALL)).double()
    x, t = normal(1, 2, 4, 6).double(), torch.tensor(0.5)
    small = network(x, t, EMPTY)
    large = network(x.repeat_interleave(2, 2).repeat_interleave(2, 3), t, EMPTY)
    assert large.shape == (1, 2, 8, 12)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    # equal tokens at nearly equal places: nearer to the small answer than the answer varies
    assert (pooled - small).square().mean() < 0.1 * small.var()
    with pytest.raises(ValueError, match="patch 2 does not divide the size 5x6"):
        Transformer(Spec((2, 4, 6)), patch=2, **SMALL)(normal(1, 2, 5, 6), t, EMPTY)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout, perturbed, normal):
    torch.manual_seed(0)
    plain = perturbed(Transformer(SPEC, dropout=dropout, **SMALL)).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_()
    runs = []
    for network in (plain, saving):
        entered = []
        for block in network.blocks:
            block.register_forward_pre_hook(lambda module, args, entered=entered: entered.append(1))
        torch.manual_seed(1)
        network(normal(2, 4, 4, 6), torch.tensor([0.2, 0.7]), EMPTY).square().sum().backward()
        runs.append(len(entered))
    assert runs == [2, 4]  # it did run the blocks again
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_dropout_covers_both_branches(perturbed, normal):
    torch.manual_seed(0)
    block = perturbed(Block(16, 2, 24, qk_norm=False, dropout=1.0)).train()
    x, rotary = normal(2, 5, 16), torch.stack([torch.ones(5, 4), torch.zeros(5, 4)])
    assert torch.equal(block(x, normal(2, 16, seed=1), rotary), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, r"patch: 3 does not divide the size 4x6 of the state; nearest that fit: 2$"),
        ({"patch": 4}, r"patch: 4 .* nearest that fit: 2$"),
        ({"heads": 3}, r"heads: .* 32 / 3; nearest that fit: 2 and 4$"),
        ({"heads": 16}, r"heads: .* nearest that fit: 8$"),
        ({"width": 30}, r"width: 30 .* 32 is"),
    ],
)
def test_wrong_numbers_are_told_with_the_right_ones(changes, message):
    with pytest.raises(ArgumentError, match=message):
        Transformer(SPEC, **{**SMALL, **changes})


def test_wrong_shapes_are_told():
    with pytest.raises(ArgumentError, match="'mlp' takes any shape"):
        Transformer(Spec((2,)), **SMALL)
    with pytest.raises(ArgumentError, match=r"out: needs the state's size \(4, 6\)"):
        Transformer(SPEC, None, Spec((4, 6, 4)), **SMALL)


@pytest.mark.slow
def test_compiled_blocks_share_one_graph_and_change_nothing(perturbed, normal):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    torch.manual_seed(0)
    network = perturbed(Transformer(SPEC, width=32, depth=4, heads=2))
    x, t = normal(2, 4, 4, 6), torch.tensor(0.5)
    names, plain = list(network.state_dict()), network(x, t, EMPTY)
    network.compile_blocks()
    torch.testing.assert_close(network(x, t, EMPTY), plain, atol=1e-5, rtol=1e-5)
    assert list(network.state_dict()) == names
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not dynamo.utils.counters["graph_break"]
