"""Quality and diversity of samples in the features of a named network, beside what real images reach."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, require
from latentsb.endpoints import Endpoint, EndpointBridge
from latentsb.errors import ArgumentError, CapabilityError, DataError
from latentsb.features import FeatureNetwork, Features, ImageNetMobileNet, MnistLeNet
from latentsb.metrics.base import METRICS, Data, Measured, Metric, Row, Subject, Table
from latentsb.metrics.distances import Cloud, KernelSums, frechet, frechet_distance, kid
from latentsb.metrics.linear import NUMBERS
from latentsb.metrics.manifold import Manifold, manifold
from latentsb.randomness import numpy_generator
from latentsb.ranges import Count, enforce
from latentsb.tensors import Spec

__all__ = ["Frechet", "frechet_distance", "kid", "suited"]

BATCH = 256
SAMPLES = "samples"


def suited(spec: Spec) -> Features:
    """The feature network where none is named: LeNet-5 for grey images of 28×28, MobileNetV2 for all others."""
    return MnistLeNet() if spec.shape == (1, 28, 28) else ImageNetMobileNet()


@METRICS.register("frechet")
@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """Fréchet and kernel distance, precision and recall, density and coverage of samples in a named network's features.

    The figure is the Fréchet distance between samples and training images; it bears the network's name, and only
    Inception's is called FID. It is too large in small sets, so as many other real images as there are samples stand
    beside: their figures are what perfect samples would reach. Of the same images stand there what the autoencoder
    makes of them and, for a bridge with codes, draws from their codes: what of the figure is the autoencoder's, and
    what the prior's. A Gaussian with mean and covariance of the pixels is a generator without a network. The kernel
    distance has no bias. Precision and the rest are of as many real images as there are samples. All images are
    rounded to eight bits first.

    Source: Heusel et al. 2017; Bińkowski et al. 2018; Kynkäänniemi et al. 2019; Naeem et al. 2020.

    Args:
        network: of the features (`latentsb list features`); `mnist_lenet` for grey images of 28×28 and `mobilenet_v2`
            for all others if None.
        real: images that samples are held against, at most; some are left for the floor where there are few.
        held_out: held-out images in place of training images.
        decoded: draw images from codes too; it costs as much as the samples do.
        endpoint: of these draws, another way to x1 than the recipe's, where the bridge leaves that open.
        near: neighbours of precision and recall.
        wide: neighbours of density and coverage.
        seed: of the choice of real images and of the Gaussian.
    """

    network: Features | None = None
    real: Count = 10_000
    held_out: bool = False
    decoded: bool = True
    endpoint: Endpoint | None = None
    near: Count = 3
    wide: Count = 5
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """The data must be images, and the network's weights there."""
        spec = subject.train.source.spec
        if len(spec.shape) != 3:
            raise CapabilityError(f"the metric 'frechet' needs images; these data are of shape {spec.shape}")
        if self.endpoint is not None:
            require(subject.bridge, EndpointBridge, "frechet.endpoint")
        if self.held_out and subject.held is None:
            raise CapabilityError("frechet.held_out: this run has no held-out data")
        try:
            (self.network or suited(spec)).require()
        except DataError as error:  # which speaks of its own keys
            raise DataError(str(error).replace("path=…", "frechet.network.path=…")) from error

    def load(self, subject: Subject) -> FeatureNetwork:
        """The network, on the bridge's device.

        Raises:
            CapabilityError: if it reads other images.
        """
        spec = subject.train.source.spec
        network = (self.network or suited(spec)).load()
        try:
            network.check(spec.shape)
        except ArgumentError as error:
            raise CapabilityError(str(error)) from error
        return network.to(subject.bridge.device)

    def measure(self, subject: Subject) -> Measured:
        """Measure; smaller is better."""
        self.require(subject)
        network = self.load(subject)
        samples = subject.samples().images
        if len(samples) <= max(self.near, self.wide):
            raise CapabilityError(f"the metric 'frechet' needs more than {len(samples)} samples: -n 1000")
        chosen = self._choose(subject, len(samples))
        reference = torch.cat([_real(subject, network, *part) for part in chosen.reference])
        features = {SAMPLES: _seen(subject, network, samples)}
        features |= self._floors(subject, network, chosen)
        pixels, fitted_on = self._gaussian(subject, chosen, len(samples))
        features["Gaussian of the pixels"] = _seen(subject, network, pixels)
        return self._told(subject, network, chosen, reference, features, fitted_on)

    def _choose(self, subject: Subject, n: int) -> _Chosen:
        """Images to hold samples against, and n others: of the other set first, then of those that are left."""
        data, other = (subject.test, subject.train) if self.held_out else (subject.train, subject.held)
        spare = max(0, n - (0 if other is None else len(other)))
        size = max(len(data) - spare, len(data) // 2)
        rows = data.rows(min(self.real, size), self.seed, "images to compare with")
        others = [] if other is None else [(other, other.rows(n, self.seed, "other real images"))]
        missing = n - sum(len(part) for _, part in others)
        if missing:
            left = np.setdiff1d(np.arange(len(data)), rows)
            left = numpy_generator(self.seed, "images left over").permutation(left)[:missing]
            others += [(data, np.sort(left))] if len(left) else []
        return _Chosen([(data, rows)], others)

    def _floors(self, subject: Subject, network: FeatureNetwork, chosen: _Chosen) -> dict[str, Tensor]:
        """Features of other real images, of what the autoencoder makes of them, and of draws from their codes."""
        name = f"real: other {chosen.told}"
        found = {name: torch.cat([_real(subject, network, *part) for part in chosen.others])}
        draws = self.decoded and isinstance(subject.bridge, EncodingBridge)
        if subject.autoencoder.is_identity and not draws:
            return found
        through, decoded = [], []
        for data, rows in chosen.others:
            items = data.read(rows)
            if not subject.autoencoder.is_identity:
                device = subject.bridge.device
                parts = (subject.autoencoder.round_trip(x.to(device)).cpu() for x in torch.split(items.x0, BATCH))
                through.append(_seen(subject, network, torch.cat(list(parts))))
            if draws:
                cond = subject.known(items.cond)
                made = subject.reconstruct(
                    items.x0, mode="perceptual", seed=self.seed, cond=cond, endpoint=self.endpoint
                )
                decoded.append(_seen(subject, network, made.bridge))
        found |= {"the same, through the autoencoder": torch.cat(through)} if through else {}
        return found | ({"the same, drawn from their codes": torch.cat(decoded)} if decoded else {})

    def _gaussian(self, subject: Subject, chosen: _Chosen, n: int) -> tuple[Tensor, int]:
        """Draws of the Gaussian with mean and covariance of the pixels, `m + Xᵀ w / √(N − 1)`; and N."""
        (data, rows), *_ = chosen.reference
        spec = data.source.spec
        rows = rows[: max(2, NUMBERS // spec.numel)]
        x = data.read(rows).x0.flatten(1).float()
        mean = x.mean(0)
        x = (x - mean) / math.sqrt(len(x) - 1)
        rng = numpy_generator(self.seed, "Gaussian of the pixels")
        parts = []
        for first in range(0, n, BATCH):
            weights = torch.from_numpy(rng.standard_normal((min(BATCH, n - first), len(x)), dtype=np.float32))
            parts.append((mean + weights @ x).clamp(-1, 1))
        return torch.cat(parts).reshape(n, *spec.shape), len(x)

    def _told(
        self,
        subject: Subject,
        network: FeatureNetwork,
        chosen: _Chosen,
        reference: Tensor,
        features: dict[str, Tensor],
        fitted_on: int,
    ) -> Measured:
        """The figures of every set of features."""
        real, kernels = Cloud(reference), KernelSums(reference)
        n = len(features[SAMPLES])
        among = reference[torch.from_numpy(numpy_generator(self.seed, "neighbours").permutation(len(reference))[:n])]
        far, spread, near = {}, {}, {}
        with subject.watch("comparing features", len(features)) as advance:
            for name, found in features.items():
                far[name], spread[name] = frechet(real, Cloud(found)), kid(kernels, found)
                near[name] = self._near(among, found)
                advance(1)
        data = chosen.reference[0][0]
        distances: list[Row] = [
            (name, [far[name].value, far[name].error, spread[name].value, spread[name].error, len(found)])
            for name, found in features.items()
        ]
        shares: list[Row] = [(name, [*near[name], min(len(features[name]), len(among))]) for name in near if near[name]]
        protocol: dict[str, Any] = {
            **{key: value for key, value in vars(self).items() if key != "endpoint"},  # which is compared
            "network": network.identity(),
            "measured_against": data.name,
            "real": len(reference),
            "count": n,
            "other_real": sum(len(rows) for _, rows in chosen.others),
            "gaussian_fitted_on": fitted_on,
            "neighbours_among": len(among),
            "images": "rounded to eight bits",
        }
        title = f"distance to {len(reference):,} images of the {data.name} in {reference.shape[1]} features"
        columns = ["", network.frechet_name, "± SE", network.kernel_name, "± SE", "images"]
        parts = ["precision", "recall", "density", "coverage"]
        neighbours = f"among {len(among):,} of them (k = {self.near}, density and coverage {self.wide})"
        small = "fewer samples than features" if n <= reference.shape[1] else ""
        return Measured(
            far[SAMPLES].value,
            {name: estimate.value for name, estimate in far.items() if name != SAMPLES},
            protocol,
            {"count": n, **({"bias": f"large: {small}; compare at equal numbers only"} if small else {})},
            of=f"{SAMPLES}: {network.frechet_name}",
            error=far[SAMPLES].error,
            better="lower",
            tables=(
                Table(title, columns, distances, better=dict.fromkeys((columns[1], columns[3]), "lower")),
                Table(neighbours, ["", *parts, "images"], shares, better=dict.fromkeys(parts, "higher")),
            ),
        )

    def _near(self, among: Tensor, found: Tensor) -> Manifold | tuple[()]:
        """Of as many as there are real ones; nothing where there are too few."""
        found = found[: len(among)]
        fits = len(among) > max(self.near, self.wide) and len(found) > self.near
        return manifold(among, found, near=self.near, wide=self.wide) if fits else ()


@dataclass(frozen=True)
class _Chosen:
    """Rows of real images: those that samples are held against, and others."""

    reference: list[tuple[Data, np.ndarray]]
    others: list[tuple[Data, np.ndarray]]

    @property
    def told(self) -> str:
        """What the others are."""
        return " and ".join("held-out data" if data.held_out else "training data" for data, _ in self.others)


def _eight_bits(x: Tensor) -> Tensor:
    """The nearest of 256 levels of [-1, 1], as a file of the image has it."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _seen(subject: Subject, network: FeatureNetwork, images: Tensor) -> Tensor:
    """Features of images as they would be written, in eight bits."""
    with subject.watch(f"{network.name} reads", len(images)) as advance:
        found = []
        for part in torch.split(images, BATCH):
            found.append(network.features_of(_eight_bits(part)))
            advance(len(part))
    return torch.cat(found)


def _real(subject: Subject, network: FeatureNetwork, data: Data, rows: np.ndarray) -> Tensor:
    """Features of real images, kept for the next time."""

    def compute() -> Tensor:
        with subject.watch(f"{network.name} reads the {data.name}", len(rows)) as advance:
            found = []
            for first in range(0, len(rows), BATCH):
                x = data.read(rows[first : first + BATCH]).x0
                found.append(network.features_of(_eight_bits(x)))
                advance(len(x))
        return torch.cat(found)

    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    of = {"network": network.identity(), "data": data.source.fingerprint(), "rows": digest, "images": "eight bits"}
    return subject.kept("features", of, compute)
