"""Scores of predictions under weights of the samples, so that one pass gives a figure and its bootstrap.

Each function takes weights of shape (R, N) and returns R figures. Weights of one give the figure itself, multinomial
counts that of a resample.
"""

from __future__ import annotations

import numpy as np

from latentsb.randomness import numpy_generator

__all__ = ["auroc", "average_precision", "interval", "pearson", "resampled", "squared_error"]


def resampled(n: int, resamples: int, seed: int) -> np.ndarray:
    """Weights of n samples, float64 of shape (1 + resamples, n): ones, then how often each is drawn in a resample.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, Ch. 13.
    """
    drawn = numpy_generator(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n)), drawn])


def interval(figures: np.ndarray) -> tuple[float, float, float]:
    """The figure itself, and the 2.5 % and 97.5 % quantiles of its resamples, which stand behind it."""
    if np.isnan(figures).all():
        return np.nan, np.nan, np.nan
    low, high = np.nanquantile(figures[1:], (0.025, 0.975)) if len(figures) > 1 else (np.nan, np.nan)
    return float(figures[0]), float(low), float(high)


def average_precision(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`Σ_k (recall_k − recall_{k−1}) precision_k` over the thresholds, equal scores together; NaN without positives.

    Args:
        truth: bool, shape (N,).
        score: larger for positives, shape (N,).
        weights: shape (R, N).

    Returns:
        Shape (R,).
    """
    hits, misses = _above(truth, score, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits > 0, hits / (hits + misses), 0.0)
        found: np.ndarray = (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / hits[:, -1]
    return found


def auroc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probability that a positive has the larger score than a negative, ties half; NaN without one of the two.

    Args:
        truth: bool, shape (N,).
        score: larger for positives, shape (N,).
        weights: shape (R, N).

    Returns:
        Shape (R,).
    """
    hits, misses = _above(truth, score, weights)
    before = np.concatenate([np.zeros((len(hits), 1)), hits[:, :-1]], 1)
    area = (np.diff(misses, axis=1, prepend=0) * (hits + before) / 2).sum(1)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = area / (hits[:, -1] * misses[:, -1])
    return found


def pearson(truth: np.ndarray, guess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r, shape (R,); 0 where the guess is constant.

    Args:
        truth: shape (N,).
        guess: shape (N,).
        weights: shape (R, N).
    """
    share = weights / weights.sum(1, keepdims=True)
    x, y = truth - truth.mean(), guess - guess.mean()
    mx, my = share @ x, share @ y
    covariance = share @ (x * y) - mx * my
    spread = (share @ x**2 - mx**2) * (share @ y**2 - my**2)
    flat = spread <= 1e-24 * (x @ x) * max(float(y @ y), 1e-300)
    found: np.ndarray = np.where(flat, 0.0, covariance / np.sqrt(np.where(flat, 1.0, spread)))
    return found


def squared_error(truth: np.ndarray, guess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared error, shape (R,).

    Args:
        truth: shape (N,).
        guess: shape (N,).
        weights: shape (R, N).
    """
    found: np.ndarray = weights @ (truth - guess) ** 2 / weights.sum(1)
    return found


def _above(truth: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and of negatives at or above each threshold, both of shape (R, T)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    ranked, positive = weights[:, order], truth[order]
    return (ranked * positive).cumsum(1)[:, last], (ranked * ~positive).cumsum(1)[:, last]
