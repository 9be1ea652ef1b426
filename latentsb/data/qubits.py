"""Ensembles of density matrices of a few qubits, made by code."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from latentsb.data.arrays import ArraySource
from latentsb.data.source import SOURCES
from latentsb.errors import ArgumentError
from latentsb.process.hermitian import haar
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, Fraction, NonNegativeInt, Positive
from latentsb.tensors import Spec

__all__ = ["CLASSES", "Qubits", "on_pair"]

CLASSES = ("product", "pairwise entangled", "fully entangled")
LARGEST = 6
"""Qubits: a state then has 4,096 complex numbers."""


@SOURCES.register("qubits")
class Qubits(ArraySource):
    """States of a few qubits in three classes: product, entangled in pairs, entangled all with all; complex matrices.

    A qubit is `Q diag(l1, l2) Q⁺ / (l1 + l2)` with a Haar unitary Q and l uniform in [low, high]; a product state is
    the Kronecker product of them. Pairs of neighbours (1,2), (3,4), … are entangled by one Haar unitary of U(4) each;
    in the last class every pair is, in lexicographic order. Unitaries leave eigenvalues alone, so that these have one
    law in all classes.

    Source: Zhu et al. 2024 (arXiv 2404.06336), Sec. 5, whose low and high are not published.

    Args:
        qubits: q; matrices are 2^q × 2^q.
        n: number of states; classes take turns.
        low: smallest l.
        high: largest l.
        depolarise: ε of `(1 − ε) X + ε/2^q`, which keeps eigenvalues off zero, where logarithms have no end.
        seed: of the states.

    Raises:
        ArgumentError: if low exceeds high or there are too few or too many qubits.
    """

    def __init__(
        self,
        *,
        qubits: Count = 3,
        n: Count = 30_000,
        low: Positive = 0.02,
        high: Positive = 1.0,
        depolarise: Fraction = 1e-4,
        seed: NonNegativeInt = 0,
    ) -> None:
        if not 2 <= qubits <= LARGEST:
            raise ArgumentError("qubits", f"found {qubits}, expected 2 to {LARGEST}")
        if low > high:
            raise ArgumentError("low", f"found {low}, more than high: {high}")
        rng = numpy_generator(seed, "qubits")
        x = _products(rng, n, qubits, low, high)
        label = torch.arange(n) % len(CLASSES)
        pairs = [(k, k + 1) for k in range(0, qubits - 1, 2)], list(itertools.combinations(range(qubits), 2))
        for kind, entangled in enumerate(pairs, start=1):
            rows = label == kind
            if rows.any():
                x[rows] = _entangled(rng, x[rows], entangled, qubits)
        x = (1 - depolarise) * x + depolarise * torch.eye(2**qubits, dtype=torch.float64) / 2**qubits
        identity = {
            "data": "qubits",
            "qubits": qubits,
            "low": low,
            "high": high,
            "depolarise": depolarise,
            "seed": seed,
        }
        super().__init__(x, cond={"label": label}, classes=len(CLASSES), identity=identity)
        self.spec = Spec(tuple(x.shape[1:]), x.dtype)

    def words(self, name: str) -> tuple[str, ...]:
        """Names of the classes."""
        return CLASSES if name == "label" else ()


def _ginibre(rng: np.random.Generator, n: int, dim: int) -> Tensor:
    real, imaginary = rng.standard_normal((2, n, dim, dim))
    return torch.from_numpy(real + 1j * imaginary)


def _products(rng: np.random.Generator, n: int, qubits: int, low: float, high: float) -> Tensor:
    """Product states, shape (n, 2^q, 2^q)."""
    x = torch.ones(n, 1, 1, dtype=torch.complex128)
    for _ in range(qubits):
        weights = torch.from_numpy(rng.uniform(low, high, (n, 2)))
        q = haar(_ginibre(rng, n, 2))
        qubit = (q * (weights / weights.sum(1, keepdim=True))[:, None, :]) @ q.mH
        x = torch.einsum("nab,ncd->nacbd", x, qubit).reshape(n, 2 * x.shape[1], 2 * x.shape[1])
    return x


def _entangled(rng: np.random.Generator, x: Tensor, pairs: list[tuple[int, int]], qubits: int) -> Tensor:
    for first, second in pairs:
        u = on_pair(haar(_ginibre(rng, len(x), 4)), first, second, qubits)
        x = u @ x @ u.mH
    return x


def on_pair(u: Tensor, first: int, second: int, qubits: int) -> Tensor:
    """Unitaries (N, 4, 4) of two qubits as unitaries of all of them, shape (N, 2^q, 2^q).

    Args:
        u: acts on the pair, the first qubit major.
        first: number of the first qubit, from 0, the most significant.
        second: number of the second.
        qubits: q.
    """
    n, rest = len(u), 2 ** (qubits - 2)
    whole = torch.einsum("nab,cd->nacbd", u, torch.eye(rest, dtype=u.dtype)).reshape(n, *[2] * (2 * qubits))
    order = [first, second, *(k for k in range(qubits) if k not in (first, second))]
    place = [order.index(k) for k in range(qubits)]
    axes = [0, *(1 + p for p in place), *(1 + qubits + p for p in place)]
    return whole.permute(axes).reshape(n, 2**qubits, 2**qubits)
