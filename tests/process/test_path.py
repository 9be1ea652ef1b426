"""Couplings and paths: who meets whom, and the law and targets of the states between."""

import math

import pytest
import torch
from torch.testing import assert_close

from latentsb.errors import DataError
from latentsb.laws import Density, Ends, Sampled
from latentsb.process.coupling import COUPLINGS, Independent, Pair, Paired
from latentsb.process.path import OneSidedPath, PinnedPath
from latentsb.process.references import VP, Brownian
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec, expand_as

SPEC = Spec((3,))


class Shifted(Sampled):
    spec = SPEC

    def sample(self, n, draws, cond=None):
        return 5 + draws.normal("law", torch.zeros(n, 3))


class Known(Density):
    spec = SPEC

    def log_prob(self, x, cond=None):
        return -x.square().sum(1) / 2


def batch(n=8, **ends) -> Batch:
    return Batch(torch.arange(n), cond=Condition({"label": torch.arange(n)}), **ends)


def draws(n=8) -> Draws:
    return Draws.step(0, "loss", 0, range(n))


X0, X1 = torch.arange(24.0).reshape(8, 3), -torch.arange(24.0).reshape(8, 3)


def test_independent_takes_what_the_data_brings():
    pair = Independent().pair(batch(x0=X0, x1=X1), Ends(SPEC), draws())
    assert_close((pair.x0, pair.x1), (X0, X1), rtol=0, atol=0)
    assert_close(pair.cond["label"], torch.arange(8))


def test_independent_draws_missing_ends_from_their_laws():
    pair = Independent().pair(batch(x0=X0.double()), Ends(SPEC, x1=Shifted()), draws())
    assert pair.x1.dtype == torch.float64
    assert_close(pair.x0, X0.double(), rtol=0, atol=0)
    assert float(pair.x1.mean()) == pytest.approx(5, abs=5 / math.sqrt(24))
    both = Independent().pair(batch(), Ends(SPEC, x0=Shifted(), x1=Shifted()), draws())
    assert not torch.equal(both.x0, both.x1)
    part = Draws.step(0, "loss", 0, range(4, 8))
    rest = Independent().pair(batch(4, x0=X0[4:]), Ends(SPEC, x1=Shifted()), part)
    assert_close(rest.x1, pair.x1[4:].float(), rtol=0, atol=0)


def test_independent_says_what_is_missing():
    with pytest.raises(DataError, match="x1 has no law"):
        Independent().pair(batch(x0=X0), Ends(SPEC), draws())
    with pytest.raises(DataError, match=r"x0 has a law that cannot be sampled \(Known\)"):
        Independent().pair(batch(x1=X1), Ends(SPEC, x0=Known()), draws())


def test_paired_keeps_partners_and_refuses_to_invent_them():
    pair = Paired().pair(batch(x0=X0, x1=X1), Ends(SPEC, two_sided=True), draws())
    assert_close((pair.x0, pair.x1), (X0, X1), rtol=0, atol=0)
    assert Paired.aligned
    assert not Independent.aligned
    with pytest.raises(DataError, match="no x1"):
        Paired().pair(batch(x0=X0), Ends(SPEC, x1=Shifted()), draws())


def test_words():
    assert {"independent", "paired"} <= set(COUPLINGS.names())


def test_pinned_path_has_its_law_and_nelsons_targets(reference, t):
    n, rows = len(t), 4_000
    x0, x1 = torch.tensor([0.4, -1.0]).double(), torch.tensor([-0.9, 2.0]).double()
    times = t.repeat_interleave(rows)
    pair = Pair(x0.expand(n * rows, 2), x1.expand(n * rows, 2))
    point = PinnedPath(reference).at(times, pair, Draws.step(0, "loss", 0, range(n * rows)))
    x, m = point.x.reshape(n, rows, 2), reference.pinned(t)
    # Five standard errors of a mean and of a variance.
    mean = m.a[:, None] * x1 + m.b[:, None] * x0
    assert bool(((x.mean(1) - mean).abs() < 5 * (m.std / math.sqrt(rows))[:, None]).all())
    assert_close(x.var(1) / m.c[:, None], torch.ones(n, 2).double(), rtol=0, atol=5 * math.sqrt(2 / rows))
    g2 = expand_as(reference.g2(times), point.x)
    size = 1 + point.b_f.abs() + point.b_b.abs()
    assert_close((point.b_f + point.b_b) / size, g2 * point.score / size, rtol=0, atol=1e-8)
    assert_close(point.b_f, reference.b_f(point.x, times, pair.x1), rtol=0, atol=0)
    assert_close(point.score, reference.pinned(times).score(point.x, pair.x0, pair.x1), rtol=1e-6, atol=1e-6)


def test_one_sided_path(reference, t):
    pair = Pair(torch.linspace(-1, 1, len(t)).double()[:, None], torch.full((len(t), 1), math.nan).double())
    point = OneSidedPath(reference).at(t, pair, draws(len(t)))
    m = reference.noised(t)
    noise = draws(len(t)).normal("path", pair.x0)
    assert_close(point.x, m.sample(pair.x0, None, noise), rtol=0, atol=0)
    assert_close(point.b_f, reference.f(t)[:, None] * point.x, rtol=1e-12, atol=0)
    assert_close(point.score, -noise / m.std[:, None], rtol=1e-12, atol=0)
    size = 1 + point.b_b.abs()
    nelson = reference.g2(t)[:, None] * point.score - point.b_f
    assert_close(point.b_b / size, nelson / size, rtol=0, atol=1e-9)


def test_noiseless_path_is_the_line_and_has_no_score(t):
    x0, x1 = torch.full((len(t), 2), -1.0).double(), torch.full((len(t), 2), 3.0).double()
    point = PinnedPath(Brownian(sigma=0.0)).at(t, Pair(x0, x1), draws(len(t)))
    assert_close(point.x, x0 + t[:, None] * (x1 - x0))
    assert_close(point.b_f, x1 - x0, rtol=1e-9, atol=1e-9)
    assert_close(point.b_b, x0 - x1, rtol=1e-9, atol=1e-9)
    assert bool(point.score.isnan().all())


def test_path_does_not_depend_on_the_split_into_micro_batches():
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    whole = PinnedPath(VP()).at(t, Pair(X0, X1), draws())
    part = PinnedPath(VP()).at(t[5:], Pair(X0[5:], X1[5:]), Draws.step(0, "loss", 0, range(5, 8)))
    assert_close(part.x, whole.x[5:], rtol=0, atol=0)
    assert_close(part.b_b, whole.b_b[5:], rtol=1e-6, atol=1e-6)
