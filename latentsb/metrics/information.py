"""How much of the data a code carries: bounds on the mutual information I(x0; z), and what each of them holds for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentsb.bridge import DenoisingBridge, EncodingBridge, require
from latentsb.channels import CodeLaw
from latentsb.coding import CodingBridge
from latentsb.errors import CapabilityError
from latentsb.metrics.base import METRICS, Data, Measured, Metric, Row, Subject, Table
from latentsb.metrics.codes import noisy
from latentsb.metrics.gaussian import FULL, Basis, Cosine, Whole
from latentsb.process.times import time_of_sigma
from latentsb.randomness import Draws
from latentsb.ranges import Count, NonNegativeInt, Positive, enforce
from latentsb.tensors import Condition, expand_as

__all__ = ["Information", "Spectrum", "combined", "contrasted", "missing", "rate"]

MISSING, WITHOUT = "bridge, with z", "Gaussian, without z"


@METRICS.register("information")
@dataclass(frozen=True, kw_only=True)
class Information(Metric):
    """Bounds on what a code tells about the data, from the error of the denoiser that is given it, in nats.

    With `y = x0 + σ0 ε` and any denoiser D that is given `y_σ = x0 + σ ε` and z,

        I(x0; y | z) ≤ M = ½ ∫ E|x0 − D|² d(1/σ²)   from 0 to 1/σ0²,     I(x0; z) ≥ I(x0; y) − M

    by the chain rule and I-MMSE, with equality in the first for the best denoiser. M, the figure, is measured. The term
    `I(x0; y)` belongs to the data alone: it is known of Gaussian data (`gaussian: true`) and else unknown, so that M
    compares codes of one data set: where M is smaller by so many nats, the bound on `I(x0; z)` is larger by as many. A
    Gaussian that knows no z has an M of its own, which bounds `I(x0; y)` from *above*; the difference of the two
    M is therefore an estimate of what the code saves, and bounds nothing.

    A noisy channel has bounds that need no denoiser: the contrast of N codes from below, never above `ln N`, and from
    above the contrast that leaves the own code out, and the rate against any fixed law of codes.

    Source: Guo, Shamai and Verdú 2005 (I-MMSE); Kim et al. 2025, Diffusion bridge autoencoders, Theorem 1; Poole et al.
    2019, On variational bounds of mutual information, Eq. 12 and 13; Alemi et al. 2018, Fixing a broken ELBO.

    Args:
        sigma0: noise of y, in units of the normalised latents.
        highest: noise above which the mean of the training data stands in for the denoiser.
        levels: noise levels at which each sample is asked, with a noise and its opposite; drawn evenly in log σ.
        images: samples.
        fitted_on: training samples, at most, that Gaussians are fitted to.
        gaussian: the data are known to be Gaussian, of the covariance of the training data.
        batch: samples at a time.
        seed: of samples, codes and noise.
    """

    sigma0: Positive = 0.01
    highest: Positive = 80.0
    levels: Count = 4
    images: Count = 1000
    fitted_on: Count = 10_000
    gaussian: bool = False
    batch: Count = 64
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        enforce(self)

    def require(self, subject: Subject) -> None:
        """The bridge must encode, and know the noise level `sigma0`."""
        bridge = require(subject.bridge, EncodingBridge, "the metric 'information'")
        lowest, highest = _span(bridge)
        if min(self.images, len(subject.test)) < 4:
            raise CapabilityError("the metric 'information' needs at least 4 samples")
        if not lowest <= self.sigma0 < min(highest, self.highest):
            raise CapabilityError(
                f"information.sigma0 = {self.sigma0:g} is no noise level of this bridge, whose levels run from "
                f"{lowest:.3g} to {min(highest, self.highest):.3g}"
            )

    @torch.no_grad()
    def measure(self, subject: Subject) -> Measured:
        """Measure; the value is M, smaller is better."""
        self.require(subject)
        bridge = require(subject.bridge, EncodingBridge, "the metric 'information'")
        highest = min(_span(bridge)[1], self.highest)
        spectrum = Spectrum.fit(subject.train, self.fitted_on, self.batch, self.seed)
        was = bridge.training
        bridge.eval()
        found = self._gather(subject, bridge, spectrum.mean, highest)
        told = found.bounds(self._prior_of_codes(subject, bridge, self.fitted_on))
        bridge.train(was)
        gaps = combined(torch.cat(found.terms), torch.cat(found.noises))
        without = torch.cat([spectrum.missing(x0, self.sigma0) for x0 in found.x0])
        capacity = bridge.channel.capacity if isinstance(bridge, CodingBridge) else math.inf
        told |= {} if math.isinf(capacity) else {"≤ capacity": (bridge.z_dim * capacity * math.log(2), None)}
        if self.gaussian:
            first = spectrum.information(self.sigma0)
            told = {"≥ I(x0; y) − M": (first - float(gaps.mean()), _se(gaps)), **told}
        saved = without - gaps
        rows: list[Row] = [
            (f"M: {MISSING}", [float(gaps.mean()), _se(gaps)]),
            (f"M: {WITHOUT}", [float(without.mean()), _se(without)]),
            ("difference (an estimate, no bound)", [float(saved.mean()), _se(saved)]),
            *((f"I(x0; z) {name}", list(values)) for name, values in told.items()),
        ]
        title = f"nats per sample at σ0 = {self.sigma0:g}, {len(gaps)} samples of the {subject.test.name}"
        details: dict[str, Any] = {
            "count": len(gaps),
            "bounds on I(x0; z)": {name: values[0] for name, values in told.items()},
            "saved by z (an estimate)": float(saved.mean()),
            "the denoiser is given": ", ".join(["y", "z", *sorted(bridge.ends.cond)]),
            "measured on": subject.test.name,
        }
        return Measured(
            float(gaps.mean()),
            {WITHOUT: float(without.mean())},
            self._protocol(subject, spectrum),
            details,
            of=f"M, {MISSING}",
            tables=(Table(title, ["", "nats", "± SE"], rows, digits=5),),
            hidden=frozenset(("bounds on I(x0; z)",)),
            error=_se(gaps),
            better="lower",
        )

    def _gather(self, subject: Subject, bridge: EncodingBridge, mean: Tensor, highest: float) -> _Gathered:
        data, found = subject.test, _Gathered()
        rows = data.rows(self.images, self.seed, "informative samples")
        with subject.watch("information", len(rows)) as advance:
            for first in range(0, len(rows), self.batch):
                chosen = rows[first : first + self.batch]
                items = data.read(chosen, latents=True)
                images = data.read(chosen).x0.to(bridge.device) if bridge.needs_images else None
                draws = Draws.step(self.seed, f"information of {data.name}", 0, chosen.tolist())
                x0 = items.x0.to(bridge.device)
                if noisy(bridge) and isinstance(bridge, CodingBridge):
                    law = bridge.code_law(x0, images)
                    z = law.draw(draws)
                    found.add(law, z)
                else:
                    z = bridge.encode(x0, draws, images)["z"]
                cond = subject.known(items.cond).to(bridge.device).with_(z=z)
                found.x0.append(items.x0)
                terms, noises = missing(bridge, x0, cond, draws, mean, self.sigma0, highest, self.levels)
                found.terms.append(terms)
                found.noises.append(noises)
                advance(len(chosen))
        return found

    def _prior_of_codes(self, subject: Subject, bridge: EncodingBridge, limit: int) -> Tensor | None:
        """Drawn codes of training data, to which a law of codes is fitted; None where the channel has no noise."""
        from latentsb.metrics.codes import codes_of

        if not noisy(bridge):
            return None
        rows = subject.train.rows(limit, self.seed, "codes of the fitted law")
        draws = Draws.step(self.seed, "codes of the fitted law", 0, rows.tolist())
        return codes_of(bridge, subject.train, rows, draws=draws)[0]

    def _protocol(self, subject: Subject, spectrum: Spectrum) -> dict[str, Any]:
        return {
            **{key: value for key, value in vars(self).items() if key != "batch"},
            "measured_on": subject.test.name,
            "autoencoder": subject.autoencoder.fingerprint(),
            "conditions": sorted(subject.bridge.ends.cond),
            "gaussian_fitted_on": spectrum.fitted_on,
            "covariance": spectrum.basis.word,
        }


def missing(
    bridge: DenoisingBridge,
    x0: Tensor,
    cond: Condition,
    draws: Draws,
    mean: Tensor,
    sigma0: float,
    highest: float,
    levels: int,
) -> tuple[Tensor, Tensor]:
    """Terms of `M = ½ ∫ |x0 − D|² d(1/σ²)` over `1/σ²` from 0 to `1/σ0²`, in nats, of each sample.

    Importance sampling at levels that are uniform in log σ, one in each of as many equal parts: there the integrand
    `|x0 − D|²/σ²` is near the number of dimensions at low noise. Each level sees a noise and its opposite. An x1 is
    made from the conditions alone, so that nothing of x0 but z reaches the denoiser.

    Args:
        bridge: that denoises.
        x0: shape (B, …).
        cond: with z.
        draws: of these rows.
        mean: estimate of x0 above the highest level, shape of one sample.
        sigma0: lowest level.
        highest: largest level at which the bridge is asked.
        levels: at which each sample is asked.

    Returns:
        The terms, whose sum estimates M, and of each the surplus of its noise, `|ε|² − d` in the same scale, of mean
        zero; both float64 on the CPU, shape (B, 1 + levels), the part above the highest level first.
    """
    if isinstance(bridge, EncodingBridge) and bridge.pinned:
        cond = bridge.endpoint(cond, None, draws.fork("endpoint"))
    x1 = cond["x1"] if bridge.pinned else None
    span = math.log(highest / sigma0)
    terms = [(x0 - mean.to(x0)).double().square().flatten(1).sum(1).cpu() / (2 * highest**2)]
    noises = [torch.zeros_like(terms[0])]
    for k in range(levels):
        sigma = sigma0 * (span * (k + draws.uniform(f"level {k}")) / levels).exp()
        t, scale = time_of_sigma(bridge, sigma), expand_as(sigma, x0)
        marginal, noise = bridge.marginal(t), draws.normal(f"noise of level {k}", x0)
        offs = [bridge.denoise(marginal.from_y(x0 + s * scale * noise, x1), t, cond) - x0 for s in (1, -1)]
        squares = [off.double().square().flatten(1).sum(1).cpu() for off in offs]
        terms.append((squares[0] + squares[1]) / (2 * sigma**2) * (span / levels))
        noises.append((noise.double().square().flatten(1).sum(1).cpu() - x0[0].numel()) * (span / levels))
    return torch.stack(terms, 1), torch.stack(noises, 1)


def combined(terms: Tensor, noises: Tensor) -> Tensor:
    """Estimates of M, one per sample, whose mean is that of the terms and whose spread is smaller.

    At low noise the denoiser returns what it is shown, and its error is the noise itself, whose size is known on the
    average: the noise is subtracted with the weight that removes most variance, found for one half of the samples on
    the other, so that the mean stays what it is.

    Args:
        terms: of M, shape (N, L), N ≥ 4.
        noises: of mean zero, same shape.

    Returns:
        Shape (N,).
    """
    found = torch.empty(len(terms), dtype=terms.dtype)
    for part in (0, 1):
        x, y = noises[1 - part :: 2], terms[1 - part :: 2]
        x, y = x - x.mean(0), y - y.mean(0)
        weights = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-300)
        found[part::2] = (terms[part::2] - weights * noises[part::2]).sum(1)
    return found


@dataclass(frozen=True)
class Spectrum:
    """A Gaussian fitted to latents, in coordinates in which its covariance is diagonal.

    Args:
        mean: shape of one sample.
        basis: in whose blocks the covariance lies.
        directions: eigenvectors of each block, shape (K, d, d).
        variances: their eigenvalues, shape (K, d).
        fitted_on: samples.
    """

    mean: Tensor
    basis: Basis
    directions: Tensor
    variances: Tensor
    fitted_on: int

    @classmethod
    def fit(cls, data: Data, limit: int, batch: int, seed: int) -> Spectrum:
        """Fit to latents: their full covariance where there are few dimensions and four times as many samples.

        Else the covariance of the channels at each frequency of the cosine transform.
        """
        rows = data.rows(limit, seed, "fitted Gaussian")
        x = torch.cat(list(data.batches(rows, latents=True, batch=batch))).double()
        shape = x.shape[1:]
        few = shape.numel() <= FULL and len(x) >= 4 * shape.numel()
        basis: Basis = Whole(shape) if few or len(shape) == 1 else Cosine(shape)
        mean = x.mean(0)
        found = basis.forward(x - mean)
        covariance = torch.einsum("nki,nkj->kij", found, found) / len(x)
        variances, directions = torch.linalg.eigh(covariance)
        return cls(mean, basis, directions, variances.clamp(min=0), len(x))

    def information(self, sigma0: float) -> float:
        """`I(x0; x0 + σ0 ε) = ½ Σ ln(1 + s/σ0²)` of this Gaussian, in nats."""
        return float((self.variances / sigma0**2).log1p().sum() / 2)

    def missing(self, x0: Tensor, sigma0: float) -> Tensor:
        """M of the best denoiser for this Gaussian on samples of any law, integrated in closed form, shape (B,).

        `½ Σ [ln(1 + s γ) + (c − s) γ/(1 + s γ)]` with `γ = 1/σ0²`, s a variance, and c the sample's own square in its
        direction; the mean over samples whose law it is has c = s.
        """
        found = torch.einsum("nki,kij->nkj", self.basis.forward(x0.double() - self.mean), self.directions)
        s, gamma = self.variances, sigma0**-2
        each = (s * gamma).log1p() + (found.square() - s) * gamma / (1 + s * gamma)
        return each.flatten(1).sum(1) / 2


@dataclass
class _Gathered:
    """What was found batch by batch."""

    terms: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)
    laws: list[CodeLaw] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)

    def add(self, law: CodeLaw, z: Tensor) -> None:
        """Keep a law and the code that was drawn from it."""
        assert law.sigma is not None
        self.laws.append(CodeLaw(law.mean.double().cpu(), law.sigma.double().cpu()))
        self.codes.append(z.double().cpu())

    def bounds(self, known: Tensor | None) -> dict[str, tuple[float, float | None]]:
        """Bounds on I(x0; z) that need no denoiser, with standard errors; none where codes carry no noise."""
        if known is None:
            return {}
        sigma = torch.cat([law.sigma for law in self.laws if law.sigma is not None])
        law = CodeLaw(torch.cat([law.mean for law in self.laws]), sigma)
        below, above = contrasted(law, torch.cat(self.codes))
        plain, fitted = law.rate().sum(1), rate(law, known.double())
        told = {
            f"≥ contrast of {len(sigma)} codes": below,
            "≤ contrast without the own code": above,
            "≤ rate, fitted Gaussian of codes": fitted,
            "≤ rate, N(0, 1)": plain,
        }
        return {name: (float(values.mean()), _se(values)) for name, values in told.items()}


def contrasted(law: CodeLaw, z: Tensor) -> tuple[Tensor, Tensor]:
    """Terms whose means bound I(x0; z) from below and from above, in nats, each of shape (N,).

    `ln q(z_i|x_i) − ln (1/N) Σ_j q(z_i|x_j)`, which never exceeds `ln N`, and the same with the mean over `j ≠ i`;
    Poole et al. 2019, Eq. 12 and 13. The samples must be independent.

    Args:
        law: of the codes of N ≥ 2 samples, with a sigma.
        z: a code drawn from each, shape (N, Z), float64.
    """
    assert law.sigma is not None
    n, precise = len(z), law.sigma.square().reciprocal()
    squares = z.square() @ precise.T - 2 * z @ (law.mean * precise).T + (law.mean.square() * precise).sum(1)
    logs = -squares / 2 - law.sigma.log().sum(1)  # up to a constant that cancels
    own = logs.diagonal()
    others = logs.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
    return own - logs.logsumexp(1) + math.log(n), own - others.logsumexp(1) + math.log(n - 1)


def rate(law: CodeLaw, known: Tensor) -> Tensor:
    """`KL(q(z|x0) ‖ r)` with the Gaussian r of full covariance fitted to other codes, in nats, shape (N,).

    Its mean bounds I(x0; z) from above whatever r is, and is least for the Gaussian of the codes themselves.

    Args:
        law: of the codes of N samples, with a sigma.
        known: codes that r is fitted to, float64, shape (M, Z).
    """
    assert law.sigma is not None
    mean = known.mean(0)
    covariance = (known - mean).T @ (known - mean) / len(known)
    factor = torch.linalg.cholesky(covariance)
    inverse = torch.cholesky_inverse(factor)
    off = law.mean - mean
    quadratic = law.sigma.square() @ inverse.diagonal() + (off @ inverse * off).sum(1)
    volumes = 2 * factor.diagonal().log().sum() - 2 * law.sigma.log().sum(1)
    found: Tensor = (quadratic - known.shape[1] + volumes) / 2
    return found


def _span(bridge: DenoisingBridge) -> tuple[float, float]:
    low, high = bridge.marginal(torch.tensor([bridge.t_min, bridge.t_max], dtype=torch.float64)).sigma_eff
    return float(low), float(high)


def _se(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
