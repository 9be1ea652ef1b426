"""VSDM: the forward process is a matrix OU process whose A is trained on simulated backward trajectories."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentsb.bridge import Bridge, End, State
from latentsb.laws import Ends
from latentsb.networks.base import Network
from latentsb.process.reference import LinearGaussian, Reference
from latentsb.randomness import Draws
from latentsb.registry import Build
from latentsb.solvers.base import Solver
from latentsb.tensors import Batch, Condition, expand_as
from latentsb.trainable import Alternate, Loss, Phase, Round, Schedule


class MatrixOU(nn.Module, Reference):
    """`dX = −½ β (I − 2A) X dt + sqrt(β) dW`; A is a parameter of the reference."""

    def __init__(self, dim: int, beta: float) -> None:
        super().__init__()
        self.A, self.beta = nn.Parameter(torch.zeros(dim, dim)), beta

    def transition(self, s: Tensor, t: Tensor) -> LinearGaussian:
        eye = torch.eye(len(self.A), dtype=torch.float64)
        B = self.beta * (t - s)[:, None, None]
        D = eye - 2 * self.A.detach().double().cpu()
        return LinearGaussian(torch.matrix_exp(-B / 2 * D), torch.zeros(len(t), len(D), dtype=torch.float64), B * eye)

    def g(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.beta**0.5)


class VSDM(Bridge):
    def __init__(
        self, ends: Ends, *, network: Build[Network], simulation: Solver, images: int = 100_000, beta: float = 4.0
    ) -> None:
        super().__init__()
        self.ends, self.simulation, self.images = ends, simulation, images
        self.reference = MatrixOU(ends.spec.numel, beta)
        self.network = network(ends.spec, {}, ends.spec)
        self.trajectories: Mapping[str, Tensor] = {}

    def drift(self, x: Tensor, t: Tensor, cond: Condition, towards: End = "x0") -> Tensor:
        beta = self.reference.beta
        forward = -beta / 2 * (x - 2 * (x.flatten(1) @ self.reference.A.T).view_as(x))
        if towards == "x1":
            return forward
        score: Tensor = self.network(x, t, cond)
        return beta * score - forward

    def diffusion(self, t: Tensor) -> Tensor:
        return self.reference.g(t)

    def start(self, batch: Batch, draws: Draws, towards: End = "x0") -> State:
        if towards == "x1":
            return State(batch.data, torch.tensor(0.0, dtype=torch.float64), batch.cond)
        noise = draws.normal("x1", self.ends.spec.zeros(len(batch), self.device))
        return State(noise, torch.tensor(1.0, dtype=torch.float64), batch.cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        x0, t = batch.data.flatten(1), draws.uniform("t")
        law = self.reference.transition(torch.zeros_like(t), t)
        L, eps = torch.linalg.cholesky(law.Q).to(x0), draws.normal("noise", x0)
        x = (law.Phi.to(x0) @ x0[..., None] + L @ eps[..., None]).squeeze(-1)
        target = -torch.linalg.solve_triangular(L.mT, eps[..., None], upper=True).squeeze(-1)
        found = self.network(x.view_as(batch.data), t, batch.cond).flatten(1)
        return Loss((found - target).square().mean(1))

    def forward_loss(self, batch: Batch, draws: Draws) -> Loss:
        rows = draws.integers("trajectory", len(self.trajectories["x"]))
        x = self.trajectories["x"][rows].to(self.device)
        t = self.trajectories["t"][rows]
        z = self.reference.beta**0.5 * x @ self.reference.A.T
        with torch.no_grad():
            back = expand_as(self.diffusion(t), x) * self.network(x, t, batch.cond) - z
        return Loss((z.square() / 2 + z * back).sum(1) + self.reference.beta * self.reference.A.trace())

    def schedule(self, part: str = "") -> Schedule:
        if part:
            return super().schedule(part)
        backward = Phase("backward", self.loss, trains=("network",))
        forward = Phase("forward", self.forward_loss, trains=("reference",), lr=0.3)
        return Alternate((backward, forward), images=self.images)

    def renew(self, round: Round) -> None:
        if round.number % 2 == 0:
            return

        def make(batch: Batch, draws: Draws) -> Mapping[str, Tensor]:
            stop = draws.uniform("stop")
            states: list[State] = []
            self.simulation.run(self, self.start(batch, draws), draws, record=states.append)
            path, times = torch.stack([s.x for s in states]), torch.stack([s.t for s in states])
            k = (stop * len(states)).long()
            return {"x": path[k, torch.arange(len(k))], "t": times[k]}

        self.trajectories = round.simulate("trajectories", 3000, make)
