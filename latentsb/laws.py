"""Laws: what stands at the two ends of a bridge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latentsb.errors import ArgumentError, CapabilityError
from latentsb.randomness import Draws
from latentsb.registry import Registry
from latentsb.tensors import Condition, Spec

__all__ = ["LAWS", "Density", "Ends", "FittedGaussian", "Gaussian", "Law", "Sampled"]


class Law(ABC):
    """A probability law of samples of one shape; a `Sampled` one can be drawn from, a `Density` evaluated."""

    spec: Spec


class Sampled(Law):
    """A law that can be drawn from."""

    @abstractmethod
    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw n samples, shape (n, *spec.shape), float32 on the CPU."""


class Density(Law):
    """A law whose log-density is known, perhaps up to a constant."""

    @abstractmethod
    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Log-density of x, shape (B,); differentiable."""


LAWS: Registry[Law] = Registry("law", Law, homes=("latentsb.laws",))


@dataclass(frozen=True)
class Ends:
    """The two laws that a bridge joins, and the shapes that its networks must have.

    Args:
        spec: of both ends.
        x0: data end; None where the samples arrive in batches only.
        x1: other end; None where the bridge makes it itself (DBAE) or batches bring it.
        cond: shapes of the conditions that batches carry.
        images: shape of the pixels that batches carry, where they do.
        two_sided: batches bring x1.
    """

    spec: Spec
    x0: Law | None = None
    x1: Law | None = None
    cond: Mapping[str, Spec] = field(default_factory=dict)
    images: Spec | None = None
    two_sided: bool = False


@LAWS.register("gaussian")
class Gaussian(Sampled, Density):
    """A normal law with given mean and covariance, standard where they are not given.

    Source: closed form.

    Args:
        spec: shape of a sample.
        mean: one number per element of a sample, in the order of its memory; zero if None.
        cov: symmetric positive semi-definite matrix over those elements; the identity if None.

    Raises:
        ArgumentError: if a size does not fit the shape, or `cov` is not symmetric positive semi-definite.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        mean: tuple[float, ...] | None = None,
        cov: tuple[tuple[float, ...], ...] | None = None,
    ) -> None:
        self.spec = spec
        self.mean, self.root = torch.zeros(spec.numel, dtype=torch.float64), None
        if mean is not None:
            if len(mean) != spec.numel:
                raise ArgumentError("mean", f"needs {spec.numel} numbers for shape {spec.shape}, found {len(mean)}")
            self.mean = torch.tensor(mean, dtype=torch.float64)
        if cov is not None:
            if {len(cov), *map(len, cov)} != {spec.numel}:
                raise ArgumentError("cov", f"needs {spec.numel} rows and columns for shape {spec.shape}")
            self.root = _root(torch.tensor(cov, dtype=torch.float64))

    @property
    def standard(self) -> bool:
        """Whether mean and covariance are those of a standard normal law."""
        return self.root is None and not bool(self.mean.any())

    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw n samples, shape (n, *spec.shape), float32 on the CPU; `cond` has no effect."""
        if self.root is None:
            standard = draws.normal("gaussian", torch.empty(n, *self.spec.shape))
            return standard + self.mean.float().reshape(self.spec.shape)
        noise = draws.normal("gaussian", torch.empty(n, self.spec.numel, dtype=torch.float64))
        return (self.mean + noise @ self.root.T).float().reshape(n, *self.spec.shape)

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Normal log-density, shape (B,), in the precision of x or better.

        Raises:
            CapabilityError: if the covariance is singular, since there is no density then.
        """
        return _log_normal(x.reshape(len(x), -1), self.mean, self.root)


class FittedGaussian(nn.Module, Sampled, Density):
    """The normal law with the mean and the full covariance of data, fitted by streaming sums in float64.

    The mean and a root of the covariance are buffers, so a checkpoint holds them. A covariance without full rank
    (fewer samples than dimensions, or constant dimensions) is kept as it is: samples then stay in the affine
    subspace that the data span, and there is no density.

    Source: the Gaussian of greatest likelihood.

    Args:
        dim: length of the vectors.
    """

    mean: Tensor
    root: Tensor
    count: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spec = Spec((dim,))
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("root", torch.zeros(dim, dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def fitted(self) -> bool:
        """Whether data have been seen."""
        return int(self.count) > 0

    @property
    def cov(self) -> Tensor:
        """Covariance, shape (dim, dim), float64."""
        return self.root @ self.root.T

    @property
    def rank(self) -> int:
        """Dimensions in which the law has spread."""
        return int((self.root.square().sum(0) > 0).sum())

    @torch.no_grad()
    def fit(self, vectors: Iterable[Tensor]) -> FittedGaussian:
        """Fit mean and covariance (divided by the count, the likelihood's own) to batches of vectors.

        Batches are merged by their own means (Chan et al. 1979), so large offsets cost no digits.

        Args:
            vectors: each of shape (B, dim), any float type and device; the law does not depend on the split.

        Returns:
            The law itself.

        Raises:
            ValueError: if there is no vector at all, or one is not finite.
        """
        device = self.mean.device
        count, mean = 0, torch.zeros(self.spec.numel, dtype=torch.float64, device=device)
        scatter = torch.zeros(self.spec.numel, self.spec.numel, dtype=torch.float64, device=device)
        for batch in vectors:
            wide = batch.detach().to(device, torch.float64)
            n, centre = len(wide), wide.mean(0)
            if n == 0:
                continue
            gap, deviations = centre - mean, wide - centre
            scatter += deviations.T @ deviations + torch.outer(gap, gap) * (count * n / (count + n))
            count += n
            mean = mean + gap * (n / count)
        if count == 0:
            raise ValueError("a Gaussian cannot be fitted to no vectors")
        if not bool(scatter.isfinite().all()):
            raise ValueError("a Gaussian cannot be fitted to vectors that are not finite")
        self.mean.copy_(mean)
        self.root.copy_(_root((scatter / count).cpu()))
        self.count.fill_(count)
        return self

    def sample(self, n: int, draws: Draws, cond: Condition | None = None) -> Tensor:
        """Draw n vectors, shape (n, dim), float32 on the CPU; `cond` has no effect.

        Raises:
            CapabilityError: before `fit`.
        """
        self._require_fit()
        noise = draws.normal("gaussian", torch.empty(n, self.spec.numel, dtype=torch.float64))
        return (self.mean.cpu().double() + noise @ self.root.cpu().double().T).float()

    def log_prob(self, x: Tensor, cond: Condition | None = None) -> Tensor:
        """Normal log-density of vectors of shape (B, dim), shape (B,).

        Raises:
            CapabilityError: before `fit`, or if the covariance is singular, since there is no density then.
        """
        self._require_fit()
        return _log_normal(x, self.mean, self.root)

    def _require_fit(self) -> None:
        if not self.fitted:
            raise CapabilityError("this Gaussian has not been fitted to data yet")


def _root(cov: Tensor) -> Tensor:
    """`R` with `R Rᵀ = cov` and one zero column for every direction without spread, float64.

    An eigen-root rather than Cholesky's, since covariances of data may be singular.

    Raises:
        ArgumentError: if cov is not symmetric positive semi-definite to rounding.
    """
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    # numpy's and LAPACK's bound on what rounding leaves of a zero eigenvalue.
    rounding = float(values.abs().max()) * len(cov) * torch.finfo(cov.dtype).eps
    if not torch.allclose(cov, cov.T, rtol=1e-9, atol=rounding) or float(values.min()) < -rounding:
        raise ArgumentError("cov", "must be symmetric and positive semi-definite")
    root: Tensor = vectors * torch.where(values > rounding, values, torch.zeros_like(values)).sqrt()
    return root


def _log_normal(x: Tensor, mean: Tensor, root: Tensor | None) -> Tensor:
    """Log-density of N(mean, root rootᵀ) for rows of x; root None is the identity."""
    wide = torch.promote_types(x.dtype, torch.float32)
    deviations = x.to(wide) - mean.to(x.device, wide)
    constant = mean.numel() / 2 * math.log(2 * math.pi)
    if root is None:
        return -deviations.square().sum(1) / 2 - constant
    scales = root.square().sum(0).sqrt().to(x.device)
    if not bool((scales > 0).all()):
        rank = int((scales > 0).sum())
        raise CapabilityError(f"a covariance of rank {rank} in {len(scales)} dimensions has no density")
    # The columns of an eigen-root are orthogonal, so dividing twice by their lengths inverts it.
    whitened = deviations.double() @ (root.to(x.device, torch.float64) / scales.square())
    return (-whitened.square().sum(1) / 2 - scales.log().sum() - constant).to(deviations.dtype)
