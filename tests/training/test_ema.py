"""Averages of weights: closed forms."""

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from latentsb.ema import Ema, HalfLife, PowerFunction
from latentsb.errors import ArgumentError, CheckpointError


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.other = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.register_buffer("running", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def settle(average, values, batch):
    """The average after the weight had each of the values for `batch` images."""
    module = Two()
    ema = Ema(module, [average])
    for value in values:
        with torch.no_grad():
            module.w.fill_(value)
        ema.update(batch)
    return ema.state(average.label)["w"][0].item()


def test_after_one_half_life_the_old_weight_counts_half():
    average = HalfLife(images=1000, ramp=0)
    module = Two()
    ema = Ema(module, [average])
    with torch.no_grad():
        ema.values[average.label]["w"].fill_(1.0)
    for _ in range(10):
        ema.update(100)
    assert ema.state(average.label)["w"][0].item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("average", [HalfLife(images=1000), HalfLife(images=1e6), PowerFunction(width=0.1)])
def test_the_batch_size_changes_nothing(average):
    values = np.random.default_rng(0).normal(size=12)
    coarse = settle(average, values, 64)
    fine = settle(average, np.repeat(values, 8), 8)
    assert fine == pytest.approx(coarse, rel=1e-10)


def test_the_first_weights_leave_no_trace():
    for average in (HalfLife(images=1000), PowerFunction(width=0.1)):
        module = Two()
        with torch.no_grad():
            module.w.fill_(1e6)
        ema = Ema(module, [average])
        with torch.no_grad():
            module.w.fill_(1.0)
        ema.update(16)
        assert ema.state(average.label)["w"].tolist() == [1.0, 1.0]


def test_warming_up_ends_where_the_half_life_is_reached():
    average = HalfLife(images=1000)
    assert average.ramp == 0.05, "EDM's"
    assert average.decay(20_000, 1000) == pytest.approx(0.5, rel=1e-12)
    assert average.decay(40_000, 500) == pytest.approx(0.5**0.5, rel=1e-12)
    # Before, the half-life is a twentieth of the images seen: d ln(decay) / d seen = -ln 2 / (0.05 seen).
    rate = -(np.log(average.decay(5000, 1e-3))) / 1e-3
    assert rate == pytest.approx(np.log(2) / 250, rel=1e-5)
    assert average.decay(19_000, 2000) == pytest.approx(average.decay(19_000, 1000) * 0.5, rel=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, 0.28])
def test_the_power_function_has_its_width_and_its_integral(width):
    average = PowerFunction(width=width)
    gamma = average.gamma
    # Weighting tau^gamma on [0, 1]: its standard deviation is the width, by numerical integration.
    mass = integrate.quad(lambda u: u**gamma, 0, 1)[0]
    mean = integrate.quad(lambda u: u * u**gamma, 0, 1)[0] / mass
    square = integrate.quad(lambda u: u * u * u**gamma, 0, 1)[0] / mass
    assert np.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)
    # A weight that moves as theta(tau) = tau has the average (gamma+1)/(gamma+2).
    n = 20_000
    ramp = (np.arange(n) + 0.5) / n
    expected = (gamma + 1) / (gamma + 2)
    decays = [average.decay(k, 1) for k in range(n)]
    found = 0.0
    for decay, value in zip(decays, ramp, strict=True):
        found = decay * found + (1 - decay) * value
    assert found == pytest.approx(expected, abs=1e-6)


def test_gamma_of_a_known_width():
    # sigma_rel = 0.10 and 0.05 belong to gamma = 6.94 and 16.97 (Karras et al. 2024, Sec. 3.1).
    assert PowerFunction(width=0.10).gamma == pytest.approx(6.94, abs=5e-3)
    assert PowerFunction(width=0.05).gamma == pytest.approx(16.97, abs=5e-3)


def test_floating_buffers_are_averaged_counts_are_copied_and_others_stay():
    module = Two()
    average = HalfLife(images=100, ramp=0)
    ema = Ema(module, [average, PowerFunction(width=0.1)])
    with torch.no_grad():
        module.w.fill_(1.0)
        module.other.fill_(1.0)
        module.running.fill_(1.0)
        module.count.fill_(7)
    ema.update(100, ("w", "running", "count"))
    state = ema.state(average.label)
    assert state["w"].tolist() == [0.5, 0.5]
    assert state["running"].item() == 0.5
    assert state["count"].item() == 7
    assert state["other"].item() == 0.0
    assert ema.seen == {"w": 100, "other": 0, "running": 100, "count": 100}
    ema.update(100)
    assert ema.state("ema-power-0.1")["other"].item() == 1.0, "what is trained late warms up late"


def test_applied_weights_go_away_again():
    module = Two()
    average = HalfLife(images=100, ramp=0)
    ema = Ema(module, [average])
    with torch.no_grad():
        module.w.fill_(1.0)
    with ema.applied(average.label):
        assert module.w.tolist() == [0.0, 0.0]
        module.running.fill_(3.0)
        ema.keep(average.label)
    assert module.w.tolist() == [1.0, 1.0]
    assert module.running.item() == 0.0
    assert ema.state(average.label)["running"].item() == 3.0


def test_wrong_averages_are_refused():
    with pytest.raises(ArgumentError, match="positive"):
        HalfLife(images=0)
    with pytest.raises(ArgumentError, match=r"0\.28"):
        PowerFunction(width=0.3)
    with pytest.raises(ArgumentError, match="same"):
        Ema(Two(), [HalfLife(images=5), HalfLife(images=5)])
    ema = Ema(Two(), [HalfLife(images=5)])
    with pytest.raises(CheckpointError, match="other"):
        ema.load("ema-5", {k: v for k, v in ema.state("ema-5").items() if k != "other"})
    with pytest.raises(CheckpointError, match=r"w is \(3,\), not \(2,\)"):
        ema.load("ema-5", {**ema.state("ema-5"), "w": torch.zeros(3)})
