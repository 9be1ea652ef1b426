"""SB-VAE: a solved instance, exact expectations of both forms, the bridge at the optimum, and the freezing of it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from latentsb.bridges.sbvae import SBVAE, Chain, PathIntegral
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.experiment import build
from latentsb.freezing import Fixed, Never, Plateau
from latentsb.laws import Ends, Gaussian
from latentsb.networks.base import Network
from latentsb.networks.mlp import MLP
from latentsb.oracles.gaussian import GaussianBridge
from latentsb.oracles.normal import Normal
from latentsb.process.references import OU, VE, VP, Brownian
from latentsb.randomness import Draws
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Alternate, Joint, Phase
from latentsb.trainer import Trainer

DOUBLE = torch.float64
LINE = Spec((1,), DOUBLE)
MU, PI, G = 1.3, 0.8, 0.9
"""Variances of data and prior, and the noise of the solved instance."""
ENTROPY = math.log(2 * math.pi * math.e * MU) / 2


class Slope(Network):
    """`(a + b t) x`, with both numbers to be trained."""

    def __init__(self, a=0.0, b=0.0):
        super().__init__(LINE)
        self.weight = torch.nn.Parameter(torch.tensor([a, b], dtype=DOUBLE))

    def forward(self, x, t, cond):
        t = t.expand(len(x))[:, None]
        return (self.weight[0] + self.weight[1] * t) * x


def pair(encoder, decoder):
    """What builds the encoder's network second: that of x0 is built first."""
    built = iter([decoder, encoder])
    return lambda x, cond: next(built)


def instance(n, **recipe):
    """u = (−.3 + .5 t) x and s = (.6 + .2 t) x over Brownian motion of .9: Z = u/g, Ẑ = −s/g."""
    network = pair(Slope(-0.3 / G, 0.5 / G), Slope(-0.6 / G, -0.2 / G))
    ends = Ends(LINE, x1=Gaussian(LINE, cov=((PI,),)))
    return SBVAE(
        ends, network=network, reference=Brownian(sigma=G), steps=n, energy=recipe.pop("energy", 0.0), **recipe
    )


class Cubature:
    """Draws whose mean over the rows is the expectation of every polynomial of degree three of the normal numbers."""

    def __init__(self, n):
        self.points = torch.cat([torch.eye(n + 1), -torch.eye(n + 1)]).double() * (n + 1) ** 0.5

    def fork(self, name):
        return self

    def normal(self, name, like):
        return self.points[:, 1:, None] if name == "chain" else torch.ones_like(like)

    def batch(self, variance=MU):
        return Batch(torch.arange(len(self.points)), self.points[:, :1] * variance**0.5)


def expected(bridge, variance=MU):
    """The exact expectation of a loss that is quadratic in start and noise, and the variance in which paths end."""
    draws = Cubature(bridge.steps)
    batch = draws.batch(variance)
    loss = bridge.loss(batch, draws)
    end = bridge.chain(batch.data, batch.cond, draws).x[:, -1].square().mean()
    return loss.total.mean(), end


@torch.no_grad()
def slope(bridge, t, towards):
    """Of a drift that is linear in the state."""
    return float(bridge.drift(torch.ones(1, 1, dtype=DOUBLE), t, Condition(), towards))


def chain_law(bridge, variance=MU):
    """Laws of the states at all nodes under the encoder's and under the decoder's chain."""
    n, h = bridge.steps, 1 / bridge.steps
    slopes = [[slope(bridge, t, end) for t in bridge.nodes] for end in ("x1", "x0")]
    g = bridge.reference.g(bridge.nodes)
    # x = L y with independent y of known variances, once from the left and once from the right.
    forward, backward = torch.eye(n + 1, dtype=DOUBLE), torch.eye(n + 1, dtype=DOUBLE)
    for k in range(n):
        forward[k + 1, k] = -(1 + h * slopes[0][k])
        backward[k, k + 1] = -(1 + h * slopes[1][k + 1])
    first = torch.cat([torch.tensor([variance], dtype=DOUBLE), h * g[:-1] ** 2])
    last = torch.cat([h * g[1:] ** 2, torch.tensor([PI], dtype=DOUBLE)])

    def law(matrix, noise):
        inverse = torch.linalg.inv(matrix)
        return Normal(torch.zeros(n + 1, dtype=DOUBLE), inverse @ torch.diag(noise) @ inverse.T)

    return law(forward, first), law(backward, last)


@pytest.mark.parametrize("control_variate", [True, False])
@pytest.mark.parametrize("reference", [Brownian(sigma=G), VP(), OU(theta=2.0, sigma=0.7)])
def test_the_chain_form_is_the_relative_entropy_of_the_two_chains(reference, control_variate):
    """KL of two normal laws of all N + 1 states, from their covariances: every constant counts, g may vary."""
    network = pair(Slope(-0.3, 0.5), Slope(-0.6, -0.2))
    ends = Ends(LINE, x1=Gaussian(LINE, cov=((PI,),)))
    form = Chain(control_variate=control_variate)
    bridge = SBVAE(ends, network=network, reference=reference, steps=8, energy=0.0, form=form)
    encoder, decoder = chain_law(bridge)
    assert float(expected(bridge)[0]) - ENTROPY == pytest.approx(encoder.kl(decoder), abs=1e-10)


def test_the_solved_instance():
    """Prior loss and drift matching are .33940, the chain with 20 000 steps .339396, and the data's own KL .1553."""

    def moments(n):
        """Variances at the nodes of the chain and the matching of its expectation, in closed form."""
        h, variance, total = 1 / n, MU, 0.0
        for k in range(n):
            u, s = -0.3 + 0.5 * k * h, 0.6 + 0.2 * (k + 1) * h
            after = (1 + h * u) ** 2 * variance + h * G**2
            # |x − x' + h s x'|² with Cov(x, x') = (1 + h u) variance.
            square = variance - 2 * (1 - h * s) * (1 + h * u) * variance + (1 - h * s) ** 2 * after
            total += square / (2 * G**2 * h) - 0.5
            variance = after
        return total + variance / (2 * PI) + math.log(2 * math.pi * PI) / 2 - ENTROPY

    assert moments(20_000) == pytest.approx(0.339396, abs=1e-6)
    found = {form: [float(expected(instance(n, form=form))[0]) - ENTROPY for n in (25, 50, 100)] for form in FORMS}
    for form in FORMS:
        a, b, c = found[form]
        # Richardson, twice: what is left is of third order in the step.
        assert ((8 * c - 6 * b + a) / 3) == pytest.approx(0.33940, abs=1e-5)
    assert found[FORMS[0]] == pytest.approx([moments(n) for n in (25, 50, 100)], abs=1e-10)
    bridge, ends = instance(10), []
    for n in (100, 200):
        variance = PI
        for k in range(n, 0, -1):
            t = torch.tensor(k / n, dtype=DOUBLE)
            variance = (1 + slope(bridge, t, "x0") / n) ** 2 * variance + G**2 / n
        ends.append(variance)
    variance = 2 * ends[1] - ends[0]
    kl = (MU / variance - 1 - math.log(MU / variance)) / 2
    assert kl == pytest.approx(0.1553, abs=2e-4)


FORMS = (Chain(), PathIntegral())


def test_the_control_variate_takes_the_noise_of_the_steps_out(gauss):
    """Standard deviation per path 10.1 without and 2.4 with it, N = 200, at the same mean."""
    draws = Draws.step(0, "chain", 0, range(4000))
    noise = draws.normal("x0", torch.empty(4000, 1, dtype=DOUBLE))
    batch = Batch(torch.arange(4000), noise * MU**0.5)
    with torch.no_grad():
        raw, cut = (
            instance(200, form=Chain(control_variate=on)).loss(batch, draws).total - ENTROPY for on in (False, True)
        )
    assert float(raw.std()) == pytest.approx(10.1, rel=0.04)
    assert float(cut.std()) == pytest.approx(2.4, rel=0.06)
    exact = float(expected(instance(200))[0]) - ENTROPY
    assert gauss.within(raw, exact)
    assert gauss.within(cut, exact)


def gradient(bridge):
    bridge.zero_grad()
    expected(bridge)[0].backward()
    return torch.cat([p.grad for p in bridge.parameters()])


def test_both_forms_have_the_same_gradient():
    """For both networks: up to the step, whose error halves with it; the two ways of the chain form exactly."""
    difference = [gradient(instance(n, form=FORMS[0])) - gradient(instance(n, form=FORMS[1])) for n in (40, 80, 160)]
    size = [float(d.norm()) for d in difference]
    assert size[1] / size[0] == pytest.approx(0.5, abs=0.05)
    a, b, c = difference
    assert float(((8 * c - 6 * b + a) / 3).norm()) < 2e-4
    raw = gradient(instance(40, form=Chain(control_variate=False)))
    torch.testing.assert_close(gradient(instance(40, form=FORMS[0])), raw, atol=1e-9, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_recomputing_changes_nothing(form):
    a, b = gradient(instance(10, form=form, energy=0.3)), gradient(instance(10, form=form, energy=0.3, recompute=True))
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def optimum(gauss, reference, energy, n):
    """Controls that are affine at each node, brought to the minimum of the exact expectation."""
    knots = torch.arange(n + 1, dtype=DOUBLE) / n

    def network(x, cond):
        return gauss.LinearNetwork(x, knots=knots)

    ends = Ends(LINE, x1=Gaussian(LINE, cov=((PI,),)))
    bridge = SBVAE(ends, network=network, reference=reference, steps=n, energy=energy)
    minimiser = torch.optim.LBFGS(bridge.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        minimiser.zero_grad()
        value = expected(bridge)[0]
        value.backward()
        return value

    minimiser.step(closure)
    return bridge, float(expected(bridge)[1].detach())


@pytest.mark.parametrize("reference", [Brownian(sigma=G), OU(theta=0.7, sigma=0.8)])
def test_the_joint_optimum_with_energy_is_the_schrodinger_bridge(gauss, reference):
    """Between the data and the law of variance V that minimises `KL(V | π) + λ KL(bridge to V | reference)`.

    Both drifts at all common nodes and V itself, the first order in the step extrapolated.
    """
    energy, zero, found, ends = 0.2, torch.zeros(1, dtype=DOUBLE), [], []

    def bridge_to(variance):
        law = [Normal(zero, torch.tensor([[v]], dtype=DOUBLE)) for v in (MU, variance)]
        return GaussianBridge.between(*law, reference)

    for n in (10, 20):
        bridge, variance = optimum(gauss, reference, energy, n)
        ends.append(variance)
        every = n // 10
        forth, back = bridge.nodes[:-1:every], bridge.nodes[every::every]
        found.append([slope(bridge, t, "x1") for t in forth] + [slope(bridge, t, "x0") for t in back])
    end = 2 * ends[1] - ends[0]
    grid = [0.5 + 0.005 * i for i in range(200)]
    costs = [(v / PI - 1 - math.log(v / PI)) / 2 + energy * bridge_to(v).kl for v in grid]
    assert end == pytest.approx(grid[costs.index(min(costs))], abs=0.008)
    assert abs(end - PI) > 0.02
    exact = bridge_to(end)
    wanted = [float(exact.b_f(t).A) for t in torch.arange(10) / 10]
    wanted += [float(exact.b_b(t).A) for t in torch.arange(1, 11) / 10]
    assert 2 * torch.tensor(found[1]) - torch.tensor(found[0]) == pytest.approx(torch.tensor(wanted), abs=0.02)


def test_the_regression_on_stored_paths_is_the_chain_form():
    """Over all steps of the stored paths its mean is that of the chain form, so its gradient is the decoder's."""
    bridge, n = instance(6), 6
    draws = Cubature(n)
    batch = draws.batch()
    rows = len(draws.points)
    paths = bridge.chain(batch.data, batch.cond, draws, last=True)
    bridge.table = "x1", {"x": paths.x.detach(), "control": paths.control.detach()}
    places = {"path": torch.arange(rows).repeat_interleave(n), "node": torch.arange(n).repeat(rows)}
    every = SimpleNamespace(integers=lambda name, high: places[name], uniform=None)
    found = bridge.regression(Batch(torch.arange(rows * n)), every).total.mean()
    wanted = bridge.decoder_loss(batch, draws).total.mean()
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    decoder = list(bridge.networks["x0"].parameters())
    a, b = (torch.autograd.grad(value, decoder)[0] for value in (found, wanted))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_it_starts_as_the_reference_and_refuses_what_it_cannot_do():
    spec = Spec((3,))

    def network(x, cond):
        return MLP(x, cond, width=8, depth=1)

    bridge, x, t = SBVAE(Ends(spec), network=network, reference=VP()), torch.randn(4, 3), torch.tensor(0.3).double()
    f = float(VP().f(t))
    torch.testing.assert_close(bridge.drift(x, t, Condition(), "x1"), f * x)
    torch.testing.assert_close(bridge.drift(x, t, Condition(), "x0"), -f * x)
    with pytest.raises(CapabilityError, match="density"):
        SBVAE(Ends(spec, two_sided=True), network=network)
    with pytest.raises(ArgumentError, match="has none at t = 0"):
        SBVAE(Ends(spec), network=network, reference=VE())


def phases():
    first = Joint((Phase("decoder", None), Phase("encoder", None)))
    return first, Alternate((Phase("regression", None),), images=100)


def follow(schedule, values, every=50, step=10, state_at=None):
    """Images at which the phases change, with a new line of the log every 50 images; perhaps resumed in between."""
    logs, seen, began = {}, 0, None
    while seen < every * len(values):
        if state_at == seen:
            state = json.loads(json.dumps(schedule.state_dict()))
            schedule = Plateau(**vars(schedule.rule)).schedule(*phases(), "encoder/prior")
            schedule.load_state_dict(state)
        round = schedule.round(seen)
        names = [phase.name for phase in schedule.now(seen, logs)]
        assert (round > 0) == (names == ["regression"])
        if round and began is None:
            began = seen
        assert round == (0 if began is None else 1 + (seen - schedule.frozen) // 100)
        seen += step
        if seen % every == 0:
            logs["encoder/prior"] = values[seen // every - 1]
    return began


def test_the_plateau_is_found_where_the_rule_says():
    """Falling by 10 % a line it goes on; once flat, the average of memory ½ takes some lines, then three looks."""
    rule = Plateau(threshold=0.01, looks=3, memory=0.5)
    values = [0.9**i for i in range(12)] + [0.9**11 + 1e-6 * i for i in range(1, 13)]
    average, history = values[0], [values[0]]
    for value in values[1:]:
        average = (average + value) / 2
        history.append(average)
    line = next(i for i in range(3, 24) if history[i - 3] - history[i] < 0.01 * history[i - 3])
    assert line > 14
    # Line i is written when 50 (i + 1) images are seen; the step from there still trains both.
    wanted = 50 * (line + 1) + 10
    assert follow(rule.schedule(*phases(), "encoder/prior"), values) == wanted
    for place in (0, 40, 330, 50 * (line + 1), wanted):
        assert follow(rule.schedule(*phases(), "encoder/prior"), values, state_at=place) == wanted
    falling = [0.9**i for i in range(24)]
    assert follow(rule.schedule(*phases(), "encoder/prior"), falling) is None
    once, logs = rule.schedule(*phases(), "encoder/prior"), {"encoder/prior": 0.7}
    once.now(0, logs)
    again = rule.schedule(*phases(), "encoder/prior")
    again.load_state_dict(json.loads(json.dumps(once.state_dict())))
    again.now(10, logs)
    assert again.state_dict() == once.state_dict()  # the same line of the log is not looked at twice
    assert follow(Plateau(cap=300).schedule(*phases(), "encoder/prior"), falling) == 310
    negative = [-(1.1**i) for i in range(24)]
    assert follow(rule.schedule(*phases(), "encoder/prior"), negative) is None


def test_the_other_rules():
    first, then = phases()
    assert Never().schedule(first, then, "encoder/prior") is first
    for after in (0, 200):
        schedule = Fixed(after=after).schedule(first, then, "encoder/prior")
        assert [schedule.round(seen) for seen in (0, 199, 200, 299, 300)] == (
            [1, 2, 3, 3, 4] if after == 0 else [0, 0, 1, 1, 2]
        )
        schedule.load_state_dict(schedule.state_dict())
        with pytest.raises(ValueError, match="frozen"):
            schedule.load_state_dict({"first": {}})


RECIPE = """
seed: 3
data: {name: gaussian, mean: [0.5], n: 200}
bridge:
  name: sbvae
  network: {name: mlp, width: 8, depth: 1}
  steps: 3
  paths: 32
  refresh: 64
  freeze: {name: plateau, threshold: 0.5, looks: 2}
train: {images: 320, batch: 16, log_every: 32, save_every: 64, preview_every: 1000000, keep: 9}
"""


def trained(path, *overrides):
    """A run and how it ended."""
    recipe = Recipe.parse(RECIPE, overrides, label="toy")
    run = Run.create(recipe, path)
    try:
        Trainer(run, build(recipe), device="cpu").fit()
        return run
    finally:
        run.close()


def test_a_resumed_run_freezes_at_the_same_step_and_the_encoder_rests_from_then_on(tmp_path):
    """The same bits whether training stops before the plateau is found, at it, or within phase two."""
    whole = trained(tmp_path / "whole")
    # Three lines of a loss that falls by less than half: found when 96 images are seen, so frozen from 112 on.
    assert whole.checkpoint().state["schedule"]["frozen"] == 97
    assert whole.checkpoint().state["round"] == 1 + (320 - 16 - 97) // 64
    models = {step: whole.checkpoints.open(step).tensors("model") for step in (4, 8, 20)}
    for name, value in models[8].items():
        if name.startswith("bridge."):
            assert torch.equal(value, models[20][name]) == (".x1." in name), name
    assert any(not torch.equal(models[4][name], value) for name, value in models[8].items() if ".x1." in name)
    for images in (64, 96, 192):
        trained(tmp_path / str(images), f"train.images={images}")
        parts = trained(tmp_path / str(images))
        assert dict(parts.checkpoint().sha256) == dict(whole.checkpoint().sha256)
