"""Denoising: the error of a denoiser at every noise level, beside the best that Gaussians fitted to the data reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, EncodingBridge, require
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.metrics.base import METRICS, Measured, Metric, Subject, Table
from latentsb.metrics.gaussian import CHANNEL, FOLDS, Gaussian, fit
from latentsb.process.times import time_of_sigma
from latentsb.randomness import Draws
from latentsb.ranges import Count, Positive, enforce
from latentsb.tensors import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Denoising", "time_of_level"]

Laws = dict[str, list[Gaussian]]
BEST, RATIO, ERROR = "best Gaussian", "bridge / best", "± SE"
MEAN, IDENTITY = "mean", "identity"


def time_of_level(bridge: DenoisingBridge, sigma: float) -> Tensor | None:
    """The time at which a bridge has the noise level `sigma_eff = sigma`, float64 of shape (); None where it never has.

    `sigma_eff` grows with t.
    """
    lowest, highest = bridge.marginal(torch.tensor([bridge.t_min, bridge.t_max], dtype=torch.float64)).sigma_eff
    if not lowest <= sigma <= highest:
        return None
    return time_of_sigma(bridge, torch.tensor([sigma], dtype=torch.float64))[0]


@METRICS.register("denoising")
@dataclass(frozen=True, kw_only=True)
class Denoising(Metric):
    """Error of the denoiser on held-out latents at each noise level, beside Gaussian (Wiener) denoisers.

    At `y = x0 + σ ε` it is `E|D − x0|²` per dimension. The Gaussians are fitted to the training latents, and all
    denoisers see the same noise, so that differences have small errors. The figure is the largest ratio of the
    bridge's error to that of the best Gaussian over the noise levels: below 1 the bridge knows more of the data than
    their second moments, at every level. A bridge with codes sees `z` and `x1` of the very sample that it denoises;
    that ratio then says how much the code helps, and is no claim about the data's law.

    Source: Karras et al. 2022, EDM, Eq. 2; Wiener 1949.

    Args:
        levels: how many noise levels, evenly spaced in log σ.
        lowest: smallest of them, in units of the normalised latents.
        highest: largest of them.
        images: held-out samples.
        fitted_on: training samples, at most, that the Gaussians are fitted to.
        batch: samples at a time; changes the figure by rounding only.
        seed: of the choice of samples and of the noise.
    """

    levels: Count = 12
    lowest: Positive = 0.01
    highest: Positive = 80.0
    images: Count = 256
    fitted_on: Count = 10_000
    batch: Count = 64
    seed: int = 0

    def __post_init__(self) -> None:
        enforce(self)
        if self.highest < self.lowest:
            raise ArgumentError("highest", f"must be at least lowest = {self.lowest}, found {self.highest}")

    @classmethod
    def suits(cls, subject: Subject) -> str:
        """For bridges that denoise; what codes are worth is the reconstruction's to say."""
        denoises = isinstance(subject.bridge, DenoisingBridge) and not isinstance(subject.bridge, EncodingBridge)
        return "the bridge denoises" if denoises else ""

    def require(self, subject: Subject) -> None:
        """The bridge must denoise."""
        require(subject.bridge, DenoisingBridge, "the metric 'denoising'")
        if min(len(subject.train), self.fitted_on) < FOLDS or len(subject.test) < 2:
            raise CapabilityError(f"the metric 'denoising' needs at least {FOLDS} training samples and 2 held out")

    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is a ratio, smaller is better."""
        self.require(subject)
        bridge = require(subject.bridge, DenoisingBridge, "the metric 'denoising'")
        asked = np.geomspace(self.lowest, self.highest, self.levels).tolist()
        times = {sigma: t for sigma in asked if (t := time_of_level(bridge, sigma)) is not None}
        if not times:
            raise CapabilityError(f"this bridge has none of the noise levels from {self.lowest} to {self.highest}")
        fitted = subject.train.rows(self.fitted_on, self.seed, "fitted Gaussians")
        latents = subject.train.batches(fitted, latents=True, batch=self.batch)
        gaussians = fit(latents, bridge.ends.spec.shape, list(times), together=subject.train.latents.variants)
        errors = self._errors(subject, bridge, times, gaussians)
        return self._told(subject, bridge, times, gaussians, errors, len(fitted))

    @torch.no_grad()
    def _errors(
        self,
        subject: Subject,
        bridge: DenoisingBridge,
        times: dict[float, Tensor],
        gaussians: Laws,
    ) -> dict[str, np.ndarray]:
        """Squared error per dimension by denoiser, each of shape (levels, images)."""
        data = subject.test
        rows = data.rows(self.images, self.seed, "denoised samples")
        names = ["bridge", *gaussians, MEAN, IDENTITY]
        errors: dict[str, list[list[Tensor]]] = {name: [[] for _ in times] for name in names}
        mean = next(laws[0].centre for name, laws in gaussians.items() if name != CHANNEL)
        was = bridge.training
        bridge.eval()
        with subject.watch("denoising", len(rows) * len(times)) as advance:
            for first in range(0, len(rows), self.batch):
                chosen = rows[first : first + self.batch]
                found = data.read(chosen, latents=True)
                images = data.read(chosen).x0 if bridge.needs_images else None
                draws = Draws.seeds([self.seed + int(row) for row in chosen])
                index = torch.arange(len(chosen))
                batch = Batch(index, found.x0, found.x1, subject.known(found.cond), 0, images).to(bridge.device)
                # The conditions of a trajectory that starts in the data: codes and other ends are in them.
                cond = bridge.start(batch, draws.fork("start"), "x1").cond
                x0 = batch.data
                for k, (sigma, t) in enumerate(times.items()):
                    y = x0 + sigma * draws.normal(f"noise of level {k}", x0)
                    made = bridge.denoise(bridge.marginal(t).from_y(y, cond.get("x1")), t, cond)
                    host = y.cpu()
                    estimates = {"bridge": made.cpu(), MEAN: mean.to(host).expand_as(host), IDENTITY: host}
                    laws = {name: found[k] for name, found in gaussians.items()}
                    linear = {id(law): law.denoise(host, sigma) for law in {id(v): v for v in laws.values()}.values()}
                    estimates |= {name: linear[id(law)] for name, law in laws.items()}
                    for name, estimate in estimates.items():
                        off = (estimate - x0.cpu()).double().square()
                        errors[name][k].append(off.flatten(1).mean(1))
                    advance(len(chosen))
        bridge.train(was)
        return {name: np.stack([torch.cat(parts).numpy() for parts in found]) for name, found in errors.items()}

    def _told(
        self,
        subject: Subject,
        bridge: DenoisingBridge,
        times: dict[float, Tensor],
        gaussians: Laws,
        errors: dict[str, np.ndarray],
        fitted: int,
    ) -> Measured:
        means = {name: e.mean(1) for name, e in errors.items()}
        n = errors["bridge"].shape[1]
        ratios = means["bridge"] / means["best"]
        # Delta method on the paired errors.
        spread = errors["bridge"] - ratios[:, None] * errors["best"]
        se = spread.std(1, ddof=1) / math.sqrt(n) / means["best"]
        names = [name for name in means if name not in ("bridge", "best")]
        rows = []
        for k, sigma in enumerate(times):
            best = gaussians["best"][k]
            others = [float(means[name][k]) for name in names]
            own = [float(means["bridge"][k]), float(errors["bridge"][k].std(ddof=1) / math.sqrt(n))]
            chosen = f"{best.name}, {best.shrinkage:g}" if best.shrinkage else best.name
            rows.append((f"{sigma:.3g}", [*own, *others, chosen, float(ratios[k]), float(se[k])]))
        columns = ["σ", "bridge", ERROR, *names, BEST, RATIO, ERROR]
        protocol = self._protocol(subject, bridge, times, fitted)
        worst = int(ratios.argmax())
        details = {
            "count": n,
            "worst at σ": float(list(times)[worst]),
            "levels below the best Gaussian": f"{int((ratios < 1).sum())} of {len(times)}",
            "of them by two standard errors": int((ratios + 2 * se < 1).sum()),
            "geometric mean of the ratios": float(np.exp(np.log(ratios).mean())),
            "the denoiser sees": protocol["denoiser_sees"],
            "measured on": subject.test.name,
        }
        floors = {BEST: 1.0} | {
            f"Gaussian, {name}": float((means[name] / means["best"]).max())
            for name in names
            if name not in (MEAN, IDENTITY)
        }
        title = f"mean squared error per dimension, {n} samples of the {subject.test.name}"
        return Measured(
            float(ratios[worst]),
            floors,
            protocol,
            details,
            of="bridge / best Gaussian, at its worst",
            error=float(se[worst]),
            better="lower",
            tables=(Table(title, columns, rows, digits=3, better={"bridge": "lower", RATIO: "lower"}),),
        )

    def _protocol(
        self, subject: Subject, bridge: DenoisingBridge, times: dict[float, Tensor], fitted: int
    ) -> dict[str, Any]:
        encodes = isinstance(bridge, EncodingBridge)
        sees = "z and x1 of the same sample, beside the noisy latent" if encodes else "the noisy latent"
        conditions = sorted(bridge.ends.cond)
        return {
            **vars(self),
            "measured_on": subject.test.name,
            "space": "latents as the bridge sees them",
            "autoencoder": subject.autoencoder.fingerprint(),
            "denoiser_sees": f"{sees}{'; conditions: ' + ', '.join(conditions) if conditions else ''}",
            "gaussians_fitted_on": fitted,
            "mirror images": subject.train.latents.variants == 2,
            "shrinkage": f"chosen by {FOLDS}-fold cross-validation on the training latents",
            "levels_used": list(times),
        }

    def picture(self, found: Measured) -> Image | None:
        """Errors over noise levels, both in logarithms."""
        from matplotlib.figure import Figure
        from PIL import Image

        table = found.tables[0]
        sigmas = [float(name) for name, _ in table.rows]
        drawn = Figure(figsize=(5.2, 3.6), dpi=120)
        axes = drawn.add_subplot()
        columns: Sequence[str] = table.columns[1:]
        skipped = {ERROR, BEST, RATIO}
        for place, name in enumerate(columns):
            if name not in skipped:
                width, style = (2.0, "-") if name == "bridge" else (1.0, "--")
                axes.loglog(sigmas, [row[place] for _, row in table.rows], style, lw=width, label=name)
        axes.set_xlabel("σ")
        axes.set_ylabel("mean squared error")
        low = min(min(v for v, c in zip(row, columns, strict=True) if c not in skipped) for _, row in table.rows)
        high = max(row[list(columns).index(MEAN)] for _, row in table.rows)
        axes.set_ylim(low / 2, high * 3)
        axes.legend(fontsize=7)
        drawn.tight_layout()
        out = BytesIO()
        drawn.savefig(out, format="png")
        return Image.open(BytesIO(out.getvalue()))
