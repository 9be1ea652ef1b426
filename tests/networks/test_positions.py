"""Positions at another size: the formulas of each choice, in the angles and in the logits of attention."""

import math

import pytest
import torch

from latentsb.networks.embeddings import FAR, THETA, axial_angles, position_features, rotary_table, rotate
from latentsb.networks.positions import POSITIONS, Extended, Interpolated, NTKScaled
from latentsb.networks.transformer import Transformer
from latentsb.tensors import Condition, Spec

TRAINED, LARGE, K = (4, 6), (12, 6), 4
STRETCH = 3.0  # of the rows; columns stay as they are


def angles(positions, grid):
    places = positions.places(grid, TRAINED).double()
    return axial_angles(places, K, positions.bases(THETA, K, grid, TRAINED)).view(*grid, 2, K)


@pytest.mark.parametrize("word", POSITIONS.names())
def test_at_the_trained_size_all_are_the_same(word):
    here = angles(POSITIONS[word](), TRAINED)
    p = torch.arange(4.0, dtype=torch.float64)
    for k in range(K):
        torch.testing.assert_close(here[:, 0, 0, k], p * THETA ** (-k / K))
        torch.testing.assert_close(here[0, :, 1, k], torch.arange(6.0, dtype=torch.float64) * THETA ** (-k / K))


def test_steps_from_row_to_row():
    """What one row more turns each frequency by, as a multiple of what it did in training."""

    def turn(positions):
        found = angles(positions, LARGE)
        steps = found[1:, 0, 0] - found[:-1, 0, 0]
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-6, rtol=0)  # even
        return [(steps[0, k] / THETA ** (-k / K)).item() for k in range(K)]

    assert turn(Interpolated()) == pytest.approx([1 / STRETCH] * K)
    assert turn(Extended()) == pytest.approx([1.0] * K)
    # The scaled base is a geometric way from 1 for the fastest to 1/3 for the slowest.
    assert turn(NTKScaled()) == pytest.approx([STRETCH ** (-k / (K - 1)) for k in range(K)])


@pytest.mark.parametrize("word", POSITIONS.names())
def test_a_side_that_keeps_its_length_keeps_its_angles(word):
    found, before = angles(POSITIONS[word](), LARGE), angles(POSITIONS[word](), TRAINED)
    torch.testing.assert_close(found[0, :, 1], before[0, :, 1])


def test_where_the_trained_extent_lies():
    rows = {word: POSITIONS[word]().places(LARGE, TRAINED).view(*LARGE, 2)[:, 0, 0] for word in POSITIONS.names()}
    assert rows["interpolated"][[0, -1]].tolist() == pytest.approx([-1 / 3, 3 + 1 / 3])  # the same pixels
    assert rows["extended"].tolist() == list(range(-4, 8))  # 0 … 3 in the middle
    assert rows["ntk"].tolist() == list(range(12))


def test_logits_follow_the_formula():
    """One pair of queries and keys of frequency k alone: the logit is the cosine of the angle between two rows."""
    for positions in (Interpolated(), Extended(), NTKScaled()):
        places = positions.places(LARGE, TRAINED).double()
        table = rotary_table(places, 4 * K, positions.bases(THETA, K, LARGE, TRAINED))
        for k in range(K):
            q = torch.zeros(1, 1, len(places), 4 * K, dtype=torch.float64)
            q[..., k] = 1.0
            turned = rotate(q, table)[0, 0]
            logits = (turned @ turned.T).view(*LARGE, *LARGE)
            own = {
                Interpolated: THETA ** (-k / K) / STRETCH,
                Extended: THETA ** (-k / K),
                NTKScaled: (THETA * STRETCH ** (K / (K - 1))) ** (-k / K),
            }[type(positions)]
            assert logits[2, 1, 9, 4].item() == pytest.approx(math.cos(7 * own), abs=1e-6)


def test_one_frequency_has_no_base_to_scale():
    assert NTKScaled().bases(THETA, 1, LARGE, TRAINED) == (THETA, THETA)


def test_the_transformer_takes_them():
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 12, 8), torch.tensor([0.3, 0.9])
    nets = {}
    for word in POSITIONS.names():
        torch.manual_seed(1)
        net = Transformer(Spec((3, 8, 8)), width=32, depth=1, heads=2, positions=POSITIONS[word]()).eval()
        torch.manual_seed(2)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        nets[word] = net
    assert nets["ntk"].stride == 2
    with torch.no_grad():
        same = [net(x[:, :, :8], t, Condition()) for net in nets.values()]
        other = [net(x, t, Condition()) for net in nets.values()]
    for found in same[1:]:
        torch.testing.assert_close(found, same[0], rtol=0, atol=0)
    assert min((a - b).abs().max() for a, b in zip(other, [*other[1:], other[0]], strict=True)) > 1e-3


def test_the_transformer_scales_each_of_its_tables_by_its_own_number_of_frequencies():
    """Features of width 32 have eight on an axis, heads of 16 have four: the slowest of each turns a third as far."""
    net = Transformer(Spec((3, 8, 12)), width=32, depth=1, heads=2, positions=NTKScaled())
    features, table = net._places(LARGE, torch.device("cpu"))
    places = NTKScaled().places(LARGE, TRAINED)
    for count, theta, found, made in (
        (8, FAR, features, lambda bases: position_features(places, 32, bases)),
        (4, THETA, table, lambda bases: rotary_table(places, 16, bases)),
    ):
        torch.testing.assert_close(found, made((theta * STRETCH ** (count / (count - 1)), theta)))
