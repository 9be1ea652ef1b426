"""Ensembles of states: what their construction says of spectra, entanglement and reduced states."""

import math

import numpy as np
import pytest
import torch

from latentsb.data.qubits import CLASSES, Qubits, on_pair
from latentsb.errors import ArgumentError
from latentsb.process.hermitian import haar, negativity, purity, smallest

LOW, HIGH, EPS = 0.05, 1.0, 1e-3


@pytest.fixture(scope="module")
def made():
    source = Qubits(qubits=3, n=6000, low=LOW, high=HIGH, depolarise=EPS, seed=3)
    items = source.read(np.arange(len(source)))
    return source, items.x0, items.cond["label"]


def test_every_sample_is_a_density_matrix(made):
    source, x, label = made
    assert source.spec.shape == (8, 8)
    assert source.spec.dtype == x.dtype == torch.complex128
    assert (x - x.mH).abs().max() < 1e-15
    torch.testing.assert_close(x.diagonal(dim1=-2, dim2=-1).sum(-1).real, torch.ones(len(x)).double())
    floor = (1 - EPS) * (LOW / (LOW + HIGH)) ** 3 + EPS / 8
    assert floor <= float(smallest(x).min()) < 4 * floor
    assert label.bincount().tolist() == [2000] * 3
    assert source.words("label") == CLASSES


def test_spectra_are_those_of_product_states_in_every_class(made):
    """E tr ρ² of one qubit is E (l1² + l2²)/(l1 + l2)²; qubits multiply, and ε adds the mixture's cross terms."""
    _, x, label = made
    edges = LOW + (HIGH - LOW) * (np.arange(2000) + 0.5) / 2000
    a, b = np.meshgrid(edges, edges)
    clean = float(((a * a + b * b) / (a + b) ** 2).mean()) ** 3
    expected = (1 - EPS) ** 2 * clean + (1 - (1 - EPS) ** 2) / 8
    for kind in range(3):
        values = purity(x[label == kind])
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(len(values))


def test_entanglement_is_where_the_class_says(made):
    """Products have none; in pairs the third qubit stays a factor, and only states of the last class lack that."""
    _, x, label = made
    product, pair, full = (x[label == kind] for kind in range(3))
    assert negativity(product).max() < 1e-12
    assert negativity(product, 4).max() < 1e-12
    assert negativity(pair).mean() > 0.01
    assert negativity(pair, 4).max() < 1e-12
    assert negativity(full).mean() > 0.01
    assert negativity(full, 4).mean() > 0.01


def test_pairs_are_placed_where_they_are_asked():
    real, imaginary = np.random.default_rng(0).standard_normal((2, 1, 4, 4))
    u = haar(torch.from_numpy(real + 1j * imaginary)).contiguous()
    one = torch.eye(2, dtype=u.dtype)
    torch.testing.assert_close(on_pair(u, 0, 1, 3)[0], torch.kron(u[0], one))
    torch.testing.assert_close(on_pair(u, 1, 2, 3)[0], torch.kron(one, u[0]))
    a, b = torch.randn(2, 2, 2, dtype=u.dtype, generator=torch.Generator().manual_seed(0)).unbind()
    torch.testing.assert_close(on_pair(torch.kron(a, b)[None], 0, 2, 3)[0], torch.kron(a, torch.kron(one, b)))
    torch.testing.assert_close(on_pair(torch.kron(a, b)[None], 2, 0, 3)[0], torch.kron(b, torch.kron(one, a)))


def test_seeds_and_epsilon_are_of_the_identity():
    first, again, other = Qubits(n=9), Qubits(n=9), Qubits(n=9, seed=1)
    assert torch.equal(first.samples, again.samples)
    assert not torch.equal(first.samples, other.samples)
    assert first.fingerprint()["depolarise"] == 1e-4
    assert first.fingerprint() != Qubits(n=9, depolarise=1e-3).fingerprint()


@pytest.mark.parametrize("wrong", [{"qubits": 1}, {"qubits": 7}, {"low": 0.6, "high": 0.5}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ArgumentError):
        Qubits(n=3, **wrong)
