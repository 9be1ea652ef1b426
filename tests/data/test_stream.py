"""Order is a function of seed and images seen; ranks, epochs and flips keep to it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsb.data.arrays import ArraySource, Digits, Npz
from latentsb.data.pairs import Paired, Unpaired
from latentsb.data.source import Items
from latentsb.data.stream import Stream
from latentsb.data.toys import EightGaussians, Gaussian, Moons
from latentsb.errors import ArgumentError, DataError
from latentsb.laws import Law


def counted(n: int, flip: bool = False, x1: int = 0, paired: bool = False) -> ArraySource:
    """Images whose pixels say which sample they are and which column: 100 · sample + column."""
    images = 100.0 * torch.arange(n)[:, None, None, None] + torch.arange(4.0).expand(n, 1, 2, 4)
    other = 10_000.0 + 100.0 * torch.arange(x1)[:, None, None, None] + torch.arange(4.0).expand(x1, 1, 2, 4)
    labels = {"label": torch.arange(n)}
    return ArraySource(images, other if x1 else None, labels, classes=n, paired=paired, flip=flip)


def which(x: torch.Tensor) -> list[int]:
    return (x.amin((1, 2, 3)) // 100).long().tolist()


def test_batch_is_a_function_of_images_seen() -> None:
    a, b = Stream(counted(13), 3, 5), Stream(counted(13), 3, 5)
    for seen in (35, 0, 10, 35):  # any order, any number of times
        torch.testing.assert_close(a.batch(seen).data, b.batch(seen).data, rtol=0, atol=0)
    assert which(a.batch(0).data) != which(Stream(counted(13), 4, 5).batch(0).data)


@pytest.mark.parametrize("n", [1, 3, 13, 64])
def test_every_epoch_is_a_permutation(n: int) -> None:
    stream = Stream(counted(n), 0, 5)
    drawn = [k for seen in range(0, 5 * n, 5) for k in which(stream.batch(seen).data)]
    epochs = [drawn[k * n : (k + 1) * n] for k in range(5)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n == 64:
        assert len({tuple(epoch) for epoch in epochs}) == 5


def test_other_batch_sizes_read_the_same_samples_in_the_same_order() -> None:
    def order(batch: int) -> list[int]:
        stream = Stream(counted(13, flip=True), 0, batch)
        return [v for seen in range(0, 60, batch) for v in stream.batch(seen).data[:, 0, 0, 0].long().tolist()]

    assert order(4) == order(6) == order(60)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_rows_of_all_ranks_are_the_batch_of_one(ranks: int) -> None:
    source = counted(17, flip=True, x1=11)
    whole = Stream(source, 1, 12).batch(24)
    parts = [Stream(source, 1, 12, range(r * 12 // ranks, (r + 1) * 12 // ranks)).batch(24) for r in range(ranks)]
    for name in ("index", "x0", "x1"):
        torch.testing.assert_close(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name), rtol=0, atol=0)
    assert torch.equal(torch.cat([p.cond["label"] for p in parts]), whole.cond["label"])
    assert parts[1].seen == 24
    assert parts[1].index[0] == 12 // ranks


def test_flips_are_exact_mirrors_and_fair() -> None:
    n, source = 400, counted(400, flip=True)
    plain = source.read(np.arange(n)).x0
    batch = Stream(source, 0, n).batch(0)
    mirrored = batch.data[:, 0, 0, 0] > batch.data[:, 0, 0, 3]
    expected = plain[which(batch.data)]
    torch.testing.assert_close(batch.data[mirrored], expected[mirrored].flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(batch.data[~mirrored], expected[~mirrored], rtol=0, atol=0)
    assert abs(int(mirrored.sum()) - n / 2) < 4 * (n / 4) ** 0.5
    again = Stream(source, 0, n).batch(n)  # the coins of another epoch are others
    second = again.data[:, 0, 0, 0] > again.data[:, 0, 0, 3]
    assert not torch.equal(mirrored[np.argsort(which(batch.data))], second[np.argsort(which(again.data))])
    still = Stream(counted(n), 0, n).batch(0).data
    assert bool((still[:, 0, 0, 0] < still[:, 0, 0, 3]).all())


def test_alignment_delivers_partners_or_independent_ends() -> None:
    n = 50
    source = counted(n, x1=n, paired=True, flip=True)
    pair = Stream(source, 0, n, aligned=True).batch(0)
    torch.testing.assert_close(pair.x1, pair.data + 10_000.0, rtol=0, atol=0)
    free = Stream(source, 0, n, aligned=False).batch(0)
    assert free.x1 is not None
    left, right = which(free.data), which(free.x1 - 10_000.0)
    assert sorted(left) == sorted(right) == list(range(n))
    # A random permutation has one fixed point on average, more than eight with probability 1e-6.
    assert sum(a == b for a, b in zip(left, right, strict=True)) <= 8


def test_unrelated_ends_may_differ_in_number() -> None:
    stream = Stream(counted(6, x1=4), 0, 12)
    x1 = stream.batch(0).x1
    assert x1 is not None
    drawn = which(x1 - 10_000.0)
    assert [sorted(drawn[k : k + 4]) for k in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


def test_a_coupling_of_partners_refuses_unpaired_data() -> None:
    with pytest.raises(DataError, match="no pairs"):
        Stream(counted(4, x1=4), 0, 2, aligned=True)


def test_empty_data_and_foreign_rows_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Stream(counted(0), 0, 2)
    with pytest.raises(ArgumentError, match="rows"):
        Stream(counted(4), 0, 2, rows=[2])


def test_a_law_without_samples_brings_rows_only() -> None:
    source = counted(0)
    source.x0 = Law()
    batch = Stream(source, 0, 4, rows=[1, 3]).batch(8)
    assert batch.x0 is None
    assert batch.index.tolist() == [1, 3]
    assert batch.seen == 8


def test_one_pass_sees_every_sample_once_in_order() -> None:
    source = counted(13, flip=True)
    parts = list(Stream(source, 0, 4, images=source).passes(5))
    assert [len(p) for p in parts] == [5, 5, 3]
    torch.testing.assert_close(torch.cat([p.pixels for p in parts]), source.samples, rtol=0, atol=0)


class Slow(ArraySource):
    """Takes 20 ms to read, and fails at the third read if told so."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(torch.zeros(64, 2))
        self.reads, self.fails = 0, fails

    def read(self, index: np.ndarray, variant: np.ndarray | None = None) -> Items:
        self.reads += 1
        if self.fails and self.reads == 3:
            raise DataError("x/3.png: gone")
        time.sleep(0.02)
        return super().read(index, variant)


def test_prefetched_batches_are_those_of_batch() -> None:
    stream = Stream(counted(13, flip=True), 0, 4)
    with stream.prefetched(8, 41) as ahead:
        found = [(b.seen, b.data) for b in ahead]
    assert [seen for seen, _ in found] == list(range(8, 41, 4))
    for seen, x0 in found:
        torch.testing.assert_close(x0, stream.batch(seen).data, rtol=0, atol=0)


def test_prefetch_reads_no_further_than_its_depth_and_closes() -> None:
    source, before = Slow(), threading.active_count()
    with Stream(source, 0, 4).prefetched(0, 10**9, depth=2) as ahead:
        next(ahead)
        time.sleep(0.3)
        assert source.reads <= 5  # one taken, two waiting, one in hand, one begun meanwhile
        assert 0.0 < ahead.waited < 0.3
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ahead)


def test_errors_of_the_reader_reach_the_consumer() -> None:
    before = threading.active_count()
    ahead = Stream(Slow(fails=True), 0, 4).prefetched(0, 400)
    with pytest.raises(DataError, match=r"x/3\.png"):
        for _ in ahead:
            pass
    assert threading.active_count() == before


def test_two_sources_become_two_ends() -> None:
    unpaired = Unpaired(x0=Moons(n=10), x1=EightGaussians(n=7))
    batch = Stream(unpaired, 0, 21).batch(0)
    assert batch.x1 is not None
    assert {tuple(x) for x in batch.x1.tolist()} == {tuple(x) for x in unpaired.far.samples.tolist()}  # type: ignore[attr-defined]
    assert batch.cond["label"].shape == (21,)
    paired = Paired(x0=Moons(n=10), x1=Gaussian(n=10))
    both = Stream(paired, 0, 10, aligned=True).batch(0)
    place = [paired.near.samples.tolist().index(x) for x in both.data.tolist()]  # type: ignore[attr-defined]
    torch.testing.assert_close(both.x1, paired.far.samples[place], rtol=0, atol=0)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="equal numbers, found 10 of x0 and 9 of x1"):
        len(Paired(x0=Moons(n=10), x1=Gaussian(n=9)))
    with pytest.raises(ArgumentError, match="shape"):
        Unpaired(x0=Moons(n=10), x1=Gaussian(n=10, mean=(0.0, 0.0, 0.0)))


def test_digits_lie_in_the_unit_range_with_their_labels() -> None:
    source = Digits()
    assert (len(source), source.spec.shape, source.cond["label"].classes) == (1797, (1, 8, 8), 10)
    assert (source.samples.min(), source.samples.max()) == (-1.0, 1.0)
    first = source.read(np.array([0]))
    assert first.cond["label"].item() == 0
    assert first.x0[0, 0, 0].tolist() == [-1.0, -1.0, -0.375, 0.625, 0.125, -0.875, -1.0, -1.0]  # 0 0 5 13 9 1 0 0


def test_npz_is_read_by_layout_and_type(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    bytes_ = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    np.savez(path, x0=bytes_, y=np.array([1, 0]), a=np.ones((2, 4)), x1=bytes_[::-1])
    source = Npz(path=path, labels="y", attributes="a", x1="x1", paired=True, flip=True)
    assert source.spec.shape == (3, 5, 6)
    found = source.read(np.array([1]), np.array([1]))
    np.testing.assert_array_equal(found.x0[0].numpy(), bytes_[1, :, ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1)
    assert found.x1 is not None
    np.testing.assert_array_equal(found.x1[0].numpy(), bytes_[0, :, ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1)
    assert source.cond["label"].classes == 2
    assert found.cond["label"].tolist() == [0]
    assert Npz(path=path, layout="NCHW").spec.shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("arrays", "kwargs", "message"),
    [
        ({"x": np.zeros((3, 2))}, {}, r"has no array 'x0'.* It has: x; set data\.x0=x$"),
        ({"x0": np.array([{}], dtype=object)}, {}, "'x0' cannot be read"),
        ({"x0": np.array([[0.0, 1.0], [0.0, np.nan]])}, {}, "not finite in 1 of 2 samples, the first at 1"),
        ({"x0": np.array([[1e300, 1.0]])}, {}, "not finite"),
        ({"x0": np.zeros((0, 3))}, {}, "at least one sample"),
        ({"x0": np.zeros((2, 3), dtype=np.int32)}, {}, "type int32"),
        ({"x0": np.zeros((2, 3, 8, 3))}, {}, "say `layout: NCHW`"),
        ({"x0": np.zeros((2, 16, 8, 8))}, {}, "say `layout: NCHW`"),
        ({"x0": np.zeros((2, 3)), "y": np.array([0, -1])}, {"labels": "y"}, "labels begin at 0"),
        ({"x0": np.zeros((2, 3)), "y": np.array([0, 1, 2])}, {"labels": "y"}, r"expected \(2,\) integers"),
        ({"x0": np.zeros((2, 3)), "x1": np.zeros((3, 3))}, {"x1": "x1", "paired": True}, "pairs need equal numbers"),
        ({"x0": np.zeros((2, 3)), "x1": np.zeros((2, 4))}, {"x1": "x1"}, "samples of shape"),
    ],
)
def test_npz_refuses_what_is_wrong(
    tmp_path: Path, arrays: dict[str, np.ndarray], kwargs: dict[str, object], message: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        Npz(path=path, **kwargs)  # type: ignore[arg-type]
    assert "a.npz" in str(caught.value)


def test_npz_refuses_other_files(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "text.npz").write_text("hello")
    np.savez(folder / "cut.npz", x0=np.zeros((400, 3)))
    data = (folder / "cut.npz").read_bytes()
    (folder / "cut.npz").write_bytes(data[: len(data) // 2])
    for name in ("text.npz", "cut.npz", "none.npz"):
        with pytest.raises(DataError, match=name):
            Npz(path=folder / name)
