"""Light Schrödinger bridges, held to mixture pairs with a known plan and to the Gaussian bridge."""

import math
import time

import pytest
import torch

from latentsb.bridges.lightsb import LightSB
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.likelihood import has_density
from latentsb.oracles.chain import euler_maruyama, run, uniform
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.metrics import bw2, cbw2_uvp
from latentsb.oracles.mixtures import MixturePair
from latentsb.oracles.normal import Normal
from latentsb.process.coupling import Independent, Paired
from latentsb.process.references import OU, VP, Brownian
from latentsb.randomness import Draws
from latentsb.solvers.direct import Direct
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Round

DOUBLE = torch.float64
NONE = Condition()
REFERENCES = [Brownian(sigma=0.7), VP(beta_min=0.1, beta_d=2.0), OU(theta=0.8, sigma=1.1)]


def ends(dim):
    return Ends(Spec((dim,), DOUBLE), two_sided=True)


def light(dim, *, reference=None, **keys):
    torch.manual_seed(0)
    return LightSB(ends(dim), reference=reference or Brownian(), double=True, **{"towards": "x1", **keys})


def known(pair, towards="x1"):
    """The bridge whose parameters are those of a pair's own potential; `towards` x0 mirrors it in time."""
    form = pair.potential.adjusted(pair.epsilon)
    S, axes = torch.linalg.eigh(form.S)
    # exp(A − Aᵀ) reaches rotations: an axis may be turned round.
    axes[:, :, 0] *= torch.linalg.det(axes)[:, None]
    values, vectors = torch.linalg.eig(axes)
    logs = (vectors @ torch.diag_embed(values.log()) @ torch.linalg.inv(vectors)).real
    bridge = light(
        pair.dim, reference=pair.reference, components=len(form.log_alpha), rotation=True, towards=towards, rows=10
    )
    with torch.no_grad():
        bridge.log_alpha.copy_(form.log_alpha)
        bridge.centre.copy_(form.r * (1 + pair.epsilon) / pair.epsilon)
        bridge.log_S.copy_(S.log())
        bridge.skew.copy_(logs.tril(-1))
    return bridge


def fit(bridge, x0, x1, *, steps, lr, batch=512):
    """Plain Adam with a linear fall of the rate over the second half; pairs of rows are unrelated."""
    bridge.place(bridge._scaled(x1 if bridge.towards == "x1" else x0, torch.tensor(float(bridge.towards == "x1"))))
    optimizer = torch.optim.Adam(bridge.parameters(), lr=lr, betas=(0.9, 0.99))
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        at = torch.randint(len(x0), (2, batch), generator=rng)
        rows = Batch(torch.arange(batch), x0[at[0]], x1[at[1]])
        optimizer.zero_grad()
        bridge.loss(rows, Draws.step(0, "fit", step, range(batch))).total.mean().backward()
        optimizer.step()
    return bridge


def unpaired(pair, n):
    return pair.sample_x0(n, Draws.block(1, "x0", 0, n)), pair.sample_x1(n, Draws.block(2, "x1", 0, n))


@torch.no_grad()
def exact_uvp(bridge, pair, inputs=200):
    """cBW2-UVP from closed-form moments of both plans: no sampling floor."""
    x0 = pair.sample_x0(inputs, Draws.block(7, "inputs", 0, inputs))
    mine, truth = bridge.conditional(x0), pair.conditional(x0)
    distance = bw2(mine.mean(), mine.cov(), truth.mean(), truth.cov()).mean()
    return float(100 * distance / (pair.x1_moments.cov.trace() / 2))


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_with_the_pairs_own_parameters_it_is_the_pair(epsilon):
    pair = MixturePair(dim=3, epsilon=epsilon)
    bridge = known(pair)
    x = pair.sample_x0(16, Draws.block(0, "x", 0, 16)) * 1.5
    for t in (0.0, 0.3, 0.99, 1 - 1e-9, 1.0):
        time_ = torch.tensor(t, dtype=DOUBLE)
        torch.testing.assert_close(bridge.drift(x, time_, NONE, "x1"), pair.drift(x, t), rtol=1e-7, atol=1e-7)
    mine, truth = bridge.conditional(x), pair.conditional(x)
    torch.testing.assert_close(mine.log_weights, truth.log_weights, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mine.means, truth.means, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mine.covs, truth.covs, rtol=1e-8, atol=1e-8)
    later = bridge.conditional(x, 0.6)
    torch.testing.assert_close(later.mean(), pair.predict(x, 0.6), rtol=1e-8, atol=1e-8)


def test_towards_x0_is_the_mirror_in_time():
    pair = MixturePair(dim=3, epsilon=0.5)
    there, back = known(pair), known(pair, "x0")
    x = pair.sample_x0(8, Draws.block(0, "x", 0, 8))
    for t in (0.0, 0.2, 0.9, 1.0):
        time_ = torch.tensor(t, dtype=DOUBLE)
        torch.testing.assert_close(back.drift(x, 1 - time_, NONE, "x0"), there.drift(x, time_, NONE, "x1"))
    torch.testing.assert_close(back.conditional(x).means, there.conditional(x).means)
    state = back.start(Batch(torch.arange(8), x1=x), Draws.seeds(range(8)), "x0")
    assert float(state.t) == 1
    for bridge, wrong in ((there, "x0"), (back, "x1")):
        with pytest.raises(CapabilityError, match=f"towards: {wrong}"):
            bridge.drift(x, torch.tensor(0.5), NONE, wrong)
        with pytest.raises(CapabilityError, match="closed form"):
            Direct().run(bridge, state, Draws.seeds(range(8)), wrong)
        with pytest.raises(CapabilityError, match="both drifts"):
            has_density(bridge)


def test_the_map_to_the_potential_and_back():
    pair = MixturePair(dim=3, epsilon=2.0)
    bridge = known(pair)
    found = bridge.potential().potential(pair.epsilon)
    x = pair.sample_x0(16, Draws.block(0, "x", 0, 16)) * 3
    torch.testing.assert_close(found.sigma, pair.potential.sigma, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mu, pair.potential.mu, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_prob(x), pair.potential.log_prob(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("matching", [None, Paired()])
@pytest.mark.parametrize("rotation", [False, True])
def test_gradients_are_those_of_finite_differences(matching, rotation):
    bridge = light(2, components=3, rotation=rotation, matching=matching, reference=OU())
    draws = Draws.step(0, "loss", 0, range(32))
    noise = draws.normal("a", torch.empty(32, 4, dtype=DOUBLE))
    batch = Batch(torch.arange(32), noise[:, :2], 2 * noise[:, 2:] + 1)
    with torch.no_grad():
        for p in bridge.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(p.numel())))
    bridge.loss(batch, draws).total.mean().backward()
    for p in bridge.parameters():
        flat, step = p.data.view(-1), 1e-5
        for i in range(p.numel()):
            value, rises = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = value + sign * step
                rises.append(sign * float(bridge.loss(batch, draws).total.mean().detach()))
            flat[i] = value
            assert math.isclose(sum(rises) / (2 * step), float(p.grad.view(-1)[i]), rel_tol=1e-5, abs_tol=1e-7)


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("towards", ["x1", "x0"])
def test_one_component_is_the_gaussian_bridge_over_any_reference(reference, towards):
    """For the optimal parameters: drift, plan, and the loss equal to minus the optimal KL."""
    a, b = (
        Normal.isotropic(2, 0.5, 0.8),
        Normal(torch.tensor([-1.0, 2.0]).double(), torch.diag(torch.tensor([2.5, 0.3])).double()),
    )
    truth = GaussianBridge.between(a, b, reference)
    bridge = light(2, reference=reference, components=1, towards=towards)
    joint = truth.ends if towards == "x1" else truth.ends.reversed()
    mean, cov = joint.x1_given_x0()
    given, made = (
        float(reference.alpha(torch.tensor(float(end), dtype=DOUBLE)))
        for end in ((0, 1) if towards == "x1" else (1, 0))
    )
    eps = reference.total
    with torch.no_grad():
        bridge.log_S.copy_((cov.diagonal() / made**2 / eps).log()[None])
        bridge.centre.copy_((mean.v / made * (1 + eps) / eps)[None])
    torch.testing.assert_close(bridge.log_S[0].exp(), mean.A.diagonal() * given / made, rtol=1e-9, atol=1e-9)
    n = 100_000
    x0, x1 = truth.ends.sample(n, Draws.block(0, "ends", 0, n))
    x = x0[:8]
    for t in (0.05, 0.5, 0.95):
        found = bridge.drift(x, torch.tensor(t, dtype=DOUBLE), NONE, towards)
        torch.testing.assert_close(found, truth.drift(x, t, towards), rtol=1e-8, atol=1e-8)
    loss = bridge.loss(Batch(torch.arange(n), x0, x1), Draws.block(0, "loss", 0, n)).total
    # Of the path laws started in the given end: the optimum counts from x0, the mirrored one from x1.
    optimum = truth.kl if towards == "x1" else _backward_kl(truth, reference)
    error = float(loss.std() / n**0.5)
    assert abs(float(loss.mean()) + optimum) < 4.5 * error, (float(loss.mean()), optimum, error)


def _backward_kl(truth, reference):
    """KL of the plan from `π1 ⊗ N(x0; x1/α_1, ρ²_1)`, the scaled Brownian motion run backwards."""
    mean, cov = truth.ends.reversed().x1_given_x0()
    scale = 1 / float(reference.alpha(torch.tensor(1.0, dtype=DOUBLE)))
    eye = torch.eye(2, dtype=DOUBLE)
    gap = truth.ends.x1.push(mean - type(mean)(scale * eye, torch.zeros(2, dtype=DOUBLE)))
    spread = gap.cov + torch.outer(gap.mean, gap.mean) + cov
    return float(spread.trace() / reference.total - 2 - torch.logdet(cov / reference.total)) / 2


@pytest.mark.parametrize("matching", [None, Independent()])
def test_training_finds_the_gaussian_plan_with_either_objective(matching):
    """S above one along the first axis: no mixture φ_1 with one component reaches it."""
    a, b = (
        Normal.isotropic(2, 0.5, 0.5),
        Normal(torch.tensor([-1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 0.3])).double()),
    )
    truth = GaussianBridge.between(a, b, Brownian())
    n = 20_000
    x0, x1 = a.sample(n, Draws.block(0, "a", 0, n)), b.sample(n, Draws.block(1, "b", 0, n))
    bridge = fit(light(2, components=1, matching=matching), x0, x1, steps=400, lr=3e-2)
    mean, cov = truth.ends.x1_given_x0()
    S = bridge.log_S.detach().exp()[0]
    assert float(S[0]) > 1
    # 400 batches of 512: 0.5 % of sampling error in a variance; three times that, and twice again for matching's noise.
    torch.testing.assert_close(S, cov.diagonal(), rtol=0.03, atol=0)
    torch.testing.assert_close(bridge.r.detach()[0], mean.v, rtol=0.03, atol=0.03)


def test_euler_maruyama_has_the_direct_law_but_for_its_predicted_bias():
    reference, steps, n = Brownian(), 2, 20_000
    a, b = Normal.isotropic(1, 0.0, 1.0), Normal.isotropic(1, 1.0, 3.0)
    truth = GaussianBridge.between(a, b, reference)
    bridge = light(1, components=1)
    mean, cov = truth.ends.x1_given_x0()
    with torch.no_grad():
        bridge.log_S.copy_(cov.log())
        bridge.centre.copy_(2 * mean.v[None])
    x0 = a.sample(n, Draws.block(0, "a", 0, n))
    draws = Draws.block(3, "solve", 0, n)
    state = bridge.start(Batch(torch.arange(n), x0), draws, "x1")
    stepped = EulerMaruyama(steps=steps, noiseless_last=False).run(bridge, state, draws, "x1").x
    direct = Direct().run(bridge, state, draws, "x1")
    assert direct.calls == 0
    chain = run(euler_maruyama(truth.b_f, truth.a, uniform(steps, "x1"), noiseless_last=False), a).last
    for made, law in ((stepped, chain), (direct.x, b)):
        spread = float(law.cov)
        assert abs(float(made.mean()) - float(law.mean)) < 4.5 * (spread / n) ** 0.5
        assert abs(float(made.var()) - spread) < 4.5 * spread * (2 / n) ** 0.5
    # The two are told apart: the bias is no tolerance.
    assert abs(float(chain.cov) - 3) > 5 * 3 * (2 / n) ** 0.5


@pytest.mark.parametrize("towards", ["x1", "x0"])
def test_direct_fills_in_the_bridge_between_its_ends(towards):
    pair, n = MixturePair(dim=2, epsilon=0.8), 20_000
    bridge, draws, seen = known(pair, towards), Draws.block(0, "direct", 0, n), []
    start = pair.sample_x0(n, draws)
    batch = Batch(torch.arange(n), start, start)
    state = bridge.start(batch, draws, towards)
    Direct(steps=4).run(bridge, state, draws, towards, seen.append)
    forward = [float(s.t) if towards == "x1" else 1 - float(s.t) for s in seen]
    assert forward == [0, 0.25, 0.5, 0.75, 1]
    # Martingale increments of the pinned process: X_t − mean has variance ε t (1 − t) and no correlation with the ends.
    first, last = seen[0].x, seen[-1].x
    for s, t in zip(seen[1:-1], forward[1:-1], strict=True):
        off = s.x - (1 - t) * first - t * last
        spread = pair.epsilon * t * (1 - t)
        assert abs(float(off.square().mean()) - spread) < 4.5 * spread * (1 / n) ** 0.5
        assert bool(((off * last).mean(0).abs() < 4.5 * (off * last).std(0) / n**0.5).all())
    early, late = seen[1].x - 0.75 * first - 0.25 * last, seen[3].x - 0.25 * first - 0.75 * last
    product = early * late
    assert abs(float(product.mean()) - pair.epsilon / 16) < 4.5 * float(product.std()) / (2 * n) ** 0.5


class Once(Round):
    """A first round with given points."""

    number, part, size, resumed = 0, "", 0, False

    def simulate(self, name, rows, make):
        noise = Draws.block(0, name, 0, rows).normal("points", torch.empty(rows, 2))
        return make(Batch(torch.arange(rows), noise, 3 + noise), Draws.block(0, name, 0, rows))


def test_the_first_centres_come_once_from_the_made_end():
    bridges = [LightSB(ends(2), towards=end, components=4, rows=200) for end in ("x0", "x1", "x1")]
    for bridge in bridges:
        bridge.renew(Once())
    assert abs(float(bridges[0].centre.mean())) < 1 < 1.5 < float(bridges[1].centre.mean())
    assert torch.equal(bridges[1].centre, bridges[2].centre)
    before = bridges[1].centre.clone()
    for changes in ({"number": 1}, {"resumed": True}):
        later = Once()
        vars(later).update(changes)
        with torch.no_grad():
            bridges[1].centre.add_(1)
        bridges[1].renew(later)
        assert not torch.equal(bridges[1].centre, before)


def test_every_component_begins_with_rows_at_a_small_epsilon():
    """No collapse onto one component: the largest share of 32 is a few times their mean, at 1/500 of the variance."""
    pair = MixturePair(dim=2, epsilon=2e-3)
    x0, x1 = unpaired(pair, 4000)
    bridge = light(2, components=32, reference=Brownian(sigma=2e-3**0.5))
    bridge.place(x1)
    share = bridge.conditional(x0).log_weights.exp().mean(0)
    assert float(share.max()) < 4 / 32
    assert float(share.min()) > 1 / 32 / 20
    loss = bridge.loss(Batch(torch.arange(4000), x0, x1), Draws.block(0, "loss", 0, 4000)).total
    assert bool(loss.isfinite().all())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ArgumentError, match="noise"):
        LightSB(ends(2), reference=Brownian(sigma=0.0))
    with pytest.raises(ArgumentError, match="components"):
        LightSB(ends(2), rows=5)
    with pytest.raises(ArgumentError, match="partners"):
        LightSB(Ends(Spec((2,))), matching=Paired())


def learned(dim, epsilon, *, steps, n=50_000, **keys):
    pair = MixturePair(dim=dim, epsilon=epsilon)
    x0, x1 = unpaired(pair, n)
    keys = {"components": 10, "rotation": dim > 2, **keys}
    bridge = light(dim, reference=pair.reference, **keys)
    began = time.process_time()
    fit(bridge, x0, x1, steps=steps, lr=1e-2)
    return bridge, pair, time.process_time() - began


@pytest.mark.parametrize(("dim", "epsilon", "steps"), [(2, 0.1, 600), (2, 1.0, 300), (2, 10.0, 300)])
def test_a_known_pair_is_recovered(dim, epsilon, steps):
    bridge, pair, _ = learned(dim, epsilon, steps=steps, n=20_000)
    assert exact_uvp(bridge, pair) < 0.5
    found = cbw2_uvp(
        lambda x, draws: Direct().run(bridge, bridge.start(Batch(torch.arange(len(x)), x), draws, "x1"), draws, "x1").x,
        pair,
        inputs=20,
        samples=500,
    )
    assert found.value < 1 + 3 * found.error


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dim", [2, 16, 64])
def test_known_pairs_are_recovered_within_two_minutes(dim, epsilon):
    bridge, pair, seconds = learned(dim, epsilon, steps=1500)
    assert exact_uvp(bridge, pair) < 1
    assert seconds < 120


@pytest.mark.slow
@pytest.mark.parametrize("matching", [Independent()])
def test_matching_recovers_a_pair_from_the_independent_coupling(matching):
    bridge, pair, _ = learned(2, 1.0, steps=1500, matching=matching)
    assert exact_uvp(bridge, pair) < 0.5
