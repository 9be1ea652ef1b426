"""Learned priors: the laws that they sample and bound, in closed form where the denoiser is exact."""

import math
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.bridges.score import Score
from latentsb.bridges.vae import VAE
from latentsb.channels import Exact, Fixed
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.learned_prior import LEVELS, BridgePrior
from latentsb.networks.base import Network
from latentsb.networks.mlp import MLP
from latentsb.networks.skips import MLPSkip
from latentsb.process.coupling import MinibatchOT
from latentsb.process.times import LogUniformSigma
from latentsb.randomness import Draws
from latentsb.tensors import Batch, Condition, Spec
from latentsb.trainable import Alternate, Loss

DOUBLE = torch.float64
ROOT = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=DOUBLE)
"""Of the correlation of normalised codes: unit variances, 0.6 between them."""
MEAN, STD = torch.tensor([30.0, -0.02], dtype=DOUBLE), torch.tensor([8.0, 0.005], dtype=DOUBLE)
"""Of codes: one number is large and far away, the other one small."""


class Optimum(Network):
    """What a flow or EDM's F learns of N(0, cov)."""

    def __init__(self, x, cond=None, out=None, *, cov, flow):
        super().__init__(x, cond, out)
        values, self.axes = torch.linalg.eigh(cov)
        self.values, self.flow = nn.Parameter(values), flow

    def forward(self, x, t, cond):
        if self.flow:  # E[x1 − x0 | x_t], from Cov(x1 − x0, x_t) = t − (1 − t) λ
            gain = (t[..., None] - (1 - t[..., None]) * self.values) / (
                t[..., None] ** 2 + (1 - t[..., None]) ** 2 * self.values
            )
        else:
            s2 = (8 * t).exp()[..., None]
            best = self.values / (self.values + s2)
            gain = (best * (1 + s2) - 1) / s2.sqrt()
        return (x @ self.axes * gain) @ self.axes.T


def exact(cov, word="flow", dim=2, **keys):
    """A prior whose denoiser is that of N(0, cov)."""
    network = partial(Optimum, cov=cov, flow=word == "flow")
    bridge = partial({"flow": Flow, "score": Score}[word], network=network)
    return BridgePrior(Spec((dim,), DOUBLE), {}, bridge=bridge, **keys)


def number(v, word="flow", **keys):
    """The same of one number, of variance v, as if codes had unit spread."""
    prior = exact(torch.tensor([[v]], dtype=DOUBLE), word, 1, **keys)
    prior.normalise(torch.zeros(1), torch.ones(1), 1)
    return prior


@dataclass
class Rounds:
    """The first round of a stage, on given batches."""

    x0: torch.Tensor
    part: str = "prior"
    cond: dict = field(default_factory=dict)
    resumed: bool = False
    number: int = 0

    @property
    def size(self):
        return len(self.x0)

    def simulate(self, name, rows, make):
        cond = Condition({k: v[:rows] for k, v in self.cond.items()})
        batch = Batch(torch.arange(rows), self.x0[:rows], cond=cond)
        return make(batch, Draws.seeds(range(rows)))


@pytest.mark.parametrize("word", ["flow", "score"])
def test_codes_have_the_mean_and_covariance_of_the_training_codes(gauss, word):
    """From the exact denoiser; the default solver's own error of a variance is below 0.3 %, n leaves 0.45 %."""
    prior = exact(ROOT @ ROOT.T, word)
    prior.normalise(MEAN, STD, 5)
    n = 100_000
    z = prior.sample(Condition(), Draws.step(0, "z", 0, range(n)))
    u = (z - MEAN) / STD
    assert bool((u.mean(0).abs() < 4 / math.sqrt(n)).all())
    assert bool((u.T @ u / n - ROOT @ ROOT.T).abs().max() < 4 * math.sqrt(2 / n) + 0.003)
    assert "5 encodings" in prior.description
    assert "'" + word + "'" in prior.description


def test_an_affine_change_of_codes_changes_samples_by_the_same_map():
    codes = torch.randn(400, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) @ ROOT.T
    scale, shift = torch.tensor([5.0, 0.01], dtype=DOUBLE), torch.tensor([-3.0, 70.0], dtype=DOUBLE)
    draws, found = Draws.seeds(range(400)), []
    for z in (codes, codes * scale + shift):
        torch.manual_seed(0)
        bridge = partial(Flow, network=partial(MLPSkip, width=8, depth=2))
        prior = BridgePrior(Spec((2,), DOUBLE), {}, bridge=bridge).double()
        nn.init.normal_(prior.bridge.network.head.weight)
        prior.normalise(z.mean(0), z.std(0, correction=0), len(z))
        losses = prior.loss(z, Condition(), draws).total, prior.nats(z, Condition(), draws)
        found.append((prior.sample(Condition(), draws), *losses))
    (first, loss, nats), (second, loss_too, nats_too) = found
    torch.testing.assert_close(second, first * scale + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss_too, loss, rtol=1e-7, atol=1e-9)
    # The density falls as the volume grows.
    torch.testing.assert_close(nats_too, nats + scale.log().sum(), rtol=1e-6, atol=1e-6)


def test_rows_have_seeds_of_their_own():
    prior = exact(ROOT @ ROOT.T)
    prior.normalise(MEAN, STD, 5)
    whole = prior.sample(Condition(), Draws.seeds([4, 9, 7]))
    assert torch.equal(prior.sample(Condition(), Draws.seeds([4, 9, 7])), whole)
    torch.testing.assert_close(prior.sample(Condition(), Draws.seeds([9])), whole[1:2])


def test_statistics_are_weights_and_a_number_without_spread_is_only_shifted():
    prior, fresh = exact(ROOT @ ROOT.T), exact(ROOT @ ROOT.T)
    prior.normalise(MEAN, STD * torch.tensor([1.0, 0.0]), 7)
    fresh.load_state_dict(prior.state_dict())
    draws = Draws.seeds(range(3))
    assert torch.equal(fresh.sample(Condition(), draws), prior.sample(Condition(), draws))
    assert fresh.std.tolist() == [8.0, 1.0]
    assert fresh.ready


def bound(v, codes, low=LEVELS.sigma_min, high=LEVELS.sigma_max):
    """The bound of a code of variance `codes` under the exact denoiser of N(0, v), integrated by hand."""

    def inner(s):
        return codes / (v + s) - math.log(s / (v + s)) - v / (v + s)

    diffusion = (inner(low**2) - inner(high**2)) / 2
    return diffusion + codes / (2 * high**2) + math.log(2 * math.pi * math.e * low**2) / 2


@pytest.mark.parametrize("word", ["flow", "score"])
@pytest.mark.parametrize("v", [0.4, 1.0, 3.0])
def test_the_bound_is_the_cross_entropy_of_gaussian_codes(gauss, word, v):
    """`−E ln N(z; 0, v) = ln(2πv)/2 + v_z/(2v)`: what the ends of the levels change is below 1e-4.

    It may be less: the bound is that of a law a little wider than N(0, v), which suits codes of a larger variance.
    """
    v_z, n = 1.3, 100_000
    z = math.sqrt(v_z) * torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        nats = number(v, word).nats(z, Condition(), Draws.step(0, "bound", 0, range(n)))
    assert bound(v, v_z) == pytest.approx(math.log(2 * math.pi * v) / 2 + v_z / (2 * v), abs=1e-4)
    assert gauss.within(nats, bound(v, v_z))
    # Sharp enough to tell these three v apart.
    assert nats.std() / math.sqrt(n) < 0.07


@pytest.mark.parametrize("word", ["flow", "score"])
def test_the_ends_of_the_levels_count(gauss, monkeypatch, word):
    monkeypatch.setattr("latentsb.learned_prior.LEVELS", LogUniformSigma(sigma_min=0.2, sigma_max=2.0))
    z = math.sqrt(1.3) * torch.randn(20_000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    nats = number(0.7, word).nats(z, Condition(), Draws.step(0, "bound", 0, range(20_000))).detach()
    assert gauss.within(nats, bound(0.7, 1.3, 0.2, 2.0))


@pytest.mark.parametrize("v", [0.5, 1.25, 5.0])
def test_the_regularised_loss_is_information_and_the_divergence_of_the_prior(gauss, v):
    """`L_PR = I(x0; z) + KL(q(z) ‖ p(z))` with `KL = (v_z/v − 1 − ln(v_z/v))/2`, zero at `v = v_z` alone.

    z = x0 + q ε with the first number of x0 ~ N(0, 1) and q = 0.5, so that v_z = 1.25 and I = ln(v_z/q²)/2.
    """
    q, n = 0.5, 200_000
    x0 = torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    column = torch.ones(2, 1, dtype=DOUBLE)
    channel = Fixed(limit=1e4, sigma=q)  # a limit so wide that it is none
    bridge = coder(gauss, lambda code, cond: number(v, joint=True, weight=1.0), channel, column, 1, VAE)
    with torch.no_grad():
        found = bridge.loss(Batch(torch.arange(n), x0), Draws.step(0, "pr", 0, range(n))).terms["prior_nats"]
    v_z = 1 + q**2
    divergence = (v_z / v - 1 - math.log(v_z / v)) / 2
    expected = math.log(v_z / q**2) / 2 + divergence
    slack = bound(v, v_z) - math.log(2 * math.pi * v) / 2 - v_z / (2 * v)
    assert gauss.within(found, expected + slack)
    assert (divergence == 0) == (v == v_z)


def test_gradients_of_the_bound_reach_encoder_and_prior(gauss):
    """z = e x0: `d/de E[−ln p] = e/v` and `d/dv = 1/(2v) − e²/(2v²)`, each row's gradient an unbiased estimate."""
    v, scale, n = 0.7, 1.4, 20_000
    prior, x0 = number(v), torch.randn(n, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    per_row = torch.full((n, 1), scale, dtype=DOUBLE, requires_grad=True)
    nats = prior.nats(per_row * x0, Condition(), Draws.step(0, "gradient", 0, range(n)))
    (slope,) = torch.autograd.grad(nats.sum(), per_row, retain_graph=True)
    assert gauss.within(slope, scale / v)
    blocks = [
        torch.autograd.grad(part.mean(), prior.bridge.network.values, retain_graph=True)[0] for part in nats.split(500)
    ]
    assert gauss.within(torch.stack(blocks), 1 / (2 * v) - scale**2 / (2 * v**2))


def gaussian_kl(a, b):
    """KL of Gaussians with the moments of two samples."""
    (m, s), (k, r) = ((x.mean(0), torch.atleast_2d(torch.cov(x.T))) for x in (a, b))
    inverse = torch.linalg.inv(r)
    gap = k - m
    return float((torch.trace(inverse @ s) - len(s) + gap @ inverse @ gap + torch.logdet(r) - torch.logdet(s)) / 2)


def coder(gauss, prior, channel=Exact(), decoder=ROOT, dim=2, kind=DBAE, **keys):
    ends = Ends(Spec((2,), DOUBLE), cond=keys.pop("cond", {}))
    more = {"network": partial(MLP, width=8, depth=1)} if kind is DBAE else {}
    made = kind(
        ends,
        **more,
        encoder=lambda x, n: gauss.LinearEncoder(x, n),
        decoder=lambda n, out: gauss.LinearDecoder(n, out, decoder),
        prior=prior,
        z_dim=dim,
        channel=channel,
        **keys,
    )
    return made.double()


@pytest.mark.parametrize("decoder", [ROOT, torch.tensor([[1.0, 0.5], [2.0, 1.0]], dtype=DOUBLE)])
def test_decoding_loses_divergence_and_an_invertible_decoder_none(gauss, decoder):
    """Data processing: `KL(Dec(z)) ≤ KL(z)`, which is how a prior over z bounds the law of x1."""
    cov = torch.diag(torch.tensor([1.0, 0.3], dtype=DOUBLE))
    bridge = coder(gauss, lambda code, cond: exact(cov), decoder=decoder)
    n = 20_000
    x0 = torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(4)) @ ROOT.T
    bridge.prior.normalise(torch.zeros(2), torch.ones(2), n)
    draws = Draws.step(0, "codes", 0, range(n))
    with torch.no_grad():
        coded, fresh = bridge.encode(x0), bridge.new_codes(Condition(), draws)
        ends = [bridge.endpoint(cond)["x1"] for cond in (coded, fresh)]
    whole = gaussian_kl(coded["z"], fresh["z"])
    true = ROOT @ ROOT.T
    expected = (torch.trace(torch.linalg.solve(cov, true)) - 2 + torch.logdet(cov) - torch.logdet(true)) / 2
    assert whole == pytest.approx(float(expected), rel=0.05)
    rank = int(torch.linalg.matrix_rank(decoder))
    decoded = gaussian_kl(*(end[:, :rank] for end in ends))
    assert decoded == pytest.approx(whole, rel=1e-9) if rank == 2 else decoded < 0.9 * whole


def test_a_mixture_of_classes_is_learned_and_the_class_asked_for_is_drawn():
    """Two classes whose codes differ in mean, in numbers of sizes 100 and 0.01; each class has its own moments.

    300 steps leave the network's means 0.15 of a standard deviation off at most, the draws 3/√2000 = 0.06.
    """
    generator = torch.Generator().manual_seed(5)
    sizes, n = torch.tensor([100.0, 0.01]), 4000
    label = torch.arange(n) % 2
    centre = torch.tensor([[-1.0, 1.0], [1.0, 0.5]])
    codes = (centre[label] + 0.3 * torch.randn(n, 2, generator=generator)) * sizes
    torch.manual_seed(0)
    cond = {"label": Spec((), torch.int64, 2)}
    bridge = partial(Flow, network=partial(MLPSkip, width=64, depth=3, embedding=64))
    prior = BridgePrior(Spec((2,)), cond, bridge=bridge)
    prior.normalise(codes.mean(0), codes.std(0), n)
    optimiser = torch.optim.AdamW(prior.parameters(), lr=4e-3, weight_decay=0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for step in range(300):
        rows = torch.randint(n, (256,), generator=generator)
        draws = Draws.step(0, "loss", step, range(256))
        loss = prior.loss(codes[rows], Condition({"label": label[rows]}), draws).total.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    with torch.no_grad():
        asked = Condition({"label": label})
        u = prior.sample(asked, Draws.seeds(range(n))) / sizes
        free = prior.sample(Condition(), Draws.seeds(range(n))) / sizes
    for which in (0, 1):
        of_class = u[label == which]
        assert bool(((of_class.mean(0) - centre[which]).abs() < 0.3 * (0.06 + 0.15)).all())
        assert bool(((of_class.std(0) / 0.3 - 1).abs() < 0.2).all())
    # Without a label both classes come.
    assert 0.35 < float((free[:, 0] > 0).float().mean()) < 0.65


def flowing(**keys):
    return lambda code, cond: BridgePrior(
        code, cond, bridge=partial(Flow, network=partial(MLPSkip, width=8, depth=2)), **keys
    )


def test_its_own_stage_draws_codes_that_were_encoded_once(gauss):
    bridge, x0 = coder(gauss, flowing(), Fixed(limit=3.0, sigma=0.2)), gauss.data(512)
    (phase,) = bridge.schedule("prior").now(0, {})
    assert phase.trains == ("prior.",)
    assert bridge.awaits_prior
    with torch.no_grad():
        bridge.renew(Rounds(x0))
    assert not bridge.awaits_prior
    mean = 3 * torch.tanh(x0 / 3)
    torch.testing.assert_close(bridge.prior.mean, mean.mean(0))
    torch.testing.assert_close(bridge.prior.std, (mean.var(0, correction=0) + 0.04).sqrt())
    calls, seen = [], []
    bridge.encoder.register_forward_hook(lambda *_: calls.append(1))
    bridge.prior.loss = lambda z, cond, draws: seen.append(z) or Loss(z.sum(1))
    n = 20_000
    batch = Batch(torch.arange(n), torch.full((n, 2), 1e6, dtype=DOUBLE))
    phase.loss(batch, Draws.step(0, "loss", 0, range(n)))
    assert not calls
    # Drawn evenly from the table, each with noise of its own: the moments of all codes.
    assert gauss.within(seen[0], bridge.prior.mean)
    assert gauss.within((seen[0] - bridge.prior.mean).square(), bridge.prior.std.square())
    assert len(seen[0].unique(dim=0)) == n
    bridge.eval()
    phase.loss(Batch(torch.arange(5), x0[:5]), Draws.seeds(range(5)))
    assert calls == [1]
    assert float((seen[1] - mean[:5]).abs().max()) < 4.5 * 0.2


def test_conditions_travel_with_the_codes(gauss):
    label = torch.arange(300) % 3
    bridge = coder(gauss, flowing(), cond={"label": Spec((), torch.int64, 3)})
    x0 = torch.stack([label.double(), torch.ones(300, dtype=DOUBLE)], 1)
    with torch.no_grad():
        bridge.renew(Rounds(x0, cond={"label": label}))
    seen = []
    bridge.prior.loss = lambda z, cond, draws: seen.append((z, cond["label"])) or Loss(z.sum(1))
    bridge.prior_loss(Batch(torch.arange(64), x0[:64]), Draws.seeds(range(64)))
    assert torch.equal(seen[0][0][:, 0], seen[0][1].double())
    assert set(seen[0][1].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", [DBAE, VAE])
def test_beside_the_encoder_it_stops_the_gradient_and_with_a_weight_it_does_not(gauss, kind):
    x0, draws = gauss.data(64), Draws.seeds(range(64))
    batch, slopes, losses = Batch(torch.arange(64), x0), {}, {}
    for name, keys in {"apart": {}, "joint": {"joint": True}, "weighed": {"joint": True, "weight": 0.5}}.items():
        torch.manual_seed(0)
        bridge = coder(gauss, flowing(**keys), Fixed(limit=3.0, sigma=0.2), kind=kind)
        nn.init.normal_(bridge.prior.bridge.network.head.weight)
        if name != "apart":
            with pytest.raises(CapabilityError, match="not been looked at"):
                bridge.loss(batch, draws)
            with torch.no_grad():
                bridge.renew(Rounds(x0, part=""))
        losses[name] = bridge.loss(batch, draws)
        bridge.zero_grad()
        losses[name].total.mean().backward()
        learns = {n for n, p in bridge.named_parameters() if n.startswith("prior.") and p.grad is not None}
        assert bool(learns) == (name != "apart")
        slopes[name] = bridge.encoder.weight.grad.clone()
    assert torch.equal(slopes["joint"], slopes["apart"])
    assert float((slopes["weighed"] - slopes["joint"]).abs().max()) > 1e-3
    joint, weighed = losses["joint"], losses["weighed"]
    torch.testing.assert_close(joint.total, losses["apart"].total + joint.terms["prior"])
    # Per number of x0, of which there are two; nats and bits of the same.
    torch.testing.assert_close(weighed.total - joint.total, 0.5 * weighed.terms["prior_nats"] / 2)
    torch.testing.assert_close(weighed.terms["prior_bits"] * math.log(2), weighed.terms["prior_nats"])


def test_a_joint_training_looks_again_each_round_and_not_when_it_resumes(gauss):
    bridge = coder(gauss, flowing(joint=True, renew=640))
    schedule = bridge.schedule()
    assert isinstance(schedule, Alternate)
    assert [schedule.round(seen) for seen in (0, 639, 640, 1300)] == [0, 0, 1, 2]
    assert "prior" in schedule.now(0, {})[0].trains
    assert "prior" not in coder(gauss, flowing()).schedule().now(0, {})[0].trains
    x0 = gauss.data(5000)
    bridge.renew(Rounds(x0, part=""))
    torch.testing.assert_close(bridge.prior.mean, x0[:4096].mean(0))
    first = bridge.prior.mean.clone()
    bridge.renew(Rounds(x0 + 1, part="", resumed=True))
    assert torch.equal(bridge.prior.mean, first)
    bridge.renew(Rounds(x0 + 1, part="", number=1))
    torch.testing.assert_close(bridge.prior.mean, first + 1)


def test_what_cannot_be_is_refused(gauss):
    code = Spec((2,))
    with pytest.raises(ArgumentError, match="joint"):
        flowing(weight=0.1)(code, {})
    with pytest.raises(ArgumentError, match="noisy"):
        coder(gauss, flowing(joint=True, weight=0.1))
    coupled = partial(Flow, network=partial(MLP, width=8, depth=1), coupling=MinibatchOT())
    encoding = partial(VAE, encoder=gauss.LinearEncoder, decoder=gauss.LinearDecoder, z_dim=2)
    for made in (coupled, encoding):
        with pytest.raises(ArgumentError, match="independent noise"):
            BridgePrior(code, {}, bridge=made)
    with pytest.raises(CapabilityError, match=r"add a stage \{train: bridge\.prior\}"):
        coder(gauss, flowing()).new_codes(Condition(), Draws.seeds(range(2)))
    with pytest.raises(CapabilityError, match=r"'gaussian' is fitted.*nothing to train"):
        coder(gauss, None).schedule("prior")
    with pytest.raises(CapabilityError, match="no part 'encoder'"):
        coder(gauss, None).schedule("encoder")
