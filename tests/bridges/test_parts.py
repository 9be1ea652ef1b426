"""Conditions, codes, starts and priors of the bridges: the laws that each must have."""

import math

import pytest
import torch

from latentsb.bridge import BRIDGES
from latentsb.bridges.dbae import DBAE
from latentsb.bridges.flow import Flow
from latentsb.bridges.score import Score
from latentsb.channels import Clamped, Exact
from latentsb.conditioning import drop_conditions
from latentsb.errors import CapabilityError
from latentsb.laws import Ends
from latentsb.networks.base import Encoder, Network
from latentsb.process.references import VE
from latentsb.randomness import Draws
from latentsb.solvers.direct import Denoise
from latentsb.tensors import Batch, Condition, Spec

DOUBLE = torch.float64
COND = {"label": Spec((), torch.int64, classes=10), "attributes": Spec((3,))}
ENDS = Ends(Spec((2,), DOUBLE), cond=COND, images=Spec((1, 4, 4), DOUBLE))


class Listening(Network):
    """Keeps the condition that it was last given."""

    heard = Condition()

    def forward(self, x, t, cond):
        self.heard = cond
        return torch.zeros_like(x)


def listening(name, gauss, dropout):
    recipe = {"network": Listening, "dropout": dropout}
    if name == "dbae":
        recipe |= {"encoder": gauss.LinearEncoder, "decoder": gauss.LinearDecoder, "z_dim": 1}
    return BRIDGES[name](ENDS, **recipe)


def rows(n, gauss):
    return gauss.batch(gauss.data(n), label=torch.arange(n) % 10, attributes=torch.ones(n, 3))


@pytest.mark.parametrize("name", ["flow", "score", "dbae"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_conditions_are_hidden_at_the_declared_rate(gauss, name, rate):
    n = 20_000
    bridge, batch = listening(name, gauss, rate), rows(n, gauss)
    bridge.loss(batch, Draws.step(0, "loss", 0, batch.index))
    heard = bridge.network.heard
    hidden = ~heard.mask("label")
    assert abs(float(hidden.double().mean()) - rate) <= 4 * math.sqrt(rate * (1 - rate) / n)
    assert torch.equal(heard.mask("label"), heard.mask("attributes")), "conditions fall together"
    assert torch.equal(heard["label"], batch.cond["label"]), "values keep their place"
    if name == "dbae":
        assert bool(heard.mask("z").all() and heard.mask("x1").all())


@pytest.mark.parametrize("name", ["flow", "score", "dbae"])
def test_losses_and_hidden_rows_do_not_depend_on_the_split(gauss, name):
    bridge, batch = listening(name, gauss, 0.3), rows(96, gauss)
    whole = bridge.loss(batch, Draws.step(4, "loss", 640, batch.index)).total
    mask, losses, masks = bridge.network.heard.mask("label"), [], []
    # Two processes that own alternate blocks of 8 rows, each in one micro-batch.
    for rank in range(2):
        mine = torch.arange(96)[(torch.arange(96) // 8) % 2 == rank]
        losses.append((mine, bridge.loss(batch.select(mine), Draws.step(4, "loss", 640, mine)).total))
        masks.append((mine, bridge.network.heard.mask("label")))
    for mine, loss in losses:
        torch.testing.assert_close(loss, whole[mine], rtol=1e-12, atol=0)
    for mine, part in masks:
        assert torch.equal(part, mask[mine])
    assert 0 < int(mask.sum()) < 96


def test_dropout_passes_over_conditions_that_are_not_there():
    cond = Condition({"z": torch.ones(5, 2)})
    assert drop_conditions(cond, 1.0, Draws.seeds(range(5))) is cond


def test_stochastic_code_has_the_published_form_and_capacity(gauss):
    """μ = 5 tanh(m/5), σ = exp(5 tanh(l/5)) + 0.01, with (m, l) the two halves; 8.2227 bit per dimension of one σ."""
    given = torch.tensor([[0.3, -2.0, 0.1, -1.0], [1e6, -1e6, -1e6, 1e6]], dtype=DOUBLE)

    class Given(Encoder):
        def forward(self, x):
            return given[x[:, 0].long()]

    def build(which):
        return DBAE(
            Ends(Spec((2,), DOUBLE)),
            network=Listening,
            encoder=Given,
            decoder=gauss.LinearDecoder,
            z_dim=2,
            channel=which,
        )

    bridge = build(Clamped())
    mild, extreme = torch.zeros(20_000, 2, dtype=DOUBLE), torch.ones(20_000, 2, dtype=DOUBLE)
    mean = 5 * torch.tanh(given[0, :2] / 5)
    spread = torch.exp(5 * torch.tanh(given[0, 2:] / 5)) + 0.01
    torch.testing.assert_close(bridge.encode(mild)["z"][0], mean)
    draws = Draws.step(0, "code", 0, range(20_000))
    z = bridge.encode(mild, draws)["z"]
    assert gauss.within(z, mean)
    assert gauss.within((z - mean).square(), spread.square())
    torch.testing.assert_close(z, mean + spread * draws.normal("code", z))
    limits = bridge.encode(extreme, draws)["z"]
    smallest = 0.01 + math.exp(-5)
    assert gauss.within(limits[:, 0], 5.0)
    assert gauss.within((limits[:, 0] - 5).square(), smallest**2)
    assert 0.5 * math.log2(1 + 25 / smallest**2) == pytest.approx(8.2227, abs=5e-5)


def test_an_encoder_of_pixels_sees_the_pixels(gauss):
    bridge = DBAE(
        ENDS, network=Listening, encoder=gauss.LinearEncoder, decoder=gauss.LinearDecoder, z_dim=3, encodes_images=True
    )
    assert bridge.needs_images
    images = torch.rand(5, 1, 4, 4, dtype=DOUBLE)
    z = bridge.encode(torch.zeros(5, 2, dtype=DOUBLE), None, images)["z"]
    torch.testing.assert_close(z, images.flatten(1)[:, :3])
    with pytest.raises(CapabilityError, match="pixels"):
        bridge.encode(torch.zeros(5, 2, dtype=DOUBLE))


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 5, 5), (16, 2, 3)])
def test_latents_and_pixels_of_any_shape(gauss, shape):
    """Unit-variance data and a silent network: the loss is one in every shape, whatever the endpoint."""
    bridge = DBAE(
        Ends(Spec(shape)), network=Listening, encoder=gauss.LinearEncoder, decoder=gauss.LinearDecoder, z_dim=2
    )
    x0 = torch.randn(4000, *shape, generator=torch.Generator().manual_seed(1))
    batch = gauss.batch(x0)
    assert gauss.within(bridge.loss(batch, Draws.step(0, "loss", 0, batch.index)).total.detach(), 1.0)
    assert bridge.start(Batch(torch.arange(4), x0[:4]), Draws.seeds(range(4))).x.shape == (4, *shape)


def test_noise_starts_have_the_law_of_the_other_end(gauss):
    n, ends = 4000, Ends(Spec((2,)))
    batch, draws = Batch(torch.arange(n)), Draws.seeds(range(n))
    for bridge, variance in (
        (Flow(ends, network=Listening), 1.0),
        (Score(ends, network=Listening, reference=VE(sigma_max=30.0)), 900.0),
    ):
        state = bridge.start(batch, draws)
        assert (state.t.dtype, float(state.t), state.x.dtype) == (DOUBLE, 1.0, torch.float32)
        assert gauss.within(state.x, 0.0)
        assert gauss.within(state.x.square(), variance)
        alone = bridge.start(Batch(torch.arange(1)), Draws.seeds([17]))
        torch.testing.assert_close(alone.x[0], state.x[17])


def autoencoder(gauss, channel=Exact()):
    weight = torch.cat([gauss.CODE, torch.zeros(1, 2, dtype=DOUBLE)]) if channel.noisy else gauss.CODE
    return DBAE(
        Ends(Spec((2,), DOUBLE)),
        network=gauss.BridgeOptimum,
        encoder=lambda x, dim: gauss.LinearEncoder(x, dim, weight),
        decoder=lambda dim, out: gauss.LinearDecoder(dim, out, torch.tensor([[0.7], [-1.2]], dtype=DOUBLE)),
        z_dim=1,
        channel=channel,
    )


def test_start_takes_the_code_from_the_condition_then_the_data_then_the_prior(gauss):
    bridge, draws = autoencoder(gauss), Draws.seeds(range(6))
    x0, z = gauss.data(6), torch.full((6, 1), 0.3, dtype=DOUBLE)
    given = bridge.start(Batch(torch.arange(6), x0, cond=Condition({"z": z})), draws)
    coded = bridge.start(Batch(torch.arange(6), x0), draws)
    with pytest.raises(CapabilityError, match="no prior over z has been fitted"):
        bridge.start(Batch(torch.arange(6)), draws)
    bridge.fit(lambda: [gauss.batch(gauss.data(500, seed=1))])
    fresh = bridge.start(Batch(torch.arange(6)), draws)
    for state, code in ((given, z), (coded, x0 @ gauss.CODE.T), (fresh, bridge.new_codes(Condition(), draws)["z"])):
        torch.testing.assert_close(state.cond["z"], code)
        torch.testing.assert_close(state.x, code @ bridge.decoder.weight.T)
        torch.testing.assert_close(state.cond["x1"], state.x)
        assert float(state.t) == 1.0
    towards_x1 = bridge.start(Batch(torch.arange(6), x0), draws, "x1")
    assert float(towards_x1.t) == 0.0
    torch.testing.assert_close(towards_x1.x, x0)
    torch.testing.assert_close(towards_x1.cond["x1"], coded.x)


def test_prior_is_fitted_to_codes_without_dropout(gauss):
    """Layers that drop in training are still while the prior is fitted, and drop again afterwards."""
    bridge, x0 = autoencoder(gauss), gauss.data(50)
    still = bridge.encode(x0)["z"]
    bridge.encoder.register_forward_hook(lambda layer, given, out: torch.zeros_like(out) if layer.training else None)
    bridge.train()
    bridge.fit(lambda: [gauss.batch(x0)])
    torch.testing.assert_close(bridge.prior.codes.mean, still.mean(0))
    assert bridge.training
    assert bridge.encoder.training


def test_start_codes_data_without_noise(gauss):
    """What stands for data is the mean of its code, though training draws the code."""
    bridge, x0 = autoencoder(gauss, Clamped()), gauss.data(6)
    state = bridge.start(Batch(torch.arange(6), x0), Draws.seeds(range(6)))
    torch.testing.assert_close(state.cond["z"], 5 * torch.tanh(x0 @ gauss.CODE.T / 5))


@pytest.mark.parametrize("channel", [Exact(), Clamped()])
def test_prior_is_the_gaussian_of_all_codes(gauss, channel):
    """The mean and covariance of a pass are kept, in any split, in the weights, and said in words."""
    bridge = autoencoder(gauss, channel)
    assert "no prior" in bridge.prior_description
    x0 = gauss.data(4000, seed=3)
    parts = [Batch(torch.arange(1000), x0[k : k + 1000], seen=k) for k in range(0, 4000, 1000)]
    bridge.fit(lambda: parts)
    codes = x0 @ gauss.CODE.T
    if channel.noisy:
        # m = CODE x0 passes the soft clamp; l = 0 gives σ = 1.01, drawn anew for each row.
        codes = 5 * torch.tanh(codes / 5)
        spread = 1.01**2
        total = codes.var(0, correction=0) + spread
        error = total * math.sqrt(2 / 4000)
        assert bool((bridge.prior.codes.cov[0] - total).abs() < 4 * error)
        assert bool((bridge.prior.codes.mean - codes.mean(0)).abs() < 4 * 1.01 / math.sqrt(4000))
    else:
        torch.testing.assert_close(bridge.prior.codes.mean, codes.mean(0))
        torch.testing.assert_close(bridge.prior.codes.cov[0], codes.var(0, correction=0))
    assert "4000 encodings" in bridge.prior_description
    fresh = autoencoder(gauss, channel)
    fresh.load_state_dict(bridge.state_dict())
    draws = Draws.seeds(range(4000))
    z = fresh.new_codes(Condition(), draws)["z"]
    torch.testing.assert_close(z, bridge.new_codes(Condition(), draws)["z"])
    assert gauss.within(z, bridge.prior.codes.mean)
    assert gauss.within((z - bridge.prior.codes.mean).square(), bridge.prior.codes.cov[0])


def test_interpolation_ends_where_reconstruction_does_and_moves_straight_between(gauss):
    """The one-call decode of the exact bridge is E[x0 | z], which is affine in z, up to 1/sigma_eff² = 1.6e-4."""
    bridge, draws = autoencoder(gauss), Draws.seeds(range(5))
    pair = gauss.data(2, seed=8)
    z = bridge.encode(pair)["z"]
    along = torch.lerp(z[:1], z[1:], torch.linspace(0, 1, 5, dtype=DOUBLE)[:, None])
    frames = Denoise().run(bridge, bridge.start(Batch(torch.arange(5), cond=Condition({"z": along})), draws), draws).x
    ends = Denoise().run(bridge, bridge.start(Batch(torch.arange(2), pair), Draws.seeds([0, 1])), Draws.seeds([0, 1])).x
    torch.testing.assert_close(frames[[0, 4]], ends, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frames, gauss.of_code(along)[0], rtol=0, atol=1e-3)
