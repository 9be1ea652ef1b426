"""A third party's bridge for the tests: two networks that take turns, and faults on demand."""

import os
import signal
import time

import torch

from latentsb.bridge import BRIDGES, Bridge, State
from latentsb.networks.base import Network
from latentsb.registry import Build
from latentsb.tensors import expand_as
from latentsb.trainable import Alternate, Loss, Phase


@BRIDGES.register("alternating")
class Alternating(Bridge):
    """Two drifts of the straight line, learned in turns.

    Args:
        ends: shapes.
        network: of each direction.
        turn: images of a turn.
        poison: values of images seen at which the loss is not finite.
        pause: seconds that each step sleeps.
        terminate: value of images seen at which the process gets SIGTERM.
        table: rows of simulated ends, made anew in each turn by the network that rests; 0 for noise.
    """

    def __init__(
        self,
        ends,
        *,
        network: Build[Network],
        turn: int = 32,
        poison: tuple[int, ...] = (),
        pause: float = 0.0,
        terminate: int = -1,
        table: int = 0,
    ) -> None:
        super().__init__()
        self.ends, self.turn, self.poison, self.pause, self.terminate = ends, turn, poison, pause, terminate
        self.forward_net, self.backward_net = network(ends.spec), network(ends.spec)
        self.rows, self.rounds, self.table = table, [], None
        self.register_buffer("mean", torch.zeros(ends.spec.shape))

    def schedule(self, part=""):
        return Alternate(
            (
                Phase(
                    "forward", lambda batch, draws: self.regress(self.forward_net, 1.0, batch, draws), ("forward_net.",)
                ),
                Phase(
                    "backward",
                    lambda batch, draws: self.regress(self.backward_net, -1.0, batch, draws),
                    ("backward_net.",),
                ),
            ),
            images=self.turn,
        )

    def regress(self, network, sign, batch, draws):
        time.sleep(self.pause)
        if batch.seen == self.terminate:
            os.kill(os.getpid(), signal.SIGTERM)
        x0 = batch.data
        x1, t = draws.normal("x1", x0), draws.uniform("t")
        if self.table is not None:
            x1 = self.table[draws.integers("row", self.rows)]
        w = expand_as(t, x0)
        error = network((1 - w) * x0 + w * x1, t.to(x0.dtype), batch.cond) - sign * (x1 - x0)
        total = error.square().flatten(1).mean(1)
        if batch.seen in self.poison:
            total = total * float("nan")
        return Loss(total, {"mse": total.detach()})

    def renew(self, round):
        assert not self.training
        self.rounds.append((round.number, round.resumed))
        teacher = self.backward_net if round.number % 2 == 0 else self.forward_net

        def make(batch, draws):
            x = draws.normal("x", batch.data) + batch.data
            return {"x1": x + teacher(x, torch.full((len(x),), 0.5), batch.cond)}

        if self.rows:
            self.table = round.simulate("ends", self.rows, make)["x1"]

    def loss(self, batch, draws):
        return self.regress(self.forward_net, 1.0, batch, draws)

    def fit(self, batches):
        values = torch.cat([batch.data for batch in batches()])
        self.mean.copy_(values.mean(0))

    def start(self, batch, draws, towards="x0"):
        x = draws.normal("x1", self.ends.spec.zeros(len(batch)))
        return State(x, torch.ones((), dtype=torch.float64), batch.cond)

    def drift(self, x, t, cond, towards="x0"):
        return (self.forward_net if towards == "x1" else self.backward_net)(x, t.to(x.dtype), cond)

    def diffusion(self, t):
        return torch.zeros_like(t)
