"""DSB in closed form: what each label is on average, the recursion of the half steps, and their fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.oracles import chain
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Affine, Joint, Normal
from latentsb.oracles.recursions import ipf
from latentsb.process.references import OU, Brownian
from latentsb.process.reversal import Link, Objective, Original, Simplified, Terminal

DSB = BRIDGES["dsb"]
F64 = torch.float64
KINDS = [Original(), Simplified(), Terminal()]
ONE = Normal.isotropic(1)
BROWNIAN = Brownian(sigma=1.0)


def reverse(step: chain.Step, law: Normal) -> Affine:
    """`E[x_k | x_{k+1}]` for `x_{k+1} = A x_k + v + noise`, by conditioning."""
    cross, there = law.cov @ step.mean.A.T, law.push(step.mean, step.cov)
    slope = cross @ torch.linalg.inv(there.cov)
    return Affine(slope, law.mean - slope @ there.mean)


def optimum(objective: Objective, steps: list[chain.Step], start: Normal, reference, towards) -> list[Affine]:
    """The drift of least loss at the state after each step, derived from the law of the chain alone."""
    found, whole = [], Affine.identity(start.dim)
    times = chain.uniform(len(steps), "x0" if towards == "x1" else "x1")
    for k, (step, law) in enumerate(zip(steps, chain.run(steps, start).laws[:-1], strict=True)):
        back, identity = reverse(step, law), Affine.identity(start.dim)
        if isinstance(objective, Original):
            back = identity + (back - identity).left(step.mean.A)  # y + A (E[x | y] − y)
        if isinstance(objective, Terminal):
            whole = step.mean.after(whole)
            there = law.push(step.mean, step.cov)
            slope = start.cov @ whole.A.T @ torch.linalg.inv(there.cov)
            found.append(pinned_drift(reference, times[k + 1], towards, slope, start.mean - slope @ there.mean))
        else:
            found.append(len(steps) * (back - identity))
    return found


def pinned_drift(reference, t, towards, slope, shift) -> Affine:
    """The drift of the reference towards a predicted end, probed: it is affine in the state and the end."""
    pull = reference.b_f if towards == "x1" else reference.b_b
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    t = t.reshape(1)
    own, end = float(pull(one, t, zero)), float(pull(zero, t, one))
    return end * Affine(slope, shift) + own * Affine.identity(len(shift))


def steps_of(maps: list[Affine], s2: float) -> list[chain.Step]:
    """Euler–Maruyama steps of drifts in the order of travel."""
    h, identity = 1 / len(maps), Affine.identity(len(maps[0].v))
    return [chain.Step(identity + h * b, s2 * h * torch.eye(len(b.v), dtype=F64)) for b in maps]


def fitted(bridge, table, towards) -> list[Affine]:
    """Least squares of the labels of all chains on the states after each step, in the order of the chain."""
    times, x, maps = bridge.grid.times(bridge, bridge.steps, "x0" if towards == "x1" else "x1"), table["x"], []
    for k in range(bridge.steps):
        kept = table["correction"][:, k] if "correction" in table else None
        t, s = (times[place].expand(len(x)) for place in (k + 1, k))
        link = Link(x[:, 0], x[:, k], x[:, k + 1], t, s, kept)
        inputs = torch.cat([link.after, torch.ones(len(x), 1, dtype=F64)], 1)
        solved = torch.linalg.lstsq(inputs, bridge.objective.label(link, bridge.reference, towards)).solution
        maps.append(Affine(solved[:-1].T, solved[-1]))
    return maps


def at(maps: dict[float, Affine]) -> Callable:
    return lambda t: maps[min(maps, key=lambda known: abs(known - float(t)))]


# Optima

MEANS = [Normal.isotropic(1, 0.4, 0.7), Normal.isotropic(1, -0.3, 1.6)]


def teacher(steps: int, towards: str) -> list[Affine]:
    """Drifts that bend and stretch, of no bridge in particular."""
    times = chain.uniform(steps, towards)[:-1]
    return [Affine(torch.tensor([[0.8 - t]], dtype=F64), torch.tensor([0.5 * t], dtype=F64)) for t in times]


@pytest.mark.parametrize("towards", ["x0", "x1"])
@pytest.mark.parametrize("objective", KINDS)
def test_labels_are_right_on_average(gauss, objective, towards):
    """What a label has beyond the optimum is orthogonal to 1 and to the state: 4.5 standard errors at each time."""
    n, resting = 200_000, "x0" if towards == "x1" else "x1"
    bridge = gauss.dsb(objective=objective, reference=OU(theta=0.4, sigma=0.9), steps=6)
    maps, times = teacher(6, resting), chain.uniform(6, resting)
    bridge.networks[resting].maps = at(dict(zip(times[:-1].tolist(), maps, strict=True)))
    bridge.turn.fill_(2)
    draws = gauss.Quick(n, 5)
    table = bridge.simulate_chains(gauss.both(*MEANS, n, draws), draws, resting)
    link, _ = bridge.links(table, draws, towards)
    label = objective.label(link, bridge.reference, towards)
    best = optimum(objective, steps_of(maps, 0.81), MEANS[resting == "x0"], bridge.reference, towards)
    for t, drift in zip(times[1:], best, strict=True):
        rows = link.t == t
        rest, x = label[rows] - drift(link.after[rows]), link.after[rows]
        for product in (rest, rest * (x - x.mean())):
            # Paths are drawn with replacement: of n/6 draws from n paths, at least nine in ten are different ones.
            assert abs(float(product.mean())) < 4.5 * float(product.std()) / math.sqrt(0.9 * len(product))


def test_the_two_labels_differ_in_second_order_only():
    gaps = []
    for steps in (20, 40, 80):
        teaching = steps_of(teacher(steps, "x1"), 1.0)
        one, two = (optimum(kind, teaching, MEANS[0], BROWNIAN, "x0") for kind in (Original(), Simplified()))
        gaps.append(max(float((a.A - b.A).abs()) for a, b in zip(one, two, strict=True)) / steps)  # in the mean
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.05)


def test_simplified_retraces_every_mean_and_covariance_between_the_ends():
    """Its mean is that of the reversal at any N, so the reversed chain keeps means, and E[x_0 | x_N] as a map."""
    for steps in (3, 20):
        teaching = steps_of(teacher(steps, "x1"), 1.0)
        forth = chain.run(teaching, MEANS[0])
        for kind in (Simplified(), Original()):
            back = chain.run(steps_of(optimum(kind, teaching, MEANS[0], BROWNIAN, "x0")[::-1], 1.0), forth.last)
            gap = max(float((a.mean - b.mean).abs()) for a, b in zip(back.laws, forth.laws[::-1], strict=True))
            cross = float((back.ends.cross - forth.ends.cross.T).abs())
            assert (max(gap, cross) < 1e-12) == isinstance(kind, Simplified)


# Iterative proportional fitting


def ideal(objective, reference, steps: int, count: int) -> list[Joint]:
    """The couplings after each half step of a chain of N steps, without any sampling error."""
    s2, now, start = reference.sigma**2, [0.0 * Affine.identity(1)] * steps, ONE
    found = []
    for turn in range(count):
        towards = "x0" if turn % 2 == 0 else "x1"
        now = optimum(objective, steps_of(now, s2), start, reference, towards)[::-1]
        start = ONE
        ends = chain.run(steps_of(now, s2), start).ends
        found.append(ends.reversed() if towards == "x0" else ends)
    return found


@pytest.mark.parametrize("objective", [Original(), Simplified()])
@pytest.mark.parametrize("sigma", [1.0, math.sqrt(0.1)])
def test_half_steps_of_the_chain_tend_to_the_exact_ones(objective, sigma):
    """1/2, 2/3, 3/5, 5/8, … and un-pinned variances 3/4, 10/9, 24/25, 65/64, with an error of first order in 1/N."""
    reference = Brownian(sigma=sigma)
    exact = [next(found) for found in [ipf(ONE, ONE, reference)] for _ in range(4)]
    if sigma == 1:
        assert [float(joint.cross) for joint in exact] == pytest.approx([1 / 2, 2 / 3, 3 / 5, 5 / 8])
        unpinned = [float((j.x0 if k % 2 == 0 else j.x1).cov) for k, j in enumerate(exact)]
        assert unpinned == pytest.approx([3 / 4, 10 / 9, 24 / 25, 65 / 64])
    coarse, fine = (ideal(objective, reference, steps, 4) for steps in (100, 200))
    for one, two, true in zip(coarse, fine, exact, strict=True):
        for name in ("cross", "x0", "x1"):
            a, b, c = (getattr(joint, name) for joint in (one, two, true))
            a, b, c = (float(value if name == "cross" else value.cov) for value in (a, b, c))
            assert b == pytest.approx(c, abs=4e-3)
            assert 2 * b - a == pytest.approx(c, abs=4e-4)  # what is left of the second order


@pytest.mark.parametrize(
    ("objective", "cross", "variance"), [(Original(), 0.6161, 1.0119), (Simplified(), 0.6037, 1.0004)]
)
def test_what_twenty_steps_cost_is_what_the_page_says(objective, cross, variance):
    ends = ideal(objective, Brownian(sigma=1.0), 20, 20)[-1]
    assert float(ends.cross) == pytest.approx(cross, abs=1e-4)
    assert float(ends.x1.cov) == pytest.approx(variance, abs=1e-4)


@pytest.mark.parametrize("objective", KINDS)
def test_the_recursion_by_simulation_and_least_squares(gauss, objective):
    """Half steps as training makes them, networks fitted by least squares on exact moments: the recursion, to rounding.

    Its extrapolation from N and 2 N is 1/2, 2/3, 3/5, 5/8 (for the terminal objective, not a reversal, only at first).
    """
    found = {steps: simulated(gauss, objective, steps, 4) for steps in (20, 40)}
    for steps, joints in found.items():
        for joint, expected in zip(joints, ideal(objective, BROWNIAN, steps, 4), strict=True):
            torch.testing.assert_close(joint.cross, expected.cross, atol=1e-10, rtol=0)
            torch.testing.assert_close(joint.x0.cov, expected.x0.cov, atol=1e-10, rtol=0)
            torch.testing.assert_close(joint.x1.cov, expected.x1.cov, atol=1e-10, rtol=0)
    extrapolated = [float(2 * b.cross - a.cross) for a, b in zip(found[20], found[40], strict=True)]
    known = 1 if isinstance(objective, Terminal) else 4
    assert extrapolated[:known] == pytest.approx([1 / 2, 2 / 3, 3 / 5, 5 / 8][:known], abs=2e-3)


def simulated(gauss, objective, steps: int, turns: int) -> list[Joint]:
    """Couplings after half steps of the bridge itself: its chains, its labels, the least squares that they ask for."""
    rows = gauss.Columns(steps).rows
    bridge = gauss.dsb(objective=objective, steps=steps, paths=rows, half_step=100)
    names, found = [], []
    for turn in range(turns):
        towards, resting = ("x0", "x1") if turn % 2 == 0 else ("x1", "x0")
        work = gauss.OneBlock(turn, ONE, ONE, gauss.Columns(steps))
        bridge.renew(work)
        names += work.names
        maps = fitted(bridge, bridge.chains, towards)
        times = chain.uniform(steps, resting)[1:].tolist()
        bridge.networks[towards].maps = at(dict(zip(times, maps, strict=True)))
        ends = chain.run(steps_of(maps[::-1], 1.0), ONE).ends
        found.append(ends.reversed() if towards == "x0" else ends)
    assert names == ["chains towards x1", "chains towards x0"] * (turns // 2)
    return found


@pytest.mark.parametrize("objective", KINDS)
@pytest.mark.parametrize("reference", [Brownian(sigma=0.8), OU(theta=0.6, sigma=0.9)])
def test_the_schroedinger_bridge_stays_what_it_is(gauss, objective, reference):
    """Chains of its exact drifts are undone to its exact drifts, both ways, with an error of first order in 1/N."""
    truth, s2 = GaussianBridge.between(*MEANS, reference), reference.sigma**2
    for towards, resting in (("x0", "x1"), ("x1", "x0")):
        here, there = (truth.b_f, truth.b_b) if resting == "x1" else (truth.b_b, truth.b_f)
        gaps = []
        for steps in (10, 20):
            times = chain.uniform(steps, resting)
            teaching = steps_of([here(t) for t in times[:-1]], s2)
            found = optimum(objective, teaching, MEANS[resting == "x0"], reference, towards)
            gaps.append(
                [float((b.A - there(t).A).abs()) for t, b in zip(times[1:], found, strict=True)][steps // 2 - 1]
            )
        assert gaps[1] < 0.1
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.25)


def test_terminal_is_bridge_matching_where_the_chain_is_the_reference(gauss):
    """First half step: exactly the Markovian projection of the reference's own coupling, at every N."""
    for steps in (4, 20):
        bridge = gauss.dsb(objective=Terminal())
        ends = Joint(MEANS[0], MEANS[0].push(Affine.identity(1), torch.eye(1, dtype=F64)), MEANS[0].cov)
        projection = GaussianBridge(ends, bridge.reference)
        found = optimum(Terminal(), steps_of([0.0 * Affine.identity(1)] * steps, 1.0), MEANS[0], bridge.reference, "x0")
        for t, b in zip(chain.uniform(steps)[1:], found, strict=True):
            torch.testing.assert_close(b.A, projection.b_b(t).A)
            torch.testing.assert_close(b.v, projection.b_b(t).v)


def test_terminal_is_another_method_where_the_chain_is_no_bridge_of_the_reference():
    """After independent ends the projection is Markov but not reciprocal: terminal and reversal part, at any N."""
    projection = GaussianBridge(Joint.independent(*MEANS), Brownian(sigma=1.0))
    gaps = []
    for steps in (20, 40, 80):
        teaching = steps_of([projection.b_f(t) for t in chain.uniform(steps)[:-1]], 1.0)
        one, two = (optimum(kind, teaching, MEANS[0], BROWNIAN, "x0") for kind in (Simplified(), Terminal()))
        gaps.append(float((one[steps // 2].A - two[steps // 2].A).abs()))
    assert min(gaps) > 0.05
    assert abs(gaps[2] - gaps[1]) < 0.02
