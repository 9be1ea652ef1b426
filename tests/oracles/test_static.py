"""Pairs drawn from a known plan: their moments, for vectors and other shapes, fitted to rounds and to batches."""

import pytest
import torch
from torch.testing import assert_close

from latentsb.errors import DataError
from latentsb.laws import Ends
from latentsb.oracles.gaussian import entropic_plan
from latentsb.oracles.normal import Joint, Normal
from latentsb.oracles.static import Planned, Static, draw_from
from latentsb.process.references import OU, Brownian
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Round

ENDS = Ends(Spec((3,), torch.float64), two_sided=True)


def rows(x0, x1, n, seen=0):
    draws = Draws.step(7, "rows", seen, range(n))
    return Batch(torch.arange(n), x0.sample(n, draws, "x0"), x1.sample(n, draws, "x1"), seen=seen)


class Whole(Round):
    def __init__(self, x0, x1):
        self.number, self.laws = 0, (x0, x1)

    def simulate(self, name, rows_, make):
        return make(rows(*self.laws, rows_), Draws.step(7, name, 0, range(rows_)))


def moments(pair):
    both = torch.cat([pair.x0, pair.x1], 1)
    return Normal.fitted(both)


@pytest.mark.parametrize("process", [Brownian(sigma=1.0), OU(theta=0.7, sigma=0.8)], ids=repr)
def test_pairs_have_the_moments_of_the_plan(x0, x1, process):
    n, plan = 20_000, entropic_plan(x0, x1, process)
    pair = Planned(draw=draw_from(plan)).pair(rows(x0, x1, n), ENDS, Draws.step(1, "pair", 0, range(n)))
    found = moments(pair)
    # Standard error of a covariance: √((S_ii S_jj + S_ij²)/n).
    scale = plan.law.cov.diagonal()
    error = ((scale[:, None] * scale + plan.law.cov.square()) / n).sqrt()
    assert ((found.cov - plan.law.cov).abs() < 4 * error).all()
    assert ((found.mean - plan.law.mean).abs() < 4 * (scale / n).sqrt()).all()
    assert (found.cov[:3, 3:] - plan.cross.T).abs().max() > 0.05  # the transpose would be seen


def test_it_is_fitted_to_the_data_of_a_round_over_the_reference_of_the_bridge(x0, x1):
    reference = OU(theta=0.7, sigma=0.8)
    coupling = Static(rows=50_000).over(reference).fitted(Whole(x0, x1), ENDS)
    n = 20_000
    found = moments(coupling.pair(rows(x0, x1, n, 1), ENDS, Draws.step(1, "pair", 0, range(n))))
    plan = entropic_plan(x0, x1, reference).law
    scale = plan.cov.diagonal()
    error = (scale[:, None] * scale + plan.cov.square()).sqrt() * (1 / n + 1 / 50_000) ** 0.5
    assert ((found.cov - plan.cov).abs() < 4 * error).all()
    # An own reference stays.
    assert Static(reference=Brownian(sigma=2.0)).over(reference).reference == Brownian(sigma=2.0)


def test_without_rounds_the_moments_are_those_of_the_batch(x0, x1):
    reference, n = Brownian(sigma=1.0), 4000
    given = rows(x0, x1, n)
    coupling, draws = Static(reference=reference), Draws.step(1, "batch", 0, range(n))
    made = coupling.prepare(given, ENDS, draws)
    plan = entropic_plan(Normal.fitted(given.x0), Normal.fitted(given.x1), reference)
    expected = draw_from(plan)(given.x0, draws.fork("plan"))
    assert_close(made.x1, expected, rtol=0, atol=1e-12)
    assert coupling.pair(made, ENDS, draws).x1 is made.x1


def test_a_sample_of_any_shape_is_one_vector(x0, x1):
    plan = entropic_plan(x0, x1, Brownian(sigma=1.0))
    flat = x0.sample(8, Draws.step(0, "a", 0, range(8)))
    draws = Draws.step(0, "b", 0, range(8))
    assert_close(draw_from(plan)(flat.reshape(8, 1, 3, 1), draws).flatten(1), draw_from(plan)(flat, draws))


def test_a_plan_needs_a_process_with_noise(x0, x1):
    given, draws = rows(x0, x1, 8), Draws.step(0, "a", 0, range(8))
    for coupling in (Static(), Static(reference=Brownian(sigma=0.0))):
        with pytest.raises(DataError, match="process with noise"):
            coupling.prepare(given, ENDS, draws)
    with pytest.raises(DataError, match="prepared"):
        Static().pair(Batch(torch.arange(2)), ENDS, draws)
    assert not Static.both_ends
    assert not Planned(draw=draw_from(Joint.independent(x0, x1))).both_ends
