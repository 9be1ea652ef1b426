"""Conditions, batches and broadcasting: what is absent stays absent, rows stay together."""

import pytest
import torch

from latentsb.tensors import Batch, Condition, Spec, expand_as


def condition(n: int = 6) -> Condition:
    return Condition({"label": torch.arange(n), "z": torch.arange(2 * n).reshape(n, 2)})


def test_spec_counts():
    assert Spec((3, 4, 5)).numel == 60
    assert Spec((3, 4, 5)).channels == 3
    assert Spec(()).numel == 1
    zeros = Spec((2, 3), torch.float64).zeros(4)
    assert zeros.shape == (4, 2, 3)
    assert zeros.dtype == torch.float64


def test_drop_marks_rows_and_keeps_values():
    rows = torch.tensor([True, False, True, False, False, False])
    dropped = condition().drop("label", rows)
    assert torch.equal(dropped.mask("label"), ~rows)
    assert torch.equal(dropped["label"], torch.arange(6))
    assert dropped.mask("z").all()
    assert condition().mask("label").all(), "the original is untouched"


def test_drops_add_up_and_a_new_value_is_present():
    first, second = torch.arange(6) < 2, torch.arange(6) > 3
    twice = condition().drop("label", first).drop("label", second)
    assert torch.equal(twice.mask("label"), ~(first | second))
    assert not condition().drop("label").mask("label").any()
    assert twice.with_(label=torch.zeros(6)).mask("label").all()
    assert condition().drop("unknown").values.keys() == {"label", "z"}


def test_without_forgets_value_and_mark():
    left = condition().drop("label").without("label")
    assert "label" not in left
    assert left.get("label") is None
    assert not left.present


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([5, 0, 2])])
def test_select_takes_the_same_rows_of_everything(rows):
    n = 6
    cond = condition(n).drop("label", torch.arange(n) % 2 == 0)
    batch = Batch(torch.arange(n), torch.rand(n, 2), torch.rand(n, 2), cond, 7, torch.rand(n, 1, 2, 2))
    part = batch.select(rows)
    at = torch.arange(n)[rows]
    assert torch.equal(part.index, at)
    assert part.seen == 7
    assert len(part) == 3
    for name in ("x0", "x1", "images"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[at])
    assert torch.equal(part.cond["z"], cond["z"][at])
    assert torch.equal(part.cond.mask("label"), cond.mask("label")[at])


def test_a_batch_without_data_says_so():
    batch = Batch(torch.arange(3))
    assert batch.select(slice(0, 2)).x0 is None
    for name in ("data", "pixels"):
        with pytest.raises(ValueError, match="this batch has no"):
            getattr(batch, name)


def test_the_index_stays_on_the_host():
    moved = Batch(torch.arange(2), torch.rand(2, 1), cond=condition(2).drop("label")).to("meta")
    assert moved.index.device.type == "cpu"
    assert moved.data.device.type == "meta"
    assert moved.cond["z"].device.type == "meta"
    assert moved.cond.mask("label").device.type == "meta"


@pytest.mark.parametrize("shape", [(4, 2), (4, 3, 5, 2), (4,)])
def test_expand_as_multiplies_rows(shape):
    like = torch.rand(shape, dtype=torch.float32) + 1
    value = torch.rand(4, dtype=torch.float64)
    product = expand_as(value, like) * like
    assert product.dtype == torch.float32
    for row in range(4):
        assert torch.equal(product[row], value[row].float() * like[row])
    assert torch.equal(expand_as(torch.tensor(2.0, dtype=torch.float64), like) * like, 2 * like)
