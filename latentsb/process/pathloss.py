"""Divergences between two processes on paths, as losses over paths of the controlled one.

With `R = log F − log B − log ρ(x_0)` of a path (`log w = −R`), K paths stand in each row, and a loss is one number per
row whose mean over rows does not depend on how these are split. Divergences of the controlled process F from the one
whose end has density ρ are estimated up to log Z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from latentsb.registry import Registry

__all__ = ["KL", "PATH_LOSSES", "KLIto", "LogVariance", "LogVarianceTrajectory", "PathLoss", "Paths", "RelativeKL"]


@dataclass(frozen=True)
class Paths:
    """What losses are made of: K paths in each of B rows, each value of shape (B, K).

    Args:
        log_f: log-density of the path under the controlled chain.
        log_b: under the other one, `log ρ` at its end included.
        ito: martingale part of `log_f − log_b`.
        kept: paths that count; the others have values that are not finite, or too large.
    """

    log_f: Tensor
    log_b: Tensor
    ito: Tensor
    kept: Tensor

    @property
    def ratio(self) -> Tensor:
        """`R = log F − log B`."""
        return self.log_f - self.log_b

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the paths that count, shape (B,); zero where none does."""
        return torch.where(self.kept, values, 0.0).sum(1) / self.kept.sum(1).clamp(min=1)

    def spread(self, values: Tensor, by: Tensor) -> Tensor:
        """Unbiased covariance of values with others over the paths of a row, shape (B,).

        Args:
            values: shape (B, K).
            by: shape (B, K).
        """
        n = self.kept.sum(1)
        centred = torch.where(self.kept, by - self.mean(by)[:, None], 0.0)
        return torch.where(self.kept, values * centred, 0.0).sum(1) / (n - 1).clamp(min=1)


class PathLoss(ABC):
    """A divergence; a frozen dataclass.

    Attributes:
        through: gradients run through the simulation; else paths are fixed, and memory does not hold them twice.
        shared_start: all paths of a row start in one state.
        least: number of paths in a row that it needs.
    """

    through: ClassVar[bool] = False
    shared_start: ClassVar[bool] = False
    least: ClassVar[int] = 2

    @abstractmethod
    def of(self, paths: Paths) -> Tensor:
        """The loss of each row, shape (B,)."""


PATH_LOSSES: Registry[PathLoss] = Registry("path_loss", PathLoss, homes=("latentsb.process.pathloss",))


@PATH_LOSSES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL(PathLoss):
    """Kullback-Leibler divergence of the controlled process, `E R` without the Itô part; through the simulation.

    It looks for modes: of separated ones it finds some and leaves the others.

    Source: Richter & Berner 2024, Eq. 8; Zhang & Chen 2022.
    """

    through: ClassVar[bool] = True
    least: ClassVar[int] = 1

    def of(self, paths: Paths) -> Tensor:
        """`mean(R − Ito)`, of the same expectation as R; far from the optimum it varies less."""
        return paths.mean(paths.ratio - paths.ito)


@PATH_LOSSES.register("kl_ito")
@dataclass(frozen=True, kw_only=True)
class KLIto(PathLoss):
    """The same divergence with its Itô part, which is zero on average and vanishes with R at the optimum.

    Source: Xu et al. 2022 (Infinitely deep Bayesian neural networks with stochastic differential equations).
    """

    through: ClassVar[bool] = True
    least: ClassVar[int] = 1

    def of(self, paths: Paths) -> Tensor:
        """`mean R`."""
        return paths.mean(paths.ratio)


@PATH_LOSSES.register("lv")
@dataclass(frozen=True, kw_only=True)
class LogVariance(PathLoss):
    """Log-variance divergence: the variance of R over the paths of a row, which are not differentiated.

    At the optimum R is constant. With a fixed comparison its gradient is twice that of `rkl_ld`, path by path.

    Source: Richter & Berner 2024, Eq. 12; Nüsken & Richter 2021.
    """

    def of(self, paths: Paths) -> Tensor:
        """`Var R`, unbiased."""
        return paths.spread(paths.ratio, paths.ratio)


@PATH_LOSSES.register("lv_traj")
@dataclass(frozen=True, kw_only=True)
class LogVarianceTrajectory(LogVariance):
    """Log-variance divergence over paths that share their start, averaged over starts; the prior then drops out.

    Source: Richter & Berner 2024, App. on trajectory-wise losses.
    """

    shared_start: ClassVar[bool] = True


@PATH_LOSSES.register("rkl_ld")
@dataclass(frozen=True, kw_only=True)
class RelativeKL(PathLoss):
    """Kullback-Leibler divergence by log-derivatives: `E[(R − mean R) ∇log F] − E ∇log B`, paths not differentiated.

    Preferred where the comparison is learned, in which `lv` is no upper bound of any divergence.

    Source: the score-function identity; arXiv 2506.10982.
    """

    def of(self, paths: Paths) -> Tensor:
        """Its value is `mean R`, its gradient that of the divergence."""
        fixed = paths.ratio.detach()
        surrogate = paths.spread(paths.log_f, fixed) - paths.mean(paths.log_b)
        return paths.mean(fixed) + surrogate - surrogate.detach()
