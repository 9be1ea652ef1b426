"""Density matrices through an autoencoder, a cache, a run and its figures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentsb.autoencoder import AUTOENCODERS
from latentsb.bench.arms import trained
from latentsb.cache import LatentCache
from latentsb.data.qubits import Qubits
from latentsb.errors import ArgumentError, DataError
from latentsb.evaluate import RunSubject, fitting
from latentsb.metrics.base import METRICS
from latentsb.metrics.states import invalid, sliced, wasserstein
from latentsb.outputs import sample_folder
from latentsb.process.hermitian import fidelity
from latentsb.recipe import Recipe
from latentsb.roundtrip import prove
from latentsb.run import Run
from latentsb.tensors import Spec

SPEC = Spec((8, 8), torch.complex128)


@pytest.mark.parametrize("word", ["mirror", "hermitian"])
def test_round_trip_through_float32_latents(word):
    """Relative error of a float32 is 2⁻²⁴; of exp y it is |y| times that, with |y| below 2 log(1/1e-5)."""
    x = Qubits(n=300).samples
    autoencoder = AUTOENCODERS[word](SPEC)
    autoencoder.fit_normaliser([autoencoder.moments(x).mean])
    y = autoencoder.encode(x)
    assert (y.shape, y.dtype) == ((300, 63), torch.float32)
    assert float(y.square().mean()) == pytest.approx(1.0, abs=1e-3)
    back = autoencoder.decode(y)
    assert back.dtype == torch.complex128
    assert (back - x).abs().max() < 24 * 2**-24
    assert (1 - fidelity(back, x)).abs().max() < 1e-9
    assert not invalid(back).any()


def test_whatever_stands_in_latents_decodes_to_a_state_and_only_there():
    noise = 5 * torch.randn(500, 63, generator=torch.Generator().manual_seed(0))
    mirror, plain = AUTOENCODERS["mirror"](SPEC), AUTOENCODERS["hermitian"](SPEC)
    assert not invalid(mirror.decode(noise)).any()
    assert invalid(plain.decode(noise)).all()


def test_pure_states_are_refused_by_name():
    pure = torch.zeros(1, 8, 8, dtype=torch.complex128)
    pure[0, 0, 0] = 1
    with pytest.raises(DataError, match="depolarise"):
        AUTOENCODERS["mirror"](SPEC).moments(pure)


@pytest.mark.parametrize("spec", [Spec((8, 8)), Spec((2, 8, 8)), Spec((8, 4), torch.complex128)])
@pytest.mark.parametrize("word", ["mirror", "hermitian"])
def test_other_samples_are_refused(word, spec):
    with pytest.raises(ArgumentError, match="complex matrices"):
        AUTOENCODERS[word](spec)


def test_a_cache_of_complex_matrices_is_proved(tmp_path):
    """Were imaginary parts dropped on the way, the round trip would be off by as much as the matrices."""
    source, autoencoder = Qubits(n=200), AUTOENCODERS["mirror"](SPEC)
    cache = LatentCache.open_or_build(tmp_path / "latents", source, autoencoder)
    found = prove(cache, source, autoencoder)
    assert found.own.error < 1e-12 < found.own.floor
    torch.testing.assert_close(cache.read(np.arange(200)).x0, autoencoder.encode(source.samples))


def test_distances_against_closed_forms():
    a = torch.tensor([0.0, 1.0, 3.0])
    assert wasserstein(a, a + 0.25) == pytest.approx(0.25)
    assert wasserstein(a, a[:2]) == pytest.approx(
        5 / 6
    )  # quantile functions differ by 1 on (1/3, 1/2), by 2 on (2/3, 1)
    x = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([3.0, 0, 0, 0, 4.0]).double()
    # A shift by s moves a projection by s·u; over an orthonormal basis the mean square is |s|²/5.
    assert sliced(x, x + shift, torch.eye(5).double()) == pytest.approx(5 / 5**0.5)
    bad = torch.diag(torch.tensor([0.5, 0.6, -0.1])).to(torch.complex128)
    tilted = torch.eye(3, dtype=torch.complex128) / 3
    tilted[0, 1] += 0.01
    heavy = torch.eye(3, dtype=torch.complex128) / 2
    assert invalid(torch.stack([bad, tilted, heavy, torch.eye(3) / 3])).tolist() == [True, True, True, False]


SMALL = """
data: {name: qubits, qubits: 2, n: 300}
conditions: [label]
autoencoder: WORD
bridge: {name: score, network: {name: mlp, width: 16, depth: 1}}
solver: {name: dpmpp, steps: 5}
train: {images: 1000, batch: 100, log_every: 500, save_every: 1000, preview_every: 1000}
preview: {n: 9}
"""


@pytest.mark.parametrize(("word", "share"), [("mirror", 0.0), ("hermitian", None)])
def test_a_run_from_training_to_figures(tmp_path, word, share):
    folder = tmp_path / "run"
    experiment, _ = trained(Recipe.parse(SMALL.replace("WORD", word), label="small"), folder)
    run = Run.open(folder)
    made = sample_folder(run, experiment, 60)
    assert made.samples.is_complex()
    assert made.samples.shape == (60, 4, 4)
    with Image.open(made.path / "grid.png") as picture:
        assert min(picture.size) > 64
    assert list(folder.rglob("preview*.png"))
    metric = METRICS["states"](directions=8)
    subject = RunSubject(run, experiment, 60)
    assert "states" in fitting(subject)
    assert "recognised" not in fitting(subject)  # whose classifier would see real parts alone
    found = metric.measure(subject)
    json.dumps(dict(found.details))
    assert found.floors["other data"] == 0
    assert found.value == share if share is not None else found.value > 0.02, found
    assert metric.picture(found).size[0] > 100
