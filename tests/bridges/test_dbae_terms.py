"""What the autoencoder's loss holds beside the denoising term, and the switches of the routes by which z is seen."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from latentsb.bridges.dbae import DBAE
from latentsb.channels import Clamped, Exact, Fixed
from latentsb.ema import Ema, HalfLife
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import NETWORKS, Decoder, Encoder, Network
from latentsb.process.preconditioning import Official, Shifted
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.recipe.sections import TrainSettings
from latentsb.solvers.direct import Denoise
from latentsb.tensors import Batch, Condition, Spec, expand_as
from latentsb.update import Update

DOUBLE = torch.float64
SLOPE, NOISE, VARIANCE = 1.3, 0.4, 0.25
SQUARE = SLOPE**2 * VARIANCE + NOISE**2
"""E z²."""
GAIN = SLOPE * VARIANCE / SQUARE
"""E[x0 | z] = GAIN z."""
P = VARIANCE - GAIN * SLOPE * VARIANCE
"""Var(x0 | z)."""
OPTIMUM = 0.459759
"""The least denoising loss, published for every endpoint decoder."""


class Code(Encoder):
    """Inverts the soft clamps and the floor, so that the stochastic code is z = 1.3 x0 + 0.4 ε exactly."""

    def forward(self, x):
        log_sigma = 5 * math.atanh(math.log(NOISE - 0.01) / 5)
        return torch.cat([5 * torch.atanh(SLOPE * x / 5), torch.full_like(x, log_sigma)], 1)


class Best(Network):
    """F behind which the denoiser is E[x0 | y, z], with y = (x − a x1)/b."""

    def forward(self, x, t, cond):
        t = (t / 250).exp()
        at = VP().pinned(t)
        scales = Official().coefficients(at, t)
        skip, out, scale, a, b, sigma = (
            expand_as(v, x) for v in (scales.skip, scales.out, scales.scale_in, at.a, at.b, at.sigma_eff)
        )
        state = x / scale
        mean = GAIN * cond["z"]
        best = mean + P / (P + sigma**2) * ((state - a * cond["x1"]) / b - mean)
        return (best - skip * state) / out


class Rows(Decoder):
    """x1 = d z with a d of its own for every row, so that the gradients of rows stay apart."""

    def __init__(self, dim, out, start):
        super().__init__(dim, out)
        self.d = nn.Parameter(start)

    def forward(self, z):
        return self.d * z


def scalar(n, seen=0):
    generator = torch.Generator().manual_seed(seen + 23)
    return Batch(torch.arange(n), 0.5 * torch.randn(n, 1, dtype=DOUBLE, generator=generator), seen=seen)


def autoencoder(decoder, network=Best, **recipe):
    return DBAE(
        Ends(Spec((1,), DOUBLE)),
        network=network,
        encoder=Code,
        decoder=decoder,
        z_dim=1,
        preconditioning=Official(),
        **{"channel": Clamped(), **recipe},
    )


@pytest.mark.parametrize("d", [GAIN, 0.8, 0.0, -2.0])
def test_the_endpoint_term_is_beside_the_gauge(gauss, d):
    """Whatever λ and Dec are, the first term keeps its optimum; the second is λ (d² E z² − 2 d E z x0 + E x0²)."""
    n, weight = 60_000, 0.7
    batch = scalar(n)
    draws = Draws.step(1, "loss", 0, batch.index)
    found = autoencoder(lambda *a: Rows(*a, torch.tensor(d, dtype=DOUBLE)), endpoint_weight=weight).loss(batch, draws)
    terms = {name: value.detach() for name, value in found.terms.items()}
    assert gauss.within(terms["denoising"], OPTIMUM)
    assert gauss.within(terms["endpoint"], d**2 * SQUARE - 2 * d * SLOPE * VARIANCE + VARIANCE)
    assert_close(found.total.detach(), terms["denoising"] + weight * terms["endpoint"], rtol=1e-12, atol=0)
    other = autoencoder(lambda *a: Rows(*a, torch.tensor(0.3, dtype=DOUBLE)), endpoint_weight=weight).loss(batch, draws)
    assert_close(terms["denoising"], other.terms["denoising"].detach(), rtol=1e-6, atol=1e-8)
    plain = autoencoder(lambda *a: Rows(*a, torch.tensor(d, dtype=DOUBLE))).loss(batch, draws)
    assert_close(plain.total.detach(), terms["denoising"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_the_endpoint_term_makes_the_decoder_the_conditional_mean(gauss, weight):
    """With an exact denoiser the gradient for d is 2 λ E (d z − x0) z: zero at E[x0 | z], and 2 λ δ E z² beside it."""
    n, batch = 60_000, scalar(60_000, 5)
    for offset in (0.0, 0.1, -0.2):
        bridge = autoencoder(
            lambda *a, o=offset: Rows(*a, torch.full((n, 1), GAIN + o, dtype=DOUBLE)), endpoint_weight=weight
        )
        found = bridge.loss(batch, Draws.step(2, "loss", 0, batch.index))
        found.total.sum().backward()
        assert gauss.within(bridge.decoder.d.grad, 2 * weight * offset * SQUARE)
        if offset == 0:
            assert gauss.within(found.terms["endpoint"].detach(), P)


def test_training_with_the_endpoint_term_reaches_both_optima(gauss):
    """λ = 1/2: Dec becomes E[x0 | z] = 0.558 z, and the loss 0.459759 + 0.0686695/2."""
    assert pytest.approx(0.0686695279, abs=1e-10) == P
    knots = torch.cat([torch.logspace(-4, -1.2, 9, dtype=DOUBLE), torch.linspace(0.1, 1, 15, dtype=DOUBLE)])
    bridge = autoencoder(
        lambda dim, out: gauss.LinearDecoder(dim, out, torch.tensor([[-1.0]], dtype=DOUBLE)),
        lambda x, cond: gauss.LinearNetwork(x, cond, knots=250 * knots.log(), reads=("z",)),
        endpoint_weight=0.5,
    )
    steps, rows = 200, 1024
    optimiser = torch.optim.Adam(bridge.parameters(), lr=0.08)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.08 * (1 - step / steps)
        batch = scalar(rows, (step + 1) * rows)
        optimiser.zero_grad()
        bridge.loss(batch, Draws.step(0, "loss", batch.seen, batch.index)).total.mean().backward()
        optimiser.step()
    batch = scalar(40_000, 10**9)
    with torch.no_grad():
        found = bridge.loss(batch, Draws.step(9, "loss", 0, batch.index))
    assert gauss.within(found.total, OPTIMUM + P / 2), float(found.total.mean())
    assert gauss.within(found.terms["denoising"], OPTIMUM)
    # Least squares on the last rows that still move it: 4 standard errors of one batch.
    assert float(bridge.decoder.weight.detach()) == pytest.approx(GAIN, abs=4 * math.sqrt(P / SQUARE / rows))


@pytest.mark.parametrize("channel", [Clamped(beta=0.3), Fixed(beta=0.2, free_bits=0.5, sigma=0.4), Clamped(), Exact()])
def test_the_rate_is_charged_per_number_and_logged_in_bits(gauss, channel):
    """Three numbers of code for eight of data: β Σ rate / 8, to the last digit, with the same draws."""
    spec = Spec((2, 2, 2), DOUBLE)
    weight = torch.randn(2, 3, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(4)).flatten(0, 1)

    def build(which, endpoint_weight):
        return DBAE(
            Ends(spec),
            network=NETWORKS["mlp"],
            encoder=lambda x, dim: gauss.LinearEncoder(x, dim, weight[:dim]),
            decoder=gauss.LinearDecoder,
            z_dim=3,
            channel=which,
            endpoint_weight=endpoint_weight,
        )

    x0 = torch.randn(50, 2, 2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    batch, draws = gauss.batch(x0), Draws.step(3, "loss", 0, range(50))
    bridge = build(channel, 0.25)
    found, law = bridge.loss(batch, draws), bridge.code_law(x0)
    x1 = bridge.decoder(law.draw(draws))
    expected = found.terms["denoising"] + 0.25 * (x1 - x0).square().sum((1, 2, 3)) / 8
    if channel.noisy:
        nats = (law.mean**2 + law.sigma**2 - 1) / 2 - law.sigma.log()
        assert_close(found.terms["rate_bits"], (nats.sum(1) / math.log(2)).detach(), rtol=1e-12, atol=0)
        free = channel.free_bits * math.log(2)
        expected = expected + channel.beta * torch.where(nats > free, nats, free).sum(1) / 8
    else:
        assert "rate_bits" not in found.terms
    assert_close(found.total, expected, rtol=1e-12, atol=0)
    found.total.sum().backward()
    assert bridge.encoder.weight.grad is not None


# Switches. A real network, whose zero output layer is moved so that its inputs matter.


def real(gauss, *, x0=Spec((2,)), **recipe):
    torch.manual_seed(7)
    bridge = DBAE(
        Ends(x0, cond={"label": Spec((), torch.int64, classes=3)}),
        network=lambda x, cond: NETWORKS["mlp"](x, cond, width=16, depth=1),
        encoder=gauss.LinearEncoder,
        decoder=gauss.LinearDecoder,
        z_dim=2,
        dropout=0.0,
        **recipe,
    )
    with torch.no_grad():
        for parameter in bridge.network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return bridge


def rows(n, gauss):
    return gauss.batch(gauss.data(n).float(), label=torch.arange(n) % 3)


@pytest.mark.parametrize(("embeds", "sees"), list(product([True, False], repeat=2)))
def test_the_network_is_told_what_the_switches_say(gauss, embeds, sees):
    bridge = real(gauss, embeds_z=embeds, sees_endpoint=sees, endpoint_weight=0.0 if sees else 0.5)
    assert bridge.network.uses == {"label", *["z"] * embeds, *["x1"] * sees}
    n, t = 6, torch.tensor(0.4, dtype=DOUBLE)
    cond = bridge.endpoint(rows(n, gauss).cond.with_(z=gauss.data(n, 1).float()))
    at, y = bridge.marginal(t), gauss.data(n, 2).float()

    def seen(cond):
        # The same y = (x − a x1)/b in all cases: what is left is what the network sees beside the state.
        return bridge.denoise((at.a * cond["x1"] + at.b * y).float(), t, cond).detach()

    plain = seen(cond)
    for name, told in (("z", embeds), ("x1", sees)):
        moved = (seen(cond.with_(**{name: cond[name] + 1})) - plain).abs().max()
        assert (float(moved) > 1e-2) if told else (float(moved) < 1e-5), name
    other = cond.with_(label=(cond["label"] + 1) % 3)
    assert float((seen(other) - plain).abs().max()) > 1e-2


ROUTES = list(product(["official", "shifted"], [True, False], [True, False], [0.0, 0.5]))


@pytest.mark.parametrize(("state", "embeds", "sees", "weight"), ROUTES)
def test_gradients_take_the_routes_that_are_open(gauss, state, embeds, sees, weight):
    """By the state unless a x1 is subtracted, by z and by x1 where the network is told, and by λ to both."""
    open_to_both = state == "official" or sees or weight > 0
    keys = {
        "embeds_z": embeds,
        "sees_endpoint": sees,
        "endpoint_weight": weight,
        "preconditioning": Official() if state == "official" else Shifted(),
    }
    if not open_to_both:
        # What no loss reaches must not be said to learn.
        with pytest.raises(ArgumentError) as error:
            real(gauss, **keys)
        assert error.value.name == ("trains_decoder" if embeds else "embeds_z")
        if not embeds:
            return
        keys["trains_decoder"] = False
    bridge = real(gauss, **keys)
    batch = rows(64, gauss)
    bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total.sum().backward()
    for name, reached in (("encoder", open_to_both or embeds), ("decoder", open_to_both)):
        gradient = getattr(bridge, name).weight.grad
        size = 0.0 if gradient is None else float(gradient.abs().max())
        assert (size > 1e-1) if reached else (size < 1e-4), (name, size)


def steps(bridge, gauss, n=3):
    """A few updates as training makes them, with an average; the weights before, after and averaged."""
    before = {name: value.clone() for name, value in bridge.state_dict().items()}
    ema = Ema(bridge, [HalfLife(images=64, ramp=0)])
    settings = TrainSettings(batch=32, lr=0.05, warmup=0, weight_decay=0.1)
    update = Update(bridge, settings, seed=0, purpose="test", ema=ema, bf16=False)
    for k in range(n):
        batch = gauss.batch(gauss.data(32, k).float(), k * 32, label=torch.arange(32) % 3)
        update.step(batch, bridge.schedule().now(k * 32, {}), k * 32, None)
    return before, bridge.state_dict(), ema.state("ema-64")


def moved(before, after, part):
    return {name for name in before if name.startswith(f"{part}.") and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("trains", [True, False])
def test_a_fixed_decoder_stays_what_it_was(gauss, trains):
    """Neither its weights nor their average move, not by decay either; the gradient passes through it to the encoder,
    to which no other route is open here."""
    bridge = real(gauss, embeds_z=False, trains_decoder=trains)
    before, after, average = steps(bridge, gauss)
    for now in (after, average):
        assert moved(before, now, "encoder") == {"encoder.weight"}
        assert moved(before, now, "network")
        assert moved(before, now, "decoder") == ({"decoder.weight"} if trains else set())


def test_a_fixed_decoder_is_not_in_training_mode(gauss):
    """Layers that draw, or that gather statistics, are still: the random map is one map."""
    bridge = real(gauss, trains_decoder=False)
    steps(bridge, gauss, 1)
    assert bridge.network.training
    assert bridge.encoder.training
    assert not bridge.decoder.training


def test_an_endpoint_that_is_learned_is_a_reconstruction(gauss):
    """At the joint optimum `D(x1, 1, x1, z)` and x1 agree: both are E[x0 | z]."""
    bridge = autoencoder(lambda dim, out: gauss.LinearDecoder(dim, out, torch.tensor([[GAIN]], dtype=DOUBLE)))
    z, draws = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None], Draws.seeds(range(9))
    state = bridge.start(Batch(torch.arange(9), cond=Condition({"z": z})), draws)
    # A moment before t = 1 the state pulls by p/(p + 79.8²) of its distance.
    assert_close(Denoise().run(bridge, state, draws).x, state.x, rtol=0, atol=1e-4)


def test_contradictions_are_told(gauss):
    with pytest.raises(ArgumentError, match="does not learn") as error:
        real(gauss, trains_decoder=False, endpoint_weight=0.1)
    assert error.value.name == "endpoint_weight"
    with pytest.raises(ArgumentError, match="batches bring no pixels") as error:
        real(gauss, encodes_images=True)
    assert error.value.name == "encodes_images"
    with pytest.raises(CapabilityError, match="no part 'decoder'"):
        real(gauss).schedule("decoder")
