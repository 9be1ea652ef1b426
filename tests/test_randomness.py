"""Draws belong to samples: their numbers do not depend on who draws them, and they are standard normal."""

import pytest
import torch

from latentsb.randomness import BLOCK, Draws, numpy_generator

N = 3 * BLOCK + 5


def step(rows, **kw) -> Draws:
    return Draws.step(**{"seed": 3, "purpose": "loss", "seen": 640, **kw}, rows=rows)


def everything(draws: Draws) -> torch.Tensor:
    """A table of all kinds of draws, one line per row."""
    normal = draws.normal("x", torch.empty(draws.size, 3, 2, dtype=torch.float64)).flatten(1)
    uniform, integers = draws.fork("a").uniform("t"), draws.fork("b").integers("k", 1000)
    return torch.cat([normal, uniform[:, None], integers[:, None].double()], 1)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("contiguous", [True, False])
def test_any_split_over_processes_draws_the_same(world, contiguous):
    rows = torch.arange(N)
    whole = everything(step(rows))
    for mine in rows.tensor_split(world) if contiguous else [rows[k::world] for k in range(world)]:
        assert torch.equal(everything(step(mine)), whole[mine])


@pytest.mark.parametrize("size", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1])
def test_any_micro_batch_draws_the_same(size):
    whole = everything(step(range(N)))
    parts = [everything(step(rows)) for rows in torch.arange(N).split(size)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_accelerators_way_does_not_depend_on_the_split(stride):
    # Its own generator is not prefix-stable, so blocks are drawn whole; the code runs on the CPU's generator too.
    def numbers(draws: Draws) -> torch.Tensor:
        return draws._device_normal("x", torch.empty(draws.size, 3), torch.float32)

    whole = numbers(step(range(N)))
    for k in range(stride):
        mine = torch.arange(N)[k::stride]
        assert torch.equal(numbers(step(mine)), whole[mine])
    assert torch.equal(torch.cat([numbers(step(rows)) for rows in torch.arange(N).split(7)]), whole)
    together = numbers(Draws.seeds([4, 9]))
    assert torch.equal(numbers(Draws.seeds([9])), together[1:])
    assert abs(float(whole.mean())) < 4 / whole.numel() ** 0.5
    assert len(whole.unique()) == whole.numel()


def test_rows_may_come_in_any_order():
    rows = torch.arange(N).flip(0)[::2]
    assert torch.equal(everything(step(rows)), everything(step(range(N)))[rows])


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_a_larger_batch_begins_with_the_smaller_one(n):
    assert torch.equal(everything(step(range(n))), everything(step(range(N)))[:n])


def test_a_sample_depends_on_its_seed_alone():
    seeds = [11, 5, 2**40, 0, 5]
    together = everything(Draws.seeds(seeds))
    for row, seed in enumerate(seeds):
        assert torch.equal(everything(Draws.seeds([seed])), together[row : row + 1])
    assert torch.equal(together[1], together[4])
    assert len(torch.unique(together[:, 0])) == 4


@pytest.mark.parametrize("change", [{"seed": 4}, {"purpose": "other"}, {"seen": 641}])
def test_every_label_counts(change):
    assert not (step(range(N)).uniform("t") == step(range(N), **change).uniform("t")).any()


def test_labels_do_not_run_together():
    draws = step(range(4))
    paths = [("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("b", "c"), ("b", "a", "c"), ("astr:b", "c")]
    firsts = set()
    for *forks, name in paths:
        forked = draws
        for fork in forks:
            forked = forked.fork(fork)
        firsts.add(float(forked.uniform(name)[0]))
    assert len(firsts) == len(paths)
    assert numpy_generator(1, "1").random() != numpy_generator("1", 1).random()
    assert numpy_generator(2**32).random() != numpy_generator(0).random(), "seeds keep all their bits"


def test_the_same_name_gives_the_same_numbers():
    draws = step(range(9))
    assert torch.equal(draws.uniform("t"), draws.uniform("t"))
    assert not (draws.uniform("t") == draws.uniform("s")).any()


def test_moments_of_the_normal():
    x = step(range(4096)).normal("x", torch.empty(4096, 25, dtype=torch.float64)).flatten()
    n = len(x)
    # Var of the sample moments of N(0, 1): 1, 2, 15, 96 over n; four standard errors.
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((x**power).mean()) - expected) < 4 * (variance / n) ** 0.5


def test_moments_of_uniform_and_integers():
    n = 20_000
    u, k = step(range(n)).uniform("t"), step(range(n)).integers("k", 7)
    assert abs(float(u.mean()) - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.bincount(k, minlength=7).double()
    chi2 = float(((counts - n / 7) ** 2 / (n / 7)).sum())
    assert len(counts) == 7
    assert chi2 < 6 + 4 * 12**0.5  # mean 6, variance 12


@pytest.mark.parametrize(
    "other",
    [
        lambda d, like: d.fork("second").normal("x", like),
        lambda d, like: d.normal("y", like),
        lambda d, like: step(range(1, len(like) + 1)).normal("x", like),
        lambda d, like: step(range(BLOCK, len(like) + BLOCK)).normal("x", like),
        lambda d, like: step(range(len(like)), seen=0).normal("x", like),
    ],
    ids=["fork", "name", "next row", "next block", "step"],
)
def test_streams_are_uncorrelated(other):
    n = 4096
    like = torch.empty(n, 10, dtype=torch.float64)
    a, b = step(range(n)).normal("x", like), other(step(range(n)), like)
    assert abs(float((a * b).mean())) < 4 / (10 * n) ** 0.5


def test_neighbouring_rows_are_uncorrelated():
    x = step(range(4096)).normal("x", torch.empty(4096, 10, dtype=torch.float64))
    assert abs(float((x[1:] * x[:-1]).mean())) < 4 / (10 * 4095) ** 0.5
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 4 / (9 * 4096) ** 0.5


def test_blocks_of_simulated_pairs_are_their_own():
    first, again = (Draws.block(1, "pairs 2", 4, 64).uniform("t") for _ in range(2))
    assert torch.equal(first, again)
    assert not (first == Draws.block(1, "pairs 2", 5, 64).uniform("t")).any()
    assert not (first == Draws.block(1, "pairs 3", 4, 64).uniform("t")).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_take_the_type_of_the_tensor(dtype):
    draws = step(range(5))
    x = draws.normal("x", torch.empty(5, 4, dtype=dtype))
    assert x.dtype == dtype
    if dtype == torch.bfloat16:
        assert torch.equal(x, draws.normal("x", torch.empty(5, 4)).bfloat16())


def test_rows_must_fit():
    with pytest.raises(ValueError, match="serve 5 rows, got a tensor of 4"):
        step(range(5)).normal("x", torch.empty(4, 2))


def test_torchs_own_generator_is_left_alone():
    before = torch.get_rng_state()
    everything(step(range(N)))
    everything(Draws.seeds([1, 2]))
    assert torch.equal(before, torch.get_rng_state())
