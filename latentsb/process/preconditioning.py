"""Preconditionings: how a network's input, output and loss are scaled so that all of them have unit size.

With the coefficients of a time, a denoiser is

    D = skip (x − shift x1) + out F(scale_in (x − shift x1) ⊕ x1, noise),

its loss weight is `1/out²`, and the regression target of F is `(x0 − skip (x − shift x1)) / out`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.process.marginal import Marginal
from latentsb.ranges import Positive, enforce
from latentsb.registry import Registry
from latentsb.tensors import expand_as

__all__ = ["PRECONDITIONINGS", "Coefficients", "Noise", "Official", "Preconditioning", "Shifted"]

LEVELS = (1e-5, 1e3)
"""Range of the noise level that a network is told, in units of the data; beyond it the input no longer changes."""


@dataclass(frozen=True)
class Coefficients:
    """The scalings at a batch of times, each float64 of the shape of t.

    Args:
        skip: weight of the (shifted) state in the denoiser.
        out: weight of the network's output.
        scale_in: factor on the (shifted) state that the network sees.
        shift: weight of x1 that is subtracted from the state first.
        noise: the time feature that the network is given.
    """

    skip: Tensor
    out: Tensor
    scale_in: Tensor
    shift: Tensor
    noise: Tensor

    @property
    def weight(self) -> Tensor:
        """`1/out²`: with it, the x0 error is the error of the network's own unit-variance target."""
        return 1 / self.out.square()

    def centred(self, x: Tensor, x1: Tensor | None) -> Tensor:
        """`x − shift x1`; x1 None stands for zero."""
        return x if x1 is None else x - expand_as(self.shift, x) * x1

    def enter(self, x: Tensor, x1: Tensor | None) -> Tensor:
        """What the network sees of the state: `scale_in (x − shift x1)`."""
        return expand_as(self.scale_in, x) * self.centred(x, x1)

    def leave(self, x: Tensor, x1: Tensor | None, output: Tensor) -> Tensor:
        """The denoiser: `skip (x − shift x1) + out F`, in the wider dtype of x and F."""
        return expand_as(self.skip, x) * self.centred(x, x1) + expand_as(self.out, x) * output

    def target(self, x: Tensor, x1: Tensor | None, x0: Tensor) -> Tensor:
        """What F should be: `(x0 − skip (x − shift x1)) / out`."""
        return (x0 - expand_as(self.skip, x) * self.centred(x, x1)) / expand_as(self.out, x)


class Preconditioning(ABC):
    """A choice of coefficients; a frozen dataclass."""

    @abstractmethod
    def coefficients(self, marginal: Marginal, t: Tensor) -> Coefficients:
        """The scalings at times t.

        Args:
            marginal: the bridge's law at t.
            t: times in (0, 1], float64, shape (B,) or ().
        """


PRECONDITIONINGS: Registry[Preconditioning] = Registry(
    "preconditioning", Preconditioning, homes=("latentsb.process.preconditioning",)
)


@PRECONDITIONINGS.register("shifted")
@dataclass(frozen=True, kw_only=True)
class Shifted(Preconditioning):
    """EDM's preconditioning in the coordinates `y = (x − a x1)/b`, with x1 beside the state.

    With `v = b² sd² + c`: `shift = a`, `scale_in = 1/√v`, `skip = b sd²/v`, `out = sd √(c/v)`,
    `noise = ln(sigma_eff)/4`. Nothing depends on the variance of x1. Where a pinned bridge reaches x1 there is no
    state left to see (`x = x1`): scale_in and skip are zero and out is sd, so D there is a function of x1 alone.

    Source: Karras et al. 2022, EDM, Table 1, in the coordinates of a bridge.

    Args:
        sigma_data: standard deviation of the data; 1 for normalised latents, 0.5 for images in [-1, 1].
    """

    sigma_data: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def coefficients(self, marginal: Marginal, t: Tensor) -> Coefficients:
        """See the class."""
        b, c, sd = marginal.b, marginal.c, self.sigma_data
        variance = b.square() * sd**2 + c
        # b² vanishes faster than c at a pinned end, where both are zero: noise is all that is left.
        end = variance == 0
        safe = torch.where(end, 1.0, variance)
        low, high = (level * sd for level in LEVELS)
        return Coefficients(
            skip=b * sd**2 / safe,
            out=sd * torch.where(end, 1.0, c / safe).sqrt(),
            scale_in=torch.where(end, 0.0, safe.rsqrt()),
            shift=marginal.a,
            noise=marginal.sigma_eff.clamp(low, high).log() / 4,
        )


@PRECONDITIONINGS.register("official")
@dataclass(frozen=True, kw_only=True)
class Official(Preconditioning):
    """The published preconditioning of diffusion bridges: unit variance for random x1 of known variance.

    With `A = a² se² + b² sd² + 2 a b cov + c`: `scale_in = 1/√A`, `skip = (b sd² + a cov)/A`,
    `out = √((a² (se² sd² − cov²) + sd² c)/A)`, `noise = 250 ln t`, and no shift.

    Source: Zhou et al. 2024, DDBM, Appendix A.5; Kim et al. 2025, DBAE.

    Args:
        sigma_data: standard deviation sd of x0.
        sigma_end: standard deviation se of x1.
        covariance: cov of x0 and x1 in each dimension, smaller than sd·se in size.
    """

    sigma_data: Positive = 0.5
    sigma_end: Positive = 0.5
    covariance: float = 0.0

    def __post_init__(self) -> None:
        enforce(self)
        if not abs(self.covariance) < self.sigma_data * self.sigma_end:
            limit = self.sigma_data * self.sigma_end
            raise ArgumentError(
                "covariance", f"must be smaller in size than sigma_data sigma_end = {limit:g}, found {self.covariance}"
            )

    def coefficients(self, marginal: Marginal, t: Tensor) -> Coefficients:
        """See the class."""
        a, b, c = marginal.a, marginal.b, marginal.c
        vd, ve, cov = self.sigma_data**2, self.sigma_end**2, self.covariance
        variance = a.square() * ve + b.square() * vd + 2 * a * b * cov + c
        return Coefficients(
            skip=(b * vd + a * cov) / variance,
            out=((a.square() * (ve * vd - cov**2) + vd * c) / variance).sqrt(),
            scale_in=variance.rsqrt(),
            shift=torch.zeros_like(a),
            # The offset is the published one; it keeps t = 0 finite.
            noise=250 * (t.to(torch.float64) + 1e-44).log(),
        )


@PRECONDITIONINGS.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise(Preconditioning):
    """The network predicts the noise ε of `x = a x1 + b x0 + √c ε`, from the state as it is.

    `skip = 1/b`, `out = −√c/b`, `scale_in = 1`, `shift = a`, `noise = t`; with the weight `unit` the loss is
    `|F − ε|²`. Where no signal is left (`b = 0`) the noise says nothing about x0, so a pinned bridge at t = 1 and a
    flow have no denoiser of this form.

    Source: Ho et al. 2020, Denoising diffusion probabilistic models, Eq. 14.
    """

    def coefficients(self, marginal: Marginal, t: Tensor) -> Coefficients:
        """See the class.

        Raises:
            CapabilityError: at a time without signal.
        """
        if bool((marginal.b == 0).any()):
            raise CapabilityError(
                "the preconditioning 'noise' needs signal at every time, and there is none at t = 1; use 'shifted'"
            )
        t = t.to(torch.float64)
        return Coefficients(
            skip=1 / marginal.b,
            out=-marginal.std / marginal.b,
            scale_in=torch.ones_like(marginal.b),
            shift=marginal.a,
            noise=t.expand_as(marginal.b),
        )
