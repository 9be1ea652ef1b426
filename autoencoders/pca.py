"""Principal components: the linear autoencoder of least squared error, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsb.autoencoder import AUTOENCODERS, Autoencoder, Moments, sizes_near
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.normalisers import Channel, Normaliser
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Batch, Spec
from latentsb.trainable import Loss

__all__ = ["PCA", "Covariance"]

LARGEST = 16_384
"""Numbers in a sample or patch; their covariance takes 2 GiB."""


class Covariance:
    """Mean and scatter of vectors that arrive in batches, in float64.

    Batches are joined by the update of Chan, Golub and LeVeque 1979, which does not subtract large numbers.

    Args:
        dim: D, of the vectors.
        device: where they are.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Take in rows (N, D)."""
        rows = rows.double()
        mean = rows.mean(0)
        apart, count = mean - self.mean, self.count + len(rows)
        between = apart * math.sqrt(self.count * len(rows) / count)
        centred = torch.cat([rows - mean, between[None]])
        self.scatter.addmm_(centred.T, centred)
        self.mean += apart * (len(rows) / count)
        self.count = count

    def largest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest eigenvalues of the covariance, falling, and their unit vectors as columns (D, k).

        The covariance is that of the population: scatter over count. Of a vector's two signs that one is taken in
        which its largest entry is positive.
        """
        from scipy.linalg import eigh

        dim = len(self.mean)
        values, vectors = eigh((self.scatter / self.count).cpu().numpy(), subset_by_index=(dim - k, dim - 1))
        found, columns = torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)
        signs = columns.gather(0, columns.abs().argmax(0, keepdim=True)).sign()
        return found.clamp_min(0.0), columns * signs


@AUTOENCODERS.register("pca")
class PCA(Autoencoder):
    """Principal components of whole samples, or of patches: the best linear code, found in one pass over the data.

    `z = Wᵀ (x − μ)` and `x̂ = W z + μ`, with the k leading eigenvectors of the training data's covariance as columns
    of W. The mean squared error is the sum of the other eigenvalues. No stage trains it: it is fitted to the training
    data (all ends, mirror images too) before the first encoding.

    Source: Pearson 1901, On lines and planes of closest fit; Tipping and Bishop 1999 (its density).

    Args:
        images: shape of one sample; of any rank where `patch` is null.
        components: k, numbers in the latent, or channels of it where there are patches.
        patch: side of the square patches that are coded one by one, with the same components, into a latent
            (k, H/patch, W/patch); null: the sample as a whole, into a vector.
        normaliser: of the latents; `channel` gives every component the standard deviation 1 (and so whitens).

    Raises:
        ArgumentError: if the patch does not divide the sides, there are more components than numbers, or more
            numbers than a covariance is computed of.
    """

    trained = deterministic = True

    def __init__(
        self, images: Spec, *, components: Count = 64, patch: Count | None = None, normaliser: Normaliser = Channel()
    ) -> None:
        dim, grid = _sizes(images, components, patch)
        super().__init__(images, Spec((components, *grid)), normaliser=normaliser)
        self.patch, self.bounded, self.any_size = patch, len(images.shape) == 3, patch is not None
        wide = torch.float64
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("components", torch.zeros(dim, components))
        self.register_buffer("variances", torch.zeros(components, dtype=wide))
        self.register_buffer("dropped", torch.tensor(0.0, dtype=wide))
        self.count: Tensor
        self.mean: Tensor
        self.components: Tensor
        self.variances: Tensor
        self.dropped: Tensor

    @property
    def needs_fit(self) -> bool:
        """No data have been seen."""
        return not bool(self.count)

    def fit(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """Find mean and components in one pass, exactly, in float64.

        Raises:
            DataError: if the data vary in fewer directions than components are asked for.
        """
        dim, k = self.components.shape
        found = Covariance(dim, self.device)
        for rows in _gathered((self._columns(batch.data).mT.flatten(0, 1) for batch in batches()), dim):
            found.add(rows)
        values, vectors = found.largest(k)
        # Of more, a component would be the rounding of zero, which the normaliser would blow up.
        rank = int((values > dim * torch.finfo(torch.float64).eps * values[0]).sum())
        if rank < k:
            what = "samples" if self.patch is None else "patches"
            told = f"{found.count:,} {what} vary in {rank} directions, components: {k} asks for more"
            raise DataError(f"pca: the {told}; take components: {max(rank, 1)} or fewer")
        self.count.fill_(found.count)
        self.mean.copy_(found.mean)
        self.components.copy_(vectors)
        self.variances.copy_(values)
        self.dropped.copy_((found.scatter.trace().cpu() / found.count - values.sum()).clamp_min(0.0))

    def moments(self, images: Tensor) -> Moments:
        """The coordinates along the components; there is no posterior.

        Raises:
            CapabilityError: if it was not fitted to data.
        """
        self._require()
        codes = torch.einsum("bdn,dk->bkn", self._columns(images) - self.mean[:, None], self.components)
        if self.patch is None:
            return Moments(codes[..., 0])
        height, width = images.shape[-2:]
        return Moments(codes.reshape(*codes.shape[:2], height // self.patch, width // self.patch))

    def raw_decode(self, raw: Tensor) -> Tensor:
        """The point of the plane of the components.

        Raises:
            CapabilityError: if it was not fitted to data.
        """
        self._require()
        columns = torch.einsum("bkn,dk->bdn", raw.flatten(2) if self.patch else raw[..., None], self.components)
        columns = columns + self.mean[:, None]
        if self.patch is None:
            return columns.reshape(-1, *self.images.shape)
        return F.pixel_shuffle(columns.reshape(*columns.shape[:2], *raw.shape[-2:]), self.patch)

    def log_prob(self, images: Tensor) -> Tensor:
        """Log density of samples under probabilistic principal components, in nats, shape (B,), float64.

        A sample, or each of its patches, is `N(μ, W (Λ − σ²) Wᵀ + σ² I)` with σ² the mean of the other eigenvalues:
        of all such models the most likely one. Source: Tipping and Bishop 1999, Eqs. 6 to 9.

        Raises:
            CapabilityError: if it was not fitted to data, or as many components are kept as there are numbers, so
                that nothing tells σ².
        """
        self._require()
        dim, k = self.components.shape
        if dim == k:
            raise CapabilityError("pca: a density needs fewer components than numbers")
        noise = self.dropped / (dim - k)
        apart = self._columns(images).double() - self.mean.double()[:, None]
        codes = torch.einsum("bdn,dk->bkn", apart, self.components.double())
        outside = (apart.square().sum(1) - codes.square().sum(1)) / noise
        within = (codes.square() / self.variances[:, None]).sum(1)
        volume = self.variances.log().sum() + (dim - k) * noise.log() + dim * math.log(2 * math.pi)
        return -0.5 * (outside + within + volume).sum(1)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """None: nothing is found by gradients.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError("pca is fitted in closed form before its first use; leave out the stage that trains it")

    def _columns(self, images: Tensor) -> Tensor:
        """Samples (B, …) as vectors (B, D, N): one each, or one per patch."""
        return images.flatten(1)[..., None] if self.patch is None else F.pixel_unshuffle(images, self.patch).flatten(2)

    def _require(self) -> None:
        if self.needs_fit:
            raise CapabilityError("pca is not fitted to data yet; training does so first, or `fit`")


def _gathered(parts: Iterable[Tensor], least: int) -> Iterator[Tensor]:
    """Rows in larger parts: each costs a pass over the covariance, however few rows it has."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= least:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _sizes(images: Spec, components: int, patch: int | None) -> tuple[int, tuple[int, ...]]:
    """Numbers in what is coded, and the latent's grid."""
    dim, what = images.numel, "samples"
    grid: tuple[int, ...] = ()
    if patch is not None:
        if len(images.shape) != 3:
            raise ArgumentError("patch", f"patches are cut from images (C, H, W), found samples of {images.shape}")
        channels, height, width = images.shape
        if height % patch or width % patch:
            raise ArgumentError("patch", f"{patch} does not divide {sizes_near(images, patch)}")
        dim, grid, what = channels * patch**2, (height // patch, width // patch), "patches"
    if dim > LARGEST:
        told = f"{what} have {dim:,} numbers, components are computed of {LARGEST:,} at most"
        raise ArgumentError("patch", f"{told}; smaller ones are coded one by one: patch: 8")
    if components > dim:
        raise ArgumentError("components", f"found {components}; {what} have {dim:,} numbers")
    return dim, grid
