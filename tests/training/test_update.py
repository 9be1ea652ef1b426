"""One step of training against its closed form: gradients, clipping, warm-up, decay.

The loss is linear, `⟨row, (W, b)⟩`, so the gradient is the mean row of the batch at every step, and Adam's step is
`−lr sign(gradient)`: with constant gradients its two moments, corrected, are `g` and `g²`.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentsb.randomness import Draws
from latentsb.recipe.sections import TrainSettings
from latentsb.tensors import Batch
from latentsb.trainable import Loss, Phase, Trainable
from latentsb.update import Update

BATCH = 16
ROWS = 10 * torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(0)) + 5
START = 100.0
"""Weights so large that a decay of them shows."""


class Linear(Trainable):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.full((2, 2), START)), nn.Parameter(torch.full((2,), START))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        value = batch.data @ torch.cat([self.W.flatten(), self.b])
        return Loss(value, {"row": batch.data.mean(1)})


def stepper(**settings):
    given = {"batch": BATCH, "lr": 0.5, "warmup": 0, "clip": None, **settings}
    model = Linear()
    update = Update(model, TrainSettings(**given), seed=0, purpose="test", ema=None, bf16=False)

    def step(k, lr=1.0):
        batch = Batch(torch.arange(BATCH), ROWS, seen=k * BATCH)
        update.step(batch, (Phase("all", model.loss, lr=lr),), k * BATCH, None)
        return torch.cat([model.W.detach().flatten(), model.b.detach()])

    return step, update


def gradient(update):
    """What the optimiser took in at its first step: `exp_avg = (1 − β₁) g`."""
    state = update.tensors()
    first = torch.cat([state["exp_avg/W"].flatten(), state["exp_avg/b"]])
    return first / (1 - update.settings.betas[0])


@pytest.mark.parametrize("micro", [None, 1, 5, 16, 64])
def test_gradient_and_log_are_means_over_the_batch_however_it_is_split(micro):
    step, update = stepper(micro_batch=micro)
    step(0)
    torch.testing.assert_close(gradient(update), ROWS.mean(0))
    means = update.means()
    assert means["row"] == pytest.approx(float(ROWS.mean()), rel=1e-5)
    assert means["loss"] == pytest.approx(START * float(ROWS.sum(1).mean()), rel=1e-5)
    assert means["grad_norm"] == pytest.approx(float(ROWS.mean(0).norm()), rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_gradients_are_clipped_to_the_norm_and_not_stretched_to_it(share):
    norm = float(ROWS.mean(0).norm())
    step, update = stepper(clip=share * norm)
    step(0)
    torch.testing.assert_close(gradient(update), min(share, 1.0) * ROWS.mean(0))
    assert update.means()["grad_norm"] == pytest.approx(norm, rel=1e-5), "the log tells the norm before clipping"


def test_learning_rate_rises_with_the_images_and_stays():
    """After 16, 32, 48, … of 40 images the rate is 0.4, 0.8, 1, 1 of its peak: the first step already moves."""
    step, _ = stepper(warmup=40)
    places = [torch.full((6,), START)] + [step(k) for k in range(5)]
    for k, rise in enumerate([0.4, 0.8, 1.0, 1.0, 1.0]):
        torch.testing.assert_close(places[k + 1] - places[k], -0.5 * rise * ROWS.mean(0).sign(), rtol=1e-4, atol=0)


def test_a_phase_scales_the_rate():
    step, _ = stepper()
    torch.testing.assert_close(step(0, lr=0.25) - START, -0.125 * ROWS.mean(0).sign(), rtol=1e-4, atol=0)


def test_only_matrices_decay():
    """Decoupled: `W ← W − lr wd W − lr sign(g)`; vectors (biases, gains) are left alone."""
    step, _ = stepper(weight_decay=0.1)
    decay = 0.5 * 0.1 * START * torch.tensor([1.0, 1, 1, 1, 0, 0])
    torch.testing.assert_close(step(0) - START, -0.5 * ROWS.mean(0).sign() - decay, rtol=1e-4, atol=0)
