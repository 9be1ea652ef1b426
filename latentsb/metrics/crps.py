"""CRPS: how well samples of a conditional law forecast what comes next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Row, Subject, Table
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegative, Positive, enforce
from latentsb.solvers.base import Solver
from latentsb.solvers.grid import Power
from latentsb.solvers.ode import Heun
from latentsb.tensors import Batch

__all__ = ["CRPS", "crps", "gaussian_crps", "regression"]


@METRICS.register("crps")
@dataclass(frozen=True, kw_only=True)
class CRPS(Metric):
    """Continuous ranked probability score of forecasts given `history`, beside two classical ones.

    `E|X − y| − ½ E|X − X'|` of each value of the future, by K samples without bias, mean over values and windows; in
    units of `scale`. Beside it: seasonal-naive (the value a season ago, plus its errors on training windows as an
    ensemble) and a Gaussian autoregression (linear least squares of each future value on the history, normal residuals,
    score in closed form). Windows overlap, so the standard error is that of means over blocks of `block` windows.

    Source: Gneiting and Raftery 2007, Strictly proper scoring rules, Eq. 21.

    Args:
        samples: K, of each window.
        windows: at most, spread evenly.
        season: length of a season, in values of the series.
        ridge: added to the diagonal of the regression's normal equations, per training window.
        scale: of one unit of the data.
        block: consecutive windows that are taken for one.
        solver: of the samples.
        seed: of their noise.
    """

    samples: Count = 64
    windows: Count = 150
    season: Count = 12
    ridge: NonNegative = 1e-3
    scale: Positive = 1.0
    block: Count = 12
    solver: Solver = Heun(steps=12, grid=Power())
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For bridges that are given a history."""
        return "forecasts beside classical ones" if "history" in subject.bridge.ends.cond else ""

    def require(self, subject: Subject) -> None:
        """The bridge must be given a history at least a season long."""
        spec = subject.bridge.ends.cond.get("history")
        if spec is None:
            raise CapabilityError("the metric 'crps' needs a bridge that is given a history: conditions: [history]")
        if spec.numel < self.season or len(spec.shape) != 1:
            raise CapabilityError(f"the metric 'crps' needs a history of at least a season of {self.season} values")

    @torch.no_grad()
    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is in units of `scale`."""
        self.require(subject)
        train = subject.train.read(np.arange(len(subject.train)))
        rows = np.unique(np.linspace(0, len(subject.test) - 1, min(self.windows, len(subject.test))).astype(int))
        test = subject.test.read(rows)
        history, y = test.cond["history"].double(), test.x0.double()
        drawn = self._draw(subject, test.cond, len(rows))
        naive = self._naive(history, y.shape[1])
        errors = train.x0.double() - self._naive(train.cond["history"].double(), y.shape[1])
        mean, std = regression(train.cond["history"].double(), train.x0.double(), history, self.ridge)
        scores = {
            "bridge": crps(drawn, y),
            "Gaussian autoregression": gaussian_crps(mean, std, y),
            "seasonal-naive": crps(naive[None] + errors[:, None], y),
        }
        horizons = sorted({0, y.shape[1] // 4, y.shape[1] // 2, y.shape[1] - 1})
        table: list[Row] = []
        for name, score in scores.items():
            value, error = self._mean(score)
            table.append((name, [value, error, *(self.scale * float(score[:, h].mean()) for h in horizons)]))
        value, error = self._mean(scores["bridge"])
        heads = ["", "CRPS", "± SE", *(f"step {h + 1}" for h in horizons)]
        return Measured(
            value,
            {name: self._mean(score)[0] for name, score in scores.items() if name != "bridge"},
            {"samples": self.samples, "windows": len(rows), "season": self.season, "scale": self.scale},
            {"count": len(rows), "on": subject.test.name},
            of="forecasts",
            error=error,
            better="lower",
            tables=(Table("forecasts", heads, table, better={"CRPS": "lower"}),),
        )

    def _mean(self, score: Tensor) -> tuple[float, float]:
        """Mean and standard error of scores (N, H)."""
        parts = torch.stack(
            [part.mean() for part in (score[k : k + self.block] for k in range(0, len(score), self.block))]
        )
        error = float(parts.std()) / math.sqrt(len(parts)) if len(parts) > 1 else math.nan
        return self.scale * float(score.mean()), self.scale * error

    def _naive(self, history: Tensor, steps: int) -> Tensor:
        last = history[:, -self.season :]
        return last.repeat(1, -(-steps // self.season))[:, :steps]

    def _draw(self, subject: Subject, cond: Mapping[str, Tensor], n: int) -> Tensor:
        """K futures of each window in units of the data, shape (K, N, H)."""
        bridge, found = subject.bridge, []
        known = subject.known(cond).to(bridge.device)
        with subject.watch("forecasting", self.samples) as advance:
            for k in range(self.samples):
                draws = Draws.block(self.seed, "forecasts", k, n)
                state = bridge.start(Batch(torch.arange(n), cond=known), draws.fork("start"))
                latents = self.solver.run(bridge, state, draws.fork("solve")).x
                found.append(subject.autoencoder.decode(latents).cpu().double())
                advance(k + 1)
        return torch.stack(found)


def crps(samples: Tensor, y: Tensor) -> Tensor:
    """`E|X − y| − ½ E|X − X'|` without bias, of K ≥ 2 samples of shape (K, …) for y of shape (…)."""
    k = len(samples)
    ordered = samples.sort(0).values
    rank = torch.arange(k, dtype=samples.dtype).reshape(-1, *(1,) * y.ndim)
    # Σ_ij |x_i − x_j| = 2 Σ_i (2 i − K + 1) x_(i), i from 0.
    apart = 2 * ((2 * rank - k + 1) * ordered).sum(0) / (k * (k - 1))
    return (samples - y).abs().mean(0) - apart / 2


def gaussian_crps(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    """The score of N(mean, std²): `std (z (2 Φ(z) − 1) + 2 φ(z) − 1/√π)` with `z = (y − mean)/std`."""
    z = (y - mean) / std
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def regression(x: Tensor, y: Tensor, at: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Mean at new rows and standard deviation of y given x, by linear least squares with a constant.

    Args:
        x: shape (N, L).
        y: shape (N, H).
        at: shape (M, L).
        ridge: added to the covariance of x.
    """
    off, middle = x - x.mean(0), y - y.mean(0)
    weight = torch.linalg.solve(off.T @ off / len(x) + ridge * torch.eye(x.shape[1]).to(x), off.T @ middle / len(x))
    spread = (middle - off @ weight).square().sum(0) / max(1, len(x) - x.shape[1] - 1)
    return y.mean(0) + (at - x.mean(0)) @ weight, spread.sqrt()
