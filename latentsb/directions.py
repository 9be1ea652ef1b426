"""Directions of attributes among codes: how they are found, how codes are moved along them, what they are worth.

Codes are normalised number by number, `u = (z − m)/s` with mean m and spread s over the codes of the data. An attribute
has unit weights w; `p = wᵀu` is the projection of a code, and σ its spread over the same codes. A strength of k moves
the projection by k of its standard deviations:

    z' = z + k σ s⊙w,      p' = p + k σ
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsb.errors import ArgumentError, DataError
from latentsb.ranges import Positive, enforce
from latentsb.registry import Registry

__all__ = ["RULES", "Direction", "Logistic", "Means", "Ridge", "Rule", "Worth", "binary", "find", "values", "worth"]

POOR = {"AUROC": 0.6, "r": 0.2}
"""Figures of held-out codes below which a direction says next to nothing of its attribute."""


class Rule(ABC):
    """How the weights of an attribute are found; a frozen dataclass."""

    @abstractmethod
    def weights(self, codes: Tensor, target: Tensor) -> Tensor:
        """Weights of any length but zero, shape (Z,), pointing to where the attribute grows.

        Args:
            codes: normalised, float64 of shape (N, Z).
            target: the attribute, float64 of shape (N,), not all equal.

        Raises:
            ArgumentError: if the attribute is of another sort than the rule needs.
        """


RULES: Registry[Rule] = Registry("direction", Rule, homes=("latentsb.directions",))


@RULES.register("ridge")
@dataclass(frozen=True, kw_only=True)
class Ridge(Rule):
    """Linear regression of the attribute, `w = (C + alpha I)⁻¹ c`; of two classes, Fisher's discriminant.

    C is the covariance of the normalised codes, c their covariance with the attribute. Of two classes with means μ₁, μ₀
    and one covariance S, w is parallel to `S⁻¹(μ₁ − μ₀)` at `alpha → 0`.

    Source: Hoerl and Kennard 1970, Ridge regression; Fisher 1936, The use of multiple measurements.

    Args:
        alpha: added to variances that are 1 on average; keeps directions in which codes hardly vary out of w.
    """

    alpha: Positive = 1e-2

    def __post_init__(self) -> None:
        enforce(self)

    def weights(self, codes: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        covariance = codes.T @ codes / len(codes)
        damped = covariance + self.alpha * torch.eye(len(covariance)).to(codes)
        found: Tensor = torch.linalg.solve(damped, pull(codes, target))
        return found


@RULES.register("means")
@dataclass(frozen=True, kw_only=True)
class Means(Rule):
    """Covariance with the attribute, `w = c`; of two classes, the difference of their means.

    The way in which codes differ where the attribute does, together with all that goes along with it in the data; where
    `ridge` looks for what tells the attribute apart from the rest.

    Source: Haufe et al. 2014, On the interpretation of weight vectors of linear models.
    """

    def weights(self, codes: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        return pull(codes, target)


@RULES.register("logistic")
@dataclass(frozen=True, kw_only=True)
class Logistic(Rule):
    """Logistic regression of an attribute of two values, `min Σ ln(1 + exp(−y (wᵀu + b))) + penalty |w|²/2`.

    Source: Cox 1958; the direction of Preechakul et al. 2022, Diffusion autoencoders, and of Kim et al. 2025.

    Args:
        penalty: see above.
    """

    penalty: Positive = 1.0

    def __post_init__(self) -> None:
        enforce(self)

    def weights(self, codes: Tensor, target: Tensor) -> Tensor:
        """See the class."""
        from sklearn.linear_model import LogisticRegression

        if not binary(target):
            raise ArgumentError("rule", "'logistic' is for classes and attributes of two values; this one has more")
        fitted = LogisticRegression(C=1 / self.penalty, max_iter=2000).fit(codes.numpy(), upper(target).numpy())
        return torch.from_numpy(fitted.coef_[0]).to(codes)


@dataclass(frozen=True)
class Worth:
    """What a direction says of its attribute, on codes that it was not fitted to.

    Args:
        figure: `AUROC` of the projection for two values, else its correlation `r`.
        value: the figure; .5 and 0 are chance.
        error: its standard error.
        count: codes.
        measured_on: which ones.
    """

    figure: str
    value: float
    error: float
    count: int
    measured_on: str = ""

    @property
    def poor(self) -> bool:
        """Whether pictures along this direction say next to nothing of the attribute."""
        return self.value < POOR[self.figure]

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.3f} ± {self.error:.3f} on {self.count:,} codes of {self.measured_on}"


@dataclass(frozen=True)
class Direction:
    """The direction of an attribute among codes.

    Args:
        attribute: its name.
        weights: w, shape (Z,), of length 1, float64.
        mean: m, shape (Z,).
        scale: s, shape (Z,).
        spread: σ.
        rule: how it was found.
        fitted_on: codes.
        worth: what it says of held-out codes, where that was measured.
    """

    attribute: str
    weights: Tensor
    mean: Tensor
    scale: Tensor
    spread: float
    rule: Rule
    fitted_on: int
    worth: Worth | None = None

    @property
    def step(self) -> Tensor:
        """What a strength of 1 adds to z, `σ s⊙w`, shape (Z,)."""
        return self.spread * self.scale * self.weights

    def move(self, z: Tensor, strength: float) -> Tensor:
        """`z + strength σ s⊙w`, shape (B, Z); a strength of 0 changes nothing."""
        return z + (strength * self.step).to(z)

    def project(self, z: Tensor) -> Tensor:
        """Place of codes along the direction in standard deviations from their mean, `wᵀu/σ`, float64 of shape (B,)."""
        return (z.cpu().double() - self.mean) / self.scale @ self.weights / self.spread

    def __repr__(self) -> str:
        return f"Direction({self.attribute!r}, {self.worth})"


def find(attribute: str, codes: Tensor, target: Tensor, rule: Rule) -> Direction:
    """Find the direction of an attribute.

    Args:
        attribute: its name.
        codes: as they are, shape (N, Z).
        target: the attribute, shape (N,): 0 and 1 of a class, any numbers else.
        rule: how.

    Raises:
        DataError: if the attribute is the same in all samples, or has nothing to do with any number of the codes.
    """
    z, y = codes.double(), target.double()
    if bool((y == y[0]).all()):
        raise DataError(f"'{attribute}' has the same value in all {len(y):,} samples: there is nothing to learn from")
    mean, scale = z.mean(0), z.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a number that never varies has weight 0
    u = (z - mean) / scale
    weights = rule.weights(u, y)
    length = float(weights.norm())
    spread = float((u @ weights).std(correction=0))
    if not (length > 0 and spread > 0):
        raise DataError(f"'{attribute}' has no direction: the codes do not vary with it")
    return Direction(attribute, weights / length, mean, scale, spread / length, rule, len(z))


def worth(direction: Direction, codes: Tensor, target: Tensor, measured_on: str) -> Worth:
    """Measure a direction on other codes.

    Source: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve, Eq. 2 (its standard error).

    Args:
        direction: found elsewhere.
        codes: as they are, shape (N, Z).
        target: the attribute, shape (N,), not all equal.
        measured_on: what the codes are.
    """
    p, y = direction.project(codes), target.double()
    if not binary(y):
        r = float(torch.corrcoef(torch.stack([p, y]))[0, 1])
        return Worth("r", r, (1 - r * r) / math.sqrt(max(1, len(y) - 1)), len(y), measured_on)
    from sklearn.metrics import roc_auc_score

    high = upper(y)
    area = float(roc_auc_score(high.numpy(), p.numpy()))
    ones, zeros = int(high.sum()), int((~high).sum())
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    variance = area * (1 - area) + (ones - 1) * (q1 - area**2) + (zeros - 1) * (q2 - area**2)
    return Worth("AUROC", area, math.sqrt(max(0.0, variance) / (ones * zeros)), len(y), measured_on)


def binary(target: Tensor) -> bool:
    """Whether an attribute has two values."""
    return values(target) == 2


def values(target: Tensor) -> int:
    """How many values an attribute has."""
    return len(set(target.tolist()))


def upper(target: Tensor) -> Tensor:
    """Where an attribute of two values has the larger one."""
    return target == target.max()


def pull(codes: Tensor, target: Tensor) -> Tensor:
    """Covariance of centred codes (N, Z) with an attribute (N,), shape (Z,)."""
    return codes.T @ (target - target.mean()) / len(codes)
