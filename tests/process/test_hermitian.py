"""Hermitian matrices against states, norms and laws that are known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import logm

from latentsb.process.hermitian import (
    coordinates,
    fidelity,
    haar,
    helmert,
    log_traceless,
    matrix_of,
    matrix_softmax,
    negativity,
    partial_transpose,
    purity,
)
from latentsb.randomness import numpy_generator

PAULI = torch.tensor(
    [[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]],
    dtype=torch.complex128,
)
BELL = torch.zeros(4, 4, dtype=torch.complex128)
BELL[0, 0] = BELL[0, 3] = BELL[3, 0] = BELL[3, 3] = 0.5


def ginibre(n: int, dim: int, name: str = "test") -> torch.Tensor:
    real, imaginary = numpy_generator(0, name).standard_normal((2, n, dim, dim))
    return torch.from_numpy(real + 1j * imaginary)


def hermitian(n: int, dim: int, name: str = "test") -> torch.Tensor:
    g = ginibre(n, dim, name)
    y = (g + g.mH) / 2
    return y - y.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(dim)


def states(n: int, dim: int, name: str = "test") -> torch.Tensor:
    g = ginibre(n, dim, name)
    x = g @ g.mH
    return x / x.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


@pytest.mark.parametrize("dim", [2, 3, 8, 16])
def test_coordinates_are_an_isometry_onto_traceless_matrices(dim):
    y, other = hermitian(20, dim), hermitian(20, dim, "other")
    v, w = coordinates(y), coordinates(other)
    assert v.shape == (20, dim**2 - 1)
    inner = (y.mH @ other).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close((v * w).sum(1), inner.real, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(matrix_of(v), y, rtol=1e-12, atol=1e-12)
    # All n² − 1 are free: the other way round is the identity too.
    torch.testing.assert_close(coordinates(matrix_of(torch.eye(dim**2 - 1))), torch.eye(dim**2 - 1).double())


def test_helmert_rows_are_orthonormal_and_sum_to_zero():
    rows = helmert(7)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6).double())
    assert rows.sum(1).abs().max() < 1e-14


def test_mirror_map_is_the_gradient_of_the_negative_entropy():
    """Central differences of tr X log X, along every coordinate; error h² |phi'''| / 6."""
    x = states(1, 3)[0]

    def phi(y: torch.Tensor) -> float:
        values = torch.linalg.eigvalsh(y)
        return float((values * values.log()).sum())

    h = 1e-5
    along = matrix_of(torch.eye(8).double())
    found = torch.tensor([(phi(x + h * e) - phi(x - h * e)) / (2 * h) for e in along], dtype=torch.float64)
    torch.testing.assert_close(coordinates(log_traceless(x[None]))[0], found, rtol=1e-6, atol=1e-6)


def test_logarithm_against_scipy():
    x = states(1, 4)
    log = torch.from_numpy(logm(x[0].numpy()))
    traceless = log - log.diagonal().mean() * torch.eye(4).to(log)
    torch.testing.assert_close(log_traceless(x)[0], traceless, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 8, 16])
def test_softmax_inverts_the_logarithm_and_forgets_the_identity(dim):
    x = states(50, dim)
    y = log_traceless(x)
    torch.testing.assert_close(matrix_softmax(y), x, rtol=0, atol=1e-14 * dim)
    torch.testing.assert_close(matrix_softmax(y + 3.7 * torch.eye(dim)), x, rtol=0, atol=1e-13 * dim)
    # Large matrices neither overflow nor leave the set.
    far = matrix_softmax(1e4 * hermitian(20, dim))
    assert torch.linalg.eigvalsh(far).min() > -1e-14
    torch.testing.assert_close(far.diagonal(dim1=-2, dim2=-1).sum(-1).real, torch.ones(20).double())


def test_one_qubit_is_bloch_vector_times_artanh():
    """log X = ½ log((1 − r²)/4) + artanh(r) r̂·σ, so coordinates have the norm √2 artanh r and purity is (1 + r²)/2."""
    direction = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
    for r in (0.01, 0.5, 0.999):
        x = (torch.eye(2) + r * torch.einsum("k,kab->ab", direction.to(PAULI.dtype), PAULI)) / 2
        expected = math.atanh(r) * torch.einsum("k,kab->ab", direction.to(PAULI.dtype), PAULI)
        torch.testing.assert_close(log_traceless(x[None])[0], expected, rtol=1e-10, atol=1e-12)
        norm = float(coordinates(log_traceless(x[None])).norm())
        assert norm == pytest.approx(math.sqrt(2) * math.atanh(r), rel=1e-10)
        assert float(purity(x)) == pytest.approx((1 + r * r) / 2)


def test_negativity_of_bell_werner_and_product_states():
    assert float(negativity(BELL)) == pytest.approx(0.5)
    for p in (0.0, 0.2, 1 / 3, 0.5, 0.9, 1.0):
        werner = p * BELL + (1 - p) * torch.eye(4, dtype=torch.float64) / 4
        assert float(negativity(werner)) == pytest.approx(max(0.0, (3 * p - 1) / 4), abs=1e-14)
    a, b = states(30, 2), states(30, 4, "other")
    product = torch.einsum("nab,ncd->nacbd", a, b).reshape(30, 8, 8)
    assert negativity(product).max() < 1e-14


def test_partial_transpose_is_of_the_first_factor():
    a, b = ginibre(1, 2)[0], ginibre(1, 3, "other")[0]
    torch.testing.assert_close(partial_transpose(torch.kron(a, b), 2), torch.kron(a.T.contiguous(), b))


def test_fidelity_of_pure_and_commuting_states():
    psi = ginibre(2, 4)[:, 0]
    psi = psi / psi.norm(dim=1, keepdim=True)
    pure = psi[:, :, None] * psi[:, None].conj()
    overlap = float((psi[0].conj() @ psi[1]).abs() ** 2)
    assert float(fidelity(pure[0], pure[1])) == pytest.approx(overlap, abs=1e-6)
    p, q = (torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.2, 0.7], [0.5, 0.3, 0.2]))
    expected = float((p * q).sqrt().sum() ** 2)
    assert float(fidelity(torch.diag(p), torch.diag(q))) == pytest.approx(expected)
    x = states(5, 8)
    torch.testing.assert_close(fidelity(x, x), torch.ones(5).double())


@pytest.mark.parametrize("n", [2, 4, 8])
def test_haar_moments(n):
    """E|U11|² = 1/n, E|U11|⁴ = 2/(n(n+1)), and E U11 = 0, which a bare QR misses: its U11 has a negative real part."""
    u = haar(ginibre(20_000, n, "haar"))
    torch.testing.assert_close(u[:10] @ u[:10].mH, torch.eye(n).to(u.dtype).expand(10, n, n), atol=1e-12, rtol=0)
    for power, expected in ((2, 1 / n), (4, 2 / (n * (n + 1)))):
        values = u[:, 0, 0].abs() ** power
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(len(values))
    real = u[:, 0, 0].real
    assert abs(float(real.mean())) < 4 * math.sqrt(1 / (2 * n) / len(u))  # Var Re U11 = 1/(2n)


def test_isotropic_noise_prefers_no_basis():
    """Conjugation by a unitary is an orthogonal map of the coordinates, so that N(0, 1) stays N(0, 1)."""
    u = haar(ginibre(1, 4))[0]
    turned = coordinates(u @ matrix_of(torch.eye(15).double()) @ u.mH)
    torch.testing.assert_close(turned @ turned.T, torch.eye(15).double(), rtol=0, atol=1e-13)
    noise = torch.from_numpy(numpy_generator(1, "noise").standard_normal((20_000, 15)))
    seen = coordinates(u @ matrix_of(noise) @ u.mH)
    covariance = np.cov(seen.numpy().T)
    # Of 15·15 entries with standard error √(1 + δ)/√N the largest is below five of them.
    assert np.abs(covariance - np.eye(15)).max() < 5 * math.sqrt(2 / 20_000)
