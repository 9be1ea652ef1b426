"""Variational Schrödinger diffusion: a matrix Ornstein–Uhlenbeck process whose drift learns to shorten the way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor

from latentsb.bridge import BRIDGES, Bridge, End, State
from latentsb.conditioning import drop_conditions
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.matrix import F64, Kernel, MatrixOU, Rate, apply
from latentsb.process.policies import Constant, Full, Policy, Scaled
from latentsb.process.reference import Reference
from latentsb.randomness import Draws
from latentsb.ranges import Count, Fraction, NonNegative, NonNegativeInt, Positive
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.solvers.grid import Power
from latentsb.solvers.sde import EulerMaruyama
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Alternate, Freeze, Loss, OnePass, Phase, Round, Schedule

__all__ = ["VSDM"]

FULL = cast("Build[Policy]", partial(Full, profile=Scaled()))
INTERVALS = 64
"""Intervals of [0, 1] on which a policy that changes in time is kept constant."""
TIMES = 256
"""Times that are trained, crowded near 0."""
DATA = 20_000
"""Samples from which the data's mean and covariance are taken."""


@BRIDGES.register("vsdm")
class VSDM(Bridge):
    """Variational Schrödinger diffusion (VSDM): score matching over a forward process that adapts to the data.

    The forward drift of a Schrödinger bridge over a variance-preserving diffusion is `β (−½ x + ∇ log ψ)`; here
    `∇ log ψ` is linear, `A_t x + a_t`, so that the forward process is Gaussian given x0 and needs no simulation. Turns:

    * backward: the network learns ε of `x_t = Phi x0 + m + L ε` by `|ε̂ − ε|²`, and the score is `−L⁻ᵀ ε̂`;
    * forward: from trajectories that are simulated from N(0, I) with the present score s and the present A°, a°,
      the policy takes steps down `E ∫ β [½ |z|² + z·(s − A° x − a°) + zeta tr A] dt` with `z = A x + a`.

    With an exact score of covariance Σ_f and simulated covariance Σ_b a whole turn is `A = A° + Σ_f⁻¹ − zeta Σ_b⁻¹`.
    Samples start from the Gaussian that the forward process really arrives at, so they are right for every A: the
    policy decides how straight the way is, not where it ends.

    Source: Deng et al. 2024, Variational Schrödinger diffusion models, Alg. 1.

    Args:
        ends: shapes and conditions; the data are best centred, and need not be whitened.
        network: of ε, in whitened coordinates.
        policy: A and a.
        beta_min: β at t = 0.
        beta_max: β at t = 1.
        power: of t in β.
        zeta: weight of the divergence; 1 reaches N(0, I) at t = 1, less moves the data less.
        turn: images of a turn.
        backward: turns of the network for each of the policy.
        adapt: turns of the policy; afterwards the network alone is trained. 0 is a plain diffusion.
        forward_lr: learning rate of the policy, in that of the network.
        paths: trajectories that are simulated for a turn of the policy.
        simulation: how.
        standard: start samples from N(0, I) in any case, as plain diffusions do.
        dropout: share of training rows whose label and attributes are hidden.
    """

    t_min = 1e-3
    mean0: Tensor
    cov0: Tensor
    A: Tensor
    a: Tensor

    def __init__(
        self,
        ends: Ends,
        *,
        network: Build[Network],
        policy: Build[Policy] = FULL,
        beta_min: Positive = 0.1,
        beta_max: Positive = 10.0,
        power: NonNegative = 1.7,
        zeta: NonNegative = 0.75,
        turn: Count = 20_000,
        backward: Count = 3,
        adapt: NonNegativeInt = 10,
        forward_lr: Positive = 1.0,
        paths: Count = 1_000,
        simulation: Solver = EulerMaruyama(steps=50, grid=Power(), noiseless_last=False),
        standard: bool = False,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.ends, self.rate = ends, Rate(low=beta_min, high=beta_max, power=power)
        self.zeta, self.turn, self.backward, self.adapt = zeta, turn, backward, adapt
        self.forward_lr, self.paths, self.simulation = forward_lr, paths, simulation
        self.standard, self.dropout = standard, dropout
        self.network = network(ends.spec, ends.cond)
        self.policy = policy(ends.spec.numel)
        count = 1 if isinstance(self.policy.profile, Constant) else INTERVALS
        self.middles = (torch.arange(count, dtype=F64) + 0.5) / count
        diagonal = self.policy.matrices().ndim == 2
        one = torch.ones(ends.spec.numel, dtype=F64)
        self.register_buffer("mean0", torch.zeros_like(one))
        self.register_buffer("cov0", one.clone() if diagonal else one.diag())
        with torch.no_grad():
            A, a = self.policy(self.middles)
        self.register_buffer("A", A.clone())
        self.register_buffer("a", a.clone())
        place = torch.linspace(0, 1, TIMES, dtype=F64)
        self.times = self.t_min + (1 - self.t_min) * place.square()
        self.paths_of_turn: Mapping[str, Tensor] = {}
        self._made: tuple[list[Tensor], MatrixOU, Kernel, dict[float, Kernel]] | None = None

    # What is known in closed form.

    @property
    def reference(self) -> Reference:
        """The forward process of the present turn."""
        return self._process()[0]

    def _process(self) -> tuple[MatrixOU, Kernel, dict[float, Kernel]]:
        """The forward process, its kernel at the times that are trained, and kernels at other times that were asked."""
        now = [self.A, self.a, self.mean0, self.cov0]
        if self._made is None or not all(map(_same, self._made[0], now)):
            process = MatrixOU(self.rate, self.A, self.a)
            kernel = self._kernel_of(process, self.times).to(torch.empty(0, device=self.device))
            self._made = ([value.clone() for value in now], process, kernel, {})
        return self._made[1:]

    def _kernel_of(self, process: MatrixOU, times: Tensor) -> Kernel:
        return Kernel.of(process.along(times), self.mean0.cpu(), self.cov0.cpu())

    def kernel(self, t: Tensor) -> Kernel:
        """Noising at times t of shape () or (B,), those below t_min at t_min, in float64."""
        process, _, known = self._process()
        late = t.reshape(-1).to("cpu", F64).clamp(min=self.t_min)
        if len(late) > 1:
            return self._kernel_of(process, late)
        time = float(late)
        if time not in known:
            known[time] = self._kernel_of(process, late)
        return known[time]

    # The bridge.

    def noise(self, x: Tensor, t: Tensor, cond: Condition, kernel: Kernel) -> Tensor:
        """`ε̂ = gain (x − mean) + rest F(white (x − mean), t)`, shape (B, D)."""
        off = x.flatten(1) - kernel.mean.to(x)
        seen = apply(kernel.white, off).reshape(x.shape)
        output = self.network(seen, t.to(device=x.device, dtype=x.dtype), cond).flatten(1).to(x.dtype)
        return apply(kernel.gain, off) + apply(kernel.rest, output)

    def score(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`−L⁻ᵀ ε̂`; t of shape () or (B,)."""
        kernel = self.kernel(t).to(x)
        return -apply(kernel.pull, self.noise(x, t, cond, kernel)).reshape(x.shape)

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        """`β (−½ x + A x + a)` towards x1, `β s` less this towards x0."""
        beta = expand_as(self.rate.of(t), x)
        steered = self._process()[0].policy(x.flatten(1), t).reshape(x.shape)
        forward = beta * (steered - x / 2)
        return forward if towards == "x1" else beta * self.score(x, t, cond) - forward

    def velocity(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """`β (−½ x + A x + a − ½ s)`, of one evaluation."""
        return self.drift(x, t, cond, "x1") - expand_as(self.rate.of(t), x) * self.score(x, t, cond) / 2

    def diffusion(self, t: Tensor) -> Tensor:
        """`√β`."""
        return self.rate.of(t).sqrt()

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        """A draw of the Gaussian with the moments of the forward process at t = 1; towards x1 the data at t = 0."""
        if towards == "x1":
            return State(batch.data, torch.zeros((), dtype=F64), batch.cond)
        noise = draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        one = torch.ones((), dtype=F64)
        if not self.standard:
            noise = self.kernel(one).sample(noise.flatten(1)).reshape(noise.shape)
        return State(noise, one, batch.cond)

    # Training.

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """`|ε̂ − ε|²` at a time of its own for each row, mean over a sample, shape (B,)."""
        x0 = batch.data.flatten(1)
        k = draws.integers("time", TIMES)
        kernel = self._process()[1].at(k.to(x0.device))
        noise = draws.normal("noise", x0)
        x = kernel.noised(x0, noise).reshape(batch.data.shape)
        found = self.noise(x, self.times[k], drop_conditions(batch.cond, self.dropout, draws), kernel)
        return Loss((found - noise).square().mean(1))

    def forward_loss(self, batch: Batch, draws: Draws) -> Loss:
        """The policy's objective at a state of a simulated trajectory, in units of ∫β, shape (B,)."""
        table = self.paths_of_turn
        row, k = draws.integers("path", len(table["x"])), draws.integers("step", table["x"].shape[1])
        x, push = (table[name][row, k].to(self.device, F64) for name in ("x", "push"))
        t = table["t"][0].to(F64)
        h = (t - torch.cat([t[1:], t.new_zeros(1)])) * self.rate.of(t) / self.rate.integral(t[:1])
        A, a = self.policy(t)
        z = apply(A[k], x) + a[k]
        trace = (A if A.ndim == 2 else A.diagonal(dim1=1, dim2=2)).sum(1)
        cost = (z * (z / 2 + push)).sum(1) + self.zeta * trace[k]
        terms = {"least_pull": torch.full_like(cost, MatrixOU(self.rate, A, a).least_pull)}
        return Loss(len(t) * h[k].to(cost) * cost, terms)

    def schedule(self, part: str = "") -> Schedule:
        """Turns of the network and, for as long as it adapts, of the policy."""
        if part:
            return super().schedule(part)
        backward = Phase("backward", self.loss, ("network.",))
        if self.adapt == 0:
            return OnePass(backward)
        forward = Phase("forward", self.forward_loss, ("policy.",), lr=self.forward_lr)
        turns = Alternate((*(backward,) * self.backward, forward), images=self.turn)
        return Freeze(self.adapt * (self.backward + 1) * self.turn, turns, OnePass(backward))

    def renew(self, round: Round) -> None:
        """Before the network's turns the forward process takes over the policy; before the policy's, trajectories."""
        cycle = self.backward + 1
        adapting = round.number < self.adapt * cycle
        if adapting and round.number % cycle == self.backward:
            # The network and the forward process rest in this turn, so that a resumed run draws the same again.
            self.paths_of_turn = round.simulate("trajectories", self.paths, self.simulate)
            return
        if round.resumed or (adapting and round.number % cycle != 0):
            return
        if round.number == 0:
            self._measure(round)
        A, a = self.policy(self.middles)
        self.A.copy_(A)
        self.a.copy_(a)

    def _measure(self, round: Round) -> None:
        """Take the data's mean and covariance."""
        rows = min(DATA, max(round.size, 1))
        x = round.simulate("data", rows, lambda batch, draws: {"x": batch.data})["x"].flatten(1).to(F64)
        off = x - x.mean(0)
        self.mean0.copy_(x.mean(0))
        self.cov0.copy_(off.square().mean(0) if self.cov0.ndim == 1 else off.T @ off / len(x))

    @torch.no_grad()
    def simulate(self, batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
        """Trajectories from N(0, I) towards x0.

        Returns:
            `x` of shape (B, N, D) without the end, `push` = `s − A° x − a°` there, and the times `t` of shape (B, N).
        """
        first = draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        states: list[State] = []
        begin = State(first, torch.ones((), dtype=F64), batch.cond)
        self.simulation.run(self, begin, draws.fork("simulation"), "x0", states.append)
        process = self._process()[0]
        pushes = [self.score(s.x, s.t, s.cond).flatten(1) - process.policy(s.x.flatten(1), s.t) for s in states[:-1]]
        t = torch.stack([s.t for s in states[:-1]]).expand(len(batch), -1)
        x = torch.stack([s.x.flatten(1) for s in states[:-1]], 1)
        return {"x": x, "push": torch.stack(pushes, 1), "t": t.clone()}


def _same(known: Tensor, value: Tensor) -> bool:
    return known.device == value.device and torch.equal(known, value)
