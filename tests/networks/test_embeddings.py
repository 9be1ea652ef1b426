import math

import pytest
import torch

from latentsb.errors import ArgumentError
from latentsb.networks.embeddings import (
    Conditioning,
    LabelEmbedding,
    OrNull,
    TimeEmbedding,
    VectorEmbedding,
    grid_positions,
    position_features,
    rotary_table,
    rotate,
    time_features,
)
from latentsb.tensors import Condition, Spec


def test_time_features_have_the_documented_periods():
    t = torch.tensor([0.0, 0.3], dtype=torch.float64)
    features = time_features(t, 256)
    assert torch.equal(features[0], torch.cat([torch.ones(128), torch.zeros(128)]).double())
    longest, shortest = (features[1, i] for i in (0, 127))
    assert longest.item() == pytest.approx(math.cos(2 * math.pi * 0.3 / 64))
    assert shortest.item() == pytest.approx(math.cos(2 * math.pi * 0.3 * 16))
    assert features[1, 128].item() == pytest.approx(math.sin(2 * math.pi * 0.3 / 64))  # odd in t
    torch.testing.assert_close(time_features(-t, 256)[:, 128:], -features[:, 128:])


@pytest.mark.parametrize(("low", "high", "n"), [(0.0, 1.0, 1001), (-2.0, 6.0, 801)])
def test_time_features_tell_all_times_apart(low, high, n):
    t = torch.linspace(low, high, n, dtype=torch.float64)
    distance = torch.cdist(time_features(t, 256), time_features(t, 256))
    distance.fill_diagonal_(math.inf)
    # |d features/dt|^2 = sum omega_k^2; for geometric periods nearly omega_max^2 / (2 ln ratio) with ratio per step
    omega = 2 * math.pi / 64 * 1024 ** (torch.arange(128) / 127)
    step = (high - low) / (n - 1)
    expected = step * omega.square().sum().sqrt().item()
    assert distance.min().item() > 0.9 * min(expected, 1.0)
    # neighbours are the nearest: no far time looks like this one
    assert (distance.argmin(1) - torch.arange(n)).abs().max() == 1


def test_float32_times_keep_their_features():
    t = torch.linspace(-2, 6, 50, dtype=torch.float64)
    # phase up to 6 * 2 pi * 16 = 603 rad, rounded three times to 2^-24
    torch.testing.assert_close(time_features(t.float(), 256).double(), time_features(t, 256), atol=2e-4, rtol=0)
    assert time_features(t.bfloat16(), 256).dtype == torch.float32
    assert TimeEmbedding(16).to(torch.bfloat16)(t).dtype == torch.bfloat16


def logits(q, k, positions):
    table = rotary_table(positions, q.shape[-1])
    q, k = (rotate(x.expand(1, 1, len(positions), -1), table) for x in (q, k))
    return (q @ k.mT)[0, 0]


def test_rotary_logits_depend_on_offsets_only():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=g, dtype=torch.float64) for _ in range(2))
    positions = grid_positions(3, 5, (3, 5)).double()
    base = logits(q, k, positions)
    torch.testing.assert_close(logits(q, k, positions + torch.tensor([7.0, -2.5])), base)
    assert not torch.allclose(logits(q, k, positions.flip(1)), base)  # rows are not columns
    assert not torch.allclose(base, base.T)  # the offset has a sign
    torch.testing.assert_close(logits(k, q, positions), base.T)
    # one pair alone: cos of the angle between, theta_0 = 1 on rows
    e = torch.zeros(1, 1, 1, 16, dtype=torch.float64)
    e[..., 0] = 1
    torch.testing.assert_close(logits(e, e, positions)[0, 10], torch.tensor(2.0, dtype=torch.float64).cos())
    torch.testing.assert_close(logits(e, e, positions)[0, 4], torch.tensor(1.0, dtype=torch.float64))


def test_rotation_preserves_norms_and_turns_anticlockwise():
    x = torch.randn(2, 3, 15, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = rotary_table(grid_positions(3, 5, (3, 5)).double(), 16)
    torch.testing.assert_close(rotate(x, table).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, table)[:, :, 0], x[:, :, 0])  # position (0, 0)
    e = torch.zeros(1, 1, 15, 16, dtype=torch.float64)
    e[..., 0] = 1
    turned = rotate(e, table)[0, 0, 5]  # second row
    assert turned[0].item() == pytest.approx(math.cos(1))
    assert turned[8].item() == pytest.approx(math.sin(1))


def test_positions_of_another_size_cover_the_same_extent():
    assert grid_positions(2, 3, (2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    fine = grid_positions(4, 6, (2, 3)).view(4, 6, 2)
    coarse = fine.view(2, 2, 3, 2, 2).mean((1, 3))
    torch.testing.assert_close(coarse, grid_positions(2, 3, (2, 3)).view(2, 3, 2))


def test_position_features_are_distinct_and_axial():
    features = position_features(grid_positions(4, 5, (4, 5)), 32).view(4, 5, 32)
    assert torch.equal(features[:, :1, :16].expand(-1, 5, -1), features[:, :, :16])
    assert torch.equal(features[:1, :, 16:].expand(4, -1, -1), features[:, :, 16:])
    flat = features.flatten(0, 1)
    assert (torch.cdist(flat, flat) + torch.eye(20) > 0.1).all()


def test_absent_values_are_replaced_by_the_null():
    torch.manual_seed(0)
    present = torch.tensor([True, False])
    label = LabelEmbedding(4, 8)
    a, b = (label(torch.tensor([2, i]), present) for i in (0, 3))
    assert torch.equal(a, b)
    assert torch.equal(a[0], label.table.weight[2])
    assert torch.equal(a[1], label.table.weight[4])
    vector, beside = VectorEmbedding(3, 8), OrNull(2, 3)
    torch.nn.init.normal_(vector.null)
    torch.nn.init.normal_(beside.null)
    x = torch.randn(2, 3)
    x[1] = math.nan
    assert torch.equal(vector(x, present), torch.stack([vector.linear(x[:1])[0], vector.null]))
    vector(x, present).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in vector.parameters())
    image = torch.randn(2, 2, 3, 5)
    assert torch.equal(beside(image, present)[0], image[0])
    assert torch.equal(beside(image, present)[1], beside.null.expand(2, 3, 5))


def test_conditions_are_sorted_by_their_shapes():
    x = Spec((4, 6, 8))
    specs = {
        "label": Spec((), torch.int64, 10),
        "z": Spec((16,)),
        "x1": x,
        "mask": Spec((1, 6, 8), torch.bool),
        "attributes": Spec(()),
    }
    sorted_ = Conditioning(x, specs, 12)
    assert list(sorted_.vectors) == ["label", "z", "attributes"]
    assert list(sorted_.beside) == ["x1", "mask"]
    assert sorted_.channels == 5
    cond = Condition({"x1": torch.ones(2, 4, 6, 8), "mask": torch.ones(2, 1, 6, 8, dtype=torch.bool)})
    joined = sorted_.concatenate(torch.zeros(2, 4, 6, 8), cond)
    assert joined.dtype == torch.float32
    assert joined[:, :, 0, 0].tolist() == [[0.0] * 4 + [1.0] * 5] * 2
    with pytest.raises(ArgumentError, match=r"'image' of shape \(3, 12, 16\)"):
        Conditioning(x, {"image": Spec((3, 12, 16))}, 12)


def test_for_a_vector_state_the_same_length_is_concatenated():
    sorted_ = Conditioning(Spec((3,)), {"x1": Spec((3,)), "z": Spec((5,)), "history": Spec((2, 3))}, 12)
    assert list(sorted_.beside) == ["x1"]
    assert list(sorted_.vectors) == ["z", "history"]
