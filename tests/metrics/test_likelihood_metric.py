"""The likelihood of a run's data, from the command on: known laws, levels of pixels, and refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from latentsb.cli import main
from latentsb.experiment import build
from latentsb.metrics.likelihood import Independent, LogLikelihood
from latentsb.recipe import Recipe
from latentsb.run import Run
from latentsb.tensors import Spec
from latentsb.trainer import Trainer

TRAIN = "train: {images: 64, batch: 32, preview_every: 1000000, save_every: 1000000}"
NETWORK = "network: {name: mlp, width: 8, depth: 1}"
RECIPES = {
    "digits": f"data: digits\nheld_out: 300\nbridge: {{name: flow, {NETWORK}}}\n{TRAIN}\n",
    "scaled": "data: digits\nheld_out: 300\nautoencoder: {name: identity, normaliser: global}\n"
    f"bridge: {{name: flow, {NETWORK}}}\n{TRAIN}\n",
    "points": f"data: {{name: gaussian, n: 400}}\nbridge: {{name: score, {NETWORK}}}\n{TRAIN}\n",
    "coded": f"data: digits\nbridge: {{name: dbae, z_dim: 4, {NETWORK}, encoder: {{name: dense, width: 8, depth: 1}}, "
    f"decoder: {{name: dense, width: 8, depth: 1}}}}\n{TRAIN}\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood")
    for name, text in RECIPES.items():
        run = Run.create(Recipe.parse(text, (), label=name), folder / "runs" / name)
        Trainer(run, build(run.recipe), device="cpu").fit()
        run.close()
    return folder


@pytest.fixture
def command(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def give(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return give


def stored(project, name):
    (path,) = (project / "runs" / name / "evaluations").glob("*-likelihood.json")
    return json.loads(path.read_text())


def still(project, name, monkeypatch):
    """The metric's figure where the velocity is zero: the density of x0 is that of the law at t = 1."""
    from latentsb.bridges.flow import Flow
    from latentsb.evaluate import RunSubject

    monkeypatch.setattr(Flow, "velocity", lambda self, x, t, cond: 0 * x)
    run = Run.open(project / "runs" / name)
    subject = RunSubject(run, run.experiment(), 1)
    return LogLikelihood(images=300, levels=17).measure(subject), subject


@pytest.mark.parametrize("name", ["digits", "scaled"])
def test_bits_of_pixels_under_a_still_flow(project, name, monkeypatch):
    """`−log2` of the normal density at the dequantised latents, in units of one of the 17 levels."""
    found, subject = still(project, name, monkeypatch)
    x = subject.held.source.read(np.arange(300)).x0.double().flatten(1)
    scale, shift = (float(v.flatten()[0]) for v in (subject.autoencoder.scale, subject.autoencoder.shift))
    assert (scale == 1) == (name == "digits")
    step = 2 / 16
    # In expectation over the uniform noise of variance step²/12, which adds to every square.
    squares = (((x - shift) / scale).square() + (step / scale) ** 2 / 12).mean()
    expected = float(squares / 2 + math.log(2 * math.pi) / 2 - math.log(step / scale)) / math.log(2)
    # 300 × 64 draws of noise, whose part of the square has a standard deviation near 2 step |x|/sqrt(12).
    spread = step / scale / math.sqrt(12) * float(squares.sqrt()) / math.sqrt(300 * 64) / math.log(2)
    # The flow is followed from t_min = 1e-4, whose scale 1 − t_min shifts squares by two parts in 10^4.
    assert found.value == pytest.approx(expected, abs=4 * spread + 3e-4 * float(squares))
    assert found.protocol["held out"]


def test_command(command, project):
    code, out, err = command("likelihood", "runs/digits", "-n", "40", "likelihood.levels=17")
    assert code == 0, err
    assert "nats/dim" in out
    assert "Gaussian, full covariance, of 1497 training samples" in out
    content = stored(project, "digits")
    assert content["metric"]["images"] == 40
    assert f"{content['value']:.3f}" in out
    ((name, row), (_, gaussian), (_, gap)) = content["tables"][0]["rows"]
    assert name == "bridge"
    assert row[2] - gaussian[2] == pytest.approx(gap[2], abs=1e-9)
    # 17 levels are 4.09 bits without any knowledge; the Gaussian knows something, an untrained flow little.
    assert gaussian[2] < math.log2(17)


def test_vectors_count_in_units_of_the_latents(command, project):
    code, _, err = command("likelihood", "runs/points", "-n", "30")
    assert code == 0, err
    content = stored(project, "points")
    assert content["protocol"]["unit"] == "normalised latents"
    assert content["protocol"]["exact divergence"]
    row = content["tables"][0]["rows"][0][1]
    assert row[2] == pytest.approx(-row[0] / math.log(2), rel=1e-12)


def test_pixels_of_other_levels_are_refused(command):
    code, _, err = command("likelihood", "runs/digits", "-n", "10")
    assert code == 3
    assert "does not lie on 256 even levels" in err


def test_a_bridge_without_a_density_is_refused(command):
    code, _, err = command("likelihood", "runs/coded")
    assert code == 7
    assert "'dbae' ends in an x1 that belongs to each x0" in err


@pytest.mark.parametrize("n", [400, 7])
def test_the_bridge_and_a_gaussian_fitted_to_training_data_in_closed_form(parts, n):
    """Seven samples are too few for a covariance of two dimensions."""
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(n, 2, generator=rng) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]]) + 1).double()
    held = torch.randn(60, 2, generator=rng) * 1.5 - 0.5
    bridge = parts.Denoiser(Spec((2,)), lambda y, sigma, cond: y / (1 + sigma**2))  # of N(0, 1)
    found = LogLikelihood(images=60, rtol=1e-5, atol=1e-5).measure(parts.Stand(x.float(), held, bridge=bridge))
    (_, own), (name, row), (_, gap) = found.tables[0].rows
    if n == 400:
        law = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
        theirs = law.log_prob(held.double())
    else:
        theirs = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(held.double()).sum(1)
    ours = torch.distributions.Normal(0.0, 1.0).log_prob(held.double()).sum(1)
    assert name.endswith(f"of {n} training samples")
    assert row[0] == pytest.approx(float(theirs.mean()) / 2, rel=1e-5)
    # t_min has a sigma_eff of 8e-3, and t_max one of 80: six parts in 10^5 of a square, and a part of 10^4 in all.
    assert own[0] == pytest.approx(float(ours.mean()) / 2, abs=5e-4)
    for found_row, values in ((own, ours), (row, theirs), (gap, ours - theirs)):
        assert found_row[1] == pytest.approx(float(values.std()) / math.sqrt(60) / 2, rel=2e-3)
        assert found_row[2:] == pytest.approx((-found_row[0] / math.log(2), found_row[1] / math.log(2)), rel=1e-9)


def test_independent_gaussian():
    law = Independent(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 2.0]).double())
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(law.mean, law.std).log_prob(x).sum(1)
    torch.testing.assert_close(law.log_prob(x), expected)
