"""One SB-VAE whose bound is known: normal laws on the line, controls linear in x.

`x0 ~ N(0, 1.3)`, prior `N(0, 0.8)`, noise g = 0.9, encoder `u = (0.5 t − 0.3) x` and decoder `s = (0.6 + 0.2 t) x`,
both in forward time. With the variance V of the encoder's law, `V' = 2 u V + g²`,

    bound = KL(N(0, V_1) ‖ prior) + ∫ (u + g²/V − s)² V / (2 g²) dt  ≥  KL(N(0, 1.3) ‖ decoder's law at t = 0).

Source: Kaba et al. 2024, Schrödinger bridge-type diffusion models as an extension of variational autoencoders (the
bound; the numbers are our own).
"""

from __future__ import annotations

import math

import numpy as np

from latentsb.bench.tables import Column, Row

__all__ = ["COLUMNS", "bound", "chain", "decoder_kl", "rows"]

DATA, PRIOR, NOISE = 1.3, 0.8, 0.9**2
COLUMNS = (Column("nats", "nats"),)
FINE = 20_000
"""Intervals of the midpoint rule; its error is below 1e-9 here."""


def encoder(t: np.ndarray | float) -> np.ndarray | float:
    """Slope of the encoder's drift."""
    return 0.5 * t - 0.3


def decoder(t: np.ndarray | float) -> np.ndarray | float:
    """Slope of the decoder's drift, in forward time."""
    return 0.6 + 0.2 * t


def kl(variance: float, other: float) -> float:
    """KL between two centred normal laws on the line."""
    ratio = variance / other
    return (ratio - 1 - math.log(ratio)) / 2


def variances(slope: np.ndarray, start: float) -> np.ndarray:
    """`V' = 2 slope V + g²` at the edges of even intervals of [0, 1], with the slope at their midpoints."""
    h = 1 / len(slope)
    found = [start]
    for a in slope:
        # Exact for a constant slope over the interval.
        grown = math.exp(2 * a * h)
        found.append(grown * found[-1] + NOISE * (grown - 1) / (2 * a) if a else found[-1] + NOISE * h)
    return np.array(found)


def bound() -> float:
    """The prior's KL and the matching of the drifts, in continuous time."""
    t = (np.arange(FINE) + 0.5) / FINE
    edges = variances(np.asarray(encoder(t)), DATA)
    middle = (edges[1:] + edges[:-1]) / 2
    matching = (encoder(t) + NOISE / middle - decoder(t)) ** 2 * middle / (2 * NOISE)
    return kl(float(edges[-1]), PRIOR) + float(matching.mean())


def decoder_kl() -> float:
    """KL of the data from what the decoder makes of the prior."""
    t = 1 - (np.arange(FINE) + 0.5) / FINE
    return kl(DATA, float(variances(-np.asarray(decoder(t)), PRIOR)[-1]))


def chain(steps: int) -> float:
    """The bound of the two Euler–Maruyama chains, exact: what the form `chain` of the loss has as its mean.

    `E[−ln π(x_N)] + Σ_k E|x_k − x_{k+1} + h s(x_{k+1})|² / (2 g² h) − N/2 − H(x0)`.
    """
    h, v, total = 1 / steps, DATA, -steps / 2 - math.log(2 * math.pi * math.e * DATA) / 2
    for k in range(steps):
        forward, back = 1 + h * float(encoder(k * h)), 1 - h * float(decoder((k + 1) * h))
        total += ((1 - back * forward) ** 2 * v + back**2 * NOISE * h) / (2 * NOISE * h)
        v = forward**2 * v + NOISE * h
    return total + math.log(2 * math.pi * PRIOR) / 2 + v / (2 * PRIOR)


def rows() -> list[Row]:
    """The bound, what chains of several lengths make of it, and what it bounds."""
    told = {"bound, continuous time": bound()}
    told |= {f"bound of chains of {steps:,} steps": chain(steps) for steps in (20, 200, FINE)}
    told |= {"KL(data ‖ decoder), which it bounds": decoder_kl()}
    return [Row("SB-VAE on the line", name, (), {"nats": [value]}) for name, value in told.items()]
