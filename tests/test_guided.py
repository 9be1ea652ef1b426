"""Guidance of a mixture with labels, against its closed form."""

from __future__ import annotations

import pytest
import torch

from latentsb.bridge import Bridge, DenoisingBridge, State
from latentsb.errors import CapabilityError
from latentsb.guided import Guided
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.references import VP
from latentsb.randomness import Draws
from latentsb.solvers.exponential import DPMpp
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch, Condition, Spec, expand_as

ONE = torch.ones((), dtype=torch.float64)
SPREAD = 0.3


def centres_of(channels):
    """One centre per label, of opposite signs and different in every channel."""
    ramp = torch.linspace(0.2, 1.0, channels, dtype=torch.float64)
    return torch.stack([ramp, -0.5 * ramp.flip(0)])[:, :, None, None]


class Denoiser(Network):
    """`E[x0 | y, label]` of 0.5 N(c_0, s²) + 0.5 N(c_1, s²), or `E[x0 | y]` where the label is absent."""

    def __init__(self, channels):
        super().__init__(Spec((channels, 2, 1)), {"label": Spec((), torch.int64, classes=2)})
        self.centres = centres_of(channels)

    def forward(self, y, sigma, cond):
        variance = SPREAD**2 + sigma.square()
        gaps = y[:, None] - self.centres
        share = torch.softmax(-gaps.square().flatten(2).sum(2) / (2 * variance), dim=1)
        known = torch.nn.functional.one_hot(cond["label"], 2).double()
        share = torch.where(cond.mask("label")[:, None], known, share)[:, :, None, None, None]
        return (share * (self.centres + SPREAD**2 / variance * gaps)).sum(1)


class Score(DenoisingBridge):
    def __init__(self, channels):
        super().__init__()
        self.ends, self.reference = Ends(Spec((channels, 2, 1), torch.float64)), VP(beta_d=19.9)
        self.network = Denoiser(channels)

    def marginal(self, t):
        return self.reference.noised(t)

    def denoise(self, x, t, cond):
        there = self.marginal(t)
        return self.network(there.to_y(x, None), there.sigma_eff, cond)

    def start(self, batch, draws, towards="x0"):
        return State(draws.normal("x1", self.ends.spec.zeros(len(batch))), ONE, batch.cond)

    def loss(self, batch, draws):
        raise NotImplementedError


class Plain(Bridge):
    """The same drift without the capability to denoise."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.ends = inner, inner.ends

    def start(self, batch, draws, towards="x0"):
        return self.inner.start(batch, draws, towards)

    def drift(self, x, t, cond, towards="x0"):
        return self.inner.drift(x, t, cond, towards)

    def diffusion(self, t):
        return self.inner.diffusion(t)

    def loss(self, batch, draws):
        raise NotImplementedError


def point(channels):
    rng = torch.Generator().manual_seed(channels)
    x = torch.randn(4, channels, 2, 1, generator=rng, dtype=torch.float64)
    return x, Condition({"label": torch.tensor([0, 1, 1, 0])})


def closed_form_drift(x, t, label, scale):
    """`−f x + g² (s_uncond + scale (s_cond − s_uncond))`, scores by differentiating log-densities of x_t."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 / 2 * t**2
    alpha = torch.exp(torch.tensor(-integral / 2, dtype=torch.float64))
    variance = alpha**2 * SPREAD**2 + 1 - alpha**2
    x = x.clone().requires_grad_()
    logs = -(x[:, None] - alpha * centres_of(x.shape[1])).square().flatten(2).sum(2) / (2 * variance)
    (bare,) = torch.autograd.grad(torch.logsumexp(logs, dim=1).sum(), x, retain_graph=True)
    (known,) = torch.autograd.grad(logs.gather(1, label[:, None]).sum(), x)
    return beta / 2 * x.detach() + beta * (bare + scale * (known - bare))


@pytest.mark.parametrize("channels", [1, 3, 4, 32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_guided_drift_has_its_closed_form_in_every_channel(channels, scale, t):
    x, cond = point(channels)
    expected = closed_form_drift(x, t, cond["label"], scale)
    inner = Score(channels)
    for bridge in (Guided(inner, scale), Guided(Plain(inner), scale)):
        found = bridge.drift(x, t * ONE, cond)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # Without guidance the last channel would differ too: the comparison above is not empty there.
    if scale == 2.5 and t < 0.5:
        assert (expected - closed_form_drift(x, t, cond["label"], 1.0))[:, -1].abs().max() > 1e-3


def test_types_follow_the_bridge_inside():
    inner = Score(3)
    assert isinstance(Guided(inner, 2.0), DenoisingBridge)
    assert isinstance(Guided(inner, 2.0), Guided)
    assert not isinstance(Guided(Plain(inner), 2.0), DenoisingBridge)


def test_prediction_velocity_and_score_are_guided_alike():
    """All are affine in the prediction of x0: each derived from the guided prediction equals its own guidance."""
    x, cond = point(4)
    inner = Score(4)
    bridge, t = Guided(inner, 3.0), 0.3 * ONE
    x0 = bridge.denoise(x, t, cond)
    bare = inner.denoise(x, t, cond.drop("label"))
    torch.testing.assert_close(x0, bare + 3.0 * (inner.denoise(x, t, cond) - bare))
    torch.testing.assert_close(bridge.score(x, t, cond), bridge.marginal(t).score(x, x0, None))
    velocity = (bridge.drift(x, t, cond, "x1") - bridge.drift(x, t, cond, "x0")) / 2
    torch.testing.assert_close(bridge.velocity(x, t, cond), velocity)
    torch.testing.assert_close(bridge.drift(x, t, cond), bridge.reference.b_b(x, t, x0))


def test_absent_rows_are_not_guided():
    x, cond = point(3)
    missing = torch.tensor([True, False, False, True])
    inner, t = Score(3), 0.3 * ONE
    found = Guided(inner, 4.0).denoise(x, t, cond.drop("label", missing))
    bare = inner.denoise(x, t, cond.drop("label"))
    torch.testing.assert_close(found[missing], bare[missing])
    assert (found - bare)[~missing].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_interval_of_noise_levels():
    """Inside [0.5, 2] of sigma_eff guidance acts, outside it costs one call and changes nothing; so for each row."""
    x, cond = point(3)
    inner = Score(3)
    bridge, everywhere = Guided(inner, 3.0, interval=(0.5, 2.0)), Guided(inner, 3.0)
    levels = {t: float(inner.marginal(t * ONE).sigma_eff) for t in (0.1, 0.3, 0.5)}
    assert levels[0.1] < 0.5 < levels[0.3] < 2.0 < levels[0.5]
    for t in levels:
        same = inner if t != 0.3 else everywhere
        inner.network.calls = 0
        found = bridge.denoise(x, t * ONE, cond)
        assert inner.network.calls == (2 if t == 0.3 else 1)
        torch.testing.assert_close(found, same.denoise(x, t * ONE, cond))

    closed = Guided(inner, 3.0, interval=(levels[0.3], levels[0.3]))
    torch.testing.assert_close(closed.denoise(x, 0.3 * ONE, cond), everywhere.denoise(x, 0.3 * ONE, cond))

    class Rows(Score):
        """t of shape (B,)."""

        def denoise(self, x, t, cond):
            there = self.marginal(t)
            sigma = there.sigma_eff if t.ndim == 0 else there.sigma_eff[:, None]
            return expand_as(torch.ones_like(t), x) * self.network(there.to_y(x, None), sigma.mean(), cond)

    rows = torch.tensor([0.1, 0.3, 0.3, 0.5], dtype=torch.float64)
    many = Rows(3)
    found = Guided(many, 3.0, interval=(0.5, 2.0)).denoise(x, rows, cond)
    plain, full = many.denoise(x, rows, cond), Guided(many, 3.0).denoise(x, rows, cond)
    torch.testing.assert_close(found[[0, 3]], plain[[0, 3]])
    torch.testing.assert_close(found[[1, 2]], full[[1, 2]])


def test_interval_of_times_for_a_plain_bridge():
    x, cond = point(1)
    plain = Plain(Score(1))
    bridge = Guided(plain, 3.0, interval=(0.2, 0.4))
    torch.testing.assert_close(bridge.drift(x, 0.5 * ONE, cond), plain.drift(x, 0.5 * ONE, cond))
    torch.testing.assert_close(bridge.drift(x, 0.3 * ONE, cond), Guided(plain, 3.0).drift(x, 0.3 * ONE, cond))


def test_calls_are_counted_twice():
    cond = Condition({"label": torch.tensor([0, 1])})
    draws = Draws.seeds([0, 1])
    batch = Batch(torch.arange(2), cond=cond)
    for scale, factor in ((2.0, 2), (1.0, 1)):
        bridge = Guided(Score(3), scale)
        state = bridge.start(batch, draws)
        assert DPMpp(steps=7).run(bridge, state, draws).calls == 7 * factor
        assert Heun(steps=7).run(bridge, state, draws).calls == 13 * factor


def test_guided_samples_stay_with_their_label():
    """Scale 1 draws each label's Gaussian; a larger scale moves its samples away from the other label."""
    label = torch.tensor([0, 1]).repeat(200)
    draws = Draws.seeds(range(400))
    inner = Score(4)
    means = []
    for scale in (1.0, 2.0):
        bridge = Guided(inner, scale)
        state = bridge.start(Batch(torch.arange(400), cond=Condition({"label": label})), draws)
        x = DPMpp(steps=20).run(bridge, State(state.x.double(), ONE, state.cond), draws).x
        axis = (centres_of(4)[0] - centres_of(4)[1]).expand(4, 2, 1).flatten()
        along = x.flatten(1) @ axis / axis.norm()
        means.append((along[label == 0].mean() - along[label == 1].mean()).item())
    gap = float(axis.norm())
    # Standard error of the difference of two means of 200 draws of spread .3, and the solver's error of 2 %.
    assert means[0] == pytest.approx(gap, abs=4 * SPREAD * (2 / 200) ** 0.5 + 0.02 * gap)
    assert means[1] > means[0] + 4 * SPREAD * (2 / 200) ** 0.5


def test_guidance_needs_a_condition():
    x, _ = point(1)
    with pytest.raises(CapabilityError, match="needs one of the conditions label, attributes; these are present: z"):
        Guided(Score(1), 2.0).denoise(x, 0.5 * ONE, Condition({"z": torch.zeros(4, 2)}))
