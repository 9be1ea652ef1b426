"""Reconstruction: what a code keeps of an image, beside a linear code of the same length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latentsb.bridge import EncodingBridge, require
from latentsb.endpoints import Endpoint, EndpointBridge
from latentsb.metrics import perceptual
from latentsb.metrics.base import METRICS, Measured, Metric, Subject, Table
from latentsb.metrics.linear import Components
from latentsb.metrics.perceptual import Distance, Perceptual
from latentsb.metrics.similarity import mse, psnr, ssim
from latentsb.ranges import Count, enforce
from latentsb.registry import describe

__all__ = ["BETTER", "Reconstructed", "averages", "likeness"]

WORD = "reconstruction"
MODES: tuple[Literal["faithful", "perceptual"], ...] = ("faithful", "perceptual")
AUTOENCODER, MEAN = "autoencoder alone", "mean image"
BETTER = {"MSE on [0, 1]": "lower"} | dict.fromkeys(("PSNR of mean MSE", "mean PSNR", "SSIM"), "higher")


@METRICS.register(WORD)
@dataclass(frozen=True, kw_only=True)
class Reconstructed(Metric):
    """Squared error, PSNR and SSIM of held-out images decoded from their codes, beside PCA of equal dimension.

    `faithful` is the mean given the code, one call; `perceptual` a draw. The figure is the mean squared error of the
    faithful decoding on [0, 1]. PSNR stands in two conventions, which differ by Jensen's inequality: of the mean
    error, `−10 log10 mean MSE`, and the mean over images of each one's own, which is never smaller. PCA and the mean
    image are fitted to training images, and clamped to the range of images like the rest.

    A perceptual distance is measured if one is asked for; no other ever stands in for it.

    Source: Wang et al. 2004 (SSIM); Kim et al. 2025, Diffusion bridge autoencoders, Table 2.

    Args:
        images: held-out images.
        fitted_on: training images, at most, that PCA is fitted to.
        perceptual: a distance beside (`latentsb list perceptual`); none if None.
        endpoint: another way to x1 than the recipe's (`latentsb list endpoint`), where the bridge leaves that open.
        seed: of the choice of images, of PCA and of the draws.
    """

    images: Count = 500
    fitted_on: Count = 20_000
    perceptual: Perceptual | None = None
    endpoint: Endpoint | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For bridges with codes."""
        return "the bridge has codes" if isinstance(subject.bridge, EncodingBridge) else ""

    def require(self, subject: Subject) -> None:
        """The bridge must encode, and the perceptual distance's files be there."""
        require(subject.bridge, EncodingBridge, "the metric 'reconstruction'")
        if self.endpoint is not None:
            require(subject.bridge, EndpointBridge, "reconstruction.endpoint")
        if self.perceptual is not None:
            perceptual.require(self.perceptual, f"{WORD}.perceptual")

    def load(self, subject: Subject) -> Distance | None:
        """The perceptual distance, on the bridge's device.

        Raises:
            CapabilityError: if it reads other images.
        """
        if self.perceptual is None:
            return None
        shape = subject.train.source.spec.shape
        return perceptual.load(self.perceptual, shape, f"{WORD}.perceptual").to(subject.bridge.device)

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is the faithful decoding's mean squared error on [0, 1] (of vectors as they are)."""
        bridge = require(subject.bridge, EncodingBridge, "the metric 'reconstruction'")
        distance = self.load(subject)
        rows = subject.test.rows(self.images, self.seed, "reconstructed images")
        items = subject.test.read(rows)
        cond = subject.known(items.cond)
        linear = Components.fit(subject.train, bridge.z_dim, self.fitted_on, self.seed)
        made: dict[str, Tensor] = {}
        calls = {}
        for mode in MODES:
            found = subject.reconstruct(items.x0, mode=mode, seed=self.seed, cond=cond, endpoint=self.endpoint)
            made[f"bridge, {mode}"], calls[mode] = found.bridge, found.calls
            if not subject.autoencoder.is_identity:
                made[AUTOENCODER] = found.autoencoder
        x = items.x0.float()
        own = f"PCA, {len(linear.directions)} components"
        made |= {own: linear.round_trip(x), MEAN: linear.mean.reshape(1, *x.shape[1:]).expand_as(x)}
        pictures = x.ndim == 4
        figures = {name: compare(x, y.float(), pictures=pictures) for name, y in made.items()}
        if distance is not None:
            for name, y in made.items():
                apart = distance.between(x, y.float().clamp(-1, 1)).double()
                figures[name] |= {"perceptual": float(apart.mean()), "perceptual_se": _se(apart)}
        better = dict(BETTER if pictures else {"MSE": "lower"})
        better |= {} if distance is None else {distance.name: "lower"}
        columns = ["", "MSE on [0, 1]", "± SE", "PSNR of mean MSE", "mean PSNR", "± SE", "SSIM", "± SE"]
        columns = columns if pictures else ["", "MSE", "± SE"]
        table = Table(
            f"{len(x)} samples of the {subject.test.name}, code of {bridge.z_dim} numbers",
            columns if distance is None else [*columns, distance.name, "± SE"],
            [(name, list(row.values())) for name, row in figures.items()],
            better=better,
        )
        protocol: dict[str, Any] = {
            **{key: value for key, value in vars(self).items() if key != "endpoint"},  # which is compared
            "perceptual": None if distance is None else distance.identity(),
            "measured_on": subject.test.name,
            "count": len(x),
            "z_dim": bridge.z_dim,
            "shape": list(x.shape[1:]),
            "range": "[0, 1], PCA and all others clamped" if pictures else "as they are",
            "pca_fitted_on": linear.fitted_on,
        }
        details = {"count": len(x), "figures": figures, "calls": calls, "measured on": subject.test.name}
        if isinstance(bridge, EndpointBridge):
            details["endpoint"] = describe(self.endpoint or bridge.chosen)
        return Measured(
            figures["bridge, faithful"]["mse"] or 0.0,
            {name: row["mse"] or 0.0 for name, row in figures.items() if name != "bridge, faithful"},
            protocol,
            details,
            of="bridge, faithful: MSE",
            digits=5,
            error=figures["bridge, faithful"]["se"],
            better="lower",
            tables=(table,),
            hidden=frozenset(("figures", "calls")),
        )


def compare(originals: Tensor, made: Tensor, *, pictures: bool) -> dict[str, float | None]:
    """Mean squared error with its standard error; of images on [0, 1], clamped, with both PSNRs and SSIM.

    Args:
        originals: shape (B, C, H, W) in [-1, 1], or vectors.
        made: same shape.
        pictures: they are images.

    Returns:
        None in place of an infinite PSNR.
    """
    if not pictures:
        errors = mse(originals, made).double()
        return {"mse": float(errors.mean()), "se": _se(errors)}
    return averages(likeness(originals, made))


def likeness(originals: Tensor, made: Tensor) -> dict[str, Tensor]:
    """Squared error, PSNR and SSIM of each image, float64 of shape (B,), on [0, 1] and clamped to it.

    Args:
        originals: shape (B, C, H, W) in [-1, 1].
        made: same shape.
    """
    a, b = (originals + 1) / 2, ((made + 1) / 2).clamp(0, 1)
    parts = [ssim(a[k : k + 256], b[k : k + 256], data_range=1.0) for k in range(0, len(a), 256)]
    found = {"mse": mse(a, b), "psnr": psnr(a, b, data_range=1.0), "ssim": torch.cat(parts)}
    return {name: value.double() for name, value in found.items()}


def averages(found: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Means over images with their standard errors, PSNR in both conventions; None in place of an infinite one.

    Args:
        found: of each image, as `likeness` returns it.
    """
    mean, each = float(found["mse"].mean()), found["psnr"]
    finite = bool(each.isfinite().all())
    return {
        "mse": mean,
        "se": _se(found["mse"]),
        "psnr_of_mean_mse": -10 * math.log10(mean) if mean > 0 else None,
        "mean_psnr": float(each.mean()) if finite else None,
        "mean_psnr_se": _se(each) if finite else None,
        "ssim": float(found["ssim"].mean()),
        "ssim_se": _se(found["ssim"]),
    }


def _se(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0
