"""Light Schrödinger bridge: a mixture of Gaussians as the potential, so that plan and drift are closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from latentsb.bridge import BRIDGES, End, PlannedBridge, State
from latentsb.errors import ArgumentError, CapabilityError
from latentsb.laws import Ends, Gaussian
from latentsb.oracles.mixtures import AdjustedPotential, Conditional
from latentsb.process.coupling import Coupling, Independent
from latentsb.process.reference import ScalarReference
from latentsb.process.references import Brownian
from latentsb.randomness import Draws
from latentsb.ranges import Count
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Loss, Round
from latentsb.twosided import depart, other

__all__ = ["LightSB"]

LAST = 0.99
"""Share of the clock in which drifts are matched: at its end the target's variance is infinite."""
LLOYD = 20
"""Rounds of k-means for the first centres."""
THIN = 1e-3
"""Least width of a first component in a direction, as a share of the spread of the data there."""


@dataclass(frozen=True)
class _Tilted:
    """The mixture as it is seen from rows y at progress u, along the axes of each component.

    Args:
        log_share: unnormalised, shape (B, K).
        drift: `D⁻¹ (r + (S − I) y)`, shape (B, K, D).
        mean: of the end given y, `D⁻¹ ((1 − u) r + S y)`, shape (B, K, D).
        var: of the end given y, `ε (1 − u) S D⁻¹`, shape (B, K, D) or (1, K, D).
    """

    log_share: Tensor
    drift: Tensor
    mean: Tensor
    var: Tensor


@BRIDGES.register("lightsb")
class LightSB(PlannedBridge):
    """Light Schrödinger bridge: the potential is a mixture of K Gaussians, so plan, drift and samples are closed forms.

    In `y = x/α_t` and the clock `u` every scalar reference is Brownian motion of variance `ε = ρ²_1`. Let u run from
    the end that is given to the end that is made (`towards`). With the mixture `v(y) = Σ_k α_k N(y; r_k, ε S_k)` and
    `D = 1 − u + u S`,

        h(y, u) = ln Σ_k α_k |D_k|^{−1/2} exp((yᵀ D_k⁻¹ (S_k − I) y + 2 r_kᵀ D_k⁻¹ y − u r_kᵀ D_k⁻¹ r_k) / 2ε)
        drift   = ε ∇ h = Σ_k share_k D_k⁻¹ (r_k + (S_k − I) y)
        plan    = Σ_k share_k N((D_k⁻¹ ((1 − u) r_k + S_k y), ε (1 − u) S_k D_k⁻¹)
        loss    = h(y_given, 0) − h(y_made, 1)

    It holds for S of any size, and nothing cancels as u → 1. The loss needs no pairs, and its expectation is
    `KL(true plan ‖ this one) − KL(true plan ‖ reference)`, so it falls to minus the optimum of the bridge problem.

    One end determines the potential; the drift back from it has no closed form. There are no conditions.

    Source: Korotin et al. 2024, Light Schrödinger bridge, Eq. 11–14; Gushchin et al. 2024, Light and optimal
    Schrödinger bridge matching, Eq. 15, for `matching`.

    Args:
        ends: shapes; the data or a law bring x1, which is standard normal where nothing does.
        reference: the process whose bridge is sought; its epsilon is the entropic regularisation.
        towards: the end that is made from the other one.
        components: K.
        rotation: full matrices S in place of diagonal ones; D² numbers for each component.
        matching: fit the drift to that of the reference pinned to pairs of this coupling, in place of the loss above;
            the optimum is the same for every coupling.
        rows: samples of the made end from which the first centres are found, by k-means.
        double: compute in float64; for an epsilon below 1e-3 of the data's variance.

    Raises:
        ArgumentError: if the reference is noiseless, there are fewer rows than components, or `matching` asks for
            partners that the data does not bring.
    """

    coupling: Coupling

    def __init__(
        self,
        ends: Ends,
        *,
        reference: ScalarReference = Brownian(),
        towards: End = "x0",
        components: Count = 50,
        rotation: bool = False,
        matching: Coupling | None = None,
        rows: Count = 10_000,
        double: bool = False,
    ) -> None:
        super().__init__()
        if reference.total == 0:
            raise ArgumentError("reference", "must have noise; a noiseless one has no entropic plan")
        if rows < components:
            raise ArgumentError("rows", f"found {rows}, expected at least as many as components = {components}")
        self.coupling = Independent() if matching is None else matching
        if self.coupling.aligned and not ends.two_sided:
            raise ArgumentError("matching", "partners need data that brings an x1 for each x0; this data has no x1")
        free = ends.x1 is None and not ends.two_sided
        self.ends = replace(ends, x1=Gaussian(ends.spec) if free else ends.x1, cond={})
        self.aligned, self.matches, self.rows = self.coupling.aligned, matching is not None, rows
        self.reference, self.towards, self.ways = reference, towards, (towards,)
        dtype, dim = torch.float64 if double else torch.float32, ends.spec.numel
        self.log_alpha = nn.Parameter(torch.zeros(components, dtype=dtype))
        self.centre = nn.Parameter(torch.randn(components, dim, dtype=dtype))
        self.log_S = nn.Parameter(torch.zeros(components, dim, dtype=dtype))
        self.skew = nn.Parameter(torch.zeros(components, dim, dim, dtype=dtype)) if rotation else None

    @property
    def epsilon(self) -> float:
        """Variance of the reference in y."""
        return self.reference.total

    @property
    def r(self) -> Tensor:
        """Means of the mixture v, shape (K, D).

        `r = ε/(1 + ε) centre`: one step of a centre moves every share by about as much at any epsilon.
        """
        return self.centre * (self.epsilon / (1 + self.epsilon))

    def axes(self) -> Tensor | None:
        """Axes of the matrices S in columns, `exp(A − Aᵀ)`, shape (K, D, D); None where they are the coordinates'."""
        if self.skew is None:
            return None
        lower = self.skew.tril(-1)
        axes: Tensor = torch.linalg.matrix_exp(lower - lower.mT)
        return axes

    def potential(self) -> AdjustedPotential:
        """The mixture v of the plan `exp(⟨y_given, y_made⟩/ε) v(y_made) / c(y_given)`, float64."""
        axes, S = self.axes(), self.log_S.exp().double()
        matrices = torch.diag_embed(S) if axes is None else (axes.double() * S[:, None]) @ axes.double().mT
        return AdjustedPotential(self.log_alpha.double(), self.r.double(), matrices)

    def _tilted(self, y: Tensor, u: Tensor, axes: Tensor | None) -> _Tilted:
        """See `_Tilted`; y of shape (B, D), u of shape () or (B,)."""
        # Shares are exponentials of numbers over ε, for which half precision is too coarse.
        with torch.autocast(y.device.type, enabled=False):
            r, S, u = self.r, self.log_S.exp(), u.to(y).reshape(-1, 1, 1)
            z = y[:, None] if axes is None else torch.einsum("kde,bd->bke", axes, y)
            r = r if axes is None else torch.einsum("kde,kd->ke", axes, r)
            D = (1 - u) + u * S
            drift = (r + (S - 1) * z) / D
            fit = (z * (drift + r / D) - u * r * (r / D)).sum(2) / (2 * self.epsilon)
            log_share = self.log_alpha + fit - D.log().sum(2) / 2
            return _Tilted(log_share, drift, ((1 - u) * r + S * z) / D, self.epsilon * (1 - u) * S / D)

    def _log_h(self, y: Tensor, u: float, axes: Tensor | None) -> Tensor:
        """`h(y, u)`, shape (B,)."""
        return self._tilted(y, torch.tensor(u), axes).log_share.logsumexp(1)

    def _drift(self, y: Tensor, u: Tensor, axes: Tensor | None) -> Tensor:
        """`ε ∇ h`, written out so that its gradient needs no second-order graph, shape of y."""
        at = self._tilted(y, u, axes)
        mixed = at.log_share.softmax(1)[:, :, None] * at.drift
        return mixed.sum(1) if axes is None else torch.einsum("kde,bke->bd", axes, mixed)

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """`y = x/α_t`, flat, in the precision of the parameters."""
        return (x.to(self.centre.dtype) / expand_as(self.reference.alpha(t.double()), x)).flatten(1)

    def _ends(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The given and the made end of coupled rows, as y."""
        pair, one = self.coupling.pair(batch, self.ends, draws), torch.ones((), dtype=torch.float64)
        y0, y1 = self._scaled(pair.x0, 0 * one), self._scaled(pair.x1, one)
        return (y0, y1) if self.towards == "x1" else (y1, y0)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`h(y_given, 0) − h(y_made, 1)`, or the drift's error for `matching`; in nats, shape (B,)."""
        given, made = self._ends(batch, draws)
        axes = self.axes()
        if self.matches:
            return Loss(self._matching(given, made, axes, draws))
        return Loss(self._log_h(given, 0.0, axes) - self._log_h(made, 1.0, axes))

    def _matching(self, given: Tensor, made: Tensor, axes: Tensor | None, draws: Draws) -> Tensor:
        """`|ε ∇h(y_u, u) − (y_made − y_u)/(1 − u)|² / 2ε` at u uniform in (0, 0.99) on the pinned reference.

        Integrated over u it is the KL of path laws up to a constant (Girsanov), whatever the coupling.
        """
        u = LAST * draws.uniform("time")
        share = expand_as(u, made)
        noise = draws.normal("path", made) * (self.epsilon * share * (1 - share)).sqrt()
        y = (1 - share) * given + share * made + noise
        error = self._drift(y, u, axes) - (made - y) / (1 - share)
        return error.square().sum(1) / (2 * self.epsilon)

    def _check(self, towards: End) -> None:
        """Refuse the way back.

        Raises:
            CapabilityError: if it is asked for.
        """
        if towards != self.towards:
            raise CapabilityError(
                f"this light bridge makes {self.towards} from {other(self.towards)}, and its way back has no closed "
                f"form; train one with `bridge.towards: {towards}`"
            )

    def _progress(self, t: Tensor) -> Tensor:
        """The clock u since the given end, float64."""
        r = self.reference.progress(t)
        return r if self.towards == "x1" else 1 - r

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`±f x + α_t r' ε ∇h`, the drift as executed, finite in all of [0, 1]; t of shape () or (B,).

        Raises:
            CapabilityError: away from the end that the bridge makes.
        """
        self._check(towards)
        f, rate = self.reference.rates(t)
        pull = self._drift(self._scaled(x, t), self._progress(t), self.axes()).reshape(x.shape).to(x.dtype)
        sign = 1 if towards == "x1" else -1
        return expand_as(sign * f, x) * x + expand_as(rate * self.reference.alpha(t.double()), x) * pull

    def diffusion(self, t: Tensor) -> Tensor:
        """`g(t)` of the reference."""
        return self.reference.g(t)

    def _scale(self) -> float:
        """α at the end that is made."""
        return float(self.reference.alpha(torch.tensor(float(self.towards == "x1"), dtype=torch.float64)))

    def conditional(self, x: Tensor, t: float | Tensor | None = None) -> Conditional:
        """The law of the made end given flat states: a mixture with closed moments.

        Args:
            x: shape (B, D).
            t: their time, shape (); that of the given end if None.
        """
        start = float(self.towards == "x0")
        time = torch.as_tensor(start if t is None else t, dtype=torch.float64).reshape(())
        axes, scale = self.axes(), self._scale()
        at = self._tilted(self._scaled(x, time), self._progress(time), axes)
        shape = torch.eye(x.shape[1]).to(self.centre).expand(len(self.centre), -1, -1) if axes is None else axes
        roots = scale * shape * at.var[0].sqrt()[:, None]
        means = scale * torch.einsum("kde,bke->bkd", shape, at.mean)
        return Conditional(at.log_share.log_softmax(1), means, roots @ roots.mT, roots)

    def arrive(self, state: State, draws: Draws, towards: End = "x0") -> Tensor:
        """One draw of the made end for each state: a component by its share, then its Gaussian.

        Raises:
            CapabilityError: away from the end that the bridge makes.
        """
        self._check(towards)
        y, axes = self._scaled(state.x, state.t), self.axes()
        at = self._tilted(y, self._progress(state.t), axes)
        steps = at.log_share.double().softmax(1).cumsum(1)
        k = (draws.uniform("component").to(y.device)[:, None] >= steps[:, :-1]).sum(1)
        own = at.mean[torch.arange(len(y), device=y.device), k]
        made = own + at.var[0].sqrt()[k] * draws.normal("end", y)
        for component, turn in enumerate(() if axes is None else axes):
            rows = k == component
            made[rows] = made[rows] @ turn.mT
        return (self._scale() * made).reshape(state.x.shape).to(state.x.dtype)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """The batch's own given end, or a draw of its law; see `depart`."""
        return depart(self.ends, batch, draws, towards, self.device)

    def renew(self, round: Round) -> None:
        """Where training begins: the first centres, from samples of the made end that all processes share."""
        if round.number or round.resumed:
            return

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            state = self.start(batch, draws, other(self.towards))
            return {"y": self._scaled(state.x, state.t)}

        self.place(round.simulate("centres", self.rows, make)["y"])

    @torch.no_grad()
    def place(self, y: Tensor) -> None:
        """Begin with the mixture `φ = v exp(|y|²/2ε) = Σ_k p_k N(c_k, w²)` of the k-means of samples, w their width.

        Then `S = w²/(w² + ε)` and `r = (1 − S) c`: each state is drawn to the centres nearest to it, so that at every
        epsilon each component begins with a share of the rows. Deterministic.

        Args:
            y: samples of the made end over its α, shape (n, D), n at least K.
        """
        from scipy.cluster.vq import kmeans2

        points = y.detach().to("cpu", torch.float64)
        first = points[: len(self.centre)].numpy()
        found, nearest = (torch.from_numpy(value) for value in kmeans2(points.numpy(), first, LLOYD, minit="matrix"))
        nearest = nearest.long()
        least = THIN * points.var(0, correction=0) + torch.finfo(torch.float32).tiny
        width = torch.maximum((points - found[nearest]).square().mean(0), least)
        count = torch.bincount(nearest, minlength=len(found)).clamp(min=1)
        S = width / (width + self.epsilon)
        # ln α = ln p + ln N(0; c, w²) − ln N(0; r, ε S), of which the widths are common to all.
        log_alpha = (count / count.sum()).log() - (found.square() / (width + self.epsilon)).sum(1) / 2
        self.log_alpha.copy_(log_alpha)
        self.centre.copy_((1 - S) * found * ((1 + self.epsilon) / self.epsilon))
        self.log_S.copy_(S.log().expand_as(found))
        if self.skew is not None:
            self.skew.zero_()
