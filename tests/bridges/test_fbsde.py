"""SB-FBSDE: its losses against closed forms, half steps against exact IPF, and the likelihood that follows."""

import math

import pytest
import torch

from latentsb.bridges.fbsde import FBSDE, Alternating, JointLikelihood
from latentsb.bridges.sbvae import SBVAE, PathIntegral
from latentsb.divergence import Exact, Normal, Rademacher, divergence
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends, Gaussian
from latentsb.likelihood import Likelihood
from latentsb.networks.base import Network
from latentsb.networks.mlp import MLP
from latentsb.oracles import gaussian, normal, recursions
from latentsb.process.references import OU, VE, VP, Brownian
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Round

DOUBLE = torch.float64
LINE, PLANE = Spec((1,), DOUBLE), Spec((2,), DOUBLE)


class OptimalControl(Network):
    """`Z = (b_f − f x)/g` or `Ẑ = (b_b + f x)/g` of an exact bridge."""

    def __init__(self, bridge, towards):
        super().__init__(Spec((bridge.dim,), DOUBLE))
        self.bridge, self.towards = bridge, towards

    def forward(self, x, t, cond):
        reference, rows = self.bridge.reference, []
        t = t.expand(len(x))
        for time in t.unique():
            at = t == time
            f = reference.f(time.double()) * (1 if self.towards == "x1" else -1)
            drift = (self.bridge.b_f(time) if self.towards == "x1" else self.bridge.b_b(time))(x[at])
            rows.append((at, (drift - f * x[at]) / reference.g(time.double())))
        out = torch.zeros_like(x)
        for at, value in rows:
            out = out.index_put((at,), value)
        return out


def optimal(bridge, spec, law, **recipe):
    built = iter([OptimalControl(bridge, "x0"), OptimalControl(bridge, "x1")])
    ends = Ends(spec, x1=law)
    return FBSDE(ends, network=lambda x, cond: next(built), reference=bridge.reference, **recipe)


def line_bridge(reference, a=1.3, b=0.8, mean=(0.4, -0.3)):
    laws = [normal.Normal.isotropic(1, m, v) for m, v in zip(mean, (a, b), strict=True)]
    return gaussian.GaussianBridge.between(*laws, reference)


class Cubature:
    """Draws whose mean over the rows is the expectation of every polynomial of degree three of the normal numbers."""

    def __init__(self, n):
        self.points = torch.cat([torch.eye(n + 1), -torch.eye(n + 1)]).double() * (n + 1) ** 0.5

    def fork(self, name):
        return self

    def normal(self, name, like):
        return self.points[:, 1:, None] if name == "chain" else torch.ones_like(like)


@pytest.mark.parametrize("reference", [VP(), OU(theta=1.5, sigma=0.6), Brownian(sigma=0.7)])
@pytest.mark.parametrize("estimate", [Rademacher(), Exact()])
def test_the_joint_loss_is_that_of_sbvae(reference, estimate):
    """Under u = f x + g Z and s = f x − g Ẑ, for networks that are anything: per sample, not only in the mean."""
    torch.manual_seed(0)

    def network(x, cond):
        found = MLP(x, cond, width=16, depth=1).double()
        torch.nn.init.normal_(found.head.weight, std=0.3)
        return found

    ends = Ends(PLANE, x1=Gaussian(PLANE, mean=(0.3, 0.0)))
    joint = FBSDE(ends, network=network, reference=reference, objective=JointLikelihood(), estimate=estimate, steps=7)
    vae = SBVAE(ends, network=network, reference=reference, form=PathIntegral(estimate=estimate), steps=7, energy=0.0)
    vae.load_state_dict(joint.state_dict())
    draws = Draws.step(0, "loss", 0, range(16))
    batch = Batch(torch.arange(16), draws.normal("x0", torch.empty(16, 2, dtype=DOUBLE)))
    torch.testing.assert_close(joint.loss(batch, draws).total, vae.loss(batch, draws).total, atol=1e-6, rtol=0)
    for recompute in (False, True):
        joint.recompute = recompute
        joint.zero_grad()
        joint.loss(batch, draws).total.mean().backward()
        vae.zero_grad()
        vae.loss(batch, draws).total.mean().backward()
        for (name, a), b in zip(joint.named_parameters(), vae.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("reference", [Brownian(), OU(theta=1.5, sigma=0.9)])
def test_at_the_optimum_the_joint_loss_is_the_entropy_of_the_data(reference):
    """−E ln p(x0) in closed form; the step's error is extrapolated away."""
    exact, values = line_bridge(reference), []
    law = Gaussian(LINE, mean=(-0.3,), cov=((0.8,),))
    for n in (10, 20, 40):
        bridge, draws = optimal(exact, LINE, law, objective=JointLikelihood(), steps=n), Cubature(n)
        batch = Batch(torch.arange(2 * n + 2), 0.4 + draws.points[:, :1] * math.sqrt(1.3))
        with torch.no_grad():
            values.append(float(bridge.loss(batch, draws).total.mean()))
    a, b, c = values
    assert (8 * c - 6 * b + a) / 3 == pytest.approx(exact.ends.x0.entropy, abs=1e-3)


class Table(Round):
    """A round whose table has the moments of the exact expectation."""

    def __init__(self, number, laws, draws):
        self.number, self.laws, self.draws = number, laws, draws

    def simulate(self, name, rows, make):
        ends = (law.mean + law.cov.sqrt() * self.draws.points[:, :1] for law in self.laws)
        return make(Batch(torch.arange(rows), *ends), self.draws)


def minimise(loss, weight):
    """One Newton step on a quadratic: its minimum. Knots that it does not touch get a unit curvature."""
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    flat = gradient.flatten()
    curvature = torch.stack([torch.autograd.grad(g, weight, retain_graph=True)[0].flatten() for g in flat])
    untouched = torch.diag((curvature.diagonal() == 0).double())
    with torch.no_grad():
        weight.sub_(torch.linalg.solve(curvature + untouched, flat.detach()).reshape(weight.shape))


def half_steps(gauss, reference, laws, n, halves):
    """Slope and value at zero of the drifts at ten nodes after each half step, by the schedule's phases and rounds."""
    knots, draws, rows = torch.arange(n + 1, dtype=DOUBLE) / n, Cubature(n), 2 * n + 2
    bridge = FBSDE(
        Ends(LINE, two_sided=True),
        network=lambda x, cond: gauss.LinearNetwork(x, knots=knots),
        reference=reference,
        objective=Alternating(turn=10, refresh=5, paths=rows),
        steps=n,
    )
    schedule, found = bridge.schedule(), []
    every = {"path": torch.arange(rows).repeat_interleave(n + 1), "node": torch.arange(n + 1).repeat(rows)}
    draws.integers = lambda name, high: every[name]
    for half in range(halves):
        seen = 10 * half + 5
        bridge.renew(Table(schedule.round(seen), laws, draws))
        (phase,) = schedule.now(seen, {})
        end, rest = ("x0", "x1") if half % 2 == 0 else ("x1", "x0")
        assert phase.trains == (f"networks.{end}.",)
        minimise(phase.loss(Batch(torch.arange(rows * (n + 1))), draws).total.mean(), bridge.networks[end].weight)
        with torch.no_grad():
            # Of the discrete chain itself the optimum is exact: Z + Ẑ = g ∇ln p at every node.
            x = bridge.table[1]["x"]
            mean, variance = x.mean(0), x.var(0, correction=0)
            at = torch.tensor([-1.0, 2.0], dtype=DOUBLE).reshape(2, 1, 1).expand(2, n + 1, 1)
            both = sum(bridge.controls(at, torch.arange(n + 1), Condition(), e) for e in (end, rest))
            torch.testing.assert_close(both, bridge.over(bridge.g, at) * (mean - at) / variance, atol=1e-8, rtol=0)
            points = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
            found.append(torch.stack([bridge.drift(points, t, Condition(), end) for t in torch.arange(11) / 10]))
    return found


@pytest.mark.parametrize("reference", [Brownian(), OU(theta=0.7, sigma=1.0)])
def test_half_steps_are_those_of_iterative_proportional_fitting(gauss, reference):
    """Affine controls, solved for: their drifts are those of the exact couplings, to the second order in the step."""
    laws = [normal.Normal.isotropic(1, m, v) for m, v in ((0.5, 0.6), (-0.5, 1.2))]
    coarse, fine = (half_steps(gauss, reference, laws, n, 4) for n in (10, 20))
    law, couplings = recursions.transition(reference, 0.0, 1.0, 1), recursions.ipf(*laws, reference)
    pushed = laws[0].push(normal.Affine(law.Phi, law.m), law.Q)
    now = gaussian.GaussianBridge(normal.Joint(laws[0], pushed, laws[0].cov @ law.Phi.T), reference)
    points = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    for half in range(4):
        end = "x0" if half % 2 == 0 else "x1"
        wanted = torch.stack([now.drift(points, t / 10, end) for t in range(11)])
        assert 2 * fine[half] - coarse[half] == pytest.approx(wanted, abs=0.03), half
        now = gaussian.GaussianBridge(next(couplings), reference)


def test_the_warm_start_learns_the_score_of_the_reference(gauss):
    """At `Ẑ = g ∇ln p_t` of normal data under the reference the gradient is zero, and it is not at twice of it."""
    reference, law = VP(), normal.Normal.isotropic(1, 0.4, 0.7)
    step = recursions.transition(reference, 0.0, 1.0, 1)
    pushed = law.push(normal.Affine(step.Phi, step.m), step.Q)
    exact = gaussian.GaussianBridge(normal.Joint(law, pushed, law.cov @ step.Phi.T), reference)

    class Scaled(OptimalControl):
        def __init__(self):
            super().__init__(exact, "x0")
            self.scale = torch.nn.Parameter(torch.ones(2, dtype=DOUBLE))

        def forward(self, x, t, cond):
            t = t.expand(len(x)).double()[:, None]
            marginal = reference.noised(t)
            mean, variance = marginal.b * 0.4, marginal.b**2 * 0.7 + marginal.c
            return self.scale[0] * reference.g(t) * (mean * self.scale[1] - x) / variance

    bridge = FBSDE(Ends(LINE), network=lambda x, cond: Scaled(), reference=reference, warmup=100)
    network = bridge.networks["x0"]
    x, t = torch.tensor([[0.2], [1.0]], dtype=DOUBLE), torch.tensor(0.6, dtype=DOUBLE)
    torch.testing.assert_close(network(x, t, Condition()), OptimalControl.forward(network, x, t, Condition()))

    def slopes(scale):
        with torch.no_grad():
            network.scale.fill_(scale)
        found = []
        for i in range(30):
            draws = Draws.step(i, "loss", 0, range(500))
            x0 = 0.4 + 0.7**0.5 * draws.normal("x0", torch.empty(500, 1, dtype=DOUBLE))
            loss = bridge.warm_loss(Batch(torch.arange(500), x0), draws).total.mean()
            found.append(torch.autograd.grad(loss, network.scale)[0])
        return torch.stack(found)

    assert gauss.within(slopes(1.0), 0.0)
    assert not gauss.within(slopes(1.1), 0.0)
    schedule = bridge.schedule()
    assert [schedule.now(seen, {})[0].name for seen in (0, 99, 100, 250_100)] == ["warm", "warm", "half_x0", "half_x1"]


@pytest.mark.parametrize("reference", [Brownian(), VP(), OU(theta=2.0, sigma=0.8)])
def test_the_likelihood_of_the_flow_is_that_of_the_data(reference):
    """−ln p(x0) of a correlated normal law to 1e-3 nats, sample by sample, by the two exact controls."""
    data = normal.Normal(torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double())
    prior = normal.Normal(torch.zeros(2).double(), torch.tensor([[0.9, 0.2], [0.2, 1.1]]).double())
    exact = gaussian.GaussianBridge.between(data, prior, reference)
    law = Gaussian(PLANE, cov=((0.9, 0.2), (0.2, 1.1)))
    bridge, draws = optimal(exact, PLANE, law), Draws.seeds(range(6))
    x0 = data.sample(6, draws)
    found = Likelihood().log_prob(bridge, x0, Condition(), draws)
    assert found.exact
    assert found.nats == pytest.approx(data.log_prob(x0), abs=1e-3)


def test_estimates_of_the_divergence(gauss):
    """Signs are exact for a diagonal Jacobian; both are unbiased for any, and numbers vary more than signs."""
    n, shape = 4000, (4000, 3, 2)
    x = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[0.5, 2.0], [-1.0, 0.3]], dtype=DOUBLE)

    def find(field, estimate):
        probes = [p.flatten(0, 1) for p in estimate.probes(x, Draws.step(0, "probe", 0, range(n)))]
        return divergence(field, x.flatten(0, 1), probes)[1]

    diagonal = 3 * x.flatten(0, 1).square().sum(1)
    torch.testing.assert_close(find(lambda x: x**3, Rademacher()), diagonal, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(find(lambda x: x**3, Exact()), diagonal, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(find(lambda x: x @ matrix.T, Exact()), torch.full((3 * n,), 0.8, dtype=DOUBLE))
    signs, numbers = (find(lambda x: x @ matrix.T, estimate) for estimate in (Rademacher(), Normal()))
    assert gauss.within(signs, 0.8)
    assert gauss.within(numbers, 0.8)
    # Var e·(J e): the symmetric part off the diagonal, (2 − 1)² for signs; twice its squared norm for numbers.
    assert float(signs.var()) == pytest.approx(1.0, rel=0.05)
    assert float(numbers.var()) == pytest.approx(2 * (0.25 + 0.09 + 0.5), rel=0.1)
    assert float(find(lambda x: x @ matrix.T, Rademacher(n=4)).var()) == pytest.approx(0.25, rel=0.1)


def test_the_chain_takes_the_steps_of_its_grid(gauss):
    """The law of a chain of 5 steps is that of the Euler–Maruyama solver over the same times, both ways."""
    from latentsb.oracles import chain

    exact = line_bridge(OU(theta=1.2, sigma=0.7))
    bridge, draws = optimal(exact, LINE, Gaussian(LINE), steps=5), Cubature(5)
    for towards, drift, ends in (("x1", exact.b_f, (0.4, 1.3)), ("x0", exact.b_b, (-0.3, 0.8))):
        start = normal.Normal.isotropic(1, *ends)
        with torch.no_grad():
            paths = bridge.chain(ends[0] + ends[1] ** 0.5 * draws.points[:, :1], Condition(), draws, towards)
        wanted = chain.run(chain.euler_maruyama(drift, exact.a, chain.uniform(5, towards)), start)
        laws = wanted.laws if towards == "x1" else wanted.laws[::-1]
        for k, law in enumerate(laws):
            mean = paths.x[:, k].mean()
            assert float(mean) == pytest.approx(float(law.mean), abs=1e-10)
            assert float((paths.x[:, k] - mean).square().mean()) == pytest.approx(float(law.cov), abs=1e-10)


def test_what_it_refuses():
    def network(x, cond):
        return MLP(x, cond, width=8, depth=1)

    two_sided = Ends(Spec((2,)), two_sided=True)
    assert FBSDE(two_sided, network=network).ends.x1 is None
    with pytest.raises(CapabilityError, match="density"):
        FBSDE(two_sided, network=network, objective=JointLikelihood())
    with pytest.raises(ArgumentError, match="none at t = 0"):
        FBSDE(Ends(Spec((2,))), network=network, reference=VE())
    with pytest.raises(ArgumentError, match="must divide turn"):
        Alternating(turn=10, refresh=4)
