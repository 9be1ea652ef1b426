"""Minibatch transport: which rows meet, and which laws stay as they were."""

import math

import pytest
import torch
from torch.testing import assert_close

from latentsb.errors import DataError
from latentsb.laws import Ends, Gaussian
from latentsb.process.coupling import Independent, MinibatchOT, Paired
from latentsb.process.references import OU, VP, Brownian
from latentsb.process.transport import assign, costs, draw, sinkhorn
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec

SPEC = Spec((2,))
LABEL = Spec((), torch.int64, classes=2)
EXACT, ENTROPIC = MinibatchOT(), MinibatchOT(reference=Brownian(sigma=1.0))


def batch(n=64, seed=0, x1=True, labels=None, seen=0):
    rng = torch.Generator().manual_seed(seed)
    x0, other = torch.randn(n, 2, generator=rng) * 2 + 1, torch.randn(n, 2, generator=rng)
    cond = Condition({} if labels is None else {"label": labels})
    return Batch(torch.arange(n), x0, other if x1 else None, cond, seen=seen)


def draws(n=64, seen=0):
    return Draws.step(5, "batch", seen, range(n))


def rows_of(x, among):
    """Which row of `among` each row of x is."""
    return (x[:, None] == among[None]).all(-1).int().argmax(1)


def test_only_the_partners_change():
    given = batch(labels=torch.arange(64) % 2)
    for coupling in (EXACT, ENTROPIC):
        made = coupling.prepare(given, Ends(SPEC, two_sided=True), draws())
        assert_close((made.x0, made.cond["label"]), (given.x0, given.cond["label"]), rtol=0, atol=0)
        assert torch.equal(made.x1, given.x1[rows_of(made.x1, given.x1)])
        pair = coupling.pair(made, Ends(SPEC, two_sided=True), draws())
        assert pair.x1 is made.x1
        assert pair.x0 is made.x0
    for coupling in (Independent(), Paired()):
        assert coupling.prepare(given, Ends(SPEC, two_sided=True), draws()) is given


def test_exact_partners_are_the_assignment_without_replacement():
    given = batch()
    made = EXACT.prepare(given, Ends(SPEC, two_sided=True), draws())
    chosen = rows_of(made.x1, given.x1)
    assert torch.equal(chosen, assign(costs(given.x0, given.x1)))
    assert sorted(chosen.tolist()) == list(range(64))


def test_a_micro_batch_of_a_prepared_batch_keeps_its_pairs():
    made = EXACT.prepare(batch(), Ends(SPEC, two_sided=True), draws())
    part = EXACT.pair(made.select(slice(16, 32)), Ends(SPEC, two_sided=True), draws(16))
    assert torch.equal(part.x1, made.x1[16:32])


def test_rows_of_a_class_meet_their_own_kind():
    labels = (torch.arange(64) * 7 % 5) % 2
    ends = Ends(SPEC, two_sided=True, cond={"label": LABEL})
    given = batch(labels=labels)
    for coupling in (EXACT, ENTROPIC):
        chosen = rows_of(coupling.prepare(given, ends, draws()).x1, given.x1)
        assert torch.equal(labels[chosen], labels)
    within = rows_of(EXACT.prepare(given, ends, draws()).x1, given.x1)[labels == 1]
    alone = assign(costs(given.x0[labels == 1], given.x1[labels == 1]))
    assert torch.equal(within, torch.nonzero(labels == 1).flatten()[alone])
    # Each row draws by a number of its own, whatever group it is in.
    plan, u = sinkhorn(costs(given.x0[labels == 1], given.x1[labels == 1]), 1.0), draws().uniform("partner")
    within = rows_of(ENTROPIC.prepare(given, ends, draws()).x1, given.x1)[labels == 1]
    assert torch.equal(within, torch.nonzero(labels == 1).flatten()[draw(plan, u[labels == 1])])


def test_rows_that_lack_the_condition_are_a_kind_of_their_own():
    given = batch(labels=torch.zeros(64, dtype=torch.int64))
    lacks = torch.arange(64) % 3 == 0
    given = Batch(given.index, given.x0, given.x1, given.cond.drop("label", lacks))
    chosen = rows_of(EXACT.prepare(given, Ends(SPEC, two_sided=True, cond={"label": LABEL}), draws()).x1, given.x1)
    assert torch.equal(lacks[chosen], lacks)
    assert not torch.equal(chosen, torch.arange(64))


def test_conditions_that_no_rows_share_move_nothing():
    given = Batch(torch.arange(64), *(torch.randn(64, 2) for _ in "ab"), Condition({"attributes": torch.randn(64, 3)}))
    made = EXACT.prepare(given, Ends(SPEC, two_sided=True, cond={"attributes": Spec((3,))}), draws())
    assert torch.equal(made.x1, given.x1)


@pytest.mark.parametrize("coupling", [EXACT, ENTROPIC])
def test_noise_stays_independent_of_the_label_that_the_bridge_is_given(coupling):
    """Classes at ±3: coupled across classes, their noises would be told apart by their signs."""
    n, steps = 64, 40
    known, unknown = Ends(SPEC, x1=Gaussian(SPEC), cond={"label": LABEL}), Ends(SPEC, x1=Gaussian(SPEC))
    means = {}
    for name, ends in (("known", known), ("unknown", unknown)):
        found = []
        for step in range(steps):
            given = batch(n, seed=step, x1=False, labels=torch.arange(n) % 2, seen=n * step)
            given = Batch(given.index, given.x0 + 6.0 * (given.cond["label"][:, None] - 0.5), None, given.cond)
            made = coupling.prepare(given, ends, draws(n, n * step))
            found.append(made.x1[given.cond["label"] == 1])
        means[name] = torch.cat(found).mean(0)
    limit = 4 / math.sqrt(n / 2 * steps)
    assert bool((means["known"].abs() < limit).all()), means
    assert bool((means["unknown"] > 4 * limit).all()), means  # the same rows, coupled across classes


@pytest.mark.parametrize("reference", [Brownian(sigma=1.0), OU(theta=1.0, sigma=0.8), VP()])
def test_pairs_of_gaussians_have_the_correlation_of_the_reference(reference):
    """Cov(x0, x1) = (√(4 + ε²) − ε)/2 for two standard normals, with the epsilon of any reference."""
    line, n, found = Spec((1,)), 256, []
    for step in range(60):
        x0 = torch.randn(n, 1, generator=torch.Generator().manual_seed(step))
        given = Batch(torch.arange(n), x0, seen=n * step)
        coupling = MinibatchOT(reference=reference)
        made = coupling.prepare(given, Ends(line, x1=Gaussian(line)), draws(n, n * step))
        found.append((made.x0 * made.x1).mean())
    products = torch.stack(found).double()
    epsilon = reference.epsilon
    expected = (math.sqrt(4 + epsilon**2) - epsilon) / 2
    standard_error = float(products.std()) / math.sqrt(len(products))
    # A batch fits its own points: its covariance is too large by less than 1/n.
    assert abs(float(products.mean()) - expected) < 4 * standard_error + 1 / n


def test_pairs_depend_on_the_step_and_the_rows_alone():
    ends = Ends(SPEC, x1=Gaussian(SPEC))
    given = batch(x1=False)
    first, again = (ENTROPIC.prepare(given, ends, draws()).x1 for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, ENTROPIC.prepare(given, ends, draws(seen=64)).x1)


def test_what_was_not_prepared_is_refused():
    with pytest.raises(DataError, match="prepared"):
        EXACT.pair(batch(x1=False), Ends(SPEC, x1=Gaussian(SPEC)), draws())
    with pytest.raises(DataError, match="no law"):
        EXACT.prepare(batch(x1=False), Ends(SPEC), draws())
